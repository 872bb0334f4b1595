"""The shipped model on a CPU: guidance makes its object go where the clip's goes, and the prompt is kept.

One of the pairs of `make motion`, with a clip that the model follows well, so that a change of precision or
approximation that harms motion shows.
"""

import pytest

from bench.motion import Pair, measure
from ditflow.settings import read_settings

PAIR = Pair.draw(7, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    settings, folder = read_settings(model="small"), tmp_path_factory.mktemp("pair")
    return {mode: measure(PAIR, mode, settings, folder) for mode in ("flow", "backbone")}


def test_motion_follows_the_clip(found):
    assert found["flow"].path_fidelity > 0.8
    assert found["flow"].trajectory_correlation > 0.9


def test_it_would_not_without_guidance(found):
    assert found["backbone"].path_fidelity < 0.25


def test_colours_are_the_prompts(found):
    assert found["flow"].prompt_match == 1
