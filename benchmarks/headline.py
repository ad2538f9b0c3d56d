"""A packed student of 4 layers against all 30 layers of SmolLM2-135M on padded batches.

Writes benchmarks/results/headline.json.

Run: python benchmarks/headline.py [DATA_SET_FOLDER, whose history lengths are used]
"""

from pathlib import Path

import bench

if __name__ == "__main__":
    data = bench.data_option(__doc__)
    bench.bench(Path(__file__).parent / "results" / "headline.json", data, 3, (bench.measure_headline,))
