"""Figures of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ames_jax.serving.service import Service

BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """Counts requests and times stages; the rest is read from the service when asked for."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        options = {"registry": self._registry}
        ProcessCollector(**options)
        self._requests = Counter("ames_requests", "Requests answered.", ["method", "route", "status"], **options)
        self._seconds = Histogram(
            "ames_search_seconds", "Seconds of a search, by stage.", ["stage"], buckets=BUCKETS, **options
        )
        gauges = {
            "ames_images": ("Images of the index.", lambda: len(service.index)),
            "ames_searches_under_way": ("Searches being read, waiting or in work.", lambda: service.batcher.taken),
            "ames_index_stale": ("1 where the index on disk cannot be opened.", lambda: service.stale),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, **options).set_function(value)

    def answered(self, method: str, route: str, status: int) -> None:
        """Notes an answer."""
        self._requests.labels(method, route, str(status)).inc()

    def searched(self, seconds: Mapping[str, float]) -> None:
        """Notes the stages of a search."""
        for stage, value in seconds.items():
            self._seconds.labels(stage).observe(value)

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        return generate_latest(self._registry)
