"""Efficiency table in the form of the paper's: hours of an epoch, inference, parameters and memory of each model.

SASRec, all 30 layers of SmolLM2-135M, a teacher of 8 layers, a student of 4, all three with LoRA and the prompt, and a
student of SASRec's size. Each runs by our engine, and the decoders also in padded batches of transformers' own layers,
sorted by length, at the batch size that is best for them. An epoch has one sample a user and is trained by
cross-entropy; with cached teacher outputs, one of distillation takes `distill_epoch_ratio` (bench.py) times as long.
Inference encodes, scores and ranks all users. Both are extrapolated from passes over some users. Memory is that of a
training step: weights, the two states of AdamW, and the growth during the step.

Writes benchmarks/results/efficiency.json, and the table in Markdown beside it.

Run: python benchmarks/efficiency.py [DATA_SET_FOLDER, whose users and history lengths are used]
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import bench
import numpy as np

from slmrec.config import SasRecSettings
from slmrec.config.load import load_config
from slmrec.data.batching import by_length
from slmrec.data.dataset import Ints
from slmrec.models.model import ModelParts
from slmrec.models.sasrec import SasRec, build_sasrec
from slmrec.studies.tables import markdown_table
from slmrec.training.losses import NextItemLoss
from slmrec.training.memory import growth_mb
from slmrec.training.optimization import use_bf16


class Row(NamedTuple):
    """A model of the table."""

    name: str
    build: Callable[[], Any]
    batch_size: int = 256
    """Batch size of our engine."""
    padded: tuple[int, ...] = ()
    """Batch sizes of the padded baseline, of which it takes the best; none: it has no other engine."""
    num_users: int = 512
    """Users of a measured pass."""


def sasrec(**sizes: Any) -> SasRec:
    """Return a SASRec with random weights."""
    return build_sasrec(SasRecSettings(max_history_items=bench.MAX_HISTORY, **sizes), ModelParts(bench.NUM_ITEMS))


def recipe_student() -> SasRec:
    """Return the student of the recipes `beauty` and `toys` with random weights."""
    settings: Any = load_config("toys", []).distill.student
    return build_sasrec(
        settings.model_copy(update={"max_history_items": bench.MAX_HISTORY}), ModelParts(bench.NUM_ITEMS)
    )


ROWS = (
    Row("SASRec, width 128", lambda: sasrec(hidden_size=128, num_attention_heads=1)),
    Row("all 30 layers", lambda: bench.smollm2_model(None), batch_size=32, padded=(16, 32), num_users=128),
    Row("teacher, 8 layers", lambda: bench.smollm2_model(8), padded=bench.SORTED_BATCHES),
    Row("student, 4 layers", lambda: bench.smollm2_model(4), padded=bench.SORTED_BATCHES),
    Row("student of SASRec's size", recipe_student),
)
"""Source: the paper's efficiency table, and the student of the recipes `beauty` and `toys`."""
COLUMNS = ("model", "engine", "batch", "epoch, h", "inference, h", "parameters", "trained", "training memory, GB")


def measure(row: Row, lengths: Ints, rounds: int) -> list[dict[str, Any]]:
    """Return an entry for each engine of a model.

    Args:
        row: The model.
        lengths: History lengths of all users.
        rounds: Measured passes; the median counts.
    """
    model, bf16 = row.build(), use_bf16("auto")
    samples = bench.samples_of(np.random.default_rng(3).choice(lengths, row.num_users))
    sides = {("ours", row.batch_size): model}
    sides |= {("padded, sorted", size): bench.NarrowEncoder(model, bench.MAX_HISTORY) for size in row.padded}
    steps: dict[str, dict[Any, bench.Step]] = {"train": {}, "infer": {}, "one": {}}
    for side, encoder in sides.items():
        batches = [batch for _, batch in by_length(samples, side[1], bench.MAX_HISTORY)]
        loss = NextItemLoss(model) if encoder is model else bench.PaddedLoss(model, encoder)
        steps["one"][side] = bench.training_step(model, loss, batches, bf16)
        steps["train"][side] = bench._times(steps["one"][side], len(batches))
        steps["infer"][side] = bench._times(bench.inference_step(encoder, batches, bf16), len(batches))
    hours = {
        kind: {side: seconds * len(lengths) / row.num_users / 3600 for side, seconds in times.items()}
        for kind, times in ((kind, bench.paired(steps[kind], rounds)) for kind in ("train", "infer"))
    }
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    kept = 4 * model.num_parameters() + 8 * trained
    entries = []
    for engine in dict.fromkeys(name for name, _ in sides):
        own = [side for side in sides if side[0] == engine]
        best = {kind: min(own, key=lambda side: times[side]) for kind, times in hours.items()}
        entries.append(
            {
                "model": row.name,
                "engine": engine,
                "train_batch": best["train"][1],
                "infer_batch": best["infer"][1],
                "epoch_h": hours["train"][best["train"]],
                "infer_h": hours["infer"][best["infer"]],
                "parameters": model.num_parameters(),
                "trained": trained,
                "train_gb": (kept / 2**20 + growth_mb(steps["one"][best["train"]])) / 1024,
            }
        )
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    cells = [
        [
            *(entry["model"], entry["engine"], f"{entry['train_batch']} / {entry['infer_batch']}"),
            *(f"{entry['epoch_h']:.4f}", f"{entry['infer_h']:.5f}"),
            *(f"{entry['parameters']:,}", f"{entry['trained']:,}", f"{entry['train_gb']:.2f}"),
        ]
        for entry in entries
    ]
    return markdown_table(COLUMNS, cells)


def main(data: Path | None, path: Path, rounds: int = 3) -> list[dict[str, Any]]:
    """Measure all models, and write the numbers and the table after each."""
    lengths, entries = bench.lengths_of(data), list[dict[str, Any]]()
    for row in ROWS:
        entries += measure(row, lengths, rounds)
        content = {"users": len(lengths), "rows": entries, **bench.hardware()}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(entries) + "\n", encoding="utf-8")
        print(f"{row.name}: done", flush=True)
    print(table(entries))
    return entries


if __name__ == "__main__":
    main(bench.data_option(__doc__), Path(__file__).parent / "results" / "efficiency.json")
