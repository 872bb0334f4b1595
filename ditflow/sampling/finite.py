"""Stops a run at the first NaN or infinity and says where it appeared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ditflow.errors import LARGER_RANGE as ADVICE
from ditflow.errors import NotFinite


def check_finite(tensor: Tensor, what: str) -> None:
    """Raises NotFinite if an encoded prompt or clip contains NaN or infinity."""
    if not tensor.isfinite().all():
        raise NotFinite(f"the encoded {what.replace('_', ' ')} contains NaN or infinity; {ADVICE}")


def check_optimisation(
    step: int,
    losses: Sequence[float],  # before each update
    gradients: Sequence[float],  # the sum of each update's gradient
    may_overflow: bool,  # whether updates whose gradient is not finite were skipped
) -> None:
    """Raises NotFinite for the first loss or gradient in a denoising step (from 0) that is not finite."""
    for update, (loss, gradient) in enumerate(zip(losses, gradients, strict=True), 1):
        for what, value in (("loss", loss), ("gradient", gradient)):
            if not math.isfinite(value) and not (what == "gradient" and may_overflow):
                raise NotFinite(
                    f"the {what} is NaN or infinite in optimisation step {update} of denoising step "
                    f"{step + 1}; use a smaller --learning-rate, or {ADVICE}"
                )


def check_latents(step: int, results: Mapping[str, Tensor]) -> None:
    """Raises NotFinite for the first of a denoising step's results that is not finite.

    The last result contains NaN or infinity if any other does, so normally only the last is checked.
    """
    if list(results.values())[-1].isfinite().all():  # waits for the device, once a step
        return
    what = next(name for name, tensor in results.items() if not tensor.isfinite().all())
    raise NotFinite(f"the {what} contains NaN or infinity in denoising step {step + 1}; {ADVICE}")
