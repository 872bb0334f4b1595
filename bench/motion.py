"""Does the motion transfer? Made clips whose motion is known, through the small model in every mode.

A pair is a made clip and a prompt in the small model's words, both drawn from the seed. All modes of a pair
start from the same noise. The result's shape is found by its colour, and its path is compared with the clip's
true one. "zero-shot" uses the embedding that was optimised for another prompt, without that run's time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from bench.harness import commit
from bench.paths import displacement_cosine, trajectory_correlation
from bench.tables import markdown
from ditflow import transfer, video
from ditflow.errors import SettingsError
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.intervals import Interval, interval
from ditflow.evaluation.made_shapes import prompt_match
from ditflow.progress import Preview, Progress, quieten_libraries
from ditflow.settings import Settings, read_settings
from ditflow.small import SMALL_MODELS
from ditflow.small.clips import FRAME_RATE, MadeClip, made_clip
from ditflow.small.sight import look
from ditflow.small.vocabulary import COLOURS, SHAPES, caption

MODES = {  # name: changes to the small model's settings
    "backbone": {"guidance": False, "injection": False},
    "injection": {"guidance": False, "injection": True},
    "flow": {},
    "flow-embedding": {"optimise": "embedding"},
    "moft": {"loss": "moft"},
    "smm": {"loss": "smm"},
    "zero-shot": {"optimise": "embedding"},  # for another prompt, then injected
}
FAR = 24  # pixels, three tokens: shapes of drawn clips move this far along an axis at least

Summaries = dict[str, dict[str, Interval]]  # by mode and number


@dataclass(frozen=True)
class Pair:
    """A clip, a prompt to go with its motion, another prompt, and the seed of the noise."""

    clip: MadeClip
    prompt: str
    other_prompt: str
    noise: int

    @classmethod
    def draw(cls, seed: int, index: int, frames: int = 24) -> "Pair":
        generator = np.random.default_rng((seed, index))
        while True:
            clip_seed, noise = (int(number) for number in generator.integers(2**31, size=2))
            clip = made_clip(clip_seed, frames=frames)
            if np.ptp(clip.centroids, axis=0).max() >= FAR:
                return cls(clip, random_prompt(generator), random_prompt(generator), noise)

    def settings(self, common: Settings, scratch: Path) -> Settings:
        """The settings of the pair's runs in `scratch`. The clip is written there, unless it is there."""
        path = scratch / "clip.mp4"
        if not path.exists():
            video.write_clip(video.Clip(self.clip.frames, FRAME_RATE), path)
        given = {"video": str(path), "prompt": self.prompt, "seed": self.noise}
        return replace(common, **given, output=str(scratch / "run"))


def random_prompt(generator: np.random.Generator) -> str:
    colour, background = generator.choice(list(COLOURS), size=2, replace=False)
    return caption(str(colour), str(generator.choice(SHAPES)), str(background))


@dataclass(frozen=True)
class Measured:
    """The result of one mode for one pair."""

    path_fidelity: float  # `displacement_cosine` of the shape's path
    trajectory_correlation: float
    prompt_match: float  # share of colours (shape, background) that are the prompt's
    seconds: float
    seconds_guided: float  # from the start of denoising to the end of its guided steps


class StepClock(Progress):
    """When denoising began, and when each of its steps ended."""

    def phase(self, name: str, steps: int = 0, work: Sequence[float] = ()) -> None:
        if name == "denoise":
            self.began, self.ends = time.perf_counter(), []

    def step(self, loss: float | None = None, preview: Preview | None = None) -> None:
        self.ends.append(time.perf_counter())


def measure(pair: Pair, mode: str, settings: Settings, scratch: Path) -> Measured:
    """Run a mode of a pair. `settings` are the same for all modes; run folders stay in `scratch`."""
    settings = replace(pair.settings(settings, scratch), **MODES[mode], output=str(scratch / mode))
    if mode == "zero-shot":
        other = transfer(replace(settings, prompt=pair.other_prompt, output=str(scratch / "other")))
        settings = replace(settings, saved_embedding=str(other.folder / "embedding.safetensors"))
    clock, start = StepClock(), time.perf_counter()
    run = transfer(settings, clock)
    seconds = time.perf_counter() - start
    frames = FinishedRun.open(run.folder).clip("result").frames
    found = look(frames).centroids
    return Measured(
        displacement_cosine(found, pair.clip.centroids),
        trajectory_correlation(found, pair.clip.centroids),
        colours_right(frames, pair.prompt),
        seconds,
        clock.ends[settings.guided_steps - 1] - clock.began,
    )


def colours_right(frames: np.ndarray, prompt: str) -> float:
    """The share of the two colours, of the shape and of the background, that are the prompt's."""
    found = prompt_match(frames, prompt)
    return (found["colour"] + found["background"]) / 2


def run_all(pairs: Sequence[Pair], modes: Sequence[str], settings: Settings) -> Summaries:
    """Mean and confidence interval of each number over all pairs, by mode."""
    found = {mode: [] for mode in modes}
    for pair in pairs:
        with tempfile.TemporaryDirectory() as scratch:
            for mode in modes:
                found[mode].append(asdict(measure(pair, mode, settings, Path(scratch))))
    return {
        mode: {name: interval([row[name] for row in rows]) for name in rows[0]}
        for mode, rows in found.items()
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="clips, each with a prompt")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--modes", default=",".join(MODES), help="separated by commas")
    parser.add_argument(
        "--model-style", choices=SMALL_MODELS.values(), default="rope", help="as in 5B, 2B or Wan"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    changes = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--set", **changes, help="a setting for all modes, to see its effect on motion")
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
    found = run_all([Pair.draw(options.seed, index) for index in range(options.pairs)], modes, settings)
    if options.json:
        asked = {name: getattr(options, name) for name in ("model_style", "pairs", "seed", "set")}
        rows = [
            {"mode": mode} | {name: asdict(value) for name, value in row.items()}
            for mode, row in found.items()
        ]
        head = {"kind": "motion", "date": str(date.today()), "commit": commit()}
        print(json.dumps(head | asked | {"modes": rows}, indent=2))
    else:
        names = [name.replace("_", " ") for name in found[modes[0]]]
        print(markdown(["mode", *names], [[mode, *row.values()] for mode, row in found.items()]))


if __name__ == "__main__":
    main()
