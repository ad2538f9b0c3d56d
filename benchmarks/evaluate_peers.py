"""Evaluation of vectors that another library trained, with our evaluator and beside our models.

It runs in our environment. The folder of a peer holds `vectors.safetensors` (`users` (U, D) of users 1..U, `items`
(V+1, D), `known` (V+1,): whether the peer can score an item) and `run.json`. Items that the peer cannot score are
ranked after all others. Writes benchmarks/results/peers.json and, with --ranks, the ranks of the users in the columns
of OUT/evaluate/per_user.parquet.

Run: python benchmarks/evaluate_peers.py OUT/prepare rectools=OUT/peers/rectools sasrec=OUT/pretrain/sasrec
"""

import argparse
import json
from pathlib import Path
from typing import Any

import bench
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, Scorer, evaluate_scorer
from slmrec.models.folder import load_recommender
from slmrec.types import Batch, Encoded

PROTOCOLS = ("full_history_excluded", "full")
BATCH_SIZE = 256


class VectorScorer:
    """Scores from user vectors (one per sample) and item vectors that were computed elsewhere."""

    max_history_items = 1  # histories are not read

    def __init__(self, users: Tensor, items: Tensor, known: Tensor) -> None:
        self.users, self.items = users.float(), items.float()
        self.unknown = ~known.bool()
        self.unknown[0] = False

    @property
    def num_items(self) -> int:
        """Number of items V."""
        return len(self.items) - 1

    def read(self, batch: Batch) -> Encoded:
        """User vectors (B, D) of the samples."""
        return Encoded(self.users[batch.rows])

    def score(self, encoded: Encoded) -> Tensor:
        """Return scores (B, V+1): minus infinity for padding, unknown items below all others."""
        scores = encoded.users @ self.items.T
        lowest = scores.amin(dim=1, keepdim=True) - 1
        scores = torch.where(self.unknown, lowest, scores)
        scores[:, 0] = -torch.inf
        return scores


def main() -> None:
    """Rank the test items, print and write the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="folders of peers and of our models")
    default = Path(__file__).parents[1] / "results" / "peers.json"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--ranks", type=Path, help="Parquet file for the ranks of the users")
    arguments = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (model.partition("=") for model in arguments.models)}
    report, ranks = evaluate(Dataset.load(arguments.data), folders)
    text = json.dumps(report, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    if arguments.ranks:
        pq.write_table(ranks, arguments.ranks)
    print(text)


def evaluate(dataset: Dataset, folders: dict[str, Path]) -> tuple[dict[str, Any], pa.Table]:
    """Return metrics and training facts by model, and the ranks; all models are evaluated on the same users."""
    samples = dataset.held_out("test")
    peers = {name: load_file(folder / "vectors.safetensors") for name, folder in folders.items() if is_peer(folder)}
    num_users = min([dataset.num_users, *(len(vectors["users"]) for vectors in peers.values())])
    samples = samples.take(np.flatnonzero(samples.users() < num_users))
    report: dict[str, Any] = {"users": len(samples), "items": dataset.num_items, "models": {}}
    tables = []
    for name, folder in folders.items():
        scorer = peer(peers[name], samples) if name in peers else EncoderScorer(load_recommender(folder)[0])
        ranks = ranks_of(scorer, samples)
        metrics = {protocol: ranking_metrics(found) for protocol, found in ranks.items()}
        report["models"][name] = {"test": metrics, "training": training(folder)}
        user_ids = dataset.user_ids.take(pa.array(samples.users()))
        tables += [table(user_ids, name, protocol, found) for protocol, found in ranks.items()]
    return report | bench.hardware(), pa.concat_tables(tables)


def is_peer(folder: Path) -> bool:
    """Return whether a folder holds vectors of a peer; otherwise it is a model folder."""
    return (folder / "vectors.safetensors").is_file()


def peer(vectors: dict[str, Tensor], samples: Samples) -> Scorer:
    """Return the scorer of the vectors of a peer."""
    return VectorScorer(vectors["users"][samples.users()], vectors["items"], vectors["known"])


def ranks_of(scorer: Scorer, samples: Samples) -> dict[str, Any]:
    """Return the ranks of the test items by protocol."""
    return evaluate_scorer(scorer, samples, batch_size=BATCH_SIZE, protocols=PROTOCOLS)


def training(folder: Path) -> Any:
    """Return the training facts that are recorded in the folder."""
    path = folder / ("run.json" if is_peer(folder) else "metrics.json")
    return json.loads(path.read_text(encoding="utf-8"))


def table(user_ids: pa.Array, model: str, protocol: str, ranks: Any) -> pa.Table:
    """Return the ranks in the columns of per_user.parquet."""
    names = {key: pa.repeat(value, len(ranks)) for key, value in (("model", model), ("protocol", protocol))}
    return pa.table({"user_id": user_ids, **names, "rank": pa.array(ranks)})


if __name__ == "__main__":
    main()
