"""Which weights a library keeps in float32 when it loads a network in another precision."""

from __future__ import annotations

from torch import nn


def stays_float32(network: nn.Module, parameter: str) -> bool:
    """Whether diffusers loads the parameter of this name in float32, whatever precision is asked for."""
    modules = getattr(network, "_keep_in_fp32_modules", None) or ()
    return any(module in parameter.split(".") for module in modules)


def as_loaded(network: nn.Module) -> nn.Module:
    """Put a network that was made in one precision into those in which it would be loaded, in place."""
    for name, parameter in list(network.named_parameters()):
        if stays_float32(network, name):
            module, _, own = name.rpartition(".")
            setattr(network.get_submodule(module), own, nn.Parameter(parameter.detach().float()))
    return network
