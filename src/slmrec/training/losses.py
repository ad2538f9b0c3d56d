"""Training losses: next-item prediction, and distillation as a weighted sum of terms."""

from typing import Any

import torch
from torch import nn

from slmrec.config import DistillConfig
from slmrec.data.dataset import Ints
from slmrec.training.block_heads import block_heads, block_supervision
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.list_targets import ListTargets
from slmrec.training.teacher import TeacherOutputs
from slmrec.training.terms import (
    DistillationOutputs,
    ModelOutput,
    TermInputs,
    active_terms,
    needs_states,
    needs_teacher,
)
from slmrec.types import Batch, Encoded, LossTerms, SequenceEncoder


class NextItemLoss(nn.Module):
    """Cross-entropy of the items that follow in the histories, with multiple supervision where it has a weight.

    Args:
        model: The model to train, a `SequenceEncoder`; it needs a `hidden_size` only for multiple supervision.
        catalogue_loss: Cross-entropy to use; None: the plain one over the whole catalogue.
        multiple: Weight of multiple supervision of the inner blocks, whose `heads` train with the model.
        num_blocks: Number of blocks for multiple supervision.

    Example:
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> from slmrec.types import Histories
        >>> loss = NextItemLoss(SasRec(SasRecConfig(num_items=40, hidden_size=8)))
        >>> batch = Batch(Histories(torch.tensor([[3, 7, 0]]), torch.tensor([2])), torch.tensor([5]), False)
        >>> loss(batch).total.requires_grad
        True
    """

    def __init__(
        self,
        model: nn.Module,
        catalogue_loss: CatalogueLoss | None = None,
        multiple: float = 0.0,
        num_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.multiple = model, multiple
        self.num_blocks = num_blocks if multiple else 0
        self.catalogue_loss = catalogue_loss or CatalogueLoss()
        self.heads = block_heads(model, num_blocks) if multiple else None

    def forward(self, batch: Batch) -> LossTerms:
        """Return the loss of a batch."""
        encoder: SequenceEncoder = self.model  # type: ignore[assignment]
        encoded = encoder.encode(batch.histories, every_position=batch.every_position, num_blocks=self.num_blocks)
        output = ModelOutput(encoded.users, encoder.item_vectors(), encoded.hidden_states, encoded.bonus)
        total = self.catalogue_loss(output.users, output.items, batch.targets, output.bonus)
        parts = {"ce": total.detach()}
        if self.heads is not None:
            supervised = block_supervision(
                self.heads, output.hidden_states, output.items, batch.targets, self.catalogue_loss
            )
            total, parts = total + self.multiple * supervised, parts | {"multiple": supervised.detach()}
        return LossTerms(total, parts)


class DistillationLoss(nn.Module):
    """Weighted sum of the distillation terms, and the cross-entropy of a teacher that is trained online.

    The loss owns what only training needs: a projection between hidden states of different widths, and the parameters
    of its terms. A term of weight 0 is neither built nor computed, and the models are asked only for the outputs that
    the remaining terms need. Gradients never flow from a term into the teacher; an online teacher learns from its own
    cross-entropy alone, and from multiple supervision where it has a weight.

    Args:
        student: The model to train, a `SequenceEncoder`; it needs a `hidden_size` only if a term reads hidden states.
        teacher: Module that implements `TeacherOutputs`; it is frozen unless the mode is online.
        settings: Settings of the distillation.
        catalogue_loss: Cross-entropy of all terms that use one.
        item_counts: (V+1,) number of training events of each item; only terms that group items by them need it.
        lists: Lists of a teacher outside; only the term `lists` needs them.
        teacher_heads: Heads of the teacher at its inner blocks; only `block_kl` and `teacher_multiple` need them.
        teacher_multiple: Weight of multiple supervision in the loss of a teacher that is trained online.

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
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: DistillConfig,
        catalogue_loss: CatalogueLoss,
        item_counts: Ints | None = None,
        lists: ListTargets | None = None,
        teacher_heads: nn.ModuleList | None = None,
        teacher_multiple: float = 0.0,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.teacher_heads = student, teacher, teacher_heads
        self.catalogue_loss, self.online = catalogue_loss, settings.mode == "online"
        compares_states = needs_states(settings, "teacher")
        self.teacher_multiple = teacher_multiple if self.online else 0.0
        self.num_student_blocks = settings.num_blocks if needs_states(settings, "student") else 0
        self.num_teacher_blocks = settings.num_blocks if compares_states or self.teacher_multiple else 0
        self.reads_teacher = self.online or needs_teacher(settings)
        self.projection = _projection(student, teacher) if compares_states else nn.Identity()
        heads = block_heads(student, settings.num_blocks) if settings.weights.multiple else None
        inputs = TermInputs(settings, catalogue_loss, student, item_counts, lists, heads, teacher_heads)
        self.terms = nn.ModuleDict({name: term(inputs) for name, term in active_terms(settings).items()})
        self.weights: dict[str, float] = {name: getattr(settings.weights, name) for name in self.terms}
        self.clipped_apart = ("teacher.", "teacher_heads.") if self.online else ()
        """Prefixes of parameters whose gradients are clipped apart from all others."""
        self.may_skip_parameters = not self.terms.keys() & {"ce", "kl"}
        """True if parameters may be without gradient, such as the head of a student that only hidden states teach."""
        if teacher_heads is not None:
            teacher_heads.requires_grad_(self.teacher_multiple > 0)
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
        outputs = DistillationOutputs(
            self._student_output(batch), teacher_output, batch.targets, self.projection, batch
        )
        terms = {name: term(outputs) for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        parts = {name: term.detach() for name, term in terms.items()}
        if self.online:
            teacher_ce = self.catalogue_loss(
                teacher_output.users, teacher_output.items, batch.targets, teacher_output.bonus
            )
            total, parts = total + teacher_ce, parts | {"teacher_ce": teacher_ce.detach()}
        if self.teacher_multiple and self.teacher_heads is not None:
            supervised = block_supervision(
                self.teacher_heads,
                teacher_output.hidden_states,
                teacher_output.items,
                batch.targets,
                self.catalogue_loss,
            )
            total = total + self.teacher_multiple * supervised
            parts |= {"teacher_multiple": supervised.detach()}
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
