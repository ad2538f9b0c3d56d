"""Types shared by all packages, and the names of tensor dimensions.

Shapes, used in every docstring: B users in a batch, L items of a history, P prompt tokens before the items, S response
tokens after them, D width of an item vector, H hidden width of a decoder, V items of the catalogue, K candidates,
N read-out positions (B when only the newest position is read, the sum of the lengths when every position is).

Items are internal indices 1..V; 0 is padding. The caller's own ids live in the data set and in model folders only.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Unit = Literal["s", "ms", "us", "ns"]
"""Unit of times."""
PER_SECOND: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class Histories(NamedTuple):
    """Item histories of a batch of users, oldest item first.

    Example:
        >>> import torch
        >>> Histories(torch.tensor([[3, 7, 0], [5, 0, 0]]), torch.tensor([2, 1])).items.shape
        torch.Size([2, 3])
    """

    items: "Tensor"
    """(B, L) int64 items, padded with 0 on the right."""
    lengths: "Tensor"
    """(B,) int64 number of items of each history, at least 1."""
    times: "Tensor | None" = None
    """(B, L) int64 times of the items, in the `timestamp_unit` of the model that reads them; None: not given."""

    def to(self, device: "torch.device") -> "Histories":
        """Return the histories on a device; a copy from pinned memory does not wait for it."""
        times = None if self.times is None else _moved(self.times, device)
        return Histories(_moved(self.items, device), _moved(self.lengths, device), times)

    def pinned(self) -> "Histories":
        """Return the histories in pinned memory."""
        times = None if self.times is None else self.times.pin_memory()
        return Histories(self.items.pin_memory(), self.lengths.pin_memory(), times)

    def select(self, rows: "slice | list[int] | Tensor") -> "Histories":
        """Return the histories of some users."""
        return Histories(self.items[rows], self.lengths[rows], None if self.times is None else self.times[rows])

    def trimmed(self) -> "Histories":
        """Return the histories without columns that are padding in all of them."""
        width = int(self.lengths.max())
        return Histories(self.items[:, :width], self.lengths, None if self.times is None else self.times[:, :width])


class Batch(NamedTuple):
    """Training samples: histories and the items that follow them."""

    histories: Histories
    targets: "Tensor"
    """(N,) int64 item that follows each supervised position, in row-major order."""
    every_position: bool
    """True: every item position is supervised (N = sum of lengths). False: only the newest one (N = B)."""
    rows: "Tensor | None" = None
    """(B,) int64 sample numbers; only cached teacher outputs and precomputed user vectors need them."""

    def to(self, device: "torch.device") -> "Batch":
        """Return the batch on a device; `rows` are only used on the CPU and stay where they are."""
        return self._replace(histories=self.histories.to(device), targets=_moved(self.targets, device))

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory, but for `rows`."""
        return self._replace(histories=self.histories.pinned(), targets=self.targets.pin_memory())


class ItemBonus(NamedTuple):
    """Additive score term for a few items of each user, for example the items of the history."""

    items: "Tensor"
    """(N, E) int64 items, padded with 0."""
    scores: "Tensor"
    """(N, E) float term added to the score of each item; an item that occurs twice receives both terms."""

    def select(self, rows: slice | list[int]) -> "ItemBonus":
        """Return the bonus of some users."""
        return ItemBonus(self.items[rows], self.scores[rows])


class Encoded(NamedTuple):
    """Model output for a batch of histories.

    The scores of user n are `users[n] @ item_vectors.T`, plus `bonus` where it is present.
    """

    users: "Tensor"
    """(N, D) user vectors."""
    hidden_states: "tuple[Tensor, ...]" = ()
    """Hidden states (N, H) at the end of each block, the last one after the final norm; empty unless requested."""
    bonus: ItemBonus | None = None
    """Additive score term for a few items of each user; None: no such term."""

    def select(self, rows: slice | list[int]) -> "Encoded":
        """Return the output for some users."""
        bonus = None if self.bonus is None else self.bonus.select(rows)
        return Encoded(self.users[rows], tuple(states[rows] for states in self.hidden_states), bonus)


class LossTerms(NamedTuple):
    """Loss, and the terms of which it is the weighted sum."""

    total: "Tensor"
    """Scalar, to be minimised."""
    parts: "dict[str, Tensor]"
    """Detached scalars, unweighted, named as in the paper."""


class SequenceEncoder(Protocol):
    """Model interface that evaluation, losses and recommendation use; SASRec, decoders and ensembles implement it."""

    @property
    def num_items(self) -> int:
        """V."""

    @property
    def max_history_items(self) -> int:
        """The longest history the model reads; callers keep the newest."""

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Return user vectors and, with `num_blocks` > 0, the hidden states at the end of each block.

        Args:
            histories: the histories, on the device of the model.
            every_position: encode every item position (N = sum of lengths) instead of only the newest one (N = B).
            num_blocks: number of blocks of equal depth whose final hidden states are returned.
        """

    def item_vectors(self) -> "Tensor":
        """(V+1, D); row 0 is the padding item and is never recommended."""


def timestamp_unit_of(reader: object) -> Unit | None:
    """Return the unit in which a model or scorer reads the times of events; None: it reads none."""
    return cast("Unit | None", getattr(reader, "timestamp_unit", None))


def _moved(value: "Tensor", device: "torch.device") -> "Tensor":
    return value.to(device, non_blocking=device.type == "cuda")
