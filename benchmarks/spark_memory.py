"""Recommendations for many users by two worker processes of Spark on this machine: time, and memory per worker.

Example: python benchmarks/spark_memory.py --model out/toys/distill --users 1000000
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from slmrec import Recommender
from slmrec.inference.batch.recommend_file import RankOptions
from slmrec.inference.batch.spark import recommend_with_spark

PART = 50_000
"""Users in a file."""


def write_users(folder: Path, items: pa.Array, number: int) -> None:
    """Write random histories of 5 to 20 items."""
    generator = np.random.default_rng(0)
    for start in range(0, number, PART):
        lengths = generator.integers(5, 21, min(PART, number - start))
        chosen = items.take(pa.array(generator.integers(0, len(items), lengths.sum())))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        columns = {"user_id": range(start, start + len(lengths)), "history": pa.ListArray.from_arrays(offsets, chosen)}
        pq.write_table(pa.table(columns), folder / f"{start:09d}.parquet")


class Memory(threading.Thread):
    """Watch the largest resident memory of a Python worker of Spark, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        """Look at all processes twice a second."""
        while True:
            lines = subprocess.run(["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True).stdout
            sizes = [int(line.split()[0]) for line in lines.splitlines() if "pyspark.daemon" in line]
            self.peak = max([self.peak, *(size / 1024 for size in sizes)])
            time.sleep(0.5)


def main() -> None:
    """Print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--users", type=int, default=1_000_000)
    options = parser.parse_args()
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    session = SparkSession.builder.master("local-cluster[2,1,1024]").config("spark.ui.enabled", "false").getOrCreate()
    with TemporaryDirectory() as place:
        (folder := Path(place) / "users").mkdir()
        write_users(folder, Recommender.from_pretrained(options.model).vocabulary.item_ids, options.users)
        (memory := Memory()).start()
        start = time.perf_counter()
        recommend_with_spark(options.model, folder, Path(place) / "out", RankOptions())
        seconds = time.perf_counter() - start
        users = sum(pq.read_metadata(file).num_rows for file in (Path(place) / "out").glob("*.parquet")) // 10
    session.stop()
    print(json.dumps({"users": users, "seconds": round(seconds, 1), "worker_mib": round(memory.peak)}))


if __name__ == "__main__":
    main()
