"""Metrics for Prometheus: counted cheaply while serving, assembled at the scrape.

The hot path only adds to plain integers: 0.3 µs for each of a batch of look-ups, where a
histogram of the client library takes 2.4 µs (``python -m bench.counting``). Names and labels
are put together at the scrape, from these and from what the servers keep anyway; the library
makes the text, in a thread (26 ms for 1,000 chunkservers). It is imported where metrics are
served: a quarter of a server's start otherwise. docs/monitoring.md describes every metric, and
a test compares both.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from gfs.diagnostics import event, request_of, working_for
from gfs.errors import GfsError

if TYPE_CHECKING:
    from prometheus_client import Metric

log = logging.getLogger(__name__)

#: Upper bounds of the histogram's buckets, in seconds.
BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: (label, value) pairs → the metric's value.
Values = Mapping[tuple[tuple[str, str], ...], float]


class Numbered(Protocol):
    """A message."""

    id: int


class Histogram:
    """A histogram of durations."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0


class Operations:
    """The operations of one server: number, durations, failures.

    Operations that take ``slow_seconds``, or fail for a reason that the caller did not
    cause, are logged; at ``DEBUG``, all of them. The log lines have the request id.
    """

    def __init__(self, slow_seconds: float) -> None:
        self._slow_seconds = slow_seconds
        self.took: dict[str, Histogram] = {}
        self.failed: dict[tuple[str, str], int] = {}
        self._kinds: dict[type, Histogram] = {}
        self._logs_all = partial(log.isEnabledFor, logging.DEBUG)

    def done(
        self, kind: type, message_id: int, seconds: float, error: GfsError | None = None
    ) -> None:
        """Count one operation that was answered."""
        histogram = self._kinds.get(kind) or self._histogram(kind)
        histogram.counts[bisect_left(BUCKETS, seconds)] += 1
        histogram.seconds += seconds
        if error is not None:
            of_kind = (kind.__name__, error.code)
            self.failed[of_kind] = self.failed.get(of_kind, 0) + 1
        if error is not None or seconds >= self._slow_seconds or self._logs_all():
            self._log(kind.__name__, message_id, seconds, error, 0)

    def all_done(
        self, messages: Sequence[Numbered], seconds: float, error: GfsError | None = None
    ) -> None:
        """As ``done`` for each, but the common part is done once. One of a kind is logged for
        all of them, unless all are."""
        if self._logs_all():
            for message in messages:
                self.done(type(message), message.id, seconds, error)
            return
        bucket = bisect_left(BUCKETS, seconds)
        kinds = self._kinds
        for message in messages:
            histogram = kinds.get(type(message)) or self._histogram(type(message))
            histogram.counts[bucket] += 1
            histogram.seconds += seconds
        if error is not None or seconds >= self._slow_seconds:
            for kind, count in Counter(map(type, messages)).items():
                if error is not None:
                    of_kind = (kind.__name__, error.code)
                    self.failed[of_kind] = self.failed.get(of_kind, 0) + count
                first = next(message for message in messages if type(message) is kind)
                self._log(kind.__name__, first.id, seconds, error, count - 1)

    def _histogram(self, kind: type) -> Histogram:
        made = self._kinds[kind] = self.took.setdefault(kind.__name__, Histogram())
        return made

    def _log(
        self, kind: str, message_id: int, seconds: float, error: GfsError | None, others: int
    ) -> None:
        name, level, outcome = "request", logging.DEBUG, "took"
        if seconds >= self._slow_seconds:
            name, level = "request_slow", logging.WARNING
        if error is not None:
            name, outcome = "request_failed", f"failed ({error.code}: {error}) after"
            if error.http_status >= 500:
                level = max(level, logging.INFO)
        rest = f", and so did {others} more with it" if others else ""
        number = request_of(message_id)
        fields = event(
            name, operation=kind, seconds=round(seconds, 6), code=error.code if error else ""
        )
        with working_for(number):
            log.log(level, "%s %s %.3f s%s", kind, outcome, seconds, rest, extra=fields)


def counter(name: str, help: str, values: float | Values) -> Metric:
    """``name`` ends in ``_total``."""
    return _metric("counter", name, help, values)


def gauge(name: str, help: str, values: float | Values) -> Metric:
    return _metric("gauge", name, help, values)


def _metric(kind: str, name: str, help: str, values: float | Values) -> Metric:
    from prometheus_client import Metric

    metric = Metric(name.removesuffix("_total"), help, kind)
    by_labels = values if isinstance(values, Mapping) else {(): values}
    for labels, value in by_labels.items():
        metric.add_sample(name, dict(labels), value)
    return metric


def label(name: str, values: Mapping[str, float]) -> Values:
    """Values by one label."""
    return {((name, key),): value for key, value in values.items()}


def operation_families(prefix: str, operations: Operations) -> list[Metric]:
    """Metrics of a server's operations."""
    from prometheus_client.core import HistogramMetricFamily

    took = HistogramMetricFamily(
        f"{prefix}_operation_seconds",
        "Operations served, by how long they took until answered",
        labels=["operation"],
    )
    for kind, histogram in sorted(operations.took.items()):
        bounds = [*map(repr, BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        took.add_metric([kind], buckets, histogram.seconds)
    failures: Values = {
        (("operation", kind), ("code", code)): count
        for (kind, code), count in sorted(operations.failed.items())
    }
    return [
        took,
        counter(
            f"{prefix}_operation_failures_total", "Operations answered with an error", failures
        ),
    ]


def certificate_family(until_ns: int) -> Iterator[Metric]:
    """Metrics of a server's certificate, if it has one."""
    if until_ns:
        yield gauge(
            "gfs_certificate_until_timestamp_seconds",
            "When this server's certificate ends, in seconds since 1970",
            until_ns / 1e9,
        )


class Source:
    """The registry of this process's metrics; servers add theirs."""

    def __init__(self) -> None:
        self.collect: Callable[[], Iterable[Metric]] = tuple

    async def text(self) -> bytes:
        """The text format of Prometheus, 0.0.4, with the memory, descriptors and CPU time
        of this process."""
        return await trio.to_thread.run_sync(exposition, list(self.collect()))


class _Collected(NamedTuple):
    metrics: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def exposition(metrics: Iterable[Metric]) -> bytes:
    from prometheus_client import ProcessCollector, generate_latest

    process = ProcessCollector(registry=None).collect()
    return generate_latest(_Collected([*metrics, *process]))
