"""Recommendations on a Spark cluster: each Python worker opens a `Recommender` of its own, once."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import pyarrow as pa

from slmrec.errors import ConfigError, DataError
from slmrec.files import one_line, sha256, special_file
from slmrec.inference.batch.recommend_file import RankOptions, check_unknown
from slmrec.inference.catalogue import Catalogue
from slmrec.inference.histories import history_of, times_of
from slmrec.inference.history_files import DIVERSITY, RULES
from slmrec.inference.recommender import Recommender
from slmrec.inference.timestamps import TIMESTAMPS, needed
from slmrec.locks import target_locked
from slmrec.models.folder import find_folder
from slmrec.types import Unit

_LOG = logging.getLogger(__name__)
_NAMES = {pa.int64(): "bigint", pa.string(): "string", pa.float32(): "float"}
"""Spark's names of the types."""
_USERS = {"tinyint": pa.int64(), "smallint": pa.int64(), "int": pa.int64(), "bigint": pa.int64(), "string": pa.string()}
"""Arrow types of user ids, by the name of the type in Spark."""


def recommend_with_spark(model: Path, input: Path | str, output: Path | str, options: RankOptions) -> None:
    """Write a folder of Parquet files with the rows that `recommend_file` writes; the order of users is that of Spark.

    Spark sends the model to its workers, and commits the output: the file `_SUCCESS` says that it is complete.

    Args:
        model: A model folder on this machine, or a hub ID.
        input: A Parquet file, or a folder of them, with the columns `user_id, history`; or a URI that Spark reads.
        output: A folder that is not there yet; or a URI that Spark writes.
        options: Length and filters of the lists.

    Raises:
        CheckpointError: The model folder is incomplete or damaged, or another process writes the output.
        ConfigError: Spark is not installed, or the output is there already.
        DataError: The input is no Parquet with these columns, or Spark cannot read or write a URI.
    """
    if isinstance(output, Path) and output.exists():
        raise _is_there(output)
    arguments = options.arguments()
    folder = find_folder(model)
    recommender = Recommender.from_pretrained(folder, device="cpu")  # a damaged folder is refused here, in one line
    options.check(recommender, arguments)
    unit = recommender.model.timestamp_unit
    session = _session()
    frame = _read(session, input, unit)
    schema = _schema(frame, recommender, input)
    columns = ", ".join(f"{column.name} {_NAMES[column.type]}" for column in schema)
    _check_histories(frame, recommender.catalogue, unit, input, options)
    archive = _archive(folder)
    session.sparkContext.addArchive(str(archive))
    _write(frame.mapInArrow(partial(_answer, archive.name, arguments, schema), columns), output)
    _LOG.info("recommend: written to %s, a folder of Parquet files", output)


def _write(rows: Any, output: Path | str) -> None:
    if isinstance(output, Path):
        aside = output.with_name(f".{output.name}.partial").resolve()
        with target_locked(output):
            rows.write.mode("overwrite").parquet(aside.as_uri())
            aside.rename(output)
        return
    try:
        rows.write.mode("errorifexists").parquet(str(output))
    except Exception as error:  # Spark has no common class of errors
        if "PATH_ALREADY_EXISTS" in str(error):
            raise _is_there(output) from None
        raise DataError(f"{output}: Spark cannot write it ({one_line(error, 200)})") from None


def _is_there(output: Path | str) -> ConfigError:
    return ConfigError(f"{output}: is there already; --engine spark writes a new folder, so remove it or name another")


@lru_cache
def _archives() -> TemporaryDirectory[str]:
    """Return a folder that lives as long as this process, which serves the archives to workers."""
    return TemporaryDirectory(prefix="slmrec-spark-")


def _archive(folder: Path) -> Path:
    """Pack a model folder; the name depends on the content, since Spark sends each name once."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)} {sha256(file)}".encode())
    archive = Path(_archives().name) / f"slmrec-{digest.hexdigest()[:16]}.zip"
    if archive.exists():
        return archive
    with ZipFile(archive, "w") as stream:  # not compressed: weights hardly shrink
        for file in files:
            stream.write(file, file.relative_to(folder))
    return archive


@lru_cache(maxsize=1)
def _opened(name: str) -> Recommender:
    """Open the model that Spark has sent to this worker, once for all its tasks."""
    import torch
    from pyspark import SparkFiles

    torch.set_num_threads(1)  # a worker has one core
    return Recommender.from_pretrained(SparkFiles.get(name), device="cpu")


def _session() -> Any:
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError(f"--engine is spark: {error}; pip install 'slmrec[spark]'") from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else a worker is any python3 on the PATH
    running = SparkSession.getActiveSession()
    return running or SparkSession.builder.config(map={"spark.ui.enabled": "false"}).getOrCreate()


def _read(session: Any, path: Path | str, unit: Unit | None) -> Any:
    if isinstance(path, Path):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if kind := special_file(path):
            raise DataError(f"{path}: is {kind}, expected Parquet; save it to a file first")
        if path.is_file() and path.suffix != ".parquet":
            raise DataError(f"{path}: --engine spark reads Parquet with the columns user_id and history; convert it")
    try:
        frame = session.read.parquet(path.resolve().as_uri() if isinstance(path, Path) else str(path))
    except Exception as error:  # Spark has no common class of errors
        raise DataError(f"{path}: Spark cannot read it as Parquet ({one_line(error, 200)})") from None
    if not {"user_id", "history"} <= set(frame.columns):
        raise DataError(
            f"{path}: columns {', '.join(frame.columns)}; --engine spark takes user_id and history (a row a user)"
        )
    if own := {RULES, DIVERSITY}.intersection(frame.columns):
        raise ConfigError(f"{path}: {min(own)} of single users does not apply to --engine spark; give --rules FILE")
    if unit is not None and TIMESTAMPS not in frame.columns:
        remedy = f"add the column {TIMESTAMPS}, a list as long as the history"
        raise DataError(f"{path}: {needed(unit, remedy)}")
    return frame.select("user_id", "history", *([] if unit is None else [TIMESTAMPS]))


def _schema(frame: Any, recommender: Recommender, path: Path | str) -> pa.Schema:
    """Return the schema of the recommendations, which is that of the files of `recommend_file`."""
    users = dict(frame.dtypes)["user_id"]
    if users not in _USERS:
        raise DataError(f"{path}: user_id is of the type {users}; expected text or whole numbers")
    items = pa.int64() if pa.types.is_signed_integer(recommender.vocabulary.item_ids.type) else pa.string()
    types = {"user_id": _USERS[users], "item_id": items, "score": pa.float32(), "rank": pa.int64()}
    return pa.schema(list(types.items()))


def _answer(
    model: str, arguments: dict[str, Any], schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Yield the recommendations of some users, in a Spark worker."""
    recommender = _opened(model)
    for batch in batches:
        histories, users = _histories(batch, recommender), batch["user_id"].to_pylist()
        times = _times(batch, histories, recommender.model.timestamp_unit)
        found = recommender.recommend(histories, timestamps=times, user_ids=users, **arguments)
        yield from found.table.cast(schema).to_batches()


def _check_histories(
    frame: Any, catalogue: Catalogue, unit: Unit | None, path: Path | str, options: RankOptions
) -> None:
    """Check all histories in a first pass, so that nothing is written if one is invalid or most items are unknown.

    Raises:
        DataError: A history is invalid, or more than half of the item ids are unknown.
    """
    columns = "num_unknown bigint, num_items bigint, first string, fault string"
    counts = frame.mapInArrow(partial(_count, catalogue, unit), columns).collect()
    fault = next((row["fault"] for row in counts if row["fault"] is not None), None)
    if fault is not None:
        raise DataError(f"{path}: {fault}; correct or remove the row")
    unknown, items = (sum(row[column] for row in counts) for column in (0, 1))
    check_unknown(
        path, unknown, items, next((row["first"] for row in counts if row["first"] is not None), None), options
    )


def _count(catalogue: Catalogue, unit: Unit | None, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the numbers of unknown items and of all items of each batch, its first unknown item and its first fault."""
    columns = ("user_id", "history")
    for batch in batches:
        num_unknown, num_items, first, fault = 0, 0, None, None
        for row, (user, history) in enumerate(zip(*(batch[name].to_pylist() for name in columns), strict=True)):
            try:
                items = history_of(history, catalogue.id_pattern)
                known, unknown = catalogue.split(items)
                _times(batch.slice(row, 1), [items], unit)
                if user is None:
                    raise ValueError("user_id is missing")
            except ValueError as error:
                fault = fault or f"history of user {user!r}: {error}"
                continue
            num_unknown, num_items = num_unknown + len(unknown), num_items + len(known) + len(unknown)
            first = first if first is not None or not unknown else str(unknown[0])
        rows = {"num_unknown": [num_unknown], "num_items": [num_items]}
        texts = {"first": pa.array([first], pa.string()), "fault": pa.array([fault], pa.string())}
        yield pa.RecordBatch.from_pydict({**rows, **texts})


def _histories(batch: pa.RecordBatch, recommender: Recommender) -> list[list[Any]]:
    return [history_of(value, recommender.catalogue.id_pattern) for value in batch["history"].to_pylist()]


def _times(batch: pa.RecordBatch, histories: list[list[Any]], unit: Unit | None) -> list[list[int]] | None:
    if unit is None:
        return None
    pairs = zip(batch[TIMESTAMPS].to_pylist(), histories, strict=True)
    return [times_of(times, len(history), unit) for times, history in pairs]
