"""The sides of a whole run: the case that they all compute, each one's Runner, and its FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from diffusers import CogVideoXTransformer3DModel

from bench.rivals import ReleasedWay
from ditflow.guidance.losses import FlowLoss
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.tracker import Tracker
from ditflow.models.cogvideox.transformer import CogVideoX
from ditflow.models.protocols import Grid, Inputs, Loss, Runner, Until
from ditflow.planning.fake import fake_tensors
from ditflow.settings import Settings
from ditflow.settings.settings import shipped
from ditflow_kernels import motion_flow, motion_flow_loss
from ditflow_kernels.backends import FASTEST

RIVAL = "released way"
SIDES = {  # name: Runner and kernels' backend
    RIVAL: (ReleasedWay, "reference"),
    "plain": (PlainRunner, "chunked"),
    "attention kept": (partial(BlockwiseRunner, keep="attention"), "chunked"),
    "block by block": (BlockwiseRunner, "chunked"),
}
SHAPE = {"num_attention_heads": 8, "attention_head_dim": 64, "time_embed_dim": 128, "text_embed_dim": 64}
CHANNELS, TEXT_TOKENS = 16, 226


@dataclass(frozen=True)
class Case:
    """A run to measure."""

    layers: int
    guidance_block: int
    grid: Grid
    steps: int
    optimisation_steps: int

    @property
    def settings(self) -> Settings:
        return Settings(
            model="5b",
            dtype="float32",
            device="cpu",
            steps=self.steps,
            optimisation_steps=self.optimisation_steps,
            guidance_blocks=(self.guidance_block,),
            injection_blocks=(0,),
        )

    @property
    def latents(self) -> tuple[int, ...]:
        """[1, frames, channels, height, width]"""
        return 1, self.grid.frames, CHANNELS, 2 * self.grid.height, 2 * self.grid.width

    @property
    def prompt(self) -> tuple[int, ...]:
        """[1, text tokens, text channels]"""
        return 1, TEXT_TOKENS, SHAPE["text_embed_dim"]

    def backbone(self) -> CogVideoX:
        """The same random weights each time."""
        torch.manual_seed(0)
        shape = shipped("models/5b.yaml")["transformer"] | SHAPE
        return CogVideoX(CogVideoXTransformer3DModel(**shape | {"num_layers": self.layers}))


FULL = Case(layers=12, guidance_block=6, grid=Grid(6, 15, 22), steps=20, optimisation_steps=5)
QUICK = Case(layers=4, guidance_block=2, grid=Grid(2, 6, 8), steps=2, optimisation_steps=2)
WARMUP = Case(layers=2, guidance_block=1, grid=Grid(2, 2, 3), steps=2, optimisation_steps=1)


@contextmanager
def runner_of(side: str, case: Case) -> Iterator[Runner]:
    """A side's Runner, and while it computes its kernels."""
    kind, backend = SIDES[side]
    with patch.dict(FASTEST, cpu=backend):
        yield kind(case.backbone())


@dataclass(frozen=True)
class Operations:
    """What one side computes."""

    optimisation_flops: int
    whole_flops: int


def operations(side: str, case: Case) -> Operations:
    """The FLOPs of one pass of each kind, times how often a run makes it."""
    settings = case.settings
    target = Until("query_key", settings.guidance_blocks)
    with fake_tensors(), runner_of(side, case) as runner:
        inputs = Inputs(
            latents=torch.empty(case.latents),
            prompt=torch.empty(case.prompt),
            timestep=torch.empty(1, dtype=torch.int64),
            embedding=torch.empty(2, 2, math.prod(case.grid), SHAPE["attention_head_dim"]),
        )
        reference = flops(lambda: FlowLoss(runner.features(inputs, {}, target), case.grid, settings))
        injection = flops(lambda: runner.features(inputs, {}, Until("key_value", settings.injection_blocks)))
        update = flops(lambda: runner.gradient(loss_of(side, case), "latents", inputs, {}, target, 1.0))
        denoising = flops(lambda: runner.forward([inputs, inputs], {}))
    optimisation = reference + settings.guided_steps * (injection + settings.optimisation_steps * update)
    return Operations(optimisation, optimisation + settings.steps * denoising)


def loss_of(side: str, case: Case) -> Loss:
    """The flow loss, every row counting: the rival's own asks which rows do, and fake tensors cannot say."""
    frames, *_ = grid = case.grid
    target = torch.empty(frames, frames, grid.height * grid.width, 2)
    temperature = case.settings.temperature
    if side == RIVAL:
        return lambda _, read: (motion_flow(*read, grid, temperature) - target).square().mean()
    return lambda _, read: motion_flow_loss(*read, target, grid, temperature)


def flops(work: Callable[[], object]) -> int:
    with Tracker() as found:
        work()
    return found.flops
