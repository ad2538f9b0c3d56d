"""Seconds and peak memory from opening a large prepared data set to its first training batch.

Writes a prepared data set of random events (by default 10 million users, 100 million events), then measures each kind
of supervision, and a temporal split, in a new process. The files are still in the page cache of the system. The peak is
that of the whole process, including imports and mapped pages. Writes benchmarks/results/first_batch.json.

Run: python benchmarks/first_batch.py [--folder FOLDER_FOR_THE_DATA]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHORTEST, LONGEST = 4, 16
"""Possible numbers of events of a user, equally likely."""
USERS_AT_ONCE = 2**18
LAST_TIME = 1_000_000_000
VALID_FROM, TEST_FROM = int(0.8 * LAST_TIME), int(0.9 * LAST_TIME)
BATCH_SIZE, MAX_HISTORY_ITEMS = 256, 50
MAX_SECONDS, MAX_PEAK_MB = 2.0, 500.0
SUPERVISIONS = ("last_position", "every_position", "every_prefix")


def main() -> None:
    """Generate the data, run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "first_batch.json")
    parser.add_argument("--folder", type=Path, help="folder that keeps the data (default: deleted at the end)")
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--job", nargs=2, metavar=("FOLDER", "SUPERVISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(first_batch(Path(arguments.job[0]), arguments.job[1])))
        return
    with TemporaryDirectory() as temporary:
        report = measure(arguments.folder or Path(temporary), arguments.users, arguments.items)
    text = json.dumps(report, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(folder: Path, num_users: int, num_items: int) -> dict[str, Any]:
    """Return all numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"num_users": num_users, "num_items": num_items}
    results["num_events"] = make_data(folder, num_users, num_items)
    for split, supervisions in (("leave_one_out", SUPERVISIONS), ("temporal", ("every_prefix",))):
        results |= {f"{split}_{key}": value for key, value in time_histories(folder, split).items()}
        for supervision in supervisions:
            found = run(folder, supervision)
            results |= {f"{split}_{supervision}_{key}": value for key, value in found.items()}
    seconds = max(value for key, value in results.items() if key.endswith("first_batch_s"))
    peak = max(value for key, value in results.items() if key.endswith("peak_rss_mb"))
    results |= {"most_first_batch_s": seconds, "most_peak_rss_mb": peak}
    results["claims_hold"] = seconds < MAX_SECONDS and peak < MAX_PEAK_MB
    import bench

    return results | bench.hardware()


def make_data(folder: Path, num_users: int, num_items: int) -> int:
    """Write the three tables in row groups and return the number of events."""
    write(folder / "items.parquet", ids("item", num_items))
    write(folder / "users.parquet", ids("user", num_users))
    num_events = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal num_events
        for table in events(num_users, num_items):
            num_events += table.num_rows
            yield table

    write(folder / "interactions.parquet", counted())
    return num_events


def write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write each table as one row group."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def ids(name: str, num: int) -> Iterator[pa.Table]:
    """Yield text ids of 1..num."""
    for start in range(0, num, USERS_AT_ONCE):
        numbers = pa.array(np.arange(start + 1, min(start + USERS_AT_ONCE, num) + 1))
        yield pa.table({name: numbers, f"{name}_id": numbers.cast(pa.string())})


def events(num_users: int, num_items: int) -> Iterator[pa.Table]:
    """Yield random items at ascending times, sorted by user and position."""
    generator = np.random.default_rng(0)
    for start in range(0, num_users, USERS_AT_ONCE):
        lengths = generator.integers(SHORTEST, LONGEST + 1, min(USERS_AT_ONCE, num_users - start))
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
        begin, pause = generator.integers(0, LAST_TIME // 2, len(lengths)), LAST_TIME // 2 // lengths
        columns = {
            "user": np.repeat(np.arange(start, start + len(lengths)) + 1, lengths),
            "item": generator.integers(1, num_items + 1, len(position)),
            "timestamp": np.repeat(begin, lengths) + position * np.repeat(pause, lengths),
            "position": position,
        }
        yield pa.table(columns)


def time_histories(folder: Path, split: str) -> dict[str, float]:
    """Return seconds and peak memory of a new process that writes the histories of a split."""
    rules = {"split": split} | ({"valid_from": VALID_FROM, "test_from": TEST_FROM} if split == "temporal" else {})
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": split, "rules": rules}), encoding="utf-8")
    return run(folder, "")


def run(folder: Path, supervision: str) -> Any:
    """Return the result of a job that runs in a new process."""
    command = [sys.executable, __file__, "--job", str(folder), supervision]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def first_batch(folder: Path, supervision: str) -> dict[str, float]:
    """Print seconds of imports, seconds from `Dataset.load` to a batch (or of the histories), and the peak memory."""
    start = time.perf_counter()
    from slmrec.data.batching import collate, shuffled
    from slmrec.data.dataset import Dataset
    from slmrec.data.histories import write_histories
    from slmrec.training.memory import peak_rss_mb

    imported, imports_mb = time.perf_counter(), peak_rss_mb()
    if not supervision:
        write_histories(folder)
        return {"write_histories_s": time.perf_counter() - imported, "write_histories_peak_mb": peak_rss_mb()}
    samples = Dataset.load(folder).train(supervision, MAX_HISTORY_ITEMS)
    rows = next(shuffled(samples, BATCH_SIZE, MAX_HISTORY_ITEMS, seed=0, epoch=0))
    collate(samples, rows, MAX_HISTORY_ITEMS, supervision == "every_position")
    done = time.perf_counter()
    return {
        "import_s": imported - start,
        "import_rss_mb": imports_mb,
        "first_batch_s": done - imported,
        "peak_rss_mb": peak_rss_mb(),
        "num_samples": len(samples),
    }


if __name__ == "__main__":
    main()
