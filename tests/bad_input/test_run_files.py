"""Run folders from strangers: wrong values, pipes, devices and huge files are refused in one line."""

import json
import os
import shutil
import signal
import socket
import struct
from pathlib import Path

import pytest
from command_line import answer, assert_refused, case
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import quick_settings

from ditflow import transfer
from ditflow.cli.main import main
from ditflow.evaluation import tracks
from ditflow.evaluation.tables import as_json, as_table
from ditflow.files import json_text
from ditflow.run_folder.record import read_record
from ditflow.run_folder.run import Run

HUGE = 60 << 30  # bytes of a sparse file
LONGEST = 60  # seconds; a command that waits for a pipe would wait for ever


@pytest.fixture(scope="module")
def whole(clip, small_folder, tmp_path_factory):
    """The folder of a run with an optimised embedding."""
    output = tmp_path_factory.mktemp("runs") / "run"
    changes = {"optimise": "embedding", "optimisation_steps": 1, "steps": 2}
    return transfer(quick_settings(clip, small_folder, output=str(output), **changes)).folder


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    """A copy of it in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracks, "GRID", 5)
    shutil.copytree(whole, "run")
    return Path("run")


@pytest.fixture(autouse=True)
def impatient():
    def late(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


GONE = object()


def changed(record, path, value):
    *parents, last = path
    inner = record
    for name in parents:
        inner = inner[name]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        case("a record without versions", ["versions"], GONE, "it lacks versions"),
        case("a record without a device", ["device"], GONE, "it lacks device"),
        case("a record without phases", ["phases"], GONE, "it lacks phases"),
        case("a phase without seconds", ["phases", "text", "seconds"], GONE, "it lacks phases.text.seconds"),
        case("a version that is a number", ["versions", "torch"], 2, "versions.torch is 2, expected a text"),
        case("a device that is a list", ["device"], ["cpu"], "device is ['cpu'], expected a text"),
        case("a device of a million letters", ["device"], "x" * 10**6, "expected a text of at most 200"),
        case("phases that are a list", ["phases"], [], "phases is [], expected a mapping"),
        case("a phase that is null", ["phases", "text"], None, "phases.text is None, expected a mapping"),
        case("seconds that are a text", ["phases", "text", "seconds"], "1", "is '1', expected a number"),
        case("seconds that are true", ["phases", "text", "seconds"], True, "is True, expected a number"),
        case("seconds below zero", ["phases", "text", "seconds"], -1, "is -1, expected a number from 0"),
        case("bytes of 400 digits", ["phases", "text", "peak_bytes"], 10**400, "expected a number from 0"),
        case("losses that are a mapping", ["losses"], {}, "losses is {}, expected a list"),
        case("losses that are not lists", ["losses", 0], 1.5, "losses[0] is 1.5, expected a list"),
        case("a loss that is a text", ["losses", 0, 0], "low", "losses[0][0] is 'low', expected a number"),
        case("more losses than steps", ["losses"], [[]] * 1001, "expected a list of at most 1000 entries"),
        case("resumed that is a number", ["resumed"], 3, "resumed is 3, expected true or false"),
    ],
)
def test_records(path, value, told, run, capfd):
    record = changed(json.loads((run / "run.json").read_text()), path, value)
    (run / "run.json").write_text(json.dumps(record))
    for command in ("report", "evaluate"):
        assert_refused(capfd, [command, "run"], 1, "run/run.json is damaged (", told, "make the run again")


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.fault("an embedding with wrong values about itself")
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model", None, "it lacks model, expected a text"),
        ("model", "3", "model is 3, expected a text"),
        ("size", "[48, 32]", "size is [48, 32], expected a text"),
        ("frames", "1e99", "frames is 1e+99, expected a whole number from 1"),
        ("frames", "ten", "frames is 'ten', expected JSON"),
        ("timesteps", "[999, null]", "timesteps[1] is None, expected a number"),
        ("timesteps", "[" * 5000, "expected JSON"),
        ("kind", '"spiral"', "kind is 'spiral', expected"),
    ],
)
def test_embeddings(name, value, told, run, capfd):
    path = run / "embedding.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | {name: value}
    tensors = load_file(path)
    save_file(tensors, path, {key: text for key, text in metadata.items() if text is not None})
    assert_refused(capfd, ["inject", "--from", "run"], 1, "run/embedding.safetensors: ", told)


@pytest.mark.fault("a run with NaN and infinity among its numbers")
def test_nan_is_null(run, capfd):
    record = json.loads((run / "run.json").read_text())
    record["losses"][0] = [float("nan"), 2.0, float("inf")]
    record["phases"]["text"] = {"seconds": float("nan"), "peak_bytes": float("inf")}
    (run / "run.json").write_text(json.dumps(record))  # as older versions wrote it
    assert read_record(run / "run.json")["losses"][0] == [None, 2.0, None]
    assert main(["report", "run", "--output", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert strict(page.partition('id="data">')[2].partition("</script>")[0])["flow"] != [None]
    assert '<th scope="row">text</th><td>-</td><td>-</td>' in page
    assert ">nan<" not in page and ">inf<" not in page
    Run(run).write_json("again.json", record)
    assert strict((run / "again.json").read_text())["losses"][0] == [None, 2.0, None]


def test_unknown_scores_are_null_and_dashes():
    found = {
        "video": "a.mp4",
        "motion": dict.fromkeys(("score", "camera", "objects", "direction", "reach", "compared"))
        | {"still": [], "controls": dict.fromkeys(("mirrored", "reversed", "shifted"))},
        "tracks": {
            "bidirectional": {"score": None, "found": {}, "still": []},
            "paper": {"score": None, "dropped": {"reference": 0, "result": 0}},
        },
        "prompt_match": {"clip": 0.5, "made": None},
        "temporal_consistency": None,
        "target": {"fidelity": None, "reach": None, "compared": None},
        "amf_distance": {"1": None, "2": 3.0},
    }
    assert strict(json_text(as_json([found, found])))["summary"]["amf_distance"] is None
    assert "| a.mp4 | 0.500 |" in as_table([found])
    assert strict(json_text({"a": [float("nan"), (float("-inf"), 1)]})) == {"a": [None, [None, 1]]}


COMMANDS = {
    "settings.yaml": [
        "report run",
        "evaluate run",
        "resume run",
        "decode run",
        "inject --from run --prompt x",
    ],
    "run.json": ["report run", "evaluate run", "resume run"],
    "result.mp4": ["report run", "evaluate run"],
    "reference.mp4": ["report run", "evaluate run"],
    "embedding.safetensors": ["inject --from run --prompt x --quiet"],
}
PLACES = [
    case(f"{name} of a run in `ditflow {command.split()[0]}` is a named pipe", name, command)
    for name, commands in COMMANDS.items()
    for command in commands
]


@pytest.mark.parametrize(("name", "command"), PLACES)
def test_pipes_in_a_run(name, command, run, capfd):
    (run / name).unlink()
    os.mkfifo(run / name)
    found = answer(capfd, command.split())
    assert found.code in (1, 2) and found.output == ""
    last = found.error.splitlines()[-1]
    assert last.startswith("ditflow: ") and "unexpected" not in last, found.error
    assert name in last or command == "resume run", last


@pytest.mark.fault("latents of a run that are a named pipe")
def test_latents_that_are_a_pipe(run, capfd):
    (run / "latents.safetensors").unlink()
    os.mkfifo(run / "latents.safetensors")
    assert main(["report", "run"]) == 0
    assert "latents.safetensors is a named pipe" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["transfer", "--config", "odd"], ["evaluate", "run", "--tracker=cotracker", "--tracker-weights=odd"]],
)
@pytest.mark.fault("a named pipe or a socket as settings file or as weights of a tracker")
def test_other_inputs(words, run, capfd, monkeypatch):
    os.mkfifo("odd")
    found = answer(capfd, words)
    assert found.code in (1, 2) and "odd is a named pipe: give a regular file" in found.error
    Path("odd").unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("odd")
        assert "odd is a socket: give a regular file" in answer(capfd, words).error


@pytest.mark.fault("a report written to a named pipe, a socket or a device")
def test_outputs_that_are_no_files(run, capfd):
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
        for name in ("pipe", "link", "socket", "/dev/full"):
            before = os.lstat(name)
            found = answer(capfd, ["report", "run", "--output", name])
            assert found.code == 1 and f"{name} cannot be written (it is not a regular file)" in found.error
            assert os.path.samestat(before, os.lstat(name))


def sparse(path, name):
    """Make a file huge without content; safetensors get a header that fits."""
    if name.endswith(".safetensors"):
        shape = [1, 1, 1, 1, (HUGE >> 1) // 4]
        size = HUGE >> 1
        names = ("latents", "reference") if name.startswith("latents") else ("step_000", "step_001")
        header = {
            each: {"dtype": "F32", "shape": shape, "data_offsets": [index * size, (index + 1) * size]}
            for index, each in enumerate(names)
        }
        packed = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(packed)) + packed)
        os.truncate(path, 8 + len(packed) + HUGE)
    else:
        os.truncate(path, HUGE)


@pytest.mark.parametrize(
    ("name", "command", "told"),
    [
        case("a result of 60 GB", "result.mp4", "report run", "result.mp4 has"),
        case("a record of 60 GB", "run.json", "report run", "run.json is damaged (it has more than"),
        case("settings of 60 GB", "settings.yaml", "report run", "settings.yaml is larger than"),
        case("latents of 60 GB", "latents.safetensors", "report run", "latents.safetensors has"),
        case(
            "an embedding of 60 GB",
            "embedding.safetensors",
            "inject --from run --prompt x",
            "safetensors has",
        ),
    ],
)
def test_huge_files(name, command, told, run, capfd):
    sparse(run / name, name)
    found = answer(capfd, command.split())
    assert told in found.error and "unexpected" not in found.error
    assert found.code == (0 if name.startswith("latents") else 2 if name == "settings.yaml" else 1)
