"""Connections: answers leave at once, and clients that misbehave cost little."""

import http.client
import json
import logging
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import LIMITS, Client, serving

from slmrec.serving import run
from slmrec.serving.limits import Limits

HEAD = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
STRICT = replace(
    LIMITS,
    timeout_s=1.0,
    max_connections=8,
    max_header_bytes=2000,
    max_headers=20,
    max_unsent_bytes=60_000,
    max_unread_bytes=1 << 20,
)


@pytest.fixture(scope="module")
def strict(student: Path) -> Iterator[Client]:
    with serving(student, STRICT) as client:
        yield client


def connect(client: Client, *sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=60)
    connection.sendall(b"".join(sent))
    return connection


def read_all(connection: socket.socket) -> tuple[int, str]:
    """Status of the answer, and all text until the server closes the connection."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    connection.close()
    return int(data[9:12] or b"0"), data.decode()


def test_answers_on_a_kept_connection_come_at_once(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    times = []
    for _ in range(40):
        started = time.perf_counter()
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"alive"}'
        times.append(time.perf_counter() - started)
    connection.close()
    assert sorted(times)[10] < 0.02  # a delayed acknowledgement takes 0.04 s


def test_head_and_body_leave_together(client: Client) -> None:
    with connect(client, GET, b"\r\n") as connection:
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b'{"status":"alive"}')
    assert b"x-content-type-options: nosniff\r\n" in answer


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ([GET, b"X: a\r\n" * 30, b"\r\n"], 431, "the request has more than 20 headers"),
        ([GET, b"X: ", b"a" * 3000, b"\r\n\r\n"], 431, "the address and the headers have more than 2000 bytes"),
        ([GET, b"X: ", b"a" * 3000], 431, "the address and the headers have more than 2000 bytes"),
        ([b"GET /items?q=", b"a" * 3000, b" HTTP/1.1\r\n\r\n"], 431, "more than 2000 bytes"),
        ([HEAD, b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: ", b"a" * 600_000], 431, "more than 2000 bytes"),
        ([HEAD, b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 600_000], 431, "more than 2000 bytes"),
        ([b"nonsense\r\n\r\n"], 400, "the request is not valid HTTP/1.1"),
        ([GET, b"\r\n"] * 30, 503, "more than 16 requests were sent before the first was answered"),
        ([HEAD, b"Content-Length: 20001\r\n\r\n"], 413, "the body has more than 20000 bytes"),
        ([HEAD, b"Content-Length: 100000\r\n\r\n", b" " * 100_000], 413, "the body has more than 20000 bytes"),
        ([HEAD, b"Content-Length: 90\r\n\r\n{"], 408, "the body did not arrive within 1 s"),
        ([b"GET /hea"], 408, "the head of the request did not arrive within 1 s"),
        ([b""], 0, ""),
    ],
)
def test_a_refused_request_closes_its_connection(
    strict: Client, sent: list[bytes], status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.perf_counter()
    answered, text = read_all(connect(strict, *sent))
    assert (answered, message in text) == (status, True), text
    assert status == 0 or text.lower().count("connection: close") == 1
    assert time.perf_counter() - started < 30
    assert strict.get("/health")
    assert caplog.records == []


def test_a_body_that_is_not_awaited_is_not_taken_for_a_request(strict: Client) -> None:
    smuggled = GET + b"\r\n"
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
    status, text = read_all(connect(strict, head, smuggled))
    assert (status, text.count("HTTP/1.1")) == (404, 1)


def test_connections_beyond_the_limit_replace_those_that_wait(strict: Client) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect(strict)) for _ in range(20)]
        assert strict.get("/health")
        assert waiting[0].recv(100) == b""
    with ExitStack() as stack:
        busy = [stack.enter_context(connect(strict, HEAD, b"Content-Length: 90\r\n\r\n{")) for _ in range(8)]
        time.sleep(0.3)
        status, text = read_all(connect(strict, GET, b"\r\n"))
        assert (status, "8 connections are open, no more are allowed; try again later" in text) == (503, True)
        assert busy[0].recv(12) == b"HTTP/1.1 408"
    assert strict.get("/health")


def test_bodies_that_do_not_arrive_make_room_for_others(strict: Client) -> None:
    with ExitStack() as stack:
        parts = (HEAD, b"Content-Length: 20000\r\n\r\n", b" " * 19_000)
        slow = [stack.enter_context(connect(strict, *parts)) for _ in range(4)]
        assert slow[0].recv(12) == b"HTTP/1.1 408"
        assert strict.recommend(history=["i01"])["items"]


def test_clients_that_leave_are_not_logged(strict: Client, caplog: pytest.LogCaptureFixture) -> None:
    partial = (HEAD, b"Content-Length: 90\r\n\r\n{")
    whole = (HEAD, b'Content-Length: 19\r\n\r\n{"history":["i01"]}')
    for sent in (partial, whole, (GET, b"\r\n"), (GET,), (b"",), (HEAD.replace(b"recommend", b"reload"), *partial[1:])):
        for reset in (False, True):
            with connect(strict, *sent) as connection:
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert strict.get("/health")
    time.sleep(0.2)
    assert caplog.records == []
    assert strict.server._admission.num_waiting == 0


def test_answers_that_are_not_read_are_given_up(student: Path) -> None:
    limits = replace(LIMITS, timeout_s=1.0, max_unread_bytes=1 << 20, max_requests=64, max_waiting=4096)
    body = json.dumps({"requests": [{"history": ["i01"], "k": 40}] * 64}).encode()
    request = b"%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(body), body)
    with serving(student, limits) as client, ExitStack() as stack:
        for _ in range(10):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stack.enter_context(connection)
            connection.connect(("127.0.0.1", client.port))
            connection.settimeout(60)
            connection.sendall(request * 12)
        assert client.get("/health")
        deadline = time.perf_counter() + 60
        while len(client.connections) > 1:
            unread = sum(each.transport.get_write_buffer_size() for each in client.connections)
            assert unread < 4 << 20 and time.perf_counter() < deadline
            time.sleep(0.1)


def test_refused_bodies_are_cheap(client: Client) -> None:
    many = {
        "faults": json.dumps({"requests": [{"history": [[]] * 300}] * 8}),
        "fields": "{" + ",".join(f'"a{n}":1' for n in range(1500)) + "}",
        "objects": json.dumps({"requests": [{}] * 5000}, separators=(",", ":")),
    }
    for name, body in many.items():
        started = time.process_time()
        status, _, content = client.ask("/recommend", body)
        assert status == 422 and len(content["error"]) < 300, (name, content)
        assert time.process_time() - started < 0.5, name


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"history": ["i01"], "history": ["i02"]}', 422, "history: the field is given twice in one object"),
        ('{"history": [NaN]}', 400, "Invalid JSON: NaN is no number of JSON"),
        ("[" * 15_000, 400, "Invalid JSON: "),
        (json.dumps({"a\nb" + "c" * 500: 1, "history": []}), 422, "a b" + "c" * 47 + "...: Extra inputs"),
        ('{"history": [], "\\ud800": 1}', 400, "Invalid JSON: "),
        ("{" + ",".join(f'"a{n}":1' for n in range(101)) + "}", 422, "101 fields, at most 100 allowed"),
    ],
)
def test_ambiguous_bodies_are_refused_in_one_line(client: Client, body: str, status: int, message: str) -> None:
    answered, _, content = client.ask("/recommend", body)
    assert (answered, message in content["error"], "\n" in content["error"]) == (status, True, False), content


@pytest.mark.heavy
def test_few_descriptors(student: Path) -> None:
    command = [sys.executable, "-m", "slmrec", "serve", "--model", str(student), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            port = int(process.stdout.readline().split("serves")[0].strip().rpartition(":")[2])
            with ExitStack() as stack:
                for _ in range(120):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
                time.sleep(2)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            connection.close()
            process.send_signal(signal.SIGTERM)
            logged = process.stderr.read()
            assert "stopped; 0 requests accepted" in process.stdout.read()
        finally:
            process.kill()
    assert process.returncode == 0
    assert logged.count("\n") <= 3 and "Traceback" not in logged and "at most 25 connections instead of 1024" in logged


def test_descriptors_that_run_out_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Loop:
        def time(self) -> float:
            return 1000.0

    server: Any = object.__new__(run.HttpServer)
    server._warned_at = 0.0
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            server._handle_exception(Loop(), {"exception": OSError(24, "Too many open files")})
        server._handle_exception(Loop(), {"exception": ConnectionResetError()})
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "serve: a connection cannot be accepted (Too many open files)"
    ]


def test_descriptors_are_raised_as_far_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    granted: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: granted.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 100_000))
    assert run._within_descriptors(Limits()).max_connections == 1024 and granted[0][0] > 1152
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 100))
    assert run._within_descriptors(Limits()).max_connections == 25
    assert "at most 25 connections instead of 1024, since the process may open only 100 files" in caplog.text
