"""The shipped model on a CPU: guidance makes its object go where the clip's goes, and the prompt is kept.

A part of `make motion`, of clips that the model follows well: a change of precision or
approximation that harms motion is seen.
"""

import pytest

from bench.motion import Pair, measure, summaries
from ditflow.settings import read_settings

PAIRS = [Pair.draw(7, index) for index in (2, 3)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    settings = read_settings(model="small")
    modes = {"flow": [], "backbone": []}
    for pair in PAIRS:
        folder = tmp_path_factory.mktemp("pair")
        for mode, several in modes.items():
            several.append(measure(pair, mode, settings, folder))
    return summaries(modes)


def test_motion_follows_the_clip(found):
    assert found["flow"]["motion_fidelity"].mean > 0.7
    assert found["flow"]["trajectory_correlation"].mean > 0.7


def test_it_would_not_without_guidance(found):
    assert found["backbone"]["motion_fidelity"].mean < 0.25


def test_colours_are_the_prompts(found):
    assert found["flow"]["prompt_match"].mean >= 0.75
