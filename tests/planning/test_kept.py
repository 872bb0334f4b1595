"""What is measured for plans is kept on disk, for later processes."""

import json
import logging
import os
import shutil
from dataclasses import replace

import pytest
from tiny_wan_pipelines import write_wan

from ditflow.memory.presets import presets
from ditflow.planning import choice, kept, phases
from ditflow.planning.phases import Phases
from ditflow.planning.plan import make_plan
from ditflow.settings import Settings

CHANGES = {
    "default": {},
    "not guided": {"guided": 0},
    "x0": {"loss": "x0", "injection": True},
    "two losses": {"guided": 0.5, "x0_after": 0.4},
    "read in steps": {"guided": 0.5, "reference_noise": "step"},
    "less work": {"step_cache": "0.2", "negative": "alternate", "gradient_reuse": 2},
    "stored": {"weights": "fp8", "dtype": "bfloat16"},
    "int8": {"compute": "int8", "dtype": "bfloat16"},
    "tiled": {"decode_tile": "144x96"},
}
CASES = {name: (change, "cuda") for name, change in CHANGES.items()} | {"on a CPU": ({}, "cpu")}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_plans()
    yield tmp_path / "cache" / "ditflow" / "plans"
    forget_plans()


def forget_plans():
    choice._phases.cache_clear()
    choice._measured_of_video.cache_clear()


@pytest.fixture
def quick(settings):
    """Settings of a run with few phases."""
    return replace(settings, guided=0)


@pytest.fixture
def counted(monkeypatch):
    """The device of each measurement on fake tensors."""
    found, real = [], phases.as_on

    def as_on(device):
        found.append(device)
        return real(device)

    monkeypatch.setattr(phases, "as_on", as_on)
    return found


UNLIKE = [preset for preset in presets() if preset.name in ("4gb", "16gb", "80gb")]


def planned(settings, device="cuda", wanted=UNLIKE):
    """The plans that a new process makes."""
    forget_plans()
    return choice.make_plans(settings, wanted, device)


def measured_anew(settings, device="cuda"):
    found = Phases(settings, device)
    return [make_plan(found, settings, preset, preset.budget) for preset in UNLIKE]


@pytest.mark.parametrize("change, device", CASES.values(), ids=CASES)
def test_a_plan_from_a_file_is_the_same(settings, change, device, counted):
    run = replace(settings, **change)
    expected = measured_anew(run, device)
    counted.clear()
    first, times = planned(run, device), len(counted)
    assert first == planned(run, device) == expected
    assert len(counted) == times > 0


@pytest.mark.parametrize("kind", ["wan-1.3b", "wan-5b"])
def test_another_family(kind, tmp_path, counted):
    write_wan(tmp_path / kind, kind)
    run = Settings(model=str(tmp_path / kind), frames=13, size="96x64", guided=0.5)
    expected = measured_anew(run)
    counted.clear()
    first, times = planned(run), len(counted)
    assert first == planned(run) == expected
    assert len(counted) == times > 0


def test_settings_with_equal_phases_share_a_file(quick, cache, counted):
    planned(quick)
    times = len(counted)
    other = replace(quick, steps=7, seed=3, prompt="a cat")
    assert planned(other) != planned(quick)
    assert len(counted) == times and len(list(cache.iterdir())) == 1


def test_other_guidance_shares_what_it_does_not_change(settings, small_folder, tmp_path):
    model = shutil.copytree(small_folder, tmp_path / "model")
    settings = replace(settings, model=str(model))
    planned(settings)
    planned(settings)  # what comes from a file is shared too
    other = replace(settings, loss="moft", injection=True)
    shared = choice.phases_of(other, "cuda").measured
    assert {name.split()[0] for name in shared} == {"layer_bytes", "text", "encode", "decode"}
    assert choice.make_plans(other, UNLIKE, "cuda") == measured_anew(other)
    assert not choice.phases_of(replace(settings, size="64x32"), "cuda").measured
    assert not choice.phases_of(settings, "cpu").measured
    config = json.loads((model / "vae" / "config.json").read_text())
    (model / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    choice._phases.cache_clear()
    assert not choice.phases_of(settings, "cuda").measured


def test_a_file_gains_what_another_preset_needs(settings, cache, counted):
    (small,) = planned(settings, wanted=UNLIKE[:1])
    few = len(counted)
    plans = planned(settings)
    assert few < len(counted) and plans[0] == small and plans == measured_anew(settings)
    counted.clear()
    assert planned(settings) == plans and not counted
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", ["size", "device", "config", "version", "source", "old GPU"])
def test_a_file_is_for_what_it_depends_on(settings, small_folder, tmp_path, monkeypatch, change):
    model = shutil.copytree(small_folder, tmp_path / "model")
    settings, device = replace(settings, model=str(model)), "cuda"
    before = kept.plan_file(Phases(settings, device))
    assert kept.plan_file(Phases(settings, device)) == before
    if change == "size":
        settings = replace(settings, size="64x64")
    elif change == "device":
        device = "cpu"
    elif change == "config":
        config = json.loads((model / "vae" / "config.json").read_text())
        (model / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    elif change == "version":
        monkeypatch.setattr(kept, "versions", lambda *_: {"torch": "0.1"})
    elif change == "source":
        monkeypatch.setattr(kept, "PACKAGE", tmp_path)
        (tmp_path / "changed.py").write_text("pass")
        kept._sources.cache_clear()
    else:
        monkeypatch.setattr(kept, "fastest", lambda _: "another kernel")
    assert kept.plan_file(Phases(settings, device)) != before
    kept._sources.cache_clear()


def test_a_copy_of_the_model_shares_the_file(settings, small_folder, tmp_path):
    copy = replace(settings, model=str(shutil.copytree(small_folder, tmp_path / "copy")))
    assert kept.plan_file(Phases(copy)) == kept.plan_file(Phases(settings))


def test_a_changed_gguf_file_is_another_file(settings, tmp_path):
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"GGUF")
    found = Phases(replace(settings, weights=str(file)))
    before = kept.plan_file(found)
    file.write_bytes(b"GGUF and more")
    assert kept.plan_file(found) != before


def test_the_source_is_that_of_both_packages(tmp_path, monkeypatch):
    """Any change in it counts: of a name, of the content."""
    found = set()
    for name, content in (("a.py", "1"), ("b.py", "1"), ("b.py", "2")):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / name).write_text(content)
        for module, attribute, value in (
            (kept, "PACKAGE", folder),
            (kept.ditflow_kernels, "__file__", str(folder / "x")),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(module, attribute, value)
                kept._sources.cache_clear()
                found.add(kept._sources())
    kept._sources.cache_clear()
    assert len(found | {kept._sources()}) == 7


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def other_number(file):
    content = json.loads(file.read_text())
    content["measured"]["text"]["flops"] += 1
    file.write_text(json.dumps(content))


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": cut,
    "binary": lambda file: file.write_bytes(b"\x80\xff"),
    "list": lambda file: file.write_text("[1]"),
    "no checksum": lambda file: file.write_text('{"measured": {}}'),
    "other number": other_number,
    "deep": lambda file: file.write_text("[" * 100_000),
}


@pytest.mark.fault("a cached plan that is damaged")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_measured_again(quick, cache, counted, damage):
    expected = planned(quick)
    times, (file,) = len(counted), cache.iterdir()
    damage(file)
    assert planned(quick) == planned(quick) == expected
    assert len(counted) == 2 * times and list(cache.iterdir()) == [file]


@pytest.mark.fault("a cached plan in the place of another")
def test_a_foreign_file_is_measured_again(quick, cache):
    other = replace(quick, size="64x64")
    expected = planned(quick)
    planned(other)
    mine, others = (kept.plan_file(choice.phases_of(each, "cuda")) for each in (quick, other))
    shutil.copy(others, mine)
    assert planned(quick) == expected


@pytest.mark.fault("a cached plan that is a named pipe or a folder")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_an_entry_that_is_no_file(quick, cache, make):
    expected, (file,) = planned(quick), cache.iterdir()
    file.unlink()
    make(file)
    if file.is_dir():
        (file / "inside").touch()
    assert planned(quick) == planned(quick) == expected


def test_the_oldest_files_go(quick, cache, monkeypatch):
    monkeypatch.setattr(kept, "MOST_FILES", 2)
    written = []
    for age, size in enumerate(("48x32", "64x32", "32x32")):
        planned(replace(quick, size=size), wanted=UNLIKE[:1])
        (new,) = {*cache.iterdir()} - {*written}
        os.utime(new, (age, age))
        written.append(new)
    assert {*cache.iterdir()} == {*written[1:]}


def test_works_without_a_writable_cache(quick, cache, counted, caplog):
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    with caplog.at_level(logging.INFO):
        first, times = planned(quick), len(counted)
        assert planned(quick) == first
    assert len(counted) == 2 * times and not caplog.records
