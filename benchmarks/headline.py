"""A packed student of 4 layers against all 30 layers of SmolLM2-135M on padded batches.

Writes benchmarks/results/headline.json.

Run: python benchmarks/headline.py [DATA_SET_FOLDER, whose history lengths are used]
"""

import sys
from pathlib import Path

import bench

if __name__ == "__main__":
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    bench.bench(Path(__file__).parent / "results" / "headline.json", data, 3, (bench.measure_headline,))
