"""What the tests share: tiny random transformers, a small random pipeline and made videos, built once."""

import shutil
import signal
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from nursery import Nursery
from random_pipeline import build_pipeline
from reliability import pytest_addoption, pytest_configure, pytest_itemcollected  # noqa: F401  its hooks
from video_cases import KINDS, made_video, remuxed

from ditflow import Settings, video
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.video import decoding

torch.set_num_threads(1)  # models are tiny: a second thread costs more than it does, and reorders sums


def tiny_transformer(rotary=True, layers=3, seed=0, **changes):
    """A CogVideoX transformer whose every parameter matters: nothing is left at zero or one."""
    torch.manual_seed(seed)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 12,
        "num_layers": layers,
        "sample_width": 12,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 10,
        "use_rotary_positional_embeddings": rotary,
    }
    model = CogVideoXTransformer3DModel(**config | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=["rotary", "additive"])
def backbone(request):
    return CogVideoX(tiny_transformer(rotary=request.param == "rotary"))


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """A small pipeline with random weights."""
    folder = tmp_path_factory.mktemp("models") / "small"
    build_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in KINDS.items():
        made_video(folder / name, *kind)
    made_video(folder / "odd.mkv", "ffv1", "yuv444p", {}, height=47, width=63)
    remuxed(folder / "plain.mp4", folder / "front.mp4", movflags="faststart")
    return folder


@pytest.fixture
def without_decord(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)


@pytest.fixture
def decoded(monkeypatch) -> list[int | None]:
    """Stamps of the frames that PyAV has decoded."""
    stamps, real = [], decoding.decoded_frames

    def recorded(*arguments, **keywords):
        for frame in real(*arguments, **keywords):
            stamps.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "decoded_frames", recorded)
    return stamps


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A square that moves to the right and down over noise."""
    noise = np.random.default_rng(0).integers(0, 90, (32, 48, 3), dtype=np.uint8)
    frames = np.stack([noise] * 14)
    for index, frame in enumerate(frames):
        frame[4 + index : 14 + index, 2 * index : 2 * index + 12] = (250, 200, 40)
    path = tmp_path_factory.mktemp("clips") / "square.mp4"
    video.write_clip(video.Clip(frames, Fraction(10)), path)
    return path


@pytest.fixture(scope="session")
def nursery(clip, small_folder, tmp_path_factory):
    """Runs commands in forks of a warm process, and knows what a run leaves that nothing has disturbed."""
    settings = little_transfer(
        clip,
        small_folder,
        size="32x16",
        frames=9,
        steps=3,
        guided=0.67,
        optimise="embedding",
        optimisation_steps=1,
        scheduler="dpm",
        output="run",
    )
    with Nursery(settings, tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


@pytest.fixture(scope="session")
def killed(nursery, tmp_path_factory):
    """The folder of a run that was killed late in denoising."""
    folder = tmp_path_factory.mktemp("killed")
    trap = {"stage": "denoise", "at": int(0.9 * nursery.calls["denoise"]), "signum": signal.SIGKILL}
    assert nursery.transfer(folder, trap=trap) == -signal.SIGKILL
    assert (folder / "run" / "state" / "step.safetensors").exists()
    return folder / "run"


@pytest.fixture
def stopped(killed, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed, tmp_path / "run")


def little_transfer(clip, model, **changes):
    """A transfer that takes about a second."""
    common = Settings(
        video=str(clip),
        prompt="a red circle on a blue background",
        negative_prompt="",
        model=str(model),
        dtype="float32",
        device="cpu",
        size="48x32",
        frames=10,
        steps=4,
        guided=0.5,
        optimisation_steps=2,
        learning_rate=[0.05, 0.02],
        guidance_blocks=[2],
        guidance_scale=2,
    )
    return replace(common, **changes)


@pytest.fixture
def settings(clip, small_folder, tmp_path):
    return little_transfer(clip, small_folder, output=str(tmp_path / "run"))
