"""The recipe `tiny` with dropout on one and two processes (gloo): final validation NDCG@10 of each model and seed.

Dropout differs between processes, so the models do too; their metrics must differ no more than those of the seeds. A
step has the same samples on one and two processes. The log is a ring of items that users walk in steps of 1, 2 or 3,
with errors. Ends with an error if the means over the seeds differ by more than the range of the seeds.
Writes benchmarks/results/process_seeds.json.

Run: python benchmarks/process_seeds.py
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from slmrec.config.load import find_recipe

USERS, ITEMS, ERRORS = 400, 40, 0.2
STEP, EPOCHS, DROPOUT = 32, 4, 0.1
MODELS = {"sasrec": "pretrain/sasrec", "teacher": "finetune", "student": "distill"}
METRIC = "valid/ndcg@10"


def main() -> None:
    """Train all models, print and write their metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "process_seeds.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        report = summary(measure(Path(folder), options.seeds))
    text = json.dumps(report, indent=1)
    options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    far = [name for name, found in report.items() if found["difference"] > found["range_of_seeds"]]
    if far:
        raise SystemExit(f"{', '.join(far)}: one and two processes differ by more than the seeds")


def measure(folder: Path, seeds: list[int]) -> dict[str, dict[str, list[float]]]:
    """Return the metric of each model and seed, for one and two processes."""
    log = folder / "log.txt"
    write_log(log)
    found: dict[str, dict[str, list[float]]] = {name: {"1": [], "2": []} for name in MODELS}
    for seed in seeds:
        for processes in (1, 2):
            output = folder / f"{seed}_{processes}"
            train(log, output, seed, processes)
            for name, place in MODELS.items():
                metrics = json.loads((output / place / "metrics.json").read_text(encoding="utf-8"))
                found[name][str(processes)].append(metrics[METRIC])
    return found


def summary(found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Return values, means, their difference, and the largest range over the seeds, for each model."""
    return {
        name: {
            "values": values,
            "means": {number: float(np.mean(own)) for number, own in values.items()},
            "difference": float(abs(np.mean(values["1"]) - np.mean(values["2"]))),
            "range_of_seeds": float(max(np.ptp(own) for own in values.values())),
        }
        for name, values in found.items()
    }


def write_log(path: Path) -> None:
    """Write the items of each user on a line."""
    draw = np.random.default_rng(0)
    lines = []
    for user in range(USERS):
        walk = 7 * user + np.arange(5 + user % 9) * (1 + user % 3)
        walk = np.where(draw.random(len(walk)) < ERRORS, draw.integers(0, ITEMS, len(walk)), walk) % ITEMS
        lines.append(f"u{user} {' '.join(f'i{item}' for item in walk)}\n")
    path.write_text("".join(lines), encoding="utf-8")


def train(log: Path, output: Path, seed: int, processes: int) -> None:
    """Run the recipe with dropout in all models."""
    content = yaml.safe_load(find_recipe("tiny").read_text(encoding="utf-8"))
    content |= {"seed": seed, "prepare": {"input": str(log)}}
    content["pretrain"]["sasrec"]["dropout"] = DROPOUT
    content["finetune"] |= {"item_dropout": DROPOUT, "layer_dropout": DROPOUT}
    content["distill"]["student"]["item_dropout"] = DROPOUT
    for section in (content["pretrain"]["sasrec"], content["finetune"], content["distill"]):
        section["train"] |= {"per_device_train_batch_size": STEP // processes, "num_train_epochs": EPOCHS}
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "slmrec", "run", "--config", str(config), "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
