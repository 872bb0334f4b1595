"""Turn a panel of the logits' gradient into gradients of queries and keys, by two library products."""

import torch
from torch import Tensor

from ditflow_kernels.motion_flow.triton.tiled_operands import Panel, TiledOperands


class Gradients:
    """Gradients of query and key without their factor, filled panel by panel."""

    def __init__(self, operands: TiledOperands, panel_size: int):
        self.operands = operands
        self.query = operands.empty(*operands.query.shape, dtype=operands.unscaled_dtype)
        self.key = operands.empty(*operands.key.shape, dtype=operands.key_gradient_dtype(panel_size))
        self.rounded = operands.key.dtype != torch.float32
        self.mean_key = operands.key.mean(dim=0, dtype=torch.float32) if self.rounded else None

    def add(self, panel: Panel, grad_logits: Tensor) -> None:  # [panel_size, padded keys]
        """Set the gradient of the panel's queries; add the panel's share to the key gradient."""
        operands = self.operands
        queries = slice(panel.first_query, panel.first_query + panel.queries)
        grad_logits = grad_logits[: panel.queries, : operands.tokens]
        row_sums = grad_logits.sum(dim=1, keepdim=True, dtype=torch.float32) if self.rounded else None
        if not operands.launch:
            return  # the products write into existing memory
        if self.rounded:
            # before the product, so that their sum is rounded once
            torch.mul(row_sums, -self.mean_key, out=self.query[queries])
        _product_into(self.query[queries], grad_logits, operands.key, add=self.rounded)
        _product_into(self.key, grad_logits.T, operands.query[queries], add=panel.first_query > 0)

    def unscaled(self) -> tuple[Tensor, Tensor]:
        """Both gradients in `unscaled_dtype`."""
        return self.query, self.key.to(self.operands.unscaled_dtype)


def _product_into(out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
    """Set `out` to `left @ right`, or add that to it; accumulated in float32."""
    if left.dtype != out.dtype and not out.is_cuda:
        # the CPU library has no product with a result of another dtype
        left, right = left.float(), right.float()
    options = {"out_dtype": out.dtype} if left.dtype != out.dtype else {}
    if add:
        torch.addmm(out, left, right, **options, out=out)
    else:
        torch.mm(left, right, **options, out=out)
