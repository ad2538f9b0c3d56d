"""The losses: next item over the catalogue, and every term by which a teacher teaches a student."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.training.full_softmax import (
    ItemSampler,
    catalogue_cross_entropy,
    catalogue_divergence,
    sampled_cross_entropy,
)
from slmrec.types import Batch, Encoded, LossTerms, SequenceEncoder


def feature_direction(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity between states (N, H).

    >>> feature_direction(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
    1.0

    Source: SLMRec, the feature similarity term (cosine).
    """
    return (1 - F.cosine_similarity(_exact(student), _exact(teacher), dim=-1)).mean()


def feature_norm(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Euclidean distance between states (N, H).

    >>> feature_norm(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).item()
    5.0

    Source: SLMRec, the feature norm term.
    """
    distances: Tensor = torch.linalg.vector_norm(_exact(student) - _exact(teacher), dim=-1)
    return distances.mean()


def _unit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return feature_norm(F.normalize(student, dim=-1), F.normalize(teacher, dim=-1))


def _exact(states: Tensor) -> Tensor:
    """In float32 at least: under autocast states come in bfloat16, whose sums and differences are too coarse."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


class _CrossEntropy:
    """The cross-entropy of next items over the whole catalogue, or over fresh draws where there is a sampler."""

    def __init__(
        self,
        sampler: ItemSampler | None,
        num_sampled: int,
        include_padding: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        if (sampler is None) != (num_sampled == 0):
            raise ValueError(f"num_sampled is {num_sampled}: expected items to draw if and only if there is a sampler")
        if sampler is not None and include_padding:
            raise ValueError("include_padding with a sampler: the padding item is never drawn; give one of the two")
        if sampler is not None and label_smoothing:
            raise ValueError("label_smoothing with a sampler: it spreads over the whole catalogue; give one of the two")
        self.sampler, self.num_sampled, self.include_padding = sampler, num_sampled, include_padding
        self.label_smoothing = label_smoothing

    def __call__(self, users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        if self.sampler is None:
            return catalogue_cross_entropy(users, items, targets, self.include_padding, self.label_smoothing)
        return sampled_cross_entropy(users, items, targets, self.sampler.draw(self.num_sampled), self.sampler.log_q)


class NextItemLoss(nn.Module):
    """Cross-entropy of a model's next items.

    Args:
        model: the model that learns.
        sampler: with it, the targets compete with drawn items instead of the whole catalogue.
        num_sampled: items drawn for each batch, K.
        label_smoothing: the share of each label that is spread over the catalogue.
    """

    def __init__(
        self, model: nn.Module, sampler: ItemSampler | None = None, num_sampled: int = 0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.cross_entropy = _CrossEntropy(sampler, num_sampled, label_smoothing=label_smoothing)

    def forward(self, batch: Batch) -> LossTerms:
        """The loss of one batch."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        users = encoder.encode(batch.histories, every_position=batch.every_position).users
        total = self.cross_entropy(users, encoder.item_vectors(), batch.targets)
        return LossTerms(total, {"ce": total.detach()})


class TeacherOutputs(Protocol):
    """Source of teacher outputs: a live model (`LiveTeacher`) or outputs stored before training."""

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        """Return the teacher's output for a batch, with the hidden states of `num_blocks` blocks."""


class LiveTeacher(nn.Module):
    """Teacher outputs computed by the model itself, for a teacher that goes on training.

    Args:
        model: the teacher, a `SequenceEncoder`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        return encoder.item_vectors()

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        """Return the teacher's output at the supervised positions of a batch."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        return encoder.encode(batch.histories, every_position=batch.every_position, num_blocks=num_blocks)


class DistillationLoss(nn.Module):
    """The student's loss: cross-entropy and whatever the teacher adds, each term by its own weight.

    Owns what only training needs: a projection of the student's states where the widths differ, and the adapters W_k
    of multiple supervision. A term of weight 0 is neither computed nor given parameters.

    Args:
        student: the model that learns.
        teacher: a module that implements `TeacherOutputs`.
        widths: hidden widths (student, teacher).
        item_width: D.
        num_blocks: B.
        weights: by term: `ce`, `cosine`, `norm`, `multiple`, `kl`.
        kl_temperature: softens both score distributions.
        normalized_states: scale the states to length 1 before their distance is taken.
        online: the teacher goes on learning from cross-entropy; it is never pulled towards the student.
        include_padding: let the padding item compete in the cross-entropies, as the reference does.
        sampler: with it, the cross-entropies run over drawn items instead of the whole catalogue.
        num_sampled: items drawn for each cross-entropy, K.
        label_smoothing: the share of each label that is spread over the catalogue, in every cross-entropy.

    Source: SLMRec, the distillation losses; docs/paper.md names the function of each term.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        widths: tuple[int, int],
        item_width: int,
        num_blocks: int,
        weights: dict[str, float],
        kl_temperature: float = 1.0,
        normalized_states: bool = False,
        online: bool = False,
        include_padding: bool = False,
        sampler: ItemSampler | None = None,
        num_sampled: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.num_blocks, self.kl_temperature, self.online = num_blocks, kl_temperature, online
        self.distance = _unit_distance if normalized_states else feature_norm
        self.cross_entropy = _CrossEntropy(sampler, num_sampled, include_padding, label_smoothing)
        aligned = bool({"cosine", "norm"} & self.weights.keys())
        self.projection: nn.Module = nn.Identity()
        if aligned and widths[0] != widths[1]:
            self.projection = nn.Linear(*widths, bias=False)
        self.adapters = nn.ModuleList(
            nn.Linear(widths[0], item_width, bias=False)
            for _ in range(num_blocks - 1 if "multiple" in self.weights else 0)
        )
        self.num_teacher_blocks = num_blocks if aligned else 0
        self.num_student_blocks = num_blocks if aligned or "multiple" in self.weights else 0
        if not online:
            teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DistillationLoss":
        """Training mode for all but a frozen teacher, which keeps answering without dropout."""
        super().train(mode)
        if not self.online:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> LossTerms:
        """The loss of one batch."""
        student: SequenceEncoder = self.student  # type: ignore[assignment]
        teacher: TeacherOutputs = self.teacher  # type: ignore[assignment]
        with torch.set_grad_enabled(self.online and torch.is_grad_enabled()):
            taught = teacher.outputs(batch, self.num_teacher_blocks)
        learned = student.encode(
            batch.histories, every_position=batch.every_position, num_blocks=self.num_student_blocks
        )
        compute = self._terms(learned, taught, student.item_vectors(), teacher.item_vectors(), batch.targets)
        terms = {name: compute[name]() for name in self.weights}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        parts = {name: term.detach() for name, term in terms.items()}
        if self.online:
            own = self.cross_entropy(taught.users, teacher.item_vectors(), batch.targets)
            total, parts = total + own, parts | {"teacher_ce": own.detach()}
        return LossTerms(total, parts)

    def _terms(
        self, learned: Encoded, taught: Encoded, items: Tensor, teacher_items: Tensor, targets: Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        def over_blocks(distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            pairs = zip(learned.hidden_states, taught.hidden_states, strict=True)
            return torch.stack([distance(self.projection(own), other.detach()) for own, other in pairs]).sum()

        def cross_entropy(users: Tensor) -> Tensor:
            return self.cross_entropy(users, items, targets)

        def multiple() -> Tensor:
            pairs = zip(self.adapters, learned.hidden_states, strict=False)  # the last block is the user vector's own
            return torch.stack([cross_entropy(adapter(state)) for adapter, state in pairs]).sum()

        def divergence() -> Tensor:
            return catalogue_divergence(learned.users, items, taught.users, teacher_items, self.kl_temperature)

        return {
            "ce": lambda: cross_entropy(learned.users),
            "cosine": lambda: over_blocks(feature_direction),
            "norm": lambda: over_blocks(self.distance),
            "multiple": multiple,
            "kl": divergence,
        }
