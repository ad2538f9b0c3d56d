"""Columns of a table in PostgreSQL, copied into the embedded engine.

A database that stores rows is slow at the rules of `prepare`, and has no casts that tolerate invalid values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.datatypes import DataType
from ibis.expr.types import Table

from slmrec.data.ids import id_column
from slmrec.errors import DataError
from slmrec.files import one_line

_ROWS = 2**16
_SECONDS = "(CASE WHEN isfinite({0}) THEN extract(epoch FROM {0}) * 1000000 END)::bigint"
"""A time in microseconds, counted by the database; infinity, which is no time, becomes null."""


def is_row_store(engine: Any) -> bool:
    """Return whether the columns of an engine's tables are copied before they are read."""
    return bool(engine.name == "postgres")


def copied(source: Any, table: Table, names: Mapping[str, str], embedded: Any, spill: Path, log: str) -> Table:
    """Copy columns of a table into a Parquet file, and open it in the embedded engine.

    Whole numbers, floats, booleans and times keep their types, and all other values are text. The query ends with this
    process: an interruption cancels it, and so does the server when the process was killed.

    Args:
        source: the engine of the table.
        table: the table.
        names: the columns to copy, by their setting.
        embedded: the engine that reads the copy.
        spill: the folder of the copy.
        log: the name of the table, for messages.

    Raises:
        DataError: the table cannot be read, or the type of its ids is none of ids.
    """
    import psycopg
    from psycopg import sql

    for setting in ("user_col", "item_col"):
        ids = id_column(table[names[setting]])
        if isinstance(ids, str):
            raise DataError(f"{log}: column {names[setting]!r} {ids}")
    types = {name: table.schema()[name] for name in dict.fromkeys(names.values())}
    cells = [sql.SQL(_expression(dtype)).format(sql.Identifier(name)) for name, dtype in types.items()]
    origin = table.op()
    place = sql.Identifier(*filter(None, (origin.namespace.database, origin.name)))
    schema = pa.schema([(name, _arrow_type(dtype)) for name, dtype in types.items()])
    path = spill / "table.parquet"
    try:
        with (
            source.con.transaction(),
            source.con.cursor("slmrec", binary=True) as cursor,  # a cursor of the server: rows come in parts
            pq.ParquetWriter(path, schema) as writer,
        ):
            cursor.execute(sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(cells), place))
            while rows := cursor.fetchmany(_ROWS):
                values = zip(schema, zip(*rows, strict=True), strict=True)
                writer.write_table(pa.table([pa.array(column, field.type) for field, column in values], schema))
    except psycopg.Error as error:
        raise DataError(f"{log}: the engine {source.name} cannot read the table ({one_line(error)})") from None
    return embedded.read_parquet(str(path))


def _is_time(dtype: DataType) -> bool:
    return bool(dtype.is_timestamp() or dtype.is_date())


def _expression(dtype: DataType) -> str:
    """Return the SQL expression of a value of a type, with `{0}` for the column."""
    if _is_time(dtype):
        return _SECONDS.replace("{0}", "{0}::timestamp") if dtype.is_date() else _SECONDS
    if dtype.is_float32():
        return "{0}::text::float8"  # the decimal that was written, not the nearest float of 32 bits
    return "{0}" if _arrow_type(dtype) != pa.string() else "{0}::text"


def _arrow_type(dtype: DataType) -> pa.DataType:
    if _is_time(dtype):
        return pa.timestamp("us")
    if dtype.is_integer():
        return pa.int64()
    if dtype.is_floating():
        return pa.float64()
    if dtype.is_binary():
        return pa.binary()
    return pa.bool_() if dtype.is_boolean() else pa.string()
