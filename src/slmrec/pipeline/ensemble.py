"""A decoder together with the small models that were trained before it, and what the scores of each one weigh."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slmrec.config import TrainConfig
from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset, Samples
from slmrec.errors import CheckpointError
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import RankingProtocol, VectorScorer, eval_mode, evaluate_scorer, validate
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble, Member
from slmrec.models.folder import load_recommender, save_recommender
from slmrec.pipeline.learning import EVAL_BATCH, validation_sample
from slmrec.pipeline.stage import Task
from slmrec.training.trainer import MONITORED

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
    users, items = zip(*(_vectors(member, samples) for member in members), strict=True)

    def quality(weights: list[float]) -> float:
        weighted = torch.cat([weight * vectors for weight, vectors in zip(weights, users, strict=True)], dim=1)
        scorer = VectorScorer(weighted, torch.cat(items, dim=1), members[0].max_history_items)
        ranks = evaluate_scorer(scorer, samples, batch_size=EVAL_BATCH, protocols=(_PROTOCOL,))
        return ranking_metrics(ranks[_PROTOCOL])[MONITORED]

    weights = [1.0] + [0.0] * (len(members) - 1)
    for place in range(1, len(members)):
        tried = [[share if at == place else (1 - share) * w for at, w in enumerate(weights)] for share in SHARES]
        weights = max(tried, key=quality)
    return weights


@torch.inference_mode()
def _vectors(member: Member, samples: Samples) -> tuple[Tensor, Tensor]:
    """(num_samples, D) user vectors and (V+1, D) item vectors."""
    with eval_mode(member):
        items = member.item_vectors().float()
        users = items.new_empty(len(samples), items.shape[1])
        for rows, batch in by_length(samples, EVAL_BATCH, member.max_history_items):
            users[rows] = member.encode(batch.histories.to(items.device)).users.float()
    return users, items


def _member(task: Task, name: str) -> Member:
    folder = task.output / FOLDERS[name]
    model, _ = load_recommender(folder)
    if isinstance(model, Ensemble):
        raise CheckpointError(f"{folder}: an ensemble, expected one model; run {FOLDERS[name]} again")
    return model
