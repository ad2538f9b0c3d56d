"""Inference for all users of a data set: packed batches against padded batches.

Writes benchmarks/results/all_users.json. The padded side takes minutes per round.

Run: python benchmarks/all_users.py [DATA_SET_FOLDER, whose history lengths are used]
"""

from pathlib import Path

import bench

if __name__ == "__main__":
    data = bench.data_option(__doc__)
    bench.bench(Path(__file__).parent / "results" / "all_users.json", data, 1, (bench.measure_all_users,))
