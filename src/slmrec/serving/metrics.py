"""Prometheus metrics of the server."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from slmrec.serving.engine import Engine, Result
from slmrec.serving.messages import ModelName

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Metrics of one server, in a registry of its own.

    Args:
        engines: Served models, whose sessions are counted.
        num_waiting: Returns the current number of waiting histories.
    """

    def __init__(self, engines: Mapping[ModelName, Engine], num_waiting: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("slmrec_requests", "HTTP requests", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "slmrec_request_seconds", "Duration of HTTP requests", ["path"], buckets=_SECONDS, registry=registry
        )
        self._batches = Histogram(
            "slmrec_batch_histories", "Histories per batch", ["model"], buckets=_SIZES, registry=registry
        )
        self._unknown = Counter("slmrec_unknown_items", "Unknown items in requests", registry=registry)
        self._fallbacks = Counter("slmrec_fallback_answers", "Answers with the most popular items", registry=registry)
        self._reloads = Counter("slmrec_reloads", "Model reloads", ["model", "result"], registry=registry)
        waiting = Gauge("slmrec_waiting_histories", "Histories accepted but not yet answered", registry=registry)
        waiting.set_function(num_waiting)
        sessions = Gauge("slmrec_sessions", "Sessions in memory", ["model"], registry=registry)
        evicted = Gauge("slmrec_sessions_evicted", "Sessions evicted so far", ["model"], registry=registry)
        for name, engine in engines.items():
            sessions.labels(name).set_function(partial(len, engine.sessions))
            evicted.labels(name).set_function(partial(getattr, engine.sessions, "num_evicted"))

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Record an answered HTTP request."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def observe_batch(self, model: str, size: int) -> None:
        """Record a computed batch of `size` histories."""
        self._batches.labels(model).observe(size)

    def observe_results(self, results: list[Result]) -> None:
        """Record the results of one request."""
        self._unknown.inc(sum(len(result.unknown) for result in results))
        self._fallbacks.inc(sum(result.fallback for result in results))

    def observe_reload(self, model: str, result: str) -> None:
        """Record a reload; its result is `loaded`, `unchanged` or `refused`."""
        self._reloads.labels(model, result).inc()

    def to_text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
