"""All settings of a run. The command line, YAML files and run folders read and write `Settings`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ditflow.files import shipped
from ditflow.models.experts import EXPERT_NAMES, split_expert
from ditflow.models.families import family_of, published_settings
from ditflow.settings.checks import check_family, check_together
from ditflow.settings.options import Options
from ditflow.settings.speed import speed_settings
from ditflow.settings.values import plain, read_value

UNCHANGED = {  # settings with which the clip's motion is transferred as it is
    "mask": "",
    "mask_invert": False,
    "transfer": "all",
    "camera_from": "",
    "motion_scale": 1.0,
    "flip": "none",
    "reverse_motion": False,
    "motion_shift": (0.0, 0.0),
}


@dataclass(frozen=True)
class Settings(Options):
    """The settings of one run. Fields left out take the model's value from `configs/`.

    Raises SettingsError for an unknown or impossible value.
    """

    def __post_init__(self) -> None:
        kinds, base = get_type_hints(type(self)), {}
        items = {item.name: item for item in fields(self)}
        if any(getattr(self, name) is None for name in items):
            chosen = {name: shipped("defaults.yaml")[name] for name in ("model", "speed")}
            chosen |= {name: getattr(self, name) for name in chosen if getattr(self, name) is not None}
            base = model_settings(*(read_value(items[name], str, value) for name, value in chosen.items()))
        for item in items.values():
            given = getattr(self, item.name)
            value = read_value(item, kinds[item.name], base[item.name] if given is None else given)
            object.__setattr__(self, item.name, value)
        if not self.has_clip:
            object.__setattr__(self, "injection", False)  # there is nothing to inject
        check_together(self)
        if family := family_of(self.model):  # None if a finished run's model is no longer on this machine
            check_family(self, family)

    @property
    def has_clip(self) -> bool:
        """Whether there is a clip; without one, a drawn motion stands alone."""
        return bool(self.video or not self.motion)

    @property
    def source_name(self) -> str:
        """The name of the clip, or of the drawn motion if there is no clip, without its suffix."""
        return Path(self.video or self.motion).stem

    @property
    def masked_by(self) -> str:
        """The mask: a file, `auto`, or nothing."""
        return self.mask or ("auto" if self.transfer == "object" else "")

    @property
    def changes_clip_motion(self) -> list[str]:
        """The settings given that change what is asked of the clip's motion."""
        return [name for name, value in UNCHANGED.items() if getattr(self, name) != value]

    @property
    def chosen_by(self) -> list[str]:
        """The settings given that choose the motion that guidance asks for."""
        return [*self.changes_clip_motion, *(["motion"] if self.motion else [])]

    @property
    def chooses_motion(self) -> bool:
        """Whether guidance asks for anything but the clip's whole motion as it is."""
        return bool(self.chosen_by)

    @property
    def counted_rows(self) -> str:
        """The rows of the flow loss that count; where motion is chosen, those that it is asked of."""
        return "given" if self.chooses_motion else self.rows

    @property
    def clip_rate(self) -> Fraction | None:
        """Frames a second to resample the clip to; None: the clip's own mean."""
        return None if self.fps == "auto" else Fraction(self.fps)

    @property
    def starts_from_clip(self) -> bool:
        """Whether the first step starts from the clip's noised latents instead of from noise."""
        return self.initial_latents != "noise"

    @property
    def steps_made(self) -> int:
        """How many of the denoising steps are made: the last ones. All other counts are of these."""
        _, _, strength = self.initial_latents.partition(":")
        return int(self.steps * float(strength or 1))  # rounded as diffusers does

    @property
    def skipped_steps(self) -> int:
        """How many of the denoising steps are left out, from the first."""
        return self.steps - self.steps_made

    @property
    def guided_steps(self) -> int:
        """How many of the first steps made are guided or injected; at least one if `guided` is not 0."""
        return max(1, round(self.guided * self.steps_made)) if self.guided else 0

    @property
    def updates(self) -> int:
        """Updates in each guided step."""
        return self.gradients or self.optimisation_steps

    @property
    def update_rate(self) -> tuple[float, float]:
        """The learning rate of these updates: with fewer of them higher, so that the total stays."""
        high, low = self.learning_rate
        factor = self.optimisation_steps / self.updates
        return high * factor, low * factor

    @property
    def computed_gradients(self) -> int:
        """Forwards with gradient in each of `gradient_steps`."""
        return math.ceil(self.updates / self.gradient_reuse)

    def scale_of(self, expert: int) -> float:
        """The guidance scale of the steps of an expert, counted in `ModelFamily.experts`."""
        return self.guidance_scale[expert] if len(self.guidance_scale) > 1 else self.guidance_scale[0]

    def weights_of(self, expert: int) -> str:
        """How the weights of an expert are stored: full, fp8, int8, nf4 or the path of a GGUF file."""
        named = dict(map(split_expert, self.weights))
        return named.get("") or named[EXPERT_NAMES[expert]]

    @property
    def weight_kinds(self) -> list[str]:
        """What `weights_of` says of all experts."""
        return [kind for _, kind in map(split_expert, self.weights)]

    @property
    def attention_without_gradient(self) -> str:
        """The attention kernel of forwards without gradient; still `auto` before a run has decided."""
        return self.attention if self.attention_forward == "same" else self.attention_forward

    @property
    def optimises(self) -> bool:
        """Whether any step optimises the latents or the embedding."""
        return bool(self.guidance and self.guided_steps and not self.saved_embedding)

    @property
    def gradient_steps(self) -> int:
        """How many of the guided steps, from the first, need gradients through the transformer."""
        if not self.optimises or self.loss == "x0":
            return 0
        return max(1, round(self.x0_after * self.guided_steps))

    @property
    def estimate_steps(self) -> int:
        """How many of the guided steps, after those, have the loss `x0`, which needs no such gradient."""
        return self.guided_steps - self.gradient_steps if self.optimises else 0

    def loss_in(self, step: int) -> str | None:
        """The loss in a denoising step (from 0); None if nothing is optimised in it."""
        if not self.optimises or step >= self.guided_steps:
            return None
        return self.loss if step < self.gradient_steps else "x0"

    @property
    def needs_gradient(self) -> bool:
        """Whether any step needs a gradient through the transformer."""
        return self.gradient_steps > 0

    @property
    def reuses(self) -> bool:
        """Whether steps after the guided ones may do less than one pass for each prompt."""
        return self.reuses_negative or self.step_threshold is not None

    @property
    def reuses_negative(self) -> bool:
        """Whether some of those steps may run no pass for the negative prompt."""
        return self.negative != "every" or self.negative_below > 1

    @property
    def step_threshold(self) -> float | None:
        """The change of the first block's mark below which a step reuses the other blocks; None: never."""
        return None if self.step_cache == "off" else float(self.step_cache)

    def to_yaml(self) -> str:
        """The settings as YAML, from which `read_settings` makes an equal object."""
        values = {item.name: plain(getattr(self, item.name)) for item in fields(self)}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def model_settings(model: str, speed: str) -> dict[str, Any]:
    """All settings with a model's published values. Raises SettingsError for an unknown model."""
    chosen = {"model": model, "speed": speed}
    return shipped("defaults.yaml") | chosen | speed_settings(speed) | published_settings(model)
