"""Times of requests: in Python, tables and files the same answers, and one line where they are missing or wrong."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError, DataError
from slmrec.inference.batch import spark
from slmrec.inference.timestamps import checked_times
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import save_recommender
from slmrec.models.model import Model
from slmrec.models.sasrec import SasRec, SasRecConfig

HISTORIES = [["i01", "nope", "i02", "i03"], ["i04"], []]
TIMES = [[1_000, 2_000, 90_000_000, 90_001_000], [5_000], []]
"""In milliseconds."""
ROWS = [{"user_id": n, "history": h, "timestamps": t} for n, (h, t) in enumerate(zip(HISTORIES, TIMES, strict=True))]


def sasrec(**settings: Any) -> SasRec:
    model = SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=5, **settings))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def mixed() -> Model:
    weights = {"plain": 1.0, "timed": 1.0}
    return Ensemble.of({"plain": sasrec(), "timed": sasrec(time_gaps={}, timestamp_unit="ms")}, weights)


@pytest.fixture(scope="module", params=["alone", "mixed"])
def folder(request: pytest.FixtureRequest, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timed")
    model = mixed() if request.param == "mixed" else sasrec(time_gaps={}, timestamp_unit="ms")
    save_recommender(model, tiny_dataset, path, "timed", {})
    return path


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender.from_pretrained(folder)


def write_events(path: Path, unit: str) -> None:
    """Write the events in reverse order."""
    pairs = [(n, zip(HISTORIES[n], TIMES[n], strict=True)) for n in range(2)]
    rows = [{"user_id": n, "item_id": item, "timestamp": time} for n, events in pairs for item, time in events][::-1]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(2, "timestamp", pc_cast(table["timestamp"], unit))
    pq.write_table(table, path)


def pc_cast(column: pa.ChunkedArray, unit: str) -> pa.ChunkedArray:
    return column if unit == "ms" else column.cast(pa.timestamp("ms")).cast(pa.timestamp(unit))


def test_whatever_holds_the_times_the_answers_are_the_same(
    folder: Path, recommender: Recommender, tmp_path: Path
) -> None:
    expected = recommender.recommend(HISTORIES, 5, timestamps=TIMES).to_lists()
    later = [[time + 10**9 for time in times] for times in TIMES]
    assert recommender.recommend(HISTORIES, 5, timestamps=later).to_lists() == expected
    assert recommender.recommend(HISTORIES, 5, timestamps=[[9, 9, 9, 9], [5], []]).to_lists()[0] != expected[0]
    dates = [[datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time) for time in times] for times in TIMES]
    assert recommender.recommend(HISTORIES, 5, timestamps=dates).to_lists() == expected
    assert recommender.recommend(pa.Table.from_pylist(ROWS), 5).to_lists() == expected
    scores = recommender.score(HISTORIES[:2], ["i07"], timestamps=TIMES[:2])
    assert not torch.equal(scores, recommender.score(HISTORIES[:2], ["i07"], timestamps=[[9, 9, 9, 9], [5]]))

    text = [{**row, "history": json.dumps(row["history"]), "timestamps": json.dumps(row["timestamps"])} for row in ROWS]
    spaced = [
        {**row, "history": " ".join(row["history"]), "timestamps": ",".join(map(str, row["timestamps"]))}
        for row in ROWS
    ]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "lists.parquet")
    moments = pa.array([row["timestamps"] for row in ROWS], pa.list_(pa.timestamp("ms")))
    pq.write_table(pa.Table.from_pylist(ROWS).set_column(2, "timestamps", moments), tmp_path / "dates.parquet")
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pd.DataFrame(text).to_csv(tmp_path / "lists.csv", index=False)
    pd.DataFrame(spaced).to_csv(tmp_path / "words.tsv", index=False, sep="\t")
    write_events(tmp_path / "events.parquet", "ms")
    write_events(tmp_path / "moments.parquet", "us")
    for path in sorted(path for path in tmp_path.iterdir() if path.name != "out.csv"):
        rows = recommended(folder, path)  # the user without history has no events
        assert rows == [[item for item, _ in one] for one in expected[:2]], path


def recommended(folder: Path, path: Path) -> list[list[str]]:
    output = path.with_name("out.csv")
    given = ["--model", str(folder), "--input", str(path), "--output", str(output), "--k", "5"]
    assert main(["recommend", *given]) == 0
    rows = pa_csv.read_csv(output).to_pylist()
    return [[row["item_id"] for row in rows if row["user_id"] == user] for user in range(2)]


def test_missing_and_wrong_times_are_told_in_one_line(
    folder: Path, recommender: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = "the model reads the times of events, which are missing"
    for times, message in (
        (None, f"{missing}; give timestamps, a list of times for each history, in ms since 1970-01-01 UTC"),
        ([[1]], r"timestamps is [[1]], expected a list of times for each of the 2 histories"),
        ([[1, 2], [3]], "timestamps of history 0: got 2 times, expected 4: one for each item, known or not"),
        ([[1, 2, 3, "x"], [3]], "timestamps of history 0: time 4 is 'x': expected a whole number in ms, or a date"),
        ([[1, 3, 2, 4], [3]], "timestamps of history 0: time 3 is 2, earlier than the one before it, 3"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            recommender.recommend(HISTORIES[:2], timestamps=times)
    table = pa.Table.from_pylist(ROWS)
    with pytest.raises(ConfigError, match="timestamps are given beside a table"):
        recommender.recommend(table, timestamps=TIMES)
    with pytest.raises(DataError, match=f"^histories: {missing}; add the column timestamps, a list as long as"):
        recommender.recommend(table.drop_columns("timestamps"))
    files = {
        "lines.txt": ("u i01 i02\n", f"{missing}; give a table with user_id, history and timestamps, in ms"),
        "none.csv": ("user_id,history\nu,i01 i02\n", f"{missing}; add the column timestamps, a list as long"),
        "events.csv": ("user_id,item_id\nu,i01\n", "no column 'timestamp'"),
        "order=file.csv": ("user_id,item_id\nu,i01\n", f"{missing}; add a column of times, such as timestamp, in ms"),
        "short.csv": (
            "user_id,history,timestamps\nu,i01 i02,3\n",
            "timestamps of user 'u' is '3': got 1 times, expected 2",
        ),
        "null.jsonl": ('{"user_id": 1, "history": ["i01"], "timestamps": null}\n', "got 0 times, expected 1"),
        "order.jsonl": ('{"user_id": 1, "history": ["i01", "i02"], "timestamps": [2, 1]}\n', "earlier than the one"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_text(content)
        capsys.readouterr()
        given = ["--input", str(tmp_path / name), "--output", str(tmp_path / "out.csv")]
        given += ["prepare.order=file"] if name.startswith("order=file") else []
        assert main(["recommend", "--model", str(folder), *given]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert main(["recommend", "--model", str(folder), "--history", "i01,i02"]) == 2
    assert missing in capsys.readouterr().err
    assert main(["recommend", "--model", str(folder), "--history", "i01,i02", "--timestamps", "5,9"]) == 0


def test_models_without_times_check_them_alone(tiny_dataset: Dataset, tmp_path: Path) -> None:
    save_recommender(sasrec(), tiny_dataset, tmp_path / "plain", "plain", {})
    plain = Recommender.from_pretrained(tmp_path / "plain")
    assert plain.recommend(HISTORIES, timestamps=TIMES).table.equals(plain.recommend(HISTORIES).table)
    with pytest.raises(ConfigError, match="got 2 times, expected 4"):
        plain.recommend(HISTORIES, timestamps=[[1, 2], [3], []])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int32(7), 7),
        (7.0, 7),
        ("-7", -7),
        (datetime(1970, 1, 1, 0, 0, 7), 7),
        (datetime.fromisoformat("1970-01-01T02:00:07.9+02:00"), 7),
        (pd.Timestamp("1970-01-01 02:00:07.9", tz="Europe/Paris"), 3607),
        (np.datetime64("1969-12-31T23:59:59.5"), -1),
        (7.5, None),
        (True, None),
        (float("nan"), None),
        (None, None),
        (pd.NaT, None),
        ("2014-07-23", None),
        (2**62, None),
        ([7], None),
    ],
)
def test_times_are_whole_numbers_or_dates(value: Any, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"time 1 is .*: expected a whole number in s, or a date"):
            checked_times([value], 1, "s")
    else:
        assert checked_times([value], 1, "s") == [expected]


def test_workers_of_spark_read_times(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "_opened", {"sent.zip": recommender}.__getitem__)
    batch = pa.RecordBatch.from_pylist(ROWS)
    types = {"user_id": pa.int64(), "item_id": pa.string(), "score": pa.float32(), "rank": pa.int64()}
    answered = pa.Table.from_batches(spark._answer("sent.zip", {"k": 5}, pa.schema(types), iter([batch])))
    expected = recommender.recommend(HISTORIES, 5, timestamps=TIMES, user_ids=[0, 1, 2]).table
    assert answered["item_id"].to_pylist() == expected["item_id"].to_pylist()
    (counts,) = spark._count(recommender.catalogue, "ms", iter([batch]))
    assert counts.to_pylist() == [{"num_unknown": 1, "num_items": 5, "first": "nope", "fault": None}]
    (counts,) = spark._count(
        recommender.catalogue, "ms", iter([pa.RecordBatch.from_pylist([{**ROWS[1], "timestamps": []}])])
    )
    assert counts["fault"][0].as_py() == "history of user 1: got 0 times, expected 1: one for each item, known or not"
