"""`ensure`: a run is started, continued or taken as it is."""

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import latents

from ditflow import Settings, ensure, transfer
from ditflow.errors import DitflowError, SettingsError
from ditflow.progress import Progress


class StopAfter(Progress):
    def __init__(self, steps: int):
        self.left = steps

    def step(self, loss=None, preview=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


class Count(Progress):
    steps = 0

    def step(self, loss=None, preview=None):
        self.steps += 1


def test_a_run_is_started_continued_and_taken(settings, tmp_path):
    expected = latents(transfer(settings))
    folder = tmp_path / "wanted"
    with pytest.raises(KeyboardInterrupt):
        ensure(settings, folder, StopAfter(3))
    count = Count()
    run = ensure(settings, folder, count)
    assert run.folder == folder and run.finished
    assert count.steps == settings.steps - 3
    assert torch.equal(latents(run), expected)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ensure(settings, folder, count).folder == folder
    assert count.steps == settings.steps - 3
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_memory_may_change(settings, tmp_path):
    """It does not change what a run makes, so a smaller preset continues the same run."""
    with pytest.raises(KeyboardInterrupt):
        ensure(settings, tmp_path / "wanted", StopAfter(2))
    assert ensure(replace(settings, memory="4gb"), tmp_path / "wanted").settings().preset == "4gb"


@pytest.mark.parametrize("change", [{"seed": 5}, {"prompt": "a green square"}, {"steps": 5}])
def test_a_run_of_other_settings_is_refused(settings, tmp_path, change):
    folder = tmp_path / "wanted"
    ensure(settings, folder)
    (name,) = change
    with pytest.raises(SettingsError, match=f"holds a run with {name}"):
        ensure(Settings(**(vars(settings) | change)), folder)


def test_a_run_killed_before_its_settings_were_written_starts_anew(settings, tmp_path):
    folder = tmp_path / "wanted"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "clip.safetensors").write_bytes(b"cut short")
    (folder / ".lock").touch()
    assert ensure(settings, folder).folder == folder
    assert not (tmp_path / "wanted-2").exists()


def test_a_folder_with_other_things_is_refused(settings, tmp_path):
    (tmp_path / "wanted").mkdir()
    (tmp_path / "wanted" / "thesis.tex").write_text("all of it")
    with pytest.raises(DitflowError, match=r"is not a run folder \(it has thesis.tex\)"):
        ensure(settings, tmp_path / "wanted")
    assert (tmp_path / "wanted" / "thesis.tex").read_text() == "all of it"
