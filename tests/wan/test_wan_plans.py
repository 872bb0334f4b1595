"""Plans of the published Wan models: what docs/models.md says fits."""

import pytest

from ditflow.memory.presets import PRESETS, presets
from ditflow.planning.choice import make_plans
from ditflow.settings import read_settings

TABLE = 256_384 * 4096 * 2  # bytes of UMT5's token table


def planned(preset, **settings):
    (found,) = make_plans(read_settings(**settings), [presets()[PRESETS.index(preset)]], "cuda")
    return found


@pytest.mark.parametrize(
    "preset, settings",
    [
        ("4gb", {"model": "wan-1.3b", "frames": 49}),
        ("8gb", {"model": "wan-14b", "frames": 49, "weights": "int8"}),
    ],
    ids=str,
)
def test_guided_runs_fit(preset, settings):
    plan = planned(preset, **settings)
    assert plan.fits, plan.largest
    assert plan.peak_of("text") < TABLE  # which stays on the host
    assert {phase.name for phase in plan.phases} > {"text", "encode", "reference", "optimise", "denoise"}
