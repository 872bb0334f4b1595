"""Run the command line in this process, and assert that it accepts input or refuses it in one line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ditflow import video
from ditflow.cli.main import main
from ditflow.jobs.opening import begin_job
from ditflow.progress import Progress
from ditflow.run_folder.run import Run
from ditflow.settings import Settings

FRAMES = 9


@dataclass(frozen=True)
class Answer:
    code: int
    output: str
    error: str


def case(what: str, *values: object):
    """Parameters of a test that is a row of docs/reliability.md."""
    return pytest.param(*values, id=what, marks=pytest.mark.fault(what))


def begun(settings: Settings, progress: Progress) -> Run:
    """A transfer until everything is checked, the clip read and the run folder made."""
    with begin_job(settings, progress, needs=("video", "prompt")) as job:
        job.write_reference()
        return job.run


def begun_and_read(settings: Settings, progress: Progress) -> Run:
    """As `begun`, and the prompts encoded."""
    with begin_job(settings, progress, needs=("video", "prompt")) as job:
        job.write_reference()
        job.texts()
        return job.run


def transfer_words(model: Path, source: object, prompt: str = "a red circle") -> list[str]:
    """A transfer command with the random pipeline, at a size that costs next to nothing."""
    words = ["transfer", "--model", str(model), "--video", str(source), "--prompt", prompt]
    words += ["--frames", str(FRAMES), "--size", "48x32", "--guidance-blocks", "2"]
    return [*words, "--negative-prompt", "", "--device", "cpu", "--dtype", "float32"]


def answer(capfd, words: list[str]) -> Answer:
    """Run a command. Only argparse's SystemExit may escape `main`."""
    capfd.readouterr()
    try:
        code = main(words)
    except SystemExit as gone:
        code = gone.code
    output, error = capfd.readouterr()
    return Answer(code, output, error)


def assert_refused(capfd, words: list[str], code: int, *parts: str) -> None:
    """The error is one line with all the `parts`, the exit code is `code`, and no file was made here."""
    before = sorted(Path().rglob("*"))
    found = answer(capfd, words)
    assert found.error.startswith("ditflow: ") and found.error.count("\n") == 1, found.error
    assert all(part in found.error for part in parts), found.error
    assert (found.code, found.output) == (code, "")
    assert len(found.error) < 1000 and found.error.strip().isprintable()
    assert sorted(Path().rglob("*")) == before


def assert_begins(capfd, words: list[str], warning: str = "") -> video.Clip:
    """The run begins, with this warning or none. Returns the clip as it was read."""
    found = answer(capfd, [*words, "--quiet"])
    assert found.code == 0, found.error
    assert warning in found.error and found.error.count("\n") == bool(warning), found.error
    clip = video.read_clip(Path(found.output.strip()) / "reference.mp4", frames=FRAMES, size=None)
    assert clip.frames.shape == (FRAMES, 32, 48, 3)
    return clip
