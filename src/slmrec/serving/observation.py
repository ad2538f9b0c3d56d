"""Counters and times for Prometheus."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from slmrec.serving.engine import Engine, Found
from slmrec.serving.messages import ModelName

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Observations:
    """Of one server; each has a registry of its own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self._requests = Counter("slmrec_requests", "HTTP requests", ["path", "status"], registry=own)
        self._seconds = Histogram(
            "slmrec_request_seconds", "Until the answer", ["path"], buckets=_SECONDS, registry=own
        )
        self._batches = Histogram(
            "slmrec_batch_histories", "Histories computed together", ["model"], buckets=_SIZES, registry=own
        )
        self._unknown = Counter("slmrec_unknown_items", "Items of histories that are unknown", registry=own)
        self._fallbacks = Counter("slmrec_fallback_answers", "Answers with the most popular items", registry=own)
        self._reloads = Counter("slmrec_reloads", "Reloads", ["model", "result"], registry=own)

    def watch(self, engines: Mapping[ModelName, Engine], waiting: Callable[[], int]) -> None:
        """Adds what is read at the moment of asking."""
        own = self._registry
        Gauge("slmrec_waiting_histories", "Histories accepted and not answered", registry=own).set_function(waiting)
        sessions = Gauge("slmrec_sessions", "Sessions kept", ["model"], registry=own)
        evicted = Gauge("slmrec_sessions_evicted", "Sessions given up for newer ones", ["model"], registry=own)
        for name, engine in engines.items():
            sessions.labels(name).set_function(partial(len, engine.sessions))
            evicted.labels(name).set_function(partial(getattr, engine.sessions, "num_evicted"))

    def request(self, path: str, status: int, seconds: float) -> None:
        """An answered request."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, model: str, size: int) -> None:
        """A computed batch."""
        self._batches.labels(model).observe(size)

    def found(self, answers: list[Found]) -> None:
        """Answered queries."""
        self._unknown.inc(sum(len(answer.unknown) for answer in answers))
        self._fallbacks.inc(sum(answer.fallback for answer in answers))

    def reload(self, model: str, result: str) -> None:
        """A reload: `loaded`, `unchanged` or `refused`."""
        self._reloads.labels(model, result).inc()

    def written(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
