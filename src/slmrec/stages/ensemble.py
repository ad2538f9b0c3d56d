"""A decoder together with the small models that were trained before it, and what the scores of each one weigh."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slmrec.checkpoint import load_recommender, save_recommender
from slmrec.config import TrainConfig
from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset, Samples
from slmrec.errors import CheckpointError
from slmrec.evaluation import RankingProtocol, eval_mode, evaluate_scorer, validate
from slmrec.metrics import ranking_metrics
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble, Member
from slmrec.stages.folders import Task
from slmrec.stages.learning import EVAL_BATCH, validation_sample
from slmrec.training import MONITORED
from slmrec.types import Batch

FOLDERS = {"sasrec": "pretrain", "companion": "companion"}
"""Where the models are that a teacher may be joined by."""
SHARES = tuple(tenths / 10 for tenths in range(10))
"""What a model's scores may weigh; the rest of 1 is left to those before it."""
_PROTOCOL: RankingProtocol = "full_history_excluded"


def join(task: Task, decoder: DecoderRecommender, names: Sequence[str], settings: TrainConfig) -> dict[str, float]:
    """Joins the models of some names to the teacher's decoder, and writes the ensemble in its place.

    One after the other is given the share of the scores with which validation NDCG@10 (history excluded) is highest;
    a model whose share is 0 is left out.

    Returns:
        The ensemble's metrics on validation, and its shares.
    """
    dataset = Dataset.load(task.output / "prepare")
    others = {name: _member(task, name).to(decoder.device) for name in names}
    weights = shares([decoder, *others.values()], validation_sample(task, dataset, settings))
    kept = {name: weight for name, weight in zip(names, weights[1:], strict=True) if weight}
    told = ", ".join(f"{name} {weight:.3g}" for name, weight in {"the decoder": weights[0], **kept}.items())
    print(f"finetune: the scores' shares, by validation: {told}", flush=True)
    if not kept:
        return {}
    model = Ensemble.of(decoder, [others[name] for name in kept], list(kept.values()))
    found = {f"weight/{name}": weight for name, weight in kept.items()}
    return found | save_ensemble(task, "finetune", model, settings)


def save_ensemble(task: Task, name: str, model: Ensemble, settings: TrainConfig) -> dict[str, float]:
    """Writes an ensemble in the place of its decoder; its metrics on validation."""
    dataset = Dataset.load(task.output / "prepare")
    found = validate(model.to(model.decoder.device), validation_sample(task, dataset, settings), EVAL_BATCH)
    print(f"{name}: with the other models' scores: valid NDCG@10 {found[MONITORED]:.4f}", flush=True)
    save_recommender(model, dataset, task.folder, f"SLMRec {name}", found)
    return {f"valid/{key}": value for key, value in found.items()} | {"num_parameters": model.num_parameters()}


def shares(members: Sequence[Member], samples: Samples) -> list[float]:
    """What the members' scores weigh, in all 1; found one member after the other, the first one has what is left."""
    mixture = _Mixture(members, samples)
    weights = [1.0] + [0.0] * (len(members) - 1)
    for place in range(1, len(members)):
        tried = [[share if at == place else (1 - share) * w for at, w in enumerate(weights)] for share in SHARES]
        weights = max(tried, key=mixture.quality)
    return weights


class _Mixture:
    """The members' vectors, computed once; a `Scorer` under any weights."""

    def __init__(self, members: Sequence[Member], samples: Samples) -> None:
        self.num_items, self.max_history_items = members[0].num_items, members[0].max_history_items
        self._samples = samples
        ensemble = Ensemble.of(members[0], members[1:], [1.0] * (len(members) - 1))
        ensemble.config.weights[0] = 1.0
        with eval_mode(ensemble), torch.inference_mode():
            parts = [member.item_vectors().float() for member in members]
            self._items = torch.cat(parts, dim=1)
            batches = by_length(samples, EVAL_BATCH, self.max_history_items)
            self._users = [ensemble.encode(batch.to(self._items.device)).users.float() for _, batch in batches]
        self._widths = torch.tensor([part.shape[1] for part in parts], device=self._items.device)

    def quality(self, weights: list[float]) -> float:
        """NDCG@10 with the history excluded."""
        self._scales = torch.tensor(weights, device=self._items.device).repeat_interleave(self._widths)
        self._next = iter(self._users)
        ranks = evaluate_scorer(self, self._samples, batch_size=EVAL_BATCH, protocols=(_PROTOCOL,))
        return ranking_metrics(ranks[_PROTOCOL])[MONITORED]

    def read(self, batch: Batch) -> Tensor:
        """(B, D) the next batch's; they come in the same order each time."""
        return next(self._next) * self._scales

    def score(self, users: Tensor) -> Tensor:
        """(b, V+1); column 0 is -inf."""
        scores = users @ self._items.T
        scores[:, 0] = -torch.inf
        return scores


def _member(task: Task, name: str) -> Member:
    folder = task.output / FOLDERS[name]
    model, _ = load_recommender(folder)
    if isinstance(model, Ensemble):
        raise CheckpointError(f"{folder}: an ensemble, expected one model; run {FOLDERS[name]} again")
    return model
