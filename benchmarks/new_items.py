"""Quality of `slmrec items add` for items with a title only, by the way their learned vector is initialised.

A tenth of the catalogue, drawn at random, is treated as new. The learned vector of these items is replaced, in
histories and in the ranking, by one computed from the k known items with the most similar titles: their mean
(`mean_k`), their mean scaled to their average length (`alike_k`), or zeros (`zeros`); title vectors stay. Reported are
NDCG@10 and HR@10, history excluded, of validation users whose target is a new item. The model was trained with these
items in its log, so the numbers are optimistic; `trained` uses the trained vectors. Users whose target is an old item
show how much the new items affect the old ones.

Run: OMP_NUM_THREADS=1 python benchmarks/new_items.py MODEL_FOLDER DATA_SET_FOLDER
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch
from torch import Tensor

from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import load_recommender
from slmrec.models.item_tables import blended, most_similar
from slmrec.models.model import Model
from slmrec.models.sasrec import SasRec

SHARE, MAX_USERS = 10, 1000
Fill = Callable[[Tensor, Tensor], Tensor]
"""Function of an item table and the rows of similar items (n, k); returns the replaced vectors (n, D)."""
FORMS: dict[str, tuple[Fill, int]] = {
    "alike_3": (blended, 3),
    "alike_1": (blended, 1),
    "alike_10": (blended, 10),
    "mean_3": (lambda table, alike: table[alike].mean(dim=1), 3),
    "mean_10": (lambda table, alike: table[alike].mean(dim=1), 10),
    "zeros": (lambda table, alike: torch.zeros(len(alike), table.shape[1]), 1),
}


def main() -> None:
    """Run the measurements, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "new_items.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps(measure(arguments.model, arguments.data) | bench.hardware(), indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """Return NDCG@10 and HR@10 for new and old targets, by the way new items are initialised."""
    model, _ = load_recommender(folder)
    samples, rng = Dataset.load(data).held_out("valid"), np.random.default_rng(0)
    new = np.sort(1 + rng.permutation(model.num_items)[: model.num_items // SHARE])
    is_new = np.isin(targets_of(samples), new)
    groups = {
        name: samples.take(rng.permutation(np.flatnonzero(is_new == wanted))[:MAX_USERS])
        for name, wanted in (("new", True), ("old", False))
    }
    found: dict[str, Any] = {"new_items": len(new), "users_new": len(groups["new"]), "users_old": len(groups["old"])}
    for name in ("trained", *FORMS):
        form = model if name == "trained" else replaced(model, torch.from_numpy(new), *FORMS[name])
        for group, users in groups.items():
            protocol = "full_history_excluded"
            ranks = evaluate_scorer(EncoderScorer(form), users, batch_size=256, protocols=(protocol,))[protocol]
            metrics = ranking_metrics(ranks)
            found |= {f"{name}/{group}/{metric}": round(metrics[metric], 5) for metric in ("ndcg@10", "hit@10")}
        print(name, {key: value for key, value in found.items() if key.startswith(name)}, flush=True)
    return found


def targets_of(samples: Samples) -> Any:
    """Return the target item of each user, (num_users,)."""
    return np.concatenate([samples.flat[samples.spans(rows)[1]] for rows in samples.chunks()])


def replaced(model: Model, new: Tensor, fill: Fill, num_alike: int) -> Model:
    """Return a copy of the model whose learned vectors of new items come from old items."""
    copied = copy.deepcopy(model)
    decoder = copied.decoder_part
    assert decoder is not None and decoder.titles is not None, "the model reads no titles"
    titles = decoder.titles.vectors.index_fill(0, new, 0.0)
    alike = most_similar(titles, decoder.titles.vectors[new], num_alike)
    with torch.no_grad():
        for member in copied.modules():
            if isinstance(member, SasRec | DecoderRecommender):
                table = member.item_embeddings.weight
                table[new] = fill(table, alike)
    return copied.eval()


if __name__ == "__main__":
    main()
