"""Initial item vectors: leading components of text vectors, or a projection of a teacher's item vectors."""

import torch
from torch import Tensor

from slmrec.types import Histories, SequenceEncoder

BATCH = 256
"""Number of histories encoded at once."""


def leading_components(vectors: Tensor, width: int) -> Tensor:
    """Return the first columns (V+1, width) of principal components (V+1, C); missing ones are small noise.

    Zero rows stay zero.
    """
    components = vectors[:, :width]
    scale = components.square().mean().sqrt()
    noise = 0.1 * scale * torch.randn(len(vectors), width - components.shape[1])
    return torch.cat([components, noise.where(vectors.any(dim=1, keepdim=True), 0.0)], dim=1)


def projected_items(teacher: SequenceEncoder, histories: Histories, width: int) -> Tensor:
    """Return item vectors (V+1, width) that can reproduce the teacher's scores best.

    E are the teacher's centred item vectors, and C is the second moment of its user vectors. The result consists of the
    leading right singular vectors of C^(1/2) E^T, each multiplied by its singular value. Among all products of user and
    item vectors of this width, theirs have the smallest mean squared error over the users. Missing dimensions are zero.

    Args:
        teacher: Model whose scores are approximated.
        histories: Histories of a sample of users.
        width: Width of the result.
    """
    with torch.inference_mode():
        items = teacher.item_vectors().detach().double().cpu()
        device = teacher.item_vectors().device
        rows = [slice(start, start + BATCH) for start in range(0, len(histories.items), BATCH)]
        parts = [histories.select(some).to(device) for some in rows]
        users = torch.cat([teacher.encode(part).users.double().cpu() for part in parts])
    items = items - items[1:].mean(dim=0)
    root = _square_root(users.T @ users / len(users))
    values, axes = torch.linalg.eigh(root @ (items[1:].T @ items[1:]) @ root)
    order = values.argsort(descending=True)[:width]
    result = torch.zeros(len(items), width)
    result[:, : len(order)] = (items @ root @ axes[:, order]).float()
    result[0] = 0
    return result


def _square_root(matrix: Tensor) -> Tensor:
    """Return the square root of a symmetric matrix without negative eigenvalues."""
    values, axes = torch.linalg.eigh(matrix)
    root: Tensor = axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T
    return root
