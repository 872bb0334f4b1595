"""Wan 2.1 and 2.2 for text to video, as a `ditflow.models.families.ModelFamily`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ditflow.errors import DitflowError, SettingsError, shown
from ditflow.files import shipped
from ditflow.models.experts import EXPERT_NAMES, ONE, Expert
from ditflow.models.t5.family import T5Family
from ditflow.models.wan.config import SCHEMAS
from ditflow.models.wan.frames import GROUP, latent_spans
from ditflow.models.wan.names import original_name
from ditflow.schema import Schema, check_equal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ditflow.models.protocols import Grid
    from ditflow.models.wan.schedule import WanSchedule
    from ditflow.models.wan.text import UMT5TextEncoder
    from ditflow.models.wan.transformer import WanTransformer
    from ditflow.models.wan.vae import WanAutoencoder

LENGTH = 512  # tokens of an encoded prompt
PATCH = 2  # latent pixels
TRANSFORMERS = ("transformer", "transformer_2")  # the second runs the steps of less noise, if there is one


@dataclass(frozen=True)
class WanFamily(T5Family):
    """Implements `ModelFamily`."""

    boundary: float | None = None  # share of the timesteps below which a second transformer runs

    pipeline = "WanPipeline"
    relatives = {
        "WanImageToVideoPipeline": "image to video",
        "WanVideoToVideoPipeline": "video to video",
        "WanVACEPipeline": "control videos and masks",
        "WanAnimatePipeline": "animating a character",
    }
    classes = {**dict.fromkeys(TRANSFORMERS, "WanTransformer3DModel"), "vae": "AutoencoderKLWan"}
    packed_parts = ("attn1", "attn2", "ffn")
    schedulers = ("unipc", "euler")
    tiles = ("512x512", "384x384", "256x256", "192x192", "128x128")
    size_multiple = 16
    least_frames = 5
    frame_rate = 16
    has_dynamic_scale = False
    takes_lora = True

    def variant(self, index: Mapping[str, Any]) -> WanFamily:
        return replace(self, boundary=index.get("boundary_ratio"))

    @property
    def experts(self) -> tuple[Expert, ...]:
        if self.boundary is None:
            return ONE
        return tuple(map(Expert, TRANSFORMERS, (self.boundary, 0.0), EXPERT_NAMES))

    @property
    def parts(self) -> tuple[str, ...]:
        return (*(expert.part for expert in self.experts), "vae", "text_encoder", "tokenizer", "scheduler")

    def defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the published model that is most alike, and a guided block that exists."""
        like = {(16, 12): "wan-1.3b", (48, 24): "wan-5b"}
        single = like.get((config["in_channels"], config["num_attention_heads"]), "wan-14b")
        name = single if self.boundary is None else "wan-a14b"
        settings = shipped(f"models/{name}.yaml")["settings"]
        blocks = [min(block, config["num_layers"] // 2) for block in settings["guidance_blocks"]]
        return settings | {"guidance_blocks": blocks}

    def latent_spans(self, frames: int) -> list[range]:
        return latent_spans(frames)

    def latent_shape(
        self, frames: int, size: tuple[int, int], vae: Mapping[str, Any]
    ) -> tuple[int, int, int, int, int]:
        width, height = size
        side = vae.get("scale_factor_spatial", 8)  # pixels
        if width % (multiple := side * PATCH) or height % multiple:
            raise SettingsError(f"size: {width}x{height} given, this model accepts multiples of {multiple}")
        return 1, len(latent_spans(frames)), vae["z_dim"], height // side, width // side

    def grid(self, latent_shape: Sequence[int], config: Mapping[str, Any]) -> Grid:
        from ditflow.models.protocols import Grid

        _, frames, _, height, width = latent_shape
        _, rows, columns = config.get("patch_size", (1, 2, 2))
        return Grid(frames, height // rows, width // columns)

    def prompt_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return LENGTH, config["text_dim"]

    def depth(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"]

    def embedding_kind(self, config: Mapping[str, Any]) -> Literal["rotary", "additive"]:
        return "rotary"

    def config_schema(self, part: str) -> Schema:
        return SCHEMAS[part]

    def check_configs(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        transformer, vae, encoder = (configs[part] for part in ("transformer", "vae", "text_encoder"))
        other = configs.get("transformer_2", transformer)
        for key in sorted((transformer.keys() | other.keys()) - {"_name_or_path", "_diffusers_version"}):
            if transformer.get(key) != other.get(key):
                raise DitflowError(
                    f"transformer/ and transformer_2/ differ in {key}: {shown(transformer.get(key))} and "
                    f"{shown(other.get(key))}; give a complete model of one kind"
                )
        channels = {
            "in transformer/ (in_channels)": transformer["in_channels"],
            "in transformer/ (out_channels)": transformer.get("out_channels") or transformer["in_channels"],
            "in vae/ (z_dim)": vae["z_dim"],
            **{f"in vae/ ({key})": len(vae.get(key, range(16))) for key in ("latents_mean", "latents_std")},
        }
        check_equal("latent channels", channels)
        widths = {
            "in transformer/ (text_dim)": transformer["text_dim"],
            "in text_encoder/ (d_model)": encoder.get("d_model", 512),
        }
        check_equal("text channels", widths)
        side = 2 ** (len(vae.get("dim_mult", [1, 2, 4, 4])) - 1) * (vae.get("patch_size") or 1)
        sides = {
            "in vae/ (scale_factor_spatial)": vae.get("scale_factor_spatial", 8),
            "by the layers that dim_mult and patch_size say": side,
        }
        check_equal("pixels to a latent one", sides)
        halvings = sum(vae.get("temperal_downsample", [False, True, True]))
        frames = {"in Wan": GROUP, "by vae/ (temperal_downsample)": 2**halvings}
        check_equal("frames to a latent one", frames)

    def other_name(self, layer: str) -> str:
        return original_name(layer)

    def network(self, part: str) -> type:
        if part in TRANSFORMERS:
            from diffusers import WanTransformer3DModel as found
        elif part == "vae":
            from diffusers import AutoencoderKLWan as found
        elif part == "text_encoder":
            from transformers import UMT5EncoderModel as found
        else:
            from transformers import T5Tokenizer as found
        return found

    def transformer(
        self,
        network: nn.Module,
        attention: str = "sdpa",
        compiled: bool = False,
        attention_forward: str | None = None,
    ) -> WanTransformer:
        from ditflow.models.wan.transformer import WanTransformer

        return WanTransformer(network, attention, compiled, attention_forward)

    def autoencoder(self, network: nn.Module) -> WanAutoencoder:
        from ditflow.models.wan.vae import WanAutoencoder

        return WanAutoencoder(network)

    def text_encoder(self, network: nn.Module) -> UMT5TextEncoder:
        from ditflow.models.wan.text import UMT5TextEncoder

        return UMT5TextEncoder(network)

    def tokenise(self, tokenizer: Any, prompts: Sequence[str], config: Mapping[str, Any]) -> Tensor:
        from ditflow.models.wan.text import tokenise

        return tokenise(tokenizer, prompts, LENGTH)

    def schedule(
        self,
        kind: str,
        config: Mapping[str, Any],
        steps: int,
        size: tuple[int, int],
        device: torch.device,
        generator: torch.Generator,
        skipped: int = 0,
    ) -> WanSchedule:
        from ditflow.models.wan.schedule import WanSchedule

        return WanSchedule(kind, config, steps, size, device, generator, skipped)
