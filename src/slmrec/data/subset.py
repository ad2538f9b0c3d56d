"""Data set of some of the events of another one; users and items keep their numbers, also those without events."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.data.histories import BATCH_EVENTS, read_facts
from slmrec.data.prepare import complete_dataset, with_positions, write_table

Bools = NDArray[np.bool_]


def write_subset(source: Path, output: Path, keep: Bools) -> dict[str, float]:
    """Write a data set with some of the events of another one, split by the same rule.

    With leave-one-out, the last two events that are left of a user are held out.

    Args:
        source: Folder of the other data set.
        output: Existing folder of the new one.
        keep: (events,) events that stay, in the order of the other data set.

    Returns:
        Counts of the new data set.

    Raises:
        ValueError: The number of events differs.
    """
    with pq.ParquetFile(source / "interactions.parquet", pre_buffer=False) as log:
        if log.metadata.num_rows != len(keep):
            raise ValueError(f"{source}: has {log.metadata.num_rows} events, but keep has {len(keep)} entries")
        write_table(output / "interactions.parquet", with_positions(_kept(log, keep)))
    for name in ("users.parquet", "items.parquet"):
        shutil.copyfile(source / name, output / name)
    return complete_dataset(output, read_facts(source), [])


def _kept(log: pq.ParquetFile, keep: Bools) -> Iterator[pa.Table]:
    """Yield the events that stay, without their positions in the histories, which change."""
    first = 0
    for batch in log.iter_batches(BATCH_EVENTS):
        part = pa.Table.from_batches([batch]).drop_columns("position")
        yield part.filter(pa.array(keep[first : first + len(part)]))
        first += len(part)
