"""One served model: from queries of many requests to lists, and the exchange of the model while it serves."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from slmrec.inference.ranking import Ranked, RankRequest
from slmrec.serving.limits import Limits
from slmrec.serving.loading import Loaded
from slmrec.serving.messages import ModelName, Query
from slmrec.serving.refusals import InvalidError, RefusalError
from slmrec.serving.sessions import Session, Sessions, is_full, make_room, read
from slmrec.serving.titles import TitleIndex

_SHOWN_UNKNOWN = 10


class Serving:
    """A loaded model with all that is derived from it; replaced as a whole."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.catalogue = loaded.recommender.catalogue
        self.ranker = loaded.recommender.ranker
        self.titles = TitleIndex(self.catalogue)


@dataclass(eq=False)
class Found:
    """The answer to one query, before it is written out."""

    ranked: Ranked
    unknown: list[Any]
    fallback: bool
    session: dict[str, Any] | None
    serving: Serving

    def written(self, model: ModelName, time_ms: float) -> dict[str, Any]:
        """As `messages.Answer`."""
        described = self.serving.catalogue.described
        return {
            "items": [
                {**described(item), "score": score, "rank": rank} for rank, (item, score) in enumerate(self.ranked, 1)
            ],
            "num_unknown": len(self.unknown),
            "unknown": self.unknown[:_SHOWN_UNKNOWN],
            "fallback": self.fallback,
            "session": self.session,
            "model": model,
            "model_version": self.serving.loaded.version,
            "time_ms": round(time_ms, 2),
        }


@dataclass(eq=False)
class _Task:
    """A query in the terms of the model."""

    query: Query
    items: list[int]
    """Known ones of history or events."""
    unknown: list[Any]
    excluded: list[int]
    candidates: list[int] | None
    session: Session = field(init=False)
    is_new: bool = False
    found: Found = field(init=False)


class Engine:
    """Answers batches of requests in one thread; `replace` may be called from any other."""

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self.serving = Serving(loaded)
        self._max_history = limits.max_history
        self.sessions = Sessions(limits.max_sessions, self._kept_history(loaded))
        self._full: deque[str] = deque(maxlen=limits.max_sessions)
        """Ids of sessions to make room in, the latest one last."""
        self._lock = Lock()

    def replace(self, loaded: Loaded) -> None:
        """Serves another model from the next batch on; sessions go on with the items that it knows."""
        serving = Serving(loaded)
        with self._lock:
            before, self.serving = self.serving.catalogue, serving
            self.sessions.max_history = self._kept_history(loaded)
            self.sessions.translate(lambda items: serving.catalogue.known(before.item_ids[item - 1] for item in items))

    def _kept_history(self, loaded: Loaded) -> int:
        """Items kept of a session: what a request may give, or what the model reads, since its state holds those."""
        return max(self._max_history, loaded.recommender.model.max_history_items)

    def answer(self, requests: list[Sequence[Query]]) -> list[list[Found] | RefusalError]:
        """The answers to each request, all of its queries or a refusal."""
        with self._lock:
            prepared = [self._prepared(queries) for queries in requests]
            tasks = [task for request in prepared if not isinstance(request, RefusalError) for task in request]
            for some in _rounds(tasks):
                self._fulfil(some)
        return [
            request if isinstance(request, RefusalError) else [task.found for task in request] for request in prepared
        ]

    def read_ahead(self) -> bool:
        """Makes room in one full session, so that its next event is answered sooner; whether there was one."""
        with self._lock:
            if not self._full:
                return False
            session = self.sessions.find(self._full.pop())
            if session is not None:
                make_room(self.serving.ranker, session)
            return True

    def _prepared(self, queries: Sequence[Query]) -> list[_Task] | RefusalError:
        try:
            return [self._task(query, number if len(queries) > 1 else None) for number, query in enumerate(queries)]
        except InvalidError as error:
            return error

    def _task(self, query: Query, number: int | None) -> _Task:
        catalogue = self.serving.catalogue
        given = [*(query.history or ()), *(query.events or ())]
        unknown_candidates = catalogue.unknown(query.candidates or ())
        if unknown_candidates:
            place = "candidates" if number is None else f"requests[{number}].candidates"
            raise InvalidError(
                f"{place}: {unknown_candidates[0]!r} is not in the catalogue ({len(unknown_candidates)} unknown in all)"
            )
        candidates = None if query.candidates is None else catalogue.known(query.candidates)
        return _Task(
            query, catalogue.known(given), catalogue.unknown(given), catalogue.known(query.exclude), candidates
        )

    def _fulfil(self, tasks: list[_Task]) -> None:
        """Tasks of distinct sessions, with one pass of the model for whole histories and one for sessions."""
        try:
            for task in tasks:
                self._open_session(task)
            self._rank(tasks)
        except Exception:  # what the sessions hold is unsure now
            for task in tasks:
                self.sessions.drop(task.query.session_id or "")
            raise

    def _open_session(self, task: _Task) -> None:
        """Adds the new events to the session; a whole history is one that is not kept."""
        name, sessions = task.query.session_id, self.sessions
        if name is None:
            task.session = Session(task.items, [])
            return
        task.is_new = name not in sessions
        task.session = sessions.start(name) if task.query.history is not None else sessions.resume(name)
        task.session.add(task.items, sessions.max_history)

    def _rank(self, tasks: list[_Task]) -> None:
        ranker = self.serving.ranker
        kept = {task.query.session_id: task.session for task in tasks if task.query.session_id is not None}
        read(ranker, list(kept.values()))
        self._full.extend(name for name, session in kept.items() if is_full(ranker, session))
        whole = [task.session for task in tasks if task.query.session_id is None and task.items]
        if whole:
            encoded = ranker.encode([each.history for each in whole])
            for row, session in enumerate(whole):
                session.encoded = encoded.select([row])
        lists = ranker.rank_users([_request(task) for task in tasks], [task.session.encoded for task in tasks])
        for task, ranked in zip(tasks, lists, strict=True):
            task.found = Found(ranked, task.unknown, task.session.encoded is None, _session_info(task), self.serving)


def _request(task: _Task) -> RankRequest:
    seen = task.session.history if task.query.filter_seen else []
    return RankRequest(task.query.k, [*seen, *task.excluded], task.candidates)


def _session_info(task: _Task) -> dict[str, Any] | None:
    if task.query.session_id is None:
        return None
    return {"session_id": task.query.session_id, "new": task.is_new, "num_items": len(task.session.history)}


def _rounds(tasks: list[_Task]) -> Iterator[list[_Task]]:
    """Tasks in order, such that none meets another one of its session."""
    while tasks:
        some: list[_Task] = []
        later: list[_Task] = []
        taken: set[str] = set()
        for task in tasks:
            name = task.query.session_id
            (later if name in taken else some).append(task)
            if name is not None:
                taken.add(name)
        yield some
        tasks = later
