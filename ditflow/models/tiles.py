"""Tells when an autoencoder begins a tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ditflow.models.protocols import Autoencoder


@contextmanager
def each_tile(autoencoder: Autoencoder, begin: Callable[[], None]) -> Iterator[None]:
    """Call `begin` before the network encodes or decodes a tile, or a group of its frames.

    An error that it raises ends the work. A decoder that TensorRT has compiled does not call it.
    """
    network = autoencoder.network
    hooks = [
        part.register_forward_pre_hook(lambda *_: begin()) for part in (network.encoder, network.decoder)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
