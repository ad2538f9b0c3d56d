"""Time of one training step and one inference batch by kind of operation, and its lower bound.

Four layers of width 512 with the prompt, 256 users, float32. The lower bound is computed in two ways: only the matrix
products, at the rate measured here, and only one transfer of the operands and result of each product.

Writes benchmarks/results/costs.json.

Run: python benchmarks/costs.py [DATA_SET_FOLDER, whose history lengths are used]
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import bench
import torch
import torch._inductor.config
from torch.profiler import ProfilerActivity, profile

from slmrec.models.layers import compile_layers
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch

BATCH_SIZE = 256
KINDS = {
    "products of the layers and of the catalogue": ("mm", "addmm"),
    "products of attention": ("bmm", "baddbmm"),
    "multiplications and additions (norms, gates, rotary positions, residuals)": (
        *("mul", "add", "sub", "div", "neg", "pow", "mean", "sum", "rsqrt", "silu", "silu_backward"),
    ),
    "copies (rows to groups and back, joins, gradients set to zero)": (
        *("copy", "cat", "index", "index_select", "index_copy", "_index_put_impl", "fill", "masked_fill", "clone"),
    ),
    "softmax": ("_softmax", "_log_softmax", "_softmax_backward_data", "exp"),
    "AdamW": ("_fused_adamw",),
}


def shares_of(step: bench.Step) -> dict[str, float]:
    """Return the share of operator time by kind; the profiler runs after two warm-up steps."""
    step(), step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    times: dict[str, float] = defaultdict(float)
    for operator in profiled.key_averages():
        name = operator.key.removeprefix("aten::").rstrip("_")
        times[kind_of.get(name, "other")] += operator.self_cpu_time_total
    total = sum(times.values())
    return {kind: value / total for kind, value in sorted(times.items(), key=lambda entry: -entry[1])}


def floor_of(products: list[bench.Product], step: bench.Step, rounds: int) -> dict[str, float]:
    """Return, per user, the lower bounds of the matrix products and the time of the step."""
    source = torch.zeros(2**26)  # 256 MiB: larger than every cache
    target = torch.zeros_like(source)

    steps = {"products": bench.bare(products, torch.float32), "copy": lambda: target.copy_(source), "step": step}
    seconds = bench.paired(steps, rounds)
    moved = 4 * sum(rows * inner + inner * columns + rows * columns for rows, inner, columns in products)
    bytes_per_s = 2 * source.nbytes / seconds["copy"]
    return {
        "mflop_per_user": bench.flop(products) / BATCH_SIZE / 1e6,
        "mbyte_per_user": moved / BATCH_SIZE / 1e6,
        "gflop_per_s_of_products": bench.flop(products) / seconds["products"] / 1e9,
        "gbyte_per_s_of_copies": bytes_per_s / 1e9,
        "floor_ms_per_user_products": seconds["products"] / BATCH_SIZE * 1e3,
        "floor_ms_per_user_bytes": moved / bytes_per_s / BATCH_SIZE * 1e3,
        "measured_ms_per_user": seconds["step"] / BATCH_SIZE * 1e3,
    }


def tried(batches: list[Batch], rounds: int) -> dict[str, float]:
    """Measure bfloat16 and `torch_compile`: rate of the products, seconds of a training step and of inference."""
    torch._inductor.config.force_disable_caches = True  # as in a first run
    results = {}
    products = bench.products_of(bench.random_model(), batches[0])
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        bare = bench.bare(products, torch.bfloat16 if bf16 else torch.float32)
        results[f"gflop_per_s_{name}"] = bench.flop(products) / bench.paired({"": bare}, rounds)[""] / 1e9
        plain, compiled = bench.random_model(), bench.random_model()
        compile_layers(compiled.decoder)
        models = {"plain": plain, "compiled": compiled}
        training = {
            kind: bench.training_step(model, NextItemLoss(model), batches, bf16) for kind, model in models.items()
        }
        start_up = {kind: bench.timed(step) for kind, step in training.items()}
        results[f"compile_s_{name}"] = start_up["compiled"] - start_up["plain"]
        for kind, seconds in bench.paired(training, rounds).items():
            results[f"train_s_{name}_{kind}"] = seconds
        inference = {kind: bench.inference_step(model, batches, bf16) for kind, model in models.items()}
        for kind, seconds in bench.paired(inference, rounds).items():
            results[f"infer_s_{name}_{kind}"] = seconds
    return results


def main(data: Path | None) -> None:
    """Run the measurements, print and write them."""
    model = bench.random_model()
    batches = bench.random_batches(bench.lengths_of(data), BATCH_SIZE)
    results: dict[str, Any] = {}
    training = bench.training_step(model, NextItemLoss(model), batches, bf16=False)
    results["training"] = shares_of(training) | floor_of(bench.products_of(model, batches[0]), training, rounds=5)
    inference = bench.inference_step(model, batches, bf16=False)
    products = bench.products_of(model, batches[0], backward=False)
    results["inference"] = shares_of(inference) | floor_of(products, inference, rounds=5)
    results["tried"] = tried(batches, rounds=5)
    path = Path(__file__).parent / "results" / "costs.json"
    path.write_text(json.dumps(results | bench.hardware(), indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(bench.data_option(__doc__))
