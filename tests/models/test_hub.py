"""Models and LoRAs by hub id: names with dots, the cache without a network, a message for each cause."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import save_file
from tiny_models import tiny_transformer

from ditflow.errors import DitflowError, SettingsError
from ditflow.models.families import family_of, published_settings
from ditflow.models.finding import find_folder
from ditflow.models.hub import is_hub_id
from ditflow.models.loading import ModelFolder
from ditflow.models.lora import add_lora, check_lora

LORA = "someone/lora-v1.0"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache and a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def snapshot(cache, identity):
    """The folder of a repository's files in the cache, as the hub's client lays it out."""
    repository = cache / f"models--{identity.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return repository / "snapshots" / ("a" * 40)


def holding(names):
    """What the hub says of a repository with these files."""
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])


def write_lora(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {"lora_A": torch.ones(2, 32), "lora_B": torch.ones(16, 2)}
    save_file({f"transformer.proj_out.{part}.weight": value for part, value in weights.items()}, path)


def assert_added(given, factor=1.0):
    model = tiny_transformer()
    before = model.proj_out.weight.clone()
    add_lora(model, given)
    torch.testing.assert_close(model.proj_out.weight, before + 2 * factor)


@pytest.mark.parametrize("name", ["THUDM/CogVideoX1.5-5B", LORA, "a/b", "Kijai/CogVideoX-Fun-1.1.5"])
def test_hub_ids(name):
    assert is_hub_id(name)
    assert check_lora(f"{name}:0.5") == (name, 0.5, "")


@pytest.mark.parametrize(
    "name",
    ["", "x", "a/b/c", "./b", "../b", "/b", "~/b", "a/.b", "a/b.safetensors", "a/b.PT", "a/b.gguf", "a/b c"],
)
def test_other_names(name):
    assert not is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["pytorch_lora_weights.safetensors", "adapter_model.safetensors", "other.safetensors"]
)
def test_a_cached_lora_needs_no_network(cache, name):
    write_lora(snapshot(cache, LORA) / name)
    assert_added(f"{LORA}:0.5", 0.5)


def test_a_lora_is_downloaded_once(cache, monkeypatch):
    asked = []

    def download(identity, name):
        asked.append((identity, name))
        write_lora(folder / name)
        return str(folder / name)

    folder = snapshot(cache, LORA)
    names = ["README.md", "pytorch_lora_weights.safetensors", "optimizer.safetensors"]
    monkeypatch.setattr(HfApi, "model_info", lambda self, identity: holding(names))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_added(LORA)
    assert_added(LORA)
    assert asked == [(LORA, "pytorch_lora_weights.safetensors")]


def refused(identity):
    with pytest.raises(DitflowError) as error:
        add_lora(tiny_transformer(), identity)
    message = str(error.value)
    assert message.startswith(f"--lora {identity}: ") and "\n" not in message
    return message


@pytest.mark.fault("a hub LoRA without a network")
def test_offline():
    assert "not in the hub's cache, and the hub cannot be reached" in refused(LORA)


@pytest.mark.fault("a hub LoRA that does not exist")
def test_no_such_repository(monkeypatch):
    def absent(self, identity):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its arguments depend on the version

    monkeypatch.setattr(HfApi, "model_info", absent)
    assert "no such file, folder or repository on the hub" in refused(LORA)


@pytest.mark.fault("a hub LoRA without one LoRA file")
@pytest.mark.parametrize("names", [["README.md", "weights.bin"], ["a.safetensors", "b.safetensors"]])
def test_no_such_file(monkeypatch, names):
    monkeypatch.setattr(HfApi, "model_info", lambda self, identity: holding(names))
    assert "the repository has no pytorch_lora_weights.safetensors or adapter_model" in refused(LORA)


def test_a_local_folder_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lora(tmp_path / LORA / "adapter_model.safetensors")
    assert_added(LORA)


def test_a_model_with_dots_in_its_name(cache, small_folder):
    name = "THUDM/CogVideoX1.5-5B"
    with pytest.raises(DitflowError, match=r"weights of THUDM/CogVideoX1.5-5B are not on this machine"):
        find_folder(name)
    shutil.copytree(small_folder, snapshot(cache, name))
    assert family_of(name).pipeline == "CogVideoXPipeline"
    assert ModelFolder(name, "float32", torch.device("cpu")).depth == 6


def test_a_model_that_cannot_be_had(cache):
    with pytest.raises(
        SettingsError, match="not in the hub's cache, and the hub does not have it, keeps it pri"
    ):
        published_settings("someone/model")
