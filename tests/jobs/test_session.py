"""Runs from a program: events, cancelling, clips in memory, and a model that stays loaded."""

import tempfile
from dataclasses import asdict, replace
from fractions import Fraction
from threading import Event as Flag

import numpy as np
import pytest
import torch
from tiny_pipelines import latents

from ditflow import Cancelled, Session, Settings, inject, transfer
from ditflow.errors import DitflowError, SettingsError
from ditflow.models.kept import KeptParts
from ditflow.models.loading import ModelFolder
from ditflow.run_folder.run import read_latents
from ditflow.video import Clip, read_clip

PROMPT = "a red circle on a blue background"


def given(settings: Settings, *without: str) -> dict:
    """The settings as keyword arguments, without those that a session's methods name."""
    named = ("video", "prompt", "output", "model", "device", "memory", *without)
    return {name: value for name, value in asdict(settings).items() if name not in named}


@pytest.fixture
def session(settings):
    with Session(settings.model, device="cpu", **given(settings)) as session:
        yield session


@pytest.fixture
def loaded(monkeypatch):
    """The parts of models that have been loaded."""
    parts, load = [], ModelFolder._load

    def recorded(self, part, **options):
        parts.append(part)
        return load(self, part, **options)

    monkeypatch.setattr(ModelFolder, "_load", recorded)
    return parts


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder for temporary files, at first empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def last(events):
    *_, event = events
    return event


def test_events_follow_the_run(session, settings, clip):
    events = list(session.transfer(clip, PROMPT, preview_every=2))
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["text", "encode", "denoise", "decode"]
    denoising = [event for event in events if event.phase == "denoise"]
    where = [(event.step, event.substep) for event in denoising]
    guided = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert where == [*guided, (2, 0), (3, 0), (4, 0)]
    assert {event.steps for event in denoising} == {settings.steps}
    assert denoising[0].loss is None and denoising[-1].loss == session.result.losses[-1][-1]
    done = [event.seconds_left for event in denoising if event.step and not event.substep]
    assert done[0] > 0 and done[-1] == 0
    previews = {event.step: event.preview for event in denoising if event.preview is not None}
    assert list(previews) == [2, 4]
    assert previews[4].shape == (4, 8, 12, 3) and previews[4].dtype == np.uint8
    assert any(event.phase == "encode" and event.substep for event in events)  # a tile
    assert any(event.phase == "decode" and event.substep for event in events)


def test_guided_steps_are_known_to_take_longer(session, clip, monkeypatch):
    """Half of the steps are guided. So with those done, less than half of the time is left."""
    now = iter(range(1000))
    monkeypatch.setattr("ditflow.progress.time.monotonic", lambda: next(now))
    events = [event for event in session.transfer(clip, PROMPT) if event.phase == "denoise"]
    (after_two,) = (event.seconds_left for event in events if (event.step, event.substep) == (2, 0))
    assert 0 < after_two < 1.5  # of 2 "seconds" so far


@pytest.mark.parametrize("given, device", [({}, "cpu"), ({"device": "auto"}, "auto")])
def test_without_a_device_it_is_the_model_s(given, device, monkeypatch):
    begun = []

    def begin(settings, *others):
        begun.append(settings.device)
        raise DitflowError("begun")

    monkeypatch.setattr("ditflow.jobs.session.begin_transfer", begin)
    with pytest.raises(DitflowError, match="begun"):
        list(Session("small", **given).transfer("clip.mp4", PROMPT))
    assert begun == [device]


def test_the_result_is_that_of_a_transfer(session, settings, clip, tmp_path):
    expected = transfer(settings)
    last(session.transfer(clip, PROMPT, folder=tmp_path / "mine", format="frames"))
    result = session.result
    assert result.folder == tmp_path / "mine"
    assert torch.equal(result.latents, latents(expected))
    assert torch.equal(result.latents, read_latents(result.folder)[1])
    written = read_clip(result.folder / "result", frames=settings.frames, size=None)
    assert np.array_equal(written.frames, result.frames) and result.frame_rate == 10
    assert result.losses == expected.record()["losses"]


def test_frames_in_memory_are_those_of_the_file(session, settings, clip, tmp_path, scratch):
    last(session.transfer(clip, PROMPT))
    expected = session.result.latents
    whole = read_clip(clip, frames=14, size=None)
    for source in (whole, (whole.frames, 10), (whole.frames, Fraction(10))):
        last(session.transfer(source, PROMPT))
        assert torch.equal(session.result.latents, expected)
        assert session.result.frame_rate == 10 and session.result.folder is None
    assert not list(scratch.iterdir())  # nothing is left


def test_a_run_of_frames_in_memory_resumes(session, clip, tmp_path):
    whole, folder, stop = read_clip(clip, frames=14, size=None), tmp_path / "mine", Flag()
    last(session.transfer(whole, PROMPT))
    expected = session.result.latents
    with pytest.raises(Cancelled):
        for event in session.transfer(whole, PROMPT, folder=folder, cancel=stop):
            if event.step == 1:
                stop.set()
    last(session.resume(folder))
    assert torch.equal(session.result.latents, expected) and session.result.folder == folder
    assert not list(session.resume(folder))  # it is finished
    assert torch.equal(session.result.latents, expected)


@pytest.mark.parametrize(
    "frames, words",
    [
        (np.zeros((14, 32, 48), np.uint8), "uint8 [14, 32, 48] given"),
        (np.zeros((14, 32, 48, 3), np.float32), "float32 [14, 32, 48, 3] given"),
        ([1, 2], "list"),
    ],
)
def test_wrong_frames_are_refused(session, frames, words):
    with pytest.raises(SettingsError) as refused:
        session.transfer((frames, 8), PROMPT)
    assert words in str(refused.value) and "uint8 array [frames, height, width, 3]" in str(refused.value)


def test_too_few_frames_in_memory(session):
    with pytest.raises(DitflowError, match="only 5 frames can be read"):
        last(session.transfer((np.zeros((5, 32, 48, 3), np.uint8), 8), PROMPT))


def test_frames_in_memory_are_not_resampled(session, clip):
    whole = Clip(read_clip(clip, frames=14, size=None).frames, Fraction(10))
    with pytest.raises(SettingsError, match="fps 5: frames in memory have the rate 10"):
        last(session.transfer(whole, PROMPT, fps="5"))


def test_wrong_settings_are_refused_at_once(session, settings):
    with pytest.raises(SettingsError, match="unknown setting 'stepz'"):
        session.transfer("clip.mp4", PROMPT, stepz=3)
    with pytest.raises(SettingsError, match="steps"):
        Session(settings.model, steps=-1)


def test_parts_are_loaded_once(session, settings, clip, loaded):
    last(session.transfer(clip, PROMPT))
    first = session.result.latents
    assert {"transformer", "vae"} <= set(loaded)
    loaded.clear()
    last(session.transfer(clip, PROMPT))
    assert not {"transformer", "vae", "text_encoder"} & set(loaded)
    assert torch.equal(session.result.latents, first)
    session.close()
    last(session.transfer(clip, PROMPT))
    assert {"transformer", "vae"} <= set(loaded)


def test_parts_stay_through_streaming_and_change_with_the_settings(session, settings, clip, loaded):
    """A run that streams its weights moves them about; the next one finds them as they were."""
    expected = {}
    for preset in ("80gb", "4gb", "80gb", "8gb"):
        last(session.transfer(clip, PROMPT, preset=preset))
        found = expected.setdefault(preset, session.result.latents)
        assert torch.equal(session.result.latents, found)
    assert loaded.count("transformer") == 1
    torch.testing.assert_close(expected["4gb"], expected["80gb"], rtol=1e-5, atol=1e-5)
    last(session.transfer(clip, PROMPT, weights=["int8"]))
    assert loaded.count("transformer") == 2
    alone = transfer(replace(settings, weights=("int8",)))
    assert torch.equal(session.result.latents, latents(alone))


def test_two_transformers_stay(tmp_path, loaded):
    kept, networks = KeptParts(), {name: torch.nn.Linear(2, 2) for name in ("transformer", "transformer_2")}
    for name in (*networks, *networks):
        assert kept.get(name, 0, lambda name=name: networks[name]) is networks[name]
    assert kept.get("transformer", 1, lambda: torch.nn.Linear(3, 3)) is not networks["transformer"]


def test_parts_come_home_from_another_device():
    """`meta` stands for a GPU: moving there replaces parameters and buffers."""
    network = torch.nn.BatchNorm1d(4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept = KeptParts()
    assert kept.get("vae", 0, lambda: network) is network
    network.to("meta")
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    kept.send_home()
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_cancelling_in_an_optimisation_step(session, clip, tmp_path):
    """The last finished step is on disk, and the run resumes bit for bit."""
    last(session.transfer(clip, PROMPT))
    expected, stop, folder = session.result.latents, Flag(), tmp_path / "mine"
    seen = []
    with pytest.raises(Cancelled):
        for event in session.transfer(clip, PROMPT, folder=folder, cancel=stop):
            seen.append(event)
            if (event.step, event.substep) == (1, 1):
                stop.set()
    assert seen[-1].step == 1  # no step was finished after that
    assert seen[-1].folder == folder
    assert (folder / "state" / "step.safetensors").is_file()
    last(session.resume(folder))
    assert torch.equal(session.result.latents, expected)


def test_cancelling_in_a_tile(session, clip, tmp_path):
    folder = tmp_path / "mine"

    class AfterATile:
        looks = 0  # since there are latents to decode

        def is_set(self):
            self.looks += (folder / "latents.safetensors").is_file()
            return self.looks > 1

    seen = []
    with pytest.raises(Cancelled):
        for event in session.transfer(clip, PROMPT, folder=folder, cancel=AfterATile(), decode_tile="144x96"):
            seen.append((event.phase, event.substep))
    assert seen[-1] == ("decode", 1) and not (folder / "result.mp4").exists()
    last(session.resume(folder))
    assert (folder / "result.mp4").is_file()


def test_closing_the_iterator_ends_the_run(session, clip, tmp_path, scratch):
    events = session.transfer(clip, PROMPT)
    assert next(event for event in events if event.step == 1)
    events.close()
    assert not list(scratch.iterdir())
    last(session.transfer(clip, PROMPT))  # the next one has its turn


def test_sessions_take_turns(session, settings, clip):
    """A second session waits until the first one's run is done, though nobody looks at its events."""
    first = session.transfer(clip, PROMPT)
    next(first)
    with Session(settings.model, device="cpu", **given(settings)) as other:
        last(other.transfer(clip, PROMPT))
    last(first)
    assert torch.equal(session.result.latents, other.result.latents)


def test_torch_is_as_it_was(session, clip):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    last(session.transfer(clip, PROMPT, deterministic=True))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_injecting_an_embedding(session, settings, clip, tmp_path):
    last(session.transfer(clip, PROMPT, folder=tmp_path / "first", optimise="embedding"))
    last(session.inject(tmp_path / "first", "a green square on a white background"))
    other = str(tmp_path / "other")
    expected = inject(tmp_path / "first", "a green square on a white background", output=other)
    assert torch.equal(session.result.latents, latents(expected))
    with pytest.raises(SettingsError, match="is not a run folder"):
        session.inject(tmp_path, PROMPT)
