"""Size, time and NDCG@10 of exported graphs: float32 and 8-bit weights against the model in PyTorch.

Users are drawn at random from the validation split; items of the history are excluded. Each format runs in batches and
one user at a time, on one thread. The loss of NDCG@10 is relative, with the standard error of the paired difference.
Times are the best round in processor seconds, so that other programs on the machine have little influence. Three ways
of quantization are compared: `int8`, which `slmrec export` writes (8-bit weights and activations, integer products),
`int8_signed`, the same with signed weights, and `int8_weights_alone` (MatMulNBits of onnxruntime, float32 activations).

Run: OMP_NUM_THREADS=1 python benchmarks/export.py MODEL_FOLDER DATA_FOLDER_OF_PREPARE
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import numpy as np
import torch

from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset
from slmrec.inference.onnx_graph import Run, open_graph, quantize, write_graph
from slmrec.models.folder import load_recommender, may_recommend
from slmrec.models.model import Model
from slmrec.topk import top_k
from slmrec.types import Batch, Histories

BATCH, K, ROUNDS = 64, 10, 3
TIMED_BATCHES, ALONE = 16, 100


def main() -> None:
    """Run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--users", type=int, default=30000, help="maximum number of users; Beauty has 22,363")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "export.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps(measure(arguments.model, arguments.data, arguments.users) | bench.hardware(), indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(folder: Path, data: Path, num_users: int) -> dict[str, Any]:
    """Return the numbers of each format, and the ratios of 8-bit formats to float32."""
    model, vocabulary = load_recommender(folder)
    allowed = may_recommend(vocabulary)
    samples = Dataset.load(data).held_out("valid")
    drawn = np.random.default_rng(0).permutation(len(samples))[:num_users]
    samples = samples.take(drawn)
    batches = [batch for _, batch in by_length(samples, BATCH, model.max_history_items)]
    alone = [batch for _, batch in by_length(samples.take(np.arange(ALONE)), 1, model.max_history_items)]
    with TemporaryDirectory() as aside:
        files = {
            name: Path(aside) / f"{name}.onnx" for name in ("float32", "int8", "int8_signed", "int8_weights_alone")
        }
        write_graph(model, allowed, files["float32"])
        quantize(files["float32"], files["int8"])
        signed(files["float32"], files["int8_signed"])
        weights_alone(files["float32"], files["int8_weights_alone"])
        forms: dict[str, Run] = {name: open_graph(file, model.num_items) for name, file in files.items()}
        sizes = {name: file.stat().st_size / 1e6 for name, file in files.items()}
        forms["pytorch"] = in_pytorch(model, allowed)
        sizes["pytorch"] = (folder / "model.safetensors").stat().st_size / 1e6
        gains = {
            name: np.array([gain for batch in batches for gain in gains_of(run, batch)]) for name, run in forms.items()
        }
        timed_batches = batches[:: max(1, len(batches) // TIMED_BATCHES)]
        found = {name: times(run, timed_batches, alone) | {"size_mb": sizes[name]} for name, run in forms.items()}
    for name, own in found.items():
        own["ndcg@10"] = float(gains[name].mean())
    exact = found["float32"]
    for name in ("int8", "int8_signed", "int8_weights_alone"):
        own = found[name]
        own["size_ratio"] = exact["size_mb"] / own["size_mb"]
        own["speed_ratio_batch"] = exact["cpu_s_per_1000_users"] / own["cpu_s_per_1000_users"]
        own["speed_ratio_alone"] = exact["cpu_ms_alone"] / own["cpu_ms_alone"]
        own["ndcg@10_loss"] = 1 - own["ndcg@10"] / exact["ndcg@10"]
        difference = gains["float32"] - gains[name]
        own["ndcg@10_loss_standard_error"] = float(difference.std() / len(difference) ** 0.5) / exact["ndcg@10"]
    return {"users": len(samples), "batch": BATCH, "rounds": ROUNDS, "forms": found}


def signed(source: Path, target: Path) -> None:
    """Quantize as `quantize` does, but with signed weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def weights_alone(source: Path, target: Path) -> None:
    """Quantize only the weights of matrix products, in blocks of 8 bits; activations stay in float32."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), False)


def in_pytorch(model: Model, allowed: torch.Tensor) -> Run:
    """Return a function that ranks with the PyTorch model and exact search."""

    @torch.inference_mode()
    def run(histories: Histories, excluded: torch.Tensor, k: int) -> tuple[Any, Any]:
        users, items = model.encode(histories).users.float(), model.item_vectors().float()
        scores, best = top_k(users, items, k, excluded=excluded, allowed=allowed)
        return best.numpy(), scores.numpy()

    return run


def times(run: Run, batches: list[Batch], alone: list[Batch]) -> dict[str, float]:
    """Return the processor time of one format."""
    num_users = sum(len(batch.targets) for batch in batches)
    return {
        "cpu_s_per_1000_users": 1000 * timed(run, batches) / num_users,
        "cpu_ms_alone": 1000 * timed(run, alone) / len(alone),
    }


def gains_of(run: Run, batch: Batch) -> list[float]:
    """Return NDCG@10 of each user; the target stays a candidate even if it is in the history."""
    seen = batch.histories.items.masked_fill(batch.histories.items == batch.targets[:, None], 0)
    best, _ = run(batch.histories, seen, K)
    hits = best == batch.targets[:, None].numpy()
    gains: list[float] = (hits / np.log2(np.arange(K) + 2)).sum(axis=1).tolist()
    return gains


def timed(run: Run, batches: list[Batch]) -> float:
    """Return the processor seconds of the fastest round."""

    def once() -> float:
        start = time.process_time()
        for batch in batches:
            run(batch.histories, batch.histories.items, K)
        return time.process_time() - start

    return min(once() for _ in range(ROUNDS))


if __name__ == "__main__":
    main()
