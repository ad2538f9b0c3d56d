"""Lists of a teacher outside: files of every format, and their items as weighted targets."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from slmrec.config import DistillConfig
from slmrec.config.distill import ListWeights
from slmrec.data.dataset import Dataset, Samples
from slmrec.data.teacher_lists import TeacherLists, read_lists
from slmrec.errors import DataError
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.list_targets import ListBatch, ListTargets, list_cross_entropy
from slmrec.training.losses import DistillationLoss
from slmrec.training.samples import TrainingSamples
from slmrec.training.teacher import LiveTeacher
from slmrec.types import ItemBonus

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"user_id": 7, "item_id": "b", "rank": 1, "confidence": 0.5},
    {"user_id": 9, "item_id": "a", "rank": 3, "confidence": 0.25},
    {"user_id": 7, "item_id": "a", "rank": 0, "confidence": 1.0},
    {"user_id": 9, "item_id": "new", "rank": 1, "confidence": 1.0},
    {"user_id": 9, "item_id": "c", "rank": 2, "confidence": 0.75},
    {"user_id": 99, "item_id": "c", "rank": 1, "confidence": 0.75},
]


@pytest.fixture
def dataset() -> Dataset:
    """Users 7, 8, 9 with five events each of the items a, b, c."""
    flat = np.array([1, 2, 3, 1, 2] * 3)
    users, items = pa.table({"user_id": [7, 8, 9]}), pa.table({"item_id": ["a", "b", "c"]})
    return Dataset(flat, np.array([0, 5, 10, 15]), users, items, "")


def write(rows: Rows, path: Path) -> Path:
    kind = path.name.partition(".")[2]
    separator = "\t" if kind.startswith("tsv") else ","
    text = "\n".join([separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)])
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(f"{text}\n".encode()))
    else:
        path.write_text(f"{text}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz"])
def test_lists_are_read_from_every_format(kind: str, dataset: Dataset, tmp_path: Path) -> None:
    lists, message = read_lists(write(ROWS, tmp_path / f"lists.{kind}"), dataset)
    assert lists.offsets.tolist() == [0, 2, 2, 4]
    assert lists.items.tolist() == [1, 2, 3, 1]
    assert lists.places.tolist() == [1, 2, 2, 3]
    assert lists.confidences is not None and lists.confidences.tolist() == [1.0, 0.5, 0.75, 0.25]
    assert "lists of 2 of 3 users" in message
    assert message.endswith("left out: 1 rows of unknown users, 1 rows of unknown items of 6")


def test_recommendations_are_lists(dataset: Dataset, tmp_path: Path) -> None:
    """The table that `slmrec recommend` writes has scores, which are no confidences."""
    rows = [{"user_id": 8.0, "item_id": item, "score": -2.5, "rank": place} for place, item in enumerate("cab")]
    lists, _ = read_lists(write(rows, tmp_path / "lists.parquet"), dataset)
    assert lists.items.tolist() == [3, 1, 2] and lists.confidences is None and lists.num_users == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rank": "first"}, r"lists\.csv: line 2: rank is 'first': expected a whole number from 0; correct or remove"),
        ({"rank": 1.5}, "rank is '1.5': expected a whole number"),
        ({"rank": -1}, "rank is '-1': expected a whole number"),
        ({"confidence": "inf"}, "confidence is 'inf': expected a number from 0"),
        ({"confidence": -0.5}, "confidence is '-0.5': expected a number from 0"),
        ({"item_id": ""}, "item_id is .*: expected an id"),
        ({"item_id": "a", "rank": 5}, "user 7 has the item 'a' more than once; give each item of a list one row"),
        ({"rank": 0}, "user 7 has the rank 0 more than once"),
    ],
)
def test_a_faulty_row_is_named(change: dict[str, Any], expected: str, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=expected):
        read_lists(write([ROWS[0] | change, *ROWS[1:]], tmp_path / "lists.csv"), dataset)


@pytest.mark.parametrize("value", [True, [1], {"a": 1}])
def test_a_column_without_numbers_is_named(value: Any, dataset: Dataset, tmp_path: Path) -> None:
    rows = [ROWS[0] | {"rank": value}]
    with pytest.raises(
        DataError, match=r"lists\.parquet: column 'rank' has the type .*, expected numbers; convert the"
    ):
        read_lists(write(rows, tmp_path / "lists.parquet"), dataset)
    with pytest.raises(DataError, match=r"lists\.jsonl: line 1: rank is .*: expected a whole number from 0"):
        read_lists(write(rows, tmp_path / "lists.jsonl"), dataset)


def test_a_file_without_lists_of_the_data_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"distill\.lists: .*none\.csv: no such file; give a table with user_id"):
        read_lists(tmp_path / "none.csv", dataset)
    others = write([ROWS[0] | {"user_id": 5}], tmp_path / "others.csv")
    with pytest.raises(DataError, match="none of its 1 rows names a user and an item of the data set, such as 7 and"):
        read_lists(others, dataset)
    unranked = write([{"user_id": 7, "item_id": "a"}], tmp_path / "unranked.csv")
    with pytest.raises(
        DataError, match=r"no column 'rank' \(columns: user_id, item_id\); expected user_id, item_id, rank"
    ):
        read_lists(unranked, dataset)


LISTS = TeacherLists(
    np.array([0, 2, 2, 5]), np.array([4, 1, 2, 3, 5]), np.array([1, 2, 1, 3, 4]), np.array([3, 1, 0, 2, 2], np.float32)
)
"""Lists of users 0 and 2."""
FLAT = np.array([1, 2, 3, 4, 5, 1, 2, 3, 4, 5])
SAMPLES = Samples.of(FLAT, np.array([0, 0, 4, 6, 6]), np.array([3, 2, 5, 8, 9]), np.array([0, 0, 1, 2, 2]))
"""Samples 0 and 4 end with the newest targets of users 0 and 2; user 1 has no list."""


@pytest.mark.parametrize("every_position", [False, True])
def test_a_list_belongs_to_the_newest_position_of_its_user(every_position: bool) -> None:
    data = TrainingSamples(SAMPLES, 9, every_position)
    targets = ListTargets(LISTS, data, ListWeights(position=1, confidence=2, agreement=0, temperature=2))
    assert targets.num_users == 2
    listed = targets.of_batch(data.collate(np.array([1, 4, 2, 0, 3])))
    assert listed is not None
    assert listed.positions.tolist() == ([4, 8] if every_position else [1, 3])
    assert listed.items.tolist() == [[2, 3, 5], [4, 1, 0]]
    first, second = np.exp([0, -1.0, -1.5]), np.exp([0, -0.5])
    expected = [
        first / first.sum() + 2 * np.array([0, 0.5, 0.5]),
        [*(second / second.sum() + 2 * np.array([0.75, 0.25])), 0],
    ]
    torch.testing.assert_close(listed.weights, torch.tensor(np.array(expected), dtype=torch.float32))
    assert targets.of_batch(data.collate(np.array([1, 2, 3]))) is None
    changed = data.collate(np.array([4]))._replace(rows=torch.tensor([-1]))  # an augmented history
    assert targets.of_batch(changed) is None


def test_lists_that_could_not_teach_are_refused() -> None:
    data = TrainingSamples(SAMPLES.take(np.array([2])), 9, False)
    with pytest.raises(DataError, match="none of the 2 users with a list has a training sample"):
        ListTargets(LISTS, data, ListWeights())
    plain = LISTS._replace(confidences=None)
    with pytest.raises(
        DataError, match=r"no item has a weight: .*the file has no confidence above 0; give one of them"
    ):
        ListTargets(plain, TrainingSamples(SAMPLES, 9, False), ListWeights(position=0, agreement=0))
    with pytest.raises(ValidationError, match="all weights are 0"):
        ListWeights(position=0, confidence=0, agreement=0)


@pytest.mark.parametrize("agreement", [0.0, 0.7])
def test_loss_and_gradients_are_those_of_all_scores(agreement: float) -> None:
    torch.manual_seed(0)
    users, items = torch.randn(2, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    listed = ListBatch(
        torch.tensor([0, 1]), torch.tensor([[2, 3, 5], [4, 1, 0]]), torch.tensor([[0.5, 0.2, 0.1], [0.6, 0.3, 0.0]])
    )
    chosen, added = torch.tensor([[1, 2], [7, 0]]), torch.randn(2, 2, dtype=torch.float64)

    def fast(users: torch.Tensor, items: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        return list_cross_entropy(users, items, listed, agreement, ItemBonus(chosen, added))

    def slow(users: torch.Tensor, items: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        scores = (users @ items.T).scatter_add(1, chosen, added * (chosen > 0))[:, 1:]
        losses = []
        for row, own_items, weights in zip(scores, listed.items.tolist(), listed.weights.tolist(), strict=True):
            length = sum(item > 0 for item in own_items)
            best = (row.argsort(descending=True)[:length] + 1).tolist()
            pairs = [
                (item, weight + agreement * (item in best)) for item, weight in zip(own_items, weights, strict=True)
            ]
            pairs = pairs[:length]
            total = sum(weight for _, weight in pairs)
            losses.append(-sum(weight / total * row.log_softmax(dim=0)[item - 1] for item, weight in pairs))
        return torch.stack(losses).mean()  # type: ignore[arg-type]

    results = []
    for loss in (fast, slow):
        inputs = [value.clone().requires_grad_() for value in (users, items, added)]
        total = loss(*inputs)
        results.append([total, *torch.autograd.grad(total, inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_term_adds_the_lists_of_a_batch_to_the_student() -> None:
    student, teacher = (SasRec(SasRecConfig(num_items=5, hidden_size=4, max_history_items=9)) for _ in range(2))
    weights = {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "lists": 1}
    settings = DistillConfig.model_validate({"weights": weights, "lists": "file"})
    data = TrainingSamples(SAMPLES, 9, False)
    targets = ListTargets(LISTS, data, settings.list_weights)
    loss = DistillationLoss(student, LiveTeacher(teacher), settings, CatalogueLoss(), lists=targets).eval()
    batch = data.collate(np.array([1, 4, 2, 0]))
    total = loss(batch).total
    listed, encoded = targets.of_batch(batch), student.encode(batch.histories)
    assert listed is not None
    mean = list_cross_entropy(encoded.users[[1, 3]], student.item_vectors(), listed, settings.list_weights.agreement)
    torch.testing.assert_close(total, mean * 2 / 4)
    total.backward()
    assert student.item_embeddings is not None and student.item_embeddings.weight.grad is not None
    assert student.item_embeddings.weight.grad.abs().sum() > 0
    nothing = loss(data.collate(np.array([1, 2]))).total
    assert nothing == 0 and nothing.requires_grad
