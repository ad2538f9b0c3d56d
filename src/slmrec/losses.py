"""The losses: next item over the catalogue, and every term by which a teacher teaches a student."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.types import Batch, Encoded, LossTerms, SequenceEncoder


def catalogue_cross_entropy(users: Tensor, items: Tensor, targets: Tensor, include_padding: bool = False) -> Tensor:
    """Mean cross-entropy of the targets over the whole catalogue.

    Args:
        users: (N, D) user vectors.
        items: (V+1, D) item vectors, row 0 padding.
        targets: (N,) items 1..V.
        include_padding: let the padding item compete, as the reference does.

    Source: SLMRec, the recommendation loss.
    """
    if include_padding:
        return F.cross_entropy(users @ items.T, targets)
    return F.cross_entropy(users @ items[1:].T, targets - 1)


def feature_direction(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity between states (N, H).

    >>> feature_direction(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
    1.0

    Source: SLMRec, the feature similarity term (cosine).
    """
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def feature_norm(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Euclidean distance between states (N, H).

    >>> feature_norm(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).item()
    5.0

    Source: SLMRec, the feature norm term.
    """
    distances: Tensor = torch.linalg.vector_norm(student - teacher, dim=-1)
    return distances.mean()


def score_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between softened scores (N, V), times temperature squared.

    Source: Hinton et al. 2015; the logit variant that SLMRec's code offers for online distillation.
    """
    log_p, log_q = (F.log_softmax(scores / temperature, dim=-1) for scores in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


class NextItemLoss(nn.Module):
    """Cross-entropy of a model's next items."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> LossTerms:
        """The loss of one batch."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        users = encoder.encode(batch).users
        total = catalogue_cross_entropy(users, encoder.item_vectors(), batch.targets)
        return LossTerms(total, {"ce": total.detach()})


class DistillationLoss(nn.Module):
    """The student's loss: cross-entropy and whatever the teacher adds, each term by its own weight.

    Owns what only training needs: a projection of the student's states where the widths differ, and the adapters W_k
    of multiple supervision. A term of weight 0 is neither computed nor given parameters.

    Args:
        student: the model that learns.
        teacher: the model it learns from.
        widths: hidden widths (student, teacher).
        item_width: D.
        num_blocks: B.
        weights: by term: `ce`, `cosine`, `norm`, `multiple`, `kl`.
        kl_temperature: softens both score distributions.
        online: the teacher goes on learning from cross-entropy; it is never pulled towards the student.

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
        online: bool = False,
        include_padding: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.num_blocks, self.kl_temperature, self.online = num_blocks, kl_temperature, online
        self.include_padding = include_padding
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
        teacher: SequenceEncoder = self.teacher  # type: ignore[assignment]
        with torch.set_grad_enabled(self.online and torch.is_grad_enabled()):
            taught = teacher.encode(batch, self.num_teacher_blocks)
        learned = student.encode(batch, self.num_student_blocks)
        compute = self._terms(learned, taught, student.item_vectors(), teacher.item_vectors(), batch.targets)
        terms = {name: compute[name]() for name in self.weights}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        parts = {name: term.detach() for name, term in terms.items()}
        if self.online:
            own = catalogue_cross_entropy(taught.users, teacher.item_vectors(), batch.targets, self.include_padding)
            total, parts = total + own, parts | {"teacher_ce": own.detach()}
        return LossTerms(total, parts)

    def _terms(
        self, learned: Encoded, taught: Encoded, items: Tensor, teacher_items: Tensor, targets: Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        def over_blocks(distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            pairs = zip(learned.blocks, taught.blocks, strict=True)
            return torch.stack([distance(self.projection(own), other.detach()) for own, other in pairs]).sum()

        def cross_entropy(users: Tensor) -> Tensor:
            return catalogue_cross_entropy(users, items, targets, self.include_padding)

        def multiple() -> Tensor:
            pairs = zip(self.adapters, learned.blocks, strict=False)  # the last block is the user vector's own
            return torch.stack([cross_entropy(adapter(state)) for adapter, state in pairs]).sum()

        def divergence() -> Tensor:
            scores = taught.users.detach() @ teacher_items[1:].detach().T
            return score_divergence(learned.users @ items[1:].T, scores, self.kl_temperature)

        return {
            "ce": lambda: cross_entropy(learned.users),
            "cosine": lambda: over_blocks(feature_direction),
            "norm": lambda: over_blocks(feature_norm),
            "multiple": multiple,
            "kl": divergence,
        }
