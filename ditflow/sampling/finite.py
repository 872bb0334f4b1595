"""NaN and infinity stop a run where they first appear, and are told from each other by what they are in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ditflow.errors import DitflowError

ADVICE = "--dtype bfloat16 or float32 reaches further than float16"


class NotFinite(DitflowError):
    """A number that nothing can be computed from. What was finished before it is sound."""


def check_finite(tensor: Tensor, what: str) -> None:
    """Raises NotFinite where what was encoded holds NaN or infinity."""
    if not tensor.isfinite().all():
        raise NotFinite(f"the {what.replace('_', ' ')} holds NaN or infinity once it is encoded: {ADVICE}")


def check_optimisation(
    step: int,
    losses: Sequence[float],  # before each update
    gradients: Sequence[float],  # the sum of each
    may_overflow: bool,  # whether updates with such a gradient have been left out
) -> None:
    """Raises NotFinite for the first loss or gradient of a denoising step (from 0) that is not finite."""
    for update, (loss, gradient) in enumerate(zip(losses, gradients, strict=True), 1):
        for what, value in (("loss", loss), ("gradient", gradient)):
            if not math.isfinite(value) and not (what == "gradient" and may_overflow):
                raise NotFinite(
                    f"the {what} is NaN or infinite in optimisation step {update} of denoising step "
                    f"{step + 1}: with a smaller --learning-rate it does not run away, {ADVICE}"
                )


def check_latents(step: int, results: Mapping[str, Tensor]) -> None:
    """Raises NotFinite for the first of a denoising step's results that is not finite, in their order.

    The last one holds NaN or infinity where any of them does: it alone is looked at otherwise.
    """
    if list(results.values())[-1].isfinite().all():  # waits for the device, once a step
        return
    what = next(name for name, tensor in results.items() if not tensor.isfinite().all())
    raise NotFinite(f"the {what} holds NaN or infinity in denoising step {step + 1}: {ADVICE}")
