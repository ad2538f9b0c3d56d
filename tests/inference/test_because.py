"""Reasons of recommendations: the items of the history without which the score is lower, by `score` alone."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import torch
from artefacts import MODELS, sasrec

from slmrec import Recommender
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError
from slmrec.models.baselines import build_baseline
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import Vocabulary
from slmrec.models.model import Model
from slmrec.models.sasrec import SasRec, SasRecConfig

HISTORIES = [
    ["i20", "i01", "nope", "i02", "i03", "i02", "i04", "i05", "i06"],  # more than the 6 read, one twice
    ["i07", "i08"],
    [],
    ["nope"],
    ["i09"],
    ["i09", "i09"],
]


def timed() -> Model:
    torch.manual_seed(0)
    settings = {"num_items": 40, "hidden_size": 8, "max_history_items": 6}
    model = SasRec(SasRecConfig(**settings, time_gaps={}, timestamp_unit="s"))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return Ensemble.of({"plain": sasrec(), "timed": model.eval()}, {"plain": 0.5, "timed": 1.0})


CASES: dict[str, Callable[[], Model]] = {**MODELS, "timed": timed}


def recommender_of(model: Model, dataset: Dataset) -> Recommender:
    return Recommender(model, Vocabulary(dataset.item_ids, None, pa.array(dataset.train_counts()[1:])))


def expected_reasons(
    recommender: Recommender, window: list[str], times: list[int], item: str
) -> list[tuple[str, float, float]]:
    """Return (item, difference, share), the largest first, one call of `score` for each item left out."""

    def score(kept: list[bool]) -> float:
        items = [own for own, is_kept in zip(window, kept, strict=True) if is_kept]
        moments = [time for time, is_kept in zip(times, kept, strict=True) if is_kept]
        return float(recommender.score([items], [item], timestamps=[moments]))

    whole = score([True] * len(window))
    differences = {left: whole - score([own != left for own in window]) for left in dict.fromkeys(window)}
    positive = {left: difference for left, difference in differences.items() if difference > 1e-4}
    total = sum(positive.values())
    found = [(left, difference, difference / total) for left, difference in positive.items()]
    return sorted(found, key=lambda reason: -reason[1])


@pytest.mark.parametrize("name", CASES)
def test_reasons_are_the_items_without_which_the_score_is_lower(name: str, tiny_dataset: Dataset) -> None:
    recommender = recommender_of(CASES[name](), tiny_dataset)
    timestamps = [[86_400 * place**2 for place in range(len(history))] for history in HISTORIES]
    plain = recommender.recommend(HISTORIES, 4, filter_seen=False, timestamps=timestamps)
    answer = recommender.recommend(HISTORIES, 4, filter_seen=False, timestamps=timestamps, because=50)
    assert answer.table.drop_columns("because").equals(plain.table)
    num_reasons = 0
    for row in answer.table.to_pylist():
        found = [tuple(reason.values()) for reason in row["because"]]
        history = HISTORIES[row["user_id"]]
        pairs = zip(history, timestamps[row["user_id"]], strict=True)
        newest = [(own, time) for own, time in pairs if own != "nope"][-6:]
        window, times = [own for own, _ in newest], [time for _, time in newest]
        if len(set(window)) < 2:
            assert found == [(own, None, 1.0) for own in set(window)]
            continue
        num_reasons += len(found)
        expected = expected_reasons(recommender, window, times, row["item_id"])
        assert [reason[0] for reason in found] == [reason[0] for reason in expected]
        assert [reason[1] for reason in found] == pytest.approx([reason[1] for reason in expected], abs=1e-4)
        assert [reason[2] for reason in found] == pytest.approx([reason[2] for reason in expected], abs=1e-2)
    assert num_reasons > 0
    few = recommender.recommend(HISTORIES, 4, filter_seen=False, timestamps=timestamps, because=True).table
    assert few["because"].to_pylist() == [reasons[:3] for reasons in answer.table["because"].to_pylist()]


def test_baselines_are_explained_by_what_they_read(tiny_dataset: Dataset) -> None:
    popularity = recommender_of(build_baseline("popularity", tiny_dataset), tiny_dataset)
    assert popularity.recommend(HISTORIES, because=True).table["because"].to_pylist() == [[]] * 60
    cooccurrence = recommender_of(build_baseline("cooccurrence", tiny_dataset), tiny_dataset)
    table = cooccurrence.recommend([["i01", "i02"]], 40, because=True).table
    together = cooccurrence.score([["i02"]], table["item_id"].to_pylist())[0].round().tolist()
    assert cooccurrence.score([["i02"]], []).shape == (1, 0)
    assert 0.0 in together and max(together) > 1
    for reasons, count in zip(table["because"].to_pylist(), together, strict=True):
        assert reasons == ([{"item_id": "i02", "difference": pytest.approx(count), "share": 1.0}] if count else [])


@pytest.mark.parametrize("because", [0, -1, 1.5, "yes", None])
def test_a_number_of_reasons_below_one_is_refused(because: Any, tiny_dataset: Dataset) -> None:
    with pytest.raises(ConfigError) as caught:
        recommender_of(sasrec(), tiny_dataset).recommend([["i01"]], because=because)
    wanted = f"because is {because!r}, expected True, False, or the number of reasons, at least 1"
    assert str(caught.value) == wanted
