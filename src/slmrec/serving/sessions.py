"""What is kept of users between their requests."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from slmrec.inference.ranking import Ranker
from slmrec.types import Encoded


@dataclass(eq=False)
class Session:
    """The history of a user, and what the model computed of it."""

    history: list[int]
    """Known items, oldest first."""
    unread: list[int]
    """The newest of these, which the state has not seen."""
    state: Any = None
    """Of the model's incremental encoding; None before the first item."""
    encoded: Encoded | None = None
    """Output of the model (N = 1) after the items read; None before the first."""

    def add(self, items: list[int], max_history: int) -> None:
        """More events; beyond `max_history`, the oldest go."""
        self.history = [*self.history, *items][-max_history:]
        self.unread = [*self.unread, *items][-max_history:]


class Sessions:
    """Sessions by id; beyond `max_sessions`, the one that was not used for longest goes."""

    def __init__(self, max_sessions: int, max_history: int) -> None:
        self.max_sessions, self.max_history = max_sessions, max_history
        self.num_evicted = 0
        self._kept: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._kept

    def __iter__(self) -> Iterator[Session]:
        return iter(self._kept.values())

    def start(self, session_id: str) -> Session:
        """A session without history, instead of one that may have been there."""
        self._kept[session_id] = session = Session([], [])
        self._kept.move_to_end(session_id)
        while len(self._kept) > self.max_sessions:
            self._kept.popitem(last=False)
            self.num_evicted += 1
        return session

    def resume(self, session_id: str) -> Session:
        """The session of an id, or a new one."""
        if session_id not in self._kept:
            return self.start(session_id)
        self._kept.move_to_end(session_id)
        return self._kept[session_id]

    def find(self, session_id: str) -> Session | None:
        """The session of an id, if it is kept; this is no use of it."""
        return self._kept.get(session_id)

    def drop(self, session_id: str) -> None:
        """Forgets a session."""
        self._kept.pop(session_id, None)

    def translate(self, known: Callable[[list[int]], list[int]]) -> None:
        """Turns the items into those of another model, which then reads all of them anew."""
        for session in self._kept.values():
            session.history = known(session.history)
            session.unread, session.state, session.encoded = session.history, None, None


def read(ranker: Ranker, sessions: list[Session]) -> None:
    """Brings the vectors of distinct sessions up to date, in one pass of the model."""
    behind = [session for session in sessions if session.unread]
    if not behind:
        return
    for session in behind:
        session.state = session.state or ranker.model.new_state()
    encoded = ranker.append([each.state for each in behind], [each.unread for each in behind])
    for row, session in enumerate(behind):
        session.encoded, session.unread = encoded.select([row]), []


def is_full(ranker: Ranker, session: Session) -> bool:
    """Whether the state holds as many items as the model reads, so that one more would have them all read again."""
    return (
        ranker.model.is_incremental
        and session.state is not None
        and len(session.history) >= ranker.model.max_history_items
    )


def make_room(ranker: Ranker, session: Session) -> None:
    """Lets a full state read its items again without the oldest one, which the next event would push out."""
    if is_full(ranker, session):  # not if another model has taken over
        ranker.model.slide_window([session.state])
