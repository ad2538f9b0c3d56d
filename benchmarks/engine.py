"""Packed against padded batches, cached teacher outputs, and one appended event.

Writes benchmarks/results/engine.json.

Run: python benchmarks/engine.py [DATA_SET_FOLDER, whose history lengths are used]
"""

from pathlib import Path

import bench

if __name__ == "__main__":
    data = bench.data_option(__doc__)
    bench.bench(
        Path(__file__).parent / "results" / "engine.json",
        data,
        3,
        (bench.measure_engine, bench.measure_distillation, bench.measure_append),
    )
