"""Two machines and one remote folder: finished steps survive interruptions, and the last writer is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import empty_store

from slmrec.storage.mirror import Mirror
from slmrec.storage.remote import Remote


class KilledError(Exception):
    """The process ends."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return empty_store(tmp_path, monkeypatch)


@pytest.fixture
def machine(store: Any, tmp_path: Path) -> Callable[[str], tuple[Mirror, Path]]:
    """Begins a session on a machine, whose copy stays between sessions."""

    def begin(name: str) -> tuple[Mirror, Path]:
        folder = tmp_path / name / "out"
        mirror = Mirror(Remote("memory://b/out"), folder)
        mirror.begin()
        return mirror, folder

    return begin


def write_step(folder: Path, step: str, content: str, *names: str) -> None:
    """Replace the folder of a step."""
    for path in (folder / step).glob("*"):
        path.unlink()
    (folder / step).mkdir(parents=True, exist_ok=True)
    for name in (*names, "weights", "stage.json"):
        (folder / step / name).write_text(content)


def files_of(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def remote_files(store: Any) -> dict[str, str]:
    paths = store.find("/b/out")
    return {
        path.removeprefix("/b/out/"): store.cat(path).decode()
        for path in paths
        if "/out/." not in path or "partial" in path
    }


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> list[str]:
    """End the process after some changes of the store, and return their list."""
    changes: list[str] = []
    for name in ("upload", "remove", "write"):
        method = getattr(Remote, name)

        def changed(self: Remote, *arguments: Any, method: Any = method, name: str = name) -> None:
            if len(changes) == after:
                raise KilledError
            changes.append(f"{name} {arguments[-1] if name != 'write' else arguments[0]}")
            method(self, *arguments)

        monkeypatch.setattr(Remote, name, changed)
    return changes


def test_the_record_of_a_step_goes_first_and_comes_last(
    machine: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, folder = machine("a")
    write_step(folder, "distill", "old", "adapter")
    (folder / "report.html").write_text("page")
    for name in ("distill/.partial1", ".distill.partial/weights", "teacher_outputs/key", ".lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of this machine")
    mirror.push()
    assert set(remote_files(store)) == {"report.html", "distill/adapter", "distill/weights", "distill/stage.json"}
    write_step(folder, "distill", "the new one", "about.json")
    changes = interrupt(monkeypatch, 99)
    mirror.push()
    assert changes == [
        "remove distill/stage.json",
        "upload distill/weights",
        "upload distill/about.json",
        "remove distill/adapter",
        "upload distill/stage.json",
    ]
    mirror.push()
    assert len(changes) == 5  # nothing else has changed


@pytest.mark.parametrize("other", [False, True], ids=["one machine", "two machines"])
def test_an_upload_that_is_killed_anywhere_loses_no_finished_step(
    other: bool, machine: Any, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, is_complete = 0, False
    while not is_complete:
        store.store.clear()
        mirror, folder = machine(f"a{number}")
        write_step(folder, "prepare", "data")
        write_step(folder, "distill", "old", "adapter")
        mirror.push()
        mirror, folder = machine(f"a{number}")
        write_step(folder, "distill", "the new one", "about.json")
        write_step(folder, "evaluate", "ranks")
        made = files_of(folder)
        with monkeypatch.context() as patch:
            interrupt(patch, number)
            try:
                mirror.push()
                is_complete = True
            except KilledError:
                pass
        if other:
            _, copy = machine(f"b{number}")
            seen = files_of(copy)
            assert {seen["prepare/stage.json"], seen["prepare/weights"]} == {"data"}
            if "distill/stage.json" in seen:
                assert len({seen[name] for name in seen if name.startswith("distill/")}) == 1
        mirror, folder = machine(f"a{number}")
        assert files_of(folder) == made
        mirror.push()
        assert remote_files(store) == made
        number += 1
    assert number == 9


def test_a_step_that_another_machine_has_made_since_replaces_ours(machine: Any, store: Any) -> None:
    mirror, ours = machine("a")
    for step in ("prepare", "pretrain/sasrec", "distill"):
        write_step(ours, step, "first", "adapter")
    mirror.push()
    mirror, theirs = machine("b")
    write_step(theirs, "distill", "theirs")
    (theirs / "report.html").write_text("theirs")
    mirror.push()
    write_step(ours, "distill", "made here", "extra")  # and never uploaded
    write_step(ours, "pretrain/sasrec", "made here too")
    mirror, ours = machine("a")
    found = files_of(ours)
    assert {found[name] for name in found if name.startswith("distill/")} == {"theirs"}
    assert found["report.html"] == "theirs" and "distill/extra" not in found
    assert found["pretrain/sasrec/weights"] == "made here too"
    mirror.push()
    assert remote_files(store) == files_of(ours)


def test_what_was_removed_in_the_store_is_removed_here_and_a_lost_copy_is_restored(
    machine: Any, store: Any, tmp_path: Path
) -> None:
    mirror, folder = machine("a")
    write_step(folder, "prepare", "data")
    write_step(folder, "distill", "model")
    mirror.push()
    store.rm("/b/out/distill", recursive=True)
    (folder / "prepare" / "weights").unlink()
    mirror, folder = machine("a")
    assert files_of(folder) == {"prepare/weights": "data", "prepare/stage.json": "data"}
    folder.rename(tmp_path / "gone")
    mirror, folder = machine("a")
    assert files_of(folder) == {"prepare/weights": "data", "prepare/stage.json": "data"}
    mirror.push()
    assert set(remote_files(store)) == set(files_of(folder))


def test_the_state_of_a_training_is_uploaded_alone_and_removed_with_it(
    machine: Any, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, folder = machine("a")
    training = folder / "pretrain" / ".sasrec.partial" / "training"
    training.mkdir(parents=True)
    (training.parent / "stage.json").write_text(json.dumps({"done": False}))
    (training.parent / "weights").write_text("unfinished")
    for name in ("log.jsonl", "state.safetensors", "best.safetensors", ".state.1.partial.safetensors"):
        (training / name).write_text("1")
    (folder / "report.html").write_text("later")
    changes = interrupt(monkeypatch, 99)
    mirror.push(training)
    place = "pretrain/.sasrec.partial"
    state = [f"{place}/training/{name}" for name in ("best.safetensors", "log.jsonl", "state.safetensors")]
    assert changes == ["write .writer", *(f"upload {name}" for name in state), f"upload {place}/stage.json"]
    _, copy = machine("b")
    assert set(files_of(copy)) == {*state, f"{place}/stage.json"}
    (training / "state.safetensors").write_text("22")
    mirror.push(training)
    assert changes[5:] == [f"upload {state[2]}"]
    folder.rename(tmp_path / "lost")
    mirror, folder = machine("a")
    assert set(files_of(folder)) == {*state, f"{place}/stage.json"}
    training.parent.rename(folder / "pretrain" / "sasrec")
    mirror.push()
    assert not [name for name in remote_files(store) if ".partial" in name]


@pytest.mark.parametrize("target", ["../../outside", "/etc", ".", "none", "prepare"])
def test_links_of_a_store_stay_in_the_run(target: str, machine: Any, store: Any, tmp_path: Path) -> None:
    mirror, ours = machine("a")
    write_step(ours, "best", "first")
    write_step(ours, "prepare", "another")
    mirror.push()
    write_step(tmp_path, "outside", "first")
    store.pipe("/b/out/.links.json", json.dumps({"best": target, "../x": "a"}).encode())
    _, theirs = machine("b")
    assert not (theirs / "best").is_symlink() and files_of(theirs) == files_of(ours)


def test_a_linked_folder_is_uploaded_as_a_copy_and_linked_again(machine: Any, store: Any) -> None:
    mirror, ours = machine("a")
    write_step(ours, "distill", "first")
    (ours / "best").symlink_to("distill")
    mirror.push()
    mirror, theirs = machine("b")
    assert (theirs / "best").readlink() == Path("distill") and store.cat("/b/out/best/weights") == b"first"
    mirror.push()
    mirror, _ = machine("b")
    assert (theirs / "best").is_symlink() and set(files_of(theirs)) == {"distill/weights", "distill/stage.json"}
    (theirs / "best").unlink()
    write_step(theirs, "best", "theirs")
    mirror.push()
    mirror, ours = machine("a")
    assert files_of(ours)["best/weights"] == "theirs" and files_of(ours)["distill/weights"] == "first"
    for path in (ours / "best").iterdir():
        path.unlink()
    (ours / "best").rmdir()
    (ours / "best").symlink_to("distill")
    mirror.push()
    store.rm("/b/out/best", recursive=True)
    mirror, ours = machine("a")
    mirror.push()
    kept = {"distill/weights": "first", "distill/stage.json": "first"}
    assert files_of(ours) == remote_files(store) == kept
    assert json.loads(store.cat("/b/out/.links.json")) == {}
