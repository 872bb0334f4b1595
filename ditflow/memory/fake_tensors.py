"""Fake tensors, which have shapes, dtypes and storages but no memory and no values: torch's meta tensors.

torch's own FakeTensorMode does the same, and a plan with it takes three to four times as long (bench/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

ATEN = torch.ops.aten
ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu
META = torch.device("meta")
CPU = torch.device("cpu")
DEVICE_OF_TENSOR = Tensor.device.__get__
MOST_KNOWN = 20_000  # some kilobytes each


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors made in this context are fake, and to the code that runs in it they are on the CPU.

    Two kinds of tensors are real: those that `torch.from_numpy` and `torch.Tensor(...)` make, and those that
    Python code makes in a backward, for which torch leaves the context. Such code can enter it again.
    """
    with META, _OnCpu():
        yield


class _OnCpu(TorchFunctionMode):
    """Lets fake tensors pass for tensors on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == DEVICE_OF_TENSOR:
            return CPU
        if function is Tensor.cpu:
            return args[0]
        if function is Tensor.to:
            args = tuple(META if isinstance(given, (str, torch.device)) else given for given in args)
        if kwargs.get("device") is not None:
            kwargs["device"] = META
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return function(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention, fused where torch can fuse it on a CPU. For meta tensors, torch itself never does."""
    of_heads = query.ndim == key.ndim == value.ndim == 4
    alike = of_heads and query.shape[3] == key.shape[3] == value.shape[3]
    if not alike or dropout_p:
        options = {"scale": scale, "enable_gqa": enable_gqa}
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
    return ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


# how to make an operation's results, by the operation and the sizes of its arguments
_known: dict[Hashable, Callable[[], Any]] = {}


def run_operation(operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation. On fake tensors, only once for arguments of the same sizes, dtypes and other values.

    This is for speed: torch finds the sizes of results in Python, some in milliseconds.
    """
    if not _only_makes(operation):
        return operation(*args, **kwargs)
    key = operation, torch.get_default_dtype(), _sizes(args), _sizes(tuple(kwargs.items()))
    if make := _known.get(key):
        return make()
    result = operation(*args, **kwargs)
    if _is_new_and_fake(result, [args, *kwargs.values()]):
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[key] = _maker(result)
    return result


@cache
def _only_makes(operation: OpOverload) -> bool:
    """Whether an operation declares that it writes to no argument and that its results share no memory."""
    schema = operation._schema
    aliases = any(given.alias_info for given in (*schema.arguments, *schema.returns))
    return operation.namespace == "aten" and not aliases


def _is_new_and_fake(result: Any, given: Any) -> bool:
    """Whether results and arguments are fake, and share no memory, which some operations do not declare."""
    made, before = list(tensors_in(result)), list(tensors_in(given))
    places = {tensor.untyped_storage()._cdata for tensor in before}
    shared = any(tensor.untyped_storage()._cdata in places for tensor in made)
    return bool(made) and not shared and all(tensor.is_meta for tensor in (*made, *before))


def tensors_in(given: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for part in given:
            yield from tensors_in(part)


def _sizes(given: Any) -> Hashable:
    if isinstance(given, Tensor):
        return given.shape, given.stride(), given.dtype, given.is_meta
    if isinstance(given, (list, tuple)):
        return tuple(map(_sizes, given))
    return type(given), given  # because 1 == 1.0 == True


def _maker(result: Any) -> Callable[[], Any]:
    if isinstance(result, Tensor):
        shape, stride, dtype = result.shape, result.stride(), result.dtype
        return lambda: torch.empty_strided(shape, stride, dtype=dtype, device=META)
    if isinstance(result, (list, tuple)):
        kind, makers = type(result), [_maker(part) for part in result]
        return lambda: kind(make() for make in makers)
    return lambda: result
