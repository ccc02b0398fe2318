"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

KIND = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@final
class Metrics:
    """Of one server; nothing is shared with other servers of the process."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        ProcessCollector(registry=self._all)
        self.seconds = Histogram(
            "metashard_request_seconds",
            "From a request's head to the end of its answer",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=self._all,
        )
        self.batch = Histogram(
            "metashard_batch_images", "Images that were asked about at once", buckets=SIZES, registry=self._all
        )
        self.refused = Counter("metashard_images_refused", "Images that could not be read", registry=self._all)
        self.classes = Gauge("metashard_classes", "Classes that are taught", registry=self._all)
        self.samples = Gauge("metashard_samples", "Samples of all classes", registry=self._all)
        self.version = Gauge("metashard_version", "Changes of what is taught", registry=self._all)

    def text(self) -> bytes:
        return generate_latest(self._all)
