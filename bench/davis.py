"""The paper's protocol on DAVIS, for who has the videos and a GPU; begun again, it goes on where it stopped.

`python -m bench.davis --videos FOLDER --prompts FILE.json [--model 5b|2b] [--modes ...]`. FOLDER holds a
folder of images or a video for each name in the file:

    {"blackswan": {"start": 0, "frames": 24,
                   "caption": "A black swan swimming in a river",
                   "subject": "A duck with a tophat swimming in a river",
                   "scene": "A paper boat floating in a bathtub"}}

"start" and "frames" say which part is used (defaults 0 and the model's), the three prompts are those of the
paper: the clip's own caption, another subject, another scene. The paper has 50 videos.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError
from ditflow.evaluation.clip_scores import DEFAULT, ClipModel
from ditflow.evaluation.evaluate import Instruments, measure
from ditflow.evaluation.finished import FinishedRun
from ditflow.files import whole_or_absent
from ditflow.jobs.transfer import transfer
from ditflow.progress import quieten_libraries
from ditflow.settings import Settings, read_settings

KINDS = ("caption", "subject", "scene")
SUFFIXES = ("", ".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif")
MODES = {  # name: what it changes of the published settings
    "backbone": {"guidance": False, "injection": False},
    "injection": {"guidance": False},
    "smm": {"loss": "smm-release"},
    "moft": {"loss": "moft"},
    "flow": {},
}
PUBLISHED = {  # table 1: MF and IQ of caption, subject, scene and all
    "5b": {
        "backbone": (0.524, 0.315, 0.502, 0.321, 0.544, 0.318, 0.523, 0.318),
        "injection": (0.608, 0.315, 0.581, 0.321, 0.635, 0.320, 0.608, 0.319),
        "smm": (0.782, 0.313, 0.741, 0.317, 0.776, 0.316, 0.766, 0.315),
        "moft": (0.728, 0.313, 0.728, 0.321, 0.722, 0.319, 0.726, 0.318),
        "flow": (0.790, 0.316, 0.775, 0.321, 0.789, 0.319, 0.785, 0.319),
    },
    "2b": {
        "backbone": (0.521, 0.313, 0.495, 0.312, 0.523, 0.314, 0.513, 0.313),
        "injection": (0.546, 0.315, 0.524, 0.317, 0.563, 0.321, 0.544, 0.318),
        "smm": (0.687, 0.312, 0.682, 0.312, 0.694, 0.317, 0.688, 0.312),
        "moft": (0.503, 0.312, 0.502, 0.313, 0.508, 0.315, 0.504, 0.312),
        "flow": (0.685, 0.311, 0.753, 0.322, 0.739, 0.320, 0.726, 0.317),
    },
}


@dataclass(frozen=True)
class Case:
    """One video with one of its prompts."""

    name: str
    kind: str  # one of KINDS
    video: Path
    prompt: str
    part: dict[str, int]  # "start", "frames"


def read_cases(videos: Path, prompts: Path) -> list[Case]:
    """Raises DitflowError where the file is not of the form above or a video is missing."""
    try:
        entries = dict(json.loads(prompts.read_text(encoding="utf-8")))
        return [
            Case(
                name,
                kind,
                _find(videos, name),
                entry[kind],
                {key: int(entry[key]) for key in ("start", "frames") if key in entry},
            )
            for name, entry in entries.items()
            for kind in KINDS
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DitflowError(
            f"{prompts} cannot be used ({error}): expected names, each with {', '.join(KINDS)}"
        ) from None


def _find(videos: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        if (found := videos / f"{name}{suffix}").exists():
            return found
    raise DitflowError(f"{videos} has no {name}: expected a folder of images or a video of that name")


def run_all(
    cases: Sequence[Case], modes: Sequence[str], settings: Settings, instruments: Instruments, output: Path
) -> Iterator[dict[str, Any]]:
    """Each case in each mode, from its file where it has been done; a file appears once a run is measured."""
    for case in cases:
        for mode in modes:
            name = f"{case.name}-{case.kind}"
            file = output / mode / f"{name}.json"
            if not file.exists():
                changes = MODES[mode] | case.part | {"video": str(case.video), "prompt": case.prompt}
                run = transfer(replace(settings, **changes, output=str(output / mode / name)))
                found = _measured(FinishedRun.open(run.folder), instruments)
                with whole_or_absent(file) as unfinished:
                    unfinished.write_text(
                        json.dumps({"mode": mode, "kind": case.kind} | found, indent=2) + "\n"
                    )
                print(f"{mode} {name}", flush=True)
            yield json.loads(file.read_text())


def _measured(run: FinishedRun, instruments: Instruments) -> dict[str, Any]:
    pictures = [run.clip(name).frames for name in ("result", "reference")]
    return {"run": str(run.folder)} | measure(*pictures, run.settings.prompt, instruments)


def table(found: Sequence[dict[str, Any]], published: dict[str, tuple[float, ...]]) -> str:
    """The paper's table 1, its own numbers below ours; and beside them the bidirectional score of all."""
    groups = (*KINDS, "all")
    head = [f"{group} {number}" for group in groups for number in ("MF", "IQ")]
    lines = [f"| mode | runs | {' | '.join(head)} | bidirectional |", "| --- " * (len(head) + 3) + "|"]
    for mode in dict.fromkeys(each["mode"] for each in found):
        rows = [each for each in found if each["mode"] == mode]
        cells = []
        for group in groups:
            some = [each for each in rows if group in ("all", each["kind"])]
            cells += [_mean(each["motion_fidelity"]["paper"]["score"] for each in some)]
            cells += [_mean(each["prompt_match"]["clip"] for each in some)]
        both = _mean(each["motion_fidelity"]["bidirectional"]["score"] for each in rows)
        lines.append(f"| {mode} | {len(rows)} | {' | '.join(cells)} | {both} |")
        if mode in published:
            numbers = " | ".join(f"{value:.3f}" for value in published[mode])
            lines.append(f"| {mode}, published | 150 | {numbers} | |")
    return "\n".join(lines)


def _mean(values: Iterator[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f}" if known else "-"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", default="5b", help="5b, 2b, or any that ditflow takes")
    parser.add_argument("--modes", default=",".join(MODES), help="separated by commas")
    parser.add_argument("--config", type=Path, metavar="FILE", help="other settings, from a YAML file")
    parser.add_argument("--output", type=Path, default=Path("runs/davis"), metavar="FOLDER")
    parser.add_argument("--tracker", default="cotracker", help="cotracker, as in the paper, or lk")
    parser.add_argument("--tracker-weights", type=Path, metavar="FILE")
    parser.add_argument("--clip", default=DEFAULT, metavar="MODEL", help="CLIP of IQ, or none")
    options = parser.parse_args(words)
    modes = options.modes.split(",")
    if not set(modes) <= MODES.keys():
        parser.error(f"--modes of {','.join(MODES)}")

    quieten_libraries()
    logging.basicConfig(format="%(message)s")
    try:
        cases = read_cases(options.videos, options.prompts)
        settings = read_settings(options.config, model=options.model)
        clip = None if options.clip == "none" else ClipModel.load(options.clip)
        instruments = Instruments(options.tracker, options.tracker_weights, clip)
        folder = options.output / Path(options.model).name
        found = list(run_all(cases, modes, settings, instruments, folder))
    except DitflowError as error:
        raise SystemExit(f"bench.davis: {error}") from None
    print(table(found, PUBLISHED.get(options.model, {})))


if __name__ == "__main__":
    main()
