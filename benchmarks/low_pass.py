"""Cost of the low-pass filter of SASRec in a training step, with the settings of the recipe `beauty`.

The first batches of an epoch run with and without the filter in turn; the ratio is that of the medians of the rounds.
Times are processor seconds, so that other programs on the machine have little influence. Writes
benchmarks/results/low_pass.json.

Run: python benchmarks/low_pass.py DATA_SET_FOLDER
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import bench
import torch

from slmrec.config import LowPassSettings, SasRecModel
from slmrec.data.batching import collate, shuffled
from slmrec.data.dataset import Dataset
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training.losses import NextItemLoss
from slmrec.training.optimization import use_bf16
from slmrec.types import Batch

ROUNDS, STEPS = 5, 12


def main() -> None:
    """Run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "low_pass.json")
    arguments = parser.parse_args()
    text = json.dumps(measure(Dataset.load(arguments.data)) | bench.hardware(), indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(dataset: Dataset) -> dict[str, Any]:
    """Return processor seconds per step with and without the filter, their ratio, and the steps of an epoch."""
    settings = SasRecModel()
    losses = {"plain": build(dataset, settings, None), "filtered": build(dataset, settings, LowPassSettings())}
    max_history_items = losses["plain"].model.max_history_items
    samples = dataset.train(settings.supervision, max_history_items)
    size = settings.train.per_device_train_batch_size
    rows = islice(shuffled(samples, size, max_history_items, seed=0, epoch=0), STEPS)
    batches = [collate(samples, some, max_history_items) for some in rows]
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(ROUNDS + 1):
        for name, loss in losses.items():
            found = timed(loss, batches)
            if number:  # the first round is a warm-up
                seconds[name].append(found)
    found = {f"{name}_step_cpu_s": median(values) for name, values in seconds.items()}
    ratio = found["filtered_step_cpu_s"] / found["plain_step_cpu_s"]
    return found | {"ratio": ratio, "steps_per_epoch": -(-len(samples) // size), "rounds": seconds}


def build(dataset: Dataset, settings: SasRecModel, low_pass: LowPassSettings | None) -> NextItemLoss:
    """Return the loss module of a model."""
    settings = settings.model_copy(update={"low_pass": low_pass})
    return NextItemLoss(SasRec(SasRecConfig.of(settings, dataset.num_items)))


def timed(loss: NextItemLoss, batches: list[Batch]) -> float:
    """Return the mean processor seconds of a step: forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(loss.parameters(), lr=SasRecModel().train.learning_rate, fused=True)
    start = time.process_time()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16("auto")):
            total = loss(batch).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return (time.process_time() - start) / len(batches)


if __name__ == "__main__":
    main()
