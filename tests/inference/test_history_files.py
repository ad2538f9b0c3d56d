"""Files of histories are read as `prepare` reads logs: in any format and spelling, and faults are named by place."""

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.errors import DataError
from slmrec.inference.batch.recommend_file import RankOptions, recommend_file
from slmrec.inference.history_files import read_item_ids
from slmrec.models.folder import Vocabulary
from slmrec.models.sasrec import SasRec, SasRecConfig

HUGE = 2**63 + 5
ITEMS = [5, 9, 18, 27, 36, 45]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    model = SasRec(SasRecConfig(num_items=6, hidden_size=8, max_history_items=4)).eval()
    Recommender(model, Vocabulary(pa.array(ITEMS), None, pa.array([6, 5, 4, 3, 2, 1]))).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender.from_pretrained(folder)


def answer(folder: Path, tmp_path: Path, source: Path, **options: Any) -> pa.Table:
    recommend_file(folder, source, tmp_path / "out.parquet", RankOptions(3, **options))
    return pq.read_table(tmp_path / "out.parquet")


def same(found: pa.Table, expected: pa.Table) -> bool:
    return found.drop_columns("score").equals(expected.drop_columns("score"))


def text(delimiter: str, header: str, rows: list[list[str]], quote: str = "") -> str:
    lines = [delimiter.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    return "\n".join([delimiter.join(header.split()), *lines, ""])


def zipped(name: str, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


PER_USER = [["1", "9 18"], ["2", "27"]]
PER_EVENT = [["1", "9", "1"], ["2", "27", "1"], ["1", "18", "2"]]
FILES: dict[str, str | bytes] = {
    "semicolons.csv": text(";", "user_id history", PER_USER),
    "capitals.csv": text(",", "USER_ID History", PER_USER),
    "other_names.csv": "Customer ID, HISTORY \n1,9 18\n2,27\n",
    "no_underscore.jsonl": '{"UserID": 1, "History": [9, 18]}\n{"UserID": 2, "History": [27]}\n',
    "events_capitals.csv": text(",", "USER_ID ItemId TimeStamp", PER_EVENT),
    "events_other_names.csv": "Customer ID;Sku;Created-At\n1;9;1\n2;27;1\n1;18;2\n",
    "spaces.csv": text(", ", "user_id history", [["1", " 9  18 "], ["2 ", "27"]]),
    "floats.csv": text(",", "user_id history", [["1.0", "9.0 18.0"], ["2.0", "27.0"]]),
    "lists.csv": 'user_id,history\n1,"[9, 18]"\n2,"[27.0]"\n',
    "python_lists.csv": "user_id\thistory\n1\t['9', '18']\n2\t['27']\n",
    "tabs.txt": text("\t", "user_id history", PER_USER),
    "sep.csv": "sep=;\n" + text(";", "user_id history", PER_USER),
    "utf16.csv": text(",", "user_id history", PER_USER).encode("utf-16"),
    "packed.zip": zipped("log.csv", text(",", "user_id history", PER_USER)),
    "fractions.csv": text(",", "user_id item_id timestamp", [["1", "18", "1.75"], ["2", "27", "2"], ["1", "9", "1.5"]]),
    "bom.csv": "\ufeff" + text(",", "user_id history", PER_USER),
    "quoted.tsv": text("\t", "user_id history", PER_USER, '"'),
    "no_header.txt": "1 9 18\n\n2\t27\n",
    "packed.csv.gz": gzip.compress(text(",", "user_id history", PER_USER).encode()),
    "packed.jsonl.zst": pa.compress(
        b'{"user_id": 1, "history": [9, 18]}\n{"user_id": 2, "history": "27"}\n', "zstd", asbytes=True
    ),
    "mixed.jsonl": '{"user_id": 1.0, "history": [9.0, "18"]}\n\n{"user_id": "2", "history": "27.0"}\n',
    "events.csv": text(";", "user_id item_id timestamp", PER_EVENT),
    "events.txt": text("\t", "user_id item_id timestamp", PER_EVENT),
    "events_amazon.csv": text(",", "reviewerID asin unixReviewTime", PER_EVENT),
    "events.jsonl": "".join(
        json.dumps(dict(zip(("user_id", "item_id", "timestamp"), row, strict=True))) + "\n" for row in PER_EVENT
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_histories_in_other_files(name: str, folder: Path, recommender: Recommender, tmp_path: Path) -> None:
    content = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    expected = recommender.recommend([[9, 18], [27]], 3, user_ids=[1, 2]).table
    assert same(answer(folder, tmp_path, tmp_path / name), expected)


def test_parts_of_a_folder(folder: Path, recommender: Recommender, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.csv").write_text("user_id,history\n1,9 18\n", encoding="utf-8")
    (tmp_path / "parts" / "b.csv").write_text("user_id,history\nx,27.0\n", encoding="utf-8")
    expected = recommender.recommend([[9, 18], [27]], 3, user_ids=["1", "x"]).table
    assert same(answer(folder, tmp_path, tmp_path / "parts"), expected)


@pytest.mark.parametrize("by_event", [False, True], ids=["users", "events"])
def test_settings_of_prepare_name_the_columns(
    by_event: bool, folder: Path, recommender: Recommender, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    rows, header = (PER_EVENT, "who what moment") if by_event else (PER_USER, "who history")
    source.write_text(text("|", header, rows), encoding="utf-8")
    names = ["prepare.user_col=who", *(["prepare.item_col=what", "prepare.time_col=moment"] if by_event else [])]
    command = ["recommend", "--model", str(folder), "--input", str(source), "--output", str(output), "--k", "3"]
    assert main([*command, "prepare.format=psv", *names]) == 0
    assert same(pq.read_table(output), recommender.recommend([[9, 18], [27]], 3, user_ids=[1, 2]).table)
    source.write_text(text("|", "", rows).lstrip("\n"), encoding="utf-8")
    assert main([*command, "prepare.format=psv", f"prepare.columns=[{header.replace(' ', ', ')}]", *names]) == 0
    assert same(pq.read_table(output), recommender.recommend([[9, 18], [27]], 3, user_ids=[1, 2]).table)


def test_the_encoding_can_be_named(
    folder: Path, recommender: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    source.write_bytes("user_id;history\nJosé;9 18\n".encode("latin-1"))
    command = ["recommend", "--model", str(folder), "--input", str(source), "--output", str(output), "--k", "3"]
    assert main(command) == 2
    assert "prepare.encoding" in capsys.readouterr().err
    assert main([*command, "prepare.encoding=latin-1"]) == 0
    assert same(pq.read_table(output), recommender.recommend([[9, 18]], 3, user_ids=["José"]).table)


def test_settings_that_do_not_say_how_files_are_read_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recommend", "--model", str(folder), "--input", "in.csv", "--output", "out.csv"]
    for override in ("prepare.min_user_events=5", "seed=1", "user_col=who"):
        assert main([*command, override]) == 2
        assert f"{override.partition('=')[0]} does not say how histories are read; choose" in capsys.readouterr().err


Make = Callable[[list[Any], list[list[Any]]], Any]
TABLES: dict[str, Make] = {
    "csv": lambda users, histories: text(
        ",",
        "user_id history",
        [[str(user), " ".join(map(str, items))] for user, items in zip(users, histories, strict=True)],
    ),
    "jsonl": lambda users, histories: "".join(
        json.dumps({"user_id": user, "history": items}) + "\n" for user, items in zip(users, histories, strict=True)
    ),
    "arrow": lambda users, histories: pa.table({"user_id": users, "history": histories}),
    "pandas": lambda users, histories: pd.DataFrame({"user_id": users, "history": histories}),
    "polars": lambda users, histories: pl.DataFrame({"user_id": users, "history": histories}),
}
user_ids = st.one_of(
    st.lists(st.integers(-5, 2**63 - 1), min_size=2, max_size=2, unique=True),
    st.lists(st.sampled_from(["u", "007", "1E5", "A 1", "é"]), min_size=2, max_size=2, unique=True),
)


@given(
    user_ids, st.lists(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4), min_size=2, max_size=2), st.booleans()
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_histories_mean_the_same_in_every_form(
    folder: Path, recommender: Recommender, tmp_path: Path, users: list[Any], histories: list[list[int]], floats: bool
) -> None:
    expected = recommender.recommend(histories, 3, user_ids=users).table
    written = [[float(item) for item in items] for items in histories] if floats else histories
    for name, make in TABLES.items():
        table = make(users, written)
        if isinstance(table, str):
            (tmp_path / f"in.{name}").write_text(table, encoding="utf-8")
            found = answer(folder, tmp_path, tmp_path / f"in.{name}")
        else:
            found = recommender.recommend(table, 3).table
            if name == "arrow":
                pq.write_table(table, tmp_path / "in.parquet")
                assert same(answer(folder, tmp_path, tmp_path / "in.parquet"), expected)
        assert same(found, expected), name


def test_unsigned_users_stay_numbers(folder: Path, recommender: Recommender, tmp_path: Path) -> None:
    table = pa.table({"user_id": pa.array([1, HUGE], pa.uint64()), "history": [[9], [18]]})
    pq.write_table(table, tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text(f"user_id,history\n1,9\n{HUGE},18\n", encoding="utf-8")
    for found in (
        recommender.recommend(table, 3).table,
        recommender.recommend([[9], [18]], 3, user_ids=[1, HUGE]).table,
        answer(folder, tmp_path, tmp_path / "in.parquet"),
        answer(folder, tmp_path, tmp_path / "in.csv"),
    ):
        assert found["user_id"].to_pylist() == [1] * 3 + [HUGE] * 3
        assert found["user_id"].type == pa.uint64()


FAULTS = {
    "user": ("in.csv", "user_id,history\n1,9\nNA,9\n", "line 3: user_id is 'NA': expected an id"),
    "user in quotes": ("in.csv", 'user_id,history\n"1","9\n18"\n"",9\n', "line 4: user_id is '': expected an id"),
    "fraction": (
        "in.csv",
        "user_id,history\n1,9 9.5\n",
        "line 2: item 2 of the history of user '1' is '9.5': expected a whole",
    ),
    "nan": (
        "in.jsonl",
        '{"user_id": 1, "history": [9, NaN]}\n',
        "line 1: item 2 of the history of user 1 is 'nan': expected an id",
    ),
    "null": (
        "in.jsonl",
        '\n{"user_id": 1, "history": [null]}\n',
        "line 2: item 1 of the history of user 1 is None: expected an id",
    ),
    "word": ("in.txt", "1 9\n2 9 null\n", "line 2: item 2 of the history of user '2' is 'null': expected an id"),
    "user with a fraction": (
        "in.jsonl",
        '{"user_id": 1.5, "history": [9]}\n',
        "line 1: user_id is '1.5': expected a whole number",
    ),
    "mixed forms": (
        "in.jsonl",
        '{"user_id": 1, "history": [9]}\n{"user_id": 1, "item_id": 9, "timestamp": 1}\n',
        "line 2: history is None: expected a list of item ids",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_or_skipped(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, content, expected = FAULTS[name]
    source, output = tmp_path / file, tmp_path / "out.jsonl"
    source.write_text(content, encoding="utf-8")
    command = ["recommend", "--model", str(folder), "--input", str(source), "--output", str(output)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{source}: {expected}" in error and "set prepare.on_bad_row=skip" in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {file}
    assert main([*command, "--on-bad-row", "skip"]) == 0
    assert f"warning: 1 invalid rows skipped, the first one: {source}: {expected}" in capsys.readouterr().err


def test_rows_of_parquet_and_tables_are_named(folder: Path, recommender: Recommender, tmp_path: Path) -> None:
    table = pa.table({"user_id": ["a", "b"], "history": [[9.0, 18.0], [27.0, np.nan]]})
    pq.write_table(table, tmp_path / "in.parquet")
    expected = r"row 2: item 2 of the history of user 'b' is ('nan'|None): expected an id; correct or remove the row"
    with pytest.raises(DataError, match=rf"in\.parquet: {expected}, or set prepare.on_bad_row=skip"):
        answer(folder, tmp_path, tmp_path / "in.parquet")
    for given_table in (table, table.to_pandas(), pl.from_arrow(table)):
        with pytest.raises(DataError, match=rf"^histories: {expected}$"):
            recommender.recommend(given_table)
    with pytest.raises(DataError, match=r"^histories: columns user_id, items; expected user_id and history"):
        recommender.recommend(pa.table({"user_id": ["a"], "items": [["i"]]}))
    with pytest.raises(DataError, match=r"^histories: cannot be read as a table"):
        recommender.recommend(pd.DataFrame({"user_id": [1, "a"], "history": [[1], [2]]}))


@pytest.mark.parametrize("by_event", [False, True], ids=["users", "events"])
@pytest.mark.parametrize("library", ["polars", "polars enums", "pandas", "arrow"])
def test_categories_are_read(
    library: str, by_event: bool, folder: Path, recommender: Recommender, tmp_path: Path
) -> None:
    users, items = (["1", "1", "2"], ["9", "18", "27"]) if by_event else (["1", "2"], [["9", "18"], ["27"]])
    columns = {"user_id": users, "item_id" if by_event else "history": items}
    table: Any = pl.DataFrame(columns).with_columns(timestamp=pl.int_range(len(users)))
    categories = pl.Enum(["1", "2", "9", "18", "27"]) if library == "polars enums" else pl.Categorical
    table = table.with_columns(
        pl.col("user_id").cast(categories),
        pl.col(columns.keys() - {"user_id"}).cast(categories if by_event else pl.List(categories)),
    )
    table.write_parquet(tmp_path / "in.parquet")
    if library == "pandas":
        frame = pd.DataFrame(columns | {"timestamp": range(len(users))}).set_index("user_id")
        table = frame.astype({"item_id": "category"}) if by_event else frame
        table.index = table.index.astype("category")
        table.to_parquet(tmp_path / "in.parquet")
    elif library == "arrow":
        table = pa.table(
            {
                name: pa.array(values).dictionary_encode() if by_event or name == "user_id" else values
                for name, values in columns.items()
            }
            | {"timestamp": range(len(users))}
        )
        pq.write_table(table, tmp_path / "in.parquet")
    expected = recommender.recommend([[9, 18], [27]], 3, user_ids=[1, 2]).table
    assert same(recommender.recommend(table, 3).table, expected)
    assert same(answer(folder, tmp_path, tmp_path / "in.parquet"), expected)


def test_a_file_of_another_model_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("user_id,history\na,100 101\nb,9\nc,\n", encoding="utf-8")
    command = ["recommend", "--model", str(folder), "--input", str(source), "--output", str(output), "--k", "2"]
    assert main(command) == 2
    assert "2 of 3 item ids (67%) are unknown to the model, the first one '100'; check" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert main([*command, "--allow-unknown", "--quiet"]) == 0
    assert "1 of 3 users, the first one 'a', have only unknown items in their history" in capsys.readouterr().err
    source.write_text("user_id,history\na,100 101\nb,9 18\n", encoding="utf-8")
    assert main(command) == 0
    assert "2 of 4 item ids (50%) are unknown, the first one '100'" in capsys.readouterr().err


def test_a_header_in_a_list_of_ids_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "candidates.txt"
    path.write_text("item_id\n5\n9\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"candidates\.txt: line 1 is 'item_id', a header, but .* or name the file \.csv"
    ):
        read_item_ids(path)
    path.write_text("5\n9\n", encoding="utf-8")
    assert read_item_ids(path) == ["5", "9"]
    for content in ("item_id\n5\n9\n", "title;item_id\na;5\nb;9\n"):
        (tmp_path / "candidates.csv").write_text(content, encoding="utf-8")
        assert read_item_ids(tmp_path / "candidates.csv") == ["5", "9"]


def test_a_second_command_with_the_same_output_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("user_id,history\na,9\n", encoding="utf-8")
    output = tmp_path / "out.csv"
    command = ["recommend", "--model", str(folder), "--input", str(tmp_path / "in.csv"), "--output", str(output)]
    lock = tmp_path / ".out.csv.lock"
    import fcntl

    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(json.dumps({"pid": 17, "host": "far", "command": "slmrec recommend", "started": "2026-01-01"}))
        other.flush()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{output} is being written by `slmrec recommend` (process 17 on far, since 2026-01-01)" in error
        assert not output.exists()
    assert main(command) == 0
    assert output.exists() and not lock.exists()


@pytest.mark.parametrize(
    "line", ['{"user_id": 1, "history": [9], "history": [18]}', '{"user_id": 1, "\\u0075ser_id": 2}']
)
def test_a_key_that_occurs_twice_is_refused(
    line: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"user_id": 1, "history": [9]}\n' + line)
    arguments = ["--model", str(folder), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o.csv")]
    assert main(["recommend", *arguments]) == 2
    assert "in.jsonl: line 2: " in (error := capsys.readouterr().err) and "occurs twice" in error


@pytest.mark.parametrize("door", ["--input", "--candidates", "--exclude-items"])
def test_pipes_are_refused_at_once(door: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "in.csv")
    (tmp_path / "good.csv").write_text("user_id,history\n1,9\n")
    files = {"--input": str(tmp_path / "good.csv")} | {door: str(tmp_path / "in.csv")}
    arguments = [argument for option in files.items() for argument in option]
    assert main(["recommend", "--model", str(folder), "--output", str(tmp_path / "o.csv"), *arguments]) == 2
    assert "in.csv: is a named pipe, which is read several times; save it to a file" in capsys.readouterr().err
