"""Updates of runs that ship a student, an ensemble or a baseline, and of runs in a remote store."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from runs import read_json, weights
from stores import empty_store

import slmrec
from slmrec import Run
from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.folders import link_in_place
from slmrec.storage.runs import opened_run
from slmrec.updates.update import update

ROWS = [(f"u{user}", (user * 7 + place * 3) % 23, 1000 + 10 * place) for user in range(40) for place in range(5)]
NEW = pd.DataFrame(
    [(f"u{user}", (user * 7 + 15) % 23, 2000) for user in range(30)] + [("u1", 99, 2001)],
    columns=["user_id", "item_id", "timestamp"],
)
COLOURS = ("red", "blue", "green")
ITEMS = pd.DataFrame({"item_id": [*range(23), 99], "title": [f"{COLOURS[item % 3]} thing" for item in range(24)]})
TRAIN = "{num_train_epochs: 1, learning_rate: 1.0e-3, warmup_steps: 0}"
OVERRIDES = [
    "item_text={words: {source: words}}",
    f"pretrain.text={{kind: text, item_text: words, hidden_size: 16, max_history_items: 20, train: {TRAIN}}}",
    "finetune.ensemble=[sasrec, text]",
    *(f"{section}.train.num_train_epochs=1" for section in ("pretrain.sasrec", "finetune", "distill")),
    "evaluate.timing_users=10",
]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.run.write_report", lambda output: None)
        folder = tmp_path_factory.mktemp("first") / "run"
        events = pd.DataFrame(ROWS, columns=NEW.columns)
        yield slmrec.fit(events, ITEMS[:-1], config=load_config("tiny", OVERRIDES), output=folder).folder


@pytest.mark.parametrize("ship", ["distill", "finetune", "pretrain/cooccurrence"])
def test_every_kind_of_model_learns_further(ship: str, first: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(first, tmp_path / "run", symlinks=True))
    link_in_place(output / "best", output / ship)
    record = update(output, NEW, ITEMS, time_budget=60)
    assert record is not None and record["folder"] == ship and record["num_new_items"] == 1
    folder = output / "updates" / "0001"
    metrics = read_json(folder / ship / "metrics.json")
    assert ship == "pretrain/cooccurrence" or metrics["epochs"] > 0
    run = Run.load(folder)
    assert set(run.models) == {"popularity", "cooccurrence", record["ship"]}
    answer = run.best.recommend([[99, 3]], k=22).table
    assert not torch.tensor(answer["score"].to_pylist()).isnan().any() and len(answer) == 22
    before, after = (weights(path / "pretrain" / "sasrec") for path in (first, folder))
    changed = [
        name for name in before if before[name].shape == after[name].shape and (before[name] != after[name]).any()
    ]
    assert changed == [], "models that are not shipped keep their weights"


def test_a_run_in_a_store_is_updated(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = empty_store(tmp_path, monkeypatch)
    with opened_run("memory://b/run") as folder:
        shutil.copytree(first, folder, symlinks=True, dirs_exist_ok=True)
    NEW.to_csv(tmp_path / "day.csv", index=False)
    assert main(["update", "memory://b/run", "--input", str(tmp_path / "day.csv"), "--time-budget", "30s"]) == 0
    assert "update 0001: 31 new events" in capsys.readouterr().out
    record = json.loads(store.cat("/b/run/updates/0001/update.json"))
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    if record["moved"]:
        assert main(["update", "memory://b/run", "--rollback"]) == 0
        assert "memory://b/run/best is the model of the first training again" in capsys.readouterr().out
    assert main(["update", "memory://b/run", "--input", str(tmp_path / "day.csv")]) == 0
    assert "nothing is new" in capsys.readouterr().out
