"""Files from strangers: nothing in them is executed, and they cause no read or write outside their folder."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_line import answer, assert_refused, begun, case, transfer_words

from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.files import inside
from ditflow.jobs import transfer as jobs
from ditflow.models.loading import ModelFolder
from ditflow.pages import flow
from ditflow.run_folder.run import Run

PICKLE = ["is a pickle, and loading one can run code: give safetensors"]
RECORD = {"versions": {}, "device": "cpu", "phases": {}}


class Hostile:
    """Creates a file in the current folder when unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def torch_pickle(path: Path) -> None:
    torch.save({"weight": Hostile()}, path)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile()))


def header_bomb(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{")


def folder_with_pickle(path: Path) -> None:
    path.mkdir()
    torch_pickle(path / "pytorch_lora_weights.bin")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """An empty current folder; a transfer only begins."""
    monkeypatch.setattr(jobs, "transfer", begun)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("option", "name", "make", "parts"),
    [
        case("a pickle as LoRA", "--lora={}", "a.pt", torch_pickle, PICKLE),
        case("a pickle as LoRA, named .safetensors", "--lora={}", "a.safetensors", torch_pickle, PICKLE),
        case("a bare pickle as LoRA, named .safetensors", "--lora={}", "a.safetensors", bare_pickle, PICKLE),
        case("a LoRA folder with only a pickle", "--lora={}", "lora", folder_with_pickle, PICKLE),
        case("a LoRA with a header of 2^60 bytes", "--lora={}", "a.safetensors", header_bomb, ["is damaged"]),
        case("a pickle as embedding", "--set=saved_embedding={}", "a.pt", torch_pickle, PICKLE),
        case(
            "a pickle as embedding, named .safetensors",
            "--set=saved_embedding={}",
            "a.safetensors",
            bare_pickle,
            PICKLE,
        ),
        case(
            "an embedding's header of 2^60 bytes",
            "--set=saved_embedding={}",
            "a.st",
            header_bomb,
            ["damaged"],
        ),
        case("a pickle named .gguf", "--weights={}", "a.gguf", torch_pickle, ["not a complete GGUF file"]),
    ],
)
def test_weights(option, name, make, parts, small_folder, clip, tmp_path, capfd):
    make(tmp_path / name)
    words = [*transfer_words(small_folder, clip), option.format(tmp_path / name), "--quiet"]
    assert_refused(capfd, words, 1, name, *parts)


def in_pickles(model: Path) -> None:
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch_pickle(model / "vae" / "diffusion_pytorch_model.bin")


def renamed_pickle(model: Path) -> None:
    torch_pickle(model / "text_encoder" / "model.safetensors")


def index_elsewhere(model: Path) -> None:
    torch_pickle(model.parent / "elsewhere.bin")
    weights = {"weight_map": {"patch_embed.proj.weight": "../../elsewhere.bin"}}
    index = model / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps(weights))


def changed(part: str, **values: object):
    def change(model: Path) -> None:
        config = model / part / ("tokenizer_config.json" if part == "tokenizer" else "config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | values))
        (model / part / "own.py").write_text("open('ran', 'w')\nclass Own: pass\n")

    return change


def huge_config(model: Path) -> None:
    (model / "vae" / "config.json").write_text("[" * (1 << 19))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        case("a model with only pickles", in_pickles, PICKLE),
        case("a model with a pickle named .safetensors", renamed_pickle, PICKLE),
        case("a model whose index names a file elsewhere", index_elsewhere, ["'../../elsewhere.bin'"]),
        case("a model with code", changed("text_encoder", auto_map={"AutoModel": "own.Own"}), ["auto_map"]),
        case(
            "a tokenizer with code", changed("tokenizer", auto_map={"AutoTokenizer": "own.Own"}), ["auto_map"]
        ),
        case(
            "a model of another class",
            changed("transformer", _class_name="Own"),
            ["names the class 'Own', and only CogVideoX"],
        ),
        case(
            "a model of 10^9 layers",
            changed("transformer", num_layers=10**9),
            ["num_layers is 1000000000, expected a whole number from 1 to 100"],
        ),
        case("a model with a huge config file", huge_config, ["config.json is larger than"]),
    ],
)
def test_models(change, parts, small_folder, clip, tmp_path, capfd):
    model = shutil.copytree(small_folder, tmp_path / "model")
    change(model)
    assert_refused(capfd, transfer_words(model, clip), 1, str(model), *parts)


@pytest.mark.fault("a text encoder that names an attention kernel to download")
def test_no_kernel_is_downloaded(small_folder, tmp_path):
    model = shutil.copytree(small_folder, tmp_path / "model")
    changed("text_encoder", attn_implementation="somebody/kernel")(model)
    encoder = ModelFolder(str(model), "float32", torch.device("cpu")).text_encoder()
    assert encoder.network.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "output",
    [
        case("settings with an output elsewhere", "{}/home"),
        case("settings with an output in a parent folder", "../../above"),
        "~/home",
    ],
)
def test_output_of_a_settings_file(output, tmp_path, capfd):
    config = tmp_path / "downloads" / "settings.yaml"
    config.parent.mkdir()
    config.write_text(f"model: small\noutput: {output.format(tmp_path)}\n")
    words = ["transfer", "--config", str(config), "--print-config"]
    told = ["its output", "is neither in the file's folder nor in the current one; give --output"]
    assert_refused(capfd, words, 2, str(config), *told)
    assert "output: mine" in answer(capfd, [*words, "--output", "mine"]).output
    config.write_text(f"model: small\noutput: {config.parent}\n")  # as in the settings that a run writes
    assert answer(capfd, words).code == 0


@pytest.fixture
def finished(tmp_path, clip) -> Path:
    """A run folder as a transfer leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "settings.yaml").write_text("model: small\nprompt: x\nframes: 9\noutput: /elsewhere\n")
    (folder / "run.json").write_text(json.dumps(RECORD))
    for name in ("result.mp4", "reference.mp4", "latents.safetensors", "embedding.safetensors"):
        shutil.copy(clip, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "command"),
    [
        case("a run whose result is a link out of its folder", "result.mp4", "evaluate"),
        case("a run whose record is a link out of its folder", "run.json", "report"),
        case("a run whose settings are a link out of its folder", "settings.yaml", "inject --from"),
        case("a run whose embedding is a link out of its folder", "embedding.safetensors", "inject --from"),
    ],
)
def test_links_out_of_a_run(name, command, finished, tmp_path, capfd):
    (finished / name).rename(tmp_path / "private")
    (finished / name).symlink_to(tmp_path / "private")
    told = f"{name} is a link out of the run folder: replace it with the file itself"
    assert_refused(capfd, [*command.split(), str(finished)], 1, told)
    (tmp_path / "private").rename(finished / "kept")  # a link that stays inside is fine
    (finished / name).unlink()
    (finished / name).symlink_to("kept")
    assert inside(finished, name).exists()


@pytest.mark.fault("a run whose frames are links out of its folder, or to themselves")
def test_links_out_of_frames(finished, tmp_path):
    (finished / "settings.yaml").write_text("model: small\nformat: frames\n")
    (finished / "result").mkdir()
    (finished / "result" / "00000.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(DitflowError, match=r"00000.png is a link out of the run folder"):
        FinishedRun.open(finished)
    (finished / "result" / "00000.png").unlink()
    (finished / "result" / "00000.png").symlink_to(finished / "result" / "00000.png")
    assert FinishedRun.open(finished).video("result").is_dir()
    with pytest.raises(DitflowError, match="has no images"):
        FinishedRun.open(finished).clip("result")


@pytest.mark.fault("a run folder with a link out of it where a file is written")
def test_nothing_is_written_through_a_link(finished, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "notes").write_text("mine")
    (finished / "notes").symlink_to(tmp_path / "private" / "notes")
    (finished / "profile").symlink_to(tmp_path / "private")
    for name in ("notes", "profile/notes"):
        with pytest.raises(DitflowError, match="is a link out of the run folder"):
            Run(finished).write_text(name, "theirs")
    assert (tmp_path / "private" / "notes").read_text() == "mine"
    assert os.listdir(tmp_path / "private") == ["notes"]


@pytest.mark.fault("inject from a run whose settings name an output elsewhere")
def test_inject_writes_here(finished, capfd):
    found = answer(capfd, ["inject", "--from", str(finished), "--print-config"])
    assert found.code == 0 and "output: ''" in found.output


@pytest.mark.fault("a run whose record and prompt carry scripts for the report page")
def test_report_of_a_hostile_run(finished, monkeypatch, capfd):
    (finished / "settings.yaml").write_text(
        "model: small\nframes: 9\nprompt: </title><script>alert(1)</script>\n"
    )
    (finished / "run.json").write_text(json.dumps(RECORD | {"device": "<img src=x onerror=alert(1)>"}))
    monkeypatch.setattr(flow, "read_own_flow", lambda run: (_ for _ in ()).throw(DitflowError("<b>no model")))
    assert answer(capfd, ["report", str(finished)]).code == 0
    html = Path("report.html").read_text()
    assert (
        "alert(1)" in html
        and "<script>alert" not in html
        and "<img src=x" not in html
        and "<b>no" not in html
    )


@pytest.mark.fault("a LoRA that does not fit, before the run folder exists")
@pytest.mark.parametrize("name", ["transformer.proj_out.lora_A.weight", "transformer.absent.lora_A.weight"])
def test_loras_are_checked_first(name, small_folder, clip, tmp_path, capfd):
    safetensors.torch.save_file({name: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    words = [*transfer_words(small_folder, clip), "--lora", str(tmp_path / "a.safetensors")]
    assert_refused(capfd, words, 1, "a.safetensors does not fit this model", name.split(".")[1])
