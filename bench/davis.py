"""The paper's protocol on DAVIS, for those who have the videos and GPUs. Run again, it continues.

`python -m bench.davis --videos FOLDER --prompts FILE.json [--model 5b|2b] [--modes ...]`. The runs are a
batch on Ray (docs/batch.md), with a worker on each GPU of this machine, or of a cluster with `--address`.
FOLDER holds a folder of images or a video for each name in the file:

    {"blackswan": {"start": 0, "frames": 24,
                   "caption": "A black swan swimming in a river",
                   "subject": "A duck with a tophat swimming in a river",
                   "scene": "A paper boat floating in a bathtub"}}

"start" and "frames" say which part is used (defaults 0 and the model's). The three prompts are those of the
paper: the clip's own caption, another subject, another scene. The paper has 50 videos.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.tables import markdown
from ditflow.batch.command import add_workers, run_jobs
from ditflow.batch.jobs import BatchJob, check_jobs
from ditflow.batch.run import INDEX
from ditflow.cli.batch_table import shown_batch
from ditflow.errors import DitflowError
from ditflow.evaluation.clip_scores import DEFAULT, ClipModel
from ditflow.evaluation.evaluate import Instruments, measure
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.motion_match import Pair
from ditflow.files import whole_or_absent
from ditflow.progress import quieten_libraries
from ditflow.settings.yaml_file import read_mapping

KINDS = ("caption", "subject", "scene")
SUFFIXES = ("", ".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif")
MODES = {  # name: changes to the published settings
    "backbone": {"guidance": False, "injection": False},
    "injection": {"guidance": False},
    "smm": {"loss": "smm-release"},
    "moft": {"loss": "moft"},
    "flow": {},
}
PUBLISHED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Case:
    """One video with one of its prompts."""

    name: str
    kind: str  # one of KINDS
    video: Path
    prompt: str
    part: dict[str, int]  # "start", "frames"


def read_cases(videos: Path, prompts: Path) -> list[Case]:
    """Raises DitflowError if the file is not of the form above or a video is missing."""
    try:
        cases = []
        for name, entry in dict(json.loads(prompts.read_text(encoding="utf-8"))).items():
            video = _find(videos, name)
            part = {key: int(entry[key]) for key in ("start", "frames") if key in entry}
            cases += [Case(name, kind, video, entry[kind], part) for kind in KINDS]
        return cases
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DitflowError(
            f"{prompts} cannot be used ({error}): expected names, each with {', '.join(KINDS)}"
        ) from None


def _find(videos: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        if (found := videos / f"{name}{suffix}").exists():
            return found
    raise DitflowError(f"{videos} has no {name}: expected a folder of images or a video of that name")


def all_jobs(
    cases: Sequence[Case], modes: Sequence[str], common: Mapping[str, Any], output: Path
) -> list[BatchJob]:
    """A job for each case in each mode. Raises SettingsError for one that cannot be run."""
    rows = [
        (
            f"{mode}, {case.name}-{case.kind}",
            {**common, **MODES[mode], **case.part, "video": str(case.video), "prompt": case.prompt}
            | {"output": str(output / mode / f"{case.name}-{case.kind}")},
        )
        for case in cases
        for mode in modes
    ]
    return check_jobs(rows, output)


def score_all(
    cases: Sequence[Case], modes: Sequence[str], instruments: Instruments, output: Path
) -> Iterator[dict[str, Any]]:
    """The scores of each case in each mode. A file appears when a run is measured, and is read next time."""
    for case in cases:
        for mode in modes:
            folder = output / mode / f"{case.name}-{case.kind}"
            file = folder.with_name(f"{folder.name}.json")
            if not file.exists():
                row = {"mode": mode, "kind": case.kind} | _measured(FinishedRun.open(folder), instruments)
                with whole_or_absent(file) as unfinished:
                    unfinished.write_text(json.dumps(row, indent=2) + "\n")
            yield json.loads(file.read_text())


def _measured(run: FinishedRun, instruments: Instruments) -> dict[str, Any]:
    result, reference = run.clip("result"), run.clip("reference")
    pair = Pair.measure(reference.frames, result.frames)
    return {"run": str(run.folder)} | measure(result, reference, pair, run.settings.prompt, instruments)


def table(found: Sequence[dict[str, Any]], published: Mapping[str, Sequence[float]]) -> str:
    """The paper's table 1 with its numbers below ours, and our motion score of all runs."""
    groups = (*KINDS, "all")
    lines = []
    for mode in dict.fromkeys(row["mode"] for row in found):
        rows = [row for row in found if row["mode"] == mode]
        cells = []
        for group in groups:
            some = [row for row in rows if group in ("all", row["kind"])]
            cells += [_mean(_paper(row) for row in some)]
            cells += [_mean(row["prompt_match"]["clip"] for row in some)]
        motion = _mean(row["motion"]["score"] for row in rows)
        lines.append([mode, len(rows), *cells, motion])
        if mode in published:
            lines.append([f"{mode}, published", 150, *(f"{value:.3f}" for value in published[mode]), ""])
    scores = [f"{group} {score}" for group in groups for score in ("MF", "IQ")]
    return markdown(["mode", "runs", *scores, "motion"], lines)


def _paper(row: Mapping[str, Any]) -> float | None:
    paper = row["tracks"] and row["tracks"]["paper"]
    return paper and paper["score"]


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f}" if known else "-"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", default="5b", help="5b, 2b, or any that ditflow accepts")
    parser.add_argument("--modes", default=",".join(MODES), help="separated by commas")
    parser.add_argument("--config", type=Path, metavar="FILE", help="other settings, from a YAML file")
    parser.add_argument("--output", type=Path, default=Path("runs/davis"), metavar="FOLDER")
    parser.add_argument("--tracker", default="cotracker", help="cotracker, as in the paper, lk or none")
    parser.add_argument("--tracker-weights", type=Path, metavar="FILE")
    parser.add_argument("--clip", default=DEFAULT, metavar="MODEL", help="CLIP model of IQ, or none")
    add_workers(parser)
    options = parser.parse_args(words)
    modes = options.modes.split(",")
    if not set(modes) <= MODES.keys():
        parser.error(f"--modes of {','.join(MODES)}")

    quieten_libraries()
    logging.basicConfig(format="%(message)s")
    try:
        cases = read_cases(options.videos, options.prompts)
        common = (read_mapping(options.config) if options.config else {}) | {"model": options.model}
        folder = options.output / Path(options.model).name
        with shown_batch(quiet=False) as watch:
            entries = run_jobs(all_jobs(cases, modes, common, folder), options, folder, watch)
        if failed := sum(entry.state == "failed" for entry in entries):
            raise DitflowError(f"{failed} of {len(entries)} runs failed: see {folder / INDEX}")
        clip = None if options.clip == "none" else ClipModel.load(options.clip)
        instruments = Instruments(options.tracker, options.tracker_weights, clip)
        found = list(score_all(cases, modes, instruments, folder))
    except DitflowError as error:
        raise SystemExit(f"bench.davis: {error}") from None
    print(table(found, PUBLISHED.get(options.model, {})))


if __name__ == "__main__":
    main()
