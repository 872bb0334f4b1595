"""Run states: continuing from a saved state gives the same result as a run without interruption."""

import threading

import pytest
import torch
from tiny_models import backbone_of, random_inputs, settings_schedule, text_embeddings, tiny_transformer

from ditflow.errors import DitflowError
from ditflow.memory.plain import PlainRunner
from ditflow.run_folder.checkpoint import State, StateFolder, StateWriter, read_state
from ditflow.run_folder.run import Run
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings

IDENTITY = {"format": "2", "settings": "{}", "weights": "{}", "clip": "0"}
STEPS = 4


FROM_CLIP = {"reference_noise": "step", "initial_latents": "clip:0.8", "steps": 5}  # makes 4 steps


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize(
    "loss, optimise, x0_after, changes",
    [
        ("flow", "latent", 1, {}),
        ("flow", "embedding", 1, {}),
        ("x0", "latent", 1, {}),
        ("flow", "latent", 0.3, {}),
        ("flow", "latent", 1, FROM_CLIP),
        ("flow", "embedding", 1, FROM_CLIP),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_continues_bit_for_bit_from_every_state(
    tmp_path, loss, optimise, x0_after, changes, scheduler, dtype
):
    backbone = backbone_of(tiny_transformer().to(dtype))
    inputs = random_inputs(backbone, 3, 8, 12)
    settings = Settings(
        **{
            "model": "small", "dtype": str(dtype)[6:], "steps": STEPS, "guided": 0.75, "guidance_scale": 2,
            "optimisation_steps": 2, "guidance_blocks": [2], "loss": loss, "optimise": optimise,
            "x0_after": x0_after, "scheduler": scheduler, **changes,
        }
    )  # fmt: skip

    def denoising(resume_from=None):
        texts, states = text_embeddings(inputs.prompt), []
        made = Denoising(
            settings,
            settings_schedule(settings),
            texts,
            inputs.latents,
            lambda _: states.append(made.state),
            resume_from=resume_from,
        )
        return made, states

    whole, states = denoising()
    expected = whole.run(PlainRunner(backbone))
    assert [state.index for state in states] == list(range(STEPS))
    # a guided step needs the velocities of those before it with the loss x0, and nothing else does
    needed = [loss == "x0", loss == "x0" or x0_after < 1, False, False]
    assert [bool(state.guidance) for state in states] == needed
    for state in states:
        (tmp_path / str(state.index)).mkdir()
        files = StateFolder(Run(tmp_path / str(state.index)), IDENTITY)
        with StateWriter(files, 0) as writer:
            writer.put(state)
        again, _ = denoising(read_state(files))
        found = again.run(PlainRunner(backbone))
        assert torch.equal(found.latents, expected.latents)
        assert (found.losses, found.skipped) == (expected.losses, expected.skipped)
        assert len(found.embeddings) == len(expected.embeddings)
        assert all(map(torch.equal, found.embeddings, expected.embeddings))


def state(index):
    tensors = [torch.full((1, 2), float(index + each)) for each in range(index + 2)]
    schedule = {"generator": torch.arange(3, dtype=torch.uint8)}
    return State(index, tensors[0], None, schedule, [[0.5]] * index, 0, tensors[1:])


class Slow:
    """Files that are not written until `may` is set."""

    def __init__(self):
        self.may, self.began, self.written = threading.Event(), threading.Event(), []

    def write(self, name, tensors, **facts):
        self.began.set()
        self.may.wait()
        self.written.append(f"{name} {facts['index']}" if "index" in facts else name)


def test_a_newer_state_replaces_one_that_waits():
    """Every embedding is still written, once."""
    files = Slow()
    with StateWriter(files, 0) as writer:
        writer.put(state(0))
        files.began.wait()
        for index in (1, 2, 3):
            writer.put(state(index))
        files.may.set()
    assert files.written == ["embedding_000", "step 0", *(f"embedding_00{i}" for i in (1, 2, 3)), "step 3"]


@pytest.mark.parametrize("more", [0, 1])
def test_a_state_that_cannot_be_written_stops_the_run(tmp_path, more):
    (tmp_path / "state").write_text("in the way")
    writer = StateWriter(StateFolder(Run(tmp_path), IDENTITY), 0)
    with pytest.raises(DitflowError, match="cannot be written"), writer:
        writer.put(state(0))
        for _ in range(more):
            writer.thread.submit(lambda: None).result()  # wait until the first write has failed
            writer.put(state(1))
            pytest.fail("the run continued")
