"""Wan folders that cannot be run are refused in one line, before any work."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from wan_runs import PROMPT, QUICK

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(wan_folders, tmp_path):
    """A copy to change; `kind` as in `wan_folders`."""
    return lambda kind="wan-1.3b": shutil.copytree(wan_folders(kind), tmp_path / "model")


@pytest.fixture
def refused(ditflow, clip, tmp_path):
    def check(folder, *parts, words=()):
        given = ("--model", folder, "--video", clip, "--prompt", PROMPT, *QUICK, "--output", "run")
        code, error = ditflow("transfer", *given, *words, fails=True)
        assert code in (1, 2) and error.count("\n") == 1, error
        assert all(part in error for part in parts), error
        assert not (tmp_path / "run").exists()

    return check


def changed(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    "name, purpose",
    [
        ("WanImageToVideoPipeline", "image to video"),
        ("WanVACEPipeline", "control videos and masks"),
        ("WanAnimatePipeline", "animating a character"),
        ("CogVideoXImageToVideoPipeline", "image to video"),
    ],
)
def test_pipelines_for_something_else(model, refused, name, purpose):
    folder = model()
    changed(folder / "model_index.json", _class_name=name)
    refused(folder, f"{name!r}, which is for {purpose}", "accepted: CogVideoXPipeline, WanPipeline")


@pytest.mark.parametrize(
    "part, values, says",
    [
        ("model_index.json", {"boundary_ratio": 0.875}, "transformer_2/ cannot be loaded"),
        ("model_index.json", {"boundary_ratio": "high"}, "boundary_ratio"),
        ("transformer/config.json", {"image_dim": 1280}, "image_dim is 1280, expected null"),
        ("transformer/config.json", {"added_kv_proj_dim": 64}, "added_kv_proj_dim is 64, expected null"),
        ("transformer/config.json", {"in_channels": 9}, "patch_embedding.weight"),
        ("transformer/config.json", {"patch_size": [2, 2, 2]}, "expected [1, 2, 2]"),
        ("transformer/config.json", {"num_layers": 4}, "unexpected: "),
        ("transformer/config.json", {"num_layers": 6}, "missing: "),
        ("vae/config.json", {"latents_mean": [0.0] * 5}, "latent channels: "),
        ("vae/config.json", {"scale_factor_spatial": 8}, "pixels to a latent one: 8 in vae/"),
        (
            "vae/config.json",
            {"latents_std": [0.0] * 4},
            "latents_std[0] is 0.0, expected a number",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, 'expected "flow_prediction"'),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        ("scheduler/scheduler_config.json", {"flow_shift": 0}, "flow_shift is 0"),
        ("text_encoder/config.json", {"model_type": "t5"}, 'expected "umt5"'),
    ],
    ids=str,
)
def test_configurations(model, refused, part, values, says):
    folder = model()
    changed(folder / part, **values)
    refused(folder, says)


def test_a_transformer_for_image_to_video_that_looks_like_one_for_text(model, refused):
    """Its patches hold the image's latents too."""
    folder = model()
    weights = load_file(folder / "transformer" / WEIGHTS)
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"].repeat(1, 2, 1, 1, 1)
    save_file(weights, folder / "transformer" / WEIGHTS)
    changed(folder / "transformer" / "config.json", in_channels=8)
    refused(folder, "latent channels: 8 in transformer/ (in_channels), 4 in transformer/ (out_channels)")


def test_two_transformers_that_differ(model, refused):
    folder = model("wan-a14b")
    changed(folder / "transformer_2" / "config.json", eps=1e-5)
    refused(folder, "transformer/ and transformer_2/ differ in eps: 1e-06 and 1e-05")


@pytest.mark.parametrize(
    "kind, weights",
    [
        ("wan-a14b", ["a.gguf"]),
        ("wan-a14b", ["high=a.gguf"]),
        ("wan-a14b", ["high=a.gguf", "high=b.gguf"]),
        ("wan-a14b", ["high=a.gguf", "low=int8"]),
        ("wan-a14b", ["high=fp8", "low=int8"]),
        ("wan-a14b", ["fp8", "int8"]),
        ("wan-1.3b", ["high=a.gguf"]),
        ("wan-1.3b", ["high=a.gguf", "low=b.gguf"]),
        ("wan-1.3b", ["a.gguf", "b.gguf"]),
    ],
    ids=str,
)
def test_weights_that_are_not_one_for_each_transformer(wan_folders, refused, kind, weights):
    last = {"wan-a14b": "a GGUF file for each transformer, --weights high=FILE --weights low=FILE\n"}
    says = f"weights: {' '.join(weights)} given; accepted: full, fp8, int8, nf4 or "
    words = [word for each in weights for word in ("--weights", each)]
    refused(wan_folders(kind), says + last.get(kind, "a GGUF file\n"), words=words)


def test_a_lora_for_one_of_two_transformers_in_a_model_with_one(wan_folders, refused):
    says = "lora: low=a.safetensors given, but this model has one transformer; give a.safetensors"
    refused(wan_folders(), says, words=("--lora", "low=a.safetensors"))


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("change", ["lost", "added", "cut"])
def test_tensors(model, refused, part, change):
    folder = model()
    path = folder / part / WEIGHTS
    weights = load_file(path)
    name = sorted(weights)[3]
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        tensor = weights.pop(name)
        save_file(weights | ({} if change == "lost" else {name: tensor, "extra": tensor.clone()}), path)
    says = {"lost": f"missing: 1 ({name}", "added": "unexpected: 1 (extra)", "cut": part}[change]
    refused(folder, says)


@pytest.mark.parametrize(
    "words, says",
    [
        (("--size", "40x32"), "size: 40x32 given, multiples of 16 accepted"),
        (("--frames", "4"), "frames: 4 given, at least 5 accepted"),
        (("--scheduler", "dpm"), "scheduler: 'dpm' given, accepted: unipc, euler"),
        (("--dynamic-scale",), "WanPipeline has no dynamic guidance scale"),
        (("--guidance-blocks", "5"), "this model has blocks 0 to 4"),
        (("--set", "decode_tile=360x240"), "accepted: auto, none, 512x512"),
    ],
    ids=" ".join,
)
def test_settings(wan_folders, refused, words, says):
    refused(wan_folders(), says, words=words)


def test_sizes_of_a_model_with_larger_tokens(ditflow, wan_folders):
    """wan-5b's tokens are 32 pixels wide."""
    code, error = ditflow("plan", "--model", "wan-5b", "--size", "848x480", "--quiet", fails=True)
    assert code == 2 and error.count("\n") == 1
    assert "size: 848x480 given, this model accepts multiples of 32" in error
