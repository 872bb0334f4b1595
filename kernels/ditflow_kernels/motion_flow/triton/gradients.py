"""From a panel of the logits' gradient to the gradients of queries and keys: two products of the library."""

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, Problem


class Gradients:
    """Gradients to query and key but for a factor, filled a panel at a time."""

    def __init__(self, problem: Problem, panel_rows: int):
        self.problem = problem
        self.query = problem.new(*problem.query.shape, dtype=problem.kept_dtype)
        self.key = problem.new(*problem.key.shape, dtype=problem.sum_dtype(panel_rows))

    def add(self, panel: Panel, grad_logits: Tensor) -> None:  # [panel rows, panel width]
        """The panel's queries are done with it; the keys collect from every panel."""
        problem = self.problem
        if not problem.launch:
            return  # both products write into what is there
        rows = slice(panel.first, panel.first + panel.rows)
        grad_logits = grad_logits[: panel.rows, : problem.tokens]
        _product(grad_logits, problem.key, self.query[rows], add=False)
        _product(grad_logits.T, problem.query[rows], self.key, add=panel.first > 0)

    def kept(self) -> tuple[Tensor, Tensor]:
        """Both in the dtype in which they wait for their factor."""
        return self.query, self.key.to(self.problem.kept_dtype)


def _product(left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
    """`left @ right`, accumulated in float32, into `out` or added to it."""
    if left.dtype != out.dtype and not out.is_cuda:
        # the CPU library has no product of one dtype into another
        left, right = left.float(), right.float()
    options = {"out_dtype": out.dtype} if left.dtype != out.dtype else {}
    if add:
        torch.addmm(out, left, right, **options, out=out)
    else:
        torch.mm(left, right, **options, out=out)
