"""Parquet files from anywhere: sizes are compared before columns are read, and texts are counted before they unfold."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slmrec.files import one_line, special_file

_BATCH_ROWS = 2**16


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
