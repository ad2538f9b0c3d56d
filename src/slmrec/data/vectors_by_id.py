"""Item vectors in Parquet, found by the ids of the items."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmrec.data.ids import id_text
from slmrec.data.parquet import unpacked_size
from slmrec.errors import DataError
from slmrec.files import one_line

_LOG = logging.getLogger(__name__)


def read_vectors_by_id(path: Path, item_ids: pa.Array) -> Tensor:
    """Read the vectors of the items of a catalogue; the rows of other items are left out.

    Args:
        path: A Parquet file with the columns `item_id` and `vector`, a list of numbers.
        item_ids: (V,) ids of the items 1..V.

    Returns:
        (V+1, D) float32; row 0 and the rows of items without a vector are zero.

    Raises:
        DataError: The file is missing or damaged, a column is missing, an id is repeated or no id, a vector has another
            length or a value that is not finite, or no id belongs to the catalogue.
    """
    table = _read(path)
    rows = _rows_by_id(path, table["item_id"], pa.types.is_integer(item_ids.type))
    found = [(item, rows[str(item_id)]) for item, item_id in enumerate(item_ids.to_pylist(), 1) if str(item_id) in rows]
    if not found:
        raise DataError(
            f"{path}: none of its {len(rows)} ids, such as {next(iter(rows), '')!r}, is an item of the data set, such "
            f"as {item_ids[0].as_py()!r}; write the ids of the log"
        )
    vectors = _vectors(path, table["vector"])
    result = torch.zeros(len(item_ids) + 1, vectors.shape[1])
    result[[item for item, _ in found]] = torch.from_numpy(vectors[[row for _, row in found]])
    _LOG.info("%s: vectors of %d of %d items", path, len(found), len(item_ids))
    return result


def vector_width(path: Path) -> int:
    """Return D, the number of values of the first vector of such a file.

    Raises:
        DataError: The file is missing or damaged, a column is missing, or there is no vector.
    """
    return int(_vectors(path, _read(path, only_first=True)["vector"]).shape[1])


def _read(path: Path, only_first: bool = False) -> pa.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such file of item vectors")
    columns = ["item_id", "vector"]
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns if name not in names]
            if not missing and file.metadata.num_rows:
                unpacked_size(path, path, columns)
                first = pa.Table.from_batches([next(file.iter_batches(1, columns=columns))])
                return first if only_first else file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({one_line(error)})") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r} (columns: {', '.join(names)}); expected item_id and vector")
    raise DataError(f"{path}: has no rows; write a row with item_id and vector for each item")


def _rows_by_id(path: Path, column: pa.ChunkedArray, whole_numbers: bool) -> dict[str, int]:
    ids = []
    for row, value in enumerate(column.to_pylist()):
        try:
            ids.append(id_text(value, whole_numbers))
        except ValueError as error:
            raise DataError(f"{path}: row {row}: item_id is {value!r}: {one_line(error)}") from None
    (item_id, count), *_ = Counter(ids).most_common(1) or [("", 0)]
    if count > 1:
        raise DataError(f"{path}: item_id {item_id!r} occurs {count} times; keep one row of it")
    return {item_id: row for row, item_id in enumerate(ids)}


def _vectors(path: Path, column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return the vectors (rows, D) float32."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"{path}: vector is a column of {kind}, expected lists of numbers")
    lists = column.combine_chunks()
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    width = int(lengths.max())
    if len(wrong := np.flatnonzero((lengths != width) | (lengths == 0))):
        raise DataError(
            f"{path}: row {wrong[0]}: vector has {lengths[wrong[0]]} numbers, but others have {width}; write vectors "
            "of one length, and leave out items without one"
        )
    values: NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    vectors = values.reshape(len(lists), width)
    if len(finite := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise DataError(f"{path}: row {finite[0]}: vector has a value that is not finite; correct it")
    return vectors
