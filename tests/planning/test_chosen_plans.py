"""Plans of runs whose motion is chosen."""

from dataclasses import replace

import pytest

from ditflow.memory.presets import GIB, presets
from ditflow.planning import choice


@pytest.fixture
def guided(settings):
    return replace(settings, steps=10, guided=0.5, optimisation_steps=4, injection=True)


def planned(settings):
    (plan,) = choice.make_plans(settings, [presets()[0]], "cpu", 100 * GIB)
    return {phase.name: phase for phase in plan.phases}


def test_without_a_clip_nothing_is_encoded_read_or_injected(guided):
    clip = planned(guided)
    drawn = planned(replace(guided, video="", motion="line.yaml"))
    assert clip.keys() - drawn.keys() == {"encode", "reference", "injection"}
    latents = choice.phases_of(guided, "cpu").inputs.latents
    plain = planned(replace(guided, injection=False))
    for name in ("optimise", "denoise"):
        assert drawn[name].flops == plain[name].flops
        saved = plain[name].peak_bytes - drawn[name].peak_bytes
        assert saved == latents.numel() * latents.element_size(), "the encoded clip is not there"


def test_a_choice_of_the_clips_motion_costs_nothing(guided):
    assert planned(replace(guided, mask="auto", motion_scale=2.0)) == planned(guided)
    assert planned(replace(guided, video="clip.mp4", motion="line.yaml")) == planned(guided)
