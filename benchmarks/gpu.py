"""The engine on a GPU in bfloat16, the rule of `engine: auto`, and an epoch of SASRec; five minutes.

Two decoders with the prompt of the reference and random weights: four layers of the sizes of SmolLM2-135M, all trained,
and the teacher of the paper, eight layers of LLaMA-2-7B with LoRA. Histories are as long as those of Amazon Beauty.
Every round runs all sides in turn: packed batches by FlexAttention (`flex`), packed batches by products of one bucket
(`groups`), and padded batches (`padded`). Also measured for each decoder: the share of matrix products in a training
step, and the estimate of `slmrec run --dry-run` for memory and time. SASRec trains on random histories of the size of
Toys and Games, with and without batches made ahead of time.

Writes benchmarks/results/gpu.json. Ends with an error if `auto` takes a side that is more than 10 % slower than the
other one. `--shapes smollm2` measures only one decoder; `--shapes tiny --device cpu` checks that this script runs.

Run: python benchmarks/gpu.py
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import numpy as np
import torch

from slmrec.auto import estimate
from slmrec.config import DecoderSettings, DecoderTraining, TrainConfig
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.packed import flex
from slmrec.models.padded import is_padded
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training import prefetch
from slmrec.training.losses import NextItemLoss
from slmrec.training.samples import TrainingSamples
from slmrec.training.trainer import fit
from slmrec.types import Batch

LLAMA = {"model_type": "llama", "vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
LLAMA2_7B = {"hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32, "num_key_value_heads": 32}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "tiny": (TINY | {"num_hidden_layers": 2}, None),
    "smollm2": (SMOLLM2 | {"num_hidden_layers": 4}, None),
    "llama2_7b": (LLAMA2_7B | {"num_hidden_layers": 8}, bench.LORA),
}
"""Sizes and adapters; without adapters all weights are trained."""
BATCH_SIZE = 256
USERS = 19_412
"""Users of Toys and Games."""
SASREC = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_history_items": 50}
TOLERANCE = 1.1
"""Largest ratio of the time of the side that `auto` takes to that of the other one."""
Sides = dict[str, Callable[[], None]]


def main(arguments: list[str] | None = None) -> None:
    """Run the measurements, print and write them, and check the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2", "llama2_7b"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--users", type=int, default=USERS, help="users of the epoch of SASRec")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU on this machine; --device cpu --shapes tiny checks the script alone")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "none, a check on a CPU"
    report: dict[str, Any] = {"gpu": name, "torch": torch.__version__}
    for shape in options.shapes:
        report[shape] = measure(*SHAPES[shape], options.batch_size, options.rounds, device)
        show(report, shape, options.output)
        gc.collect()
    report["sasrec"] = sasrec(options.users, options.batch_size)
    show(report, "sasrec", options.output)
    if device.type == "cuda":
        check(report, options.shapes)


def check(report: dict[str, Any], shapes: list[str]) -> None:
    """End with an error where the side of `auto` is slower than the other one."""
    if wrong := [f"{shape}, {line}" for shape in shapes for line in slower(report[shape])]:
        raise SystemExit(f"engine: auto takes the slower side: {'; '.join(wrong)}")


def show(report: dict[str, Any], part: str, output: Path) -> None:
    """Print a part of the report, and write all that is measured so far."""
    print(json.dumps({part: report[part]}, indent=1), flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(
    sizes: dict[str, Any], lora: dict[str, Any] | None, batch_size: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Return users per second and peak memory of all sides, the side of `auto`, and the estimates."""
    model = build(sizes, lora, device)
    batches = [batch.to(device) for batch in bench.random_batches(bench.lengths_of(None), batch_size)]
    model.engine = "auto"
    found: dict[str, Any] = {"auto": "padded" if is_padded(model, batches[0].histories) else "flex"}
    for kind, sides in {"train": training(model, batches), "infer": inference(model, batches)}.items():
        if device.type == "cuda":
            found |= {f"{kind}_{name}_peak_mb": peak_mb(side) for name, side in sides.items()}
        seconds = bench.paired(sides, rounds)
        found |= {f"{kind}_{name}_users_per_s": batch_size / value for name, value in seconds.items()}
    model.engine = "packed"
    return (
        found
        | share_of_products(model, batches[0], batch_size / found["train_flex_users_per_s"], rounds)
        | {f"plan_{key}": value for key, value in planned(model, batches[0]).items()}
    )


def slower(found: dict[str, Any]) -> list[str]:
    """Return a line for training and for inference where the side of `auto` is slower than the other one."""
    lines, chosen = [], found["auto"]
    other = "flex" if chosen == "padded" else "padded"
    for kind in ("train", "infer"):
        own, best = (found[f"{kind}_{side}_users_per_s"] for side in (chosen, other))
        if own * TOLERANCE < best:
            lines.append(f"{kind}: {chosen} {own:,.0f} users/s, {other} {best:,.0f}")
    return lines


def build(sizes: dict[str, Any], lora: dict[str, Any] | None, device: torch.device) -> DecoderRecommender:
    """Return a model of these sizes with random weights on a device."""
    torch.manual_seed(0)
    with device:
        decoder = random_decoder(LLAMA | sizes)
        prefix, response = (0.1 * torch.randn(length, sizes["hidden_size"]) for length in bench.PROMPT)
        items = torch.randn(bench.NUM_ITEMS + 1, bench.ITEM_DIM)
    settings = DecoderSettings.model_validate(
        {
            "backbone": "smollm2-135m",
            "num_layers": sizes["num_hidden_layers"],
            "lora": lora,
            "max_history_items": bench.MAX_HISTORY,
        }
    )
    backbone = Backbone(decoder, prefix, response)
    model = build_decoder(settings, backbone, items, None, section="finetune", train_items=lora is None)
    model.to(device)
    return model


def training(model: DecoderRecommender, batches: list[Batch]) -> Sides:
    """Return a training step of each side: forward, backward and AdamW."""
    return sides_of(model, bench.training_step(model, NextItemLoss(model), batches, bf16=True))


def inference(model: DecoderRecommender, batches: list[Batch]) -> Sides:
    """Return an inference step of each side: user vectors, scores and the ten best items."""
    return sides_of(model, bench.inference_step(model, batches, bf16=True))


def sides_of(model: DecoderRecommender, step: Callable[[], None]) -> Sides:
    """Return a step with packed batches by FlexAttention and by products, and with padded batches."""

    def packed() -> None:
        model.engine = "packed"
        step()

    def by_products() -> None:
        with without_flex():
            packed()

    def padded() -> None:
        model.engine = "padded"
        step()

    return {"flex": packed, "groups": by_products, "padded": padded}


@contextmanager
def without_flex() -> Iterator[None]:
    """Attention goes without FlexAttention."""
    is_supported = flex.is_supported
    flex.is_supported = lambda query, settings: False
    try:
        yield
    finally:
        flex.is_supported = is_supported


def peak_mb(step: Callable[[], None]) -> float:
    """Return the peak GPU memory of a step in MiB, including the model; the second of two steps counts."""
    step()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def share_of_products(model: DecoderRecommender, batch: Batch, step_s: float, rounds: int) -> dict[str, float]:
    """Return the share of a training step that its matrix products alone take, on the same shapes."""
    products = bench.products_of(model, batch)
    with model.device:
        multiply = bench.bare(products, torch.bfloat16)
    seconds = bench.paired({"bare": multiply}, rounds)["bare"]
    return {
        "train_share_of_matmul": seconds / step_s,
        "train_step_gflop": bench.flop(products) / 1e9,
        "matmul_tflop_per_s": bench.flop(products) / seconds / 1e12,
    }


def planned(model: DecoderRecommender, batch: Batch) -> dict[str, float]:
    """Return the estimate of the dry run for one step."""
    sizes = estimate.sizes_of(model)
    prefix, response = bench.PROMPT
    num_users = len(batch.targets)
    tokens = int(batch.histories.lengths.sum()) + prefix + response * num_users
    scores = num_users * bench.NUM_ITEMS
    settings = DecoderTraining(learning_rate=1e-4)
    num_bytes = estimate.training_bytes(sizes, tokens, scores, settings, bits=None, bf16=True, with_kl=False)
    seconds = estimate.training_seconds(sizes, tokens, scores, estimate.measure_rates(sizes, bench.NUM_ITEMS, True))
    return {"train_peak_mb": num_bytes / 2**20, "train_users_per_s": num_users / seconds}


def sasrec(num_users: int, batch_size: int) -> dict[str, float]:
    """Return the seconds of an epoch of SASRec, every position a sample, with and without batches made ahead."""
    lengths = np.random.default_rng(0).choice(bench.lengths_of(None), num_users)
    data = TrainingSamples(bench.samples_of(lengths), SASREC["max_history_items"], every_position=True)
    found = {"users": float(num_users)}
    steps_ahead = prefetch.STEPS_AHEAD
    for name, steps in {"ahead": steps_ahead, "when_needed": 0}.items():
        prefetch.STEPS_AHEAD = steps
        try:
            found[f"epoch_s_batches_{name}"] = epoch_seconds(data, batch_size)
        finally:
            prefetch.STEPS_AHEAD = steps_ahead
    return found


def epoch_seconds(data: TrainingSamples, batch_size: int) -> float:
    """Return the time of the fastest of two epochs after a first one."""
    torch.manual_seed(0)
    model = SasRec(SasRecConfig(num_items=bench.NUM_ITEMS, dropout=0.5, **SASREC))
    ends: list[float] = []

    def validate() -> dict[str, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        return {"ndcg@10": 0.1}

    settings = TrainConfig(num_train_epochs=3, per_device_train_batch_size=batch_size, warmup_steps=0)
    with TemporaryDirectory() as folder:
        fit(NextItemLoss(model), data, settings, validate=validate, folder=Path(folder), seed=1, name="sasrec")
    return min(later - earlier for earlier, later in pairwise(ends[1:]))


if __name__ == "__main__":
    main()
