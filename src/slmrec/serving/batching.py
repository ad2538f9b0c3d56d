"""Dynamic batching: one thread computes all waiting requests together, in order of arrival."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, TypeVar

from slmrec.serving.http.errors import InternalError, OverloadedError, RequestError

QueryT = TypeVar("QueryT")
AnswerT = TypeVar("AnswerT")
_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job(Generic[QueryT, AnswerT]):
    """Queries of one request, which are answered together or refused together."""

    queries: Sequence[QueryT]
    future: "asyncio.Future[AnswerT]"
    is_started: bool = False


class Batcher(Generic[QueryT, AnswerT]):
    """Queue between an event loop and a computing thread.

    A request never waits for a batch to fill: requests that arrive during a computation form the next batch.

    Args:
        compute: Returns one answer or error per request of a batch.
        max_batch: Maximum number of queries in a batch; a single larger request is a batch of its own.
        idle_work: Called while no request waits. It does one step of work that speeds up later answers, and returns
            whether there may be more to do.
        size_of: Number of queries that the queries of a request count as.
    """

    def __init__(
        self,
        compute: Callable[[list[Sequence[QueryT]]], Sequence[AnswerT | RequestError]],
        max_batch: int,
        idle_work: Callable[[], bool] = lambda: False,
        size_of: Callable[[Sequence[QueryT]], int] = len,
    ) -> None:
        self._compute, self._max_batch, self._idle_work, self._size_of = compute, max_batch, idle_work, size_of
        self._waiting: deque[_Job[QueryT, AnswerT]] = deque()
        self._changed = Condition()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop
        self._thread = Thread(target=self._run, name="slmrec-batcher", daemon=True)

    def start(self) -> None:
        """Start the computing thread; call it from the event loop that submits the requests."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Compute all waiting requests, then stop the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """True if submitted requests will be computed."""
        return self._thread.is_alive() and not self._is_stopping

    async def submit(self, queries: Sequence[QueryT], timeout_s: float) -> AnswerT:
        """Return the answer to the queries of one request; a request that is cancelled while it waits is not computed.

        Args:
            queries: All queries of the request.
            timeout_s: Maximum time until the computation starts.

        Raises:
            OverloadedError: The computation did not start in time.
            RequestError: The computation returned this error.
        """
        job = _Job[QueryT, AnswerT](queries, self._loop.create_future())
        timer = self._loop.call_later(timeout_s, self._expire, job, timeout_s)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await job.future
        finally:
            timer.cancel()

    def _expire(self, job: _Job[QueryT, AnswerT], timeout_s: float) -> None:
        """Refuse a job that is still waiting; a job that is being computed is left alone."""
        with self._changed:
            is_late = not job.is_started and not job.future.done()
        if is_late:
            job.future.set_exception(OverloadedError(f"the request waited longer than {timeout_s:g} s; try again"))

    def _run(self) -> None:
        while jobs := self._next():
            try:
                answers = self._compute([job.queries for job in jobs])
            except Exception:  # one failure must not end the thread that answers everybody
                _LOG.exception("serve: a batch of %d requests failed", len(jobs))
                answers = [InternalError("the request failed; see the log of the server")] * len(jobs)
            self._loop.call_soon_threadsafe(_deliver, jobs, answers)
            self._use_idle_time()

    def _use_idle_time(self) -> None:
        try:
            while not self._waiting and not self._is_stopping and self._idle_work():
                time.sleep(0)  # lets the event loop enqueue requests
        except Exception:
            _LOG.exception("serve: work between two batches failed")

    def _next(self) -> "list[_Job[QueryT, AnswerT]]":
        """Return the next batch; it is empty only after `stop` when nothing waits."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                jobs = self._take()
                if jobs or (self._is_stopping and not self._waiting):
                    return jobs

    def _take(self) -> "list[_Job[QueryT, AnswerT]]":
        jobs: list[_Job[QueryT, AnswerT]] = []
        size = 0
        while self._waiting and (not size or size + self._size_of(self._waiting[0].queries) <= self._max_batch):
            job = self._waiting.popleft()
            if not job.future.done():  # done: cancelled or expired
                job.is_started = True
                jobs.append(job)
                size += self._size_of(job.queries)
        return jobs


def _deliver(jobs: list[_Job[QueryT, AnswerT]], answers: Sequence[AnswerT | RequestError]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.future.done():
            continue
        if isinstance(answer, RequestError):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
