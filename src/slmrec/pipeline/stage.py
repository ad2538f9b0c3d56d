"""The folder of a stage: built aside, put in place whole, and recognised when it is already there."""

import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmrec import __version__
from slmrec.config import Config
from slmrec.errors import CheckpointError
from slmrec.training.memory import peak_gpu_mb, peak_rss_mb, reset_peak

ORDER = ("prepare", "pretrain", "companion", "finetune", "distill", "evaluate")
_PLACES = {"teacher_states", "input", "items", "memory_limit"}
"""Settings that change no result; of files, moving them redoes no stage, but changing what is in them does."""
_CARD_FILES = ("README.md", "about.json")
"""Of a model folder; `evaluate` writes them anew, and no result depends on them."""

_DISK_FAULTS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
    errno.ENAMETOOLONG,
}


@dataclass(frozen=True)
class Task:
    """What a stage's `build` is given."""

    config: Config
    output: Path
    """The run's folder, with the folders of the stages before."""
    folder: Path
    """Where to write: a folder that is kept if the stage is interrupted, and put in place when it is done."""


@dataclass(frozen=True)
class Stage:
    """A stage: what it reads, and how its folder is built."""

    name: str
    needs: Callable[[Config], tuple[str, ...]]
    build: Callable[[Task], dict[str, float]]
    """Writes into `task.folder` and returns the stage's metrics."""
    sources: Callable[[Config], tuple[str | None, ...]] = lambda config: ()
    """Files outside the run that the result depends on."""


def run_stage(stage: Stage, config: Config, output: Path, force: bool = False, target: Path | None = None) -> Path:
    """Runs a stage unless its result is already there; where its output is.

    Args:
        stage: which one.
        config: all settings.
        output: the run's folder.
        force: redo a finished stage.
        target: write here instead of `output/NAME`.

    Raises:
        CheckpointError: a stage before it has not been run, or not anew after one before that was redone.
    """
    target = target or output / stage.name
    with _disk_faults_told(target):
        return _run_stage(stage, config, output, force, target)


@contextmanager
def folder_in_place(target: Path, replaced: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when all is written; else nothing is left of it.

    Args:
        target: where the folder shall be.
        replaced: whether it takes the place of one that is there.

    Raises:
        CheckpointError: something is there that is not to be replaced, or the disk is full.
    """
    with _disk_faults_told(target):
        _end_replacement(target)
        if not replaced and target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise CheckpointError(f"{target} exists; choose another --output, or remove it: nothing was changed")
        partial = target.parent / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            _put_in_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def is_done(stage: Stage, config: Config, output: Path) -> bool:
    """Whether `run_stage` would have nothing to do, given that the stages before are as they shall be."""
    upstream = {name: str(read_record(output / name).get("fingerprint")) for name in stage.needs(config)}
    return read_record(output / stage.name).get("fingerprint") == _fingerprint(stage, config, upstream)


def _run_stage(stage: Stage, config: Config, output: Path, force: bool, target: Path) -> Path:
    upstream = {name: _current(output, name) for name in stage.needs(config)}
    fingerprint = _fingerprint(stage, config, upstream)
    _end_replacement(target)
    if not force and read_record(target).get("fingerprint") == fingerprint:
        print(f"{stage.name}: done before and unchanged, nothing to do ({target}; --force redoes it)", flush=True)
        return target
    _refuse_foreign(target)
    partial = target.parent / f".{target.name}.partial"
    if force or read_record(partial).get("fingerprint") != fingerprint:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    _keep_training_only(partial)
    _write_json(partial / "stage.json", {"fingerprint": fingerprint, "done": False})
    start = time.perf_counter()
    reset_peak()
    with _leaving_training_only(partial):
        metrics = stage.build(Task(config, output, partial))
    facts = {"wall_s": round(time.perf_counter() - start, 3), "peak_rss_mb": peak_rss_mb()}
    if (gpu_mb := peak_gpu_mb()) is not None:
        facts["peak_gpu_mb"] = gpu_mb
    if not (partial / "metrics.json").exists():
        _write_json(partial / "metrics.json", metrics | facts)
    record = {"fingerprint": fingerprint, "upstream": upstream, "done": True, "version": __version__}
    _write_json(partial / "stage.json", record | facts)
    (partial / "config.yaml").write_text(_dump(config), encoding="utf-8")
    _put_in_place(partial, target)
    print(f"{stage.name}: done in {facts['wall_s']:.0f} s, written to {target}", flush=True)
    return target


@contextmanager
def _disk_faults_told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        raise CheckpointError(
            f"{error.filename or target}: {os.strerror(error.errno)}; make room or give permission, or choose another "
            "--output; what was there is unchanged"
        ) from None


@contextmanager
def _leaving_training_only(partial: Path) -> Iterator[None]:
    """A stage that fails takes no room on the disk, unless there is training to go on with."""
    try:
        yield
    finally:
        if sys.exc_info()[0] and not (partial / "training").exists():
            shutil.rmtree(partial, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any]:
    """What is known of a stage's folder; empty if it is none."""
    try:
        record: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise CheckpointError(f"{folder / 'stage.json'}: is damaged ({error}); remove {folder} and run again") from None
    return record


def finished(folder: Path, name: str) -> Path:
    """The folder, if the stage that makes it is done.

    Raises:
        CheckpointError: it is not.
    """
    if not read_record(folder).get("done"):
        if (folder.parent / "dataset.json").is_file():
            raise CheckpointError(
                f"{folder.parent} is itself a data set, made by prepare without --config; begin a pipeline with "
                "`slmrec run --config FILE --input FILE --output ANOTHER`"
            )
        raise CheckpointError(
            f"{folder}: no finished {name}; run `slmrec {name}` with the same --config and --output first"
        )
    return folder


def _current(output: Path, name: str) -> str:
    """The fingerprint of a finished stage, all of whose own upstream is still what it was made from."""
    record = read_record(finished(output / name, name))
    for earlier, fingerprint in record.get("upstream", {}).items():
        if (output / earlier).exists() and _current(output, earlier) != fingerprint:
            raise CheckpointError(
                f"{output / name} was made from an earlier {earlier}; run `slmrec run`, or `slmrec {name}` first"
            )
    return str(record["fingerprint"])


def _fingerprint(stage: Stage, config: Config, upstream: dict[str, str]) -> str:
    names = (stage.name, *_also(stage.name))
    sections = {name: getattr(config, name).model_dump(mode="json", exclude=_PLACES) for name in names}
    sources = [_sha256(Path(path)) for path in stage.sources(config) if path]
    facts = [__version__, config.seed, sections, upstream, sources]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _also(name: str) -> tuple[str, ...]:
    """Sections of other stages that a stage reads as well."""
    return ("finetune",) if name == "distill" else ()


def _sha256(path: Path) -> str:
    if path.is_dir():
        return " ".join(_sha256(file) for file in sorted(path.rglob("*")) if file.is_file() and not _is_card(file))
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return uuid.uuid4().hex  # a table of an engine, which may have changed; or else the stage says what to do


def _is_card(file: Path) -> bool:
    return file.name in _CARD_FILES and (file.parent / "about.json").is_file()


def _refuse_foreign(target: Path) -> None:
    if target.resolve() == Path.cwd():
        raise CheckpointError(f"{target} is the working directory, which cannot be replaced; name a folder in it")
    if target.exists() and not (target.is_dir() and (read_record(target) or not any(target.iterdir()))):
        raise CheckpointError(
            f"{target} exists and is no output of slmrec; choose another --output, nothing was changed"
        )


def _keep_training_only(partial: Path) -> None:
    """Of an interrupted stage only the state of its training is of use."""
    for path in partial.iterdir():
        if path.is_dir() and path.name != "training":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def _put_in_place(partial: Path, target: Path) -> None:
    if target.exists():
        target.rename(_replaced(target))
    partial.rename(target)
    _end_replacement(target)


def _end_replacement(target: Path) -> None:
    """Removes the folder that was replaced; it returns if the run was killed before the new one took its place."""
    old = _replaced(target)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _dump(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
