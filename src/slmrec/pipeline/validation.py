"""Validation: how well a model ranks the validation items under the primary protocol, which decides everywhere."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from slmrec.config import Config
from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.candidates import check_negatives, draw_negatives, is_sampled
from slmrec.evaluation.metrics import Ints, ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, eval_mode, evaluate_scorer
from slmrec.pipeline.stage import Task
from slmrec.types import SequenceEncoder

EVAL_BATCH = 256
"""Number of users encoded at once."""


@dataclass(frozen=True)
class Validation:
    """Validation users and the protocol under which their items are ranked."""

    samples: Samples
    protocol: str
    negatives: NDArray[np.int32] | None = None
    """(U, N) sampled negatives, for a sampled protocol."""

    def metrics(self, model: SequenceEncoder) -> dict[str, float]:
        """Return the ranking metrics of a model, which comes back in the mode it was in; all processes take part.

        Raises:
            TrainingError: Scores of a user are not finite.
        """
        return ranking_metrics(self.ranks(model))

    def ranks(self, model: SequenceEncoder) -> Ints:
        """Return the 0-based rank of the target of each user, as `metrics` reads it."""
        with eval_mode(model):
            ranks = evaluate_scorer(
                EncoderScorer(model),
                self.samples,
                batch_size=EVAL_BATCH,
                protocols=(self.protocol,),
                negatives=self.negatives,
                shared=True,
            )
        return ranks[self.protocol]


def validation(task: Task, dataset: Dataset, max_users: int = 0) -> Validation:
    """Return the validation of a step under `evaluate.primary_protocol`.

    Args:
        task: The step.
        dataset: The data set.
        max_users: Number of users, the same ones for a seed; 0: all.
    """
    settings, samples = task.config.evaluate, dataset.held_out("valid")
    if 0 < max_users < len(samples):
        chosen = np.random.default_rng(task.config.seed).choice(len(samples), max_users, replace=False)
        samples = samples.take(chosen)
    negatives = None
    if is_sampled(settings.primary_protocol):
        number = int(settings.primary_protocol.removeprefix("sampled_"))
        negatives = draw_negatives(dataset, number, task.config.seed, samples.users())
    return Validation(samples, settings.primary_protocol, negatives)


def check_sampled_protocols(config: Config, dataset: Dataset) -> None:
    """Check that the data set has enough items for the sampled protocols, before anything is trained.

    Raises:
        DataError: It has too few, or a user has.
    """
    for split, number in product(config.evaluate.splits, config.evaluate.sampled):
        check_negatives(dataset, number, dataset.held_out(split).users())
