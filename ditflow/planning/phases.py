"""Measures each phase's real code on fake tensors: what it allocates and what it computes.

The weights of blocks are not counted; the plan adds them, because they depend on the preset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ditflow.guidance.estimates import EstimateGuidance, prepare_estimates
from ditflow.guidance.optimise import Guidance
from ditflow.guidance.targets import (
    NoisedClip,
    prepare_drawn_guidance,
    prepare_guidance,
    prepare_noised_guidance,
)
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.host import HostBuffers, keep_on_host
from ditflow.memory.placement import make_runner, outside
from ditflow.memory.streamed import flat_bytes
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import (
    Autoencoder,
    Capture,
    Injected,
    Inputs,
    Runner,
    TextEncoder,
    Transformer,
)
from ditflow.motion.chosen import ChosenMotion
from ditflow.planning.fake import FakeModel, FakeSchedule
from ditflow.sampling.loop import predict
from ditflow.sampling.reuse import Reuse
from ditflow.settings import Settings
from ditflow_kernels.backends import as_on

PROMPTS = 3  # the prompt, the negative prompt and the source prompt


@dataclass(frozen=True)
class Work:
    """What a phase takes, not counting the weights of blocks."""

    peak_bytes: int
    flops: int
    attention_flops: int  # part of `flops`
    int8_flops: int  # another part, products in 8 bits
    moved_bytes: int  # in device memory, by all but products
    walks: tuple[tuple[int, ...], ...] = ()  # for each walk, the blocks in order
    copied_bytes: int = 0  # to the device
    host_bytes: int = 0


class BlockTrace:
    """Implements `ditflow.models.protocols.Weights`: moves nothing, and records the order of the blocks."""

    copied_bytes = host_bytes = 0

    def __init__(self):
        self.orders: list[tuple[int, ...]] = []

    def walk(self, order: Iterable[int]) -> Iterator[int]:
        self.orders.append(tuple(order))
        return iter(self.orders[-1])

    def stays(self, index: int) -> bool:
        return True


def measured(method: Callable) -> Callable:
    """Decorator: run a method of `Phases` on fake tensors as on its device, once for its arguments."""

    @wraps(method)
    def run(self: Phases, *given: Any) -> Any:
        name = " ".join(map(str, (method.__name__, *given)))
        if name not in self.measured:
            with fake_tensors(), as_on(self.device):
                self.measured[name] = method(self, *given)
        return self.measured[name]

    return run


class Phases:
    """The phases of a run with these settings on a type of device. Each is measured only once."""

    def __init__(self, settings: Settings, device: str = "cuda"):
        self.settings, self.device = settings, device
        self.model = FakeModel(settings)
        self.injects = bool(settings.injection and settings.guided_steps)
        self.reads_in_steps = settings.reference_noise == "step"
        self.measured: dict[str, Any] = {}  # by methods and their arguments

    @property
    @measured
    def block_bytes(self) -> list[int]:
        """The size of the weights of each transformer block."""
        return [flat_bytes(block) for block in self.transformer.blocks]

    @property
    @measured
    def layer_bytes(self) -> list[int]:
        """The size of the weights of each text encoder layer."""
        return [flat_bytes(layer) for layer in self.text_encoder.layers]

    @measured
    def pinned_bytes(self, resident: int) -> int:
        """Bytes of host memory that the streamed blocks take."""
        return HostBuffers(self.block_bytes[resident:], pinned=False).bytes

    @cached_property
    def text_encoder(self) -> TextEncoder:
        encoder = self.model.text_encoder()
        for tensor in encoder.layers.parameters():
            keep_on_host(tensor)
        return encoder

    @cached_property
    def transformer(self) -> Transformer:
        transformer = self.model.transformer()
        for tensor in (*transformer.blocks.parameters(), *transformer.blocks.buffers()):
            keep_on_host(tensor)  # so that the tracker does not count it
        return transformer

    @cached_property
    def autoencoder(self) -> Autoencoder:
        return self.model.autoencoder()

    @cached_property
    def inputs(self) -> Inputs:
        return self.model.inputs(self.transformer)

    @measured
    def text(self) -> Work:
        encoder = self.text_encoder
        tokens = torch.empty(PROMPTS, self.inputs.prompt.shape[1], dtype=torch.int64)
        resident = outside(encoder.network, encoder.layers)
        return self._measure(lambda trace: encoder.encode(tokens, trace), BlockTrace(), resident)

    @measured
    def encode(self) -> Work:
        autoencoder, pixels = self.autoencoder, self.model.pixels()
        weights = autoencoder.network.parameters()
        return self._measure(lambda _: autoencoder.encode(pixels), None, weights, tiled=autoencoder)

    @measured
    def decode(self, tile: str) -> Work:
        autoencoder, latents = self.autoencoder, self.inputs.latents
        return self._measure(
            lambda _: autoencoder.decode(latents, self.settings.frames, tile),
            None,
            (*autoencoder.network.parameters(), latents),
            tiled=autoencoder,
        )

    @measured
    def reference(self) -> Work:
        """Reading the clip's motion, for the losses with a gradient through the transformer."""
        return self._model_phase("reference", self._guidance)

    @measured
    def x0_reference(self) -> Work:
        """Reading the clip in a guided step with the loss x0."""
        estimates = self.estimate_guidance
        return self._model_phase("x0 reference", lambda runner: estimates.clip_estimate(runner, self.inputs))

    @measured
    def injection(self) -> Work:
        return self._model_phase("injection", self._inject)

    @measured
    def optimise(self, checkpoint: str, block_inputs: str) -> Work:
        """One optimisation step with a gradient through the transformer."""
        injected, guidance = self.injected, self.guidance
        return self._model_phase(
            "optimise",
            lambda runner: guidance.optimise(runner, self.inputs, injected, 0),
            checkpoint,
            block_inputs,
        )

    @measured
    def x0_optimise(self) -> Work:
        """One optimisation step with the loss x0."""
        injected, estimates = self.injected, self.estimate_guidance
        clip = torch.empty_like(self.inputs.latents)
        return self._model_phase(
            "x0 optimise",
            lambda runner: estimates.update(runner, self.inputs, injected, 0, clip),
            held=[clip],
        )

    @measured
    def denoise(self, prompt_only: bool = False) -> Work:
        """One denoising step, with injection if the run injects."""
        scale = 1 if prompt_only else 2  # the cost of every other scale is the same
        inputs = self.inputs

        def step(runner: Runner) -> Any:
            if self.settings.step_threshold is None:
                return predict(runner, inputs, inputs.prompt, self.injected, scale)
            reuse = Reuse(self.settings)
            return reuse.predict(runner, inputs, inputs.prompt, scale), reuse  # which a run keeps

        return self._model_phase("denoise", step)

    @cached_property
    def guidance(self) -> Guidance:
        return self._guidance(make_runner(self.transformer, BlockTrace(), "block", "device"))

    @cached_property
    def estimate_guidance(self) -> EstimateGuidance:
        latents, prompt = self.inputs.latents, self.inputs.prompt
        found = prepare_estimates(self.settings, FakeSchedule(), latents, latents, prompt)
        return replace(found, steps=1, velocities=torch.empty_like(latents))

    @cached_property
    def injected(self) -> Injected:
        if not self.injects:
            return {}
        return self._inject(make_runner(self.transformer, BlockTrace(), "block", "device"))

    def _guidance(self, runner: Runner) -> Guidance:
        grid, inputs = self.transformer.grid(self.inputs.latents), self.inputs
        given = inputs.latents, inputs.prompt, inputs.embedding
        if not self.settings.has_clip:
            target = torch.empty(grid.frames, grid.frames, grid.height * grid.width, 2)
            drawn = ChosenMotion(self.settings, grid, drawn=target)
            return replace(prepare_drawn_guidance(self.settings, drawn, target.device), steps=1)
        if not self.reads_in_steps:
            return replace(prepare_guidance(runner, self.settings, grid, *given), steps=1)
        clip = NoisedClip(self.settings, FakeSchedule(), inputs.latents, *given)
        loss = clip.loss(runner, inputs.timestep)
        return replace(prepare_noised_guidance(clip), loss=loss, clip=None, steps=1)

    def _inject(self, runner: Runner) -> Injected:
        return runner.features(self.inputs, {}, Capture("key_value", self.settings.injection_blocks))

    def _model_phase(
        self,
        name: str,
        work: Callable[[Runner], Any],
        checkpoint: str = "block",
        block_inputs: str = "device",
        held: Sequence[Tensor] = (),
    ) -> Work:
        """Measure a phase of the transformer, with the tensors that a run holds meanwhile."""
        trace, inputs, transformer = BlockTrace(), self.inputs, self.transformer
        runner = make_runner(transformer, trace, checkpoint, block_inputs)
        kept = 2 if self.settings.has_clip else 1  # the noise, and the encoded clip
        kept = [torch.empty_like(inputs.latents) for _ in range(kept)]
        texts = [torch.empty_like(inputs.prompt) for _ in range(PROMPTS)]
        held = [*held, *kept, *texts, inputs.latents, inputs.embedding]
        if self.settings.estimate_steps and name not in ("reference", "optimise"):
            held.append(self.estimate_guidance.velocities)
        if name != "injection" and (name != "reference" or self.reads_in_steps):
            held += tree_leaves([list(block) for block in self.injected.values()])
        if name == "denoise" and self.settings.reuses:
            held.append(torch.empty_like(inputs.latents))  # the last difference
        if name == "denoise" and self.settings.step_threshold is not None:
            (tokens, *_), _ = transformer.embed(inputs)
            held += [torch.empty_like(tokens), torch.empty_like(tokens)]  # mark and residual
        held += outside(transformer.network, transformer.blocks)
        return self._measure(lambda _: work(runner), trace, held, runner)

    def _measure(
        self,
        work: Callable[[BlockTrace | None], Any],
        trace: BlockTrace | None,
        present: Iterable[Tensor],
        runner: Runner | None = None,
        tiled: Autoencoder | None = None,
    ) -> Work:
        found = Tracker(present)
        with tiled.each_shape_once(found) if tiled else nullcontext(), found:
            work(trace)
        return Work(
            found.peak_bytes,
            found.flops,
            found.attention_flops,
            found.int8_flops,
            found.moved_bytes,
            tuple(trace.orders) if trace else (),
            runner.copied_bytes if runner else 0,
            runner.host_bytes if runner else 0,
        )
