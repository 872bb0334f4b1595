"""Parts of a model, and the last encoded clip, that stay in host memory between runs for the next one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


class KeptParts:
    """The parts of a model that runs have loaded, one of each name. Only one job may use them at a time.

    A run places a part's tensors on a device, in place. `send_home` undoes that: the tensors have their host
    memory again, which was kept, so nothing is copied.
    """

    def __init__(self):
        self._parts: dict[str, _Part] = {}
        self._encoded: tuple[Hashable, Tensor] | None = None

    def get(self, name: str, key: Hashable, load: Callable[[], Any]) -> Any:
        """The part, if it was loaded with an equal key; else what `load` returns, instead of the old one.

        `load` returns a network, or an object with one as `network`, whose tensors are in host memory.
        """
        if name not in self._parts or self._parts[name].key != key:
            self._parts.pop(name, None)  # before the new one takes memory
            part = load()
            network = part if isinstance(part, nn.Module) else part.network
            self._parts[name] = _Part(key, part, _tensors(network))
        return self._parts[name].part

    def encoded(self, key: Hashable, encode: Callable[[], Tensor]) -> Tensor:
        """The latents of the last clip if it had an equal key, else what `encode` returns, on its device."""
        if self._encoded and self._encoded[0] == key:
            return self._encoded[1]
        latents = encode()
        self._encoded = key, latents.cpu()
        return latents

    def send_home(self) -> None:
        """Take all parts off the device."""
        for part in self._parts.values():
            part.send_home()

    def clear(self) -> None:
        """Forget everything, and free its memory."""
        self._parts.clear()
        self._encoded = None


@dataclass(frozen=True)
class _Part:
    key: Hashable
    part: Any
    home: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]  # registry, name, tensor, its host data

    def send_home(self) -> None:
        for registry, name, tensor, data in self.home:
            tensor.data = data
            registry[name] = tensor  # moving a module replaces its buffers by others


def _tensors(network: nn.Module) -> list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]:
    return [
        (registry, name, tensor, tensor.data)
        for module in network.modules()
        for registry in (module._parameters, module._buffers)
        for name, tensor in registry.items()
        if tensor is not None
    ]
