"""Training throughput of two processes of one core each, against one process of one core (DDP, gloo).

Random histories of a fixed catalogue; a SASRec model, and a decoder whose layers all train. One step has the same
samples on one and two processes. The time of an epoch is the difference of two times in the log, without imports and
the first epoch, but with validation. The runs take turns; the best epoch of each counts. Nothing else may run on the
machine. Writes benchmarks/results/processes.json.

Run: python benchmarks/processes.py
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

USERS, ITEMS, EVENTS_PER_USER = 2000, 5000, 12
EPOCHS = 3
LLAMA = {
    **{"model_type": "llama", "vocab_size": 8, "hidden_size": 256, "intermediate_size": 768},
    **{"num_hidden_layers": 4, "num_attention_heads": 4},
}
EVERY = {"supervision": "every_position"}
MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {"kind": "sasrec", "hidden_size": 128, "num_hidden_layers": 2, "positions": "relative", **EVERY},
    "llama": {
        **{"kind": "decoder", "backbone": "random", "backbone_config": LLAMA, "num_layers": 4, "item_dim": 128},
        **EVERY,
    },
}
STEP = 256
"""Samples of a step, over all processes."""


def main() -> None:
    """Run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "processes.json")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        report = measure(Path(folder), arguments.rounds) | bench.hardware() | {"threads": 1}
    text = json.dumps(report, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Return seconds per epoch of each model on one and two processes, and their ratio."""
    log = folder / "log.parquet"
    write_log(log)
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds):
        for processes in (1, 2):
            for model, value in epoch_seconds(log, folder / f"{processes}_{turn}", processes).items():
                seconds.setdefault(f"{model}_epoch_seconds_{processes}_processes", []).append(value)
    best: dict[str, Any] = {name: min(values) for name, values in seconds.items()}
    for model in MODELS:
        one, two = (best[f"{model}_epoch_seconds_{processes}_processes"] for processes in (1, 2))
        best[f"{model}_throughput_ratio"] = one / two
    return best | {"samples_per_step": STEP, "users": USERS, "items": ITEMS}


def write_log(path: Path) -> None:
    """Write random events, with all items of a user different."""
    draw = np.random.default_rng(0)
    starts = draw.integers(0, ITEMS, (USERS, 1))
    steps = np.cumsum(draw.integers(1, 300, (USERS, EVENTS_PER_USER)), axis=1)
    columns = {
        "user_id": np.repeat(np.arange(USERS), EVENTS_PER_USER),
        "item_id": ((starts + steps) % ITEMS).ravel(),
        "timestamp": np.tile(np.arange(EVENTS_PER_USER), USERS),
    }
    pq.write_table(pa.table(columns), path)


def epoch_seconds(log: Path, output: Path, processes: int) -> dict[str, float]:
    """Train the models, and return the seconds of the fastest epoch of each after its first."""
    train = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": STEP // processes, "bf16": False}
    content = {
        "prepare": {"min_user_events": 3},
        "pretrain": {name: settings | {"train": train} for name, settings in MODELS.items()},
        "evaluate": {"primary_protocol": "full"},
    }
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    folders = ["--config", str(config), "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run([sys.executable, "-m", "slmrec", "prepare", *folders, "--input", str(log)], environment)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    run([sys.executable, *launcher, "-m", "slmrec", "pretrain", *folders], environment)
    return {name: fastest(output / "pretrain" / name / "training" / "log.jsonl") for name in MODELS}


def fastest(log: Path) -> float:
    """Return the seconds of the fastest epoch after the first, from the log of a training."""
    times = [json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines()]
    if len(times) != EPOCHS:
        raise SystemExit(f"{log}: expected {EPOCHS} epochs, got {len(times)}")
    return float(min(later - earlier for earlier, later in pairwise(times)))


def run(command: list[str], environment: dict[str, str]) -> None:
    """Execute a command, or stop with its message."""
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")


if __name__ == "__main__":
    main()
