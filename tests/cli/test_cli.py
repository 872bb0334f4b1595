"""The command line: flags, precedence, exit codes, and answers that do not import torch."""

import subprocess
import sys
from dataclasses import fields

import pytest
import yaml

from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.jobs import transfer as jobs
from ditflow.run_folder.run import Run
from ditflow.settings import Settings


def printed_config(capsys, *words):
    assert main([*words, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_flag_reaches_the_settings(capsys):
    words = """transfer --model small --video clip.mp4 --prompt words --loss moft --optimise embedding
        --no-injection --frames 17 --start 3 --stride 2 --size 64x48 --fit pad --steps 9 --guided 0.5
        --learning-rate 0.3 0.1 --optimisation-steps 2 --temperature 5 --rows all --reference soft
        --moft-channels 0.5 --source-prompt other --guidance-blocks 1 3 --injection-blocks 2
        --guidance-scale 4 --negative-prompt bad --seed 8 --format gif --dtype float32 --device cpu
        --deterministic --output out --keep-precision --dynamic-scale
        --lora a.safetensors --lora b.safetensors:0.5"""
    config = printed_config(capsys, *words.split())
    assert config["learning_rate"] == [0.3, 0.1]
    assert (config["guidance_blocks"], config["guidance_scale"]) == ([1, 3], [4.0])
    assert config["lora"] == ["a.safetensors", "b.safetensors:0.5"]
    assert (config["injection"], config["guidance"], config["deterministic"]) == (False, True, True)
    assert (config["size"], config["frames"], config["start"], config["stride"]) == ("64x48", 17, 3, 2)
    rest = {"fit": "pad", "loss": "moft", "optimise": "embedding", "rows": "all", "reference": "soft"}
    rest |= {"steps": 9, "guided": 0.5, "seed": 8, "format": "gif", "output": "out", "temperature": 5.0}
    rest |= {"moft_channels": 0.5, "source_prompt": "other", "negative_prompt": "bad"}
    assert rest.items() <= config.items()


def test_order_of_precedence(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: small\nsteps: 5\nseed: 5\nframes: 17\n")
    words = ["transfer", "--config", str(path), "--set", "seed=6", "--set", "frames=33", "--frames", "25"]
    config = printed_config(capsys, *words)
    assert (config["steps"], config["seed"], config["frames"]) == (5, 6, 25)


@pytest.mark.parametrize(
    "words, message",
    [
        (["transfer", "--set", "stepz=4"], "did you mean 'steps'"),
        (["transfer", "--set", "steps"], "expected KEY=VALUE"),
        (["transfer", "--config", "absent.yaml"], "No such file"),
        (["transfer", "--model", "small"], "video: nothing given; use --video"),
        (["transfer", "--model", "small", "--video", "x.mp4"], "prompt: nothing given; use --prompt"),
        (["flow", "--model", "small"], "video: nothing given; use --video"),
        (["inject", "--from", "absent", "--prompt", "words"], "is not a run folder"),
    ],
    ids=lambda value: " ".join(value)[:45] if isinstance(value, list) else None,
)
def test_usage_errors(capsys, words, message):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ditflow: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["transfer", "inject", "flow", "plan"])
def test_settings_without_a_flag_have_none(capsys, command):
    hidden = [item.name for item in fields(Settings) if not item.metadata["flag"]]
    assert "preset" in hidden
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert "--memory" in shown
    assert not [name for name in hidden if f"--{name.replace('_', '-')}" in shown]


def test_set_reaches_a_setting_without_a_flag(capsys):
    assert printed_config(capsys, "flow", "--model", "small", "--set", "preset=8gb")["preset"] == "8gb"


def test_inject_starts_from_the_runs_settings(capsys, tmp_path):
    (tmp_path / "settings.yaml").write_text("model: small\nprompt: old\nsteps: 9\noutput: taken\n")
    config = printed_config(capsys, "inject", "--from", str(tmp_path), "--prompt", "new")
    assert (config["prompt"], config["steps"], config["output"]) == ("new", 9, "")
    assert config["saved_embedding"] == str(tmp_path / "embedding.safetensors")


@pytest.mark.parametrize(
    "outcome, code, message",
    [
        (None, 0, ""),
        (DitflowError("it failed"), 1, "ditflow: it failed\n"),
        (KeyboardInterrupt(), 130, "ditflow: interrupted\n"),
    ],
    ids=["done", "failed", "interrupted"],
)
def test_exit_codes(monkeypatch, capsys, tmp_path, outcome, code, message):
    def job(settings, progress):
        if outcome:
            raise outcome
        return Run(tmp_path)

    monkeypatch.setattr(jobs, "transfer", job)
    assert main(["transfer", "--model", "small", "--video", "x", "--prompt", "x", "--quiet"]) == code
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == (f"{tmp_path}\n" if code == 0 else "")


@pytest.mark.parametrize(
    "words", [["--help"], ["transfer", "--help"], ["transfer", "--steps", "x"], ["nonsense"]]
)
def test_answers_without_torch(words):
    """Help and usage errors import nothing heavy, which keeps them under half a second."""
    code = f"""if True:
        import sys
        from ditflow.cli.main import main
        try:
            main({words!r})
        except SystemExit:
            pass
        heavy = {{"torch", "diffusers", "transformers", "numpy", "rich"}} & set(sys.modules)
        sys.exit(f"imported {{heavy}}" if heavy else 0)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_memory_on_the_command_line_resets_preset_and_decode_tile(capsys, tmp_path):
    """A run's settings record the preset and tile it used. Replays keep them; --memory resets them."""
    used = {"model": "small", "memory": "24", "preset": "16gb", "decode_tile": "none"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(used))

    def read(*words):
        found = printed_config(capsys, *words)
        return found["memory"], found["preset"], found["decode_tile"]

    config = ("--config", str(tmp_path / "settings.yaml"))
    assert read("transfer", *config) == ("24", "16gb", "none")
    assert read("transfer", *config, "--memory", "8") == ("8", "auto", "auto")
    assert read("transfer", *config, "--memory", "8", "--set", "decode_tile=240x160") == (
        "8",
        "auto",
        "240x160",
    )
    assert read("inject", "--from", str(tmp_path)) == ("auto", "auto", "auto")
