"""Numbers for Prometheus: counted cheaply while serving, put together when asked for.

The hot path only adds to plain integers (of a batch of look-ups, 0.1 to 0.3 µs for each);
names, labels and text are made at the scrape, from these and from what the servers
keep anyway. docs/operations.md tells of every metric, and a test of both.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from gfs.diagnostics import event, request_of, working_for
from gfs.errors import GfsError

log = logging.getLogger(__name__)

#: Upper bounds of the durations that are told apart, in seconds.
BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
#: By pairs of a label's name and its text.
Values = Mapping[tuple[tuple[str, str], ...], float]


class Numbered(Protocol):
    """A message."""

    id: int


class Histogram:
    """How often something took how long."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0


class Operations:
    """What one server was asked for: how often, how long it took, what failed.

    One that took ``slow_seconds`` or failed for no fault of who asked is told of in
    the log, every one if that shows ``DEBUG``; always with its request.
    """

    def __init__(self, slow_seconds: float) -> None:
        self._slow_seconds = slow_seconds
        self.took: dict[str, Histogram] = {}
        self.failed: dict[tuple[str, str], int] = {}
        self._kinds: dict[type, Histogram] = {}
        self._tells_all = partial(log.isEnabledFor, logging.DEBUG)

    def done(
        self, kind: type, message_id: int, seconds: float, error: GfsError | None = None
    ) -> None:
        """One operation, answered."""
        histogram = self._kinds.get(kind) or self._histogram(kind)
        histogram.counts[bisect_left(BUCKETS, seconds)] += 1
        histogram.seconds += seconds
        if error is not None:
            of_kind = (kind.__name__, error.code)
            self.failed[of_kind] = self.failed.get(of_kind, 0) + 1
        if error is not None or seconds >= self._slow_seconds or self._tells_all():
            self._tell(kind.__name__, message_id, seconds, error)

    def all_done(self, messages: Iterable[Numbered], seconds: float) -> None:
        """As ``done`` of each, without an error: what they share is done once."""
        if seconds >= self._slow_seconds or self._tells_all():
            for message in messages:
                self.done(type(message), message.id, seconds)
            return
        bucket = bisect_left(BUCKETS, seconds)
        kinds = self._kinds
        for message in messages:
            histogram = kinds.get(type(message)) or self._histogram(type(message))
            histogram.counts[bucket] += 1
            histogram.seconds += seconds

    def _histogram(self, kind: type) -> Histogram:
        made = self._kinds[kind] = self.took.setdefault(kind.__name__, Histogram())
        return made

    def _tell(self, kind: str, message_id: int, seconds: float, error: GfsError | None) -> None:
        name, level, outcome = "request", logging.DEBUG, "took"
        if seconds >= self._slow_seconds:
            name, level = "request_slow", logging.WARNING
        if error is not None:
            name, outcome = "request_failed", f"failed ({error.code}: {error}) after"
            if error.http_status >= 500:
                level = max(level, logging.INFO)
        number = request_of(message_id)
        fields = event(
            name, operation=kind, seconds=round(seconds, 6), code=error.code if error else ""
        )
        with working_for(number):
            log.log(level, "%s %s %.3f s", kind, outcome, seconds, extra=fields)


class Family(NamedTuple):
    """One metric, of all its labels. The ``suffix`` of a sample is for histograms."""

    name: str
    kind: str  # "counter" | "gauge" | "histogram"
    help: str
    samples: Sequence[tuple[str, Labels, float]]


def counter(name: str, help: str, values: float | Values) -> Family:
    return Family(name, "counter", help, _samples(values))


def gauge(name: str, help: str, values: float | Values) -> Family:
    return Family(name, "gauge", help, _samples(values))


def _samples(
    values: float | Values,
) -> list[tuple[str, Labels, float]]:
    if isinstance(values, Mapping):
        return [("", dict(labels), value) for labels, value in values.items()]
    return [("", {}, values)]


def label(name: str, values: Mapping[str, float]) -> Values:
    """Values told apart by one label."""
    return {((name, key),): value for key, value in values.items()}


def operation_families(prefix: str, operations: Operations) -> list[Family]:
    """Of what a server was asked for."""
    samples: list[tuple[str, Labels, float]] = []
    for kind, histogram in sorted(operations.took.items()):
        total = 0
        for bound, count in zip((*map(repr, BUCKETS), "+Inf"), histogram.counts, strict=True):
            total += count
            samples.append(("_bucket", {"operation": kind, "le": bound}, total))
        samples.append(("_sum", {"operation": kind}, histogram.seconds))
        samples.append(("_count", {"operation": kind}, total))
    failures: Values = {
        (("operation", kind), ("code", code)): count
        for (kind, code), count in sorted(operations.failed.items())
    }
    return [
        Family(
            f"{prefix}_operation_seconds",
            "histogram",
            "Operations served, by how long they took until answered",
            samples,
        ),
        counter(f"{prefix}_operation_failures_total", "Operations answered by an error", failures),
    ]


def process_families() -> Iterator[Family]:
    """Memory, descriptors and CPU time of this process, under their usual names."""
    from prometheus_client import ProcessCollector

    for metric in ProcessCollector(registry=None).collect():
        for sample in metric.samples:
            yield Family(sample.name, metric.type, metric.documentation, [("", {}, sample.value)])


def certificate_family(until_ns: int) -> Iterator[Family]:
    """Of a server that has one."""
    if until_ns:
        yield gauge(
            "gfs_certificate_until_timestamp_seconds",
            "When this server's certificate ends, in seconds since 1970",
            until_ns / 1e9,
        )


class Source:
    """Where the numbers of this process come from; a server puts its own here."""

    def __init__(self) -> None:
        self.collect: Callable[[], Iterable[Family]] = tuple

    def text(self) -> bytes:
        return exposition([*self.collect(), *process_families()])


def exposition(families: Iterable[Family]) -> bytes:
    """The text format of Prometheus, 0.0.4."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escape(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, labels, value in family.samples:
            told = ",".join(
                f'{name}="{_escape(text, quoted=True)}"' for name, text in labels.items()
            )
            lines.append(
                f"{family.name}{suffix}{{{told}}} {_number(value)}"
                if told
                else f"{family.name}{suffix} {_number(value)}"
            )
    return "".join(f"{line}\n" for line in lines).encode()


def _escape(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
