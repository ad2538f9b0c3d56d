"""Engines that compute tables: embedded DuckDB, Spark, or another Ibis backend. Only this module chooses one."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
from ibis.expr import operations
from ibis.expr.types import Table

from slmrec.config.prepare import PrepareConfig
from slmrec.config.secrets import PASSWORD_VARIABLE, with_password, without_secrets, without_url
from slmrec.errors import ConfigError, DataError
from slmrec.files import one_line

_EMBEDDED = "slmrec_embedded"
"""Name of the embedded engine's database; it distinguishes our DuckDB from one of the user."""
_REQUIRED = (operations.WindowFunction, operations.TryCast)
_DUCKDB_HINT = " Possible solutions"
"""Start of the part of DuckDB's messages that recommends DuckDB's own settings."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_MESSAGE = 2000


@contextmanager
def engines_of(settings: PrepareConfig, spill: Path) -> Iterator[tuple[Any, Any]]:
    """Connect to the engine of the log and to the embedded engine, which are one and the same for files.

    The errors are those of `connect`.
    """
    with connected("duckdb", spill, settings.memory_limit) as embedded:
        if settings.engine == "duckdb":
            yield embedded, embedded
            return
        with connected(settings.engine, spill, settings.memory_limit, settings.engine_password_file) as source:
            yield source, embedded


@contextmanager
def connected(name: str, spill: Path, memory_limit: str, password_file: str | None = None) -> Iterator[Any]:
    """Connect to an engine and disconnect at the end; a Spark session stays open, since it may belong to the caller.

    The arguments and errors are those of `connect`.
    """
    engine = connect(name, spill, memory_limit, password_file)
    try:
        yield engine
    finally:
        if engine.name != "pyspark":
            engine.disconnect()


def connect(name: str, spill: Path, memory_limit: str, password_file: str | None = None) -> Any:
    """Connect to an engine by its name.

    Args:
        name: `duckdb`; `spark` (the running session, or a new local one); or the connection URL of another Ibis
            backend, such as `bigquery://project/dataset`; see `with_password` for its password.
        spill: the folder for intermediate results that do not fit in memory.
        memory_limit: the memory that DuckDB may use, for example `4GB`; for a new local Spark, that of its driver.
        password_file: a file with the password of the URL.

    Raises:
        ConfigError: the engine does not exist, cannot be reached, or lacks a required operation.
        DataError: the disk is full.
    """
    if name == "duckdb":
        return _duckdb(spill, memory_limit)
    name = without_secrets(name)
    url = with_password(name, password_file)
    try:
        engine = _spark(memory_limit) if name == "spark" else ibis.connect(url)
    except ImportError as error:
        packages = {"spark": "pip install 'slmrec[spark]'", "postgres": "pip install 'slmrec[postgres]'"}
        scheme = name.partition(":")[0].replace("postgresql", "postgres")
        extra = packages.get(scheme, "install the packages of the Ibis backend")
        raise ConfigError(f"prepare.engine is {name!r}: {one_line(error)}; {extra}") from None
    except Exception as error:  # database drivers have no common base class of errors
        raise ConfigError(f"prepare.engine is {name!r}: {_connection_error(error, url)}") from None
    if engine.name == "postgres":
        _protect(engine.con)
    absent = [operation.__name__ for operation in _REQUIRED if not engine.has_operation(operation)]
    if absent:
        raise unsupported(name, f"the Ibis backend {engine.name} has no {absent[0]}")
    return engine


def _protect(connection: Any) -> None:
    """Make a PostgreSQL connection read only, and let the server cancel its query once this process is gone."""
    connection.execute("SET default_transaction_read_only = on")
    connection.execute("SET application_name = 'slmrec'")
    interval = "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
    connection.execute(interval)  # absent before PostgreSQL 14


def _connection_error(error: Exception, url: str) -> str:
    """Return the reason of a failed connection, and its remedy."""
    text = without_url(one_line(error, _MAX_MESSAGE), url)[:300]
    if "password" in text:
        return f"{text}; give it in the URL, in {PASSWORD_VARIABLE}, or in the file prepare.engine_password_file"
    return f"{text}; expected duckdb, spark, or the connection URL of an Ibis backend"


def unsupported(name: str, reason: str) -> ConfigError:
    """Return the error of an engine that lacks a required operation."""
    return ConfigError(f"prepare.engine is {name!r}, which cannot run this query ({reason}); use duckdb or spark")


def disable_progress_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """Turn off DuckDB's own progress bar.

    In a notebook without ipywidgets, DuckDB refuses every change of this setting, even turning the bar off; there it
    is off already.
    """
    if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall()[0][0]:
        connection.execute("SET enable_progress_bar = false")


def _duckdb(spill: Path, memory_limit: str) -> Any:
    settings = {"temp_directory": str(spill / "duckdb"), "memory_limit": memory_limit}
    try:
        engine = ibis.duckdb.connect(spill / f"{_EMBEDDED}.duckdb", **settings)
    except duckdb.IOException as error:
        raise explain(error, str(spill)) from None
    except duckdb.Error as error:
        raise ConfigError(f"prepare.memory_limit is {memory_limit!r}: {one_line(error)}; give it as 4GB") from None
    disable_progress_bar(engine.con)
    return engine


def _spark(memory_limit: str) -> Any:
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is None:
        amount = re.sub(r"i?B$", "", memory_limit.strip()).lower().replace(" ", "")
        settings = {
            "spark.driver.memory": amount,
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),  # the default of 200 suits a cluster
        }
        session = SparkSession.builder.config(map=settings).getOrCreate()
    session.conf.set("spark.sql.session.timeZone", "UTC")
    return ibis.pyspark.connect(session)


def is_embedded(engine: Any) -> bool:
    """Return whether an engine is the embedded one, which reads all file formats and preserves the order of rows."""
    return bool(engine.name == "duckdb" and engine.current_catalog == _EMBEDDED)


def keep(engine: Any, table: Table) -> Table:
    """Compute a table once and keep it in the engine; the embedded engine preserves the order of rows.

    Nothing is written to a database of the user: there the table is temporary and ends with the connection.
    """
    if engine.name == "pyspark":
        return table.cache()
    return engine.create_table(ibis.util.gen_name("slmrec"), table, temp=not is_embedded(engine))


def as_view(engine: Any, table: Table) -> Table:
    """Give a table expression a name in the embedded engine, so that Ibis does not compile all of it for each query."""
    return engine.create_view(ibis.util.gen_name("slmrec"), table) if is_embedded(engine) else table


def drop(engine: Any, table: Table) -> None:
    """Free the disk space of a table from `keep` in the embedded engine; other engines free it themselves."""
    if is_embedded(engine):
        engine.raw_sql(f'DROP TABLE "{table.op().name}"')


def value(scalar: Any) -> Any:
    """Compute an expression of one value."""
    return scalar.to_pyarrow().as_py()


def first_row(table: Table) -> dict[str, Any]:
    """Return the first row of a table, or an empty dictionary if it has no rows."""
    rows = table.limit(1).to_pyarrow().to_pylist()
    return dict(rows[0]) if rows else {}


def batches(engine: Any, table: Table, rows: int) -> Iterator[pa.Table]:
    """Yield a table in parts of exactly `rows` rows; the last part may be shorter, or empty."""
    schema = pa.schema([(field.name, field.type) for field in table.schema().to_pyarrow()])
    if engine.name == "duckdb":  # to_pyarrow_batches of Ibis supports only DuckDB 1
        reader = engine.con.sql(ibis.to_sql(table, dialect="duckdb")).to_arrow_reader(rows)
    else:
        reader = table.to_pyarrow_batches(chunk_size=rows)
    pending = schema.empty_table()
    for batch in reader:
        pending = pa.concat_tables([pending, pa.Table.from_batches([batch]).cast(schema)])
        while pending.num_rows >= rows:
            yield pending.slice(0, rows).combine_chunks()
            pending = pending.slice(rows)
    yield pending.combine_chunks()


def explain(error: Exception, subject: str) -> DataError:
    """Convert an engine's error to a `DataError` of one line with a remedy.

    Args:
        error: the engine's error.
        subject: what was read or written, for example a path.
    """
    text = one_line(error, _MAX_MESSAGE).partition(_DUCKDB_HINT)[0]
    if any(os.strerror(number) in text for number in _DISK_FULL):
        return DataError(f"{subject}: {text}; free space there, or choose another --output")
    if isinstance(error, duckdb.OutOfMemoryException):
        return DataError(f"{subject}: {text}; raise prepare.memory_limit, or free space on the disk of the output")
    return DataError(f"{subject}: cannot be read ({text[:200]})")
