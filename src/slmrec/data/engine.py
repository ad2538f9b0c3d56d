"""Where tables are computed: DuckDB, embedded, or another engine that Ibis speaks to. The only place that chooses."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
from ibis.expr import operations
from ibis.expr.types import Table

from slmrec.errors import ConfigError, DataError

_EMBEDDED = "slmrec_embedded"
"""The name of the embedded engine's database, which tells it from a DuckDB of the caller's."""
_NEEDED = (operations.WindowFunction, operations.TryCast)
_ADVICE = " Possible solutions"
"""Where DuckDB begins to name settings of its own."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def connected(name: str, spill: Path, memory_limit: str) -> Iterator[Any]:
    """The engine of `connect`, and an end of the connection; but a Spark session may be the caller's, and goes on."""
    engine = connect(name, spill, memory_limit)
    try:
        yield engine
    finally:
        if engine.name != "pyspark":
            engine.disconnect()


def connect(name: str, spill: Path, memory_limit: str) -> Any:
    """The engine of a name.

    Args:
        name: `duckdb`; `spark` (the running session, or a new local one); or a connection URL of another Ibis backend,
            such as `bigquery://project/dataset`.
        spill: the folder for what does not fit in memory.
        memory_limit: how much memory DuckDB may take, for example `4GB`; of a new local Spark, its driver's.

    Raises:
        ConfigError: there is no such engine, or it cannot be reached, or cannot do what is needed.
        DataError: the disk is full.
    """
    if name == "duckdb":
        return _duckdb(spill, memory_limit)
    try:
        engine = _spark(memory_limit) if name == "spark" else ibis.connect(name)
    except ImportError as error:
        extra = "pip install 'slmrec[spark]'" if name == "spark" else "install what the Ibis backend needs"
        raise ConfigError(f"prepare.engine is {name!r}: {one_line(error)}; {extra}") from None
    except Exception as error:  # drivers of databases have no error in common
        raise ConfigError(
            f"prepare.engine is {name!r}: {one_line(error)}; expected duckdb, spark, or the connection URL of an Ibis "
            "backend"
        ) from None
    absent = [operation.__name__ for operation in _NEEDED if not engine.has_operation(operation)]
    if absent:
        raise cannot(name, f"Ibis' backend {engine.name} has no {absent[0]}")
    return engine


def cannot(name: str, what: str) -> ConfigError:
    """The error of an engine that cannot do something."""
    return ConfigError(f"prepare.engine is {name!r}, which cannot do this ({what}); use duckdb or spark")


def _duckdb(spill: Path, memory_limit: str) -> Any:
    settings = {"temp_directory": str(spill / "duckdb"), "memory_limit": memory_limit}
    try:
        engine = ibis.duckdb.connect(spill / f"{_EMBEDDED}.duckdb", **settings)
    except duckdb.IOException as error:
        raise explain(error, str(spill)) from None
    except duckdb.Error as error:
        raise ConfigError(f"prepare.memory_limit is {memory_limit!r}: {one_line(error)}; give it as 4GB") from None
    engine.raw_sql(f"SET enable_progress_bar = {sys.stdout.isatty()}")  # of what takes more than two seconds
    return engine


def _spark(memory_limit: str) -> Any:
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is None:
        amount = re.sub(r"i?B$", "", memory_limit.strip()).lower().replace(" ", "")
        settings = {
            "spark.driver.memory": amount,
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),  # 200 by default, for a cluster
        }
        session = SparkSession.builder.config(map=settings).getOrCreate()
    session.conf.set("spark.sql.session.timeZone", "UTC")
    return ibis.pyspark.connect(session)


def is_embedded(engine: Any) -> bool:
    """Whether the engine is the embedded one, which reads any file and knows the order of its rows."""
    return bool(engine.name == "duckdb" and engine.current_catalog == _EMBEDDED)


def keep(engine: Any, table: Table) -> Table:
    """The table, computed once and kept in the engine, in the order of its rows where the engine has one.

    Nothing is written into a database of the caller's: its tables of a connection end with it.
    """
    if engine.name == "pyspark":
        return table.cache()
    return engine.create_table(ibis.util.gen_name("slmrec"), table, temp=not is_embedded(engine))


def drop(engine: Any, table: Table) -> None:
    """Frees the room that a table from `keep` takes on the disk of the embedded engine; others see to it themselves."""
    if is_embedded(engine):
        engine.raw_sql(f'DROP TABLE "{table.op().name}"')


def value(scalar: Any) -> Any:
    """What an expression of one value comes to."""
    return scalar.to_pyarrow().as_py()


def first_row(table: Table) -> dict[str, Any]:
    """The first row; empty if there is none."""
    found = table.limit(1).to_pyarrow().to_pylist()
    return dict(found[0]) if found else {}


def batches(engine: Any, table: Table, rows: int) -> Iterator[pa.Table]:
    """A table as it comes out of the engine, in parts of exactly `rows` rows; the last one may be shorter, or empty."""
    schema = pa.schema([(field.name, field.type) for field in table.schema().to_pyarrow()])
    if engine.name == "duckdb":  # Ibis' own way is for DuckDB 1
        reader = engine.con.sql(ibis.to_sql(table, dialect="duckdb")).to_arrow_reader(rows)
    else:
        reader = table.to_pyarrow_batches(chunk_size=rows)
    waiting = schema.empty_table()
    for batch in reader:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(schema)])
        while waiting.num_rows >= rows:
            yield waiting.slice(0, rows).combine_chunks()
            waiting = waiting.slice(rows)
    yield waiting.combine_chunks()


def explain(error: Exception, what: str) -> DataError:
    """An engine's error, in one line."""
    text = one_line(error).partition(_ADVICE)[0]
    if any(os.strerror(number) in text for number in _FULL):
        return DataError(f"{what}: {text}; free space there, or choose another --output")
    if isinstance(error, duckdb.OutOfMemoryException):
        return DataError(f"{what}: {text}; raise prepare.memory_limit, or free space on the disk of the output")
    return DataError(f"{what}: cannot be read ({text[:200]})")


def one_line(error: Exception) -> str:
    """The text of an error."""
    return " ".join(str(error).split())
