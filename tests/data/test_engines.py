"""The same files whatever computes them; what other engines cannot do, and that nothing is written into them."""

import builtins
import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import slmrec
from slmrec.data.engine import connect, connected, disable_progress_bar, explain
from slmrec.errors import ConfigError, DataError

FILES = ("interactions.parquet", "items.parquet", "users.parquet", "histories.npy")
USERS = {"text": ("ü{}", "日{}", "a😀{}"), "numbers": ("{}",) * 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {"tie_col": "tie"},
    "k-core, ratings, no repeats": {"tie_col": "tie", "min_rating": 2, "min_item_events": 9, "repeats": "drop"},
    "merged, newest": {"tie_col": "tie", "repeats": "merge", "max_history": 5},
    "temporal": {"tie_col": "tie", "split": "temporal", "valid_share": 0.2},
    "paper": {"tie_col": "tie", "preset": "paper", "min_item_events": 12},
    "returns": {"tie_col": "tie", "quantity_col": "number"},
    "dates": {"tie_col": "tie", "time_col": "day"},
}


def table(ids: str, num: int = 600) -> pa.Table:
    draw = random.Random(7)
    users = [USERS[ids][number % 3].format(number) for number in (draw.randrange(40) for _ in range(num))]
    items = [int(draw.triangular(0, 60, 0)) for _ in range(num)]
    seconds = [draw.randrange(90) for _ in range(num)]
    columns: dict[str, Any] = {
        "user_id": [int(user) for user in users] if ids == "numbers" else users,
        "item_id": items if ids == "numbers" else [f"é{item}" for item in items],
        "timestamp": seconds,
        "rating": [float(draw.randint(1, 5)) for _ in range(num)],
        "day": [f"2024-02-28T23:{second % 60:02d}:59.{second:09d}+0{second % 3}:30" for second in seconds],
        "tie": draw.sample(range(num), num),
        "number": [draw.choice((1, 2, 2, -1, 0)) for _ in range(num)],
    }
    return pa.table(columns)


def contents(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """One session for all tests, which slmrec finds running."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'slmrec[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark takes java, which is not on the PATH")
    settings = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "3", "spark.driver.memory": "1g"}
    session = sql.SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    yield session
    session.stop()


@pytest.mark.heavy
@pytest.mark.parametrize("ids", list(USERS))
@pytest.mark.parametrize("chosen", list(SETTINGS))
def test_spark_writes_the_files_that_duckdb_does(spark: Any, tmp_path: Path, chosen: str, ids: str) -> None:
    log = tmp_path / "log.parquet"
    pq.write_table(table(ids), log, row_group_size=100)
    settings = SETTINGS[chosen]
    folders = [slmrec.prepare(log, tmp_path / name, engine=name, **settings) for name in ("duckdb", "spark")]
    assert contents(folders[0]) == contents(folders[1])
    assert spark.range(3).count() == 3  # the caller's session goes on


@pytest.mark.heavy
def test_spark_titles_items(spark: Any, tmp_path: Path) -> None:
    pq.write_table(table("text"), tmp_path / "log.parquet")
    items = pa.table({"item_id": ["é1", "é2"], "title": ["One &amp; only", None]})
    folders = [
        slmrec.prepare(tmp_path / "log.parquet", tmp_path / name, items, engine=name, tie_col="tie")
        for name in ("duckdb", "spark")
    ]
    assert contents(folders[0]) == contents(folders[1])
    assert "One & only" in pq.read_table(folders[1] / "items.parquet")["title"].to_pylist()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A DuckDB of the caller's, with a table of events."""
    path = tmp_path / "shop.db"
    events = table("text")
    with duckdb.connect(str(path)) as connection:
        connection.register("events_arrow", events)
        connection.execute("create table events as select * from events_arrow")
    pq.write_table(events, tmp_path / "log.parquet")
    return path


@pytest.mark.parametrize("chosen", list(SETTINGS))
def test_a_table_in_a_duckdb_of_the_callers(database: Path, tmp_path: Path, chosen: str) -> None:
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    there = slmrec.prepare("events", tmp_path / "there", engine=f"duckdb://{database}", **SETTINGS[chosen])
    here = slmrec.prepare(tmp_path / "log.parquet", tmp_path / "here", **SETTINGS[chosen])
    assert contents(there) == contents(here)
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    with duckdb.connect(str(database)) as connection:  # nobody else holds it any more
        assert connection.execute("select table_name from duckdb_tables()").fetchall() == [("events",)]


def test_a_duckdb_that_is_read_only_will_do(database: Path, tmp_path: Path) -> None:
    engine = f"duckdb://{database}?read_only=True"
    folder = slmrec.prepare("events", tmp_path / "data", engine=engine, tie_col="tie", min_item_events=2)
    assert len(pq.read_table(folder / "users.parquet")) > 3


def test_a_table_that_changed_is_read_anew(database: Path, tmp_path: Path) -> None:
    given = {"engine": f"duckdb://{database}", "tie_col": "tie"}
    before = contents(slmrec.prepare("events", tmp_path / "data", **given))
    with duckdb.connect(str(database)) as connection:
        connection.execute("delete from events where tie < 300")
    assert contents(slmrec.prepare("events", tmp_path / "data", **given)) != before


def sqlite_database(folder: Path) -> str:
    path = folder / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table events (user_id text, item_id text, timestamp integer)")
    return f"sqlite://{path}"


@pytest.mark.parametrize(("engine", "absent"), [("polars://", "WindowFunction"), ("sqlite", "TryCast")])
def test_engines_that_cannot_do_what_is_needed(tmp_path: Path, engine: str, absent: str) -> None:
    pytest.importorskip(engine.removesuffix("://").replace("sqlite", "sqlite3"))
    name = sqlite_database(tmp_path) if engine == "sqlite" else engine
    backend = engine.removesuffix("://")
    with pytest.raises(
        ConfigError,
        match=rf"prepare\.engine is '{name}', which cannot run this query \(the Ibis backend {backend} has no "
        rf"{absent}\); use duckdb or spark",
    ):
        connect(name, tmp_path, "1GB")


@pytest.mark.parametrize(
    "engine", ["nonsense", "foo://bar", "duckdb:///no/such/folder/shop.db", "sqlite:///no/such.db"]
)
def test_engines_that_are_not_there(tmp_path: Path, engine: str) -> None:
    with pytest.raises(ConfigError, match="expected duckdb, spark, or the connection URL of an Ibis backend") as raised:
        connect(engine, tmp_path, "1GB")
    assert f"prepare.engine is {engine!r}: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_spark_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_spark(name: str, *given: Any, **others: Any) -> Any:
        if name.startswith("pyspark"):
            raise ImportError("No module named 'pyspark'")
        return real(name, *given, **others)

    monkeypatch.setattr(builtins, "__import__", without_spark)
    with pytest.raises(ConfigError, match=r"prepare\.engine is 'spark': No module.*pip install 'slmrec\[spark\]'"):
        connect("spark", tmp_path, "1GB")


def test_the_embedded_engine_ends_with_its_use(tmp_path: Path) -> None:
    with connected("duckdb", tmp_path, "1GB") as engine:
        assert engine.con.execute("select 1").fetchall() == [(1,)]
    with pytest.raises(duckdb.Error):
        engine.con.execute("select 1")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            duckdb.OutOfMemoryException("Out of Memory Error: no\nblock\n\nPossible solutions:\n* SET threads"),
            "log: Out of Memory Error: no block; raise prepare.memory_limit, or free space on the disk of the output",
        ),
        (
            duckdb.IOException("IO Error: Could not write: No space left on device"),
            "log: IO Error: Could not write: No space left on device; free space there, or choose another --output",
        ),
        (duckdb.IOException("IO Error:\n what"), "log: cannot be read (IO Error: what)"),
    ],
)
def test_errors_of_the_engine_are_one_line(error: Exception, expected: str) -> None:
    found = explain(error, "log")
    assert isinstance(found, DataError)
    assert str(found) == expected


NOTEBOOK = """
import sys, types
ipython = types.ModuleType("IPython")
ipython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"], sys.modules["ipywidgets"] = ipython, None  # a notebook without ipywidgets
sys.modules["__main__"].__dict__.pop("__file__", None)  # DuckDB takes processes with a main file for scripts
"""


def write_log(path: Path) -> Path:
    path.write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n", encoding="utf-8")
    return path


def run_in_notebook(code: str) -> str:
    """Run code in a process that DuckDB takes for a Jupyter kernel."""
    done = subprocess.run([sys.executable, "-"], input=NOTEBOOK + code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_prepare_works_in_a_notebook_without_ipywidgets(tmp_path: Path) -> None:
    code = f"import slmrec\nprint(slmrec.prepare({str(write_log(tmp_path / 'log.csv'))!r}, {str(tmp_path / 'data')!r}))"
    assert run_in_notebook(code) == str(tmp_path / "data")


def test_duckdb_refuses_to_change_its_progress_bar_in_a_notebook_without_ipywidgets() -> None:
    code = """
import duckdb
try:
    duckdb.connect().execute("SET enable_progress_bar = false")
except duckdb.InvalidInputException as error:
    print(error)
"""
    assert "ipywidgets" in run_in_notebook(code)


def test_the_progress_bar_of_duckdb_is_disabled(tmp_path: Path) -> None:
    with connected("duckdb", tmp_path, "1GB") as engine:
        assert engine.con.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = true")
    disable_progress_bar(connection)
    assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]
