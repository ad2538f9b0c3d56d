"""`slmrec prepare` and `slmrec.prepare`: what is there stays whole whatever happens, and each fault is one line."""

import errno
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import slmrec
from slmrec.commands.main import main
from slmrec.data import histories
from slmrec.data import prepare as module
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError, DataError

EVENTS = {
    "user_id": ["u", "u", "u", "v", "v", "v", "w"],
    "item_id": ["a", "b", "c", "c", "b", "a", "a"],
    "timestamp": [1, 2, 3, 7, 8, 9, 1],
}
NAMES = {
    "dataset.json",
    "interactions.parquet",
    "items.parquet",
    "users.parquet",
    "histories.npy",
    "histories.txt",
    "offsets.npy",
}
NAMES |= {"stage.json", "metrics.json", "config.yaml"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "raw" / "log.csv"
    path.parent.mkdir()
    pd.DataFrame(EVENTS).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    pd.DataFrame(EVENTS).to_csv(folder / "log.csv", index=False)
    return slmrec.prepare(str(folder / "log.csv"), str(folder / "data"))


@pytest.fixture
def there(prepared: Path, tmp_path: Path) -> Path:
    """A data set that is there already."""
    return Path(shutil.copytree(prepared, tmp_path / "out" / "data"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def histories_of(folder: Path) -> dict[Any, list[Any]]:
    data = Dataset.load(folder)
    items = data.item_ids.to_pylist()
    rows = np.split(data.flat, data.offsets[1:-1])
    return {user: [items[item - 1] for item in row] for user, row in zip(data.user_ids.to_pylist(), rows, strict=True)}


def large_log(path: Path, num: int = 200_000) -> Path:
    draw = np.random.default_rng(0)
    columns = {"user_id": draw.integers(0, 9_999, num), "item_id": draw.integers(0, 2**60, num)}
    pq.write_table(pa.table(columns | {"timestamp": draw.integers(0, 2**60, num)}), path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *command: str | Path) -> str:
    """The one line that ends a command with exit code 2."""
    assert main([str(word) for word in command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slmrec: ") and error.count("\n") == 1 and error.endswith("\n")
    return error


# From the command line.


def test_a_data_set_from_the_command_line(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "slmrec")
    items = tmp_path / "items.csv"
    items.write_text("item_id,title,price\na,Alpha,1\nb,Beta &amp; b,2\n", encoding="utf-8")
    output = tmp_path / "data"
    assert main(["prepare", "--input", str(log), "--items", str(items), "--output", str(output)]) == 0
    said = caplog.text
    kept = "prepare: columns of items kept: item_id, title; not kept: price (prepare.item_columns keeps more)"
    assert caplog.messages[:3] == [f"prepare: reading {log}", kept, "prepare: 7 events read, 0 invalid rows"]
    assert "prepare: events removed by min_user_events (3) 1; 1 users and 0 items have no events left\n" in said
    assert "leave_one_out looks into the future: 1 of 2 test events precede the last training event" in said
    assert caplog.messages[-1].endswith(f" s, written to {output}")
    assert set(contents(output)) == NAMES
    assert pq.read_table(output / "items.parquet")["title"].to_pylist() == ["Alpha", "Beta & b", None]
    assert main(["prepare", "--input", str(log), "--items", str(items), "--output", str(output)]) == 0
    assert "unchanged, nothing to do" in caplog.text


def test_the_rules_that_left_events_out_are_told(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "slmrec")
    assert main(["prepare", "--input", str(log), "--output", str(tmp_path / "data"), "prepare.min_item_events=3"]) == 2
    assert "prepare.min_user_events (3): 1, prepare.min_item_events (3): 6; loosen" in capsys.readouterr().err
    more = pd.DataFrame({"user_id": ["u", "v"] * 2, "item_id": ["a", "d"] * 2, "timestamp": [20, 21, 22, 23]})
    path = tmp_path / "more.parquet"
    pd.concat([pd.DataFrame(EVENTS), more]).to_parquet(path, index=False)
    rules = ("prepare.repeats=merge", "prepare.min_item_events=2")
    assert main(["prepare", "--input", str(path), "--output", str(tmp_path / "data"), *rules]) == 0
    said = caplog.text
    assert "events removed by repeats (merge) 2, min_user_events (3) 1, min_item_events (2) 1; " in said


def test_rows_that_are_no_events(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "slmrec")
    log.write_text(log.read_text(encoding="utf-8") + "v,,10\n", encoding="utf-8")
    command = ["prepare", "--input", log, "--output", tmp_path / "data"]
    error = refused(capsys, *command)
    assert f"{log}: line 9: item_id is None" in error or f"{log}: line 9: item_id is ''" in error
    assert "prepare.on_bad_row=skip" in error
    assert "line 9: item_id" in refused(capsys, *command, "--on-bad-row", "error")
    assert main([*map(str, command), "--on-bad-row", "skip"]) == 0
    assert "1 invalid rows skipped; see rejected.parquet and dataset.json" in caplog.text
    assert pq.read_table(tmp_path / "data" / "rejected.parquet")["line"].to_pylist() == [9]
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, command), "--on-bad-row", "ignore"])
    assert "--on-bad-row: invalid choice: 'ignore'" in capsys.readouterr().err


def test_any_name_of_a_file_will_do(log: Path, tmp_path: Path) -> None:
    odd = log.rename(log.with_name("😀 日 [x] * ü.csv"))
    assert main(["prepare", "--input", str(odd), "--output", str(tmp_path / "data")]) == 0
    facts = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert facts["sources"][0]["file"] == odd.name
    assert histories_of(slmrec.prepare(odd, tmp_path / "ü 😀"))["u"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prepare.engine=polars://", "prepare.engine is 'polars://', which cannot run this query"),
        ("prepare.engine=nonsense", "prepare.engine is 'nonsense': Don't know how to connect"),
        ("prepare.memory_limit=4 bananas", "prepare.memory_limit is '4 bananas': Parser Error"),
        ("prepare.memory_limit=1MB", "log.csv: Out of Memory Error: "),
        ("prepare={split: temporal, test_share: 0.8}", "times do not form three periods (training begins 1, "),
        ("prepare.min_user_events=2", "prepare.min_user_events is 2: Input should be greater than or equal to 3"),
        ("prepare.min_rating=3", "no column 'rating' or 'overall'"),
        ("prepare.short_users=drop", "unknown key 'prepare.short_users'"),
        ("prepare.preset=papers", "prepare.preset is 'papers': Input should be 'paper'"),
    ],
)
def test_settings_that_will_not_do(
    log: Path, there: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    before = contents(there)
    assert message in refused(capsys, "prepare", "--force", "--input", log, "--output", there, override)
    assert contents(there) == before
    assert list(there.parent.iterdir()) == [there]


def test_describe_validate_and_fetch(log: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", str(there)]) == 0
    assert "users" in capsys.readouterr().out
    assert (there / "describe.png").is_file()
    assert "not a prepared data set" in refused(capsys, "data", "describe", log.parent)
    assert main(["data", "validate", str(log)]) == 0
    assert f"{log}: all rows are events" in capsys.readouterr().out
    log.write_text(log.read_text(encoding="utf-8") + "v,d,soon\n", encoding="utf-8")
    capsys.readouterr()
    assert f"{log}: 1 rows are not events; correct them, or prepare" in refused(capsys, "data", "validate", log)
    assert "no such file" in refused(capsys, "data", "validate", log.with_name("none.csv"))
    assert main(["data", "fetch"]) == 0
    assert "`slmrec data fetch NAME` shows a data set's terms and downloads it" in capsys.readouterr().out
    assert "'nothing'" in refused(capsys, "data", "fetch", "nothing")


# What is there stays whole.


BAD_INPUTS: dict[str, bytes] = {
    "a bad row": b"user_id,item_id,timestamp\nu,a,1\nu,b,soon\n",
    "nothing left": b"user_id,item_id,timestamp\nu,a,1\n",
    "no columns": b"thing,other\nu,a\n",
    "cut off": gzip.compress(b"user_id,item_id,timestamp\n" + b"u,a,1\n" * 10_000)[:-20],
    "empty": b"",
}


@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_bad_input_leaves_the_data_set_alone(
    tmp_path: Path, there: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    before = contents(there)
    bad = tmp_path / "bad.csv"
    bad.write_bytes(BAD_INPUTS[fault])
    refused(capsys, "prepare", "--input", bad, "--output", there)
    assert contents(there) == before
    assert list(there.parent.iterdir()) == [there]


KILLED_AT = {
    "slmrec.data.prepare.complete_dataset": "{module}.{name} = dead",
    "slmrec.data.histories._columns": "{module}.{name} = dead",
    "slmrec.pipeline.stage.put_in_place": "{module}.{name} = dead",
    "slmrec.folders.finish_replacement": "{module}.{name} = dead_if_renamed",
}
KILLING = """
import os, signal, sys
import slmrec.pipeline.prepare

def dead(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def dead_if_renamed(target):
    if (target.parent / f".{{target.name}}.old").exists():
        dead()

{patch}
slmrec.pipeline.prepare.prepare(*sys.argv[1:])
"""


@pytest.mark.heavy
@pytest.mark.parametrize("where", KILLED_AT)
def test_a_killed_preparation_leaves_a_whole_data_set(log: Path, there: Path, tmp_path: Path, where: str) -> None:
    before = contents(there)
    other = tmp_path / "other.csv"
    other.write_text("user_id,item_id,timestamp\n" + "x,y,1\n" * 3, encoding="utf-8")
    module, _, name = where.rpartition(".")
    program = KILLING.format(patch=KILLED_AT[where].format(module=module, name=name))
    command = [sys.executable, "-c", program, str(other), str(there)]
    killed = subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    replaced = name == "finish_replacement"
    assert histories_of(there) == ({"x": ["y"] * 3} if replaced else {"u": ["a", "b", "c"], "v": ["c", "b", "a"]})
    assert replaced or contents(there) == before
    slmrec.prepare(other, there)
    assert histories_of(there) == {"x": ["y"] * 3}
    assert list(there.parent.iterdir()) == [there]


def test_a_data_set_that_was_moved_aside_returns(log: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a run leaves it that was killed between two renamings."""
    before = contents(there)
    there.rename(there.with_name(".data.old"))
    assert "no such file" in refused(capsys, "prepare", "--input", log.with_name("none.csv"), "--output", there)
    assert contents(there) == before


# A disk that is full.


def test_a_full_disk_is_told_in_one_line(
    log: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = slmrec.prepare(log, small_disk / "data")
    before = contents(output)
    large = large_log(tmp_path / "large.parquet")
    error = refused(capsys, "prepare", "--input", large, "--output", output)
    assert "No space left on device; free space there, or choose another --output" in error
    assert contents(output) == before
    assert list(small_disk.iterdir()) == [output]


def failing(number: int) -> Callable[..., Any]:
    def fail(*given: Any, **others: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("place", "name"),
    [(module, "write_table"), (module, "write_json"), (pq, "write_table"), (histories, "_columns")],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_writers_that_fail_are_told_in_one_line(
    log: Path,
    there: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    number: int,
) -> None:
    log.write_text(log.read_text(encoding="utf-8") + "v,,10\n", encoding="utf-8")
    before = contents(there)
    monkeypatch.setattr(place, name, failing(number))
    error = refused(capsys, "prepare", "--input", log, "--output", there, "--on-bad-row", "skip")
    assert os.strerror(number) in error
    assert contents(there) == before
    assert list(there.parent.iterdir()) == [there]


@pytest.mark.heavy
def test_a_limit_on_the_size_of_files_is_told_in_one_line(tmp_path: Path, there: Path) -> None:
    """As pyarrow, numpy and the engine really fail."""
    before = contents(there)
    large = large_log(tmp_path / "large.parquet")
    program = """
import sys, slmrec, slmrec.errors
try:
    slmrec.prepare(*sys.argv[1:])
except slmrec.errors.SlmrecError as error:
    sys.exit(str(error))
"""
    for limit in (1_000, 3_000_000):
        done = subprocess.run(
            [sys.executable, "-c", program, str(large), str(there)],
            check=False,
            capture_output=True,
            text=True,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.returncode == 1
        assert "File too large" in done.stderr and "choose another --output" in done.stderr
        assert done.stderr.count("\n") == 1
        assert contents(there) == before
        assert list(there.parent.iterdir()) == [there]


def test_a_place_that_is_none_is_told_in_one_line(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "prepare", "--input", log, "--output", log / "data")
    assert "Not a directory; free space or grant permission, or choose another --output" in error
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("dear", encoding="utf-8")
    error = refused(capsys, "prepare", "--input", log, "--output", foreign)
    assert f"{foreign} exists and is no output of slmrec; choose another --output, nothing was changed" in error
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_faults_that_are_not_the_disks_are_ours(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_json", failing(errno.EBADF))
    with pytest.raises(OSError, match="Bad file descriptor"):
        slmrec.prepare(log, tmp_path / "data")
    assert not (tmp_path / ".data.partial").exists()


# From Python.


def polars_frame() -> Any:
    return pytest.importorskip("polars").DataFrame(EVENTS)


@pytest.mark.parametrize(
    "table",
    [
        lambda: pd.DataFrame(EVENTS).set_index(pd.Index(range(70, 0, -10), name="user")),
        lambda: pd.DataFrame(EVENTS).astype({"user_id": "category"}),
        polars_frame,
        lambda: pa.table(EVENTS),
        lambda: pa.table(EVENTS).to_batches()[0],
        lambda: EVENTS,
    ],
    ids=["pandas", "pandas categories", "polars", "arrow", "arrow batch", "dict"],
)
def test_tables_of_all_kinds(prepared: Path, tmp_path: Path, table: Callable[[], Any]) -> None:
    items = pd.DataFrame({"sku": ["a", "c"], "title": ["Alpha", None]}, index=[9, 9])
    folder = slmrec.prepare(table(), tmp_path / "data", items, items_id_col="sku")
    assert folder == tmp_path / "data"
    assert histories_of(folder) == {"u": ["a", "b", "c"], "v": ["c", "b", "a"]}
    assert pq.read_table(folder / "items.parquet")["title"].to_pylist() == ["Alpha", None, None]
    for name in ("interactions.parquet", "users.parquet", "histories.npy"):
        assert (prepared / name).read_bytes() == (folder / name).read_bytes()


def test_settings_from_python(log: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame(EVENTS).rename(columns={"item_id": "sku"})
    folder = slmrec.prepare(frame, tmp_path / "data", item_col="sku", max_history=3, columns=None, tie_col="sku")
    rules = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["rules"]
    assert (rules["max_history"], rules["ties"]) == (3, ["tie", "row"])
    with pytest.raises(ConfigError, match=r"unknown key 'prepare\.short_users'"):
        slmrec.prepare(log, tmp_path / "other", short_users="drop")
    with pytest.raises(ConfigError, match=r"unknown key 'prepare\.where'"):
        slmrec.prepare(log, tmp_path / "other", where=tmp_path)
    with pytest.raises(ConfigError, match=r"prepare\.min_user_events is 'many'"):
        slmrec.prepare(log, tmp_path / "other", min_user_events="many")
    with pytest.raises(CheckpointError, match="exists and is no output of slmrec"):
        slmrec.prepare(log, log.parent)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("table", [None, [1, 2], pd.DataFrame({"user_id": ["a", 1], "item_id": [1, 2]})])
def test_what_is_no_table(tmp_path: Path, table: Any) -> None:
    with pytest.raises(
        DataError, match=rf"^{type(table).__name__}: not a table \(.*\); expected a path, or a table of"
    ):
        slmrec.prepare(table, tmp_path / "data")


def test_a_changed_table_is_prepared_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "slmrec")
    folder = slmrec.prepare(EVENTS, tmp_path / "data")
    slmrec.prepare(EVENTS, folder)
    assert "nothing to do" in caplog.text
    slmrec.prepare(EVENTS | {"item_id": [*"aaaccca"]}, folder)
    assert histories_of(folder) == {"u": ["a"] * 3, "v": ["c"] * 3}
    assert list(tmp_path.iterdir()) == [folder]


def test_items_that_fit_nothing_are_an_error(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n0001,One\n", encoding="utf-8")
    told = refused(capsys, "prepare", "--input", log, "--items", tmp_path / "items.csv", "--output", tmp_path / "data")
    assert (
        "items.csv: none of its items is in the log; ids of the log look like 'a', ids of the table like '0001'" in told
    )


def test_items_by_the_column_of_the_log(tmp_path: Path) -> None:
    events = pd.DataFrame({"user_id": ["u"] * 3, "sku": ["a", "b", "c"], "timestamp": [1, 2, 3]})
    products = pd.DataFrame({"sku": ["c", "a"], "title": ["See", "Ay"]})
    folder = slmrec.prepare(events, tmp_path / "data", items=products, item_col="sku")
    assert pq.read_table(folder / "items.parquet")["title"].to_pylist() == ["Ay", None, "See"]


def test_an_output_among_the_parts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n", encoding="utf-8")
    told = refused(capsys, "prepare", "--input", tmp_path / "log", "--output", tmp_path / "log" / "out")
    assert "contains the output folder" in told


def test_another_memory_limit_redoes_nothing(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "slmrec")
    command = ["prepare", "--input", str(log), "--output", str(tmp_path / "data")]
    assert main(command) == 0
    assert main([*command, "prepare.memory_limit=3GB"]) == 0
    assert "unchanged, nothing to do" in caplog.text


def test_a_setting_of_prepare_without_its_section_is_recognised(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "prepare", "--input", log, "--output", tmp_path / "data", "min_item_events=3")
    assert "unknown key 'min_item_events' (did you mean 'prepare.min_item_events'?)" in told
