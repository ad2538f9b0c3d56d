"""Sources of teacher outputs for distillation."""

from typing import Any, Protocol

from torch import Tensor, nn

from slmrec.inference.freeze import freeze
from slmrec.inference.frozen_model import FrozenModel
from slmrec.types import Batch, Encoded, ItemBonus, SequenceEncoder


class TeacherOutputs(Protocol):
    """Source of teacher outputs.

    It is a model that learns (`LiveTeacher`), one that does not (`FrozenTeacher`), or cached outputs (`CachedTeacher`).
    """

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


class FrozenTeacher(LiveTeacher):
    """Outputs of a teacher that does not learn, computed for each batch, as histories that change need them.

    The model is in evaluation mode. Its item vectors, and the prompt of a decoder, are computed once.

    Args:
        model: The teacher, a `SequenceEncoder`; its weights must not change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.requires_grad_(False).eval())
        self._frozen: FrozenModel | None = None

    def item_vectors(self) -> Tensor:
        """Return the item vectors (V+1, D); row 0 is padding."""
        return self._freeze().item_vectors()

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        """Return the outputs of the model at the supervised positions of a batch, without gradients."""
        encoded = self._freeze().encode(batch.histories, every_position=batch.every_position, num_blocks=num_blocks)
        bonus = None if encoded.bonus is None else ItemBonus(*(part.clone() for part in encoded.bonus))
        # Tensors of inference mode cannot take part in a backward pass; their copies can.
        return Encoded(encoded.users.clone(), tuple(states.clone() for states in encoded.hidden_states), bonus)

    def _freeze(self) -> FrozenModel:
        if self._frozen is None:  # not before the weights are on their device
            self._frozen = freeze(self.model, fused=False)  # type: ignore[arg-type]
        return self._frozen
