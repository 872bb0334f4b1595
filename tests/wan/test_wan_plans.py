"""Plans of the published Wan models, to the byte: what README.md and docs/models.md say fits."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
from repository import ROOT

from bench.presets import CARDS, LENGTHS, PLANNED, PLANNED_CARDS, PLANNED_WAN, WAN_RUNS, WanRun, wan_row
from bench.tables import card_table, headline_table
from ditflow.memory.presets import GIB, budget
from ditflow.models.wan import vae
from ditflow.planning.choice import phases_of
from ditflow.planning.phases import Phases
from ditflow.settings import Settings, read_settings

TABLE = 256_384 * 4096 * 2  # bytes of UMT5's token table
GUIDED = {"text", "encode", "reference", "optimise", "denoise", "decode"}
REPLANNED = WAN_RUNS[2], WAN_RUNS[4]  # one of each autoencoder, to save time


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def on_file():
    """The plans on file, by run."""
    rows = read(PLANNED_WAN)["runs"]
    return {WanRun(*(row[name] for name in WanRun._fields)): row for row in rows}


def test_guided_runs_fit(on_file):
    assert tuple(on_file) == WAN_RUNS
    for run, plan in on_file.items():
        peaks = {phase["name"]: phase["peak_bytes"] for phase in plan["phases"]}
        assert plan["fits"] and max(peaks.values()) <= budget(plan["gigabytes"]), run
        assert peaks.keys() == GUIDED, run
        if run.preset != "12gb":
            assert peaks["text"] < TABLE, "layer by layer, and the token table stays on the host"
    smallest = on_file["wan-1.3b", 49, "4gb", "full"]
    assert all(phase["peak_bytes"] <= 3.4 * GIB for phase in smallest["phases"])


@pytest.mark.parametrize("run", REPLANNED, ids=lambda run: "-".join(map(str, run[:3])))
def test_the_plans_on_file_are_current(run, on_file):
    assert wan_row(run) == on_file[run], f"{PLANNED_WAN.name} is out of date: python -m bench.presets"


def test_a_step_computes_nothing_twice_that_it_keeps():
    """Of 1.3B at 25 frames: a forward to the queries and keys of block 14, the loss, and their gradients."""
    tokens, text, channels, hidden = 7 * 30 * 52, 512, 1536, 8960
    layer = 2 * tokens * channels**2
    attention = 4 * tokens * (tokens + text) * channels  # self and cross
    block = 6 * layer + 2 * (2 * tokens * channels * hidden)
    forward = block + attention + 2 * (2 * text * channels**2)
    backward = block + 2.5 * attention  # flash attention computes its logits again
    loss = 3 * 2 * tokens**2 * channels
    least = 14 * (forward + backward) + 2 * (2 * layer) + loss
    settings = Settings(model="wan-1.3b", frames=25)
    assert settings.guidance_blocks == (14,)
    counted = phases_of(settings, "cuda").optimise("none", "device").flops
    assert least <= counted <= 1.02 * least


def test_longest_runs_by_card(on_file):
    rows = {(row["model"], row["card"]): row for row in read(PLANNED_CARDS)["runs"]}
    assert list(rows) == [(model, card) for model in LENGTHS for card in CARDS]
    for (model, card), row in rows.items():
        assert row["frames"] in (0, *LENGTHS[model])
        assert row["frames"] == 0 or row["peak_bytes"] <= budget(card)
    for model in LENGTHS:
        frames = [rows[model, card]["frames"] for card in CARDS]
        assert frames == sorted(frames), "a larger card takes at least as long a video"
    planned = {("5b", run["frames"], run["preset"]): run for run in read(PLANNED)["runs"]}
    planned |= {run[:3]: plan for run, plan in on_file.items() if run.weights == "full"}
    both = [
        (row, run)
        for (model, card), row in rows.items()
        if (run := planned.get((model, row["frames"], row.get("preset")))) and run["gigabytes"] == card
    ]
    assert len(both) > 5, "most of CogVideoX-5B's, and some of Wan's"
    for row, run in both:
        assert all(row[memory] == run[memory] for memory in ("peak_bytes", "host_bytes")), row


@pytest.mark.parametrize(
    "page, table",
    [
        ("README.md", headline_table(read(PLANNED), read(PLANNED_WAN))),
        ("docs/models.md", card_table(read(PLANNED_CARDS))),
    ],
    ids=["README", "models"],
)
def test_pages_show_the_plans_on_file(page, table):
    text = (ROOT / page).read_text(encoding="utf-8")
    for line in table.splitlines():
        assert line in text, f"{page} is out of date, `python -m bench.presets` prints its table: {line}"


@pytest.mark.parametrize("kind", ["wan-1.3b", "wan-5b"])
def test_counting_each_tile_shape_once_gives_the_same_plan(wan_folders, kind, monkeypatch):
    """Of several tiles and groups of frames. Memory traffic is a little more where calls join."""
    settings = read_settings(model=str(wan_folders(kind)), frames=13, size="448x192", device="cpu")
    quick, whole = Phases(settings, "cpu"), Phases(settings, "cpu")
    counted = quick.decode("256x256"), quick.encode()
    monkeypatch.setattr(vae, "each_shape_once", lambda *_: nullcontext())
    for found, expected in zip(counted, (whole.decode("256x256"), whole.encode()), strict=True):
        assert found.attention_flops and found.moved_bytes == pytest.approx(expected.moved_bytes, rel=0.02)
        assert found == replace(expected, moved_bytes=found.moved_bytes)
