"""The engine on a GPU in bfloat16: packed batches, by FlexAttention and by length buckets, against padded batches.

Two models with the prompt of the reference and random weights: four layers of the sizes of SmolLM2-135M, all trained,
and the teacher of the paper, eight layers of LLaMA-2-7B with LoRA. Histories are as long as those of Amazon Beauty.
Every round runs all sides in turn. Also measured for each model: the share of matrix products in a training step, and
the estimate of `slmrec run --dry-run` for memory and time. `--shapes smollm2` measures only one model.

Writes benchmarks/results/gpu.json.

Run: python benchmarks/gpu.py
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench
import torch

from slmrec.auto import estimate
from slmrec.config import DecoderSettings, DecoderTraining
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.packed import flex
from slmrec.models.padded import PaddedEncoder
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch

GPU = torch.device("cuda")
LLAMA = {"model_type": "llama", "vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
LLAMA2_7B = {"hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32, "num_key_value_heads": 32}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "smollm2": (SMOLLM2 | {"num_hidden_layers": 4}, None),
    "llama2_7b": (LLAMA2_7B | {"num_hidden_layers": 8}, bench.LORA),
}
"""Sizes and adapters; without adapters all weights are trained."""
BATCH_SIZE = 256
Sides = dict[str, Callable[[], None]]


def main() -> None:
    """Run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in options.shapes:
        report[name] = measure(*SHAPES[name], options.rounds)
        print(json.dumps({name: report[name]}, indent=1), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(sizes: dict[str, Any], lora: dict[str, Any] | None, rounds: int) -> dict[str, float]:
    """Return users per second and peak memory of all sides, and the estimates beside the measurements."""
    model = build(sizes, lora)
    batches = [batch.to(GPU) for batch in bench.random_batches(bench.lengths_of(None), BATCH_SIZE)]
    found: dict[str, float] = {}
    for kind, sides in {"train": training(model, batches), "infer": inference(model, batches)}.items():
        found |= {f"{kind}_{name}_peak_mb": peak_mb(side) for name, side in sides.items()}
        seconds = bench.paired(sides, rounds)
        found |= {f"{kind}_{name}_users_per_s": BATCH_SIZE / value for name, value in seconds.items()}
    return (
        found
        | share_of_products(model, batches[0], BATCH_SIZE / found["train_flex_users_per_s"], rounds)
        | {f"plan_{key}": value for key, value in planned(model, batches[0]).items()}
    )


def build(sizes: dict[str, Any], lora: dict[str, Any] | None) -> DecoderRecommender:
    """Return a model of these sizes with random weights on the GPU."""
    torch.manual_seed(0)
    with GPU:
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
    model.to(GPU)
    return model


def training(model: DecoderRecommender, batches: list[Batch]) -> Sides:
    """Return a training step of each side: forward, backward and AdamW."""
    packed = bench.training_step(model, NextItemLoss(model), batches, bf16=True)
    padded = bench.training_step(model, bench.PaddedLoss(model), batches, bf16=True)
    return {"flex": packed, "groups": by_groups(packed), "padded": padded}


def inference(model: DecoderRecommender, batches: list[Batch]) -> Sides:
    """Return an inference step of each side: user vectors, scores and the ten best items."""
    packed = bench.inference_step(model, batches, bf16=True)
    padded = bench.inference_step(PaddedEncoder(model, bench.MAX_HISTORY), batches, bf16=True)
    return {"flex": packed, "groups": by_groups(packed), "padded": padded}


def by_groups(step: Callable[[], None]) -> Callable[[], None]:
    """Wrap a step so that attention is computed by length buckets, as on a CPU."""

    def stepped() -> None:
        with without_flex():
            step()

    return stepped


@contextmanager
def without_flex() -> Iterator[None]:
    """Attention goes as on a CPU."""
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
    with GPU:
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


if __name__ == "__main__":
    main()
