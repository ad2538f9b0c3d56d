"""Evaluation and training on a data set split by time, in which only some users have a held-out item."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from slmrec.config import BASELINES, Config
from slmrec.data.dataset import Dataset
from slmrec.errors import DataError
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.models.baselines import build_baseline
from slmrec.models.folder import save_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.pipeline import evaluate
from slmrec.pipeline.evaluation_tables import show
from slmrec.pipeline.fitting import fit_model, training_samples
from slmrec.pipeline.stage import Task
from slmrec.training.losses import NextItemLoss
from slmrec.types import Histories

NUM_ITEMS, VALID_FROM, TEST_FROM = 40, 50, 75


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with 60 users, whose events lie anywhere between times 0 and 99."""
    generator = np.random.default_rng(0)
    rows = [
        (user + 1, int(generator.integers(1, NUM_ITEMS + 1)), int(time))
        for user in range(60)
        for time in np.sort(generator.integers(0, 100, generator.integers(1, 9)))
    ]
    folder = tmp_path_factory.mktemp("run") / "prepare"
    folder.mkdir()
    table = dict(zip(("user", "item", "timestamp"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(table), folder / "interactions.parquet")
    pq.write_table(pa.table({"user_id": [f"u{user}" for user in range(60)]}), folder / "users.parquet")
    pq.write_table(pa.table({"item_id": [f"i{item}" for item in range(NUM_ITEMS)]}), folder / "items.parquet")
    rules = {"split": "temporal", "valid_from": VALID_FROM, "test_from": TEST_FROM}
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": "x", "rules": rules}), encoding="utf-8")
    return folder.parent


def events(run: Path) -> dict[int, list[tuple[int, int]]]:
    """Times and items of each user (from 0)."""
    table = pq.read_table(run / "prepare" / "interactions.parquet").to_pylist()
    return {user: [(row["timestamp"], row["item"]) for row in table if row["user"] == user + 1] for user in range(60)}


def targets(run: Path) -> dict[int, int]:
    """The item of each user's first event of test, if there is one and an event before it."""
    return {
        user: next(item for time, item in log if time >= TEST_FROM)
        for user, log in events(run).items()
        if log[0][0] < TEST_FROM <= log[-1][0]
    }


def test_the_ranks_are_those_of_the_users_with_a_test_target(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = []
    throughput = evaluate.throughput
    data = Dataset.load(run / "prepare")
    for name in BASELINES:
        save_recommender(build_baseline(name, data), data, tmp_path / name, name, {})
    folders = {name: tmp_path / name for name in BASELINES}
    monkeypatch.setattr(evaluate, "model_folders", lambda config, output: folders)
    monkeypatch.setattr(evaluate, "throughput", lambda *a, **k: timed.append(len(a[1])) or throughput(*a, **k))
    protocols = ["full_history_excluded", "full", "sampled_5"]
    settings = {"protocols": protocols, "timing_users": 7, "batch_size": 4}
    config = Config.model_validate({"evaluate": settings, "finetune": {"item_vectors": None}})
    evaluate.build(Task(config, run, tmp_path))
    wanted = targets(run)
    assert 0 < len(wanted) < 60 and timed == [7]
    rows = pq.read_table(tmp_path / "per_user.parquet").to_pandas()
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert list(content["protocols"]) == protocols
    negatives = load_file(tmp_path / "negatives.safetensors")["negatives"]
    for protocol, values in content["protocols"].items():
        assert values["settings"]["split"] == "temporal, test"
        for model, metrics in values["models"].items():
            own = rows[(rows["protocol"] == protocol) & (rows["model"] == model)]
            assert own["user_id"].tolist() == [f"u{user}" for user in wanted]
            assert ranking_metrics(own["rank"].to_numpy())["mrr"] == pytest.approx(metrics["mrr"])
            assert ("coverage@10" in metrics) == (protocol != "sampled_5")
            assert "ild@10" not in metrics  # there are no item vectors
    assert sorted(np.flatnonzero(negatives.any(axis=1)).tolist()) == sorted(wanted)
    trained = [item for log in events(run).values() for time, item in log if time < VALID_FROM]
    counts = np.bincount(trained, minlength=NUM_ITEMS + 1)
    histories = [
        [item for time, item in log if time < TEST_FROM] for user, log in events(run).items() if user in wanted
    ]
    best = np.argsort(-counts[1:], kind="stable")[:10] + 1
    lift = counts[best].mean() / np.mean([counts[history].mean() for history in histories]) - 1
    found = content["protocols"]["full"]["models"]["popularity"]
    assert found["coverage@10"] == pytest.approx(10 / NUM_ITEMS)
    assert found["popularity_lift@10"] == pytest.approx(lift)
    show(tmp_path)
    printed = capsys.readouterr().out
    assert "top 10 of each user" in printed and f"{lift:.4f}" in printed
    by_popularity = rows[rows["model"] == "popularity"]
    for protocol in ("full", "sampled_5"):
        ranks = by_popularity[by_popularity["protocol"] == protocol]["rank"].tolist()
        for (user, target), rank in zip(wanted.items(), ranks, strict=True):
            others = negatives[user] if protocol == "sampled_5" else np.delete(np.arange(1, NUM_ITEMS + 1), target - 1)
            better, alike = (counts[others] > counts[target]).sum(), (counts[others] == counts[target]).sum()
            assert better <= rank <= better + alike


def test_baselines_count_what_lies_before_validation(run: Path) -> None:
    data = Dataset.load(run / "prepare")
    baskets = [{item for time, item in log if time < VALID_FROM} for log in events(run).values()]
    cooccurrence, items = build_baseline("cooccurrence", data), torch.arange(1, NUM_ITEMS + 1)
    scores = all_scores(cooccurrence, items)
    for last in range(1, NUM_ITEMS + 1):
        expected = [sum({last, item} <= basket for basket in baskets) for item in range(1, NUM_ITEMS + 1)]
        expected[last - 1] = 0
        counts = scores[last - 1, 1:].floor()  # ties are broken by popularity, which adds 1/2 at most
        assert counts.tolist() == expected
    assert build_baseline("popularity", data).item_vectors()[:, 0].tolist() == data.train_counts().tolist()


def all_scores(model: Any, items: torch.Tensor) -> torch.Tensor:
    """Return the scores (V, V+1) of all items after each item."""
    encoded = model.encode(Histories(items[:, None], torch.ones_like(items)))
    scores = encoded.users @ model.item_vectors().T
    return scores.scatter_add(1, encoded.bonus.items, encoded.bonus.scores)


def test_models_learn_from_what_lies_before_validation_alone(run: Path, tmp_path: Path) -> None:
    data = Dataset.load(run / "prepare")
    model = SasRec(SasRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_history_items=5))
    samples = training_samples(data, "every_prefix", model.max_history_items)
    expected = sum(max(0, sum(time < VALID_FROM for time, _ in log) - 1) for log in events(run).values())
    assert len(samples.samples) == expected
    config = Config.model_validate({"pretrain": {"sasrec": {"train": {"num_train_epochs": 1, "eval_max_users": 3}}}})
    task, settings = Task(config, run, tmp_path, "sasrec"), config.pretrain["sasrec"].train
    metrics = fit_model(task, "pretrain.sasrec", model, NextItemLoss(model), samples, settings)
    assert 0 <= metrics["valid/ndcg@10"] <= 1
    counts = pq.read_table(tmp_path / "items.parquet")["count"].to_pylist()
    assert counts == data.train_counts()[1:].tolist()


def test_nobody_to_train_on_is_one_line(run: Path) -> None:
    data = Dataset.load(run / "prepare")
    late = Dataset(data.flat, data.offsets, data.users, data.items, "x", np.zeros_like(data.cuts))
    with pytest.raises(DataError, match="none of the 60 users has the 2 events before the time of validation"):
        training_samples(late, "every_prefix", 50)
