"""The stages of the wind tunnel, cheapest first: what each runs for a pair, and its default modes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from bench.motion import Pair, colours_right
from bench.paths import displacement_cosine, path_error, reach
from bench.tunnel.directed import Directed, at_strength, drawn, masked, panned
from bench.tunnel.modes import Mode
from bench.tunnel.runs import Session, nudged, session
from ditflow.settings import Settings, read_settings
from ditflow.small.sight import look

EXACT, CONTROL = "exact", "control"

Numbers = dict[str, float]  # by measure
Found = dict[str, Numbers]  # by mode, EXACT and CONTROL among them


@dataclass(frozen=True)
class Stage:
    """A task of every pair, and how many pairs see what it is for."""

    about: str
    settings: Mapping[str, Any]  # beside the model's own
    pairs: int
    measure: Callable[[Pair, Settings, Sequence[Mode], Path], Found]
    modes: tuple[str, ...]  # of the committed tables
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    draw: Callable[[int, int, int], Any] = Pair.draw  # a pair of a seed, an index and a number of frames

    @property
    def judged(self) -> bool:
        """Whether its modes are approximations, whose results can be as good as exact's or worse."""
        return self.measure not in (gradients, directed)

    def base(self, variant: str) -> Settings:
        return read_settings(**self.settings, **self.variants[variant])


def gradients(pair: Pair, settings: Settings, modes: Sequence[Mode], scratch: Path) -> Found:
    """The latents' displacement in the first, the middle and the last guided step, from exact's states."""
    last = settings.guided_steps - 1
    steps = sorted({0, last // 2, last})
    with session(pair.settings(settings, scratch)) as exact:
        part = exact.run(end=last + 1)
        before = {index: part.states[index - 1] for index in steps}
        expected = {index: part.optimised[index] - before[index].latents for index in steps}

        def compared(tried: Session, before: Mapping) -> Numbers:
            means = {"cosine": 0.0, "displacement": 0.0, "distance": 0.0}
            for index, state in before.items():
                found = tried.run(state, end=index + 1).optimised[index] - state.latents
                for name, value in compare_displacements(found, expected[index]).items():
                    means[name] += value / len(before)
            return means

        found = {EXACT: compared(exact, before)}
        found[CONTROL] = compared(
            exact, {index: nudged(state, pair.noise) for index, state in before.items()}
        )
    for mode in modes:
        with session(mode.apply(pair.settings(settings, scratch))) as tried:
            found[mode.name] = compared(tried, before)
    return found


def compare_displacements(found: Tensor, exact: Tensor) -> Numbers:
    length = exact.norm()
    return {
        "cosine": float(cosine_similarity(found.flatten(), exact.flatten(), dim=0)),
        "displacement": float(found.norm() / length),
        "distance": float((found - exact).norm() / length),
    }


def unguided(pair: Pair, settings: Settings, modes: Sequence[Mode], scratch: Path) -> Found:
    """Results of modes that take over from exact after the guided steps."""
    return results(pair, settings, modes, scratch, settings.guided_steps)


def whole(pair: Pair, settings: Settings, modes: Sequence[Mode], scratch: Path) -> Found:
    """Results of whole runs in each mode, from the same noise."""
    return results(pair, settings, modes, scratch, 0)


def results(pair: Pair, settings: Settings, modes: Sequence[Mode], scratch: Path, first: int) -> Found:
    """Results of modes that continue from the state of exact before step `first`."""
    with session(pair.settings(settings, scratch)) as exact:
        part = exact.run()
        stored, latents = part.states[first - 1], part.latents

        def result(tried: Session, made: Tensor) -> Numbers:
            distance = float((made - latents).norm() / latents.norm())
            return outcome(pair, tried, made) | {"latents": distance}

        found = {EXACT: outcome(pair, exact, latents) | {"latents": 0.0}}
        found[CONTROL] = result(exact, exact.run_nudged(stored).latents)
    for mode in modes:
        with session(mode.apply(pair.settings(settings, scratch))) as tried:
            found[mode.name] = result(tried, tried.run(stored).latents)
    return found


def outcome(pair: Pair, tried: Session, latents: Tensor) -> Numbers:
    """What is measured of a result."""
    frames = tried.frames(latents)
    path, true = look(frames).centroids, pair.clip.centroids
    return {
        "path_fidelity": displacement_cosine(path, true),
        "path_error": path_error(path, true),
        "reach": reach(path, true),
        "prompt_match": colours_right(frames, pair.prompt),
    }


def directed(pair: Directed, settings: Settings, modes: Sequence[Mode], scratch: Path) -> Found:
    """Results of whole runs, measured against the motion that their settings choose."""
    settings = pair.settings(settings, scratch)
    found = {}
    for name, changed in {EXACT: settings, **{mode.name: mode.apply(settings) for mode in modes}}.items():
        with session(changed) as tried:
            found[name] = pair.outcome(tried.frames(tried.run().latents))
    return found


LONG = {"steps": 50, "guided": 0.2}
LESS_NEGATIVE = "negative=alternate,negative_below=1.5,attention_forward=auto"
BOTH = {name: {"model": name} for name in ("small", "small-sincos")}
SHORT = {"steps": 16, "guided": 6 / 16}

STAGES = {
    "gradients": Stage(
        "three guided steps of 10, 50 steps in all, `small`",
        LONG | {"model": "small"},
        2,
        gradients,
        (
            *("no-op", "gradients=2", "gradients=1", "half-temperature", "reference=soft"),
            *("dtype=bfloat16", "dtype=float16", "weights=int8", "weights=nf4"),
            *("compute=int8", "compute=int8-forward"),
        ),
    ),
    "unguided": Stage(
        "the 40 steps that follow 10 guided steps of exact",
        LONG,
        6,
        unguided,
        (
            *("dtype=bfloat16", "weights=int8", "weights=nf4", "compute=int8"),
            *(
                "negative=alternate",
                "negative_below=1.5",
                "step_cache=0.18",
                "step_cache=0.18,negative=alternate",
            ),
            *(LESS_NEGATIVE, "faster", "guidance_scale=1"),
        ),
        BOTH,
    ),
    "negative": Stage(
        "fewer passes for the negative prompt in the 40 steps that follow 10 guided steps of exact",
        LONG,
        24,
        unguided,
        ("negative=alternate", "negative_below=1.5", LESS_NEGATIVE),
        BOTH,
    ),
    "speeds": Stage(
        "whole runs of 50 steps, 10 of them guided",
        LONG,
        6,
        whole,
        (LESS_NEGATIVE, "faster", "compute=int8", "loss=x0", "x0_after=0.5", "backbone"),
        BOTH,
    ),
    "guided": Stage(
        "whole runs of 16 steps, 6 of them guided, `small-sincos`",
        SHORT | {"model": "small-sincos"},
        8,
        whole,
        ("gradients=2", "gradients=1", "half-temperature", "reference=soft", "dtype=bfloat16", "backbone"),
    ),
    "guided-small": Stage(
        "whole runs of 16 steps, 6 of them guided, `small`",
        SHORT | {"model": "small"},
        18,
        whole,
        ("gradients=2", "gradients=1"),
    ),
    "wan": Stage(
        "whole runs with the settings of `small-wan`",
        {"model": "small-wan"},
        12,
        whole,
        ("loss=x0", "loss=moft", "loss=smm", "optimise=embedding", "fast", "backbone"),
    ),
    "rates": Stage(
        "whole runs of 50 steps, 10 of them guided, at small learning rates, `small`",
        LONG | {"model": "small"},
        12,
        whole,
        ("gradients=2", "gradients=1", "backbone"),
        {
            "learning rate 0.006": {"learning_rate": (0.006, 0.003)},
            "learning rate 0.002, as 5B's": {"learning_rate": (0.002, 0.001)},
        },
    ),
    "directed-drawn": Stage(
        "whole runs that follow a drawn path and no clip, at a learning rate of 0.02",
        {"learning_rate": (0.02, 0.02)},  # at 0.03, the ground changes its colour with `small` (LOG.md)
        12,
        directed,
        ("backbone",),
        BOTH,
        drawn,
    ),
    "directed-scale": Stage(
        "whole runs that follow a clip's motion, weaker and stronger, at a learning rate of 0.02",
        {"learning_rate": (0.02, 0.02)},
        12,
        directed,
        ("motion_scale=0.5", "motion_scale=2", "backbone"),
        BOTH,
        at_strength,
    ),
    "directed-mask": Stage(
        "whole runs that follow one of two objects, by a mask",
        {},
        12,
        directed,
        ("backbone",),
        BOTH,
        masked,
    ),
    "directed-camera": Stage(
        "whole runs that follow the camera of a clip whose ground pans",
        {"transfer": "camera"},
        4,
        directed,
        ("backbone",),
        BOTH,
        panned,
    ),
}
