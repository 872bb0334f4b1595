"""Loads the parts of a model; safetensors only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditflow.errors import DitflowError, first_line
from ditflow.models.compute import compute_in
from ditflow.models.experts import expert_stops
from ditflow.models.families import ModelFamily, family_of
from ditflow.models.finding import find_folder
from ditflow.models.gguf_file import check_gguf, load_gguf
from ditflow.models.hub import INDEX, WITHOUT_WEIGHTS
from ditflow.models.kept import KeptParts
from ditflow.models.lora import add_lora, check_fit, split_lora
from ditflow.models.protocols import Autoencoder, Grid, Schedule, TextEncoder, Transformer
from ditflow.models.storage import store_weights
from ditflow.models.tensors import check_tensors, weight_files
from ditflow.models.trust import CONFIGS, check_part, read_json

logger = logging.getLogger(__name__)

LONGEST_REASON = 700  # characters of a library's message
TEXT_PARTS = ("text_encoder", "tokenizer")  # latents do not depend on them, once texts are encoded


class ModelFolder:
    """A pipeline folder. Each phase of a run loads the parts it needs.

    The transformer and the text encoder are loaded into host memory, and the caller places them. If `dtype`
    is the files' precision they are memory-mapped: a block is read from disk when it is first moved or used.

    With `kept`, it takes parts from there if they are the same, and leaves them there for the next run.

    Raises DitflowError if the model cannot be found, downloaded or read.
    """

    def __init__(self, model: str, dtype: str, device: torch.device, kept: KeptParts | None = None):
        self.name, self.device, self.dtype = model, device, getattr(torch, dtype)
        self.kept = kept
        self.path = find_folder(model)
        self.family = _family(model)
        self._checked: dict[str, Hashable] = {}  # by parts: the states in which they passed
        self._tokens: dict[tuple[str, ...], Tensor] = {}  # by prompts

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part."""
        path = self.path / part / CONFIGS.get(part, "config.json")
        with self._reading(part):
            config = read_json(path)
        self.family.config_schema(part).check(path, config)
        return config

    def check(self) -> None:
        """Raises DitflowError for parts that are missing or must not be trusted. Loads no weights."""
        for part in self.family.parts:
            self._check(part)
        parts = [part for part in self.family.parts if part != "tokenizer"]
        self.family.check_configs({part: self.config(part) for part in parts})

    def check_loras(self, loras: Sequence[str]) -> None:
        """Raises DitflowError for a LoRA that does not fit the transformers. Downloads LoRAs of the hub."""
        family = self.family
        for lora in loras:
            for index, expert in enumerate(family.experts):
                network = self._empty(expert.part)
                check_fit(network, lora, self.dtype, family.other_name, family.experts, index)

    def check_weights(self, weights: str) -> None:
        """Raises DitflowError for a GGUF file that does not fit the transformer."""
        if weights.endswith(".gguf"):
            kind, config = self.family.network("transformer"), self.config("transformer")
            check_gguf(Path(weights), kind, config, self.family.other_name)

    def latent_shape(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int, int]:
        """[1, latent frames, channels, height, width] of a clip of `size` (width, height) in pixels."""
        return self.family.latent_shape(frames, size, self.config("vae"))

    def grid(self, frames: int, size: tuple[int, int]) -> Grid:
        """The tokens of a clip of `size` (width, height) in pixels."""
        return self.family.grid(self.latent_shape(frames, size), self.config("transformer"))

    @property
    def depth(self) -> int:
        """The number of transformer blocks."""
        return self.family.depth(self.config("transformer"))

    @property
    def embedding_kind(self) -> str:
        return self.family.embedding_kind(self.config("transformer"))

    def latent_files(self) -> list[Path]:
        """The files that latents depend on. Not the text encoder's, because runs save their encoded texts."""
        return [
            path
            for part in self.family.parts
            if part not in TEXT_PARTS
            for path in sorted((self.path / part).glob("*"))
            if path.suffix in (".json", ".safetensors")
        ]

    def tokenise(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [prompts, length]. Warns once about text that is cut off or unknown.

        Raises SettingsError for a prompt that is wholly unknown.
        """
        key = tuple(prompts)
        if key not in self._tokens:
            tokenizer = self._load("tokenizer")
            config = self.config("transformer")
            with self._reading("tokenizer"):
                self._tokens[key] = self.family.tokenise(tokenizer, prompts, config)
        return self._tokens[key]

    def text_encoder(self) -> TextEncoder:
        """On the host."""
        part = "text_encoder"
        return self._once(part, lambda: self.family.text_encoder(self._load(part, dtype=self.dtype)))

    def autoencoder(self) -> Autoencoder:
        """On the device."""
        network = self._once("vae", lambda: self._load("vae", torch_dtype=self.dtype))
        return self.family.autoencoder(network.to(self.device))

    def encoded(self, clip: Hashable, encode: Callable[[], Tensor]) -> Tensor:
        """What `encode` returns, or the kept latents of an equal `clip` by the same autoencoder."""
        if not self.kept:
            return encode()
        key = clip, self._states("vae"), self.dtype, self.device
        return self.kept.encoded(key, encode).to(self.device)

    def transformer(
        self,
        loras: Sequence[str] = (),
        weights: str = "full",
        attention: str = "sdpa",
        compiled: bool = False,
        attention_forward: str | None = None,
        compute: str = "bf16",
        expert: int = 0,
    ) -> Transformer:
        """On the host; `expert` counts in `ModelFamily.experts`."""
        options = tuple(loras), weights, attention, compiled, attention_forward, compute, expert
        files = [*(split_lora(lora).source for lora in loras), weights]
        part = self.family.experts[expert].part
        return self._once(part, lambda: self._load_transformer(*options), options, files)

    def _load_transformer(
        self,
        loras: Sequence[str],
        weights: str,
        attention: str,
        compiled: bool,
        attention_forward: str | None,
        compute: str,
        expert: int,
    ) -> Transformer:
        family = self.family
        if weights.endswith(".gguf"):
            kind, config = family.network("transformer"), self.config("transformer")
            network = load_gguf(Path(weights), kind, config, self.dtype, family.other_name)
            return family.transformer(network, attention, compiled, attention_forward)
        network = self._load(family.experts[expert].part, torch_dtype=self.dtype)
        for lora in loras:
            add_lora(network, lora, family.other_name, family.experts, expert)
        transformer = family.transformer(network, attention, compiled, attention_forward)
        compute_in(compute, transformer.blocks, family.packed_parts, self.device)
        store_weights(transformer.blocks, family.packed_parts, weights, self.device)
        return transformer

    def schedule(
        self, kind: str, steps: int, size: tuple[int, int], generator: torch.Generator, skipped: int = 0
    ) -> Schedule:
        """A new schedule, on the device, for videos of a size (width, height) in pixels.

        `skipped`: how many of the steps are left out, from the first.
        """
        config = self.config("scheduler")
        return self.family.schedule(kind, config, steps, size, self.device, generator, skipped)

    def expert_stops(self, schedule: Schedule) -> list[int]:
        """For each expert, the number of steps done when its own are done."""
        trained = self.config("scheduler").get("num_train_timesteps", 1000)
        return expert_stops(self.family.experts, schedule.timesteps, trained)

    def _check(self, part: str) -> None:
        """Check a part's files, unless that has been done and they are the same."""
        folder, state = self.path / part, self._states(part)
        if self._checked.get(part) == state:
            return
        with self._reading(part):
            check_part(folder, self.family.classes.get(part))
            if part != "tokenizer" or (folder / CONFIGS[part]).exists():
                self.config(part)
            if part == "tokenizer":
                self.family.check_tokenizer(folder, self.config("text_encoder"))
            if part not in WITHOUT_WEIGHTS:
                check_tensors(self._empty(part), weight_files(folder))
        self._checked[part] = state

    def _empty(self, part: str) -> nn.Module:
        """A part's network without weights."""
        config = self.config(part)
        with torch.device("meta"):
            if part == "text_encoder":
                return self.family.empty_text_encoder(config, torch.float32)
            return self.family.network(part).from_config(config)

    def send_home(self) -> None:
        """Take the parts that are kept off the device."""
        if self.kept:
            self.kept.send_home()

    def _once(
        self, part: str, load: Callable[[], Any], options: Hashable = (), files: Sequence[str] = ()
    ) -> Any:
        """What `load` returns, from the kept parts if the options and all files are the same."""
        if not self.kept:
            return load()
        key = self._states(part, files), self.dtype, self.device, options
        return self.kept.get(part, key, load)

    def _states(self, part: str, files: Sequence[str] = ()) -> Hashable:
        """What changes with the content of a part's folder and of other files."""
        paths = [*sorted((self.path / part).glob("*")), *(Path(file) for file in files)]
        return tuple((str(path), _state(path)) for path in paths)

    def _load(self, part: str, **options: Any) -> Any:
        self._check(part)
        if part != "tokenizer":
            options["use_safetensors"] = True
        options |= self.family.load_options(part)
        with self._reading(part):
            kind = self.family.network(part)
            return kind.from_pretrained(self.path / part, local_files_only=True, **options)

    @contextmanager
    def _reading(self, part: str) -> Iterator[None]:
        """Name the model and the part in errors."""
        try:
            yield
        except (DitflowError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # for wrong configs and weights the libraries raise many types of error
            raise self._damaged(part, error) from None

    def _damaged(self, part: str, error: Exception) -> DitflowError:
        reason = first_line(error)
        reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
        return DitflowError(f"{self.name}: {part}/ cannot be loaded from {self.path}: {reason}")


def _state(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content: its size and time of modification; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _family(model: str) -> ModelFamily:
    family = family_of(model, download=True)
    if family is None:
        raise DitflowError(f"model {model}: its {INDEX} cannot be read; give a complete pipeline folder")
    return family
