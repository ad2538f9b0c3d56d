"""Inference over all users of a data set: the packed row against padded rows.

Writes benchmarks/results/all_users.json. The padded side takes minutes a round.

Run: python benchmarks/all_users.py [a data-set folder of prepare, whose history lengths are taken]
"""

import sys
from pathlib import Path

import bench

if __name__ == "__main__":
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    bench.bench(Path(__file__).parent / "results" / "all_users.json", data, 1, (bench.measure_all_users,))
