"""Copies of remote files: made once, anew when the file has changed, and whole."""

from pathlib import Path
from typing import Any

import pytest
from stores import empty_store

from slmrec.config.load import load_config
from slmrec.errors import ConfigError, StorageError
from slmrec.storage.cache import local, localized, named, refreshed, uris_named
from slmrec.storage.remote import Remote


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return empty_store(tmp_path, monkeypatch)


def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are downloaded from now on."""
    names: list[str] = []
    download = Remote.download
    monkeypatch.setattr(Remote, "download", lambda *args: (names.append(args[1]), download(*args))[1])
    return names


def test_a_file_is_downloaded_once_and_again_when_it_has_changed(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = downloads(monkeypatch)
    store.pipe("/shop/log.csv", b"one")
    first = local("memory://shop/log.csv")
    assert (first.name, first.read_text(), local("memory://shop/log.csv")) == ("log.csv", "one", first)
    assert names == [""] and local("MEMORY://shop/log.csv").read_text() == "one"
    del names[1:]
    store.pipe("/shop/log.csv", b"two")  # of the same size
    assert local("memory://shop/log.csv").read_text() == refreshed(first).read_text() == "two"
    assert first.read_text() == "one" and names == ["", ""]


def test_a_folder_is_copied_without_hidden_files(store: Any) -> None:
    for name in ("a.csv", "sub/b.csv", ".hidden", ".distill.partial/c"):
        store.pipe(f"/shop/logs/{name}", name.encode())
    folder = local("memory://shop/logs/")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {"a.csv", "sub/b.csv"}
    store.rm("/shop/logs/a.csv")
    assert not (local("memory://shop/logs") / "a.csv").exists()


def test_only_the_newest_versions_are_kept(store: Any, tmp_path: Path) -> None:
    for number in range(5):
        store.pipe("/shop/log.csv", str(number).encode())
        path = local("memory://shop/log.csv")
    assert len(list(path.parent.parent.iterdir())) == 2


def test_a_file_that_changes_while_it_is_read_is_read_again(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pipe("/shop/a", b"old")
    download, changes = Remote.download, [b"new", b"newest"]

    def interrupted(*args: Any) -> None:
        download(*args)
        if changes:
            store.pipe("/shop/a", changes.pop(0))

    monkeypatch.setattr(Remote, "download", interrupted)
    assert local("memory://shop/a").read_text() == "newest"
    changes.extend([b"1", b"2", b"3"])
    store.pipe("/shop/a", b"0")
    with pytest.raises(StorageError, match=r"memory://shop/a: is being written, and changed while it was read"):
        local("memory://shop/a")


def test_an_interrupted_download_leaves_nothing(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pipe("/shop/a", b"content")
    monkeypatch.setattr(store.__class__, "get_file", lambda *_: (_ for _ in ()).throw(OSError("broken pipe")))
    with pytest.raises(StorageError, match=r"memory://shop/a: cannot be reached.*broken pipe.*run the same command"):
        local("memory://shop/a")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://shop/none", "memory://shop/none: no such file, folder or bucket"),
        ("nope://shop/log", "unknown scheme 'nope'; expected s3://, gs://, hdfs://, file://"),
        ("s3://ann:hidden@shop/log", r"s3://\*\*\*@shop/log: names a user, expected a bucket; give credentials in"),
        ("s3://ann:hid/hidden@shop/log", r"s3://\*\*\*@shop/log: names a user, expected a bucket; give credentials in"),
        (Path("s3://shop/log"), "s3:/shop/log: a pathlib.Path cannot hold a URI; give it as text"),
    ],
)
def test_what_cannot_be_read_is_said(store: Any, source: str | Path, message: str) -> None:
    with pytest.raises(StorageError, match=message) as raised:
        local(source)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("Install s3fs"), r"needs a package that is not installed \(Install s3fs\); run: pip install 'slm"),
        (PermissionError("Forbidden"), r"access refused \(PermissionError: Forbidden\); give credentials that may"),
        (ValueError("Unable to locate credentials"), "access refused .*; give credentials that may do this"),
        (OSError("no route, token=hidden"), r"cannot be reached, read or written .*\*\*\*.*; check the address"),
    ],
)
def test_faults_of_a_store_are_one_line(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fsspec.url_to_fs", fail)
    with pytest.raises(StorageError, match=f"^s3://shop/log: {message}") as raised:
        local("s3://shop/log?token=hidden")
    assert "\n" not in str(raised.value) and "hidden" not in str(raised.value)


def test_names_that_leave_the_folder_are_refused(store: Any) -> None:
    store.store["/shop/a/../../evil"] = store.store.get("x") or _file(store, b"evil")
    with pytest.raises(StorageError, match=r"memory://shop: has a file named 'a/\.\./\.\./evil'"):
        local("memory://shop")


def _file(store: Any, content: bytes) -> Any:
    store.pipe("/x", content)
    return store.store.pop("/x")


def test_settings_are_local_and_shown_as_uris(store: Any) -> None:
    store.pipe("/shop/log.csv", b"user")
    config = load_config("tiny", ["prepare.input=memory://shop/log.csv", "distill.teacher=finetune"])
    copy = localized(config)
    assert copy.prepare.input == str(local("memory://shop/log.csv"))
    assert named(copy.model_dump(mode="json")) == config.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"^memory://shop/log\.csv: bad$"), uris_named():
        raise ConfigError(f"{copy.prepare.input}: bad")
    store.rm("/shop/log.csv")
    assert localized(config).prepare.input == "memory://shop/log.csv"
    with pytest.raises(StorageError, match="no such file"):
        localized(config, required=True)
    spark = load_config("tiny", ["prepare.input=memory://shop/other", "prepare.engine=spark"])
    assert localized(spark, required=True) is spark
