"""The command line: flags, precedence, exit codes, and answers that do not import torch."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib import metadata

import pytest
import yaml

from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.jobs import transfer as jobs
from ditflow.models.families import models, published_settings
from ditflow.run_folder.run import Run
from ditflow.settings import Settings
from ditflow.settings.defaults import default_in_words
from ditflow.video import read_clip


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


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ditflow {metadata.version('ditflow')}\n"


def test_another_spelling_is_the_same_setting(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimize: embedding\noptimization_steps: 3\n")
    for words in (
        ["--optimize", "embedding", "--optimization-steps", "3"],
        ["--set", "optimize=embedding", "--set", "optimization-steps=3"],
        ["--config", str(path)],
    ):
        config = printed_config(capsys, "transfer", "--model", "small", *words)
        assert (config["optimise"], config["optimisation_steps"]) == ("embedding", 3)
        assert "optimize" not in config
    config = printed_config(capsys, "transfer", "--config", str(path), "--optimise", "latent")
    assert (config["optimise"], config["optimisation_steps"]) == ("latent", 3)


@pytest.mark.parametrize(
    "words, message",
    [
        (["transfer", "--promt", "x"], "unknown flag --promt; did you mean --prompt?"),
        (
            ["transfer", "--guidance_blocks=3"],
            "unknown flag --guidance_blocks; did you mean --guidance-blocks?",
        ),
        (["inject", "--form", "run", "--promt", "x"], "unknown flag --promt; did you mean --prompt?"),
        (["plan", "--device", "h200"], "unknown flag --device; `ditflow plan --help` lists them all"),
        (["transfer", "-x"], "unknown flag -x; `ditflow transfer --help` lists them all"),
        (["--verson"], "unknown flag --verson; did you mean --version?"),
        (["trasfer", "--promt", "x"], "unknown command trasfer; did you mean transfer?"),
        (["two\nlines"], "unknown command two lines; `ditflow --help` lists them all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_nearest_known_word_is_named(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"ditflow: {message}\n"


def test_values_that_look_like_flags(capsys):
    words = ["transfer", "--model", "small", "--prom", "--a dash first", "--negative-prompt=--bad"]
    config = printed_config(capsys, *words)  # --prom: argparse completes it
    assert (config["prompt"], config["negative_prompt"]) == ("--a dash first", "--bad")


def help_of(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_has_the_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    said = help_of(capsys, "transfer")
    for default in (
        "use every n-th frame of the clip (default: 1)",
        "seed of all noise (default: 1)",
        "optimise towards the clip's motion (default: on)",
        "--compute {bf16,int8,int8-forward,fp16-sums}",
        "(default: bf16, unless --speed sets it)",
        "denoising steps (default: the model's)",
    ):
        assert default in said
    assert "video file or a folder of images --frames" in said  # no default
    assert "the page to write (default: report.html)" in help_of(capsys, "report")
    assert "(default:" not in help_of(capsys, "resume")
    said = help_of(capsys, "inject")
    assert "Settings that are not given are that run's" in said and "default: the model's" not in said


def test_every_default_that_a_model_may_change_is_called_the_models():
    named = {item.name for item in fields(Settings) if default_in_words(item.name) == "the model's"}
    assert named == {name for model in models() for name in published_settings(model)}


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
    words = ["--model", "small", "--video", str(tmp_path), "--prompt", "x", "--quiet"]
    assert main(["transfer", *words]) == code
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == (f"{tmp_path}\n" if code == 0 else "")


def test_a_clip_in_the_home_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip").mkdir()
    monkeypatch.setattr(jobs, "transfer", lambda settings, progress: Run(tmp_path))
    words = ["transfer", "--model", "small", "--prompt", "x", "--quiet", "--video"]
    assert main([*words, "~/clip"]) == 0
    assert main([*words, "~/other"]) == 1
    assert f"{tmp_path}/other does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        ("--help", "COMMAND"),
        ("--version", "ditflow "),
        ("transfer --help", "(default: latent)"),
        ("transfer --steps x", "steps: 'x' given"),
        ("nonsense", "unknown command nonsense"),
        ("transfer --model small", "video: nothing given"),
        ("flow --model small --blocks all", "video: nothing given"),
        ("transfer --model 5b --video x --prompt x", "model 5b needs a CUDA GPU"),
        ("flow --model 2b --video x", "model 2b needs a CUDA GPU"),
        ("transfer --model 5b --video x --prompt x --device cuda:1", "this machine has 0 CUDA GPUs"),
        ("transfer --model 5b --video x --prompt x --device toaster", "accepted: auto, cpu, cuda"),
        ("plan --model 5b --estimate-on abacus", "'abacus': its rates are unknown"),
        ("resume", "required: RUN"),
        ("resume absent", "absent is not a run folder"),
        ("decode absent", "absent is not a run folder"),
        ("evaluate absent", "absent is not a finished run"),
        ("evaluate --video absent --reference absent", "absent does not exist"),
        ("report absent", "absent is not a finished run"),
        ("report absent gone", "none of the 2 folders is a finished transfer: absent is not"),
        ("batch absent.yaml", "absent.yaml: No such file"),
        ("batch absent.txt", "give a file named *.yaml"),
        ("transfer --model small --video absent --prompt x", "absent does not exist"),
        ("flow --model small --video absent", "absent does not exist"),
    ],
)
def test_answers_without_torch(words, says):
    """Help and refusals import nothing heavy, which keeps them under half a second. No GPU is shown."""
    code = f"""if True:
        import sys
        from ditflow.cli.main import main
        try:
            main({words.split()!r})
        except SystemExit:
            pass
        heavy = {{"torch", "diffusers", "transformers", "numpy", "rich"}} & set(sys.modules)
        sys.exit(f"imported {{heavy}}" if heavy else 0)"""
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=hidden)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout + done.stderr


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


def test_elsewhere_than_on_a_terminal_each_step_is_a_line(settings, capsys, tmp_path):
    """The output of these tests is no terminal."""
    path = tmp_path / "settings.yaml"
    path.write_text(settings.to_yaml())
    assert main(["transfer", "--config", str(path), "--output", str(tmp_path / "one")]) == 0
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("denoise ")]
    assert len(steps) == settings.steps
    assert re.fullmatch(r"denoise 1/4: loss \d\.\d{4}, \d:\d\d:\d\d left", steps[0])
    assert re.fullmatch(r"denoise 4/4: 0:00:00 left", steps[-1])
    assert [line for line in lines if line in ("text", "encode", "decode")] == ["text", "encode", "decode"]


def test_preview_is_written_while_the_run_denoises(settings, ditflow, capsys, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(settings.to_yaml())
    ditflow("transfer", "--config", path, "--output", tmp_path / "one", "--preview", 3)
    shown = read_clip(tmp_path / "one" / "preview.mp4", frames=4, size=None)  # of the latent frames
    assert shown.frames.shape[1:3] == (8 * 28, 12 * 28) and shown.frames.std() > 1
    ditflow("transfer", "--config", path, "--output", tmp_path / "two", "--preview", 5)  # more than it has
    assert not (tmp_path / "two" / "preview.mp4").exists()
    with pytest.raises(SystemExit) as stop:
        ditflow("transfer", "--preview", "0")
    assert stop.value.code == 2
    assert "argument --preview: '0' given; accepted: a number from 1" in capsys.readouterr().err
