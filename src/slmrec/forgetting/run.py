"""Removal of users from the folder of a run: data, ranks and counts; models keep what they have learned."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slmrec.auto.request import RECORD as CHOICE
from slmrec.config import BASELINES, Config
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.data.ids import id_text, is_missing
from slmrec.errors import ConfigError, DataError
from slmrec.files import read_json, write_json
from slmrec.folders import folder_in_place
from slmrec.forgetting.tables import filter_lines, filter_parquet, is_user, write_without_users
from slmrec.locks import WAIT_S, run_locked, target_locked
from slmrec.models.baselines import build_baseline
from slmrec.models.folder import read_about, read_vocabulary, replace_vocabulary, save_folder
from slmrec.pipeline.stage import current_steps, renew_records
from slmrec.pipeline.table import Step, steps
from slmrec.updates.merge import WAITING
from slmrec.updates.versions import RECORD as UPDATE
from slmrec.updates.versions import UPDATES

_LOG = logging.getLogger(__name__)
_DATA, _LINES = "dataset.json", (".csv", ".jsonl")


def forget_users(output: Path, user_ids: Sequence[Any]) -> None:
    """Remove users from a run, with its studies and updates: from data, ranks, counts, caches and reports.

    Args:
        output: Folder of a run, or of a data set.
        user_ids: Ids of the users; text and number forms of an id are the same.

    Raises:
        DataError: A user is unknown; nothing was changed.
        ConfigError: No user is named, or none would be left.
        CheckpointError: Another process writes the run.
    """
    users = frozenset(_text(user) for user in user_ids)
    if not users:
        raise ConfigError("no user is named; give --user ID or --users FILE")
    with run_locked(output):
        folders = sorted({path.parent for path in _files(output, _DATA)}, key=lambda path: path == output / "prepare")
        _check(output, folders, users)
        current = _current_steps(output)
        num_rows = sum(filter_parquet(path, users) for path in _files(output, "*.parquet") if _is_derived(path))
        num_rows += sum(filter_lines(path, users) for path in _line_files(output))
        num_events, data = 0, {}
        for folder in folders:
            before = Dataset.load(folder).fingerprint
            with target_locked(folder, WAIT_S), folder_in_place(folder, replaced=True) as partial:
                num_events += write_without_users(folder, partial, users)
            data[before] = Dataset.load(folder).fingerprint
        _renew_fingerprints(output, data)
        learned = [folder for folder in _model_folders(output) if not _count_again(folder)]
        removed = _remove_caches(output)
        if current is not None:
            renew_records(*current, output)
    names = ", ".join(str(folder.relative_to(output)) for folder in learned)
    _LOG.info(
        "forget: %d users removed from %s: %s events, %s rows of ranks and files%s",
        *(
            len(users),
            output,
            f"{num_events:,}",
            f"{num_rows:,}",
            f"; deleted: {', '.join(removed)}" if removed else "",
        ),
    )
    if learned:
        _LOG.warning(
            "forget: the weights of %s were trained with these users, and metrics were measured with them; remove the "
            "users from the log, and `slmrec run --force` trains and measures without them",
            names,
        )
    for log in _logs(folders, output):
        _LOG.warning(
            "forget: the log %s may still hold these users; remove them there before it is prepared again", log
        )


def _text(user: Any) -> str:
    if is_missing(user, ()):
        raise ConfigError(f"a user is {user!r}, expected an id")
    return id_text(user, whole_numbers=not isinstance(user, str))


def _check(output: Path, folders: list[Path], users: frozenset[str]) -> None:
    """Refuse unknown users, and to remove all users of a data set."""
    if not folders:
        raise DataError(
            f"{output}: neither a run nor a data set ({_DATA} is missing); give the --output of `slmrec run`"
        )
    known: set[str] = set()
    for folder in folders:
        ids = Dataset.load(folder).user_ids
        found = is_user(ids, users)
        if found.all():
            raise ConfigError(f"{folder}: no user would be left; delete the folder instead, nothing was changed")
        known |= set(ids.filter(pa.array(found)).cast(pa.string()).to_pylist())
        if (folder / WAITING).is_file():
            known |= set(map(str, pq.read_table(folder / WAITING)["user_id"].to_pylist()))
    if unknown := sorted(users - known):
        raise DataError(
            f"{output}: user {unknown[0]!r} is unknown ({len(unknown)} unknown in all); check the ids, nothing was "
            "changed"
        )


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the files of a folder, without those behind links and in folders that are being written."""
    for path in sorted(folder.rglob(pattern)):
        inner = path.relative_to(folder)
        parents = [folder.joinpath(*inner.parts[:number]) for number in range(1, len(inner.parts) + 1)]
        if not any(parent.is_symlink() or parent.name.endswith(".partial") for parent in parents) and path.is_file():
            yield path


def _is_derived(path: Path) -> bool:
    """Return whether a table is none of the tables of a data set, which are written anew."""
    return not (path.parent / _DATA).is_file()


def _line_files(output: Path) -> list[Path]:
    """Return the files of lines that slmrec or a user keeps in the folder of a run."""
    return [path for place in (output, output / "raw") for path in sorted(place.glob("*.*")) if path.suffix in _LINES]


def _current_steps(output: Path) -> tuple[list[Step], Config] | None:
    """Return the settings of a run and its steps that are done and unchanged; None if it has no settings."""
    for stage in ("evaluate", "prepare"):
        path = output / stage / "config.yaml"
        if path.is_file():
            config = load_config(path, [])
            return current_steps(steps(config), config, output), config
    return None


def _renew_fingerprints(output: Path, data: dict[str, str]) -> None:
    """Let settings that were chosen for the data stay chosen, and updates of a run stay those of its data."""
    path = output / CHOICE
    if path.is_file():
        content = read_json(path)
        request = content.get("request", {})
        if request.get("data") in data:
            write_json(path, content | {"request": request | {"data": data[request["data"]]}})
    for path in sorted((output / UPDATES).glob(f"*/{UPDATE}")):
        content = read_json(path)
        if content.get("first_data") in data:
            write_json(path, content | {"first_data": data[content["first_data"]]})


def _model_folders(output: Path) -> list[Path]:
    return [path.parent for path in _files(output, "about.json") if (path.parent / "items.parquet").is_file()]


def _count_again(folder: Path) -> bool:
    """Count the events of a model folder again; return whether the model consists of such counts alone."""
    data = next((parent / "prepare" for parent in folder.parents[:3] if (parent / "prepare" / _DATA).is_file()), None)
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    name = kind.removeprefix("slmrec_")
    if data is None:
        return name in BASELINES
    dataset = Dataset.load(data)
    vocabulary = read_vocabulary(folder, pq.read_metadata(folder / "items.parquet").num_rows)
    numbers = dict(zip(map(str, dataset.item_ids.to_pylist()), dataset.train_counts()[1:].tolist(), strict=True))
    counts = [numbers.get(str(item_id), 0) for item_id in vocabulary.item_ids.to_pylist()]
    vocabulary = vocabulary._replace(counts=pa.array(counts, vocabulary.counts.type))
    if name in BASELINES and len(counts) == dataset.num_items:
        save_folder(folder, build_baseline(name, dataset), vocabulary, read_about(folder))
        return True
    replace_vocabulary(vocabulary, folder)
    return False


def _remove_caches(output: Path) -> list[str]:
    """Remove what is made again when it is needed and may show users; return the names."""
    caches = [path for path in sorted(output.rglob("*")) if not path.is_symlink() and _is_cache(path)]
    for path in caches:
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
    return [str(path.relative_to(output)) for path in caches]


def _is_cache(path: Path) -> bool:
    if path.is_dir():
        return path.name == "teacher_outputs" or path.name.endswith(".partial") or (path / "report.json").is_file()
    return path.suffix == ".html" and (path.with_suffix("") / "report.json").is_file()


def _logs(folders: list[Path], output: Path) -> list[str]:
    """Return the logs outside of the run from which data sets were prepared."""
    logs = []
    for folder in folders:
        path = folder / "config.yaml"
        log = load_config(path, []).prepare.input if path.is_file() else None
        if log is not None and not Path(log).resolve().is_relative_to((output / "raw").resolve()):
            logs.append(log)
    return list(dict.fromkeys(logs))
