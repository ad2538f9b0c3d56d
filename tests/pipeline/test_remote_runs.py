"""A run in a remote folder: the files of a local one, uploaded step by step, and continued on another machine."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import contents, refused
from stores import empty_store, upload

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.storage.remote import Remote
from slmrec.training.training_state import TrainingState

OUT = "memory://b/out"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return empty_store(tmp_path, monkeypatch)


def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Go on with another machine, whose cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    monkeypatch.setattr("slmrec.storage.cache._names", {})


def downloaded(store: Any, folder: Path) -> Path:
    store.get("/b/out/", str(folder), recursive=True)
    return folder


def test_a_remote_run_is_interrupted_and_continued_on_another_machine(
    store: Any,
    config: Path,
    shop_file: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(store, shop_file, "/b/shop.txt")
    command = ["run", "--config", str(config), "--input", "memory://b/shop.txt", "--output", OUT]
    save, saved = TrainingState.save, []

    def interrupted(self: TrainingState) -> None:
        save(self)
        saved.append(self.progress.epoch)
        if len(saved) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", interrupted)
        assert main(command) == 130
    assert not store.exists("/b/out/.lock")
    partial = [path for path in store.find("/b/out") if ".partial/" in path]
    assert [path for path in partial if path.endswith("training/state.safetensors")]
    assert not [path for path in partial if "/training/" not in path and not path.endswith("/stage.json")]
    move(tmp_path, monkeypatch, "second")
    capsys.readouterr()
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "prepare: unchanged, nothing to do (memory://b/out/prepare;" in shown and str(tmp_path) not in shown
    copy = downloaded(store, tmp_path / "copy")
    expected = contents(finished)
    assert contents(copy / "best") == contents(finished / "best") != {}  # a link there, and a copy here
    shutil.rmtree(copy / "best")
    assert contents(copy) == {name: content for name, content in expected.items() if "teacher_outputs" not in name}
    assert not [path for path in store.find("/b/out") if ".partial" in path or path.endswith(".lock")]
    texts = [path for path in copy.rglob("*") if path.suffix in {".json", ".yaml", ".html"}]
    assert not [path for path in texts if str(tmp_path) in path.read_text(encoding="utf-8")]
    move(tmp_path, monkeypatch, "third")
    before = store.find("/b/out", detail=True)
    assert main(command) == 0
    assert "done in" not in capsys.readouterr().out and store.find("/b/out", detail=True) == before
    remote, local = Recommender.from_pretrained(f"{OUT}/distill"), Recommender.from_pretrained(finished / "distill")
    assert remote.recommend([["i01", "i02"]]).table == local.recommend([["i01", "i02"]]).table


def test_a_step_that_cannot_be_uploaded_is_uploaded_by_the_next_command(
    store: Any, config: Path, shop_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["prepare", "--config", str(config), "--input", str(shop_file), "--output", OUT]
    put, allowed = Remote.upload, [1, 1, 1]

    def upload_some(self: Remote, *arguments: Any) -> None:
        with self._reported():
            if not allowed:
                raise OSError("connection reset")
        allowed.pop()
        put(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", upload_some)
        error = refused(command, capsys)
        assert error.startswith(f"slmrec: {OUT}: cannot be reached, read or written (OSError: connection reset)")
    assert len(store.find("/b/out")) == 4 and not store.exists("/b/out/prepare/stage.json")
    assert main(command) == 0
    assert "prepare: unchanged, nothing to do" in capsys.readouterr().out
    assert store.exists("/b/out/prepare/stage.json")


def test_a_training_goes_on_when_its_state_cannot_be_uploaded(
    store: Any, config: Path, shop_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--config", str(config), "--input", str(shop_file), "--output", OUT]
    assert main(["prepare", *command]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("slmrec.storage.mirror.Mirror._is_state", _fail)
        assert main(["pretrain", "--model", "sasrec", *command]) == 0
    assert "training goes on, and its state is uploaded after the next epoch" in capsys.readouterr().err
    assert store.exists("/b/out/pretrain/sasrec/stage.json")


def _fail(*_: object) -> bool:
    from slmrec.errors import StorageError

    raise StorageError("memory://b/out: cannot be reached")
