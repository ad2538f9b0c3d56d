"""SASRec of RecTools, trained on one of our data sets, in its own environment (see README.md beside this file).

Trains on the train split of leave-one-out, keeps the epoch of the best validation recall@10 (history excluded), and
writes what evaluate.py ranks the test items by: the users' vectors after all but their last event, and the items'
vectors. The test events are not read. Writes `vectors.safetensors`, `run.json`, and, after each epoch, `log.json` and
`best.safetensors` (the weights).

Settings: those of the benchmark of RecTools' authors for Amazon Beauty, Sports and Toys (their repository
blondered/transformer_benchmark, configs/paper/loo/s3_vanilla.yaml and README.md); what is not named there is RecTools'
default. The two differ in the width: 256 in the file, 64 in the README's table.

Run: python benchmarks/peers/rectools_sasrec.py OUT/prepare OUT/peers/rectools [--width 64] [--max-hours 10]
"""

import argparse
import json
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.utils import leave_one_out_mask
from safetensors.torch import load_file, save_file
from torch import Tensor

MAX_HISTORY_ITEMS = 50
SETTINGS = {
    "n_blocks": 1,
    "n_heads": 1,
    "dropout_rate": 0.2,
    "session_max_len": MAX_HISTORY_ITEMS,
    "loss": "sampled_softmax",
    "n_negatives": 256,
    "lr": 1e-3,
    "batch_size": 128,
}
TOP_K = 10
METRIC = f"recall@{TOP_K}"
CHECKED_USERS = 50


class Watch(Callback):
    """Callback that records time and validation recall of each epoch, and saves the best weights."""

    def __init__(self, folder: Path, max_hours: float) -> None:
        self.folder, self.max_hours = folder, max_hours
        self.epochs: list[dict[str, float]] = []
        self.hits: list[Tensor] = []
        self.begun = time.perf_counter()

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Start the clocks."""
        self.started = time.perf_counter(), time.process_time()

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Record the end of training; validation runs at the end of an epoch."""
        self.trained = time.perf_counter(), time.process_time()

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Record whether the target of each user is among the best items outside the history."""
        users = module.torch_model.encode_sessions(batch, module.item_embs)[:, -1]
        scores = (users @ module.item_embs.T).scatter(1, batch["x"], -torch.inf)  # pads are item 0
        self.hits.append((scores.topk(TOP_K).indices == batch["y"]).any(dim=1))

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Log the recall for early stopping and the time of the epoch; save the weights if they are the best."""
        recall = float(torch.cat(self.hits).float().mean())
        self.hits.clear()
        module.log(METRIC, recall)
        best = max((epoch[METRIC] for epoch in self.epochs), default=-1.0)
        self.epochs.append({METRIC: recall} | self._times())
        if recall > best:
            save_file({name: value.clone() for name, value in module.state_dict().items()}, self.weights)
        write_json(self.folder / "log.json", self.epochs)
        print(f"epoch {len(self.epochs)}: {json.dumps(self.epochs[-1])}", flush=True)
        trainer.should_stop |= time.perf_counter() - self.begun > 3600 * self.max_hours

    def _times(self) -> dict[str, float]:
        """Return the seconds of the epoch so far: wall-clock and processor time."""
        (wall, cpu), (trained_wall, trained_cpu) = self.started, self.trained
        return {
            "train_s": round(trained_wall - wall, 3),
            "train_cpu_s": round(trained_cpu - cpu, 3),
            "valid_s": round(time.perf_counter() - trained_wall, 3),
            "valid_cpu_s": round(time.process_time() - trained_cpu, 3),
        }

    @property
    def weights(self) -> Path:
        """Path of the best weights."""
        return self.folder / "best.safetensors"


def main() -> None:
    """Train, and write the vectors and the record of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data-set folder with a leave-one-out split")
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=200, help="maximum number of epochs")
    parser.add_argument("--patience", type=int, default=50, help="epochs without a better validation recall")
    parser.add_argument("--max-hours", type=float, default=float("inf"), help="start no new epoch after this time")
    parser.add_argument("--users", type=int, help="use only the first users, for a trial run")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    lightning.seed_everything(arguments.seed)
    events, num_items = read(arguments.data, arguments.users)
    known = events[events[Columns.User].duplicated(keep="last")]  # all but the last of each user, the test event
    model, watch = train(known, arguments)
    vectors = vectors_of(model, known, num_items)
    check(model, known, vectors)
    save_file(vectors, arguments.output / "vectors.safetensors")
    report = facts(model, watch, arguments)
    write_json(arguments.output / "run.json", report)
    print(json.dumps(report, indent=1))


def read(folder: Path, num_users: int | None) -> tuple[pd.DataFrame, int]:
    """Return the events in the columns of RecTools, with positions as times, and the number of items V."""
    rule = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["rules"]["split"]
    if rule != "leave_one_out":
        raise SystemExit(f"{folder}: split by {rule}, expected leave_one_out; prepare it with that split")
    table = pd.read_parquet(folder / "interactions.parquet", columns=["user", "item", "position"])
    if num_users:
        table = table[table["user"] <= num_users]
    time_of = pd.to_datetime(table["position"], unit="s")
    columns = {Columns.User: table["user"], Columns.Item: table["item"], Columns.Weight: 1.0, Columns.Datetime: time_of}
    return pd.DataFrame(columns), len(pd.read_parquet(folder / "items.parquet", columns=["item"]))


def train(events: pd.DataFrame, arguments: argparse.Namespace) -> tuple[SASRecModel, Watch]:
    """Return the model of the best epoch; the last event of each user is used for validation."""

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=arguments.epochs,
            callbacks=[
                Watch(arguments.output, arguments.max_hours),
                EarlyStopping(METRIC, patience=arguments.patience, mode="max"),
            ],
            deterministic="warn",
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )

    model = SASRecModel(
        **SETTINGS, n_factors=arguments.width, get_val_mask_func=leave_one_out_mask, get_trainer_func=trainer
    )
    model.fit(Dataset.construct(events))
    watch = next(callback for callback in model.fit_trainer.callbacks if isinstance(callback, Watch))
    model.lightning_model.cpu().load_state_dict(load_file(watch.weights))
    return model, watch


@torch.no_grad()
def vectors_of(model: SASRecModel, events: pd.DataFrame, num_items: int) -> dict[str, Tensor]:
    """Return `users` (U, D) after the events, `items` (V+1, D), and the items `known` in training (V+1,)."""
    model.lightning_model.eval()
    network, names = model.torch_model, model.data_preparator.get_known_item_ids().astype(np.int64)
    table = network.item_model.get_all_embeddings()
    items, known = torch.zeros(num_items + 1, table.shape[1]), torch.zeros(num_items + 1, dtype=torch.bool)
    known[names] = True
    items[names] = table[model.data_preparator.n_item_extra_tokens :]
    inside = np.zeros(num_items + 1, np.int64)
    inside[names] = model.data_preparator.get_known_items_sorted_internal_ids()
    histories = padded(events, inside)
    users = [network.encode_sessions({"x": some}, table)[:, -1] for some in histories.split(256)]
    return {"users": torch.cat(users), "items": items, "known": known.to(torch.uint8)}


def padded(events: pd.DataFrame, inside: np.ndarray) -> Tensor:
    """Return the internal numbers of the newest known items of each user, (U, 50), padded with 0 on the left."""
    numbers = pd.DataFrame({"user": events[Columns.User], "number": inside[events[Columns.Item]]})
    numbers = numbers[numbers["number"] > 0]
    age = numbers.groupby("user").cumcount(ascending=False)
    newest = numbers[age < MAX_HISTORY_ITEMS]
    histories = np.zeros((events[Columns.User].max(), MAX_HISTORY_ITEMS), np.int64)
    histories[newest["user"] - 1, MAX_HISTORY_ITEMS - 1 - age[age < MAX_HISTORY_ITEMS]] = newest["number"]
    return torch.from_numpy(histories)


def check(model: SASRecModel, events: pd.DataFrame, vectors: dict[str, Tensor]) -> None:
    """Raise an error unless the vectors reproduce the lists that RecTools itself recommends to some users."""
    users = events[Columns.User].unique()[:CHECKED_USERS]
    lists = model.recommend(users, Dataset.construct(events), k=TOP_K, filter_viewed=True)
    for user, own in lists.groupby(Columns.User):
        scores = vectors["items"] @ vectors["users"][user - 1]
        scores[vectors["known"] == 0] = -torch.inf
        scores[events.loc[events[Columns.User] == user, Columns.Item].to_numpy()] = -torch.inf
        expected = torch.from_numpy(own[Columns.Score].to_numpy(np.float32))
        torch.testing.assert_close(scores.topk(TOP_K).values, expected, rtol=1e-4, atol=1e-5)


def facts(model: SASRecModel, watch: Watch, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return settings, times and machine of the run."""
    epochs = pd.DataFrame(watch.epochs)
    best = int(epochs[METRIC].argmax())
    sums = epochs.drop(columns=METRIC)
    given = {key: getattr(arguments, key) for key in ("width", "epochs", "patience", "users", "seed")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "settings": SETTINGS | given,
        "num_parameters": sum(value.numel() for value in model.torch_model.parameters()),
        "epochs": len(epochs),
        "best_epoch": best + 1,
        f"valid/{METRIC}": epochs[METRIC][best],
        "epoch": {key: float(value) for key, value in sums.median().items()},
        "to_best_epoch": {key: float(value) for key, value in sums[: best + 1].sum().items()},
        "peak_rss_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1),
        "peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("rectools", "torch", "pytorch-lightning")},
    }


def write_json(path: Path, value: Any) -> None:
    """Write to a temporary name, then rename."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
