"""The queue by itself: what it does in its pauses."""

import asyncio
import logging
from threading import Event

import pytest

from slmrec.serving.batching import Batcher


def sums(jobs: list[list[int]]) -> list[int]:
    return [sum(job) for job in jobs]


def test_pauses_are_used_until_nothing_is_left_to_do() -> None:
    steps: list[int] = []
    is_done = Event()

    def work_ahead() -> bool:
        steps.append(len(steps))
        if len(steps) == 3:
            is_done.set()
        return len(steps) < 3

    async def ask() -> int:
        batcher = Batcher(sums, 4, work_ahead)
        batcher.start()
        answer = await batcher.submit([1, 2], 10.0)
        assert await asyncio.to_thread(is_done.wait, 60)
        await asyncio.to_thread(batcher.stop)
        return answer

    assert asyncio.run(ask()) == 3
    assert steps == [0, 1, 2]


def test_what_fails_in_a_pause_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    has_failed = Event()

    def work_ahead() -> bool:
        has_failed.set()
        raise ZeroDivisionError("of the test")

    async def ask() -> list[int]:
        batcher = Batcher(sums, 4, work_ahead)
        batcher.start()
        first = await batcher.submit([1], 10.0)
        assert await asyncio.to_thread(has_failed.wait, 60)
        second = await batcher.submit([2], 10.0)
        await asyncio.to_thread(batcher.stop)
        return [first, second]

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(ask()) == [1, 2]
    assert "work between two batches failed" in caplog.text and "of the test" in caplog.text


def test_jobs_that_count_more_fill_a_batch_earlier() -> None:
    batches: list[list[list[int]]] = []

    def compute(jobs: list[list[int]]) -> list[int]:
        batches.append(jobs)
        return sums(jobs)

    async def ask() -> list[int]:
        batcher = Batcher(compute, 4, size_of=sum)
        batcher._loop = asyncio.get_running_loop()  # all jobs wait before the first batch
        waiting = [asyncio.create_task(batcher.submit([size], 10.0)) for size in (3, 2, 1, 1, 9)]
        await asyncio.sleep(0)
        batcher.start()
        answers = [await each for each in waiting]
        await asyncio.to_thread(batcher.stop)
        return answers

    assert asyncio.run(ask()) == [3, 2, 1, 1, 9]
    assert batches == [[[3]], [[2], [1], [1]], [[9]]]
