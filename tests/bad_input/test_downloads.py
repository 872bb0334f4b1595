"""`report` and `evaluate` ask nothing of the network, whatever a stranger's run folder names."""

import json
import shutil
import socket

import pytest
import yaml
from command_line import answer, case

from ditflow import transfer
from ditflow.evaluation import tracks


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The hosts that are looked up; each look-up fails. The hub's cache is empty."""
    from huggingface_hub import constants

    hosts = []

    def refuse(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(tracks, "GRID", 5)
    return hosts


@pytest.fixture(scope="module")
def made(clip, small_folder, tmp_path_factory):
    from tiny_pipelines import quick_settings

    return transfer(
        quick_settings(clip, small_folder, output=str(tmp_path_factory.mktemp("runs") / "run"))
    ).folder


@pytest.mark.parametrize("command", ["report", "evaluate"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        case("a run that names a published model", {"model": "5b"}, "`hf download THUDM/CogVideoX-5b`"),
        case(
            "a run that names a model of the hub", {"model": "someone/model"}, "`hf download someone/model`"
        ),
        case("a run that names a LoRA of the hub", {"lora": ["someone/lora-v1"]}, "someone/lora-v1"),
    ],
)
def test_nothing_is_downloaded(command, changes, told, made, asked, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(made, tmp_path / "run")
    values = yaml.safe_load((folder / "settings.yaml").read_text()) | changes
    (folder / "settings.yaml").write_text(yaml.safe_dump(values))
    words = {"report": ["report", "run"], "evaluate": ["evaluate", "run", "--json", "--clip", "auto"]}
    found = answer(capfd, words[command])
    assert asked == []
    assert found.code == 0, found.error
    left_out = "no motion flow" if command == "report" else "no AMF distance"
    assert f"run: {left_out} (" in found.error and told in found.error
    if command == "report":
        assert "Not available" in (tmp_path / "report.html").read_text()
    else:
        (scores,) = json.loads(found.output)["evaluations"]
        assert scores["amf_distance"] is None and scores["motion"]["score"] is not None


@pytest.mark.parametrize("command", ["report", "evaluate"])
@pytest.mark.fault("a run whose settings are incomplete and name a model of the hub")
def test_defaults_are_not_downloaded(command, made, asked, tmp_path, capfd):
    folder = shutil.copytree(made, tmp_path / "run")
    (folder / "settings.yaml").write_text("model: someone/model\nprompt: x\n")
    found = answer(capfd, [command, str(folder)])
    assert asked == []
    assert found.code == 2 and "model 'someone/model'" in found.error and found.error.count("\n") == 1
