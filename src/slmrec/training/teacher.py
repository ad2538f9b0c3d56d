"""Sources of teacher outputs for distillation."""

from typing import Any, Protocol

from torch import Tensor, nn

from slmrec.types import Batch, Encoded, SequenceEncoder


class TeacherOutputs(Protocol):
    """Source of teacher outputs: a live model (`LiveTeacher`) or outputs cached before training (`CachedTeacher`)."""

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states; read only if a distillation term compares hidden states."""

    def item_vectors(self) -> Tensor:
        """Return the item vectors (V+1, D); row 0 is padding."""

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        """Return the user vectors of a batch and, with `num_blocks` > 0, the hidden states at the end of each block."""


class LiveTeacher(nn.Module):
    """Teacher outputs computed by the model itself, as online distillation needs them.

    Args:
        model: The teacher, a `SequenceEncoder`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states."""
        model: Any = self.model
        return int(model.hidden_size)

    def item_vectors(self) -> Tensor:
        """Return the item vectors (V+1, D); row 0 is padding."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        return encoder.item_vectors()

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        """Return the outputs of the model at the supervised positions of a batch."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        return encoder.encode(batch.histories, every_position=batch.every_position, num_blocks=num_blocks)
