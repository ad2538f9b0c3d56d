"""Execution of a step: its folder is written aside, put in place whole, and skipped when nothing has changed."""

import hashlib
import json
import logging
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrec import callbacks, processes
from slmrec.config import Config, Section
from slmrec.config.yaml_text import dump_yaml
from slmrec.errors import CheckpointError
from slmrec.files import sha256, write_json
from slmrec.folders import (
    RULES,
    disk_errors_reported,
    finish_replacement,
    is_empty_folder,
    partial_folder,
    put_in_place,
    read_record,
    replaced_folder,
)
from slmrec.locks import WAIT_S, run_locked, target_locked
from slmrec.pipeline.table import Step
from slmrec.storage.cache import named
from slmrec.storage.runs import upload
from slmrec.training.memory import peak_gpu_mb, peak_rss_mb, reset_peak
from slmrec.version import __version__, is_outdated

_LOG = logging.getLogger(__name__)
PLACES = {"input", "items", "lists", "memory_limit", "engine_password_file"}
"""Settings that change no result: a file may move without its stage being redone, as long as its content stays."""
_CARD_FILES = ("README.md", "about.json", RULES)
"""Files of a model folder that `evaluate` or the user rewrites and on which no result depends."""


@dataclass(frozen=True)
class Task:
    """Input of the function `build` of a stage."""

    config: Config
    output: Path
    """Output folder of the run, with the folders of the earlier steps."""
    folder: Path
    """Folder to write into; it is kept if the step is interrupted, and put in place when it is done."""
    model: str | None = None
    """Name of the model, for a stage that trains several."""
    cache: Path | None = None
    """Folder for intermediate results that several runs share; None: a folder of this run."""

    @property
    def name(self) -> str:
        """Name of the folder, as it is shown to the user."""
        return self.folder.name.removeprefix(".").removesuffix(".partial")


Build = Callable[[Task], dict[str, float]]


def run_step(
    step: Step,
    config: Config,
    output: Path,
    force: bool = False,
    *,
    target: Path | None = None,
    build: Build | None = None,
    cache: Path | None = None,
) -> Path:
    """Execute a step unless its result exists and is unchanged.

    Of several processes, the main process alone decides and writes; all of them build.

    Args:
        step: The step.
        config: All settings.
        output: Output folder of the run.
        force: Redo a finished step.
        target: Folder to write instead of the step's folder in `output`.
        build: Function to execute instead of that of the stage.
        cache: Folder for intermediate results that several runs share.

    Returns:
        The folder of the result.

    Raises:
        CheckpointError: An earlier step is missing or out of date, another process writes into `output`, or the disk
            is full.
    """
    target, partial = target or output / step.folder, partial_folder(target or output / step.folder)
    with disk_errors_reported(target), ExitStack() as locks:
        record = processes.on_main(lambda: _begin(step, config, output, force, target, locks))
        if record is None:
            return target
        if not partial.is_dir():
            raise CheckpointError(
                f"{partial} is not visible to process {processes.rank()}; all machines of a run must share --output"
            )
        start = time.perf_counter()
        reset_peak()
        with _keeping_training_only(partial), callbacks.stage_named(step.folder):
            metrics = (build or step.build)(Task(config, output, partial, step.model, cache))
            processes.barrier()
        facts = {"wall_s": round(time.perf_counter() - start, 3), "peak_rss_mb": peak_rss_mb()}
        if (gpu_mb := peak_gpu_mb()) is not None:
            facts["peak_gpu_mb"] = gpu_mb
        processes.on_main(lambda: _finish(step, config, output, target, record, metrics, facts))
    callbacks.stage_ended(step.folder, metrics | facts)
    return target


def _begin(
    step: Step, config: Config, output: Path, force: bool, target: Path, locks: ExitStack
) -> dict[str, Any] | None:
    """Return what identifies the result of a step, and make the folder to write into; None if it is unchanged."""
    if target != output:
        locks.enter_context(run_locked(output))
    upstream = {name: _current(output, name) for name in step.stage.reads(config)}
    fingerprint = _fingerprint(step, config, upstream)
    is_interrupted = replaced_folder(target).exists()
    if force or is_interrupted or read_record(target).get("fingerprint") != fingerprint:
        locks.enter_context(target_locked(target, WAIT_S))  # `items add` may replace a model at the same time
        finish_replacement(target)
    _refuse_outdated(step, output, force)
    if not force and read_record(target).get("fingerprint") == fingerprint:
        _LOG.info("%s: unchanged, nothing to do (%s; --force redoes it)", step.folder, target)
        return None
    _refuse_foreign(target)
    _prepare_partial(target, fingerprint, force)
    return {"fingerprint": fingerprint, "upstream": upstream}


def _finish(
    step: Step,
    config: Config,
    output: Path,
    target: Path,
    record: dict[str, Any],
    metrics: dict[str, float],
    facts: dict[str, float],
) -> None:
    """Write the record of a step, and put its folder in place."""
    partial = partial_folder(target)
    if not (partial / "metrics.json").exists():
        write_json(partial / "metrics.json", metrics | facts)
    write_json(partial / "stage.json", record | {"done": True, "version": __version__} | facts)
    (partial / "config.yaml").write_text(dump(config), encoding="utf-8")
    _remove_outdated(step, output)
    if (target / RULES).is_file():  # standing rules are the user's, and stay
        shutil.copyfile(target / RULES, partial / RULES)
    put_in_place(partial, target)
    upload(output)
    _LOG.info("%s: done in %.0f s, written to %s", step.folder, facts["wall_s"], target)


def fingerprint_of(step: Step, config: Config, output: Path) -> str:
    """Return the hash of everything that the result of a step depends on, given the finished steps that it reads.

    Raises:
        CheckpointError: One of these is missing or out of date.
    """
    return _fingerprint(step, config, {name: _current(output, name) for name in step.stage.reads(config)})


def pending_steps(steps: Iterable[Step], config: Config, output: Path, force: bool) -> list[Step]:
    """Return the steps that would be executed: those that are not done, and all that read one of them."""
    pending: list[Step] = []
    for step in steps:
        redone = {earlier.folder for earlier in pending}
        if force or redone & set(step.stage.reads(config)) or not _is_done(step, config, output):
            pending.append(step)
    return pending


def current_steps(steps: Iterable[Step], config: Config, output: Path) -> list[Step]:
    """Return the steps that are done and unchanged."""
    return [step for step in steps if _is_done(step, config, output)]


def renew_records(steps: Iterable[Step], config: Config, output: Path) -> None:
    """Let steps stay done although the files that they read were changed.

    Args:
        steps: The steps that `current_steps` returned before the change.
        config: All settings.
        output: Output folder of the run.
    """
    for step in steps:
        upstream = {name: str(read_record(output / name).get("fingerprint")) for name in step.stage.reads(config)}
        record = {"fingerprint": _fingerprint(step, config, upstream), "upstream": upstream}
        write_json(output / step.folder / "stage.json", read_record(output / step.folder) | record)


def finished(folder: Path, name: str) -> Path:
    """Return the folder of a step if it is done.

    Raises:
        CheckpointError: It is not, or it was made by an earlier version whose folders cannot be read.
    """
    record, stage = read_record(folder), name.partition("/")[0]
    if not record.get("done"):
        parent = folder.parents[name.count("/")]
        if (parent / "dataset.json").is_file():
            raise CheckpointError(
                f"{parent} is itself a data set, made by prepare without --config; begin a pipeline with "
                "`slmrec run --config FILE --input FILE --output ANOTHER`"
            )
        raise CheckpointError(
            f"{folder}: no finished {name}; run `slmrec {stage}` with the same --config and --output first"
        )
    if is_outdated(record.get("version")):
        raise _outdated(folder, stage, record)
    return folder


def _outdated(folder: Path, stage: str, record: dict[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"{folder}: made by version {record['version']}, whose folders this version does not read; run `slmrec {stage} "
        "--force` with the same --output to make it again, or `slmrec run --force` for all stages"
    )


def _refuse_outdated(step: Step, output: Path, force: bool) -> None:
    """Refuse to write over a stage of an earlier version; with `force` it is replaced once the new one is complete.

    Raises:
        CheckpointError: The folder was made by such a version.
    """
    folder = output / step.stage.name
    record = read_record(folder)
    if not is_outdated(record.get("version")):
        return
    if not force:
        raise _outdated(folder, step.stage.name, record)


def _remove_outdated(step: Step, output: Path) -> None:
    """Remove the stage of an earlier version from the folder that now holds a folder for each model."""
    folder = output / step.stage.name
    if step.model is None or not is_outdated(read_record(folder).get("version")):
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "stage.json"):  # its record goes last
        if path.name.startswith("."):  # locks, and folders that are being written
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def dump(config: Config) -> str:
    """Return a configuration as YAML, with all defaults; copies of remote files have their URIs."""
    return dump_yaml(named(config.model_dump(mode="json")))


def _is_done(step: Step, config: Config, output: Path) -> bool:
    upstream = {name: str(read_record(output / name).get("fingerprint")) for name in step.stage.reads(config)}
    return read_record(output / step.folder).get("fingerprint") == _fingerprint(step, config, upstream)


def _prepare_partial(target: Path, fingerprint: str, force: bool) -> None:
    """Make the folder to write into; the training state of an interrupted step with the same settings stays in it."""
    partial = partial_folder(target)
    if force or read_record(partial).get("fingerprint") != fingerprint:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    for path in partial.iterdir():
        if path.is_dir() and path.name != "training":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    write_json(partial / "stage.json", {"fingerprint": fingerprint, "done": False})


@contextmanager
def _keeping_training_only(partial: Path) -> Iterator[None]:
    """Remove the partial folder of a failed step, unless it holds training state to resume from."""
    try:
        yield
    finally:
        if sys.exc_info()[0] and processes.is_main() and not (partial / "training").exists():
            shutil.rmtree(partial, ignore_errors=True)


def _current(output: Path, name: str) -> str:
    """Return the fingerprint of a finished step whose own upstream has not changed since.

    Raises:
        CheckpointError: It is not finished, or a step that it reads was redone.
    """
    record = read_record(finished(output / name, name))
    for earlier, fingerprint in record.get("upstream", {}).items():
        if (output / earlier).exists() and _current(output, earlier) != fingerprint:
            raise CheckpointError(
                f"{output / name} was made from an earlier {earlier}; run `slmrec run`, or "
                f"`slmrec {name.partition('/')[0]}` first"
            )
    return str(record["fingerprint"])


def _fingerprint(step: Step, config: Config, upstream: dict[str, str]) -> str:
    """Hash everything that the result of a step depends on."""
    own = section_of(step, config)
    sections = [own, *(getattr(config, name) for name in step.stage.sections(config))]
    texts = {getattr(section, "item_text", None) for section in sections} - {None}
    values = [*sections, *(config.item_text[name] for name in sorted(map(str, texts)))]
    dumped = [part.model_dump(mode="json", exclude=PLACES) if isinstance(part, Section) else part for part in values]
    sources = [_content(Path(path)) for path in step.stage.files(config, own) if path]
    protocol = config.evaluate.primary_protocol if step.stage.validates and own is not None else None
    facts = [__version__, config.seed, step.folder, named(dumped), upstream, sources, protocol]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def section_of(step: Step, config: Config) -> Any:
    """Return the settings of a step: the section of its stage, or its model's part of it; None if there are none."""
    section = getattr(config, step.stage.name, None)
    return section if step.model is None else (section or {}).get(step.model)


def _content(path: Path) -> str:
    """Hash the content of a file or folder."""
    if path.is_dir():
        return " ".join(_content(file) for file in sorted(path.rglob("*")) if file.is_file() and not _is_card(file))
    try:
        return sha256(path)
    except FileNotFoundError:
        return uuid.uuid4().hex  # a table of an engine, which may have changed, or a file that the stage will miss


def _is_card(file: Path) -> bool:
    return file.name in _CARD_FILES and (file.parent / "about.json").is_file()


def _refuse_foreign(target: Path) -> None:
    if target.resolve() == Path.cwd():
        raise CheckpointError(f"{target} is the working directory, which cannot be replaced; name a folder in it")
    if target.exists() and not (target.is_dir() and (read_record(target) or is_empty_folder(target))):
        raise CheckpointError(
            f"{target} exists and is no output of slmrec; choose another --output, nothing was changed"
        )
