"""Dynamic batching: what waits together is computed together, by one thread, in the order of arrival."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, TypeVar

from slmrec.serving.refusals import BrokenError, BusyError, RefusalError

Asked = TypeVar("Asked")
Given = TypeVar("Given")
_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job(Generic[Asked, Given]):
    """The histories of one request: all answered or none."""

    queries: Sequence[Asked]
    future: "asyncio.Future[Given]"
    is_taken: bool = False


class Batcher(Generic[Asked, Given]):
    """Takes requests of an event loop to a thread and their answers back.

    No request waits for others to come: while the thread computes, the next batch gathers.

    Args:
        compute: answers the queries of each request.
        max_batch: queries that are computed together, but for a single request with more.
        work_ahead: takes one step of what makes later answers faster; whether there was one to take. It is called when
            nothing waits.
    """

    def __init__(
        self,
        compute: Callable[[list[Sequence[Asked]]], Sequence[Given | RefusalError]],
        max_batch: int,
        work_ahead: Callable[[], bool] = lambda: False,
    ) -> None:
        self._compute, self._max_batch, self._work_ahead = compute, max_batch, work_ahead
        self._waiting: deque[_Job[Asked, Given]] = deque()
        self._changed = Condition()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop
        self._thread = Thread(target=self._run, name="slmrec-batcher", daemon=True)

    def start(self) -> None:
        """Begins to compute; to be called in the event loop that asks."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Computes what is waiting and returns when it is done."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether it computes what comes."""
        return self._thread.is_alive() and not self._is_stopping

    async def submit(self, queries: Sequence[Asked], timeout_s: float) -> Given:
        """The answer to the queries of a request; a cancelled request that still waits is not computed.

        Raises:
            BusyError: it waited too long, and nothing was done.
            RefusalError: whatever the computation answered.
        """
        job = _Job[Asked, Given](queries, self._loop.create_future())
        timer = self._loop.call_later(timeout_s, self._expire, job, timeout_s)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await job.future
        finally:
            timer.cancel()

    def _expire(self, job: _Job[Asked, Given], timeout_s: float) -> None:
        """What is being computed goes on: its answer is near."""
        with self._changed:
            is_late = not job.is_taken and not job.future.done()
        if is_late:
            job.future.set_exception(BusyError(f"waited {timeout_s:g} s without being begun; try again"))

    def _run(self) -> None:
        while jobs := self._next():
            try:
                answers = self._compute([job.queries for job in jobs])
            except Exception:  # one fault must not end the thread that answers everybody
                _LOG.exception("a batch of %d requests failed", len(jobs))
                answers = [BrokenError("the request failed; the server's log says why")] * len(jobs)
            self._loop.call_soon_threadsafe(_deliver, jobs, answers)
            self._use_pause()

    def _use_pause(self) -> None:
        try:
            while not self._waiting and not self._is_stopping and self._work_ahead():
                time.sleep(0)  # lets the event loop hand over what has come meanwhile
        except Exception:
            _LOG.exception("what was to be done ahead failed")

    def _next(self) -> "list[_Job[Asked, Given]]":
        """The next batch; empty when all is done and the end was asked for."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                jobs = self._take()
                if jobs or (self._is_stopping and not self._waiting):
                    return jobs

    def _take(self) -> "list[_Job[Asked, Given]]":
        jobs: list[_Job[Asked, Given]] = []
        size = 0
        while self._waiting and (not size or size + len(self._waiting[0].queries) <= self._max_batch):
            job = self._waiting.popleft()
            if not job.future.done():  # cancelled, or waited too long
                job.is_taken = True
                jobs.append(job)
                size += len(job.queries)
        return jobs


def _deliver(jobs: list[_Job[Asked, Given]], answers: Sequence[Given | RefusalError]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.future.done():
            continue
        if isinstance(answer, RefusalError):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
