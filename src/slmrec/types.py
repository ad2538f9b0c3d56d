"""What the parts hand to each other, and the legend of the shapes.

Shapes, used in every docstring: B users in a batch, L items of a history, P prompt tokens before the items, S response
tokens after them, D width of an item vector, H hidden width of a decoder, V items of the catalogue, K candidates,
N read-out positions (B when only the newest position is read, the sum of the lengths when every position is).

Items are internal indices 1..V; 0 is padding. The caller's own ids live in the data set and in model folders only.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Batch(NamedTuple):
    """Histories, oldest item first, padded with 0 on the right."""

    items: "Tensor"
    """(B, L) int64."""
    lengths: "Tensor"
    """(B,) int64, at least 1."""
    targets: "Tensor"
    """(N,) int64: the item that follows each read-out position, in row-major order."""
    every_position: bool
    """Whether every item position is read out (N = sum of lengths) or only the newest (N = B)."""
    rows: "Tensor | None" = None
    """(B,) int64: which samples these are; None where nobody asks."""

    def to(self, device: "torch.device") -> "Batch":
        """The same on a device; `rows` stay, since what they number is not on it."""
        return self._replace(
            items=self.items.to(device), lengths=self.lengths.to(device), targets=self.targets.to(device)
        )


class Encoded(NamedTuple):
    """What a model makes of a batch."""

    users: "Tensor"
    """(N, D) user vectors; their dot products with the item vectors are the scores."""
    blocks: "tuple[Tensor, ...]"
    """Hidden states (N, H) at the end of each block, the last one after the final norm; empty unless asked for."""


class LossTerms(NamedTuple):
    """A loss and what it is made of."""

    total: "Tensor"
    """Scalar, to be minimised."""
    parts: "dict[str, Tensor]"
    """Detached scalars, unweighted, named as in the paper."""


class SequenceEncoder(Protocol):
    """What evaluation, losses and recommendation ask of a model; SASRec, the decoder and an ensemble satisfy it."""

    @property
    def num_items(self) -> int:
        """V."""

    @property
    def max_history_items(self) -> int:
        """The longest history the model reads; callers keep the newest."""

    def encode(self, batch: Batch, num_blocks: int = 0) -> Encoded:
        """User vectors at the read-out positions and, if asked for, the states at the end of each block."""

    def item_vectors(self) -> "Tensor":
        """(V+1, D); row 0 is the padding item and is never recommended."""
