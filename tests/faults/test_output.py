"""Standard output and error that go away while a command runs, or that cannot show what is printed."""

import os
import pty
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from made_videos import made_frame
from PIL import Image
from run_processes import contents

from ditflow.cli.terminal import Output, clean, one_line

FAULT = pytest.mark.fault
COMMAND = [sys.executable, "-m", "ditflow"]
HOSTILE = "a\x1b[2J\x1b]0;owned\x07\rb\x9b31m"
CONFIG = ["transfer", "--model", "small", "--print-config"]


def closed_after(descriptor, word):
    """A thread that reads a descriptor until it has seen a word, then closes it."""

    def read():
        seen = b""
        with suppress(OSError):  # EIO: the other side is closed
            while word not in seen and (got := os.read(descriptor, 1000)):
                seen += got
        os.close(descriptor)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def run_whole(fork_server, folder, **streams):
    """A transfer with progress bars whose output goes to these paths; its files are as they should be."""
    words = ("transfer", "--config", str(fork_server.config))
    assert fork_server.run(folder, *words, **streams) == 0
    assert contents(folder / "run") == fork_server.whole


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@FAULT("output to a full disk")
def test_full_disk(fork_server, tmp_path, stream):
    run_whole(fork_server, tmp_path, **{stream: "/dev/full"})
    lost = "ditflow: warning: the command is done, but standard output cannot be written (No space left"
    if stream == "stdout":
        assert fork_server.error(tmp_path).splitlines()[-1].startswith(lost)
    else:
        assert (tmp_path / "stdout").read_text() == "run\n"


@FAULT("a pipe of messages whose reader leaves during a run")
def test_closed_pipe(fork_server, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    # for reading and writing, because opening one end alone waits for the other
    reader = closed_after(os.open(tmp_path / "pipe", os.O_RDWR), b"run folder")
    run_whole(fork_server, tmp_path, stderr=str(tmp_path / "pipe"))
    reader.join()


@FAULT("a terminal that closes during a run")
def test_closed_terminal(fork_server, tmp_path):
    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    reader = closed_after(ours, b"encode")  # a bar
    run_whole(fork_server, tmp_path, stderr=name, stdout=name)
    reader.join()
    os.close(theirs)


def shell(line, **environment):
    """The exit code of the first part of a line in bash, its output and error; $DITFLOW is the command."""
    words = ["bash", "-c", f"set -o pipefail; {line}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(
        words, capture_output=True, env=os.environ | {"DITFLOW": " ".join(COMMAND)} | environment, timeout=100
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("doctor", marks=FAULT("`ditflow doctor | head -1`")),
        pytest.param("--help", marks=FAULT("`ditflow --help | head -1`")),
        pytest.param(" ".join(CONFIG), marks=FAULT("`ditflow transfer --print-config | head -1`")),
    ],
)
def test_a_reader_that_leaves_early(words):
    code, output, error = shell(f"$DITFLOW {words} | head -1")
    assert (code, error) == (0, "") and output.count("\n") == 1


@FAULT("settings printed to a full disk")
def test_a_result_that_cannot_be_printed():
    code, output, error = shell(f"$DITFLOW {' '.join(CONFIG)} > /dev/full")
    assert (code, output) == (1, "")
    assert error == (
        "ditflow: standard output cannot be written (No space left on device): send it to another place\n"
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@FAULT("standard output or error closed from the start")
def test_closed_from_the_start(closed, tmp_path):
    """No file that the command opens takes the place of the closed one."""
    (tmp_path / "mine.yaml").write_text("model: small\nstepz: 3\n")
    before = (tmp_path / "mine.yaml").read_bytes()
    code, output, error = shell(f"$DITFLOW transfer --config {tmp_path}/mine.yaml {closed}")
    assert (code, output) == (2, "") and ("stepz" in error) == ("2>" not in closed)
    assert (tmp_path / "mine.yaml").read_bytes() == before


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
@FAULT("output that can only show ASCII")
def test_ascii(environment):
    code, output, error = shell(f"$DITFLOW {' '.join(CONFIG)} --prompt 'ein Bär'", **environment)
    assert (code, error) == (0, "") and "prompt: ein B" in output
    code, _, error = shell("$DITFLOW transfer --config 'Bär.yaml'", **environment)
    assert code == 2 and error.startswith("ditflow: settings file B")


@FAULT("file names with terminal escapes")
def test_names_with_escapes(fork_server, tmp_path):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    for number in (*range(5), *range(9, 15)):
        Image.fromarray(made_frame(number)).save(folder / f"\x1b[31m{number:03}.png")
    words = ["transfer", "--config", str(fork_server.config), "--video", str(folder)]
    for more in ([], ["--quiet"]):
        assert fork_server.run(tmp_path, *words, *more) in (1, 2)  # the path is no setting
        assert "\x1b" not in fork_server.error(tmp_path) and "\r" not in fork_server.error(tmp_path)
    (tmp_path / "clip").mkdir()
    for path in folder.iterdir():
        path.rename(tmp_path / "clip" / path.name)
    words[-1] = str(tmp_path / "clip")
    for more in ([], ["--quiet"]):
        assert fork_server.run(tmp_path, *words, *more) == 0
        (line,) = (line for line in fork_server.error(tmp_path).splitlines() if "is followed by" in line)
        assert r"\x1b[31m004.png is followed by \x1b[31m009.png" in line
        assert "\x1b" not in fork_server.error(tmp_path)
    (tmp_path / "run").rename(tmp_path / "a\x1b[31mb\rc")
    assert fork_server.run(tmp_path, "resume", "a\x1b[31mb\rc") == 0
    assert (tmp_path / "stdout").read_text() == "a\\x1b[31mb\\rc\n"
    assert "\x1b" not in fork_server.error(tmp_path)


def test_what_is_cleaned():
    assert clean("a\tb\nc é 漢 🐻‍❄️") == "a\tb\nc é 漢 🐻‍❄️"
    assert clean(HOSTILE) == r"a\x1b[2J\x1b]0;owned\x07\rb\x9b31m"
    assert clean("\u202egnp.exe \udcff", strict=True) == r"\u202egnp.exe \udcff"
    assert one_line("a\n b", "c\x1b") == r"a b; c\x1b"


def test_output_takes_the_streams_place(tmp_path):
    with (tmp_path / "file").open("w", encoding="ascii") as file:
        output = Output(file)
        print("é", HOSTILE, file=output)
        assert not output.isatty() and output.fileno() == file.fileno() and output.lost is None
    assert (tmp_path / "file").read_text() == r"\xe9 a\x1b[2J\x1b]0;owned\x07\rb\x9b31m" + "\n"
    print("more", file=output)
    assert isinstance(output.lost, ValueError)  # closed
    print("more", file=Output(None))
