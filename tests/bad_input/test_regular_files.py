"""Only regular files are opened: anything else could wait for ever."""

import os
import shutil
import socket
from pathlib import Path

import pytest
from command_line import assert_refused, case, transfer_words
from tiny_pipelines import quick_settings

from ditflow.errors import DitflowError
from ditflow.files import regular_file
from ditflow.jobs.checks import with_absolute_paths


def test_other_kinds_of_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("fifo")
    Path("folder").mkdir()
    Path("empty").touch()
    Path("link").symlink_to("fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket")
    kinds = {"fifo": "named pipe", "link": "named pipe", "folder": "folder", "socket": "socket"}
    kinds |= {"/dev/zero": "device"}
    for name, kind in kinds.items():
        with pytest.raises(DitflowError, match=f"{name} is a {kind}: give a regular file"):
            regular_file(Path(name))
    for name in ("empty", "/proc/version"):
        with pytest.raises(DitflowError, match=f"{name} is empty"):
            regular_file(Path(name))
    listening.close()
    with pytest.raises(FileNotFoundError):
        regular_file(Path("absent"))


def test_regular_files_and_links_to_them_are_returned(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert regular_file(tmp_path / "link") == tmp_path / "link"


@pytest.mark.parametrize(
    "name",
    [
        case("weights that are a named pipe", "transformer/diffusion_pytorch_model.safetensors"),
        case("a config that is a named pipe", "vae/config.json"),
        case("a tokenizer that is a named pipe", "tokenizer/spiece.model"),
    ],
)
def test_models(name, small_folder, clip, tmp_path, capfd):
    model = shutil.copytree(small_folder, tmp_path / "model")
    (model / name).unlink()
    os.mkfifo(model / name)
    told = f"{model / name} is a named pipe: give a regular file"
    assert_refused(capfd, transfer_words(model, clip), 1, told)


@pytest.mark.fault("a named pipe for each file of a model's that is read first")
@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json"])
@pytest.mark.parametrize("command", ["transfer", "plan"])
def test_first_files(command, name, small_folder, clip, tmp_path, capfd):
    model = shutil.copytree(small_folder, tmp_path / "model")
    (model / name).unlink()
    os.mkfifo(model / name)
    words = transfer_words(model, clip) if command == "transfer" else ["plan", "--model", str(model)]
    assert_refused(capfd, words, 2, f"{model / name} is not a file; give a complete pipeline folder")


@pytest.mark.fault("quantised weights that are a named pipe, a folder or damaged")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "a.gguf is a named pipe: give a regular file"),
        (os.mkdir, "a.gguf is a folder: give a regular file"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(100)), "a.gguf: not a complete GGUF file"),
    ],
)
def test_gguf_files(make, told, small_folder, clip, tmp_path, capfd, monkeypatch):
    make(tmp_path / "a.gguf")
    monkeypatch.chdir(tmp_path)
    words = [*transfer_words(small_folder, clip), "--weights", str(tmp_path / "a.gguf")]
    assert_refused(capfd, words, 1, told)


def test_links_keep_their_names(small_folder, clip, tmp_path, monkeypatch):
    """The hub's cache links names with suffixes to files without one."""
    monkeypatch.chdir(tmp_path)
    for suffix in ("safetensors", "gguf"):
        Path(f"blob-{suffix}").touch()
        Path(f"a.{suffix}").symlink_to(f"blob-{suffix}")
    given = quick_settings(clip, small_folder, lora=("a.safetensors",), weights="a.gguf")
    found = with_absolute_paths(given)
    assert (found.lora, found.weights) == ((f"{tmp_path}/a.safetensors:1.0",), (f"{tmp_path}/a.gguf",))


@pytest.mark.fault("a LoRA that is a named pipe")
def test_loras(small_folder, clip, tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe.safetensors")
    words = [*transfer_words(small_folder, clip), "--lora", str(tmp_path / "pipe.safetensors")]
    assert_refused(capfd, words, 1, "pipe.safetensors is a named pipe: give a regular file")
