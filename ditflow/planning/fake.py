"""Models of real size on fake tensors, without weights, on which the real code is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ditflow.models.compute import compute_in
from ditflow.models.experts import expert_stops
from ditflow.models.families import ModelFamily, family_of, known_model
from ditflow.models.finding import find_folder
from ditflow.models.gguf_file import load_gguf
from ditflow.models.loading import ModelFolder
from ditflow.models.precision import as_loaded
from ditflow.models.protocols import Autoencoder, Grid, Inputs, TextEncoder, Transformer
from ditflow.models.storage import store_weights
from ditflow.sampling.loop import Scale
from ditflow.settings import Settings


class FakeModel:
    """The model that the settings name; use it under `fake_tensors`.

    Raises DitflowError if no local file tells the model's shape.
    """

    def __init__(self, settings: Settings):
        self.settings, self.dtype = settings, getattr(torch, settings.dtype)
        facts = known_model(settings.model)
        if facts and "transformer" in facts:  # the shapes of published models are in `configs/models/`
            self.configs: dict[str, Any] = facts
        else:
            folder = ModelFolder(
                str(find_folder(settings.model, download=False)), settings.dtype, torch.device("cpu")
            )
            self.configs = {
                part: folder.config(part) for part in ("transformer", "vae", "text_encoder", "scheduler")
            }
        self.family: ModelFamily = family_of(settings.model)

    def transformer(self) -> Transformer:
        """The one that takes the most memory, if there are several."""
        settings, family = self.settings, self.family
        kind, config = family.network("transformer"), self.configs["transformer"]
        weights = max(settings.weight_kinds, key=_file_bytes)
        if weights.endswith(".gguf"):
            network = load_gguf(Path(weights), kind, config, self.dtype, family.other_name)
            return family.transformer(network, "sdpa", False)
        with _default_dtype(self.dtype):
            transformer = family.transformer(as_loaded(kind.from_config(config)), "sdpa", False)
        compute_in(settings.compute, transformer.blocks, family.packed_parts, torch.device("cpu"))
        store_weights(transformer.blocks, family.packed_parts, weights, torch.device("cpu"))
        return transformer

    def text_encoder(self) -> TextEncoder:
        with _default_dtype(self.dtype):
            network = self.family.empty_text_encoder(self.configs["text_encoder"], self.dtype)
        return self.family.text_encoder(network)

    def autoencoder(self) -> Autoencoder:
        with _default_dtype(self.dtype):
            network = self.family.network("vae").from_config(self.configs["vae"])
        return self.family.autoencoder(network)

    def guidance_scales(self, settings: Settings) -> list[list[float]]:
        """For each expert, the guidance scales of its steps in a run with these settings."""
        config, device = self.configs["scheduler"], torch.device("cpu")
        kind, steps, skipped = settings.scheduler, settings.steps, settings.skipped_steps
        schedule = self.family.schedule(
            kind, config, steps, settings.size, device, torch.Generator(), skipped
        )
        trained = config.get("num_train_timesteps", 1000)
        stops = expert_stops(self.family.experts, schedule.timesteps, trained)
        return [
            [Scale(settings.scale_of(expert), settings.dynamic_scale).at(schedule, index) for index in steps]
            for expert, steps in enumerate(map(range, [0, *stops], stops))
        ]

    def grid(self) -> Grid:
        """The tokens of the settings' video."""
        settings, configs = self.settings, self.configs
        shape = self.family.latent_shape(settings.frames, settings.size, configs["vae"])
        return self.family.grid(shape, configs["transformer"])

    def pixels(self) -> torch.Tensor:
        """A clip with unset pixels, uint8 [frames, height, width, 3]."""
        size = self.settings.size
        return torch.empty(self.settings.frames, size.height, size.width, 3, dtype=torch.uint8)

    def inputs(self, transformer: Transformer) -> Inputs:
        """The inputs of one forward, with unset values."""
        settings, family = self.settings, self.family
        latents = torch.empty(family.latent_shape(settings.frames, settings.size, self.configs["vae"]))
        tokens, channels = family.prompt_shape(transformer.network.config)
        prompt = torch.empty(1, tokens, channels, dtype=transformer.dtype)
        embedding = transformer.embedding(transformer.grid(latents))
        timestep = torch.empty(1, dtype=transformer.timestep_dtype)
        return Inputs(latents, prompt, timestep, embedding)


class FakeSchedule:
    """Stands in for a schedule, whose timesteps cannot be read from fake tensors: only sizes matter here."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return latents + noise

    def estimate_clean(
        self, prediction: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        return latents - prediction


def _file_bytes(weights: str) -> int:
    return Path(weights).stat().st_size if weights.endswith(".gguf") else 0


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make networks in this precision, because fake ones cannot be converted."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
