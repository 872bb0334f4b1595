"""What is measured: the passes over motion flow and preparation, and who competes in each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from ditflow_kernels import motion_flow, motion_flow_loss, qk_norm_rope
from ditflow_kernels.motion_flow import chunked as chunked_flow
from ditflow_kernels.qk_norm_rope import chunked as chunked_preparation
from ditflow_kernels.qk_norm_rope import reference as reference_preparation
from ditflow_kernels.qk_norm_rope.layout import Wanted

TEMPERATURE = 2.0


class Size(NamedTuple):
    """Tokens of a video in a model."""

    name: str
    grid: tuple[int, int, int]
    heads: int
    head_dim: int = 64
    text: int = 226
    dtype: torch.dtype = torch.bfloat16
    rotary: bool = True

    @property
    def video(self) -> int:
        return prod(self.grid)

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim


SIZES = [
    Size("5B, 24 frames", (6, 30, 45), 48),
    Size("5B, 49 frames", (13, 30, 45), 48),
    Size("5B, 9 frames", (3, 30, 45), 48),
    Size("2B, 24 frames", (6, 30, 45), 30, dtype=torch.float16, rotary=False),
    Size("256 x 384, 9 frames", (3, 16, 24), 48),
]


@dataclass(frozen=True)
class Rival:
    name: str
    call: Callable[..., Any]  # of an input set
    compiles: bool = False  # torch.compile takes a while
    needed_bytes: Callable[[Size], int] = lambda size: 0  # roughly, beyond its inputs


@dataclass(frozen=True)
class Pass:
    """One thing to compute, and who computes it."""

    name: str
    inputs: Callable[[Size, torch.device, int], tuple]  # an input set, from a seed
    rivals: Callable[[], list[Rival]]  # "triton" is ours
    flops: Callable[[Size], int] | None = None  # the least work, of one kind
    bytes: Callable[[Size], int] | None = None


def passes() -> list[Pass]:
    return [
        Pass("flow forward", video_inputs, flow_rivals, flops=lambda size: 2 * size.video**2 * size.channels),
        Pass(
            "loss and gradients",
            video_inputs,
            loss_rivals,
            flops=lambda size: 6 * size.video**2 * size.channels,
        ),
        Pass("preparation forward", token_inputs, preparation_rivals, bytes=partial(moved_bytes, tensors=4)),
        Pass(
            "preparation backward",
            prepared_inputs,
            preparation_backward_rivals,
            bytes=partial(moved_bytes, tensors=6),
        ),
    ]


def moved_bytes(size: Size, tensors: int) -> int:
    """Queries, keys and what is made of them, once each; with them cos and sin in float32."""
    rope = 4 * size.video * size.head_dim * 4 if size.rotary else 0
    return tensors * (size.text + size.video) * size.channels * size.dtype.itemsize + rope


def random(seed: int, size: Size, device: torch.device, *shape: int) -> Tensor:
    draw = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=draw, device=device).to(size.dtype)


def video_inputs(size: Size, device: torch.device, seed: int) -> tuple:
    """query, key, a flow that moves everywhere but within a frame, grid."""
    frames, height, width = size.grid
    query, key = random(seed, size, device, 2, size.video, size.heads, size.head_dim)
    draw = torch.Generator(device).manual_seed(seed)
    flow = torch.randint(1, 6, (frames, frames, height * width, 2), generator=draw, device=device).float()
    flow = flow * (1 - torch.eye(frames, device=device))[..., None, None]
    return query.requires_grad_(), key.requires_grad_(), flow, size.grid


def token_inputs(size: Size, device: torch.device, seed: int) -> tuple:
    """query, key, norms, rope, text length."""
    length = size.text + size.video
    query, key = random(seed, size, device, 2, 1, length, size.heads, size.head_dim)
    norm = random(seed, size, device, size.head_dim), random(seed + 1, size, device, size.head_dim), 1e-6
    rope = random(seed, size, device, 2, 2, size.video, size.head_dim).float() if size.rotary else None
    return query, key, norm, norm, rope, size.text


def prepared_inputs(size: Size, device: torch.device, seed: int) -> tuple:
    """query, key, how to prepare them, gradients to what comes of that."""
    query, key, *rest = token_inputs(size, device, seed)
    gradients = random(seed + 2, size, device, 2, *query.shape)
    return query.requires_grad_(), key.requires_grad_(), tuple(rest), tuple(gradients)


def heads_maps(size: Size, copies: int) -> int:
    return copies * size.heads * size.video**2 * size.dtype.itemsize


def flow_of_rows(query: Tensor, key: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The soft flow as the library has it: one product, then a pass over its rows. All of it is kept."""
    frames, height, width = grid
    heads, head_dim = query.shape[1:]
    logits = (query.flatten(1) @ key.flatten(1).T).float() * (TEMPERATURE / (heads * head_dim**0.5))
    weights = logits.view(-1, frames, height * width).softmax(dim=-1)  # [rows, key frames, cells]
    cells = torch.arange(height * width, device=query.device)
    cells = torch.stack([cells % width, cells // width], dim=-1).float()
    flow = (weights @ cells).view(frames, height * width, frames, 2) - cells[:, None]
    return flow.transpose(1, 2)


def rows_map(size: Size, copies: int) -> int:
    return copies * size.video**2 * 4


def flow_rivals() -> list[Rival]:
    def by(function: Callable, **options) -> Callable:
        return torch.no_grad()(
            lambda query, key, flow, grid: function(query, key, grid, TEMPERATURE, **options)
        )

    @torch.no_grad()
    def product(query, key, flow, grid):
        return query.flatten(1) @ key.flatten(1).T

    @torch.no_grad()
    def rows(query, key, flow, grid):
        return flow_of_rows(query, key, grid)

    compiled = torch.compile(chunked_flow.soft_flow, dynamic=False)
    return [
        Rival("triton", by(motion_flow, backend="triton")),
        Rival("chunked", by(motion_flow, backend="chunked")),
        Rival("library product alone", product),
        Rival("library product and a row pass", rows, needed_bytes=partial(rows_map, copies=3)),
        Rival("reference", by(motion_flow, backend="reference"), needed_bytes=partial(heads_maps, copies=3)),
        Rival("chunked, compiled", by(compiled), compiles=True),
    ]


def loss_rivals() -> list[Rival]:
    def by(function: Callable, **options) -> Callable:
        def run(query, key, flow, grid):
            loss = function(query, key, flow, grid, TEMPERATURE, **options)
            return loss.detach(), torch.autograd.grad(loss, (query, key))

        return run

    @torch.no_grad()
    def products(query, key, flow, grid):
        query, key = query.flatten(1), key.flatten(1)
        logits = query @ key.T
        return logits @ key, logits.T @ query

    def rows(query, key, flow, grid):
        moving = flow.norm(dim=-1) > 0
        loss = (flow_of_rows(query, key, grid) - flow)[moving].square().mean()
        return loss.detach(), torch.autograd.grad(loss, (query, key))

    passes = torch.compile(chunked_flow.loss_and_gradients, dynamic=False)

    @torch.no_grad()
    def compiled(query, key, flow, grid):
        loss, *unscaled, factor = passes(query, key, flow, grid, TEMPERATURE, "moving")
        return loss, [(gradient.float() * factor).to(query.dtype) for gradient in unscaled]

    return [
        Rival("triton", by(motion_flow_loss, backend="triton")),
        Rival("chunked", by(motion_flow_loss, backend="chunked")),
        Rival("library products alone", products),
        Rival("library products and a row pass", rows, needed_bytes=partial(rows_map, copies=6)),
        Rival(
            "reference",
            by(motion_flow_loss, backend="reference"),
            needed_bytes=partial(heads_maps, copies=5),
        ),
        Rival("chunked, compiled", compiled, compiles=True),
    ]


def preparation_rivals() -> list[Rival]:
    def by(function: Callable, **options) -> Callable:
        return torch.no_grad()(lambda *given: function(*given, **options))

    return [
        Rival("triton", by(qk_norm_rope, backend="triton")),
        Rival("chunked", by(qk_norm_rope, backend="chunked")),
        Rival("reference", by(qk_norm_rope, backend="reference")),
        Rival("chunked, compiled", by(_compiled(chunked_preparation.qk_norm_rope_forward)), compiles=True),
        Rival("reference, compiled", by(_compiled(reference_preparation.qk_norm_rope)), compiles=True),
    ]


def preparation_backward_rivals() -> list[Rival]:
    """The forward pass's graph is made once for an input set; what is measured is the way back."""

    def by(function: Callable, **options) -> Callable:
        graphs = {}

        def run(query, key, rest, gradients):
            if id(query) not in graphs:
                graphs[id(query)] = function(query, key, *rest, **options)
            return torch.autograd.grad(graphs[id(query)], (query, key), gradients, retain_graph=True)

        return run

    way_back = _compiled(chunked_preparation.qk_norm_rope_backward)

    @torch.no_grad()
    def chunked_compiled(query, key, rest, gradients):
        return way_back(*gradients, query, key, *rest, Wanted(query=True, key=True, rope=False))

    return [
        Rival("triton", by(qk_norm_rope, backend="triton")),
        Rival("chunked", by(qk_norm_rope, backend="chunked")),
        Rival("reference", by(qk_norm_rope, backend="reference")),
        Rival("chunked, compiled", chunked_compiled, compiles=True),
        Rival("reference, compiled", by(_compiled(reference_preparation.qk_norm_rope)), compiles=True),
    ]


def _compiled(function: Callable) -> Callable:
    # a graph is gone backward through more than once here: what it keeps is not to be written over
    functorch_config.donated_buffer = False
    return torch.compile(function, dynamic=False)
