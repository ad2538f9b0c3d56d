"""Histories of all users of a data set, with which a model was trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from slmrec.config.prepare import PrepareConfig
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError, DataError
from slmrec.inference.history_files import UserRow, UserRows
from slmrec.inference.timestamps import needed
from slmrec.types import Unit

FILES = ("dataset.json", "interactions.parquet", "items.parquet", "users.parquet")
_USERS_AT_ONCE = 2**13


def data_of(model: Path, data: Path | None = None) -> Path:
    """Return the folder of the data set of a model.

    Args:
        model: Folder of a model; that of a run has its data set beside it.
        data: Folder of the data set, or of the run; None: beside the model.

    Raises:
        ConfigError: There is none.
    """
    if data is not None:
        inner = data / "prepare"
        return inner if (inner / FILES[0]).is_file() else data
    folder = model.resolve()  # `best` is a link
    for parent in folder.parents[:2]:  # OUT/distill, and OUT/pretrain/NAME
        if (parent / "prepare" / FILES[0]).is_file():
            return parent / "prepare"
    raise ConfigError(
        f"--all-users reads the data set of the model, which is not beside {model}; give --data OUT/prepare"
    )


def reading_of(folder: Path) -> PrepareConfig:
    """Return settings by which ids stay as they are in a data set.

    Raises:
        DataError: It is no data set.
    """
    is_text = pa.types.is_string(Dataset.load(folder).user_ids.type)
    return PrepareConfig(id_type="text", null_values=()) if is_text else PrepareConfig()


@contextmanager
def known_user_rows(folder: Path, unit: Unit | None) -> Iterator[UserRows]:
    """Open the users of a data set as `open_user_rows` opens those of a file: all events of each, oldest first.

    Args:
        folder: Folder of the data set.
        unit: Unit in which times are read; None: they are not read.

    Raises:
        DataError: It is no data set, or times are read, but it has none.
    """
    dataset = Dataset.load(folder)
    if unit is not None and dataset.times is None:
        raise DataError(f"{folder}: {needed(unit, 'prepare a log with times')}")

    def read() -> Iterator[UserRow]:
        for start in range(0, dataset.num_users, _USERS_AT_ONCE):
            offsets = np.asarray(dataset.offsets[start : start + _USERS_AT_ONCE + 1], np.int64)
            places = np.arange(offsets[0], offsets[-1])
            items = dataset.item_ids.take(pa.array(np.asarray(dataset.flat[offsets[0] : offsets[-1]], np.int64) - 1))
            item_ids, bounds = items.to_pylist(), (offsets - offsets[0]).tolist()
            times = None if unit is None or dataset.times is None else dataset.times.at(places, unit).tolist()
            users = dataset.user_ids.slice(start, len(bounds) - 1).to_pylist()
            for user, first, last in zip(users, bounds, bounds[1:], strict=False):
                yield UserRow(folder, 0, user, item_ids[first:last], times and times[first:last])

    yield UserRows(folder, "row", read, [])
