"""Requests made from the OpenAPI document, well-formed and not, give no 5xx and no growth.

SLMREC_FUZZ sets how many are made of each operation and kind; with 1700, `-k malformed` makes 10,000 (`-s` shows how
many of which status, and the memory).
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Client, serving

pytest.importorskip("schemathesis", reason="schemathesis is not installed")
import requests
import schemathesis
from schemathesis import Case, GenerationMode

pytestmark = pytest.mark.heavy

NUM_EXAMPLES = int(os.environ.get("SLMREC_FUZZ", "8"))
OPERATIONS = [
    *("POST /recommend", "POST /reload", "GET /items", "GET /examples", "GET /model"),
    *("GET /health", "GET /ready", "GET /metrics", "DELETE /sessions/{session_id}"),
]


@pytest.fixture(scope="module")
def fuzzed(student: Path) -> Iterator[Client]:
    with serving(student) as client:
        yield client


def fuzz(client: Client, label: str, mode: GenerationMode) -> list[int]:
    """The statuses of many requests of one operation."""
    method, path = label.split()
    operation = schemathesis.openapi.from_dict(client.get("/openapi.json"))[path][method]
    statuses: list[int] = []
    with requests.Session() as session:

        @given(st.data())
        @settings(max_examples=NUM_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def ask(data: st.DataObject) -> None:
            case: Case = data.draw(operation.as_strategy(mode))
            answer = case.call(base_url=f"http://127.0.0.1:{client.port}", session=session)
            statuses.append(answer.status_code)
            assert answer.status_code < 500, answer.text
            assert answer.status_code < 400 or list(answer.json()) == ["error"]

        ask()
    print(f"{label}, {mode.value}: {len(statuses)} requests, {dict(sorted(Counter(statuses).items()))}", flush=True)
    return statuses


@pytest.mark.parametrize("label", OPERATIONS)
def test_well_formed_requests_give_no_fault(label: str, fuzzed: Client) -> None:
    assert fuzz(fuzzed, label, GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", OPERATIONS[:3])
def test_malformed_requests_give_no_fault_and_no_growth(label: str, fuzzed: Client) -> None:
    fuzz(fuzzed, label, GenerationMode.NEGATIVE)
    before = psutil.Process().memory_info().rss
    statuses = fuzz(fuzzed, label, GenerationMode.NEGATIVE)
    grown = psutil.Process().memory_info().rss - before
    print(f"{label}: {grown / 2**20:+.1f} MiB", flush=True)
    assert grown < 64 << 20
    assert len(statuses) >= NUM_EXAMPLES // 2 and any(400 <= status < 500 for status in statuses)
    assert fuzzed.recommend(history=["i01"])["items"]
