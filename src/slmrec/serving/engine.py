"""Engine of one served model: batched answers to many requests, and replacement of the model while it serves."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from reprlib import repr as shortened
from threading import Lock
from typing import Any

from slmrec.errors import ConfigError
from slmrec.inference.because import NUM_REASONS, Reason, reasons_of
from slmrec.inference.catalogue import ItemIdError
from slmrec.inference.ranking import Ranked, RankRequest
from slmrec.inference.rules.effect import RuleEffect
from slmrec.inference.timestamps import needed
from slmrec.serving.http.errors import InvalidRequestError, RequestError
from slmrec.serving.limits import Limits
from slmrec.serving.loading import LoadedModel
from slmrec.serving.messages import ModelName, Query
from slmrec.serving.sessions import Session, Sessions, is_full, slide_window, update_vectors
from slmrec.serving.titles import TitleIndex


class ActiveModel:
    """Loaded model with its catalogue, ranker and title index; it is replaced as a whole."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.catalogue = loaded.recommender.catalogue
        self.ranker = loaded.recommender.ranker
        self.titles = TitleIndex(self.catalogue)


@dataclass(eq=False)
class Result:
    """Ranked items of one query, with the model that ranked them."""

    ranked: Ranked
    unknown: list[Any]
    num_items: int
    """Number of items of the history or the events, known and unknown."""
    fallback: bool
    session: dict[str, Any] | None
    active: ActiveModel
    reasons: list[list[Reason]] | None = None
    """Reasons of each ranked item; None: not asked for."""

    def to_answer(self, model: ModelName, time_ms: float) -> dict[str, Any]:
        """Return the fields of `messages.Answer`."""
        described, has_text_ids = self.active.catalogue.described, self.active.catalogue.has_text_json_ids
        return {
            "items": [
                {**described(item), "score": score, "rank": rank, **self._because(rank)}
                for rank, (item, score) in enumerate(self.ranked, 1)
            ],
            "unknown_items": list(map(str, self.unknown)) if has_text_ids else self.unknown,
            "unknown_share": round(len(self.unknown) / max(1, self.num_items), 4),
            "fallback": self.fallback,
            "session": self.session,
            "model": model,
            "model_version": self.active.loaded.version,
            "time_ms": round(time_ms, 2),
        }

    def _because(self, rank: int) -> dict[str, Any]:
        if self.reasons is None:
            return {}
        described = self.active.catalogue.described
        return {"because": [{**described(each.item), "share": each.share} for each in self.reasons[rank - 1]]}


@dataclass(eq=False)
class _Task:
    """Query with item ids mapped to the items of the model."""

    query: Query
    items: list[int]
    """Known items of the history or the events."""
    times: list[int] | None
    """Times of these items; None: not given."""
    unknown: list[Any]
    excluded: list[int]
    candidates: list[int] | None
    rules: RuleEffect | None
    session: Session = field(init=False)
    is_new: bool = False
    result: Result = field(init=False)


class Engine:
    """Answers batches of requests in one thread; `replace` may be called from any thread."""

    def __init__(self, loaded: LoadedModel, limits: Limits) -> None:
        self.active = ActiveModel(loaded)
        self._max_history = limits.max_history
        self.sessions = Sessions(limits.max_sessions, self._session_length(loaded))
        self._full: deque[str] = deque(maxlen=limits.max_sessions)
        """Ids of sessions whose cache is full, most recent last."""
        self._lock = Lock()

    def replace(self, loaded: LoadedModel) -> None:
        """Serve another model from the next batch on; sessions keep the items that the new model knows.

        A model that reads times drops sessions without times, or with times in another unit.
        """
        active = ActiveModel(loaded)
        with self._lock:
            previous, self.active = self.active, active
            self.sessions.max_history = self._session_length(loaded)
            unit = active.ranker.model.timestamp_unit
            if unit is not None:
                is_other = previous.ranker.model.timestamp_unit not in (None, unit)
                self.sessions.drop_without_times(all_of_them=is_other)
            numbers = active.catalogue.items
            texts = [str(item_id) for item_id in previous.catalogue.item_ids]
            self.sessions.translate(lambda item: numbers.get(texts[item - 1]))

    def _session_length(self, loaded: LoadedModel) -> int:
        """Return the number of items kept per session, at least as many as the cache of the model holds."""
        max_cached: int = loaded.recommender.model.max_history_items
        return max(self._max_history, max_cached)

    def answer(self, requests: list[Sequence[Query]]) -> list[list[Result] | RequestError]:
        """Return for each request the results of all its queries, or an error."""
        with self._lock:
            prepared = [self._prepare(queries) for queries in requests]
            tasks = [task for request in prepared if not isinstance(request, RequestError) for task in request]
            for distinct in _split_by_session(tasks):
                self._process(distinct)
        return [
            request if isinstance(request, RequestError) else [task.result for task in request] for request in prepared
        ]

    def drop_session(self, session_id: str) -> bool:
        """Remove a session, between two batches, and return whether there was one."""
        with self._lock:
            exists = session_id in self.sessions
            self.sessions.drop(session_id)
            return exists

    def read_ahead(self) -> bool:
        """Slide the window of one full session, so that its next event is answered faster.

        Returns:
            False if no session was waiting for it.
        """
        with self._lock:
            if not self._full:
                return False
            session = self.sessions.find(self._full.pop())
            if session is not None:
                slide_window(self.active.ranker, session)
            return True

    def _prepare(self, queries: Sequence[Query]) -> list[_Task] | RequestError:
        try:
            return [self._task(query, number if len(queries) > 1 else None) for number, query in enumerate(queries)]
        except InvalidRequestError as error:
            return error

    def _task(self, query: Query, number: int | None) -> _Task:
        prefix = "" if number is None else f"requests[{number}]."

        def split(name: str) -> tuple[list[int], list[Any]]:
            try:
                return self.active.catalogue.split(getattr(query, name) or ())
            except ItemIdError as error:
                place = f"{prefix}{name}[{error.position}]"
                raise InvalidRequestError(f"{place} is {shortened(error.value)}: {error.reason}") from None

        items, unknown = split("events" if query.history is None else "history")
        times = None if query.timestamps is None else [*map(int, query.timestamps)]
        unit = self.active.ranker.model.timestamp_unit
        if unit is not None and query.item_ids and times is None:
            raise InvalidRequestError(f"{prefix}timestamps: {needed(unit, 'give the time of each item')}")
        if times and unknown:
            times = self.active.catalogue.times_of_known(query.item_ids, times)
        candidates, unknown_candidates = split("candidates")
        if unknown_candidates:
            raise InvalidRequestError(
                f"{prefix}candidates: {unknown_candidates[0]!r} is not in the catalogue "
                f"({len(unknown_candidates)} unknown in total)"
            )
        excluded, _ = split("exclude")
        recommender = self.active.loaded.recommender
        try:
            recommender.ranker.check_diversity(query.diversity)
            rules = recommender.rules.effect(query.rules)
        except ConfigError as error:
            raise InvalidRequestError(f"{prefix}{error}") from None
        return _Task(query, items, times, unknown, excluded, None if query.candidates is None else candidates, rules)

    def _process(self, tasks: list[_Task]) -> None:
        """Process tasks of distinct sessions: one forward pass for whole histories and one for sessions."""
        try:
            for task in tasks:
                self._open_session(task)
            self._rank(tasks)
        except Exception:  # the states of these sessions may be inconsistent now
            for task in tasks:
                self.sessions.drop(task.query.session_id or "")
            raise

    def _open_session(self, task: _Task) -> None:
        """Append the new events to the session; a query without a session id gets a temporary one."""
        session_id, sessions = task.query.session_id, self.sessions
        if session_id is None:
            task.session = Session(task.items, [], task.times)
            return
        task.is_new = session_id not in sessions
        has_history = task.query.history is not None
        task.session = sessions.start(session_id) if has_history else sessions.resume(session_id)
        task.session.add(task.items, task.times, sessions.max_history)

    def _rank(self, tasks: list[_Task]) -> None:
        ranker = self.active.ranker
        kept = {task.query.session_id: task.session for task in tasks if task.query.session_id is not None}
        update_vectors(ranker, list(kept.values()))
        self._full.extend(session_id for session_id, session in kept.items() if is_full(ranker, session))
        whole = [task.session for task in tasks if task.query.session_id is None and task.items]
        if whole:
            times = None if ranker.model.timestamp_unit is None else [each.times or [] for each in whole]
            encoded = ranker.encode([each.history for each in whole], times)
            for row, session in enumerate(whole):
                session.encoded = encoded.select(slice(row, row + 1))
        lists = ranker.rank_users([_request(task) for task in tasks], [task.session.encoded for task in tasks])
        for task, ranked in zip(tasks, lists, strict=True):
            num_items, is_fallback = len(task.items) + len(task.unknown), task.session.encoded is None
            info = _session_info(task)
            task.result = Result(ranked, task.unknown, num_items, is_fallback, info, self.active)
        self._explain([task for task in tasks if task.query.because])

    def _explain(self, tasks: list[_Task]) -> None:
        """Add the reasons to the results of some tasks."""
        ranker, sessions = self.active.ranker, [task.session for task in tasks]
        times = None if ranker.model.timestamp_unit is None else [each.times or [] for each in sessions]
        ranked = [task.result.ranked for task in tasks]
        found = reasons_of(ranker, [each.history for each in sessions], times, ranked, NUM_REASONS)
        for task, reasons in zip(tasks, found, strict=True):
            task.result.reasons = reasons


def _request(task: _Task) -> RankRequest:
    seen = task.session.history if task.query.filter_seen else []
    query = task.query
    return RankRequest(query.k, [*seen, *task.excluded], task.candidates, task.rules, query.diversity)


def _session_info(task: _Task) -> dict[str, Any] | None:
    if task.query.session_id is None:
        return None
    return {"session_id": task.query.session_id, "new": task.is_new, "num_items": len(task.session.history)}


def _split_by_session(tasks: list[_Task]) -> Iterator[list[_Task]]:
    """Yield groups of tasks, in order, such that a group contains each session at most once."""
    while tasks:
        group: list[_Task] = []
        postponed: list[_Task] = []
        session_ids: set[str] = set()
        for task in tasks:
            session_id = task.query.session_id
            (postponed if session_id in session_ids else group).append(task)
            if session_id is not None:
                session_ids.add(session_id)
        yield group
        tasks = postponed
