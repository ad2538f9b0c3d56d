"""Admission control: a bound on the histories that are accepted but not yet answered."""

from collections.abc import Iterator
from contextlib import contextmanager

from slmrec.serving.http.errors import OverloadedError


class Admission:
    """Counter of waiting histories. It is not thread-safe: only the event loop may use it."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self.num_waiting = 0

    def check(self) -> None:
        """Raise `OverloadedError` if no history at all can be accepted."""
        with self.reserve(1):
            pass

    @contextmanager
    def reserve(self, num_histories: int) -> Iterator[None]:
        """Reserve capacity for the duration of the context.

        Args:
            num_histories: Number of histories to add to the waiting ones.

        Raises:
            OverloadedError: The capacity is exhausted.
        """
        if self.num_waiting + num_histories > self._max_waiting:
            raise OverloadedError(
                f"{self.num_waiting} histories are waiting, at most {self._max_waiting} are allowed; try again later"
            )
        self.num_waiting += num_histories
        try:
            yield
        finally:
            self.num_waiting -= num_histories
