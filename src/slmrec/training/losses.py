"""Training losses: next-item prediction, and the terms of distillation.

A distillation term is a subclass of `DistillationTerm` that is listed in `TERMS`, and a default weight of the same name
in `slmrec.config.DistillWeights`.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.config import DistillConfig
from slmrec.training.full_softmax import CatalogueLoss, catalogue_divergence
from slmrec.training.teacher import TeacherOutputs
from slmrec.types import Batch, Encoded, ItemBonus, LossTerms, SequenceEncoder

Side = Literal["student", "teacher"]


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 1 - cosine similarity between hidden states (N, H).

    Example:
        >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
        1.0

    Source: SLMRec, the feature similarity term (cosine).
    """
    return (1 - F.cosine_similarity(_upcast(student), _upcast(teacher), dim=-1)).mean()


def norm_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Euclidean (L2) distance between hidden states (N, H).

    Example:
        >>> norm_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).item()
        5.0

    Source: SLMRec, the feature norm term.
    """
    distances: Tensor = torch.linalg.vector_norm(_upcast(student) - _upcast(teacher), dim=-1)
    return distances.mean()


def _upcast(states: Tensor) -> Tensor:
    """Return the states in float32 or better; bfloat16 is too coarse for sums of squares and differences."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


class NextItemLoss(nn.Module):
    """Cross-entropy of the items that follow in the histories.

    Args:
        model: The model to train, a `SequenceEncoder`.
        catalogue_loss: Cross-entropy to use; None: the plain one over the whole catalogue.

    Example:
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> from slmrec.types import Histories
        >>> loss = NextItemLoss(SasRec(SasRecConfig(num_items=40, hidden_size=8)))
        >>> batch = Batch(Histories(torch.tensor([[3, 7, 0]]), torch.tensor([2])), torch.tensor([5]), False)
        >>> loss(batch).total.requires_grad
        True
    """

    def __init__(self, model: nn.Module, catalogue_loss: CatalogueLoss | None = None) -> None:
        super().__init__()
        self.model = model
        self.catalogue_loss = catalogue_loss or CatalogueLoss()

    def forward(self, batch: Batch) -> LossTerms:
        """Return the loss of a batch."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        encoded = encoder.encode(batch.histories, every_position=batch.every_position)
        total = self.catalogue_loss(encoded.users, encoder.item_vectors(), batch.targets, encoded.bonus)
        return LossTerms(total, {"ce": total.detach()})


class ModelOutput(NamedTuple):
    """Outputs of one model for a batch."""

    users: Tensor
    """(N, D) user vectors."""
    items: Tensor
    """(V+1, D) item vectors."""
    hidden_states: tuple[Tensor, ...] = ()
    """Hidden states (N, H) at the end of each block; empty unless a term needs them."""
    bonus: ItemBonus | None = None
    """Additive score term for a few items of each user; None: no such term."""


class DistillationOutputs(NamedTuple):
    """Inputs of the distillation terms for a batch."""

    student: ModelOutput
    teacher: ModelOutput
    """Empty tensors where no term needs the teacher."""
    targets: Tensor
    """(N,) items 1..V."""
    projection: nn.Module
    """Map of the student's hidden states to the teacher's width."""

    def state_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the hidden states of student and teacher at the end of each block, in the width of the teacher."""
        for student, teacher in zip(self.student.hidden_states, self.teacher.hidden_states, strict=True):
            yield self.projection(student), teacher.detach()


class TermInputs(NamedTuple):
    """Arguments from which a distillation term is built."""

    settings: DistillConfig
    catalogue_loss: CatalogueLoss
    student: Any
    """The student, from whose sizes a term may make parameters of its own."""


class DistillationTerm(nn.Module):
    """Base class of the terms of the distillation loss.

    A subclass sets the class attributes, implements `forward`, and may own parameters, which train with the student.
    """

    name: ClassVar[str]
    """Name of the term: its key in `TERMS`, in the YAML and in the training log."""
    needs_states: ClassVar[tuple[Side, ...]] = ()
    """Models whose hidden states the term reads."""
    needs_scores: ClassVar[tuple[Side, ...]] = ()
    """Models whose user and item vectors, and thus scores, the term reads."""

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__()
        self.catalogue_loss = inputs.catalogue_loss

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the unweighted scalar loss of a batch."""
        raise NotImplementedError


class CrossEntropy(DistillationTerm):
    """Cross-entropy of the next items."""

    name = "ce"
    needs_scores = ("student",)

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        student = outputs.student
        return self.catalogue_loss(student.users, student.items, outputs.targets, student.bonus)


class CosineLoss(DistillationTerm):
    """Cosine loss between the hidden states of student and teacher, summed over the blocks."""

    name = "cosine"
    needs_states = ("student", "teacher")

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        return torch.stack([cosine_loss(student, teacher) for student, teacher in outputs.state_pairs()]).sum()


class NormLoss(DistillationTerm):
    """Euclidean (L2) distance between the hidden states of student and teacher, summed over the blocks."""

    name = "norm"
    needs_states = ("student", "teacher")

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        return torch.stack([norm_loss(student, teacher) for student, teacher in outputs.state_pairs()]).sum()


class MultipleSupervision(DistillationTerm):
    """Cross-entropy of user vectors that adapters W_k compute from the student's hidden states at each inner block."""

    name = "multiple"
    needs_states = ("student",)
    needs_scores = ("student",)

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        student = inputs.student
        sizes = student.hidden_size, student.item_vectors().shape[1]
        inner_blocks = range(inputs.settings.num_blocks - 1)  # the last block is supervised through the user vector
        self.adapters = nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in inner_blocks)

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        pairs = zip(self.adapters, outputs.student.hidden_states, strict=False)
        items, targets = outputs.student.items, outputs.targets
        return torch.stack([self.catalogue_loss(adapter(states), items, targets) for adapter, states in pairs]).sum()


class KLDivergence(DistillationTerm):
    """Kullback-Leibler divergence of the student's scores from the teacher's, both softened by a temperature."""

    name = "kl"
    needs_scores = ("student", "teacher")

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        self.temperature = inputs.settings.kl_temperature

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        student, teacher = outputs.student, outputs.teacher
        return catalogue_divergence(
            student.users,
            student.items,
            teacher.users,
            teacher.items,
            self.temperature,
            bonus=student.bonus,
            teacher_bonus=teacher.bonus,
        )


TERMS: dict[str, type[DistillationTerm]] = {
    term.name: term for term in (CrossEntropy, CosineLoss, NormLoss, MultipleSupervision, KLDivergence)
}
"""Terms of the distillation loss by name; their weights stand under the same names in `distill.weights`."""


def active_terms(settings: DistillConfig) -> dict[str, type[DistillationTerm]]:
    """Return the terms with a weight above 0, in the order of the weights."""
    return {name: TERMS[name] for name, weight in settings.weights.model_dump().items() if weight > 0}


def needs_states(settings: DistillConfig, side: Side) -> bool:
    """Return whether an active term reads the hidden states of the student or of the teacher."""
    return any(side in term.needs_states for term in active_terms(settings).values())


def needs_teacher(settings: DistillConfig) -> bool:
    """Return whether an active term reads any output of the teacher."""
    return any("teacher" in (*term.needs_states, *term.needs_scores) for term in active_terms(settings).values())


class DistillationLoss(nn.Module):
    """Weighted sum of the distillation terms, and the cross-entropy of a teacher that is trained online.

    The loss owns what only training needs: a projection between hidden states of different widths, and the parameters
    of its terms. A term of weight 0 is neither built nor computed, and the models are asked only for the outputs that
    the remaining terms need. Gradients never flow from a term into the teacher; an online teacher learns from its own
    cross-entropy alone.

    Args:
        student: The model to train, a `SequenceEncoder`; it needs a `hidden_size` only if a term reads hidden states.
        teacher: Module that implements `TeacherOutputs`; it is frozen unless the mode is online.
        settings: Settings of the distillation.
        catalogue_loss: Cross-entropy of all terms that use one.

    Source: SLMRec, the distillation losses; docs/paper.md names the class of each term.

    Example:
        >>> from slmrec.config import DistillWeights
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> from slmrec.training.teacher import LiveTeacher
        >>> from slmrec.types import Histories
        >>> student, teacher = (SasRec(SasRecConfig(num_items=40, hidden_size=8)) for _ in range(2))
        >>> settings = DistillConfig(weights=DistillWeights(ce=1, cosine=0, norm=0, multiple=0, kl=0.5))
        >>> loss = DistillationLoss(student, LiveTeacher(teacher), settings, CatalogueLoss())
        >>> batch = Batch(Histories(torch.tensor([[3, 7, 0]]), torch.tensor([2])), torch.tensor([5]), False)
        >>> sorted(loss(batch).parts)
        ['ce', 'kl']
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, settings: DistillConfig, catalogue_loss: CatalogueLoss
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.catalogue_loss, self.online = catalogue_loss, settings.mode == "online"
        compares_states = needs_states(settings, "teacher")
        self.num_student_blocks = settings.num_blocks if needs_states(settings, "student") else 0
        self.num_teacher_blocks = settings.num_blocks if compares_states else 0
        self.reads_teacher = self.online or needs_teacher(settings)
        self.projection = _projection(student, teacher) if compares_states else nn.Identity()
        inputs = TermInputs(settings, catalogue_loss, student)
        self.terms = nn.ModuleDict({name: term(inputs) for name, term in active_terms(settings).items()})
        self.weights: dict[str, float] = {name: getattr(settings.weights, name) for name in self.terms}
        self.clipped_apart = ("teacher.",) if self.online else ()
        """Prefixes of parameters whose gradients are clipped apart from all others."""
        if not self.online:
            teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DistillationLoss":
        """Set the training mode; a frozen teacher stays in evaluation mode, without dropout."""
        super().train(mode)
        if not self.online:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> LossTerms:
        """Return the loss of a batch, with its terms and, online, the teacher's cross-entropy as `teacher_ce`."""
        teacher_output = self._teacher_output(batch)
        outputs = DistillationOutputs(self._student_output(batch), teacher_output, batch.targets, self.projection)
        terms = {name: term(outputs) for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        parts = {name: term.detach() for name, term in terms.items()}
        if self.online:
            teacher_ce = self.catalogue_loss(
                teacher_output.users, teacher_output.items, batch.targets, teacher_output.bonus
            )
            total, parts = total + teacher_ce, parts | {"teacher_ce": teacher_ce.detach()}
        return LossTerms(total, parts)

    def _student_output(self, batch: Batch) -> ModelOutput:
        student: SequenceEncoder = self.student  # type: ignore[assignment]
        encoded = student.encode(
            batch.histories, every_position=batch.every_position, num_blocks=self.num_student_blocks
        )
        return ModelOutput(encoded.users, student.item_vectors(), encoded.hidden_states, encoded.bonus)

    def _teacher_output(self, batch: Batch) -> ModelOutput:
        if not self.reads_teacher:
            return ModelOutput(torch.empty(0), torch.empty(0))
        teacher: TeacherOutputs = self.teacher  # type: ignore[assignment]
        with torch.set_grad_enabled(self.online and torch.is_grad_enabled()):
            encoded: Encoded = teacher.outputs(batch, self.num_teacher_blocks)
        return ModelOutput(encoded.users, teacher.item_vectors(), encoded.hidden_states, encoded.bonus)


def _projection(student: Any, teacher: Any) -> nn.Module:
    if student.hidden_size == teacher.hidden_size:
        return nn.Identity()
    return nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)
