"""The registry of model families, and how to find the family of a model.

To add a family, add a folder in `ditflow/models/`, a row in `FAMILIES`, and a file in `configs/models/` for
each of its published models. Importing this module does not import torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ditflow.errors import SettingsError
from ditflow.files import PACKAGE, shipped, shipped_names
from ditflow.limits import SETTINGS_BYTES
from ditflow.models.cogvideox.family import CogVideoXFamily
from ditflow.models.experts import Expert
from ditflow.models.hub import INDEX, is_hub_id
from ditflow.models.wan.family import WanFamily
from ditflow.schema import Schema, Text

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ditflow.models.protocols import Autoencoder, Grid, Schedule, TextEncoder, Transformer

INDEX_SCHEMA = Schema({"_class_name": Text()}, required=("_class_name",))


class ModelFamily(Protocol):
    """What the program needs to know about a family. Methods that need torch import it when called."""

    pipeline: str  # `_class_name` in model_index.json
    relatives: Mapping[str, str]  # pipeline classes that are refused: what they are for
    parts: tuple[str, ...]  # folders of a pipeline
    experts: tuple[Expert, ...]  # the transformers that share a run's steps, in the order of the steps
    classes: Mapping[str, str]  # part: the `_class_name` that its config must have
    packed_parts: tuple[str, ...]  # modules of a block whose linear layers `--weights` quantises

    schedulers: tuple[str, ...]  # values of `--scheduler`
    tiles: tuple[str, ...]  # for VAE decoding, WIDTHxHEIGHT in pixels, the largest first; at least one
    size_multiple: int  # pixels; width and height must be multiples of it
    least_frames: int
    frame_rate: int  # frames per second, for a source that does not state its rate
    has_dynamic_scale: bool  # whether `--dynamic-scale` is accepted
    takes_lora: bool  # whether `--lora` is accepted

    def variant(self, index: Mapping[str, Any]) -> ModelFamily:
        """The family as a model with this `model_index.json` needs it.

        Raises SettingsError for a kind of model that cannot be run.
        """

    def defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The published settings of a model with this transformer configuration."""

    def latent_spans(self, frames: int) -> list[range]:
        """The encoded frames that each latent frame covers; they may be more than `frames`."""

    def latent_shape(
        self, frames: int, size: tuple[int, int], vae: Mapping[str, Any]
    ) -> tuple[int, int, int, int, int]:
        """[1, latent frames, channels, height, width] of a clip of `size` (width, height) in pixels.

        Raises SettingsError for a size that a model with this autoencoder cannot make.
        """

    def grid(self, latent_shape: Sequence[int], config: Mapping[str, Any]) -> Grid:
        """The tokens of such latents, of `latent_shape`; `config` is the transformer's."""

    def prompt_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """(text tokens, text channels) of an encoded prompt."""

    def depth(self, config: Mapping[str, Any]) -> int:
        """The number of transformer blocks."""

    def embedding_kind(self, config: Mapping[str, Any]) -> Literal["rotary", "additive"]:
        """The kind of positional embedding (see `Inputs.embedding`)."""

    def config_schema(self, part: str) -> Schema:
        """What a part's configuration file may hold, with limits on all that memory and time depend on.

        `index`: what `variant` reads of model_index.json.
        """

    def check_configs(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises DitflowError if the parts, by name with their configurations, do not fit each other."""

    def check_tokenizer(self, folder: Path, encoder: Mapping[str, Any]) -> None:
        """Check the tokenizer's files before a library reads them; `encoder` is the text encoder's config.

        Raises DitflowError, and OSError or ValueError for files that are missing or damaged.
        """

    def other_name(self, layer: str) -> str:
        """What a LoRA or a GGUF file may call a layer of the transformer, besides the library's name.

        The same for a parameter that belongs to no layer.
        """

    def network(self, part: str) -> type:
        """The library class that loads an expert's part, "vae", "text_encoder" or "tokenizer"."""

    def load_options(self, part: str) -> dict[str, Any]:
        """Further arguments for that class's `from_pretrained`."""

    def empty_text_encoder(self, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
        """A text encoder with uninitialised weights, in the precisions that loading gives. For planning."""

    def transformer(
        self, network: nn.Module, attention: str, compiled: bool, attention_forward: str | None = None
    ) -> Transformer:
        """`attention_forward`: the kernel of forwards without gradient; None: as `attention`."""

    def autoencoder(self, network: nn.Module) -> Autoencoder: ...

    def text_encoder(self, network: nn.Module) -> TextEncoder: ...

    def tokenise(self, tokenizer: Any, prompts: Sequence[str], config: Mapping[str, Any]) -> Tensor:
        """Token ids [prompts, length]. Warns about text that is cut off. `config` is the transformer's."""

    def schedule(
        self,
        kind: str,
        config: Mapping[str, Any],
        steps: int,
        size: tuple[int, int],
        device: torch.device,
        generator: torch.Generator,
        skipped: int = 0,
    ) -> Schedule:
        """`skipped`: how many of the `steps` are left out, from the first; the schedule counts the others."""


FAMILIES: dict[str, ModelFamily] = {family.pipeline: family for family in (CogVideoXFamily(), WanFamily())}


def models() -> tuple[str, ...]:
    """The names of the published and shipped models, from the files in `configs/models/`."""
    return shipped_names("models")


def known_model(model: str) -> dict[str, Any] | None:
    """The file in `configs/models/` of a model given by its name or hub id; None for other models."""
    for name in models():
        facts = shipped(f"models/{name}.yaml")
        if model in (name, facts["weights"].get("id")):
            return facts
    return None


def shipped_folder(model: str) -> Path | None:
    """The pipeline folder of a model that is part of this package; None for other models."""
    facts = known_model(model)
    inside = facts["weights"].get("package_folder") if facts else None
    return PACKAGE / inside if inside else None


def local_folder(model: str) -> Path | None:
    """The pipeline folder of a model that is shipped or given as a folder; None for other models."""
    if folder := shipped_folder(model):
        return folder
    path = Path(os.path.expanduser(model))
    return path if model not in models() and path.is_dir() else None


def family_of(model: str, download: bool = False) -> ModelFamily | None:
    """The family of a model given by name, hub id or folder; None if no local file tells.

    With `download`, fetches the small index file of a hub id. Raises SettingsError for an unknown family.
    """
    if facts := known_model(model):
        return FAMILIES[facts["family"]].variant(facts.get("index", {}))
    index = _small_file(model, INDEX, download)
    if index is None:
        return None
    where = f"model {model}: {INDEX}"
    INDEX_SCHEMA.check(where, index)
    pipeline = index["_class_name"]
    if pipeline not in FAMILIES:
        reasons = {name: reason for family in FAMILIES.values() for name, reason in family.relatives.items()}
        reason = f", which is for {reasons[pipeline]}" if pipeline in reasons else ""
        raise SettingsError(
            f"{where} names the pipeline class {pipeline!r}{reason}; accepted: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[pipeline]
    family.config_schema("index").check(where, index)
    return family.variant(index)


def published_settings(model: str) -> dict[str, Any]:
    """A model's published settings where they differ from the defaults.

    Downloads two small files for a hub id that is not in the cache. Raises SettingsError if the model cannot
    be identified, DitflowError if its files hold what they may not.
    """
    if facts := known_model(model):
        return facts["settings"]
    family = family_of(model, download=True)
    config = _small_file(model, "transformer/config.json", download=True) if family else None
    if (family is None or config is None) and (folder := local_folder(model)):
        missing = INDEX if family is None else "transformer/config.json"
        raise SettingsError(
            f"model {model}: {folder / missing} is not a file; give a complete pipeline folder"
        )
    if family is None or config is None:
        raise SettingsError(
            f"model {model!r}: not a folder, not in the hub's cache, and the hub does not have it, keeps it "
            f"private or cannot be reached; accepted: {', '.join(models())} (configs/models/), OWNER/NAME, "
            "a folder"
        )
    family.config_schema("transformer").check(f"model {model}: transformer/config.json", config)
    return family.defaults(config)


def _small_file(model: str, name: str, download: bool) -> dict[str, Any] | None:
    """A JSON file of a model's pipeline; None if it is not available. Raises SettingsError if damaged."""
    folder = local_folder(model)
    path = folder / name if folder else _hub_file(model, name, download)
    if path is None or not path.is_file():
        return None
    try:
        if path.stat().st_size > SETTINGS_BYTES:
            raise ValueError
        if isinstance(found := json.loads(path.read_text(encoding="utf-8")), dict):
            return found
        raise ValueError
    except (OSError, ValueError, RecursionError):
        raise SettingsError(f"model {model}: {path} is damaged; give a complete pipeline folder") from None


def _hub_file(model: str, name: str, download: bool) -> Path | None:
    if not is_hub_id(model):
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, name, local_files_only=not download))
    except (OSError, ValueError):
        return None
