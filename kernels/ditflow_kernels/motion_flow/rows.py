"""Which rows of a loss count."""

from torch import Tensor


def counted_rows(
    reference: Tensor,  # [frames, frames, cells, 2]
    rows: str,
) -> Tensor | None:  # [frames, frames, cells] bool
    """The rows that count; None if all do."""
    if rows == "all":
        return None
    given = ~reference.isnan().any(dim=-1)
    return given & (reference != 0).any(dim=-1) if rows == "moving" else given
