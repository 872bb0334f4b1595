"""Each phase's real code on fake tensors: what it makes and what it computes.

The weights of blocks are left out, wherever they are: they are the plan's to add, and change nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import T5EncoderModel

from ditflow.guidance.optimise import Guidance
from ditflow.guidance.targets import prepare_guidance
from ditflow.memory.arrange import around, runner_of
from ditflow.memory.host import HostBuffers, keep_on_host
from ditflow.memory.streamed import flat_bytes
from ditflow.memory.tracker import Tracker
from ditflow.models.cogvideox import text
from ditflow.models.cogvideox import vae as autoencoder
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.protocols import Injected, Inputs, Runner, Until
from ditflow.planning.fake import (
    fake_backbone,
    fake_inputs,
    fake_pixels,
    fake_tensors,
    fake_text_encoder,
    fake_vae,
)
from ditflow.planning.repeats import each_shape_once
from ditflow.sampling.loop import predict
from ditflow.settings import Settings
from ditflow_kernels.backends import as_on

PROMPTS = 3  # the prompt, the negative one, the clip's own


@dataclass(frozen=True)
class Work:
    """What a phase does, blocks' weights apart."""

    peak_bytes: int
    flops: int
    attention_flops: int  # among them
    walks: tuple[tuple[int, ...], ...] = ()  # blocks asked for, in order
    copied_bytes: int = 0  # to the device
    host_bytes: int = 0


class Walks:
    """Implements `ditflow.memory.weights.Weights`: writes down which blocks are asked for."""

    copied_bytes = host_bytes = 0

    def __init__(self):
        self.orders: list[tuple[int, ...]] = []

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        self.orders.append(tuple(order))
        return iter(self.orders[-1])

    def stays(self, index: int) -> bool:
        return True


def among_fakes(method: Callable) -> Callable:
    """Decorator: run a method of `Phases` among its fake tensors, which stand for its device's."""

    @wraps(method)
    def run(self: Phases, *given: Any) -> Any:
        with self.fakes, as_on(self.device):
            return method(self, *given)

    return run


class Phases:
    """The phases of a run with these settings on a type of device; each is measured once."""

    def __init__(self, settings: Settings, device: str = "cuda"):
        self.settings, self.device, self.fakes = settings, device, fake_tensors()
        self.injects = bool(settings.injection and settings.guided_steps)
        self._measured: dict[Any, Work] = {}

    @cached_property
    @among_fakes
    def block_bytes(self) -> list[int]:
        """The weights of each of the transformer's blocks."""
        return [flat_bytes(block) for block in self.backbone.blocks]

    @cached_property
    @among_fakes
    def layer_bytes(self) -> list[int]:
        """The weights of each of the text encoder's layers."""
        return [flat_bytes(block) for block in text.blocks(self.encoder)]

    @among_fakes
    def pinned_bytes(self, resident: int) -> int:
        """Host memory in which the blocks wait that do not stay on the device."""
        return HostBuffers(self.block_bytes[resident:], pinned=False).bytes

    @cached_property
    def encoder(self) -> T5EncoderModel:
        encoder = fake_text_encoder(self.settings)
        for tensor in text.blocks(encoder).parameters():
            keep_on_host(tensor)
        return encoder

    @cached_property
    def backbone(self) -> CogVideoX:
        backbone = fake_backbone(self.settings)
        for tensor in (*backbone.blocks.parameters(), *backbone.blocks.buffers()):
            keep_on_host(tensor)  # so that nobody counts it
        return backbone

    @cached_property
    def vae(self) -> AutoencoderKLCogVideoX:
        return fake_vae(self.settings)

    @cached_property
    def inputs(self) -> Inputs:
        return fake_inputs(self.settings, self.backbone)

    @among_fakes
    def text(self) -> Work:
        tokens = torch.empty(PROMPTS, self.inputs.prompt.shape[1], dtype=torch.int64)
        resident = around(self.encoder, text.blocks(self.encoder))
        return self._measure(
            "text", lambda walks: text.encode_tokens(self.encoder, tokens, walks), Walks(), resident
        )

    @among_fakes
    def encode(self) -> Work:
        vae, pixels = self.vae, fake_pixels(self.settings)
        return self._measure(
            "encode", lambda _: autoencoder.encode(vae, pixels), None, vae.parameters(), tiled=vae
        )

    @among_fakes
    def decode(self, tile: str) -> Work:
        vae, latents = self.vae, self.inputs.latents
        return self._measure(
            ("decode", tile),
            lambda _: autoencoder.decode(vae, latents, self.settings.frames, tile),
            None,
            (*vae.parameters(), latents),
            tiled=vae,
        )

    @among_fakes
    def reference(self) -> Work:
        return self._model_phase("reference", self._guidance)

    @among_fakes
    def injection(self) -> Work:
        return self._model_phase("injection", self._inject)

    @among_fakes
    def optimise(self, checkpoint: str, boundaries: str) -> Work:
        """One optimisation step."""
        guidance, injected = self.guidance, self.injected
        return self._model_phase(
            ("optimise", checkpoint, boundaries),
            lambda runner: guidance.optimise(runner, self.inputs, injected, 0),
            checkpoint,
            boundaries,
        )

    @among_fakes
    def denoise(self) -> Work:
        """One denoising step, with the clip's keys and values where they are injected."""
        weight = self.settings.guidance_scale
        return self._model_phase(
            "denoise",
            lambda runner: predict(runner, self.inputs, self.inputs.prompt, self.injected, weight),
        )

    @cached_property
    def guidance(self) -> Guidance:
        return self._guidance(self._runner(Walks(), "block", "device"))

    @cached_property
    def injected(self) -> Injected:
        return self._inject(self._runner(Walks(), "block", "device")) if self.injects else {}

    def _guidance(self, runner: Runner) -> Guidance:
        grid, inputs = self.backbone.grid(self.inputs.latents), self.inputs
        found = prepare_guidance(runner, self.settings, grid, inputs.latents, inputs.prompt, inputs.embedding)
        return replace(found, steps=1)

    def _inject(self, runner: Runner) -> Injected:
        return runner.features(self.inputs, {}, Until("key_value", self.settings.injection_blocks))

    def _runner(self, walks: Walks, checkpoint: str, boundaries: str) -> Runner:
        return runner_of(self.backbone, walks, checkpoint, boundaries)

    def _model_phase(
        self, name: Any, work: Callable[[Runner], Any], checkpoint: str = "block", boundaries: str = "device"
    ) -> Work:
        """A phase of the transformer, beside all that a run holds while it works."""
        walks, inputs = Walks(), self.inputs
        runner = self._runner(walks, checkpoint, boundaries)
        clip, noise = torch.empty_like(inputs.latents), torch.empty_like(inputs.latents)
        texts = [torch.empty_like(inputs.prompt) for _ in range(PROMPTS)]
        held = [clip, noise, *texts, inputs.latents, inputs.embedding]
        if name not in ("reference", "injection"):
            held += tree_leaves([list(block) for block in self.injected.values()])
        held += around(self.backbone.transformer, self.backbone.blocks)
        return self._measure(name, lambda _: work(runner), walks, held, runner)

    def _measure(
        self,
        name: Any,
        work: Callable[[Walks | None], Any],
        walks: Walks | None,
        present: Iterable[Tensor],
        runner: Runner | None = None,
        tiled: AutoencoderKLCogVideoX | None = None,
    ) -> Work:
        if name not in self._measured:
            found = Tracker(present)
            with each_shape_once(tiled, found) if tiled else nullcontext(), found:
                work(walks)
            self._measured[name] = Work(
                found.peak_bytes,
                found.flops,
                found.attention_flops,
                tuple(walks.orders) if walks else (),
                runner.copied_bytes if runner else 0,
                runner.host_bytes if runner else 0,
            )
        return self._measured[name]
