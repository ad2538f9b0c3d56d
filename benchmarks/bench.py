"""Benchmark of the engine on this machine: packed against padded batches, a small student against a whole LLM.

Ratios are medians of paired runs in one process: every round runs both sides, one after the other.

Run: python benchmarks/bench.py --output bench.json [--data DATA_SET_FOLDER]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.config import DecoderSettings, DistillConfig
from slmrec.data.batching import by_length, collate
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.evaluation.rank import EncoderScorer, eval_mode, throughput
from slmrec.inference.freeze import freeze
from slmrec.models.backbone import Backbone, load_decoder, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.padded import PaddedEncoder
from slmrec.packaged import SMOLLM2
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.losses import DistillationLoss, NextItemLoss
from slmrec.training.memory import growth_mb
from slmrec.training.optimization import use_bf16
from slmrec.training.samples import TrainingSamples
from slmrec.training.teacher_cache import CachedTeacher, cache_keys, write_teacher_cache
from slmrec.types import Batch, Encoded, Histories, LossTerms
from slmrec.version import __version__

PROMPT = (47, 6)
"""Number of tokens before and after the items, as in the instruction of the reference."""
MAX_HISTORY, NUM_ITEMS, ITEM_DIM = 30, 12_101, 64
STUDENT_LAYERS = 4
LORA = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
"""Source: SLMRec's published run script."""
LLAMA = {
    "model_type": "llama",
    "vocab_size": 1,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": STUDENT_LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Four layers of width 512 with the proportions of LLaMA."""
SORTED_BATCHES = (16, 32, 64, 128, 256)
"""Batch sizes of which the sorted, padded baseline takes the best."""
Step = Callable[[], None]
Measure = Callable[[Ints, int], dict[str, float]]


def bench(output: Path, data: Path | None, rounds: int, measures: tuple[Measure, ...] = ()) -> dict[str, Any]:
    """Run the comparisons; print the numbers and write them as one flat JSON object.

    Args:
        output: the JSON file.
        data: data-set folder whose history lengths are used; None: lengths like those of Amazon Beauty.
        rounds: paired runs of each comparison.
        measures: comparisons to run; all by default.

    Returns:
        The numbers.
    """
    measures = measures or (measure_engine, measure_sorted, measure_headline, measure_distillation, measure_append)
    lengths = lengths_of(data)
    results: dict[str, Any] = {"mean_history_items": float(lengths.mean())}
    for measure in measures:
        found = measure(lengths, rounds)
        print("\n".join(f"{key}: {value:.4g}" for key, value in found.items()), flush=True)
        results |= found
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results | hardware(), indent=1) + "\n", encoding="utf-8")
    print(f"bench: written to {output}", flush=True)
    return results


def lengths_of(data: Path | None) -> Ints:
    """Return the history lengths at test time, at most `MAX_HISTORY`."""
    if data is not None:
        return Dataset.load(data).held_out("test").clipped_lengths(MAX_HISTORY).astype(np.int64)
    # Amazon Beauty: at least 4 items before the test item, 7.9 on average.
    drawn = 3 + np.random.default_rng(0).geometric(1 / 4.9, 20_000)
    return np.minimum(drawn, MAX_HISTORY)


def hardware() -> dict[str, Any]:
    """Return the processor, settings and versions of this machine."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "bf16_products": use_bf16("auto"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "slmrec": __version__,
    }


def data_option(description: str | None) -> Path | None:
    """Return the folder of a data set from the command line of a script; None if it is not given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="data set whose history lengths are used")
    folder: Path | None = parser.parse_args().data
    return folder


def measure_engine(lengths: Ints, rounds: int) -> dict[str, float]:
    """Compare packed and padded batches: training step and inference of four layers of width 512 in float32."""
    results: dict[str, float] = {}
    for batch_size in (256, 64):
        model = random_model()
        batches = random_batches(lengths, batch_size)
        packed = training_step(model, NextItemLoss(model), batches, bf16=False)
        padded = training_step(model, PaddedLoss(model), batches, bf16=False)
        seconds = paired({"packed": packed, "padded": padded}, rounds)
        users = throughput(_scorers(model), samples_of(lengths[:2048]), batch_size=batch_size, rounds=rounds)
        found = {
            "train_speedup": seconds["padded"] / seconds["packed"],
            "infer_speedup": users["packed"] / users["padded"],
            "train_packed_s": seconds["packed"],
            "train_padded_s": seconds["padded"],
            "infer_packed_users_per_s": users["packed"],
            "infer_padded_users_per_s": users["padded"],
        }
        if batch_size == 256:
            peaks = {"packed": growth_mb(packed), "padded": growth_mb(padded)}
            found |= {
                "train_memory_ratio": peaks["packed"] / peaks["padded"],
                "train_packed_mb": peaks["packed"],
                "train_padded_mb": peaks["padded"],
                **share_of_products(model, next(iter(batches)), packed, rounds),
            }
            results |= found
        else:
            results |= {f"{key}_batch_{batch_size}": value for key, value in found.items()}
    return results


def measure_sorted(lengths: Ints, rounds: int) -> dict[str, float]:
    """Compare packed batches of 256 with a competent padded baseline, for the model of `measure_engine` in float32.

    The baseline sorts its users by length, pads each batch to its longest history alone, and takes the batch size that
    is best for it, in training and in inference. Both sides read the same 512 users.
    """
    model, samples = random_model(), samples_of(np.random.default_rng(3).choice(lengths, 512))
    passes: dict[str, dict[str, Step]] = {"train": {}, "infer": {}}
    for size in (256, *SORTED_BATCHES):
        batches = [batch for _, batch in by_length(samples, size, MAX_HISTORY)]
        sides: dict[str, Any] = {f"padded_{size}": NarrowEncoder(model, MAX_HISTORY)} if size in SORTED_BATCHES else {}
        if size == 256:
            sides["packed"] = model
        for name, encoder in sides.items():
            loss = NextItemLoss(model) if encoder is model else PaddedLoss(model, encoder)
            passes["train"][name] = _times(training_step(model, loss, batches, bf16=False), len(batches))
            passes["infer"][name] = _times(inference_step(encoder, batches, bf16=False), len(batches))
    results: dict[str, float] = {}
    for kind, steps in passes.items():
        seconds = paired(steps, rounds)
        best = min(SORTED_BATCHES, key=lambda size: seconds[f"padded_{size}"])
        results |= {
            f"{kind}_speedup_sorted": seconds[f"padded_{best}"] / seconds["packed"],
            f"{kind}_sorted_batch": float(best),
            f"{kind}_sorted_users_per_s": len(samples) / seconds[f"padded_{best}"],
        }
    return results


def measure_all_users(lengths: Ints, rounds: int) -> dict[str, float]:
    """Compare inference of the model of `measure_engine` for all users in batches of 256, in float32."""
    users = throughput(_scorers(random_model()), samples_of(lengths), batch_size=256, rounds=rounds)
    return {
        "infer_all_users": float(len(lengths)),
        "infer_all_speedup": users["packed"] / users["padded"],
        "infer_all_packed_users_per_s": users["packed"],
        "infer_all_padded_users_per_s": users["padded"],
    }


def measure_headline(lengths: Ints, rounds: int) -> dict[str, float]:
    """Compare a packed student of 4 layers with all 30 padded layers of SmolLM2-135M, both with LoRA, per user.

    The steps in between change one thing at a time: fewer layers, packed batches, bfloat16 products where the machine
    supports them. The 30 layers run in batches of 32, limited by memory; the student in batches of 256.
    """
    bf16 = use_bf16("auto")
    whole, student = smollm2_model(None), smollm2_model(STUDENT_LAYERS)
    small, large = random_batches(lengths, 32), random_batches(lengths, 256)
    steps = {
        "whole": training_step(whole, PaddedLoss(whole), small, bf16=False),
        "fewer_layers": training_step(student, PaddedLoss(student), small, bf16=False),
        "less_waste": training_step(student, NextItemLoss(student), large, bf16=False),
        "precision": training_step(student, NextItemLoss(student), large, bf16=bf16),
    }
    users_per_step = {"whole": 32, "fewer_layers": 32, "less_waste": 256, "precision": 256}
    training = {name: users_per_step[name] / value for name, value in paired(steps, rounds).items()}
    answers = {
        "whole": inference_step(PaddedEncoder(whole, MAX_HISTORY), small, bf16=False),
        "fewer_layers": inference_step(PaddedEncoder(student, MAX_HISTORY), small, bf16=False),
        "less_waste": inference_step(student, large, bf16=False),
        "precision": inference_step(student, large, bf16=bf16),
    }
    inference = {name: users_per_step[name] / value for name, value in paired(answers, rounds).items()}
    results = {}
    for kind, speeds in (("train", training), ("infer", inference)):
        results[f"headline_{kind}_speedup"] = speeds["precision"] / speeds["whole"]
        for before, name in zip(list(speeds), list(speeds)[1:], strict=False):
            results[f"headline_{kind}_{name}"] = speeds[name] / speeds[before]
        results |= {f"headline_{kind}_{name}_users_per_s": value for name, value in speeds.items()}
    return results


def measure_distillation(lengths: Ints, rounds: int) -> dict[str, float]:
    """Measure an epoch of offline distillation with cached teacher outputs against plain training, and the caching.

    Teacher: 8 layers, student: 4, both of width 512 in float32; cosine and norm terms over 4 blocks.
    """
    teacher, student = random_model(2 * STUDENT_LAYERS).eval(), random_model()
    samples = samples_of(lengths[:2048])
    data = TrainingSamples(samples, MAX_HISTORY, every_position=False)
    settings = DistillConfig.model_validate({"weights": {"multiple": 0.0}})
    num_blocks = settings.num_blocks
    key = cache_keys(teacher, data, [num_blocks])[num_blocks]

    def write(path: Path) -> None:
        write_teacher_cache(teacher, data, path, num_blocks=num_blocks, key=key)

    with TemporaryDirectory() as folder:
        paths = (Path(folder) / f"{number}.safetensors" for number in count())
        path = next(paths)
        write(path)
        passes = paired({"store": lambda: write(next(paths)), "inference": lambda: read_all(teacher, samples)}, rounds)
        cached = CachedTeacher.open(path, key, teacher.item_vectors().detach(), data, num_blocks=num_blocks)
        batches = [batch for _, batch in by_length(samples, 256, MAX_HISTORY)]
        loss = DistillationLoss(student, cached, settings, CatalogueLoss(settings.train))
        steps = {
            "distill": training_step(student, loss, batches, bf16=False),
            "plain": training_step(student, NextItemLoss(student), batches, bf16=False),
        }
        epochs = {name: _times(step, len(batches)) for name, step in steps.items()}
        seconds = paired(epochs, rounds)
    return {
        "distill_epoch_ratio": seconds["distill"] / seconds["plain"],
        "distill_epoch_s": seconds["distill"],
        "distill_plain_epoch_s": seconds["plain"],
        "teacher_pass_ratio": passes["store"] / passes["inference"],
        "teacher_pass_s": passes["store"],
    }


def read_all(model: DecoderRecommender, samples: Samples) -> None:
    """Every sample's user vector, as inference does."""
    frozen = freeze(model, fused=False)
    for _, batch in by_length(samples, 256, MAX_HISTORY):
        frozen.encode(batch.histories)


def _times(step: Step, number: int) -> Step:
    def repeated() -> None:
        for _ in range(number):
            step()

    return repeated


def measure_append(lengths: Ints, rounds: int) -> dict[str, float]:
    """Milliseconds to append one event to histories of 10, 100 and 400 items, and to read those whole."""
    model = random_model(max_history_items=512)
    frozen = freeze(model, fused=False)
    results = {}
    for length in (10, 100, 400):
        batch = next(iter(random_batches(np.full(1, length), 1)))
        states = [frozen.new_state()]
        frozen.append(states, batch.histories.items.tolist())
        times = [timed(lambda states=states: frozen.append(states, [[1]])) for _ in range(4 * rounds)]  # type: ignore[misc]
        whole = [timed(inference_step(model, [batch], bf16=False)) for _ in range(rounds)]
        results[f"append_ms_{length}"], results[f"recompute_ms_{length}"] = median(times) * 1e3, median(whole) * 1e3
    return results


class NarrowEncoder(PaddedEncoder):
    """Padded rows that are as wide as the longest history of their batch."""

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        """Encode a batch."""
        rows = PaddedEncoder(self.model, histories.items.shape[1])
        return rows.encode(histories, every_position=every_position, num_blocks=num_blocks)


class PaddedLoss(nn.Module):
    """Cross-entropy on padded batches with the full score matrix, as the baseline."""

    def __init__(self, model: DecoderRecommender, encoder: PaddedEncoder | None = None) -> None:
        super().__init__()
        self.encoder = encoder or PaddedEncoder(model, MAX_HISTORY)

    def forward(self, batch: Batch) -> LossTerms:
        """Return the loss of one batch."""
        scores = self.encoder.encode(batch.histories).users @ self.encoder.item_vectors()[1:].T
        return LossTerms(F.cross_entropy(scores, batch.targets - 1), {})


def random_model(num_layers: int = STUDENT_LAYERS, max_history_items: int = MAX_HISTORY) -> DecoderRecommender:
    """Return a decoder of width 512 with random weights and a prompt; all weights are trained."""
    torch.manual_seed(0)
    decoder = random_decoder(LLAMA | {"num_hidden_layers": num_layers})
    return _model(decoder, num_layers, None, max_history_items)


def smollm2_model(num_layers: int | None) -> DecoderRecommender:
    """Return the first layers, or all, of the pretrained SmolLM2-135M with LoRA."""
    decoder = load_decoder(SMOLLM2)
    return _model(decoder, num_layers or decoder.config.num_hidden_layers, LORA, MAX_HISTORY)


def _model(decoder: Any, num_layers: int, lora: dict[str, Any] | None, max_history_items: int) -> DecoderRecommender:
    width = decoder.config.hidden_size
    prefix, response = (0.1 * torch.randn(length, width) for length in PROMPT)
    settings = DecoderSettings(num_layers=num_layers, lora=lora, max_history_items=max_history_items)
    backbone, vectors = Backbone(decoder, prefix, response), torch.randn(NUM_ITEMS + 1, ITEM_DIM)
    model = build_decoder(settings, backbone, vectors, None, section="bench", train_items=lora is None)
    model.engine = "packed"
    return model


def samples_of(lengths: Ints) -> Samples:
    """Return samples of random items with these history lengths."""
    ends = np.cumsum(lengths + 1) - 1
    flat = np.random.default_rng(1).integers(1, NUM_ITEMS + 1, int(ends[-1]) + 1)
    return Samples.of(flat, ends - lengths, ends, np.arange(len(lengths)))


def random_batches(lengths: Ints, batch_size: int) -> list[Batch]:
    """Return four batches of users drawn at random, not sorted by length."""
    drawn = np.random.default_rng(2).choice(lengths, 4 * batch_size)
    samples = samples_of(drawn)
    return [
        collate(samples, np.arange(at, at + batch_size), int(drawn.max())) for at in range(0, len(drawn), batch_size)
    ]


def training_step(model: nn.Module, loss: nn.Module, batches: list[Batch], bf16: bool) -> Step:
    """Return a function that trains on the next batch: forward, backward and AdamW."""
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-4, fused=True)
    following, device = _in_turn(batches), batches[0].targets.device.type

    def step() -> None:
        loss.train()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            total = loss(next(following)).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference_step(encoder: Any, batches: list[Batch], bf16: bool) -> Step:
    """Return a function that computes the user vectors and scores of the next batch."""
    following, device = _in_turn(batches), batches[0].targets.device.type
    frozen = freeze(encoder, fused=False)

    def step() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            (frozen.encode(next(following).histories).users @ frozen.item_vectors().T).topk(10)

    return step


def _in_turn(batches: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


def paired(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Return the median seconds of each step; every round runs all of them in turn, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            seconds = timed(step)
            if number:
                times[name].append(seconds)
    return {name: median(values) for name, values in times.items()}


def timed(step: Callable[[], Any]) -> float:
    """Return the seconds of a step, including pending work of the GPU."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Product(NamedTuple):
    """Shape of a matrix product (rows, inner) x (inner, columns)."""

    rows: int
    inner: int
    columns: int


def share_of_products(model: DecoderRecommender, batch: Batch, step: Step, rounds: int) -> dict[str, float]:
    """Return the share of a training step that its matrix products alone take, measured on the same shapes."""
    products = products_of(model, batch)
    seconds = paired({"bare": bare(products, torch.float32), "step": step}, rounds)
    return {
        "train_share_of_matmul": seconds["bare"] / seconds["step"],
        "train_step_gflop": flop(products) / 1e9,
        "matmul_gflop_per_s": flop(products) / seconds["bare"] / 1e9,
    }


def flop(products: list[Product]) -> int:
    """Return the floating-point operations; a multiplication with its addition counts as two."""
    return 2 * sum(rows * inner * columns for rows, inner, columns in products)


def bare(products: list[Product], dtype: torch.dtype) -> Step:
    """Return a function that only computes the matrix products, one after the other."""
    operands = {
        product: (torch.randn(product[:2]).to(dtype), torch.randn(product[1:]).to(dtype)) for product in set(products)
    }

    def multiply() -> None:
        for product in products:
            torch.mm(*operands[product])

    return multiply


def products_of(model: DecoderRecommender, batch: Batch, backward: bool = True) -> list[Product]:
    """Return the matrix products of a training step (forward, gradients of input and weight) or of inference."""
    found: list[Product] = []

    def forward(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(Product(inputs[0].numel() // module.in_features, module.in_features, module.out_features))

    def back(module: nn.Linear, inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        rows = outputs[0].numel() // module.out_features
        found.append(Product(rows, module.out_features, module.in_features))
        if module.weight.requires_grad:
            found.append(Product(module.out_features, rows, module.in_features))

    with eval_mode(model):
        frozen = freeze(model, fused=False)  # the prompt is computed here, and not counted
    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            hooks += [module.register_forward_hook(forward), module.register_full_backward_hook(back)]  # type: ignore[arg-type]
    if backward:
        NextItemLoss(model)(batch).total.backward()
        model.zero_grad(set_to_none=True)
    else:
        with eval_mode(model):
            frozen.encode(batch.histories)
    for hook in hooks:
        hook.remove()
    num_users = len(batch.targets)
    found.append(Product(num_users, ITEM_DIM, NUM_ITEMS))
    if backward:
        found += [Product(num_users, NUM_ITEMS, ITEM_DIM), Product(NUM_ITEMS, num_users, ITEM_DIM)]
    return found


def _scorers(model: DecoderRecommender) -> dict[str, EncoderScorer]:
    return {"packed": EncoderScorer(model.eval()), "padded": EncoderScorer(PaddedEncoder(model, MAX_HISTORY).eval())}


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def main(arguments: list[str] | None = None) -> None:
    """Run all comparisons with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data", type=Path, help="data-set folder whose history lengths are used")
    parser.add_argument("--rounds", type=int, default=3, help="paired runs of each comparison (default 3)")
    options = parser.parse_args(arguments)
    bench(options.output, options.data, options.rounds)


if __name__ == "__main__":
    main()
