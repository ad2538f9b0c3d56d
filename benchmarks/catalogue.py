"""Chunked cross-entropy over the catalogue against the full score matrix: memory, time and error.

Each measurement runs in its own process, so that peaks of memory are separate. The default sizes are those of the
claims. Time and memory are of one forward and backward pass, including the gradient of the item vectors.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 64
MAX_PEAK_GB, MAX_TIME_RATIO, MAX_ERROR = 2.0, 1.3, 1e-6
ERROR_ITEMS, ERROR_POSITIONS = 2_000, 64


def main() -> None:
    """Run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "catalogue.json")
    parser.add_argument("--large-items", type=int, default=1_000_000, help="catalogue of the memory claim")
    parser.add_argument("--large-positions", type=int, default=4_096)
    parser.add_argument("--items", type=int, default=100_000, help="catalogue of the comparison")
    parser.add_argument("--positions", type=int, default=1_024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        name, *sizes = json.loads(arguments.job)
        print(json.dumps(JOBS[name](*sizes)))
        return
    report = measure(arguments)
    text = json.dumps(report, indent=2)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers. This process loads no torch, since a child would inherit its peak of memory."""
    small = arguments.items, arguments.positions
    large = run("memory", "fused", arguments.large_items, arguments.large_positions)
    times = run("times", *small, arguments.rounds)
    comparison = {
        "items": arguments.items,
        "positions": arguments.positions,
        "seconds": times,
        "time_ratio": median(times["fused"]) / median(times["full"]),
        "memory": {kind: run("memory", kind, *small) for kind in ("fused", "full")},
    }
    error = run("error", ERROR_ITEMS, ERROR_POSITIONS)
    return {
        "hardware": run("hardware") | {"commit": commit()},
        "width": WIDTH,
        "dtype": "float32",
        "large": large | {"full_scores_gb": arguments.large_items * arguments.large_positions * 4 / 1e9},
        "comparison": comparison,
        "error": error,
        "claims": {
            "peak_gb": claim(large["peak_gb"], MAX_PEAK_GB),
            "time_ratio": claim(comparison["time_ratio"], MAX_TIME_RATIO),
            "relative_error": claim(max(error["fused"].values()), MAX_ERROR),
        },
    }


def claim(found: float, limit: float) -> dict[str, Any]:
    """Return a measured number, its limit, and whether it is within the limit."""
    return {"found": found, "at_most": limit, "holds": found <= limit}


def run(*job: Any) -> Any:
    """Return the result of a job that runs in a new process."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def memory(kind: str, num_items: int, num_positions: int) -> dict[str, Any]:
    """Return the seconds of one pass, and the peak memory of the process: total, and growth during the pass."""
    inputs = make_inputs(num_items, num_positions)
    baseline = peak_gb()
    seconds = timed(loss_of(kind), *inputs)
    peak = peak_gb()
    return {
        "kind": kind,
        "items": num_items,
        "positions": num_positions,
        "seconds": seconds,
        "baseline_gb": baseline,
        "peak_gb": peak,
        "above_baseline_gb": peak - baseline,
    }


def times(num_items: int, num_positions: int, num_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each pass; both kinds alternate after one warm-up pass each."""
    inputs = make_inputs(num_items, num_positions)
    losses = {kind: loss_of(kind) for kind in ("fused", "full")}
    rounds = [{kind: timed(loss, *inputs) for kind, loss in losses.items()} for _ in range(num_rounds + 1)]
    return {kind: [seconds[kind] for seconds in rounds[1:]] for kind in losses}


def error(num_items: int, num_positions: int) -> dict[str, dict[str, float]]:
    """Return relative errors of loss and gradients in float32 against the full matrix in float64."""
    inputs = make_inputs(num_items, num_positions)
    exact = [value.detach().double().requires_grad_() for value in inputs[:2]]
    truth = outcome(loss_of("full"), *exact, inputs[2])
    return {
        kind: {
            name: float((found.double() - expected).norm() / expected.norm())
            for (name, found), expected in zip(outcome(loss_of(kind), *inputs).items(), truth.values(), strict=True)
        }
        for kind in ("fused", "full")
    }


def hardware() -> dict[str, Any]:
    """Return the processor, settings and versions of this machine."""
    import bench

    return bench.hardware()


JOBS: dict[str, Callable[..., Any]] = {"memory": memory, "times": times, "error": error, "hardware": hardware}


def make_inputs(num_items: int, num_positions: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Return user and item vectors that require gradients, with scores of about unit variance, and targets."""
    import torch

    torch.manual_seed(0)
    users = torch.randn(num_positions, WIDTH)
    items = torch.randn(num_items + 1, WIDTH).mul_(WIDTH**-0.5)
    return users.requires_grad_(), items.requires_grad_(), torch.randint(1, num_items + 1, (num_positions,))


def loss_of(kind: str) -> "Callable[[Tensor, Tensor, Tensor], Tensor]":
    """Return the chunked loss, or the plain one."""
    from torch.nn import functional as F

    from slmrec.training.full_softmax import catalogue_cross_entropy

    if kind == "fused":
        return catalogue_cross_entropy
    return lambda users, items, targets: F.cross_entropy(users @ items[1:].T, targets - 1)


def outcome(
    loss: "Callable[[Tensor, Tensor, Tensor], Tensor]", users: "Tensor", items: "Tensor", targets: "Tensor"
) -> "dict[str, Tensor]":
    """Return the loss and both gradients."""
    import torch

    value = loss(users, items, targets)
    grad_users, grad_items = torch.autograd.grad(value, (users, items))
    return {"loss": value.detach(), "grad_users": grad_users, "grad_items": grad_items}


def timed(loss: "Callable[[Tensor, Tensor, Tensor], Tensor]", *inputs: "Tensor") -> float:
    """Return the seconds of one forward and backward pass."""
    for value in inputs[:2]:
        value.grad = None
    start = time.perf_counter()
    loss(*inputs).backward()
    return time.perf_counter() - start


def peak_gb() -> float:
    """Return the peak memory of this process so far, in 1e9 bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def commit() -> str:
    """Return the commit that is checked out."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main()
