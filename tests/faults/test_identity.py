"""Which checkpoints belong to a run: by the content of its clip and weights; and resealed ones."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_pipelines import latents, quick_settings

from ditflow import DitflowError, resume, transfer, video
from ditflow.jobs.job import Job
from ditflow.run_folder import digests
from ditflow.run_folder.checkpoint import StateWriter, checksum
from ditflow.run_folder.digests import digest_cache, file_digest

fault = pytest.mark.fault


@pytest.fixture
def interrupted(monkeypatch):
    """Makes a run that ends before decoding, with its whole checkpoint."""

    def make(settings):
        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Job, "decode", stop)
            transfer(settings)
        return Path(settings.output)

    return make


def reseal(path, change):
    """Change a checkpoint file's tensors and metadata, and make its checksum right."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    del metadata["checksum"]
    change(tensors, metadata)
    save_file(tensors, path, metadata | {"checksum": checksum(tensors, metadata)})


def edit(folder, **values):
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


@fault("a checkpoint file of a run of another clip")
@pytest.mark.parametrize("name", ["reference", "clip", "step"])
def test_state_of_another_clip(settings, clip, tmp_path, interrupted, name):
    """Both runs have the same settings, and the same video path."""
    mine = shutil.copy(clip, tmp_path / "clip.mp4")
    settings = replace(settings, video=str(mine))
    folder = interrupted(settings)
    shown = video.read_clip(mine, frames=10, size=None)
    video.write_clip(replace(shown, frames=np.ascontiguousarray(shown.frames[::-1])), mine)
    other = interrupted(replace(settings, output=str(tmp_path / "other")))
    shutil.copy(other / "state" / f"{name}.safetensors", folder / "state")
    with pytest.raises(DitflowError, match=r"\.safetensors was made from another clip"):
        resume(folder)


def test_a_moved_model_resumes(settings, small_folder, tmp_path, interrupted):
    expected = latents(transfer(replace(settings, output=str(tmp_path / "whole"))))
    shutil.copytree(small_folder, tmp_path / "model")
    folder = interrupted(replace(settings, model=str(tmp_path / "model")))
    (folder / "latents.safetensors").unlink()
    (tmp_path / "model").rename(tmp_path / "moved")
    edit(folder, model=str(tmp_path / "moved"), video="gone.mp4")
    assert torch.equal(latents(resume(str(folder))), expected)


@fault("another model under the path of a run's model")
def test_another_model_at_the_same_path(settings, small_folder, tmp_path, interrupted):
    shutil.copytree(small_folder, tmp_path / "model")
    folder = interrupted(replace(settings, model=str(tmp_path / "model")))
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.5}))
    with pytest.raises(DitflowError, match="weights have changed .*scheduler/scheduler_config.json"):
        resume(folder)


@fault("a checkpoint of the format before")
@pytest.mark.parametrize("changed", [{}, {"seed": 9}], ids=["same", "changed"])
def test_a_checkpoint_of_format_1(settings, tmp_path, interrupted, changed):
    expected = latents(transfer(replace(settings, output=str(tmp_path / "whole"))))
    folder = interrupted(settings)

    def old(tensors, metadata):
        metadata["format"] = "1"
        weights = json.loads(metadata["weights"])
        metadata["weights"] = json.dumps({f"/old/{name}": digest for name, digest in weights.items()})
        metadata.pop("clip")
        metadata.pop("threads", None)

    for path in (folder / "state").iterdir():
        reseal(path, old)
    edit(folder, **changed)
    if changed:
        with pytest.raises(DitflowError, match=r"settings have changed since the run began \(seed\)"):
            resume(folder)
    else:
        assert torch.equal(latents(resume(folder)), expected)


@pytest.mark.parametrize(
    "name, other", [("moft_channels", 0.5), ("reference_noise", "step"), ("initial_latents", "clip:1")]
)
@pytest.mark.parametrize("default", [True, False], ids=["at-its-default", "changed"])
def test_a_setting_that_the_checkpoint_does_not_know(settings, interrupted, default, name, other):
    folder = interrupted(settings)
    for path in (folder / "state").iterdir():
        reseal(path, lambda _, metadata: forget(metadata, name))
    before = yaml.safe_load((folder / "settings.yaml").read_text())
    if default:
        before.pop(name)
        (folder / "settings.yaml").write_text(yaml.safe_dump(before))
        assert resume(folder).finished
    else:
        edit(folder, **{name: other})
        with pytest.raises(DitflowError, match=rf"settings have changed .* \({name}\)"):
            resume(folder)


def test_a_checkpoint_from_when_settings_were_no_lists(settings, interrupted):
    folder = interrupted(settings)
    (scale,), (weights,) = settings.guidance_scale, settings.weights
    single = {"guidance_scale": scale, "weights": weights}
    for path in (folder / "state").iterdir():
        reseal(path, lambda _, metadata: replace_settings(metadata, single))
    edit(folder, **single)
    assert resume(folder).finished


def replace_settings(metadata, values):
    metadata["settings"] = json.dumps(json.loads(metadata["settings"]) | values)


def forget(metadata, name):
    values = json.loads(metadata["settings"])
    values.pop(name)
    metadata["settings"] = json.dumps(values)


def test_the_number_of_threads_is_kept(settings, interrupted, monkeypatch):
    folder, counts, real = interrupted(settings), [], Job.write
    monkeypatch.setattr(Job, "write", lambda *given: counts.append(torch.get_num_threads()) or real(*given))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        run = resume(folder)
        assert torch.get_num_threads() == 2 and set(counts) == {1}
    finally:
        torch.set_num_threads(1)
    assert run.record()["threads"] == 1


def tensor(name, value):
    return lambda tensors, metadata: tensors.update({name: value})


def without(name):
    return lambda tensors, metadata: (tensors.pop(name, None), metadata.pop(name, None))


def fact(name, value):
    return lambda tensors, metadata: metadata.update({name: json.dumps(value)})


RESEALED = [
    ("clip", fact("frame_rate", 3), "frame_rate is 3, expected a list of 2 entries, each a whole number"),
    ("clip", fact("frame_rate", [1, 0]), r"frame_rate\[1\] is 0, expected a whole number from 1"),
    ("clip", without("frame_rate"), "it lacks frame_rate, expected a list"),
    ("clip", fact("threads", "many"), "threads is 'many', expected a whole number"),
    ("clip", fact("threads", 1e9), "threads is 1000000000.0, expected a whole number"),
    ("clip", without("frames"), "it holds no frames"),
    ("texts", without("prompt"), "`prompt` is missing, expected"),
    ("texts", tensor("prompt", torch.ones(3)), r"`prompt` is float32 \[3\], expected a floating"),
    ("texts", tensor("more", torch.ones(3)), "`more` is a tensor, expected no such tensor"),
    ("reference", without("reference"), "`reference` is missing"),
    ("reference", tensor("reference", torch.ones(1, 2, 3, 4, 5)), r"`reference` is float32 \[1, 2"),
    ("step", without("latents"), "`latents` is missing"),
    ("step", tensor("latents", torch.ones(3).int()), r"`latents` is int32 \[3\]"),
    ("step", without("generator"), "scheduler's state is damaged"),
    ("step", tensor("generator", torch.ones(3, dtype=torch.uint8)), "scheduler's state is damaged"),
    ("step", tensor("clean_estimate", torch.ones(3)), r"`clean_estimate` is \[3\], expected the latents'"),
    ("step", tensor("guidance.velocities", torch.ones(3)), r"`guidance\.velocities` is float32 \[3\]"),
    ("step", tensor("more", torch.ones(1)), "`more` is present, expected"),
    *(("step", without(name), f"it lacks {name}, expected") for name in ("index", "losses", "embeddings")),
    ("step", fact("index", "1"), "index is '1', expected a whole number"),
    ("step", fact("index", 999), "`index` is 999, expected less than 4"),
    ("step", fact("index", True), "index is True, expected a whole number"),
    ("step", fact("losses", [1.0]), r"losses\[0\] is 1.0, expected a list"),
    ("step", fact("losses", {"a": 1}), "losses is {'a': 1}, expected a list"),
    ("step", fact("embeddings", 1.5), "embeddings is 1.5, expected a whole number"),
    ("step", fact("embeddings", 900), "has no embedding_002"),
    ("embedding_000", without("embedding"), "`embedding` is missing"),
    ("embedding_000", tensor("embedding", torch.ones(3)), "embeddings are damaged: their shape"),
    ("step", lambda tensors, metadata: metadata.update({"losses": "nonsense"}), "is damaged"),
    ("step", lambda tensors, metadata: metadata.update({"settings": "[]"}), "its settings cannot be read"),
    ("step", lambda tensors, metadata: metadata.update({"weights": "[]"}), "its weights cannot be read"),
    ("step", without("settings"), "its settings cannot be read"),
    ("step", without("clip"), "another clip"),
    ("step", without("format"), "another version of ditflow"),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole_checkpoint(clip, small_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("resealed") / "run"
    settings = quick_settings(
        clip, small_folder, output=str(output), optimise="embedding", optimisation_steps=1, scheduler="dpm"
    )

    real = StateWriter.put

    def put(writer, state):
        real(writer, state)
        if state.index == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StateWriter, "put", put)
        transfer(settings)
    return output


@pytest.mark.parametrize("name, change, message", RESEALED)
@fault("a checkpoint file with a right checksum and wrong content")
def test_resealed_state(whole_checkpoint, tmp_path, name, change, message):
    folder = shutil.copytree(whole_checkpoint, tmp_path / "run")
    reseal(folder / "state" / f"{name}.safetensors", change)
    with pytest.raises(DitflowError, match=message) as caught:
        resume(folder)
    assert "unexpected" not in str(caught.value) and not getattr(caught.value, "__notes__", [])
    assert not (folder / "run.json").exists()


def test_the_sound_checkpoint_resumes(whole_checkpoint, tmp_path):
    assert resume(shutil.copytree(whole_checkpoint, tmp_path / "run")).finished


def test_a_cached_digest_knows_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", -1)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first, status = file_digest(path), path.stat()
    assert digest_cache(path).exists() and file_digest(path) == first
    path.write_bytes(b"two")  # the same size, and the same modification time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digest(path) != first
    other = tmp_path / "other"
    other.write_bytes(b"six")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = file_digest(path)
    other.replace(path)
    assert file_digest(path) not in (first, second)


def test_a_fresh_file_is_not_cached(tmp_path):
    """It could change again within the resolution of its time stamps."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    file_digest(path)
    assert not digest_cache(path).exists()
