"""Parquet files: tables of any library as files, and files of others, whose sizes are compared before they unfold."""

import glob
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slmrec.files import one_line, special_file

_BATCH_ROWS = 2**16
_MAX_RATIO, _MIN_LIMIT, _SMALL = 250, 2**26, 2**20
"""Columns of real logs, even of sorted ones, are less than a hundred times larger than their file."""


class RowsError(ValueError):
    """The file has another number of rows than expected."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(f"it has {num_rows:,} rows")
        self.num_rows = num_rows


def read_table(path: Path, num_rows: int, max_bytes: int) -> pa.Table:
    """Read a Parquet file whose number of rows is known.

    Args:
        path: the file.
        num_rows: number of rows that the file must have.
        max_bytes: largest size of its columns in memory.

    Raises:
        FileNotFoundError: there is no such file.
        RowsError: it has another number of rows.
        ValueError: the file is damaged, or its columns are larger.
    """
    if kind := special_file(path):
        raise ValueError(f"it is {kind}, expected a file")
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        if metadata.num_rows != num_rows:
            raise RowsError(metadata.num_rows)
        names = schema.names
        if len(set(names)) < len(names):
            raise ValueError(f"a column occurs twice: {', '.join(names)}")
        _check_size(_unpacked_bytes(metadata), max_bytes)
        parts, total = [], 0
        plain = [name for name in names if not pa.types.is_nested(schema.field(name).type)]
        with pq.ParquetFile(path, read_dictionary=plain) as file:  # a text that all rows repeat is held once
            for batch in file.iter_batches(_BATCH_ROWS):
                total += sum(_plain_bytes(column) for column in batch.columns)
                _check_size(total, max_bytes)
                parts.append(pa.record_batch([_plain(column) for column in batch.columns], names=batch.schema.names))
                parts[-1].validate(full=True)  # texts may hold bytes that are no UTF-8
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(one_line(error)) from None
    return pa.Table.from_batches(parts) if parts else pa.table({name: pa.nulls(0) for name in names})


def write_any_table(table: Any, path: Path) -> None:
    """Write a table of pandas, polars or Arrow, or of any other object that exports Arrow data.

    Categories become their values, a named index of pandas becomes a column, and a lazy table of polars is collected.

    Raises:
        ValueError: the object is no table, or a column has values of several types.
    """
    try:
        if type(table).__name__ == "LazyFrame":
            table = table.collect()
        if type(table).__module__.startswith("pandas"):
            table = table.reset_index() if any(table.index.names) else table.reset_index(drop=True)
        pq.write_table(_without_categories(pa.table(table)), path)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise ValueError(one_line(error)) from None


def _without_categories(table: pa.Table) -> pa.Table:
    """Replace categories, also those in lists, by their values."""
    for index, field in enumerate(table.schema):
        plain = _plain_type(field.type)
        if plain != field.type:
            chunks = [_values(chunk, plain) for chunk in table.column(index).chunks]
            table = table.set_column(index, field.name, pa.chunked_array(chunks, plain))
    return table


def _plain_type(dtype: Any) -> Any:
    """Return a type without categories; string views of polars in them, or in structs, become strings.

    Arrow can neither take nor slice their values.
    """
    if pa.types.is_dictionary(dtype):
        return pa.large_string() if pa.types.is_string_view(dtype.value_type) else dtype.value_type
    if pa.types.is_struct(dtype):
        views = [pa.large_string() if pa.types.is_string_view(one.type) else _plain_type(one.type) for one in dtype]
        return pa.struct([one.with_type(view) for one, view in zip(dtype, views, strict=True)])
    if not (pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)):
        return dtype
    plain = _plain_type(dtype.value_type)
    return dtype if plain == dtype.value_type else pa.large_list(plain)


def _values(array: Any, plain: Any) -> Any:
    if not pa.types.is_dictionary(array.type):
        return pa.array(array.to_pylist(), plain)
    return pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(plain)).dictionary_decode()


def unpacked_size(path: Path, original: Path, columns: Collection[str], memory_limit: str = "1GB") -> int:
    """Return a bound of the size of some columns in memory; a value that all rows repeat counts in each row.

    Args:
        path: the file.
        original: the file of the user, with whose size that of the columns is compared.
        columns: names of columns; those that the file lacks are left out.
        memory_limit: the memory that the engine may use, as in `prepare.memory_limit`.

    Raises:
        ValueError: the file is damaged, or the columns are larger than 64 MiB and than 250 times the file.
    """
    most = max(_MIN_LIMIT, _MAX_RATIO * original.stat().st_size)
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        chunks = defaultdict(list)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                chunks[chunk.path_in_schema.partition(".")[0]].append(chunk)
        total = 0
        for name in chunks.keys() & set(columns):
            own = chunks[name]
            total += sum(max(8 * chunk.num_values, chunk.total_uncompressed_size) for chunk in own)
            _check_ratio(total, most)
            bound = sum(chunk.num_values * chunk.total_uncompressed_size for chunk in own)
            is_small = bound < _SMALL  # then the texts are not counted
            total += bound if is_small else _text_bytes(path, name, schema.field(name).type, memory_limit)
            _check_ratio(total, most)
    except (pa.ArrowException, OSError, duckdb.Error) as error:
        raise ValueError(f"cannot be read ({one_line(error, 200)})") from None
    return total


def _check_ratio(size: int, most: int) -> None:
    if size > most:
        raise ValueError(
            f"its columns unpack to more than {most:,} bytes, out of all proportion to the size of the file; expected "
            "a log"
        )


def _text_bytes(path: Path, name: str, dtype: Any, memory_limit: str) -> int:
    """Return the size of all texts of a column, in lists too; the engine streams it."""
    column = f'"{name.replace(chr(34), 2 * chr(34))}"'
    size = f"strlen({column})"
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        dtype, size = dtype.value_type, f"list_sum(list_transform({column}, lambda text: strlen(text)))"
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    if not (pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)):
        return 0
    with duckdb.connect(config={"memory_limit": memory_limit}) as engine:
        found = engine.execute(f"SELECT sum({size}) FROM read_parquet(?)", [glob.escape(str(path))]).fetchall()
    return int(found[0][0] or 0)


def _unpacked_bytes(metadata: Any) -> int:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(number).total_uncompressed_size for group in groups for number in range(group.num_columns))


def _plain_bytes(column: Any) -> int:
    """Return the size of a column without the sharing of equal values."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    if not len(column.dictionary):
        return 8 * len(column)
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return int(pc.sum(lengths).as_py() or 0) + 8 * len(column)


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"its columns take more than {most:,} bytes in memory")
