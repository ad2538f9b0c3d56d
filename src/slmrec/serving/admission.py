"""How much may be under way."""

from collections.abc import Iterator
from contextlib import contextmanager

from slmrec.serving.refusals import BusyError


class Admission:
    """Room for histories that were accepted and are not answered yet; used by the event loop alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.num_waiting = 0

    @contextmanager
    def room(self, number: int) -> Iterator[None]:
        """Takes room for the time of the context.

        Raises:
            BusyError: there is none.
        """
        if self.num_waiting + number > self._most:
            raise BusyError(f"{self.num_waiting} histories are waiting, {self._most} at most may; try again later")
        self.num_waiting += number
        try:
            yield
        finally:
            self.num_waiting -= number
