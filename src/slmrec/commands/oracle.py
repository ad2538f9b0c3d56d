"""The best possible recommender of the simulated shop, as a model to evaluate."""

import numpy as np
import torch
from torch import Tensor

from slmrec.data.dataset import Dataset
from slmrec.data.simulate import Oracle, Shop
from slmrec.evaluation.rank import Scorer
from slmrec.types import Batch, Encoded


class OracleScorer:
    """Scores by the purchase probabilities from which the simulated log was drawn."""

    max_history_items = 1_000_000

    def __init__(self, oracle: Oracle, num_items: int) -> None:
        self._oracle, self.num_items = oracle, num_items

    def read(self, batch: Batch) -> Encoded:
        """Return the scores (B, V+1) of all items in place of user vectors; the catalogue of the shop is small."""
        items, lengths, _ = batch.histories
        return Encoded(torch.from_numpy(np.asarray(self._oracle.scores(items.numpy(), lengths.numpy()))).float())

    def score(self, encoded: Encoded) -> Tensor:
        """Return the scores (B, V+1), minus infinity for the padding item."""
        return encoded.users.index_fill(1, torch.tensor([0]), -torch.inf)


def oracle_scorers(shop: Shop, dataset: Dataset) -> dict[str, Scorer]:
    """Return the oracle by its name in the tables."""
    return {"oracle": OracleScorer(Oracle(shop, dataset.item_ids.to_pylist()), dataset.num_items)}
