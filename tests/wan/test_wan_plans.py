"""Plans of the published Wan models: what docs/models.md says fits."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from ditflow.memory.presets import PRESETS, presets
from ditflow.models.wan import vae
from ditflow.planning.choice import make_plans
from ditflow.planning.phases import Phases
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


@pytest.mark.parametrize("kind", ["wan-1.3b", "wan-5b"])
def test_counting_each_tile_shape_once_gives_the_same_plan(wan_folders, kind, monkeypatch):
    """Of several tiles and groups of frames. Memory traffic is a little more where calls join."""
    settings = read_settings(model=str(wan_folders(kind)), frames=13, size="448x320", device="cpu")
    quick, whole = Phases(settings, "cpu"), Phases(settings, "cpu")
    counted = quick.decode("128x128"), quick.encode()
    monkeypatch.setattr(vae, "each_shape_once", lambda *_: nullcontext())
    for found, expected in zip(counted, (whole.decode("128x128"), whole.encode()), strict=True):
        assert found.attention_flops and found.moved_bytes == pytest.approx(expected.moved_bytes, rel=0.02)
        assert found == replace(expected, moved_bytes=found.moved_bytes)
