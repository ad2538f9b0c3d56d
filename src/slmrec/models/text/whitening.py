"""Whitening: text vectors whose dimensions have equal scales, and the map that computes them."""

from typing import NamedTuple

import torch
from torch import Tensor

from slmrec.config import ItemTextConfig

_SMALLEST = 1e-9
"""Variance of a principal component relative to the largest one, up to which it counts as rounding."""
_TINY = 1e-12


class Whitened(NamedTuple):
    """Text vectors, and the map that computes them from the vectors of a source."""

    vectors: Tensor
    """(V+1, C)."""
    mean: Tensor
    """(H,), as in `TextReader`."""
    axes: Tensor
    """(H, C), as in `TextReader`."""


def whitened(vectors: Tensor, settings: ItemTextConfig) -> Whitened:
    """Return centred and whitened vectors; zero rows stay zero and are ignored in mean and variances.

    The standard deviation s of a principal component becomes s^(1 - power). Dimensions that are principal components
    are then divided by their common root mean square, since they are meant to differ; otherwise each dimension is
    scaled to variance 1, without which models learn slowly.

    Args:
        vectors: (V+1, H) vectors of a source.
        settings: `whitening`, `power`, `eps` and `num_components`, which is at most H.

    Example:
        >>> given = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> whitened(given, ItemTextConfig(whitening="pca", num_components=1)).vectors.abs().tolist()
        [[0.0], [1.0], [1.0]]
    """
    known = vectors.abs().sum(dim=1) > 0
    centred = vectors[known].double()
    mean = centred.mean(dim=0)
    centred = centred - mean
    axes, scales, is_rotated = _axes(centred, settings)
    components = centred @ axes / scales
    squares = components.square().mean() if is_rotated else components.square().mean(dim=0)
    size = squares.sqrt().clamp(min=_TINY)
    result = torch.zeros(len(vectors), axes.shape[1])
    result[known] = (components / size).float()
    return Whitened(result, mean.float(), (axes / scales / size).float())


def _axes(centred: Tensor, settings: ItemTextConfig) -> tuple[Tensor, Tensor, bool]:
    """Return axes (H, C), divisors (C,) of the components on them, and whether they are principal components.

    Principal components without variance become 0, so that new texts do not get large components there.
    """
    width = centred.shape[1]
    num_components = settings.num_components or width
    is_reduced = num_components < width
    if settings.whitening == "none" and not is_reduced:
        return torch.eye(width, dtype=centred.dtype), torch.ones(width, dtype=centred.dtype), False
    values, axes = torch.linalg.eigh(centred.T @ centred / max(1, len(centred)))
    order = values.argsort(descending=True)[:num_components]
    variances = values[order] + settings.eps * values.mean()
    scales = variances.clamp(min=_TINY).sqrt().pow(0.0 if settings.whitening == "none" else settings.power)
    scales[values[order] <= values.max() * _SMALLEST] = torch.inf
    if settings.whitening == "zca" and not is_reduced:
        return axes[:, order] / scales @ axes[:, order].T, torch.ones_like(scales), False
    return axes[:, order], scales, True
