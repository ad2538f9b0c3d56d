"""Slices of the users of an evaluation: by the training events of the target item, and by the length of the history."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slmrec.evaluation.metrics import Ints
from slmrec.evaluation.statistics import Floats, bootstrap_interval
from slmrec.studies.evaluated import Evaluated

Bools = NDArray[np.bool_]
SLICES: dict[str, tuple[tuple[int, str], ...]] = {
    "target_count": ((0, " (never trained on)"), (1, " (rare)"), (5, ""), (21, "")),
    "history_length": ((1, " (short)"), (6, ""), (21, ""), (101, "")),
}
"""Smallest value of each slice, and a remark on it, by the column of `Evaluated` that decides. The bounds are the same
for every data set, so that slices of different runs can be compared."""


class Slice(NamedTuple):
    """Users of one slice."""

    name: str
    """Range of values, such as `1-4 (rare)`."""
    users: Bools
    """(num_users,)."""


class SliceMean(NamedTuple):
    """Mean of a metric over the users of a slice, and its interval."""

    name: str
    num_users: int
    mean: float
    low: float
    high: float


def slices_of(evaluated: Evaluated) -> dict[str, list[Slice]]:
    """Return the slices that have users, by column.

    Args:
        evaluated: Ranks of a model, with the history length and the training events of the target of each user.

    Example:
        >>> import pyarrow as pa
        >>> from pathlib import Path
        >>> rows = pa.table({"user_id": [7, 8], "history_length": [3, 9], "target_count": [2, 0], "rank": [4, 0]})
        >>> evaluated = Evaluated(Path("out"), "student", "full", "valid", {}, rows)
        >>> [one.name for one in slices_of(evaluated)["history_length"]]
        ['1-5 (short)', '6-20']
    """
    return {by: cut(evaluated.column(by), bounds) for by, bounds in SLICES.items()}


def cut(values: Ints, bounds: tuple[tuple[int, str], ...]) -> list[Slice]:
    """Return the slices of some values that are not empty.

    Args:
        values: (num_users,) whole numbers.
        bounds: Smallest value of each slice, in increasing order, and a remark.

    Example:
        >>> [one.name for one in cut(np.array([0, 2, 9, 30]), SLICES["target_count"])]
        ['0 (never trained on)', '1-4 (rare)', '5-20', 'more than 20']
    """
    number = np.searchsorted([low for low, _ in bounds], values, side="right") - 1
    ends = [low for low, _ in bounds[1:]]
    names = [f"{low}-{end - 1}" if end - 1 > low else str(low) for (low, _), end in zip(bounds, ends, strict=False)]
    names.append(f"more than {bounds[-1][0] - 1}")
    slices = [Slice(name + bounds[place][1], number == place) for place, name in enumerate(names)]
    return [one for one in slices if one.users.any()]


def slice_means(evaluated: Evaluated, values: Floats) -> dict[str, list[SliceMean]]:
    """Return the mean of a metric in each slice, with a bootstrap interval over the users, by column.

    Args:
        evaluated: Evaluation whose users are sliced.
        values: (num_users,) metric of each user, in the same order.

    Example:
        >>> import pyarrow as pa
        >>> from pathlib import Path
        >>> rows = pa.table({"user_id": [7, 8], "history_length": [3, 9], "target_count": [2, 0], "rank": [4, 0]})
        >>> evaluated = Evaluated(Path("out"), "student", "full", "valid", {}, rows)
        >>> [(one.name, one.mean) for one in slice_means(evaluated, evaluated.metrics["hit@1"])["target_count"]]
        [('0 (never trained on)', 1.0), ('1-4 (rare)', 0.0)]
    """
    return {
        by: [SliceMean(name, int(users.sum()), *_mean_and_interval(values[users])) for name, users in slices]
        for by, slices in slices_of(evaluated).items()
    }


def _mean_and_interval(values: Floats) -> tuple[float, float, float]:
    return float(values.mean()), *bootstrap_interval(values)
