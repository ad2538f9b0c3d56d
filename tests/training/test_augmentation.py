"""Augmented histories are parts of the histories, with the items that follow; the teacher reads them itself."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from slmrec.config.distill import AugmentSettings, DistillConfig
from slmrec.data.dataset import Samples
from slmrec.data.event_times import EventTimes
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training.augmentation import augmented
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.losses import DistillationLoss
from slmrec.training.samples import TrainingSamples
from slmrec.training.teacher import FrozenTeacher
from slmrec.types import Batch

NONE: dict[str, None] = {"crop": None, "drop": None, "reorder": None}
FLAT = np.arange(1, 61)
STARTS, ENDS = np.array([0, 12, 30, 58]), np.array([11, 29, 57, 59])  # the last history has one item


def samples(every_position: bool) -> TrainingSamples:
    timed = replace(Samples.of(FLAT, STARTS, ENDS, np.arange(4)), times=EventTimes("s", 10 * FLAT))
    return TrainingSamples(timed, 30, every_position, "s")


def sequences(batch: Batch) -> list[list[int]]:
    """Return each history with the item that follows it."""
    items, lengths = (part.tolist() for part in batch.histories[:2])
    ends = np.cumsum(lengths) - 1 if batch.every_position else np.arange(len(lengths))
    return [[*row[:n], batch.targets[end].item()] for row, n, end in zip(items, lengths, ends, strict=True)]


@pytest.mark.parametrize("every_position", [False, True])
@pytest.mark.parametrize("change", ["crop", "drop", "reorder"])
def test_changed_histories_are_parts_in_their_order(change: str, every_position: bool) -> None:
    data = samples(every_position)
    torch.manual_seed(0)
    for _ in range(20):
        batch = replace(data, augment=AugmentSettings.model_validate(NONE | {change: 0.5, "share": 1})).collate(
            np.arange(4)
        )
        assert batch.rows is not None and batch.rows.tolist() == [-1, -1, -1, 3]
        found = sequences(batch)
        for whole, part in zip(sequences(data.collate(np.arange(4)))[:3], found[:3], strict=True):
            if change == "reorder":
                assert part != whole and sorted(part) == whole and part[-1] == whole[-1]
                continue
            assert 2 <= len(part) < len(whole) and set(part) <= set(whole) and part == sorted(part)
            if change == "crop":
                assert len(part) == round(0.5 * (len(whole) - 1)) + 1 and all(b - a == 1 for a, b in pairwise(part))
        assert found[3] == [59, 60]
        own_times = [time for times in batch.histories.times.tolist() for time in times if time]
        assert own_times == [10 * item for part in found for item in sorted(part[:-1])]
        if every_position:
            assert batch.targets.tolist() == [item for part in found for item in part[1:]]


def test_changes_are_drawn_from_the_seed_for_a_share_of_the_histories() -> None:
    data = samples(every_position=False)
    rows = np.tile(np.arange(3), 200)

    def drawn(share: float) -> Batch:
        torch.manual_seed(5)
        return augmented(data.collate(rows), AugmentSettings(share=share))

    one, other = drawn(0.3), drawn(0.3)
    assert torch.equal(one.histories.items, other.histories.items) and one.rows is not None
    assert 0.2 < (one.rows < 0).float().mean().item() < 0.4
    unchanged = [
        row for row, (a, b) in enumerate(zip(sequences(one), sequences(data.collate(rows)), strict=True)) if a == b
    ]
    assert unchanged == [row for row in range(len(rows)) if one.rows[row] >= 0]


def test_the_teacher_reads_the_changed_histories() -> None:
    """KL from a teacher with dropout is that of its evaluation mode on the batch, and teaches the student alone."""
    student, teacher = (SasRec(SasRecConfig(num_items=60, hidden_size=8, max_history_items=30)) for _ in range(2))
    weights = {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1}
    loss = DistillationLoss(
        student, FrozenTeacher(teacher), DistillConfig.model_validate({"weights": weights}), CatalogueLoss()
    )
    batch = replace(samples(every_position=False), augment=AugmentSettings(share=1)).collate(np.arange(4))
    loss.eval()
    with torch.no_grad():
        expected = [
            (model.encode(batch.histories).users @ model.item_vectors()[1:].T).log_softmax(dim=1)
            for model in (teacher.eval(), student.eval())
        ]
    value = loss(batch).total
    torch.testing.assert_close(
        value, torch.nn.functional.kl_div(expected[1], expected[0], reduction="batchmean", log_target=True)
    )
    loss.train()
    assert not teacher.training and student.training
    loss(batch).total.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in student.parameters())


def test_settings_that_change_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="crop, drop and reorder are null, so no history is changed"):
        AugmentSettings.model_validate(NONE)
