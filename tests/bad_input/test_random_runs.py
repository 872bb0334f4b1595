"""Run folders with random settings and records: every command accepts them or refuses them in one line."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_pipelines import quick_settings

from ditflow import Settings, transfer
from ditflow.cli.main import main
from ditflow.evaluation import tracks

settings.register_profile("same", max_examples=25, derandomize=True, deadline=None, database=None)
settings.load_profile("same")

WORDS = st.sampled_from(
    ["", "x", "auto", "none", "-1", "0", "1e9", "9" * 30, "../..", "/dev/null", "a/b", "\x1b[2J", "3,3"]
)
VALUES = st.one_of(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(-2, 20) | st.floats() | WORDS,
    st.lists(WORDS | st.integers(-2, 9), max_size=2),
    st.dictionaries(st.sampled_from(["seconds", "peak_bytes"]), st.none() | st.integers(-3, 3), max_size=2),
)
NAMES = st.sampled_from([item.name for item in fields(Settings)])
KEYS = st.sampled_from(["versions", "device", "phases", "losses", "resumed", "other"])
COMMANDS = [
    "report run",
    "evaluate run --json --quiet",
    "resume run --quiet",
    "decode run --quiet",
    "inject --from run --print-config",
]


@pytest.fixture(scope="module")
def folder(clip, small_folder, tmp_path_factory):
    """A finished run in `whole`, and a quick evaluation."""
    made = tmp_path_factory.mktemp("random")
    transfer(quick_settings(clip, small_folder, steps=2, output=str(made / "whole")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setattr(tracks, "GRID", 3)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries again and again
        yield made


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.fault("run folders of random settings and random records")
@given(
    changed=st.dictionaries(NAMES, VALUES, max_size=2),
    record=st.dictionaries(KEYS, VALUES, max_size=1),
)
@example(changed={"frames": 200_000, "size": "8192x8192"}, record={})
@example(changed={"model": "someone/else"}, record={})
def test_random(command, folder, changed, record):
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / "whole", folder / "run")
    for name, changes, write in (
        ("settings.yaml", changed, yaml.safe_dump),
        ("run.json", record, json.dumps),
    ):
        path = folder / "run" / name
        path.write_text(write(yaml.safe_load(path.read_text()) | changes))
    output, error = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(error):
        code = main(command.split())
    lines = [line for line in error.getvalue().splitlines() if "warning: " not in line]
    assert code in (0, 1, 2) and len(lines) == bool(code), error.getvalue()
    assert "unexpected" not in error.getvalue() and "Traceback" not in error.getvalue()
    if code == 0 and "--json" in command:
        json.loads(output.getvalue(), parse_constant=pytest.fail)
