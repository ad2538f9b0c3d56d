"""Sampling of items for losses that do not score the whole catalogue."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slmrec.data.dataset import Ints


class ItemSampler:
    """Sampler of items 1..V with probabilities proportional to (count + 1) ** exponent.

    Args:
        counts: (V+1,) number of events of each item; entry 0 is ignored.
        exponent: 1 samples by popularity, 0 uniformly.
    """

    log_q: Tensor
    """(V+1,) float32 log-probability of each item in one draw; -inf for the padding item."""
    seed: int | None = None
    """Seed of every draw; None: the draws continue the random numbers of torch."""

    def __init__(self, counts: Ints, exponent: float) -> None:
        weights = (torch.from_numpy(counts[1:].astype(np.float64)) + 1) ** exponent
        self._cumulative = weights.cumsum(0)  # torch.multinomial accepts at most 2**24 items
        self.log_q = F.pad((weights / self._cumulative[-1]).log().float(), (1, 0), value=-torch.inf)

    def draw(self, num: int) -> Tensor:
        """Return `num` items drawn with replacement, on the CPU."""
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        points = torch.rand(num, dtype=torch.float64, generator=generator) * self._cumulative[-1]
        items = torch.searchsorted(self._cumulative, points, right=True) + 1
        return items.clamp_(max=len(self._cumulative))  # a point may be rounded up to the total
