"""Linear maps fitted by least squares from sums alone, so that the samples are seen once and never kept."""

import torch
from torch import Tensor

RIDGE = 1e-4
"""Of the mean square of an input: enough to solve, too little to matter."""


class LinearHeads:
    """K affine maps from K inputs to one common output.

    Args:
        num_heads: K.
        num_inputs: H, the width of each input.
        num_outputs: D.
    """

    def __init__(self, num_heads: int, num_inputs: int, num_outputs: int) -> None:
        self._squares = torch.zeros(num_heads, num_inputs + 1, num_inputs + 1, dtype=torch.float64)
        self._products = torch.zeros(num_heads, num_inputs + 1, num_outputs, dtype=torch.float64)

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Counts some samples in: inputs (K, N, H), outputs (N, D)."""
        outputs = outputs.double().cpu()
        for head, of_head in enumerate(inputs):
            own = _with_one(of_head.double().cpu())
            self._squares[head] += own.T @ own
            self._products[head] += own.T @ outputs

    def solve(self) -> Tensor:
        """(K, H + 1, D) the maps; the last row is the offset."""
        diagonal = self._squares.diagonal(dim1=1, dim2=2)
        ridge = RIDGE * diagonal.mean(dim=1, keepdim=True).expand_as(diagonal)
        maps: Tensor = torch.linalg.solve(self._squares + torch.diag_embed(ridge), self._products)
        return maps.float()


def apply_head(head: Tensor, inputs: Tensor) -> Tensor:
    """(N, D): one of the maps (H + 1, D) of inputs (N, H)."""
    return inputs @ head[:-1] + head[-1]


def _with_one(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
