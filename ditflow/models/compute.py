"""How the transformer multiplies: in its own precision, or more cheaply and not exactly.

`int8` multiplies the linear layers of the blocks in 8 bits, by `ditflow_kernels.int8_linear`: forwards and
the gradients of their inputs. `int8-forward`: forwards only; gradients are products of the model's precision
with the same rounded weights. Both round activations. A GELU that follows a layer is part of the product,
which then writes no tensor between the two.

`fp16-sums` changes no layer: it is a setting of torch (see `ditflow.memory.torch_state`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.nn.functional import gelu

from ditflow.errors import DitflowError, SettingsError
from ditflow_kernels import int8_input_gradient, int8_linear, quantise_weight

INT8 = ("int8", "int8-forward")
FP16_SUMS = "fp16-sums"


class Int8Linear(nn.Module):
    """A frozen linear layer that multiplies in 8 bits. Its parameters are streamed with their block.

    `activation` follows the product: None, or "gelu_tanh". Its graph keeps what was before the activation,
    because computing that again would be a whole product for a tensor that plain GELU keeps too.
    """

    def __init__(
        self, layer: nn.Linear, device: torch.device, gradients: bool, activation: str | None = None
    ):
        super().__init__()
        self.gradients, self.activation = gradients, activation  # gradients in 8 bits too
        stored = [tensor.to(layer.weight.device) for tensor in quantise_weight(layer.weight.to(device))]
        self.weight_int8, self.scale = (nn.Parameter(tensor, requires_grad=False) for tensor in stored)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        layer = self.weight_int8, self.scale, self.bias
        if self.gradients or not torch.is_grad_enabled():
            return int8_linear(inputs, *layer, activation=self.activation)
        result = _ForwardOnly.apply(inputs, *layer)
        return result if self.activation is None else gelu(result, approximate="tanh")

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """What backward gives the inputs of a layer without activation."""
        if self.gradients:
            return int8_input_gradient(gradient, self.weight_int8, self.scale)
        return _precise_gradient(gradient, self.weight_int8, self.scale)


class _ForwardOnly(torch.autograd.Function):
    """`int8_linear`, with the gradient of a layer that has the rounded weight but does not round inputs."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight_int8: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_int8, scale)
        return int8_linear(inputs, weight_int8, scale, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _precise_gradient(gradient, *ctx.saved_tensors), None, None, None


def _precise_gradient(gradient: Tensor, weight_int8: Tensor, scale: Tensor) -> Tensor:
    return (gradient * scale).to(gradient.dtype) @ weight_int8.to(gradient.dtype)


def input_gradient(layer: nn.Module, gradient: Tensor) -> Tensor:
    """The gradient of a linear layer's inputs, from that of its outputs, without a graph."""
    return layer.input_gradient(gradient) if isinstance(layer, Int8Linear) else gradient @ layer.weight


def check_compute(
    kind: str, weights: str, engine: str, dtype: torch.dtype, device: torch.device | None = None
) -> None:
    """Refuse a way to multiply that this run cannot use. Without a device only settings are checked.

    Raises SettingsError if the run's other settings rule it out, DitflowError if the device does.
    """
    if kind == "bf16":
        return
    if kind in INT8 and weights not in ("full", "int8"):
        raise SettingsError(f"--compute {kind} stores weights as int8; leave out --weights {weights}")
    if kind == FP16_SUMS and dtype != torch.float16:
        given = str(dtype).removeprefix("torch.")
        raise SettingsError(f"--compute {kind} adds products of float16; use --dtype float16, not {given}")
    if kind == FP16_SUMS and device is not None and device.type != "cuda":
        raise DitflowError(
            f"--compute {kind} needs a CUDA GPU, and this run computes on {device.type}; use --compute bf16"
        )
    if engine != "torch":
        raise SettingsError(f"--compute {kind} works only with --engine torch, not {engine}")


def compute_in(kind: str, blocks: nn.ModuleList, parts: Sequence[str], device: torch.device) -> None:
    """Replace the linear layers in `parts` of each block, if `kind` multiplies in 8 bits.

    Each weight is rounded on `device` and moved back to where it was.
    """
    if kind not in INT8:
        return
    for block in blocks:
        for part in map(block.get_submodule, parts):
            for name, (layer, activation) in _layers(part).items():
                part.set_submodule(name, Int8Linear(layer, device, kind == "int8", activation))


def _layers(part: nn.Module) -> dict[str, tuple[nn.Linear, str | None]]:
    """Linear layers and the activation of each, by the name of the module that does both."""
    found = {name: (layer, None) for name, layer in part.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in part.named_modules():
        if isinstance(layer, GELU) and layer.approximate == "tanh":
            del found[f"{name}.proj"]
            found[name] = layer.proj, "gelu_tanh"
    return found
