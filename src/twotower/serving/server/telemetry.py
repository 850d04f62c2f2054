"""Figures for Prometheus, and a log of requests without personal data."""

import json
import logging
import sys
import time
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import prometheus_client as prometheus
from prometheus_client import multiprocess

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class FieldsLog(logging.LoggerAdapter[logging.Logger]):
    """A log that takes the fields of a line as keywords: ``LOG.info("ready", pid=7)``."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the message, and the other arguments for ``logging``."""
        exc_info = kwargs.pop("exc_info", None)
        return msg, {"exc_info": exc_info, "extra": {"fields": kwargs}}


LOG = FieldsLog(logging.getLogger("twotower.server"))


class Figures:
    """The figures of one process, or of all workers together if they share a folder.

    Args:
        several: Whether workers share the folder that ``PROMETHEUS_MULTIPROC_DIR`` names.
    """

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._registry = prometheus.CollectorRegistry()
        own = None if several else self._registry
        latest: Literal["mostrecent", "all"] = "mostrecent" if several else "all"
        name = "twotower"
        counter = partial(prometheus.Counter, namespace=name, registry=own)
        histogram = partial(prometheus.Histogram, namespace=name, buckets=SECONDS, registry=own)
        gauge = partial(prometheus.Gauge, namespace=name, multiprocess_mode=latest, registry=own)
        self.requests = counter("requests", "Requests by route and status.", ["route", "status"])
        self.seconds = histogram(
            "request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ["route"],
        )
        self.stages = histogram(
            "stage_seconds",
            "Time of a query by stage: in the queue, with the model (a whole batch), writing JSON.",
            ["stage"],
        )
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch = histogram("batch_queries", "Queries that are answered at once.", buckets=sizes)
        self.ids = counter("query_ids", "Query ids that were asked about.", ["known"])
        self.waiting = gauge(
            "waiting_queries", "Requests that wait for the model.", multiprocess_mode="livesum"
        )
        self.items = gauge("items", "Items that may be an answer.")
        self.recall = gauge(
            "index_recall",
            "Share of the 100 best items that search finds, measured after training; 1 where it is exact.",
        )
        self.opened = gauge(
            "model_opened_timestamp_seconds",
            "When the model that answers was opened, in seconds since 1970.",
        )
        self.exchanges = counter("model_exchanges", "Models that took over, or did not.", ["ok"])

    def model_opened(self, index_recall: float) -> None:
        """Note that a new model answers, with the recall of its index."""
        self.recall.set(index_recall)
        self.opened.set(time.time())

    def ids_seen(self, known: int, unknown: int) -> None:
        """Note the numbers of known and unknown query ids."""
        self.ids.labels("yes").inc(known)
        self.ids.labels("no").inc(unknown)

    def batch_answered(self, waits: Sequence[float], took: float) -> None:
        """Note how long each query of a batch waited, and how long the batch took, in seconds."""
        self.batch.observe(len(waits))
        self.stages.labels("model").observe(took)
        for wait in waits:
            self.stages.labels("queue").observe(wait)

    def page(self) -> tuple[bytes, str]:
        """Return the page for Prometheus, and its media type."""
        registry = self._registry
        if self._several:
            registry = prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return prometheus.generate_latest(registry), prometheus.CONTENT_TYPE_LATEST


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record. The line of an error has its trace."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """Send the logs of this process and of uvicorn to the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("twotower", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
