"""`ditflow doctor`: reports the machine whatever is missing or fails, and hides private details."""

import json
import platform
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch

from ditflow import settings
from ditflow.cli import doctor
from ditflow.cli.main import main
from ditflow.errors import DitflowError

GIB = 1 << 30


def section(name):
    return {line: value for found, line, value in doctor.facts() if found == name}


def only(monkeypatch, **probes):
    monkeypatch.setattr(doctor, "PROBES", {name: (probe,) for name, probe in probes.items()})


@pytest.fixture
def person(monkeypatch, tmp_path):
    """A user whose caches are in the home folder, with a host name and secrets in the environment."""
    home = tmp_path / "alice"
    home.mkdir()
    for name, value in {
        "HOME": str(home),
        "LOGNAME": "alice",
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_TOKEN": "hf_abcdefghij",
        "MY_API_KEY": "hf_abcdefghijklm",
        "OLD_PASSWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(platform, "node", lambda: "attic.example.org")
    monkeypatch.chdir(home)
    return home


def test_private_details_are_hidden(person, monkeypatch, capsys):
    def fails():
        yield "told", f"{person / 'models' / '5b'} and /data/alice/models, 1 alicepool"
        raise OSError(
            f"attic: hf_abcdefghijklm, hf_abcdefghij of https://alice:pw@attic.example.org/{person}"
        )

    monkeypatch.setitem(doctor.PROBES, "more", (fails,))
    for words in (["doctor"], ["doctor", "--json"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        for private in (str(person), "/alice", "attic", "hf_", "pw@"):
            assert private not in said, said
        assert "~/models/5b and /data/USER/models, 1 alicepool" in said
        assert "unknown: OSError: HOST: HIDDEN, HIDDEN of https://HOST/~" in said
        assert "~/hub: " in said and "~/cache/ditflow: " in said


def test_json_holds_the_same_facts(monkeypatch, capsys):
    def one():
        yield "a", "1"
        yield "b", "two words"

    only(monkeypatch, first=one, second=lambda: iter([("c", "3")]))
    assert main(["doctor"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines == [["first"], ["a", "1"], ["b", "two words"], [], ["second"], ["c", "3"]]
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "first": {"a": "1", "b": "two words"},
        "second": {"c": "3"},
    }


def test_a_failing_probe_becomes_a_line(monkeypatch):
    def broken():
        yield "half", "told"
        raise RuntimeError("the other half\nand a traceback")

    def refused():
        raise DitflowError("no such thing; try another")
        yield

    only(monkeypatch, first=broken, second=refused, third=lambda: iter([("last", "told")]))
    assert list(doctor.facts()) == [
        ("first", "half", "told"),
        ("first", "broken", "unknown: RuntimeError: the other half"),
        ("second", "refused", "no such thing; try another"),
        ("third", "last", "told"),
    ]


def test_it_works_with_nothing_installed():
    """Not even torch: facts that do not need it are still reported."""
    code = """if True:
        import sys
        for name in ("torch", "triton", "diffusers", "psutil", "huggingface_hub", "packaging"):
            sys.modules[name] = None
        from ditflow.cli.main import main
        sys.exit(main(["doctor", "--json"]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["python"] == platform.python_version()
    for where, name in (("machine", "cuda"), ("packages", "packages"), ("what a run would use", "kernels")):
        assert found[where][name].startswith("unknown: ModuleNotFoundError"), found[where]


def test_installed_and_missing_packages(monkeypatch):
    provided = set(metadata.metadata("ditflow").get_all("Provides-Extra"))
    assert set(doctor.EXTRAS) == provided - {"dev"}

    def version(name):
        if name in ("xformers", "psutil"):
            raise metadata.PackageNotFoundError(name)
        return {"torch": "2.9.1+cu130", "gguf": "0.18"}.get(name, "9999")

    monkeypatch.setattr(metadata, "version", version)
    found = section("packages") | section("extras")
    assert found["torch"] == "2.9.1+cu130, but >=2.10 is needed"
    assert (found["diffusers"], found["psutil"]) == ("9999", "is not installed")
    assert found["xformers"] == "xformers is not installed (for --attention xformers)"
    assert found["quantize"] == "bitsandbytes 9999, gguf 0.18 (for --weights nf4 or FILE.gguf)"
    assert "pytest" not in found


def test_weights_in_the_cache(monkeypatch, small_folder, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = section("weights")
    assert found["5b"] == "not on this machine: about 21 GB will be downloaded at first use"
    assert found["small"].startswith("in this package, complete")
    cache = tmp_path / "models--THUDM--CogVideoX-5b"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    folder = cache / "snapshots" / ("a" * 40)
    folder.parent.mkdir()
    folder.symlink_to(small_folder)
    assert section("weights")["5b"].startswith("THUDM/CogVideoX-5b in the hub's cache, complete, 0.0")
    folder.unlink()
    (folder / "vae").mkdir(parents=True)
    assert "incomplete: lacks model_index.json and 5 more; about 21 GB" in section("weights")["5b"]


@pytest.fixture
def gpu(monkeypatch, tmp_path, small_folder):
    """A machine with a GPU, as far as the driver and torch report. The default model is the small one."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA H100, 560.35.03, 70000 MiB, 81559 MiB"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    known = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": known,
        "get_device_capability": (9, 0),
        "mem_get_info": (60 * GIB, 80 * GIB),
        "memory_reserved": 0,
        "memory_allocated": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    default = partial(settings.Settings, size="48x32", frames=9, guidance_blocks=[2])
    monkeypatch.setattr(settings, "Settings", lambda **given: default(**{"model": str(small_folder)} | given))
    return program


def test_a_gpu_and_how_a_run_would_use_it(gpu, small_folder):
    found = section("machine")
    assert found["nvidia-smi GPU 0"] == "NVIDIA H100, driver 560.35.03, 70000 MiB free of 81559 MiB"
    assert found["torch"] == "built for CUDA 13.0"
    assert found["cuda:0"] == "NVIDIA H100, sm_90, 60.0 GiB free of 80.0"
    found = section("what a run would use")
    assert (found["device"], found["kernels"]) == ("cuda:0", "triton, on sm_90")
    assert (
        found["attention sdpa"].startswith("available, the default")
        and found["attention cudnn"] == "available"
    )
    assert found["preset"].startswith("80gb: the fastest that fits 56.8 GiB (")
    assert found["preset"].endswith(", 9 frames of 48x32)")


def test_a_gpu_older_than_the_triton_kernels(gpu, monkeypatch):
    older = SimpleNamespace(name="Tesla T4", major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: older)
    found = section("what a run would use")["kernels"]
    assert found.startswith("chunked (plain PyTorch): ") and found.endswith(
        "8.0 or later, and this GPU has 7.5"
    )


def test_a_missing_or_broken_driver(gpu, monkeypatch):
    gpu.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed because it lost its driver."\nexit 9\n')
    assert dict(doctor.driver())["driver"].startswith("nvidia-smi fails: NVIDIA-SMI has failed")
    gpu.unlink()
    monkeypatch.setenv("PATH", str(Path(gpu).parent))
    assert dict(doctor.driver())["driver"].startswith("nvidia-smi not found")
