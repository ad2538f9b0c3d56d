"""Inference for all users of a data set: packed batches against padded batches.

Writes benchmarks/results/all_users.json. The padded side takes minutes per round.

Run: python benchmarks/all_users.py [DATA_SET_FOLDER, whose history lengths are used]
"""

import sys
from pathlib import Path

import bench

if __name__ == "__main__":
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    bench.bench(Path(__file__).parent / "results" / "all_users.json", data, 1, (bench.measure_all_users,))
