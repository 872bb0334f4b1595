"""Pairs whose motion is chosen: drawn, a clip's at another strength, that of one object, or the camera's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.ground import ground_motion
from bench.motion import colours_right, random_prompt
from bench.paths import displacement_cosine, growth, path_error, reach
from ditflow.settings import Settings
from ditflow.small import scenes
from ditflow.small.clips import FRAME_RATE
from ditflow.small.sight import look
from ditflow.video import Clip, write_clip

Numbers = dict[str, float]  # by measure
Written = Mapping[str, str]  # by setting, the path of a file


@dataclass(frozen=True)
class Directed:
    """A motion to follow, a prompt to go with it, and the seed of the noise."""

    prompt: str
    noise: int
    write: Callable[[Path], Written]  # the files of the motion, in a folder
    measure: Callable[[np.ndarray], Numbers]  # of a result, uint8 [frames, height, width, 3]

    def settings(self, common: Settings, scratch: Path) -> Settings:
        """The settings of the pair's runs in `scratch`, where it writes its files."""
        given = {"prompt": self.prompt, "seed": self.noise, "output": str(scratch / "run")}
        return replace(common, **self.write(scratch), **given)

    def outcome(self, frames: np.ndarray) -> Numbers:
        return self.measure(frames) | {"prompt_match": colours_right(frames, self.prompt)}


def drawn(seed: int, index: int, frames: int) -> Directed:
    """A drawn path and no clip: lines, arcs, bounces and zooms in turn."""
    prompt, noise, scene_seed = _draw(seed, index)
    path = scenes.DRAWN_PATHS[index % len(scenes.DRAWN_PATHS)]
    figure = scenes.drawn_figure(scene_seed, path, frames=frames)

    def write(scratch: Path) -> Written:
        file = scratch / "motion.yaml"
        file.write_text(scenes.motion_text(figure), encoding="utf-8")
        return {"motion": str(file)}

    def measure(result: np.ndarray) -> Numbers:
        sight, (height, width) = look(result), result.shape[1:3]
        true = figure.center * (width, height) - 0.5
        grown = growth(sight.coverage.sum(axis=(1, 2)))
        return {
            "path_fidelity": displacement_cosine(sight.centroids, true),
            "path_error": path_error(sight.centroids, true),
            "reach": reach(sight.centroids, true),
            "growth_error": abs(grown - growth(figure.size.prod(axis=1))),
        }

    return Directed(prompt, noise, write, measure)


def at_strength(seed: int, index: int, frames: int) -> Directed:
    """A clip of an object that moves so little that twice as far is inside the frame."""
    prompt, noise, scene_seed = _draw(seed, index)
    scene = scenes.short_line(scene_seed, frames=frames)
    (true,) = scene.centroids

    def measure(result: np.ndarray) -> Numbers:
        path = look(result).centroids
        return {"path_fidelity": displacement_cosine(path, true), "reach": reach(path, true)}

    return Directed(prompt, noise, lambda scratch: _write_clip(scene, scratch), measure)


def masked(seed: int, index: int, frames: int) -> Directed:
    """A clip of two objects and a mask of one: in turn of the one that goes across and the other one."""
    prompt, noise, scene_seed = _draw(seed, index)
    scene, counted = scenes.two_objects(scene_seed, frames=frames), index % 2

    def write(scratch: Path) -> Written:
        mask, white = scratch / "mask", np.uint8(255) * scene.masks[counted]
        if not mask.exists():
            write_clip(Clip(np.repeat(white[..., None], 3, axis=-1), FRAME_RATE), mask)
        return {**_write_clip(scene, scratch), "mask": str(mask)}

    def measure(result: np.ndarray) -> Numbers:
        path, true, other = look(result).centroids, scene.centroids[counted], scene.centroids[1 - counted]
        return {
            "masked_fidelity": displacement_cosine(path, true),
            "other_fidelity": displacement_cosine(path, other),
            "reach": reach(path, true),
        }

    return Directed(prompt, noise, write, measure)


def panned(seed: int, index: int, frames: int) -> Directed:
    """A clip whose ground pans, with an object that goes its own way."""
    prompt, noise, scene_seed = _draw(seed, index)
    scene = scenes.panned(scene_seed, frames=frames)

    def measure(result: np.ndarray) -> Numbers:
        found = ground_motion(result, scene.ground)
        carried = displacement_cosine(look(result).centroids, scene.ground)
        return {"ground_reach": found.reach, "ground_seen": found.share, "object_fidelity": carried}

    return Directed(prompt, noise, lambda scratch: _write_clip(scene, scratch), measure)


def _draw(seed: int, index: int) -> tuple[str, int, int]:
    """A prompt, the seed of the noise and that of the scene."""
    generator = np.random.default_rng((seed, index))
    scene, noise = (int(number) for number in generator.integers(2**31, size=2))
    return random_prompt(generator), noise, scene


def _write_clip(scene: scenes.MadeScene, scratch: Path) -> Written:
    path = scratch / "clip.mp4"
    if not path.exists():
        write_clip(Clip(scene.frames, FRAME_RATE), path)
    return {"video": str(path)}
