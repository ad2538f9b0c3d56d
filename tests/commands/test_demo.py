"""The demo: its example users, its recommendations, and the whole of it on a small shop."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from slmrec.commands.demo import _recommendation, _write_examples
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.inference.recommender import Recommender
from slmrec.models.baselines import Popularity
from slmrec.models.folder import save_recommender
from slmrec.serving.examples import read_examples


def test_example_users_are_written_for_the_page(tiny_dataset: Dataset, tmp_path: Path) -> None:
    written = _write_examples(tiny_dataset, tmp_path / "examples.jsonl")
    assert len(written) == 20
    assert [example.model_dump(exclude_none=True) for example in read_examples(tmp_path / "examples.jsonl")] == written
    assert written[0]["history"] == [
        tiny_dataset.item_ids[int(item) - 1].as_py() for item in tiny_dataset.flat[: tiny_dataset.offsets[1]]
    ]


def test_recommendations_are_shown_with_titles_and_the_item_that_was_bought(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    ids = tiny_dataset.item_ids.to_pylist()
    table = pa.table({"item_id": ids, "title": [f"Thing {item_id}" for item_id in ids]})
    save_recommender(Popularity.of(tiny_dataset), replace(tiny_dataset, items=table), tmp_path, "tiny", {})
    recommender = Recommender.from_pretrained(tmp_path)
    best = [item_id for item_id, _ in recommender.recommend([ids[:6]], k=10).to_lists()[0]]
    lines = list(_recommendation(recommender, ids[:6], best[1], dict.fromkeys(ids, 7)))
    assert [line.strip() for line in lines[:4]] == [f"Thing {item_id}" for item_id in ids[2:6]]
    assert [line.split(" (7)")[0].split(". ")[1] for line in lines[5:]] == [f"Thing {item_id}" for item_id in best]
    assert [line for line in lines if "bought next" in line] == [lines[6]]


@pytest.mark.heavy
def test_the_whole_demo_on_a_small_shop(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, logger="slmrec")
    monkeypatch.setattr("slmrec.commands.demo._NUM_USERS", 200)
    epochs = [f"{part}.train.num_train_epochs=1" for part in ("pretrain.sasrec", "pretrain.text", "distill")]
    assert main(["demo", "--output", str(tmp_path / "demo"), *epochs]) == 0
    shown = capsys.readouterr().out
    assert "200 users, test split, all items ranked, history excluded" in shown
    assert "NDCG@10 by training events of the item that was bought next" in shown
    assert "ship this" in shown
    verdict = json.loads((tmp_path / "demo" / "verdict.json").read_text(encoding="utf-8"))
    assert f"\nShip {verdict['ship']}, in {tmp_path / 'demo' / 'best'}:\n" in shown[shown.index("In the top 10") :]
    assert "users bought an item next that has fewer than 5 training events" in shown
    assert f"slmrec recommend --model {tmp_path / 'demo'}" in caplog.text
    assert sorted(path.name for path in (tmp_path / "demo" / "raw").iterdir()) == ["interactions.csv", "items.csv"]
