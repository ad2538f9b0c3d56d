"""Recommendations for 1,000 users without rules, with rules and a cap, and with diversity: processor seconds, k = 10.

Example: python benchmarks/rules.py --model out/toys/distill --output benchmarks/results/rules.json
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from slmrec import Recommender

NUM_USERS, REPEATS = 1000, 3
RULES = [
    {"do": "exclude", "column": "stock", "values": [0]},
    {"do": "only", "column": "brand", "values": list(range(150))},
    {"do": "boost", "column": "brand", "values": [3, 7], "by": 0.5},
]
CAP = {"do": "cap", "column": "brand", "by": 2}
TIGHT = {"do": "cap", "column": "stock", "by": 2}
"""A cap that leaves 8 items, so that all items are looked through."""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rules": {"rules": RULES},
    "rules_and_cap": {"rules": [*RULES, CAP]},
    "diversity": {"diversity": 0.5},
    "rules_cap_and_diversity": {"rules": [*RULES, CAP], "diversity": 0.5},
    "cap_that_leaves_fewer_than_k": {"rules": [TIGHT]},
}


def main() -> None:
    """Write the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    opened = Recommender.from_pretrained(options.model, device="cpu")
    generator = np.random.default_rng(0)
    num_items = len(opened.vocabulary.item_ids)
    columns = {
        "brand": pa.array(generator.integers(0, 200, num_items)),
        "stock": pa.array(generator.integers(0, 4, num_items)),
    }
    recommender = Recommender(opened.model, opened.vocabulary._replace(columns=columns))
    lengths = generator.integers(5, 21, NUM_USERS)
    histories = [
        opened.vocabulary.item_ids.take(pa.array(generator.integers(0, num_items, length))).to_pylist()
        for length in lengths
    ]
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(REPEATS + 1):  # the first round fills the caches
        for name, variant in VARIANTS.items():
            start = time.process_time()
            recommender.recommend(histories, k=10, **variant)
            seconds[name].append(time.process_time() - start)
    result = {f"{name}_cpu_s": round(statistics.median(times[1:]), 4) for name, times in seconds.items()}
    result |= {"num_users": NUM_USERS, "num_items": num_items, "num_threads": torch.get_num_threads()}
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
