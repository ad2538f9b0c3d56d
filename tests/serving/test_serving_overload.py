"""What is too much is told at once, and the server is well again afterwards."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from servers import LIMITS, Client, serving

from slmrec.errors import ConfigError
from slmrec.serving.limits import Limits

pytestmark = pytest.mark.heavy

Slow = Callable[[Client, float], None]


def test_a_full_queue_is_told_and_recovers(student: Path, slowed: Slow) -> None:
    with serving(student, replace(LIMITS, max_requests=4, max_waiting=4, max_batch=1)) as client:
        slowed(client, 0.1)
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda n: client.ask("/recommend", {"history": [f"i{n:02d}"]}), range(24)))
        shed = [answer for answer in answers if answer[0] == 503]
        assert {answer[0] for answer in answers} == {200, 503} and len(shed) >= 12
        for _, headers, content in shed:
            assert headers["retry-after"] == "1"
            assert content["error"] == "4 histories are waiting, at most 4 are allowed; try again later"
        assert client.recommend(history=["i01"])["items"]
        assert client.server._admission.num_waiting == 0


def test_many_histories_count_as_many(student: Path) -> None:
    with serving(student, replace(LIMITS, max_requests=8, max_waiting=8)) as client:
        assert len(client.recommend(requests=[{"history": []}] * 8)["answers"]) == 8
        client.server._admission.num_waiting = 1
        status, _, content = client.ask("/recommend", {"requests": [{"history": []}] * 8})
        assert (status, content["error"]) == (503, "1 histories are waiting, at most 8 are allowed; try again later")
        client.server._admission.num_waiting = 0


def test_what_waits_too_long_is_given_up_and_not_done(student: Path, slowed: Slow) -> None:
    with serving(student, replace(LIMITS, timeout_s=0.5, max_batch=1)) as client:
        slowed(client, 1.2)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.ask, "/recommend", {"history": ["i01"]})
            time.sleep(0.2)
            late = pool.submit(client.ask, "/recommend", {"session_id": "s", "events": ["i01"]})
            assert first.result()[0] == 200  # was begun in time
            status, headers, content = late.result()
        assert (status, headers["retry-after"]) == (503, "1")
        assert content["error"] == "the request waited longer than 0.5 s; try again"
        assert client.recommend(session_id="s", events=[])["session"]["new"]


def test_a_client_that_goes_away_is_not_computed_for(student: Path, slowed: Slow) -> None:
    with serving(student, replace(LIMITS, max_batch=1)) as client:
        slowed(client, 0.5)
        body = b'{"session_id": "gone", "events": ["i01"]}'
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.ask, "/recommend", {"history": ["i01"]})
            time.sleep(0.2)
            with socket.create_connection(("127.0.0.1", client.port)) as gone:
                head = f"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                gone.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
                time.sleep(0.1)
            assert first.result()[0] == 200
        assert client.recommend(session_id="gone", events=[])["session"]["new"]
        assert client.server._admission.num_waiting == 0


def test_a_slow_body_is_given_up(student: Path) -> None:
    with (
        serving(student, replace(LIMITS, timeout_s=0.3)) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=10) as slow,
    ):
        slow.sendall(
            b"POST /recommend HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"
        )
        answer = b""
        while b"}" not in answer:
            answer += slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408") and b"the body did not arrive within 0.3 s" in answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_k": 0}, "--max-k is 0; give a number above 0"),
        ({"timeout_s": -1.0}, "--timeout-s is -1.0; give a number above 0"),
        (
            {"max_waiting": 9},
            "--max-waiting is 9, less than --max-requests 256, .*; raise the first or lower",
        ),
    ],
)
def test_impossible_limits_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Limits(**options)  # type: ignore[arg-type]
