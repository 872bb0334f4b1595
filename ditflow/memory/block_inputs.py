"""What enters each block, from the way down to the way back: a stack, on the device or in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ditflow.memory.host import HostBuffers, can_pin, packed_bytes, packed_views

Tokens = tuple[Tensor, Tensor]  # video [1, S, channels] and text [1, T, channels], or their gradients


class Boundaries(Protocol):
    """Each gradient begins a stack anew, pushes `count` times, and then pops until nothing is left."""

    copied_bytes: int  # to the device, so far
    host_bytes: int

    def begin(self, count: int, like: Tokens) -> None:
        """Make room for `count` boundaries of that shape."""

    def push(self, tokens: Tokens) -> None: ...

    def pop(self) -> Tokens: ...


class DeviceBoundaries:
    """Implements `Boundaries`: they stay where they are."""

    copied_bytes = host_bytes = 0

    def begin(self, count: int, like: Tokens) -> None:
        self.stack: list[Tokens] = []

    def push(self, tokens: Tokens) -> None:
        self.stack.append(tokens)

    def pop(self) -> Tokens:
        return self.stack.pop()


class HostBoundaries:
    """Implements `Boundaries`: they wait in host memory, with one on the device and one on its way.

    Each goes out while its block computes and comes back while the block above it does; the topmost, wanted
    at once, never leaves. The buffers are made for the first gradient and serve all others.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copied: torch.cuda.Event | None = None  # the last copy, either way
        self.buffers: list[Tensor] = []
        self.copied_bytes = self.host_bytes = self.size = 0

    def begin(self, count: int, like: Tokens) -> None:
        self._settle()
        self.here: Tokens | None = None  # the topmost, on the device or on its way there
        self.count, self.height = count, 0
        size = packed_bytes(like)
        if size != self.size or count - 1 > len(self.buffers):
            self.buffers = []  # so that both need not be there at once
            pinned = self.copies is not None and can_pin(size * (count - 1))
            memory = HostBuffers([size] * (count - 1), pinned)
            self.size, self.buffers, self.host_bytes = size, memory.buffers, memory.bytes

    def push(self, tokens: Tokens) -> None:
        self._settle()
        self.here = tokens  # held until the next push has waited for its copy: only then may its memory go
        if self.height < self.count - 1:
            self._copy(packed_views(self.buffers[self.height], tokens), tokens)
        self.height += 1

    def pop(self) -> Tokens:
        self._settle()
        tokens, self.here = self.here, None
        self.height -= 1
        if self.height:
            video, text = (torch.empty_like(part) for part in tokens)
            self.here = video, text
            self._copy(self.here, packed_views(self.buffers[self.height - 1], tokens))
            self.copied_bytes += video.nbytes + text.nbytes
        return tokens

    def _copy(self, places: Sequence[Tensor], tokens: Sequence[Tensor]) -> None:
        """Copy once what has been asked for so far is done, beside what is asked for next."""
        if self.copies is None:
            for place, part in zip(places, tokens, strict=True):
                place.copy_(part)
            return
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copies):
            for place, part in zip(places, tokens, strict=True):
                place.copy_(part, non_blocking=True)
            self.copied = self.copies.record_event()

    def _settle(self) -> None:
        """Let what is asked for from now on wait for the last copy."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)
