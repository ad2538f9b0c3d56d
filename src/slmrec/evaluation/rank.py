"""How well a model ranks the held-out items, and how fast: one forward pass serves every protocol."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.data.batching import by_length, collate
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.errors import DataError
from slmrec.evaluation.metrics import ranking_metrics, ranks_of_targets, tie_draws
from slmrec.inference.freeze import freeze
from slmrec.topk import best_columns
from slmrec.types import Batch, Encoded, SequenceEncoder

MAX_SCORES = 8 * 2**20
"""Scores (float32) at once, 32 MiB, and as much again without the history: a batch is ranked in blocks of its rows."""
TOP_K = 10
"""Items of a top list, and of what a timed model recommends to each user."""
TIE_SEED = 0
"""Ties are broken alike for all models, so that their users can be compared one by one."""

RankingProtocol = str
"""Name of the candidates among which a target is ranked.

`full_history_excluded`: all items outside the user's history. `full`: all items. `sampled_N`: N sampled negatives of
the user. The target is always a candidate, even if it is in the history. Top lists do not know the target: under
`full_history_excluded` they hold no item of the history; sampled protocols have none.
"""


class Scorer(Protocol):
    """Anything that scores the whole catalogue."""

    @property
    def num_items(self) -> int:
        """V."""

    @property
    def max_history_items(self) -> int:
        """The newest items of a history that it wants to see."""

    def read(self, batch: Batch) -> Encoded:
        """Encode the histories; `users` is (B, ...), one user a row, and only `score` interprets it."""

    def score(self, encoded: Encoded) -> Tensor:
        """(b, V+1) float32 scores for a selection of what `read` returned; column 0, the padding item, is -inf."""


class EncoderScorer:
    """A model as a scorer: user vectors times item vectors plus the bonus, in eval mode, without gradients.

    The item vectors and the keys and values of a decoder's prompt are computed here, once; after more training, make a
    new scorer. Fused layers are not used, so that metrics do not depend on them.
    """

    def __init__(self, model: SequenceEncoder) -> None:
        self._model = model
        with eval_mode(model), torch.inference_mode():
            self._frozen = freeze(model, fused=False)
            self._item_vectors = self._frozen.item_vectors()

    @property
    def num_items(self) -> int:
        """V."""
        return self._model.num_items

    @property
    def max_history_items(self) -> int:
        """The longest history that the model reads."""
        return self._model.max_history_items

    def read(self, batch: Batch) -> Encoded:
        """User vectors (B, D) and bonus on the model's device."""
        with eval_mode(self._model), torch.inference_mode():
            encoded = self._frozen.encode(batch.histories)
            return Encoded(encoded.users.float(), bonus=encoded.bonus)

    def score(self, encoded: Encoded) -> Tensor:
        """(b, V+1); column 0 is -inf."""
        return _scores(encoded, self._item_vectors)


class VectorScorer:
    """User vectors that are there already, as a scorer of the samples they belong to.

    Args:
        users: (num_samples, D), in the order of the samples.
        item_vectors: (V+1, D).
        max_history_items: as of the model that made them: batches are cut alike.
    """

    def __init__(self, users: Tensor, item_vectors: Tensor, max_history_items: int) -> None:
        self._users, self._item_vectors, self.max_history_items = users, item_vectors, max_history_items

    @property
    def num_items(self) -> int:
        """V."""
        return len(self._item_vectors) - 1

    def read(self, batch: Batch) -> Encoded:
        """User vectors (B, D) of the batch's rows."""
        return Encoded(self._users[batch.rows].to(self._item_vectors.device))

    def score(self, encoded: Encoded) -> Tensor:
        """(b, V+1); column 0 is -inf."""
        return _scores(encoded, self._item_vectors)


def _scores(encoded: Encoded, item_vectors: Tensor) -> Tensor:
    with torch.inference_mode():
        scores = encoded.users @ item_vectors.T
        if encoded.bonus is not None:
            scores.scatter_add_(1, encoded.bonus.items, encoded.bonus.scores.to(scores.dtype))
        scores[:, 0] = -torch.inf
    return scores


@contextmanager
def eval_mode(model: SequenceEncoder) -> Iterator[None]:
    """Puts a model into eval mode, and each of its parts back into its own mode afterwards."""
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    if not any(training for _, training in modes):
        yield
        return
    modes[0][0].eval()
    try:
        yield
    finally:
        for part, training in modes:  # Outer parts come first, inner ones have the last word.
            part.train(training)


def evaluate_scorer(
    scorer: Scorer,
    samples: Samples,
    *,
    batch_size: int,
    protocols: tuple[RankingProtocol, ...],
    negatives: NDArray[np.int32] | None = None,
    tie_seed: int = TIE_SEED,
    top_lists: Callable[[str, Ints, Ints], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Ints]:
    """The 0-based rank of each sample's target under each protocol.

    Args:
        scorer: reads the newest `scorer.max_history_items` items of a sample; its whole history is excluded.
        samples: one a user, as from `Dataset.held_out`.
        batch_size: users read at once; they are ranked in blocks whose scores need at most 64 MiB.
        protocols: rankings wanted.
        negatives: (U, K) of `draw_negatives`; given if and only if a protocol is sampled.
        tie_seed: breaks ties; the same seed breaks them alike for every scorer.
        top_lists: called for each block and protocol that is not sampled with the protocol's name, the rows of the samples
            (b,) and what would be recommended to them: (b, TOP_K) items, best first, the smaller item first among
            equal scores, 0 where fewer are left.
        progress: called after each batch with the number of users in it.

    Returns:
        (num_samples,) ranks, in the order of the samples, by protocol.

    Raises:
        TrainingError: a user's scores are not finite; the message names the users.
        ValueError: a sampled protocol without its negatives, or negatives without such a protocol.
    """
    sampled = [protocol for protocol in protocols if is_sampled(protocol)]
    if sampled != ([] if negatives is None else [f"sampled_{negatives.shape[1]}"]):
        raise ValueError(f"protocols {protocols}: a sampled protocol needs its negatives, and only it takes them")
    ranks = {protocol: np.empty(len(samples), np.int64) for protocol in protocols}
    draws = tie_draws(len(samples), tie_seed)
    with torch.inference_mode():
        for rows, scores in _scored(scorer, samples, batch_size):
            users, device = samples.spans(rows)[2], scores.device
            whole = collate(samples, rows, int(samples.lengths(rows).max())).to(device)
            history = whole.histories.items
            drawn = None if negatives is None else torch.from_numpy(negatives[users].astype(np.int64)).to(device)
            for protocol in protocols:
                candidates, columns = _candidates(protocol, scores, whole.targets, history, drawn)
                ranks[protocol][rows] = ranks_of_targets(candidates, columns, draws[rows], users)
                if top_lists and not is_sampled(protocol):
                    top_lists(protocol, rows, _top_items(protocol, candidates, history))
            if progress:
                progress(len(rows))
    return ranks


def _scored(scorer: Scorer, samples: Samples, batch_size: int) -> Iterator[tuple[Ints, Tensor]]:
    """Rows of the samples and their scores, block by block; the batches they are read in do not depend on V."""
    for rows, batch in by_length(samples, batch_size, scorer.max_history_items):
        read, block = scorer.read(batch), _rows_at_once(scorer)
        for at in range(0, len(rows), block):
            yield rows[at : at + block], _checked(scorer.score(read.select(slice(at, at + block))))


def _rows_at_once(scorer: Scorer) -> int:
    return max(1, MAX_SCORES // (scorer.num_items + 1))


def _checked(scores: Tensor) -> Tensor:
    if not scores[:, 0].isneginf().all():
        raise ValueError("column 0 of the scores is the padding item: expected -inf there")
    return scores


def _candidates(
    protocol: RankingProtocol, scores: Tensor, targets: Tensor, history: Tensor, drawn: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The candidates' scores (B, C) under a protocol, and the targets' columns (B,)."""
    columns = targets[:, None]
    if drawn is not None and is_sampled(protocol):
        return scores.gather(1, torch.cat([columns, drawn], dim=1)), torch.zeros_like(columns[:, 0])
    if protocol == "full":
        return scores, columns[:, 0]
    # Pads of the history are item 0, which never ranks anyway.
    others = scores.scatter(1, history, -torch.inf)
    return others.scatter_(1, columns, scores.gather(1, columns)), columns[:, 0]


def _top_items(protocol: RankingProtocol, candidates: Tensor, history: Tensor) -> Ints:
    """(B, TOP_K) items with the best scores; may overwrite the candidates of a protocol that leaves the history out."""
    if protocol == "full_history_excluded":
        candidates.scatter_(1, history, -torch.inf)  # the target too, if it is in the history
    columns = best_columns(candidates, TOP_K)
    scores, order = candidates.gather(1, columns).sort(dim=1, descending=True, stable=True)
    items = columns.gather(1, order).masked_fill(scores.isneginf(), 0)
    return F.pad(items, (0, TOP_K - items.shape[1])).cpu().numpy()


def is_sampled(protocol: RankingProtocol) -> bool:
    """Return whether a protocol ranks the target among sampled negatives.

    Example:
        >>> is_sampled("sampled_999"), is_sampled("full")
        (True, False)
    """
    return protocol.startswith("sampled_")


def validate(model: SequenceEncoder, samples: Samples, batch_size: int) -> dict[str, float]:
    """The metrics of `ranking_metrics` under the `full` protocol, history not excluded: for early stopping.

    Args:
        model: comes back in the mode it was in.
        samples: of the validation split, all or some; the same ones give comparable numbers.
        batch_size: users read at once.

    Raises:
        TrainingError: a user's scores are not finite.
    """
    with eval_mode(model):
        ranks = evaluate_scorer(EncoderScorer(model), samples, batch_size=batch_size, protocols=("full",))
    return ranking_metrics(ranks["full"])


def draw_negatives(dataset: Dataset, num_negatives: int, seed: int, users: Ints | None = None) -> NDArray[np.int32]:
    """(U, K) items that each user never interacted with, drawn uniformly and without replacement.

    Items of the whole sequence are left out, held-out ones included. The same data and seed give the same negatives.

    Args:
        dataset: the histories.
        num_negatives: K.
        seed: of the draws.
        users: those to draw for, by default all; the rows of the others are 0.

    Raises:
        DataError: a user has fewer than `num_negatives` such items.
    """
    generator = np.random.default_rng(seed)
    negatives = np.zeros((dataset.num_users, num_negatives), dtype=np.int32)
    for user in range(dataset.num_users) if users is None else users:
        seen = np.unique(dataset.flat[dataset.offsets[user] : dataset.offsets[user + 1]])
        num_free = dataset.num_items - len(seen)
        if num_free < num_negatives:
            _refuse(dataset, user, num_free, num_negatives)
        nth = generator.choice(num_free, num_negatives, replace=False, shuffle=False)
        # seen[j] - 1 - j free items come before seen[j]; the n-th free item lies past all seen with at most n before.
        negatives[user] = nth + 1 + np.searchsorted(seen - 1 - np.arange(len(seen)), nth, side="right")
    return negatives


def _refuse(dataset: Dataset, user: int, num_free: int, num_negatives: int) -> None:
    raise DataError(
        f"evaluate.num_negatives is {num_negatives}, but user {dataset.user_ids[user].as_py()!r} has only {num_free} "
        f"of the {dataset.num_items} items left outside the history; choose sampled_N with a smaller N in "
        "evaluate.protocols, or leave it out"
    )


def throughput(
    scorers: Mapping[str, Scorer], samples: Samples, *, batch_size: int, rounds: int = 3
) -> dict[str, float]:
    """Users per second of each scorer: encode, score all items, find the ten best.

    The scorers take turns within each round, so that noise of the machine hits all alike; the median round counts.
    Building the batches is not timed, and each scorer has a batch to warm up.
    """
    batches = {
        name: [batch for _, batch in by_length(samples, batch_size, scorer.max_history_items)]
        for name, scorer in scorers.items()
    }
    for name, scorer in scorers.items():
        _seconds(scorer, batches[name][-1:])
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(rounds):
        for name, scorer in scorers.items():
            seconds[name].append(_seconds(scorer, batches[name]))
    return {name: len(samples) / median(values) for name, values in seconds.items()}


def _seconds(scorer: Scorer, batches: list[Batch]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            encoded, block = scorer.read(batch), _rows_at_once(scorer)
            for first in range(0, len(encoded.users), block):
                scores = scorer.score(encoded.select(slice(first, first + block)))
                # Fetching the result waits for an accelerator to finish.
                scores.topk(min(TOP_K, scorer.num_items), dim=1).indices.cpu()
    return time.perf_counter() - start
