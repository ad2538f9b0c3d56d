"""Terms of the distillation loss.

A term is a subclass of `DistillationTerm` that is listed in `TERMS`, and a default weight of the same name in
`slmrec.config.DistillWeights`; a user adds one by `register_term`.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from slmrec.config import DistillConfig, DistillWeights
from slmrec.config.distill import OWN_TERMS
from slmrec.data.dataset import Ints
from slmrec.errors import ConfigError
from slmrec.training.block_heads import block_heads, block_supervision
from slmrec.training.divergences import (
    Compare,
    catalogue_divergence,
    cosine_loss,
    norm_loss,
    popularity_groups,
    top_k_and_rest,
    whole_catalogue,
    within_groups,
)
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.list_targets import ListTargets, list_cross_entropy
from slmrec.types import Batch, ItemBonus

Side = Literal["student", "teacher"]


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
    batch: Batch | None = None
    """The batch."""

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
    item_counts: Ints | None = None
    """(V+1,) number of training events of each item."""
    lists: ListTargets | None = None
    """Lists of a teacher outside."""
    student_heads: nn.ModuleList | None = None
    """Heads of the student at its inner blocks, for multiple supervision."""
    teacher_heads: nn.ModuleList | None = None
    """Heads of the teacher at its inner blocks."""


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
    """Cross-entropy of user vectors that heads W_k compute from the student's hidden states at each inner block."""

    name = "multiple"
    needs_states = ("student",)
    needs_scores = ("student",)

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        self.adapters = inputs.student_heads or block_heads(inputs.student, inputs.settings.num_blocks)

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        student = outputs.student
        return block_supervision(
            self.adapters, student.hidden_states, student.items, outputs.targets, self.catalogue_loss
        )


class KLDivergence(DistillationTerm):
    """Kullback-Leibler divergence of the student's scores from the teacher's, both softened by a temperature.

    With `kl_top_k` it compares the teacher's best items, and all other items together as one class.

    Raises:
        ConfigError: `kl_top_k` is not less than the number of items.
    """

    name = "kl"
    needs_scores = ("student", "teacher")

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        self.temperature, top_k = inputs.settings.kl_temperature, inputs.settings.kl_top_k
        num_items = len(inputs.student.item_vectors()) - 1
        if top_k is not None and top_k >= num_items:
            raise ConfigError(
                f"distill.kl_top_k is {top_k}, but the catalogue has {num_items} items; give a smaller number, or "
                "leave distill.kl_top_k out to compare the scores of all items"
            )
        self.top_k = top_k

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        return self.divergence(outputs, whole_catalogue if self.top_k is None else top_k_and_rest(self.top_k))

    def divergence(self, outputs: DistillationOutputs, compare: Compare) -> Tensor:
        """Return the divergence of the scores of a batch, as `compare` measures it."""
        student, teacher = outputs.student, outputs.teacher
        return catalogue_divergence(
            student.users,
            student.items,
            teacher.users,
            teacher.items,
            self.temperature,
            bonus=student.bonus,
            teacher_bonus=teacher.bonus,
            compare=compare,
        )


class StratifiedKL(KLDivergence):
    """Kullback-Leibler divergence of the scores within groups of items of similar popularity, the mean over the groups.

    It says nothing of the share that a group of items gets, so a teacher's bias towards popular items is not taught.

    Source: Chen et al., Unbiased Knowledge Distillation for Recommendation (WSDM 2023; UnKD). UnKD compares sampled
    pairs of items within the groups; here all items of a group are compared by their scores.

    Raises:
        ValueError: There are no counts by which items could be grouped.
    """

    name = "stratified_kl"

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        if inputs.item_counts is None:
            raise ValueError("stratified_kl needs item_counts, the number of training events of each item")
        groups = popularity_groups(inputs.item_counts, inputs.settings.num_popularity_groups)
        self.sizes = [len(group) for group in groups]
        self.register_buffer("columns", torch.cat(groups), persistent=False)

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        return self.divergence(outputs, within_groups(torch.split(self.get_buffer("columns"), self.sizes)))


class BlockKL(KLDivergence):
    """Kullback-Leibler divergence between the scores of student and teacher at the end of each inner block, summed.

    The scores are those of the heads of multiple supervision. Gradients reach the student alone.

    Raises:
        ValueError: The heads are missing.
    """

    name = "block_kl"
    needs_states = ("student", "teacher")

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        if inputs.teacher_heads is None or inputs.student_heads is None:
            raise ValueError("block_kl needs student_heads and teacher_heads, those of multiple supervision")
        self.heads = (inputs.student_heads, inputs.teacher_heads)  # a tuple, since other modules own them

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        divergences = []
        for head, teacher_head, states, teacher_states in zip(
            *self.heads, outputs.student.hidden_states[:-1], outputs.teacher.hidden_states[:-1], strict=True
        ):
            student = ModelOutput(head(states), outputs.student.items)
            teacher = ModelOutput(teacher_head(teacher_states).detach(), outputs.teacher.items)
            divergences.append(self.divergence(outputs._replace(student=student, teacher=teacher), whole_catalogue))
        return torch.stack(divergences).sum()


class ListedItems(DistillationTerm):
    """Cross-entropy of the items that a teacher outside lists, at the newest training position of their users.

    It is summed over the lists of a batch and divided by the number of its supervised positions, so that a list weighs
    as much as one target of `CrossEntropy`.

    Raises:
        ValueError: There are no lists.
    """

    name = "lists"
    needs_scores = ("student",)

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        if inputs.lists is None:
            raise ValueError("the term lists needs the lists of a teacher, as ListTargets")
        self.lists, self.agreement = inputs.lists, inputs.settings.list_weights.agreement

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        """Return the loss of a batch."""
        assert outputs.batch is not None
        student, listed = outputs.student, self.lists.of_batch(outputs.batch)
        if listed is None:
            return 0 * student.users.sum()
        bonus = None if student.bonus is None else student.bonus.select(listed.positions.tolist())
        mean = list_cross_entropy(student.users[listed.positions], student.items, listed, self.agreement, bonus)
        return mean * (len(listed.positions) / len(outputs.targets))


TERMS: dict[str, type[DistillationTerm]] = {
    term.name: term
    for term in (
        CrossEntropy,
        CosineLoss,
        NormLoss,
        MultipleSupervision,
        KLDivergence,
        StratifiedKL,
        BlockKL,
        ListedItems,
    )
}
"""Terms of the distillation loss by name; their weights stand under the same names in `distill.weights`."""


def register_term(term: type[DistillationTerm]) -> None:
    """Let `distill.weights` name a term of your own; its weight is 0 unless it is given.

    Args:
        term: The class; another one of the same name is replaced, unless it is of slmrec.

    Raises:
        ValueError: The name is no identifier, or is taken by a term of slmrec.
    """
    if not term.name.isidentifier() or term.name in DistillWeights.model_fields:
        raise ValueError(f"the name of a loss term is {term.name!r}, expected an identifier other than {list(TERMS)}")
    TERMS[term.name] = term
    OWN_TERMS[term.name] = bool(term.needs_states)


def active_terms(settings: DistillConfig) -> dict[str, type[DistillationTerm]]:
    """Return the terms with a weight above 0, in the order of the weights."""
    return {name: TERMS[name] for name, weight in settings.weights.model_dump().items() if weight > 0}


def needs_states(settings: DistillConfig, side: Side) -> bool:
    """Return whether an active term reads the hidden states of the student or of the teacher."""
    return any(side in term.needs_states for term in active_terms(settings).values())


def needs_teacher(settings: DistillConfig) -> bool:
    """Return whether an active term reads any output of the teacher."""
    return any("teacher" in (*term.needs_states, *term.needs_scores) for term in active_terms(settings).values())
