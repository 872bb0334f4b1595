"""Whole runs of a model with two transformers, each with a LoRA or a GGUF file of its own."""

import json
import shutil

import pytest
import torch
import yaml
from diffusers import WanTransformer3DModel
from gguf import GGMLQuantizationType as Kind
from quantised_models import write_gguf
from quick_runs import latents
from safetensors.torch import load_file, save_file
from tiny_wan import original_parameter
from wan_runs import stop_in_step

from ditflow.memory.presets import PRESETS

KIND = "wan-a14b"
PARTS = {"high": "transformer", "low": "transformer_2"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYER = "blocks.1.attn1.to_q"


@pytest.fixture(scope="module")
def plain(made):
    return made(kind=KIND)["latents"]


@pytest.fixture
def loras(tmp_path):
    """A LoRA for each transformer, as words for the command line, and the change of a weight by each."""
    words, changes = {}, {}
    for seed, name in enumerate(PARTS):
        generator = torch.Generator().manual_seed(seed)
        down, up = (0.3 * torch.randn(shape, generator=generator) for shape in ((2, 32), (32, 2)))
        tensors = {
            f"diffusion_model.{LAYER}.lora_A.weight": down,
            f"diffusion_model.{LAYER}.lora_B.weight": up,
        }
        save_file(tensors, path := tmp_path / f"lora_{name}_noise.safetensors")
        words[name], changes[name] = ("--lora", f"{name}={path.name}:0.5"), 0.5 * up @ down
    return words, changes


@pytest.mark.parametrize("given", [("high",), ("low",), ("high", "low")], ids=" ".join)
def test_a_run_with_loras_equals_one_of_a_model_with_their_weights(
    transfer, plain, loras, wan_folders, given, tmp_path, monkeypatch
):
    words, changes = loras
    found = latents(transfer(*(word for name in given for word in words[name]), kind=KIND))
    folder = shutil.copytree(wan_folders(KIND), tmp_path / "merged")
    for name in given:
        path = folder / PARTS[name] / WEIGHTS
        tensors = load_file(path)
        tensors[f"{LAYER}.weight"] += changes[name]
        save_file(tensors, path)
    expected = latents(transfer("--model", folder, kind=KIND))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - plain).norm() > 1e-3 * plain.norm()


def swapped(given):
    """What is for one transformer for the other one."""
    return given.replace("high=", "?").replace("low=", "high=").replace("?", "low=")


@pytest.mark.parametrize("kind", ["lora", "weights"])
def test_resume_needs_the_same_files_for_the_same_transformers(
    ditflow, transfer, loras, ggufs, kind, tmp_path, monkeypatch
):
    words = [*loras[0]["high"], *loras[0]["low"]] if kind == "lora" else ggufs(Kind.Q8_0)
    whole = latents(transfer(*words, kind=KIND))
    stop_in_step(1, monkeypatch, lambda: transfer(*words, "--output", "run", kind=KIND))
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    (tmp_path / "moved").mkdir()

    def resumed(given, **options):
        changed = yaml.safe_dump(settings | {kind: given})
        (tmp_path / "run" / "settings.yaml").write_text(changed)
        return ditflow("resume", "run", "--quiet", **options)

    given = settings[kind]
    code, error = resumed([swapped(each) for each in given], fails=True)
    assert code == 1 and f"{'settings' if kind == 'lora' else 'weights'} have changed" in error
    for path in tmp_path.glob("*noise*"):
        path.rename(tmp_path / "moved" / path.name)
    resumed([each.replace(str(tmp_path), str(tmp_path / "moved")) for each in given])
    assert torch.equal(latents(tmp_path / "run"), whole)


@pytest.fixture
def ggufs(wan_folders, tmp_path):
    """Writes a GGUF file of each transformer, by the original names; returns the words that give them."""

    def write(high, low=None):
        words = []
        for (name, part), kind in zip(PARTS.items(), (high, low or high), strict=True):
            network = WanTransformer3DModel.from_pretrained(wan_folders(KIND) / part)
            path = tmp_path / f"{name}_noise-{kind.name}.gguf"
            write_gguf(path, network, kind, original_parameter, others=Kind.F32)
            words += ["--weights", f"{name}={path.name}"]
        return words

    return write


def test_exact_gguf_files_give_the_same_bytes(transfer, plain, ggufs):
    assert torch.equal(latents(transfer(*ggufs(Kind.F32), kind=KIND)), plain)


def test_half_precision_gguf_files_give_the_bytes_of_a_model_rounded_to_it(
    transfer, ggufs, wan_folders, tmp_path
):
    words = ggufs(Kind.F16)
    folder = shutil.copytree(wan_folders(KIND), tmp_path / "rounded")
    for part in PARTS.values():
        tensors = load_file(folder / part / WEIGHTS)
        for name, value in tensors.items():
            if name.startswith("blocks") and "norm" not in name and value.dim() > 1:
                tensors[name] = value.half().float()
        save_file(tensors, folder / part / WEIGHTS)
    expected = latents(transfer("--model", folder, kind=KIND))
    assert torch.equal(latents(transfer(*words, kind=KIND)), expected)


def test_rounded_gguf_files_are_near_and_each_is_used(transfer, plain, ggufs):
    found = latents(transfer(*ggufs(Kind.Q8_0), kind=KIND))
    assert 0 < (found - plain).norm() < 0.2 * plain.norm()
    swap = [swapped(word) for word in ggufs(Kind.Q8_0)]
    assert (latents(transfer(*swap, kind=KIND)) - plain).norm() > 2 * (found - plain).norm()


def test_a_gguf_file_of_another_model_is_refused(transfer, ggufs, wan_folders, tmp_path):
    words = ggufs(Kind.F32)
    network = WanTransformer3DModel.from_pretrained(wan_folders("wan-14b") / "transformer")
    write_gguf(words[-1].removeprefix("low="), network, Kind.F32, original_parameter)
    with pytest.raises(AssertionError, match=r"low_noise.* does not fit this model \(missing: 27 \(blocks.4"):
        transfer(*words, kind=KIND)


def test_the_plan_is_for_the_larger_of_two_files(ditflow, ggufs, wan_folders):
    words = ("plan", "--model", wan_folders(KIND), "--frames", 9, "--size", "48x32", "--guidance-blocks", "2")

    def peaks(*more):
        found = json.loads(ditflow(*words, "--dtype", "float32", *more, "--json"))
        return {
            preset["name"]: max(
                phase["peak_bytes"] for phase in preset["phases"] if phase["name"] == "denoise"
            )
            for preset in found["presets"]
        }

    small, large = peaks(*ggufs(Kind.Q4_0)), peaks(*ggufs(Kind.Q8_0))
    assert small.keys() == set(PRESETS) and all(small[name] < large[name] for name in PRESETS)
    assert peaks(*ggufs(Kind.Q4_0, low=Kind.Q8_0)) == peaks(*ggufs(Kind.Q8_0, low=Kind.Q4_0)) == large
