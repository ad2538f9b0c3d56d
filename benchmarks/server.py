"""Load test of `slmrec serve` over HTTP: requests/s, latencies, overload and recovery.

A plain client (`http.client`) first sends requests one after another over one kept connection; its times are compared
with those that the server states. Then 32 clients on the same machine, each with its own connection, send whole
histories for one minute and session events for another minute. Each client sends its next request when the last one is
answered. All answers are compared with `Recommender.recommend`. Then requests are sent at five times the measured rate.
The results are written to benchmarks/results/server.json.

Run: python benchmarks/server.py --model out/beauty/distill --data out/beauty/prepare [--seconds 60] [--threads 1]
"""

import argparse
import asyncio
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bench
import numpy as np
import psutil

from slmrec import Recommender

TOLERANCE = 1e-4
"""Absolute tolerance of scores: rounding depends on the batch size."""
K = 10
NUM_HISTORIES = 512
MIN_RATE, MIN_SESSION_RATE, MAX_P99_MS, MAX_RECOVERY_S = 200.0, 400.0, 250.0, 5.0
MAX_OVERHEAD_MS = 3.0
OVERLOAD = 5
MAX_WAITING = 4000
"""Largest number of requests of the overload that wait at once on connections of their own; more are not sent."""
Body = dict[str, Any]


def main() -> None:
    """Start the server, measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--data", type=Path, help="data set folder of prepare, for the distribution of history lengths")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "server.json")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of each closed-loop load")
    parser.add_argument("--overload-seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the server's model")
    arguments = parser.parse_args()
    histories, answers = known_answers(arguments.model, arguments.data)
    command = [sys.executable, "-m", "slmrec", "serve", "--model", str(arguments.model), "--port", "0"]
    command += ["--threads", str(arguments.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        listening = re.search(r":(\d+) serves", server.stdout.readline())
        assert listening is not None
        load = Load(int(listening[1]), arguments.clients, histories, answers)
        try:
            report = asyncio.run(measure(load, arguments.seconds, arguments.overload_seconds, server.pid))
        finally:
            server.send_signal(signal.SIGTERM)
        report["last_words"] = server.stdout.read().strip()
    report |= {"server_threads": arguments.threads, "clients": arguments.clients} | bench.hardware()
    text = json.dumps(report, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def known_answers(model: Path, data: Path | None) -> tuple[list[list[Any]], list[list[Any]]]:
    """Return random histories with the lengths of the data, and the recommendations of the Python interface."""
    recommender = Recommender.from_pretrained(model)
    item_ids = recommender.vocabulary.item_ids.to_pylist()
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.choice(bench.lengths_of(data), NUM_HISTORIES), recommender.model.max_history_items)
    histories = [[item_ids[i] for i in generator.integers(0, len(item_ids), max(1, length))] for length in lengths]
    return histories, recommender.recommend(histories, K).to_lists()


def agrees(answer: Any, expected: list[Any]) -> bool:
    """Return whether the scores agree to 1e-4 at each rank, and the items except for such ties."""
    items = answer["items"]
    near = all(abs(item["score"] - score) <= TOLERANCE for item, (_, score) in zip(items, expected, strict=True))
    scores = [score for _, score in expected]
    ranked = dict(expected)
    tied = [item for item in items if item["item_id"] not in ranked]
    return near and all(abs(item["score"] - scores[-1]) <= TOLERANCE for item in tied)


class Connection:
    """Keep-alive connection with one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: Body) -> tuple[int, Any]:
        """Return status and content of an answer; reconnect if the server closed the idle connection."""
        is_reused = self._streams is not None
        try:
            return await self._post(body)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if getattr(error, "partial", b"") or not is_reused:
                raise
            self._streams = None
            return await self._post(body)

    async def _post(self, body: Body) -> tuple[int, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = json.dumps(body).encode()
        head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        writer.write(f"{head}{len(content)}\r\n\r\n".encode() + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
        assert length is not None
        return int(answer[9:12]), json.loads(await reader.readexactly(int(length[1])))


class Load:
    """Clients, with their histories and the expected answers."""

    def __init__(self, port: int, num_clients: int, histories: list[list[Any]], answers: list[list[Any]]) -> None:
        self.port, self.num_clients, self.histories, self.answers = port, num_clients, histories, answers

    async def whole(self, connection: Connection, turn: int) -> tuple[list[float], int]:
        """Send one whole history; return the milliseconds per request and the number of wrong answers."""
        row = turn % len(self.histories)
        return await self._timed(connection, {"history": self.histories[row], "k": K}, self.answers[row])

    async def session(self, connection: Connection, turn: int) -> tuple[list[float], int]:
        """Send a history event by event; the last answer must equal that of the whole history."""
        row = turn % len(self.histories)
        times, num_wrong = [], 0
        for place, item_id in enumerate(self.histories[row], 1):
            expected = self.answers[row] if place == len(self.histories[row]) else None
            given = {"history": [item_id]} if place == 1 else {"events": [item_id]}
            some, wrong = await self._timed(connection, {"session_id": f"s{turn}", "k": K, **given}, expected)
            times, num_wrong = times + some, num_wrong + wrong
        return times, num_wrong

    async def _timed(self, connection: Connection, body: Body, expected: list[Any] | None) -> tuple[list[float], int]:
        started = time.perf_counter()
        status, answer = await connection.post(body)
        elapsed = 1e3 * (time.perf_counter() - started)
        is_right = status == 200 and (expected is None or agrees(answer, expected))
        return [elapsed], int(not is_right)


async def measure(load: Load, seconds: float, overload_seconds: float, pid: int) -> dict[str, Any]:
    """Run both closed-loop loads, then the overload."""
    server = psutil.Process(pid)
    await closed(load, load.whole, min(3.0, seconds), server)  # to warm up
    report = await asyncio.to_thread(alone, load)
    report |= {f"whole_{key}": value for key, value in (await closed(load, load.whole, seconds, server)).items()}
    report |= {f"sessions_{key}": value for key, value in (await closed(load, load.session, seconds, server)).items()}
    report |= await overload(load, OVERLOAD * report["whole_per_s"], overload_seconds)
    report["server_rss_mb"] = server.memory_info().rss / 2**20
    report["claims_hold"] = (
        report["whole_per_s"] >= MIN_RATE
        and report["sessions_per_s"] >= MIN_SESSION_RATE
        and max(report["whole_p99_ms"], report["sessions_p99_ms"]) <= MAX_P99_MS
        and report["whole_wrong"] + report["sessions_wrong"] + report["overload_wrong"] == 0
        and report["recovery_s"] <= MAX_RECOVERY_S
        and report["alone_overhead_ms"] <= MAX_OVERHEAD_MS
    )
    return report


def alone(load: Load) -> dict[str, Any]:
    """Measure one plain client that sends requests one after another over a kept connection."""
    connection = http.client.HTTPConnection("127.0.0.1", load.port)
    measured, stated, health = [], [], []
    for history in load.histories:
        started = time.perf_counter()
        body = json.dumps({"history": history, "k": K})
        connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        measured.append(1e3 * (time.perf_counter() - started))
        stated.append(answer["time_ms"])
        started = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        health.append(1e3 * (time.perf_counter() - started))
    connection.close()
    p50, p50_stated, p50_health = (float(np.median(times)) for times in (measured, stated, health))
    overhead = {"alone_overhead_ms": p50 - p50_stated, "alone_health_p50_ms": p50_health}
    return {"alone_p50_ms": p50, "alone_stated_p50_ms": p50_stated, **overhead}


Turn = Callable[[Connection, int], Awaitable[tuple[list[float], int]]]


async def closed(load: Load, turn: Turn, seconds: float, server: psutil.Process) -> dict[str, Any]:
    """Measure clients that send their next request when the last one is answered."""
    times: list[float] = []
    num_wrong = 0
    stop = time.perf_counter() + seconds
    numbers = iter(range(10**9))

    async def client() -> None:
        nonlocal num_wrong
        connection = Connection(load.port)
        while time.perf_counter() < stop:
            some, wrong = await turn(connection, next(numbers))
            times.extend(some)
            num_wrong += wrong

    started, cpu_before = time.perf_counter(), sum(server.cpu_times()[:2])
    await asyncio.gather(*(client() for _ in range(load.num_clients)))
    p50, p90, p99 = np.percentile(times, (50, 90, 99)).tolist()
    rate = len(times) / (time.perf_counter() - started)
    cpu_ms = 1e3 * (sum(server.cpu_times()[:2]) - cpu_before) / len(times)
    latencies = {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
    return {"requests": len(times), "per_s": rate, **latencies, "wrong": num_wrong, "server_cpu_ms_per_request": cpu_ms}


async def overload(load: Load, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a fixed rate, then measure the time until the server answers quickly again."""
    free: list[Connection] = []
    statuses: Counter[int] = Counter()
    num_wrong = num_closed = num_waiting = num_unsent = 0

    async def one(number: int) -> None:
        nonlocal num_wrong, num_closed, num_waiting, num_unsent
        if num_waiting == MAX_WAITING:
            num_unsent += 1
            return
        row = number % len(load.histories)
        connection = free.pop() if free else Connection(load.port)
        num_waiting += 1
        try:
            status, answer = await connection.post({"history": load.histories[row], "k": K})
        except (OSError, asyncio.IncompleteReadError):  # the server is at its limit of connections
            num_closed += 1
            return
        finally:
            num_waiting -= 1
        free.append(connection)
        statuses[status] += 1
        num_wrong += status == 200 and not agrees(answer, load.answers[row])

    started, tasks = time.perf_counter(), []
    while (elapsed := time.perf_counter() - started) < seconds:
        while len(tasks) < rate * elapsed:
            tasks.append(asyncio.ensure_future(one(len(tasks))))
        await asyncio.sleep(0.005)
    recovery_s = await recovery(load)
    await asyncio.gather(*tasks)
    num_sent, num_shed = len(tasks) - num_unsent, statuses[503] + num_closed
    return {
        "overload_offered_per_s": num_sent / seconds,
        "overload_answered": statuses[200],
        "overload_shed": num_shed,
        "overload_shed_share": num_shed / num_sent,
        "overload_connections_closed": num_closed,
        "overload_other": num_sent - statuses[200] - num_shed,
        "overload_wrong": num_wrong,
        "recovery_s": recovery_s,
    }


async def recovery(load: Load) -> float:
    """Return the seconds until ten consecutive requests are answered within the bound."""
    started, connection, in_a_row = time.perf_counter(), Connection(load.port), 0
    while in_a_row < 10:
        before = time.perf_counter()
        try:
            status, _ = await connection.post({"history": load.histories[0], "k": K})
        except (OSError, asyncio.IncompleteReadError):
            status, connection = 503, Connection(load.port)
        is_quick = status == 200 and 1e3 * (time.perf_counter() - before) <= MAX_P99_MS
        in_a_row = in_a_row + 1 if is_quick else 0
        await asyncio.sleep(0 if is_quick else 0.02)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
