"""The lock of a remote run: created only if absent, and removed by its owner alone."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from stores import empty_store

import slmrec
from slmrec.errors import DataError, StorageError
from slmrec.storage import runs
from slmrec.storage.remote import Remote
from slmrec.storage.runs import opened_run

LOCK = "/b/out/.lock"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return empty_store(tmp_path, monkeypatch)


def test_a_second_writer_is_refused(store: Any) -> None:
    with opened_run("memory://b/out") as folder:
        (folder / "report.html").write_text("page")
        owner = store.cat(LOCK)
        with pytest.raises(StorageError, match=rf"^memory://b/out is being written by .*process {os.getpid()} on"):
            opened_run("memory://b/out").__enter__()
        assert store.cat(LOCK) == owner
    assert store.find("/b/out") == ["/b/out/.writer", "/b/out/report.html"]
    with opened_run("memory://b/out"):
        pass


def test_the_lock_of_a_killed_process_of_this_machine_is_removed(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    lock = {"pid": 2**30, "host": "h", "command": "slmrec run", "started": "t"}
    store.pipe(LOCK, json.dumps(lock | {"place": "another machine"}).encode())
    remedy = r"if it was killed, remove memory://b/out/\.lock and run again"
    with pytest.raises(StorageError, match=rf"`slmrec run` \(process {2**30} on h, since t\).*{remedy}"):
        opened_run("memory://b/out").__enter__()
    store.pipe(LOCK, json.dumps(lock | {"place": runs._place()}).encode())
    with opened_run("memory://b/out"):
        assert json.loads(store.cat(LOCK))["pid"] == os.getpid()
    assert "the process that held its lock was killed; its lock is removed" in caplog.text


def test_a_lock_that_another_process_has_taken_stays(store: Any) -> None:
    with opened_run("memory://b/out"):
        store.pipe(LOCK, b"another")
    assert store.cat(LOCK) == b"another"


def test_outputs_that_are_files_and_locks_that_cannot_be_made_are_refused(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe("/b/log.csv", b"user,item")
    with pytest.raises(StorageError, match=r"^memory://b/log\.csv: is a file, expected the folder of a run"):
        opened_run("memory://b/log.csv").__enter__()
    monkeypatch.setattr(Remote, "create", lambda *_: False)
    with pytest.raises(StorageError, match=r"^memory://b/out: its lock \.lock can neither be created nor read"):
        opened_run("memory://b/out").__enter__()


def test_a_failed_command_uploads_nothing_and_releases_the_lock(store: Any) -> None:
    with pytest.raises(ValueError, match="bad"), opened_run("memory://b/out") as folder:
        (folder / "report.html").write_text("page")
        raise ValueError("bad")
    assert store.find("/b/out") == []


def test_stores_without_exclusive_writes_are_used_with_a_warning(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_WHOLE_OBJECTS", "_EXCLUSIVE"):
        monkeypatch.setattr(f"slmrec.storage.remote.{name}", set())
    with opened_run("memory://b/out") as folder:
        (folder / "report.html").write_text("page")
        with pytest.raises(StorageError, match="is being written by"):
            opened_run("memory://b/out").__enter__()
    assert "its store has no exclusive writes" in caplog.text
    assert store.find("/b/out") == ["/b/out/.writer", "/b/out/report.html"]
    assert Remote("memory://b/out").read("report.html") == b"page"


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_tables_is_written_to_a_store_and_names_no_path_of_this_machine(store: Any, tmp_path: Path) -> None:
    rows = [(user, (user * 7 + place * place) % 12, place) for user in range(20) for place in range(4)]
    table = pa.table(list(zip(*rows, strict=True)), ["customer", "item_id", "timestamp"])
    fitted = slmrec.fit(table, user_col="customer", output="memory://b/out", time_budget="1s")
    again = slmrec.Run.load("memory://b/out")
    assert again.metrics == fitted.metrics and list(again.models) == list(fitted.models)
    assert not [path for path in store.find("/b/out") if str(tmp_path).encode() in store.cat(path)]
    faulty = table.set_column(1, "item_id", pa.array([None] * len(table), pa.int64()))
    with pytest.raises(DataError, match=r"^the table given as events\.parquet: row 1: item_id is None"):
        slmrec.fit(faulty, user_col="customer", output="memory://b/faulty")
