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
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu
META = torch.device("meta")
CPU = torch.device("cpu")
DEVICE_OF_TENSOR = Tensor.device.__get__
MOST_KNOWN = 100_000  # some hundred bytes each


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors made in this context are fake, and to the code that runs in it they are on the CPU."""
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
        result = function(*args, **kwargs)
        return result.to(META) if function is torch.from_numpy else result


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> Tensor:
    """Fused attention, as torch chooses it on every device but for meta tensors."""
    return ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


# how to make an operation's results, by the operation and the sizes of its arguments
_known: dict[Hashable, Callable[[], Any]] = {}


def compute_sizes(operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The results of an operation. On fake tensors it is computed once for arguments of the same sizes.

    This is for speed: torch finds the sizes of results in Python, some in milliseconds.
    """
    if not _only_makes(operation):
        return operation(*args, **kwargs)
    key = operation, _sizes(args), _sizes(tuple(kwargs.items()))
    if make := _known.get(key):
        return make()
    result = operation(*args, **kwargs)
    if _is_new_and_fake(result, (args, kwargs)):
        if len(_known) == MOST_KNOWN:
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
    """Some operations return a view and do not declare it."""
    made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    before = {leaf.untyped_storage()._cdata for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
    return all(leaf.is_meta and leaf.untyped_storage()._cdata not in before for leaf in made)


def _sizes(given: Any) -> Hashable:
    if isinstance(given, Tensor):
        return given.shape, given.stride(), given.dtype, given.is_meta
    if isinstance(given, (list, tuple)):
        return tuple(map(_sizes, given))
    return type(given), given  # because 1 == 1.0 == True


def _maker(result: Any) -> Callable[[], Any]:
    if isinstance(result, Tensor):
        shape, stride, dtype, device = result.shape, result.stride(), result.dtype, result.device
        return lambda: torch.empty_strided(shape, stride, dtype=dtype, device=device)
    if isinstance(result, (list, tuple)):
        kind, makers = type(result), [_maker(part) for part in result]
        return lambda: kind(make() for make in makers)
    return lambda: result
