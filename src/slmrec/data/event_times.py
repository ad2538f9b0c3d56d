"""Times of the events of a prepared folder, for models that read them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slmrec.data.histories import open_times
from slmrec.types import PER_SECOND, Unit

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EventTimes:
    """Times of all events, user after user, oldest first.

    Example:
        >>> EventTimes("ms", np.array([500, 2_700])).at(np.array([[1, 0]]), "s").tolist()
        [[2, 0]]
    """

    unit: Unit
    """Unit of the stored times."""
    source: Ints | Path
    """Times in this unit, or the prepared folder, whose times are read on first use and memory-mapped."""

    @cached_property
    def stored(self) -> Ints:
        """(events,) times in the stored unit."""
        return open_times(self.source) if isinstance(self.source, Path) else self.source

    def at(self, events: Ints, unit: Unit) -> Ints:
        """Return the times of some events in a unit, rounded down."""
        return in_unit(self.stored[events], self.unit, unit)


def in_unit(times: Ints, unit: Unit, target: Unit) -> Ints:
    """Return times in another unit, rounded down."""
    if PER_SECOND[unit] > PER_SECOND[target]:
        return times // (PER_SECOND[unit] // PER_SECOND[target])
    return times * (PER_SECOND[target] // PER_SECOND[unit])
