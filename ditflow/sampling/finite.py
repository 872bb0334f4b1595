"""Stops a run at the first NaN or infinity and says where it appeared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ditflow.errors import LARGER_RANGE as ADVICE
from ditflow.errors import NotFinite


def check_finite(tensor: Tensor, what: str) -> None:
    """Raises NotFinite if an encoded prompt or clip contains NaN or infinity."""
    if not tensor.isfinite().all():
        reason = _advice(tensor.dtype == torch.float16)
        raise NotFinite(f"the encoded {what.replace('_', ' ')} contains NaN or infinity; {reason}")


def check_optimisation(
    step: int,
    losses: Sequence[float],  # at each gradient
    gradients: Sequence[float],  # the sum of each gradient
    may_overflow: bool,  # whether updates whose gradient is not finite were skipped
    gradient_reuse: int = 1,  # updates made with each gradient
) -> None:
    """Raises NotFinite for the first loss or gradient in a denoising step (from 0) that is not finite."""
    for number, (loss, gradient) in enumerate(zip(losses, gradients, strict=True)):
        update = 1 + number * gradient_reuse
        for what, value in (("loss", loss), ("gradient", gradient)):
            if not math.isfinite(value) and not (what == "gradient" and may_overflow):
                updated = step > 0 or update > 1  # otherwise the learning rate cannot be the cause
                advice = f"use a smaller --learning-rate, or {ADVICE}" if updated else _advice(may_overflow)
                raise NotFinite(
                    f"the {what} is NaN or infinite in optimisation step {update} of denoising step "
                    f"{step + 1}; {advice}"
                )


def check_latents(step: int, results: Mapping[str, Tensor]) -> None:
    """Raises NotFinite for the first of a denoising step's results that is not finite.

    The last result contains NaN or infinity if any other does, so normally only the last is checked.
    """
    if list(results.values())[-1].isfinite().all():  # waits for the device, once a step
        return
    what, tensor = next((name, tensor) for name, tensor in results.items() if not tensor.isfinite().all())
    advice = _advice(tensor.dtype == torch.float16)
    raise NotFinite(f"the {what} contains NaN or infinity in denoising step {step + 1}; {advice}")


def _advice(half: bool) -> str:
    """What may help where no update was made; `half`: the values are in float16."""
    if half:
        return ADVICE
    return "a weight of the model or of a LoRA may be NaN: get the files again, or leave out --lora"
