"""Sessions: the state of users that the server keeps between their requests."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from slmrec.inference.ranking import Ranker
from slmrec.types import Encoded


@dataclass(eq=False)
class Session:
    """History of one user, and the model's state after it."""

    history: list[int]
    """Known items, oldest first."""
    pending: list[int]
    """Newest items of the history that the model has not processed yet."""
    times: list[int] | None = field(default_factory=list)
    """Times of the items of the history; None: an event had none, so that only models without times can read it."""
    state: Any = None
    """State of the model's incremental encoding; None before the first item."""
    encoded: Encoded | None = None
    """Output of the model (N = 1) after the processed items; None before the first."""

    def add(self, items: list[int], times: list[int] | None, max_history: int) -> None:
        """Append events and drop the oldest items beyond `max_history`."""
        self.history = [*self.history, *items][-max_history:]
        self.pending = [*self.pending, *items][-max_history:]
        if items:
            self.times = None if self.times is None or times is None else [*self.times, *times][-max_history:]


class Sessions:
    """Sessions by id; beyond `max_sessions`, the least recently used one is evicted."""

    def __init__(self, max_sessions: int, max_history: int) -> None:
        self.max_sessions, self.max_history = max_sessions, max_history
        self.num_evicted = 0
        self._by_id: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._by_id

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    def start(self, session_id: str) -> Session:
        """Return a new session with an empty history; it replaces an existing one."""
        self._by_id[session_id] = session = Session([], [])
        self._by_id.move_to_end(session_id)
        while len(self._by_id) > self.max_sessions:
            self._by_id.popitem(last=False)
            self.num_evicted += 1
        return session

    def resume(self, session_id: str) -> Session:
        """Return the session of an id; start it if it does not exist."""
        if session_id not in self._by_id:
            return self.start(session_id)
        self._by_id.move_to_end(session_id)
        return self._by_id[session_id]

    def find(self, session_id: str) -> Session | None:
        """Return the session of an id, or None; this does not count as a use of the session."""
        return self._by_id.get(session_id)

    def drop(self, session_id: str) -> None:
        """Remove a session if it exists."""
        self._by_id.pop(session_id, None)

    def drop_without_times(self, all_of_them: bool = False) -> None:
        """Remove the sessions whose events have no times, or all sessions."""
        for session_id, session in list(self._by_id.items()):
            if all_of_them or session.times is None:
                self.drop(session_id)

    def translate(self, convert: Callable[[int], int | None]) -> None:
        """Convert all histories to the items of another model, without those it lacks; all items become pending."""
        for session in self._by_id.values():
            converted = [*map(convert, session.history)]
            session.history = [item for item in converted if item is not None]
            if session.times is not None:
                pairs = zip(converted, session.times, strict=True)
                session.times = [time for item, time in pairs if item is not None]
            session.pending, session.state, session.encoded = session.history, None, None


def update_vectors(ranker: Ranker, sessions: list[Session]) -> None:
    """Process the pending items of distinct sessions in one forward pass."""
    outdated = [session for session in sessions if session.pending]
    if not outdated:
        return
    for session in outdated:
        session.state = session.state or ranker.model.new_state()
    times = None
    if ranker.model.timestamp_unit is not None:
        times = [(each.times or [])[-len(each.pending) :] for each in outdated]
    encoded = ranker.append([each.state for each in outdated], [each.pending for each in outdated], times)
    for row, session in enumerate(outdated):
        session.encoded, session.pending = encoded.select(slice(row, row + 1)), []


def is_full(ranker: Ranker, session: Session) -> bool:
    """Return whether the cache holds `max_history_items` items, so that one more event slides the window."""
    is_cached = ranker.model.is_incremental and session.state is not None
    return is_cached and len(session.history) >= ranker.model.max_history_items


def slide_window(ranker: Ranker, session: Session) -> None:
    """Recompute a full cache without its oldest item, which the next event would drop."""
    if is_full(ranker, session):  # the model may have been replaced in the meantime
        ranker.model.slide_window([session.state])
