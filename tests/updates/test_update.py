"""`slmrec update`: new versions of a run, what is shipped, and the way back."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs import read_json, refused
from servers import serving

import slmrec
from slmrec import Config, Recommender, Run
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.folders import link_in_place
from slmrec.updates import update as module
from slmrec.updates.comparison import Comparison
from slmrec.updates.versions import best_version, versions

TRAIN = {"num_train_epochs": 1, "learning_rate": 0.01, "warmup_steps": 0, "per_device_train_batch_size": 64}
SASREC = {"kind": "sasrec", "hidden_size": 8, "num_hidden_layers": 1, "max_history_items": 8, "train": TRAIN}
CONFIG = {
    "pretrain": {"sasrec": SASREC},
    "distill": {"teacher": None},
    "evaluate": {"protocols": ["full_history_excluded"], "timing_users": 10},
}
ROWS = [(f"u{user}", f"i{(user * 7 + place * 3) % 23}", 1000 + 10 * place) for user in range(40) for place in range(5)]
NEW = [(f"u{user}", f"i{(user * 7 + 15) % 23}", 2000) for user in range(30)]
ITEMS = pd.DataFrame(
    {"item_id": [f"i{item}" for item in range(23)], "title": [f"red thing {item}" for item in range(23)]}
)


def frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.run.write_report", lambda output: None)
        folder = tmp_path_factory.mktemp("first")
        ITEMS.to_csv(folder / "items.csv", index=False)
        frame(ROWS).to_csv(folder / "log.csv", index=False)
        config = Config.model_validate(CONFIG)
        run = slmrec.fit(str(folder / "log.csv"), str(folder / "items.csv"), config=config, output=folder / "run")
        link_in_place(run.folder / "best", run.folder / "pretrain" / "sasrec")  # the model that this test updates
        yield run.folder


@pytest.fixture
def output(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "run", symlinks=True))


@pytest.fixture
def days(tmp_path: Path) -> Callable[[list[tuple[Any, ...]]], str]:
    def write(rows: list[tuple[Any, ...]]) -> str:
        frame(rows).to_csv(tmp_path / "day.csv", index=False)
        return str(tmp_path / "day.csv")

    return write


def state(output: Path) -> dict[str, Any]:
    """Return the content of all files, and the targets of links."""
    return {
        str(path.relative_to(output)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_two_updates_and_back(
    output: Path, days: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = pd.concat([ITEMS, pd.DataFrame({"item_id": ["n1", "n2"], "title": ["red thing 7", "Lamp"]})])
    items.to_csv(tmp_path / "items.csv", index=False)
    log = days([*NEW, ("u0", "n1", 2001), ("u1", "n3", 2002)])
    assert main(["update", str(output), "--input", log, "--items", str(tmp_path / "items.csv")]) == 0
    assert "update 0001: 32 new events, 0 new users, 3 new items; 0 events were known" in capsys.readouterr().out
    folder = output / "updates" / "0001"
    record = read_json(folder / "update.json")
    assert record["ship"] == "sasrec" and record["moved"] == (record["comparison"]["interval"][1] > 0)
    assert record["seconds"]["all"] < 120
    assert [path.name for path in (folder / "pretrain" / "sasrec" / "training").iterdir()] == ["log.jsonl"]

    run = Run.load(folder)
    assert list(run.models) == ["popularity", "cooccurrence", "sasrec"] and run.verdict["ship"] == "sasrec"
    assert main(["evaluate", "--config", str(folder / "config.yaml"), "--output", str(folder)]) == 0
    assert "unchanged, nothing to do" in capsys.readouterr().out
    assert Dataset.load(folder / "prepare").item_ids[-3:].to_pylist() == ["n1", "n2", "n3"]
    ids = run.best.recommend([["n1", "i3"]], k=26).table["item_id"].to_pylist()
    assert {"n2", "n3"} <= set(ids), "items without an event, or without a text, can be recommended at once"
    assert run.best.title("n2") == "Lamp"

    link_in_place(output / "best", run.folder / "pretrain" / "sasrec")
    assert main(["update", str(output), "--input", days([("u3", "i1", 3000)]), "--time-budget", "20s"]) == 0
    second = read_json(output / "updates" / "0002" / "update.json")
    assert (second["number"], second["previous"], second["data"]) == (2, 1, 1)
    link_in_place(output / "best", output / "updates" / "0002" / "pretrain" / "sasrec")

    capsys.readouterr()
    for expected in ("updates/0001/pretrain/sasrec", "pretrain/sasrec"):
        assert main(["update", str(output), "--rollback"]) == 0
        assert (output / "best").readlink().as_posix() == expected and f"({expected})" in capsys.readouterr().out
    assert "there is no earlier one" in refused(["update", str(output), "--rollback"], capsys)
    assert best_version(output, versions(output)).number == 0


def test_nothing_new_changes_nothing(
    output: Path, days: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(output)
    assert main(["update", str(output), "--input", days([*ROWS, ("rare", "i1", 7)])]) == 0
    out = capsys.readouterr().out
    assert "nothing is new" in out and "1 events of users or items that are too rare" in out
    assert state(output) == before


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("u1", "i1")], [], "no column"),
        ([(1, "i1", 5), (2, "i2", 6)], [], "user_id is '1', a whole number as all others"),
        ([("u1", "i1", 5)], ["--time-budget", "soon"], "--time-budget is 'soon'"),
        ([("u1", "i1", 5)], ["--rollback"], "--rollback takes the last update back, and --input makes a new one"),
    ],
)
def test_what_does_not_fit_is_refused(
    rows: list[tuple[Any, ...]],
    options: list[str],
    message: str,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "no finished evaluate" in refused(["update", str(tmp_path), "--input", "day.csv"], capsys)
    before = state(output)
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"][: len(rows[0])]).to_csv(
        tmp_path / "day.csv", index=False
    )
    assert message in refused(["update", str(output), "--input", str(tmp_path / "day.csv"), *options], capsys)
    assert state(output) == before


def test_a_worse_or_unfinished_update_is_not_shipped(
    output: Path, days: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, before = days(NEW), (output / "best").readlink().as_posix()
    with monkeypatch.context() as patch:
        patch.setattr(module, "compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["update", str(output), "--input", log]) == 130
    assert (output / "best").readlink().as_posix() == before and len(versions(output)) == 1

    def worse(*arguments: Any) -> Comparison:
        found = compare(*arguments)
        return found._replace(difference=found.difference._replace(value=-0.2, low=-0.3, high=-0.1))

    compare = module.compare
    monkeypatch.setattr(module, "compare", worse)
    assert main(["update", str(output), "--input", log]) == 0
    assert f"{output / 'best'} stays the model of the first training" in capsys.readouterr().out
    assert (output / "best").readlink().as_posix() == before
    assert [one.number for one in versions(output)] == [0, 1], "the interrupted update was made anew"
    assert "worse" in read_json(output / "updates" / "0001" / "verdict.json")["warnings"][0]

    monkeypatch.setattr(module, "compare", compare)
    record = module.update(output, frame([("u5", "i2", 5000)]), time_budget=20)
    assert record is not None and (record["previous"], record["data"]) == (0, 1)


def test_an_update_in_python_that_a_server_follows(output: Path, days: Callable[..., str]) -> None:
    run = Run.load(output)
    first = run.best
    with serving(output / "best") as client:
        assert client.ask("/reload", {})[2] == {"student": "unchanged"}
        record = run.update(frame([*NEW, ("u0", "n1", 2001)]), ITEMS, time_budget=20)
        assert record is not None and record["moved"] and run.version == 1
        assert repr(run).endswith("best: update 0001)") and run.best is not first
        assert client.ask("/reload", {})[2] == {"student": "loaded"}
        assert not client.recommend(history=["n1"]).get("unknown_items")
    run.rollback()
    assert run.version == 0 and run.best.model.num_items == first.model.num_items
    link_in_place(output / "best", output / "updates" / "0001" / "pretrain" / "sasrec")


def test_a_decided_move_is_made_up_for(output: Path, days: Callable[..., str]) -> None:
    record = module.update(output, frame(NEW), time_budget=20)
    assert record is not None
    link_in_place(output / "best", output / "pretrain" / "sasrec")  # as if killed before the link was moved
    assert module.update(output, days(NEW)) is None, "nothing is new"
    expected = "updates/0001/pretrain/sasrec" if record["moved"] else "pretrain/sasrec"
    assert (output / "best").readlink().as_posix() == expected


def test_removed_items_and_rules_stay(output: Path, tmp_path: Path) -> None:
    (tmp_path / "gone.csv").write_text("item_id\ni4\n", encoding="utf-8")
    assert main(["items", "remove", "--model", str(output / "best"), "--items", str(tmp_path / "gone.csv")]) == 0
    rules = [{"do": "exclude", "column": "item_id", "values": ["i5"]}]
    (output / "best" / "rules.json").write_text(json.dumps(rules), encoding="utf-8")
    assert module.update(output, frame(NEW), time_budget=20) is not None
    best = Recommender.from_pretrained(output / "updates" / "0001" / "best")
    assert not {"i4", "i5"} & set(best.recommend([["i1"]], k=21).table["item_id"].to_pylist())
