"""Run training steps as CUDA graphs, because launching such small kernels takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WARM_UP = 3  # calls before recording, which compile, choose kernels and create the optimisers' state


class Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    result: Tensor


class Replayed:
    """Replays a function of tensors as CUDA graphs, one per shape of inputs. It may change other tensors."""

    def __init__(self, function: Callable[..., Tensor], generator: torch.Generator):
        self.function, self.generator = function, generator
        self.stream = torch.cuda.Stream(generator.device)
        self.calls: dict[tuple, int] = {}
        self.inputs: dict[tuple, list[Tensor]] = {}
        self.recordings: dict[tuple, Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = tuple(tensor.shape for tensor in inputs)
        called = self.calls[shapes] = self.calls.get(shapes, 0) + 1
        outside = torch.cuda.current_stream()
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            places = self._places(shapes, inputs)
            if called <= WARM_UP:
                result = self.function(*places)
            else:
                if shapes not in self.recordings:
                    self.recordings[shapes] = self._record(places)
                self.recordings[shapes].graph.replay()
                result = self.recordings[shapes].result.clone()
        outside.wait_stream(self.stream)
        return result

    def _places(self, shapes: tuple, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The fixed input tensors of a graph, filled with these inputs."""
        if shapes not in self.inputs:
            self.inputs[shapes] = [torch.empty_like(one, device=self.generator.device) for one in inputs]
        for place, tensor in zip(self.inputs[shapes], inputs, strict=True):
            place.copy_(tensor, non_blocking=True)
        return self.inputs[shapes]

    def _record(self, places: Sequence[Tensor]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        # the thread that pins coming batches may keep calling CUDA
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = self.function(*places)
        return Recording(graph, result)


def side_by_side(works: Sequence[Callable[[], object]], device: torch.device) -> None:
    """Run all of these; on a GPU at the same time, as each one's kernels fill only a small part of it."""
    if device.type == "cpu":
        for work in works:
            work()
        return
    here = torch.cuda.current_stream(device)
    streams = [torch.cuda.Stream(device) for _ in works]
    for stream, work in zip(streams, works, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            work()
    for stream in streams:
        here.wait_stream(stream)
