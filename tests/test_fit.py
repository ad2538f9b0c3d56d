"""`slmrec.fit` and `Run`: tables of any library become a run, which is opened, evaluated, saved and shown."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import read_json

import slmrec
from slmrec import Config, Run
from slmrec.config.prepare import PrepareConfig, PrepareSettings
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError, DataError, SlmrecError

COLUMNS = ["customer", "item_id", "timestamp"]
ROWS = [(f"u{user}", f"<i{(user * 7 + place * place) % 12}>", 1000 + place) for user in range(20) for place in range(4)]
EVENTS = pd.DataFrame(ROWS, columns=COLUMNS)
ITEMS = pd.DataFrame({"item_id": [f"<i{item}>" for item in range(12)], "title": [f"A & {item}" for item in range(12)]})


def tiny_config() -> Config:
    """Settings of a run without training."""
    evaluate = {"protocols": ["full_history_excluded"], "timing_users": 10}
    return Config.model_validate(
        {"pretrain": {}, "finetune": {"ensemble": []}, "distill": {"teacher": None}, "evaluate": evaluate}
    )


@pytest.fixture(autouse=True, scope="module")
def without_reports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.run.write_report", lambda output: None)
        yield


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return slmrec.fit(EVENTS, ITEMS, output=tmp_path_factory.mktemp("fit") / "run", user_col="customer", memory="4g")


def as_csv(events: pd.DataFrame, folder: Path) -> Path:
    events.to_csv(folder / "events.csv", index=False)
    return folder / "events.csv"


FORMS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "polars": lambda events, _: pl.from_pandas(events),
    "lazy polars": lambda events, _: pl.from_pandas(events).lazy(),
    "categories": lambda events, _: events.astype({"item_id": "category"}),
    "Arrow": lambda events, _: pa.Table.from_pandas(events),
    "csv": as_csv,
    "text": lambda events, folder: str(as_csv(events, folder)),
}


def test_a_run_of_tables(fitted: Run) -> None:
    assert list(fitted.models) == ["popularity", "cooccurrence"] == list(read_models(fitted.metrics))
    assert {path.name for path in (fitted.folder / "raw").iterdir()} == {
        "events.parquet",
        "items.parquet",
        "tables.json",
    }
    assert fitted.config.prepare.user_col == "customer"
    assert "models" in str(read_json(fitted.folder / "choice.json")["chosen"])
    model = fitted.models["popularity"]
    assert model is fitted.models["popularity"] and model.title("<i3>") == "A & 3"
    assert "popularity" in fitted.models and "sasrec" not in fitted.models and len(fitted.models) == 2
    assert fitted.best is fitted.best and fitted.verdict["ship"] in fitted.models
    assert (
        fitted.best.recommend([["<i1>"]], k=3).table
        == fitted.models[fitted.verdict["ship"]].recommend([["<i1>"]], k=3).table
    )
    with pytest.raises(ConfigError, match="models has no 'sasrec'; choose from popularity, cooccurrence"):
        fitted.models["sasrec"]


def read_models(content: dict[str, Any]) -> dict[str, Any]:
    models: dict[str, Any] = content["protocols"]["full_history_excluded"]["models"]
    return models


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_log_gives_the_same_data(form: str, fitted: Run, tmp_path: Path) -> None:
    run = slmrec.fit(FORMS[form](EVENTS, tmp_path), config=tiny_config(), output=tmp_path / "run", user_col="customer")
    sequences = [Dataset.load(one.folder / "prepare").flat.tolist() for one in (run, fitted)]
    assert sequences[0] == sequences[1]


def test_all_users_of_a_run_are_answered(fitted: Run, tmp_path: Path) -> None:
    lists = pq.read_table(fitted.recommend_all(tmp_path / "recs.parquet", k=2, model="popularity"))
    users = Dataset.load(fitted.folder / "prepare").user_ids
    assert lists["user_id"].unique().equals(users) and max(lists["rank"].to_pylist()) == 2
    with pytest.raises(ConfigError, match="models has no 'nobody'"):
        fitted.recommend_all(tmp_path / "recs.parquet", model="nobody")


def test_the_same_tables_change_nothing(fitted: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="slmrec")
    slmrec.fit(EVENTS, ITEMS, output=fitted.folder, user_col="customer", memory=4 * 2**30)
    assert "settings: as chosen before" in caplog.text and "evaluate: unchanged, nothing to do" in caplog.text


def test_what_notebooks_show_is_escaped(fitted: Run) -> None:
    shown = fitted._repr_html_()
    assert f"<p>Ship {fitted.verdict['ship']}, in " in shown and "<p>Warning: " in shown
    assert "<td>cooccurrence</td>" in shown and "full_history_excluded" in shown
    answer = fitted.models["popularity"].recommend([["<i1>"]], k=3, user_ids=["<b>"])._repr_html_()
    assert "<td>&lt;b&gt;</td><td>1</td><td>&lt;i" in answer and "<td>A &amp; " in answer and "<i" not in answer
    assert repr(fitted).endswith("models: popularity, cooccurrence)")


def test_a_temporary_run_lives_as_long_as_it_is_used(tmp_path: Path) -> None:
    run = slmrec.fit(EVENTS, config=tiny_config(), user_col="customer")
    folder, best = run.folder, run.models["popularity"]
    target = tmp_path / "a: b'"
    del run
    gc.collect()
    assert not folder.exists() and len(best.recommend([["<i1>"]], k=3).table) == 3

    run = slmrec.fit(EVENTS, config=tiny_config(), user_col="customer")
    folder = run.folder
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(CheckpointError, match="taken exists; choose another"):
        run.save(tmp_path / "taken")
    with pytest.raises(CheckpointError, match=r"is in .*, the folder of the run"):
        run.save(folder / "copy")
    run.save(target)
    assert not folder.exists() and run.folder == target and len(run.models["cooccurrence"].title("<i1>") or "") == 0
    (tmp_path / "like").mkdir()
    assert target.stat().st_mode == (tmp_path / "like").stat().st_mode
    opened = Run.load(target)
    assert opened.metrics == run.metrics and opened.verdict == run.verdict
    assert (target / "best").is_symlink() and len(opened.best.recommend([["<i1>"]], k=3).table) == 3
    (target / "verdict.json").unlink()
    with pytest.raises(CheckpointError, match=r"verdict\.json: missing; a run that ranks validation items"):
        opened.verdict  # noqa: B018
    settings = [path.read_text(encoding="utf-8") for path in target.rglob("*.*") if path.suffix in {".yaml", ".json"}]
    assert len(settings) > 5 and not any(str(folder) in text for text in settings)


def test_a_saved_run_is_continued(fitted: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run.load(fitted.folder)
    run.save(tmp_path / "copy")
    assert fitted.folder.is_dir()
    caplog.set_level("INFO", logger="slmrec")
    slmrec.fit(EVENTS, ITEMS, output=tmp_path / "copy", user_col="customer", memory="4g")
    assert "settings: as chosen before" in caplog.text and "evaluate: unchanged, nothing to do" in caplog.text


LATER = [("u1", "<i3>", 2000), ("u1", "<i4>", 2001), ("new", "<i4>", 2001), ("new", "<i5>", 2002)]
WITHOUT_TARGET = [("u2", "unknown", 2002), ("alone", "<i1>", 2003), ("u3", "<i1>", 900)]


@pytest.mark.parametrize("with_known", [False, True], ids=["later events", "all events"])
def test_evaluation_on_later_events(with_known: bool, fitted: Run) -> None:
    later = pd.DataFrame(LATER + WITHOUT_TARGET, columns=COLUMNS)
    found = fitted.evaluate(pd.concat([EVENTS, later]) if with_known else later)
    assert (found["primary"], found["num_users"]) == ("full_history_excluded", 2)
    assert found["num_events_of_unknown_items"] == 1
    histories = [[item for user, item, _ in ROWS if user == "u1"] + ["<i3>"], ["<i4>"]]
    for name, values in read_models(found).items():
        scores = fitted.models[name].score(histories)
        catalogue = fitted.models[name].vocabulary.item_ids.to_pylist()
        above, tied = [], []
        for row, (history, target) in enumerate(zip(histories, ["<i4>", "<i5>"], strict=True)):
            own = scores[row, catalogue.index(target)]
            others = [scores[row, place] for place, item in enumerate(catalogue) if item not in (*history, target)]
            above.append(sum(float(other > own) for other in others))
            tied.append(sum(float(other == own) for other in others))
        low, high = (
            sum(1 / (1 + rank + more) for rank, more in zip(above, ties, strict=True)) / 2 for ties in (tied, (0, 0))
        )
        assert low - 1e-9 <= values["mrr"] <= high + 1e-9


def test_evaluation_without_times(tmp_path: Path) -> None:
    lines = [f"u{user} {' '.join(f'i{(user + place * place) % 9}' for place in range(4))}\n" for user in range(12)]
    (tmp_path / "log.txt").write_text("".join(lines), encoding="utf-8")
    run = slmrec.fit(tmp_path / "log.txt", config=tiny_config(), output=tmp_path / "run")
    (tmp_path / "all.txt").write_text("".join([lines[0].strip() + " i7\n", *lines[1:]]), encoding="utf-8")
    (tmp_path / "later.txt").write_text("u0 i7\n", encoding="utf-8")
    found = [run.evaluate(str(tmp_path / name)) for name in ("all.txt", "later.txt")]
    assert found[0]["num_users"] == 1 and found[0] == found[1]
    with pytest.raises(DataError, match="no user has a newer event of an item that the run knows"):
        run.evaluate(tmp_path / "log.txt")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"usr_col": "x"}, r"unknown key 'prepare\.usr_col' \(did you mean 'user_col'\?\)"),
        ({"usr_col": "x", "config": Config()}, r"slmrec\.fit: unknown key 'prepare\.usr_col'"),
        ({"input": "log.csv"}, "input is the first argument"),
        ({"user_col": "nope"}, r"the table given as events\.parquet: no column 'nope'"),
        ({"events": [["a"]]}, "list: not a table"),
        ({"events": None}, "events is None; expected a path"),
        ({"events": EVENTS, "items": 3}, "int: not a table"),
        ({"events": "nowhere.csv"}, r"nowhere\.csv"),
        ({"time_budget": "3x"}, "time_budget is '3x'; expected a duration"),
        ({"memory": -1}, "memory is -1; expected a size"),
        ({"config": "tiny", "time_budget": 60}, "time_budget chooses settings, and config gives them"),
        ({"config": "tinny"}, "tinny"),
    ],
)
@pytest.mark.parametrize("is_temporary", [True, False], ids=["temporary", "kept"])
def test_refusals(is_temporary: bool, settings: dict[str, Any], expected: str, tmp_path: Path) -> None:
    output = None if is_temporary else tmp_path / "run"
    with pytest.raises(SlmrecError, match=expected) as raised:
        slmrec.fit(**({"events": EVENTS, "output": output} | settings))
    assert "\n" not in str(raised.value) and not (tmp_path / "run" / "prepare").exists()


def test_nothing_of_others_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    EVENTS.to_parquet(tmp_path / "raw" / "events.parquet")
    with pytest.raises(CheckpointError, match=r"raw exists and does not hold tables of slmrec\.fit"):
        slmrec.fit(EVENTS, output=tmp_path, user_col="customer")
    assert list(tmp_path.iterdir()) == [tmp_path / "raw"]
    with pytest.raises(CheckpointError, match="no finished evaluate"):
        Run.load(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere: no such folder; give the --output of a"):
        Run.load(tmp_path / "nowhere")


def test_settings_are_those_of_prepare() -> None:
    """The keyword arguments have the names and types of the section; a tuple is any sequence."""
    typed, fields = get_type_hints(PrepareSettings), PrepareConfig.model_fields
    assert typed.keys() == fields.keys() - {"input", "items"}
    differing = [name for name in typed if typed[name] != fields[name].annotation]
    assert set(differing) == {"columns", "null_values", "item_columns"}
