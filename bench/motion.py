"""Does the motion transfer? Made clips whose motion is known, through the small model in every mode.

A pair is a made clip and a prompt in the small model's words, both drawn from the seed. All modes of a pair
start from the same noise. The result's shape is found by its colour, and its path compared with the clip's
true one. "zero-shot" uses the embedding that was optimised for another prompt; that other run's time is not
counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from bench.revision import commit
from ditflow import transfer, video
from ditflow.cli.main import quieten_libraries
from ditflow.errors import SettingsError
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.intervals import Interval, interval
from ditflow.evaluation.made_shapes import prompt_match
from ditflow.progress import Progress
from ditflow.settings import Settings, read_settings
from ditflow.small import SMALL_MODELS
from ditflow.small.clips import FRAME_RATE, MadeClip, made_clip
from ditflow.small.pipeline import COMPRESSION
from ditflow.small.sight import look
from ditflow.small.vocabulary import COLOURS, SHAPES, caption

MODES = {  # name: what it changes of the small model's settings
    "backbone": {"guidance": False, "injection": False},
    "injection": {"guidance": False, "injection": True},
    "flow": {},
    "flow-embedding": {"optimise": "embedding"},
    "moft": {"loss": "moft"},
    "smm": {"loss": "smm"},
    "zero-shot": {"optimise": "embedding"},  # for another prompt, and then injected
}


SPAN = COMPRESSION  # frames: guidance moves latent frames, the autoencoder alone what is inside one

FAR = 24  # pixels, three tokens: a clip whose shape goes less far, left or right or up or down, is not drawn


@dataclass(frozen=True)
class Pair:
    """A clip, the prompt to go with its motion, another prompt, and the seed of the noise."""

    clip: MadeClip
    prompt: str
    other_prompt: str
    noise: int

    @classmethod
    def draw(cls, seed: int, index: int, frames: int = 24) -> Pair:
        generator = np.random.default_rng((seed, index))

        def prompt() -> str:
            colour, background = generator.choice(list(COLOURS), size=2, replace=False)
            return caption(str(colour), str(generator.choice(SHAPES)), str(background))

        while True:
            clip_seed, noise = (int(number) for number in generator.integers(2**31, size=2))
            clip = made_clip(clip_seed, frames=frames)
            if np.ptp(clip.centroids, axis=0).max() >= FAR:
                return cls(clip, prompt(), prompt(), noise)


@dataclass(frozen=True)
class Measured:
    """What one mode made of one pair."""

    motion_fidelity: float  # mean cosine of the shape's displacements in SPAN frames and the clip's true ones
    trajectory_correlation: float  # of the places, about their means
    prompt_match: float  # share of colours (shape's, background's) that are the prompt's
    seconds: float
    seconds_guided: float  # from the beginning of denoising to the end of its guided steps


class StepClock(Progress):
    """When denoising began, and when each of its steps ended."""

    def phase(self, name: str, steps: int = 0) -> None:
        if name == "denoise":
            self.began, self.ends = time.perf_counter(), []

    def step(self, detail: str) -> None:
        self.ends.append(time.perf_counter())


def measure(pair: Pair, mode: str, settings: Settings, scratch: Path) -> Measured:
    """Run a mode of a pair; `settings` are those of no mode. Leaves its run folders in `scratch`."""
    reference = scratch / "clip.mp4"
    if not reference.exists():
        video.write_clip(video.Clip(pair.clip.frames, FRAME_RATE), reference)
    settings = replace(
        settings,
        **MODES[mode],
        video=str(reference),
        prompt=pair.prompt,
        seed=pair.noise,
        output=str(scratch / mode),
    )
    if mode == "zero-shot":
        other = transfer(replace(settings, prompt=pair.other_prompt, output=str(scratch / "other")))
        settings = replace(settings, saved_embedding=str(other.folder / "embedding.safetensors"))
    clock, start = StepClock(), time.perf_counter()
    run = transfer(settings, clock)
    seconds = time.perf_counter() - start
    frames = FinishedRun.open(run.folder).clip("result").frames
    found = look(frames).centroids
    right = prompt_match(frames, pair.prompt)
    return Measured(
        displacement_cosine(found, pair.clip.centroids),
        trajectory_correlation(found, pair.clip.centroids),
        (right["colour"] + right["background"]) / 2,
        seconds,
        clock.ends[settings.guided_steps - 1] - clock.began,
    )


def displacement_cosine(found: np.ndarray, true: np.ndarray) -> float:
    """Mean over displacements in SPAN frames of [frames, 2] places; one of which nothing is seen counts 0."""
    found, true = found[SPAN:] - found[:-SPAN], true[SPAN:] - true[:-SPAN]
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(true, axis=1)
    known = lengths > 0  # and not NaN
    cosines = (found[known] * true[known]).sum(axis=1) / lengths[known]
    return float(cosines.sum() / len(true))


def trajectory_correlation(found: np.ndarray, true: np.ndarray) -> float:
    """Pearson's, of both coordinates together, over the frames in which the shape is seen; else 0."""
    seen = ~np.isnan(found).any(axis=1)
    if seen.sum() < 2:
        return 0.0
    found, true = (places[seen] - places[seen].mean(axis=0) for places in (found, true))
    norms = np.linalg.norm(found) * np.linalg.norm(true)
    return float((found * true).sum() / norms) if norms else 0.0


def run_all(pairs: Sequence[Pair], modes: Sequence[str], settings: Settings) -> dict[str, list[Measured]]:
    """Every mode of every pair, a pair after the other."""
    found = {mode: [] for mode in modes}
    for pair in pairs:
        with tempfile.TemporaryDirectory() as scratch:
            for mode in modes:
                found[mode].append(measure(pair, mode, settings, Path(scratch)))
    return found


def summaries(found: dict[str, list[Measured]]) -> dict[str, dict[str, Interval]]:
    """Mean and confidence interval of each number, by mode."""
    return {
        mode: {name: interval([asdict(each)[name] for each in several]) for name in asdict(several[0])}
        for mode, several in found.items()
    }


def as_mapping(found: dict[str, dict[str, Interval]]) -> dict[str, list[dict[str, Any]]]:
    """What JSON may hold of `summaries`."""
    return {
        "modes": [
            {"mode": mode} | {name: asdict(value) for name, value in row.items()}
            for mode, row in found.items()
        ]
    }


def as_table(found: dict[str, dict[str, Interval]]) -> str:
    names = list(next(iter(found.values())))
    lines = [f"| mode | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines.append("| --- " * (len(names) + 1) + "|")
    lines += [f"| {mode} | {' | '.join(map(str, row.values()))} |" for mode, row in found.items()]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="clips, each with a prompt")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--modes", default=",".join(MODES), help="separated by commas")
    parser.add_argument(
        "--model-style", choices=("rope", "sincos"), default="rope", help="as in 5B or as in 2B"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting that all modes have, to see what it does to motion",
    )
    options = parser.parse_args(words)
    modes = options.modes.split(",")
    if options.pairs < 1 or not set(modes) <= MODES.keys():
        parser.error(f"--pairs from 1, --modes of {','.join(MODES)}")

    (model,) = (name for name, style in SMALL_MODELS.items() if style == options.model_style)
    try:
        settings = read_settings(model=model, **dict(change.partition("=")[::2] for change in options.set))
    except SettingsError as error:
        parser.error(str(error))

    quieten_libraries()
    pairs = [Pair.draw(options.seed, index) for index in range(options.pairs)]
    found = summaries(run_all(pairs, modes, settings))
    if options.json:
        asked = {name: getattr(options, name) for name in ("model_style", "pairs", "seed", "set")}
        head = {"kind": "motion", "date": str(date.today()), "commit": commit()} | asked
        print(json.dumps(head | as_mapping(found), indent=2))
    else:
        print(as_table(found))


if __name__ == "__main__":
    main()
