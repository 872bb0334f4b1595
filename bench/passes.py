"""The kernels' passes over motion flow and preparation: sizes, input sets, and the rivals in each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config

from ditflow_kernels import motion_flow, motion_flow_loss, qk_norm_rope, quantise_weight
from ditflow_kernels.motion_flow import chunked as chunked_flow
from ditflow_kernels.qk_norm_rope import chunked as chunked_preparation
from ditflow_kernels.qk_norm_rope import reference as reference_preparation
from ditflow_kernels.qk_norm_rope.layout import Wanted

TEMPERATURE = 2.0
# rivals' rows of logits are whole multiples of so many elements: an odd row of 16,200 bytes would keep the
# library from its fastest products, which copy with TMA and need rows of a multiple of 16 bytes
ROW = 128


class Size(NamedTuple):
    """Tokens of a video in a model."""

    name: str
    grid: tuple[int, int, int]
    heads: int
    head_dim: int = 64
    text: int = 226
    dtype: torch.dtype = torch.bfloat16
    rotary: bool = True
    rms_norm: bool = False  # of all heads together, not a layer norm of each
    hidden_channels: int | None = None  # of the feed-forward; None: four times the channels

    @property
    def video(self) -> int:
        return prod(self.grid)

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def hidden(self) -> int:
        return self.hidden_channels or 4 * self.channels


SIZES = [
    Size("5B, 24 frames", (6, 30, 45), 48),
    Size("5B, 49 frames", (13, 30, 45), 48),
    Size("5B, 9 frames", (3, 30, 45), 48),
    Size("2B, 24 frames", (6, 30, 45), 30, dtype=torch.float16, rotary=False),
    Size("256 x 384, 9 frames", (3, 16, 24), 48),
    Size("Wan 1.3B, 49 frames", (13, 30, 52), 12, 128, text=0, rms_norm=True, hidden_channels=8960),
]


@dataclass(frozen=True)
class Rival:
    name: str
    call: Callable[..., Any]  # with an input set
    compiles: bool = False  # by torch.compile, which takes a while
    needed_bytes: Callable[[Size], int] = lambda size: 0  # roughly, beyond its inputs


@dataclass(frozen=True)
class Pass:
    """One thing to compute, and who computes it."""

    name: str
    inputs: Callable[[Size, torch.device, int], tuple]  # an input set, from a seed
    rivals: Callable[[], list[Rival]]  # the first is ours, "triton"
    flops: Callable[[Size], int] | None = None  # the least work, of one of the three kinds
    int8_flops: Callable[[Size], int] | None = None
    bytes: Callable[[Size], int] | None = None
    slow_rivals: Callable[[], list[Rival]] = list  # only timed on request


def passes() -> list[Pass]:
    flow, loss = ((lambda size, n=n: n * 2 * size.video**2 * size.channels) for n in (1, 3))  # products
    forward, backward = (partial(moved_bytes, tensors=tensors) for tensors in (4, 6))
    return [
        Pass("flow forward", video_inputs, flow_rivals, flops=flow, slow_rivals=slow_flow_rivals),
        Pass("loss and gradients", video_inputs, loss_rivals, flops=loss, slow_rivals=slow_loss_rivals),
        Pass("preparation forward", token_inputs, preparation_rivals, bytes=forward),
        Pass("preparation backward", prepared_inputs, preparation_backward_rivals, bytes=backward),
    ]


def moved_bytes(size: Size, tensors: int) -> int:
    """Tensors like the queries, read or written once each, with cos and sin in float32."""
    rope = 4 * size.video * size.head_dim * 4 if size.rotary else 0
    return tensors * (size.text + size.video) * size.channels * size.dtype.itemsize + rope


def random(seed: int, size: Size, device: torch.device, *shape: int) -> Tensor:
    draw = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=draw, device=device).to(size.dtype)


def video_inputs(size: Size, device: torch.device, seed: int) -> tuple:
    """query, key, a flow that is zero only within a frame, grid."""
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
    if size.rms_norm:
        norm = random(seed, size, device, size.channels), None, 1e-6
    else:
        norm = random(seed, size, device, size.head_dim), random(seed + 1, size, device, size.head_dim), 1e-6
    rope = random(seed, size, device, 2, 2, size.video, size.head_dim).float() if size.rotary else None
    return query, key, norm, norm, rope, size.text


def prepared_inputs(size: Size, device: torch.device, seed: int) -> tuple:
    """query, key, the other arguments of preparation, gradients of its two results."""
    query, key, *rest = token_inputs(size, device, seed)
    gradients = random(seed + 2, size, device, 2, *query.shape)
    return query.requires_grad_(), key.requires_grad_(), tuple(rest), tuple(gradients)


def linear_inputs(size: Size, device: torch.device, seed: int) -> tuple:
    """x, weight_int8, scale and bias of a feed-forward's wide layer."""
    x = random(seed, size, device, 1, size.text + size.video, size.channels)
    weight, scale = quantise_weight(random(seed + 1, size, device, size.hidden, size.channels))
    return x.requires_grad_(), weight, scale, random(seed + 2, size, device, size.hidden)


def head_maps(size: Size, copies: int) -> int:
    return copies * size.heads * size.video**2 * size.dtype.itemsize


def summed_maps(size: Size, copies: int) -> int:
    return copies * size.video**2 * 4


def product_of_heads(query: Tensor, key: Tensor) -> Tensor:
    """`query @ key.T` over all heads, [S, S], with padded rows. No gradient."""
    tokens = len(key)
    logits = query.new_empty(tokens, -(-tokens // ROW) * ROW)[:, :tokens]
    return torch.mm(query.flatten(1), key.flatten(1).T, out=logits)


def flow_of_product(query: Tensor, key: Tensor, grid: tuple[int, int, int], temperature: float) -> Tensor:
    """The soft flow by the library: one product of all heads, then a pass over its rows. Keeps it all."""
    tokens = len(key)
    # padded keys give padded rows, whose gradient has padded rows too
    logits = query.flatten(1) @ F.pad(key.flatten(1), (0, 0, 0, -tokens % ROW)).T
    return flow_of_logits(logits[:, :tokens].float(), query, grid, temperature)


def flow_per_head(query: Tensor, key: Tensor, grid: tuple[int, int, int], temperature: float) -> Tensor:
    """The same in float32, with a product for each head."""
    logits = torch.zeros(len(query), len(key), device=query.device)
    for head in range(query.shape[1]):
        logits = logits + query[:, head].float() @ key[:, head].float().T
    return flow_of_logits(logits, query, grid, temperature)


def flow_of_logits(logits: Tensor, query: Tensor, grid: tuple[int, int, int], temperature: float) -> Tensor:
    frames, height, width = grid
    heads, head_dim = query.shape[1:]
    logits = logits * (temperature / (heads * head_dim**0.5))
    weights = logits.view(-1, frames, height * width).softmax(dim=-1)  # [rows, key frames, cells]
    cells = torch.arange(height * width, device=query.device)
    cells = torch.stack([cells % width, cells // width], dim=-1).float()
    flow = (weights @ cells).view(frames, height * width, frames, 2) - cells[:, None]
    return flow.transpose(1, 2)


def plain_loss(flow_of: Callable, query: Tensor, key: Tensor, flow: Tensor, *given: Any) -> Tensor:
    return (flow_of(query, key, *given) - flow)[flow.norm(dim=-1) > 0].square().mean()


def by_flow(function: Callable) -> Callable:
    return torch.no_grad()(lambda query, key, flow, grid: function(query, key, grid, TEMPERATURE))


def by_loss(function: Callable) -> Callable:
    def run(query, key, flow, grid):
        loss = function(query, key, flow, grid, TEMPERATURE)
        return loss.detach(), torch.autograd.grad(loss, (query, key))

    return run


def backends(by: Callable, function: Callable, copies: int) -> list[Rival]:
    """The public function by each backend. The reference needs so many maps of all heads."""
    ours = [Rival(name, by(partial(function, backend=name))) for name in ("triton", "chunked")]
    needed = partial(head_maps, copies=copies)
    return [*ours, Rival("reference", by(partial(function, backend="reference")), needed_bytes=needed)]


def flow_rivals() -> list[Rival]:
    compiled = torch.compile(chunked_flow.soft_flow, dynamic=False)
    rows = "library product and a row pass"
    return [
        *backends(by_flow, motion_flow, copies=3),
        Rival("library product alone", by_flow(lambda query, key, *_: product_of_heads(query, key))),
        Rival(rows, by_flow(flow_of_product), needed_bytes=partial(summed_maps, copies=3)),
        Rival("chunked, compiled", by_flow(compiled), compiles=True),
    ]


def loss_rivals() -> list[Rival]:
    whole = torch.compile(chunked_flow.loss_and_gradients, dynamic=False)

    @torch.no_grad()
    def products(query, key, flow, grid):
        logits = product_of_heads(query, key)
        return logits @ key.flatten(1), logits.T @ query.flatten(1)

    @torch.no_grad()
    def compiled(query, key, flow, grid):
        loss, *unscaled, factor = whole(query, key, flow, grid, TEMPERATURE, "moving")
        return loss, [(gradient.float() * factor).to(query.dtype) for gradient in unscaled]

    rows = by_loss(partial(plain_loss, flow_of_product))
    return [
        *backends(by_loss, motion_flow_loss, copies=5),
        Rival("library products alone", products),
        Rival("library products and a row pass", rows, needed_bytes=partial(summed_maps, copies=6)),
        Rival("chunked, compiled", compiled, compiles=True),
    ]


def slow_flow_rivals() -> list[Rival]:
    return [Rival("per head, float32", by_flow(flow_per_head))]


def slow_loss_rivals() -> list[Rival]:
    every_row = partial(motion_flow_loss, rows="all", backend="chunked")
    per_head = by_loss(partial(plain_loss, flow_per_head))
    return [Rival("per head, float32", per_head), Rival("chunked, every row counts", by_loss(every_row))]


def preparation_rivals() -> list[Rival]:
    by = torch.no_grad()
    return [
        *backends(by, qk_norm_rope, copies=0),
        Rival("chunked, compiled", by(compile_(chunked_preparation.qk_norm_rope_forward)), compiles=True),
        Rival("reference, compiled", by(compile_(reference_preparation.qk_norm_rope)), compiles=True),
    ]


def preparation_backward_rivals() -> list[Rival]:
    """The graph of an input set's forward is made once; only the backward is measured."""

    def by(function: Callable) -> Callable:
        graphs = {}

        def run(query, key, rest, gradients):
            if id(query) not in graphs:
                graphs[id(query)] = function(query, key, *rest)
            return torch.autograd.grad(graphs[id(query)], (query, key), gradients, retain_graph=True)

        return run

    backward = compile_(chunked_preparation.qk_norm_rope_backward)

    @torch.no_grad()
    def compiled(query, key, rest, gradients):
        return backward(*gradients, query, key, *rest, Wanted(query=True, key=True, rope=False))

    return [
        *backends(by, qk_norm_rope, copies=0),
        Rival("chunked, compiled", compiled, compiles=True),
        Rival("reference, compiled", by(compile_(reference_preparation.qk_norm_rope)), compiles=True),
    ]


def compile_(function: Callable) -> Callable:
    # a graph is used for several backwards here, so what it keeps must not be overwritten
    functorch_config.donated_buffer = False
    return torch.compile(function, dynamic=False)
