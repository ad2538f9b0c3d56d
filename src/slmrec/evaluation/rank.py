"""Ranks of the held-out items and speed of a model; one forward pass serves all ranking protocols."""

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
from slmrec.data.dataset import Ints, Samples
from slmrec.evaluation.candidates import is_sampled
from slmrec.evaluation.metrics import ranks_of_targets, tie_draws
from slmrec.inference.freeze import freeze
from slmrec.processes import share, total
from slmrec.topk import best_columns
from slmrec.types import Batch, Encoded, SequenceEncoder, timestamp_unit_of

MAX_SCORES = 8 * 2**20
"""Maximum number of float32 scores in memory (32 MiB, and the same again for the copy without the history)."""
TOP_K = 10
"""Length of top lists, also in measurements of speed."""
TIE_SEED = 0
"""Seed of the order of ties; it is the same for all models, so that they can be compared user by user."""

RankingProtocol = str
"""Name of a ranking protocol, which defines the candidates among which the target is ranked.

`full_history_excluded`: all items outside the user's history. `full`: all items. `sampled_N`: N sampled negatives of
the user. The target is always a candidate, even if it is in the history. Top lists do not depend on the target: under
`full_history_excluded` they contain no item of the history; sampled protocols have no top lists.
"""


class Scorer(Protocol):
    """Interface of objects that score the whole catalogue for a batch of users."""

    @property
    def num_items(self) -> int:
        """V."""

    @property
    def max_history_items(self) -> int:
        """Maximum number of items of a history that are read; the newest ones are kept."""

    def read(self, batch: Batch) -> Encoded:
        """Encode the histories; only `score` interprets `users`, a tensor (B, ...) with one row for each user."""

    def score(self, encoded: Encoded) -> Tensor:
        """Return float32 scores (b, V+1) for some rows of the output of `read`; column 0, the padding item, is -inf."""


class EncoderScorer:
    """Scorer of a model: user vectors times item vectors plus the bonus, in eval mode, without gradients.

    The item vectors, and the keys and values of a decoder's prompt, are computed once, by the constructor; create a new
    scorer after further training. Fused layers are not used, so that metrics do not depend on them.

    Args:
        model: The model; its mode is restored after each call.
        replace: Function that returns the item vectors (V+1, D) to score instead of those of the model, given these.

    Example:
        >>> from slmrec.models.sasrec import SasRec, SasRecConfig
        >>> EncoderScorer(SasRec(SasRecConfig(num_items=40, hidden_size=8))).num_items
        40
    """

    def __init__(self, model: SequenceEncoder, replace: Callable[[Tensor], Tensor] | None = None) -> None:
        self._model, self.timestamp_unit = model, timestamp_unit_of(model)
        with eval_mode(model), torch.inference_mode():
            self._frozen = freeze(model, fused=False)
            self._item_vectors = self._frozen.item_vectors()
            if replace is not None:
                self._item_vectors = replace(self._item_vectors)

    @property
    def num_items(self) -> int:
        """V."""
        return self._model.num_items

    @property
    def max_history_items(self) -> int:
        """Maximum number of items of a history that the model reads."""
        return self._model.max_history_items

    def read(self, batch: Batch) -> Encoded:
        """Return user vectors (B, D) and the bonus, on the device of the model."""
        with eval_mode(self._model), torch.inference_mode():
            encoded = self._frozen.encode(batch.histories)
            return Encoded(encoded.users.float(), bonus=encoded.bonus)

    def score(self, encoded: Encoded) -> Tensor:
        """Return scores (b, V+1); column 0 is -inf."""
        return _scores(encoded, self._item_vectors)


class VectorScorer:
    """Scorer of precomputed user vectors.

    Args:
        users: (num_samples, D) user vectors, in the order of the samples.
        item_vectors: (V+1, D) item vectors.
        max_history_items: Maximum number of history items of the model that computed the vectors.
    """

    def __init__(self, users: Tensor, item_vectors: Tensor, max_history_items: int) -> None:
        self._users, self._item_vectors, self.max_history_items = users, item_vectors, max_history_items

    @property
    def num_items(self) -> int:
        """V."""
        return len(self._item_vectors) - 1

    def read(self, batch: Batch) -> Encoded:
        """Return the user vectors (B, D) of the samples of a batch."""
        return Encoded(self._users[batch.rows].to(self._item_vectors.device))

    def score(self, encoded: Encoded) -> Tensor:
        """Return scores (b, V+1); column 0 is -inf."""
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
    """Put a model into eval mode; each of its modules returns to its previous mode afterwards.

    Example:
        >>> model = nn.Dropout()
        >>> with eval_mode(model):
        ...     print(model.training)
        False
        >>> model.training
        True
    """
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    if not any(training for _, training in modes):
        yield
        return
    modes[0][0].eval()
    try:
        yield
    finally:
        for part, training in modes:  # outer modules come first, so that the modes of inner ones are final
            part.train(training)


def evaluate_scorer(
    scorer: Scorer,
    samples: Samples,
    *,
    batch_size: int,
    protocols: tuple[RankingProtocol, ...],
    negatives: NDArray[np.int32] | None = None,
    tie_seed: int | None = TIE_SEED,
    top_lists: Callable[[str, Ints, Ints], None] | None = None,
    progress: Callable[[int], None] | None = None,
    shared: bool = False,
) -> dict[str, Ints]:
    """Return the 0-based rank of the target of each sample under each protocol.

    Args:
        scorer: Scorer of the catalogue. It reads the newest `scorer.max_history_items` items; a protocol that excludes
            the history excludes all of it.
        samples: One sample for each user, as from `Dataset.held_out`.
        batch_size: Number of users encoded at once; they are ranked in blocks whose scores need at most 64 MiB.
        protocols: Ranking protocols.
        negatives: (U, K) items from `draw_negatives`; required for a sampled protocol, and only for one.
        tie_seed: Seed of the order of ties; the same seed orders them alike for all scorers. None: the target is before
            all items with its score.
        top_lists: Function called for each block and each protocol that is not sampled, with the name of the protocol,
            the sample numbers (b,) and the top lists (b, TOP_K): items, best first, the smaller item first among equal
            scores, and 0 where fewer items are left.
        progress: Function called after each block with the number of its users.
        shared: True if all processes of the run call this function, and divide the users among them; `top_lists` and
            `progress` are then called for the users of this process only.

    Returns:
        Ranks (num_samples,) by protocol, in the order of the samples.

    Raises:
        TrainingError: The scores of a user are not finite; the message names the users.
        ValueError: Negatives are missing for a sampled protocol, or given without one.

    Example:
        >>> from slmrec.models.baselines import Popularity
        >>> scorer = EncoderScorer(Popularity.of(dataset))
        >>> ranks = evaluate_scorer(scorer, dataset.held_out("test"), batch_size=64, protocols=("full",))
        >>> len(ranks["full"]) == dataset.num_users
        True
    """
    sampled = [protocol for protocol in protocols if is_sampled(protocol)]
    if sampled != ([] if negatives is None else [f"sampled_{negatives.shape[1]}"]):
        raise ValueError(f"protocols {protocols}: a sampled protocol needs its negatives, and only it takes them")
    ranks = {protocol: np.zeros(len(samples), np.int64) for protocol in protocols}
    draws = np.zeros(len(samples)) if tie_seed is None else tie_draws(len(samples), tie_seed)
    with torch.inference_mode():
        for rows, scores in scored(scorer, samples, batch_size, shared):
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
    if not shared:
        return ranks
    return {protocol: total(torch.from_numpy(values)).numpy() for protocol, values in ranks.items()}


def scored(scorer: Scorer, samples: Samples, batch_size: int, shared: bool) -> Iterator[tuple[Ints, Tensor]]:
    """Yield sample numbers (b,) and their scores (b, V+1) in blocks; the batches that are encoded do not depend on V.

    Args:
        scorer: Scorer of the catalogue.
        samples: The samples.
        batch_size: Number of users encoded at once.
        shared: True if the processes of the run divide the batches among them.

    Raises:
        TrainingError: The scores of a user are not finite.
    """
    batches = _batches(scorer, samples, batch_size)
    for rows, batch in share(batches) if shared else batches:
        read, block = scorer.read(batch), _rows_at_once(scorer)
        for at in range(0, len(rows), block):
            yield rows[at : at + block], _checked(scorer.score(read.select(slice(at, at + block))))


def _batches(scorer: Scorer, samples: Samples, batch_size: int) -> Iterator[tuple[Ints, Batch]]:
    return by_length(samples, batch_size, scorer.max_history_items, False, timestamp_unit_of(scorer))


def _rows_at_once(scorer: Scorer) -> int:
    return max(1, MAX_SCORES // (scorer.num_items + 1))


def _checked(scores: Tensor) -> Tensor:
    if not scores[:, 0].isneginf().all():
        raise ValueError("column 0 of the scores belongs to the padding item: expected -inf")
    return scores


def _candidates(
    protocol: RankingProtocol, scores: Tensor, targets: Tensor, history: Tensor, drawn: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the scores (B, C) of the candidates of a protocol, and the columns (B,) of the targets."""
    columns = targets[:, None]
    if drawn is not None and is_sampled(protocol):
        return scores.gather(1, torch.cat([columns, drawn], dim=1)), torch.zeros_like(columns[:, 0])
    if protocol == "full":
        return scores, columns[:, 0]
    # The padding of histories is item 0, whose score is -inf already.
    masked = scores.scatter(1, history, -torch.inf)
    return masked.scatter_(1, columns, scores.gather(1, columns)), columns[:, 0]


def _top_items(protocol: RankingProtocol, candidates: Tensor, history: Tensor) -> Ints:
    """Return the items (B, TOP_K) with the best scores; the scores of the candidates may be overwritten."""
    if protocol == "full_history_excluded":
        candidates.scatter_(1, history, -torch.inf)  # the target too, if it is in the history
    columns = best_columns(candidates, TOP_K)
    scores, order = candidates.gather(1, columns).sort(dim=1, descending=True, stable=True)
    items = columns.gather(1, order).masked_fill(scores.isneginf(), 0)
    return F.pad(items, (0, TOP_K - items.shape[1])).cpu().numpy()


def throughput(
    scorers: Mapping[str, Scorer], samples: Samples, *, batch_size: int, rounds: int = 3
) -> dict[str, float]:
    """Return the users per second of each scorer: encode, score all items, find the top list.

    The scorers take turns within each round, so that noise of the machine affects all alike; the result is that of the
    median round. Building the batches is not timed. Each scorer has one batch to warm up.

    Args:
        scorers: Scorers by name.
        samples: Samples to encode.
        batch_size: Number of users encoded at once.
        rounds: Number of measurements.

    Example:
        >>> from slmrec.models.baselines import Popularity
        >>> scorers = {"popularity": EncoderScorer(Popularity.of(dataset))}
        >>> speed = throughput(scorers, dataset.held_out("test"), batch_size=64)
        >>> speed["popularity"] > 0
        True
    """
    batches = {name: [batch for _, batch in _batches(scorer, samples, batch_size)] for name, scorer in scorers.items()}
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
                # copying the result to the CPU waits for an accelerator to finish
                scores.topk(min(TOP_K, scorer.num_items), dim=1).indices.cpu()
    return time.perf_counter() - start
