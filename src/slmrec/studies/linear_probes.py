"""Affine maps fitted by least squares from running sums, so that samples are not stored."""

import torch
from torch import Tensor

RIDGE = 1e-4
"""Ridge penalty as a share of the mean square of the inputs; it only makes the system solvable."""


class LinearHeads:
    """K affine maps from K inputs to one common output.

    Args:
        num_heads: K.
        num_inputs: H, width of each input.
        num_outputs: D, width of the output.

    Example:
        >>> heads = LinearHeads(1, 1, 1)
        >>> heads.add(torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[1.0], [3.0], [5.0]]))
        >>> apply_head(heads.solve()[0], torch.tensor([[3.0]])).round().tolist()
        [[7.0]]
    """

    def __init__(self, num_heads: int, num_inputs: int, num_outputs: int) -> None:
        self._squares = torch.zeros(num_heads, num_inputs + 1, num_inputs + 1, dtype=torch.float64)
        self._products = torch.zeros(num_heads, num_inputs + 1, num_outputs, dtype=torch.float64)

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add samples: inputs (K, N, H) and outputs (N, D)."""
        outputs = outputs.double().cpu()
        for head, head_inputs in enumerate(inputs):
            extended = _with_one(head_inputs.double().cpu())
            self._squares[head] += extended.T @ extended
            self._products[head] += extended.T @ outputs

    def solve(self) -> Tensor:
        """Return the maps (K, H + 1, D); the last row is the offset."""
        diagonal = self._squares.diagonal(dim1=1, dim2=2)
        ridge = RIDGE * diagonal.mean(dim=1, keepdim=True).expand_as(diagonal)
        maps: Tensor = torch.linalg.solve(self._squares + torch.diag_embed(ridge), self._products)
        return maps.float()


def apply_head(head: Tensor, inputs: Tensor) -> Tensor:
    """Apply one of the maps (H + 1, D) to inputs (N, H)."""
    return inputs @ head[:-1] + head[-1]


def _with_one(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
