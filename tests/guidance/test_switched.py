"""Runs with two losses, against a run of each: the steps before the switch, and those after it."""

import pytest
import torch
from tiny_models import backbone_of, random_inputs, settings_schedule, text_embeddings, tiny_transformer

from ditflow.errors import NotFinite
from ditflow.guidance import optimise
from ditflow.guidance.estimates import EstimateGuidance
from ditflow.memory.plain import PlainRunner
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings

STEPS, GUIDED, FIRST = 6, 4, 2


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer()


@pytest.fixture(scope="module")
def clip_and_texts(transformer):
    torch.manual_seed(1)
    inputs = random_inputs(backbone_of(transformer), 3, 8, 12)
    return inputs.latents, text_embeddings(inputs.prompt)


def settings(**changes):
    return Settings(
        **{
            "model": "small", "dtype": "float32", "steps": STEPS, "guided": GUIDED / STEPS, "x0_after": 0.5,
            "optimisation_steps": 3, "guidance_blocks": [2], "guidance_scale": 2, "scheduler": "dpm",
            **changes,
        }
    )  # fmt: skip


def states_of(given, transformer, clip_and_texts, resume_from=None):
    """The state after each step that runs."""
    clip, texts = clip_and_texts
    made = Denoising(
        given, settings_schedule(given), texts, clip, lambda _: states.append(made.state),
        resume_from=resume_from,
    )  # fmt: skip
    states = []
    made.run(PlainRunner(backbone_of(transformer)))
    return states


@pytest.mark.parametrize("loss", ["flow", "moft", "smm", "smm-release"])
def test_each_part_is_that_of_a_run_with_its_loss(loss, transformer, clip_and_texts):
    both = states_of(settings(loss=loss), transformer, clip_and_texts)
    one = states_of(settings(loss=loss, x0_after=1), transformer, clip_and_texts)
    for found, expected in zip(both[:FIRST], one, strict=False):
        assert torch.equal(found.latents, expected.latents) and found.losses == expected.losses
    rest = states_of(settings(loss="x0", x0_after=1), transformer, clip_and_texts, resume_from=one[FIRST - 1])
    for found, expected in zip(both[FIRST:], rest, strict=True):
        assert torch.equal(found.latents, expected.latents) and found.losses == expected.losses
    assert not torch.equal(both[FIRST].latents, one[FIRST].latents)
    assert [step["loss"] for step in both[-1].steps] == [loss] * 2 + ["x0"] * 2 + [None] * 2


def test_gradients_are_used_again_only_before_the_switch(transformer, clip_and_texts):
    *_, last = states_of(settings(gradient_reuse=3), transformer, clip_and_texts)
    assert [len(losses) for losses in last.losses] == [1, 1, 3, 3]
    *_, last = states_of(settings(gradients=2), transformer, clip_and_texts)
    assert [len(losses) for losses in last.losses] == [2] * GUIDED


@pytest.mark.parametrize("reuse, update", [(1, 2), (3, 2)])
def test_a_loss_that_is_not_finite_is_reported_by_its_own_update(
    reuse, update, transformer, clip_and_texts, monkeypatch
):
    """After the switch each update has its own loss, whatever --gradient-reuse is."""
    whole = EstimateGuidance.optimise

    def fails(self, *given):
        found = whole(self, *given)
        found.losses[update - 1] = torch.nan
        return found

    monkeypatch.setattr(EstimateGuidance, "optimise", fails)
    with pytest.raises(NotFinite, match=f"optimisation step {update} of denoising step {FIRST + 1};"):
        states_of(settings(gradient_reuse=reuse), transformer, clip_and_texts)


def test_skipped_updates_are_counted_after_the_switch_too(transformer, clip_and_texts, monkeypatch):
    """And after a resume there."""
    monkeypatch.setattr(optimise, "LOSS_SCALE", 2.0**60)
    half, given = tiny_transformer().half(), settings(dtype="float16")
    states = states_of(given, half, clip_and_texts)
    skipped = [state.skipped for state in states]
    assert skipped[0] > 0 and set(skipped[FIRST - 1 :]) == {skipped[FIRST - 1]}
    for before in range(STEPS - 1):
        again = states_of(given, half, clip_and_texts, resume_from=states[before])
        assert [state.skipped for state in again] == skipped[before + 1 :]
        assert torch.equal(again[-1].latents, states[-1].latents)
