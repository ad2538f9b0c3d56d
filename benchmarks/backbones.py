"""Larger backbones at their real sizes with random weights: a dry run of each, and one training step where it fits.

The first layers of a backbone read one user of 8 items, behind the prompt, with LoRA, in float32: forward, backward and
AdamW. The estimate is that of `slmrec run --dry-run` for this step.

Writes benchmarks/results/backbones.json.

Run: python benchmarks/backbones.py
"""

import json
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch

from slmrec.auto.architectures import ARCHITECTURES
from slmrec.auto.estimate import sizes_of, training_bytes
from slmrec.config.training import DecoderTraining
from slmrec.models.backbone import random_decoder
from slmrec.training.losses import NextItemLoss
from slmrec.training.memory import peak_rss_mb, reset_peak

STEPS = (("Qwen/Qwen3-0.6B", 8), ("Qwen/Qwen3-0.6B", 4), ("meta-llama/Llama-3.2-1B", 4))
"""Backbones and numbers of layers of which a training step runs."""
DRY = (("meta-llama/Llama-2-7b-hf", 8), ("meta-llama/Llama-2-7b-hf", 4))
"""Those that are too large for that."""
NUM_USERS, NUM_HISTORY_ITEMS = 1, 8
NO_TOKENS = {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def dry_run(name: str, num_layers: int) -> dict[str, Any]:
    """Return the sizes of the first layers of a backbone, and the estimated memory of a training step."""
    with torch.device("meta"):
        whole = random_decoder(ARCHITECTURES[name])
        num_parameters = whole.num_parameters()
        sizes = sizes_of(bench._model(whole, num_layers, bench.LORA, bench.MAX_HISTORY))
    reset_peak()
    tokens = sum(bench.PROMPT) + NUM_USERS * NUM_HISTORY_ITEMS
    settings = DecoderTraining(per_device_train_batch_size=NUM_USERS)
    scores = NUM_USERS * bench.NUM_ITEMS
    num_bytes = training_bytes(sizes, tokens, scores, settings, bits=None, bf16=False, with_kl=False)
    return {
        "backbone": name,
        "whole_parameters": num_parameters,
        "layers": num_layers,
        "parameters": sizes.parameters,
        "trained_parameters": sizes.trainable,
        "estimated_mb": num_bytes / 2**20,
    }


def step(name: str, num_layers: int) -> dict[str, float]:
    """Run two training steps, and return the seconds of both, the loss before the first, and the peak memory."""
    reset_peak()
    decoder = random_decoder(ARCHITECTURES[name] | NO_TOKENS | {"num_hidden_layers": num_layers})
    model = bench._model(decoder, num_layers, bench.LORA, bench.MAX_HISTORY)
    batches = bench.random_batches(np.full(1, NUM_HISTORY_ITEMS), NUM_USERS)
    loss = NextItemLoss(model)
    train = bench.training_step(model, loss, batches, bf16=False)
    with torch.no_grad():
        before = float(loss(batches[0]).total)
    first, second = bench.timed(train), bench.timed(train)
    return {"loss": before, "first_step_s": first, "step_s": second, "peak_mb": peak_rss_mb()}


def main(path: Path) -> list[dict[str, Any]]:
    """Run the measurements, print and write them."""
    rows = [dry_run(name, num_layers) for name, num_layers in (*STEPS, *DRY)]
    for number, (name, num_layers) in enumerate(STEPS):
        rows[number] |= step(name, num_layers)
        print(json.dumps(rows[number]), flush=True)
    path.write_text(json.dumps({"rows": rows} | bench.hardware(), indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    return rows


if __name__ == "__main__":
    main(Path(__file__).parent / "results" / "backbones.json")
