"""Speed of models in evaluation on one core, against a plain SASRec of width 64 on the same users.

Encode, score the whole catalogue and find the top 10, for the test users of a data set, sorted by length. The models
take turns, each with every batch size in turn; the speed of a model is that at its own best batch size. The plain
SASRec has random weights, which do not change its cost. Writes benchmarks/results/student.json.

Run: python benchmarks/student.py out/toys/prepare student=out/toys/distill teacher=out/toys/finetune
"""

import argparse
import json
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch

from slmrec.config import SasRecModel
from slmrec.data.dataset import Dataset
from slmrec.evaluation.rank import EncoderScorer, throughput
from slmrec.inference.freeze import freeze
from slmrec.models.folder import load_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig

BATCH_SIZES = (64, 128, 256, 512)
PLAIN = "plain_sasrec"


def main() -> None:
    """Run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set folder of prepare")
    parser.add_argument("models", nargs="+", help="NAME=FOLDER of each model")
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "student.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = dict(model.split("=", 1) for model in arguments.models)
    report = measure(Dataset.load(arguments.data), folders, arguments.users) | bench.hardware() | {"threads": 1}
    text = json.dumps(report, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(dataset: Dataset, folders: dict[str, str], num_users: int) -> dict[str, Any]:
    """Return the users per second of each model at its best batch size, and the ratio to the plain SASRec."""
    models = {name: load_recommender(Path(folder))[0] for name, folder in folders.items()}
    models |= {PLAIN: SasRec(SasRecConfig.of(SasRecModel(), dataset.num_items))}
    scorers = {name: EncoderScorer(freeze(model.eval())) for name, model in models.items()}
    samples = dataset.held_out("test")
    samples = samples.take(np.arange(min(num_users, len(samples))))
    speeds = {size: throughput(scorers, samples, batch_size=size, rounds=5) for size in BATCH_SIZES}
    best = {name: max(BATCH_SIZES, key=lambda size: speeds[size][name]) for name in models}
    found = {f"{name}_users_per_s": speeds[size][name] for name, size in best.items()}
    ratios = {
        f"{name}_to_{PLAIN}": found[f"{name}_users_per_s"] / found[f"{PLAIN}_users_per_s"]
        for name in models
        if name != PLAIN
    }
    sizes = {f"{name}_batch_size": size for name, size in best.items()}
    return found | ratios | sizes | {"users": len(samples), "items": dataset.num_items}


if __name__ == "__main__":
    main()
