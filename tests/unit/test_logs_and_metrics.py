"""Logs that people and programs read, and numbers that Prometheus does."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gfs.config import MasterSettings
from gfs.diagnostics import (
    CALL_MASK,
    GATHERED,
    GATHERED_SECONDS,
    LOGGED_SINGLY,
    REQUEST_MASK,
    Gathered,
    JsonFormatter,
    TextFormatter,
    asked_for,
    event,
    message_id,
    request,
    request_name,
    request_of,
    working_for,
)
from gfs.errors import Busy, NotFound
from gfs.master.master import Master
from gfs.master.metadata.rows import pack_chunk, pack_u64
from gfs.master.metadata.store import Txn, open_store
from gfs.master.service.metrics import families
from gfs.metrics import BUCKETS, Operations, Source, exposition, gauge, operation_families
from gfs.protocol.messages import Done, Publish, Stat
from gfs.testing import Universe, run_simulated

texts = st.text(max_size=20)


def record(message: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    return logging.getLogger("gfs.test").makeRecord(
        "gfs.test", level, "file", 1, message, (), None, extra=dict(extra)
    )


@given(texts, st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts)), texts)
def test_a_json_line_is_one_line_and_has_all_fields(
    message: str, fields: dict[str, object], name: str
) -> None:
    line = JsonFormatter().format(record(message, gfs_event=name, gfs_fields=fields))
    assert line.isascii()
    assert "\n" not in line
    reported = json.loads(line)
    assert reported["message"] == message
    assert reported["event"] == name
    assert reported["level"] == "info"
    own = {"time", "level", "logger", "message", "event"}
    assert {k: v for k, v in reported.items() if k not in own} == {
        k: v for k, v in fields.items() if k not in own
    }


def test_lines_name_the_request_they_are_about() -> None:
    json_line, text = JsonFormatter(), TextFormatter()
    with working_for(0xAB):
        assert json.loads(json_line.format(record("x")))["request"] == "00000000ab"
        assert text.format(record("x")).endswith(": x [00000000ab]")
    assert "request" not in json.loads(json_line.format(record("x")))
    assert text.format(record("x")).endswith(": x")


def moved(number: int) -> logging.LogRecord:
    fields = {"server": f"s{number % 2}", "chunk": f"{number:x}"}
    return record(f"chunk {number:x} is moved", gfs_event="replica_moved", gfs_fields=fields)


def test_what_comes_too_often_is_one_line_that_counts_it() -> None:
    """A long repair, a thousand replicas in a second: a line for each ten seconds."""
    gathered, lines = Gathered(), []
    now, replicas = 0.0, 0
    while now < 10 * GATHERED_SECONDS:
        lines += [r for r in map(moved, range(1000)) if not gathered.takes(r, now)]
        replicas += 1000
        now += 1.0
        if now % GATHERED_SECONDS == 0:
            lines += gathered.summaries(now)
    reported = [json.loads(JsonFormatter().format(line)) for line in lines]
    assert len(reported) == LOGGED_SINGLY + 10
    assert all(line["event"] == "replica_moved" for line in reported)
    counts = reported[LOGGED_SINGLY:]
    assert sum(line["count"] for line in counts) + LOGGED_SINGLY == replicas
    assert counts[5]["servers"] == {"s0": 5000, "s1": 5000}
    assert counts[5]["message"] == "10000 more like this in 10 s, the last: chunk 3e7 is moved"
    # The next one after a quiet while is logged singly again, and others always were.
    assert list(gathered.summaries(now)) == []
    assert not gathered.takes(moved(1), now + GATHERED_SECONDS)
    assert not gathered.takes(record("something else"), now)


def test_lines_without_an_event_are_distinguished_by_their_form() -> None:
    gathered = Gathered()
    for number in range(LOGGED_SINGLY + 3):
        made = record("salvage of %d failed")
        made.args = (number,)
        gathered.takes(made, 0.0)
    [line] = gathered.summaries(10.0)
    assert line.getMessage() == "3 more like this in 10 s, the last: salvage of 12 failed"
    assert json.loads(JsonFormatter().format(line))["count"] == 3


def test_other_events_are_all_logged_singly() -> None:
    gathered = Gathered()
    purged = [record("gone", gfs_event="trash_purged", gfs_fields={}) for _ in range(1000)]
    assert not any(gathered.takes(one, 0.0) for one in purged)


def test_every_event_that_is_gathered_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", text)) >= GATHERED


def test_an_exception_is_part_of_the_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        made = record("it failed")
        made.exc_info = (ValueError, error, error.__traceback__)
    [line] = JsonFormatter().format(made).splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: two\nlines")


def test_an_event_cannot_be_taken_for_anything_else() -> None:
    extra = event("lease_granted", chunk="2a", message="not the line's own")
    reported = json.loads(JsonFormatter().format(record("words", **extra)))
    assert (reported["event"], reported["chunk"], reported["message"]) == (
        "lease_granted",
        "2a",
        "words",
    )


@given(st.integers(1, REQUEST_MASK), st.integers(0, CALL_MASK))
def test_a_message_carries_its_request(number: int, call: int) -> None:
    with working_for(number):
        assert request_of(message_id() | call) == number
        with working_for(1):
            assert request.get() == 1
        assert request.get() == number
    assert message_id() == 0
    assert int(request_name(number), 16) == number
    assert len(request_name(number)) == 10


def test_errors_name_what_was_asked_for() -> None:
    asked = asked_for(0xAB)
    for _ in range(2):  # an async generator enters it for each of its steps
        error = NotFound("no such file")
        with contextlib.suppress(NotFound), asked:
            assert request.get() == 0xAB
            raise error
        assert error.request == "00000000ab"
        assert request.get() == 0


def test_slow_and_failed_operations_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gfs")
    operations = Operations(1.0)
    operations.done(Stat, 7 << 24, 0.5)
    operations.done(Stat, 7 << 24, 0.5, NotFound("no such file"))
    assert caplog.records == []  # whoever asked knows
    operations.done(Publish, 7 << 24, 1.0)
    operations.done(Publish, 8 << 24, 0.1, Busy("later"))
    reported = [(r.levelname, r.__dict__["gfs_event"], r.getMessage()) for r in caplog.records]
    assert reported == [
        ("WARNING", "request_slow", "Publish took 1.000 s"),
        ("INFO", "request_failed", "Publish failed (busy: later) after 0.100 s"),
    ]
    assert operations.failed == {("Stat", "not_found"): 1, ("Publish", "busy"): 1}


def test_of_operations_that_ended_together_one_is_logged_for_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gfs")
    operations = Operations(1.0)
    batch = [Stat(number << 24, "/") for number in range(7, 70)]
    operations.all_done(batch, 0.5)
    assert caplog.records == []
    operations.all_done(batch, 1.0, Busy("later"))
    operations.all_done([*batch, Done(0)], 1.5)
    assert [record.getMessage() for record in caplog.records] == [
        "Stat failed (busy: later) after 1.000 s, and so did 62 more with it",
        "Stat took 1.500 s, and so did 62 more with it",
        "Done took 1.500 s",
    ]
    assert operations.failed == {("Stat", "busy"): 63}
    assert sum(operations.took["Stat"].counts) == 3 * 63


@given(st.lists(st.sampled_from([*BUCKETS, 0.0, 11.0, 1e-9]) | st.floats(0, 100), max_size=30))
def test_durations_fall_into_their_buckets(durations: list[float]) -> None:
    operations = Operations(math.inf)
    for seconds in durations:
        operations.done(Stat, 0, seconds)
    [took, *_] = text_string_to_metric_families(
        exposition(operation_families("gfs_x", operations)).decode()
    )
    reported = {
        (sample.name.removeprefix("gfs_x_operation_seconds"), sample.labels.get("le")): sample.value
        for sample in took.samples
    }
    if not durations:
        assert reported == {}
        return
    for bound in BUCKETS:
        assert reported["_bucket", repr(bound)] == sum(one <= bound for one in durations)
    assert reported["_bucket", "+Inf"] == reported["_count", None] == len(durations)
    assert reported["_sum", None] == pytest.approx(sum(durations))


async def test_a_scrape_leaves_the_loop_to_others() -> None:
    threads: list[int] = []

    class Number(float):
        def __float__(self) -> float:
            threads.append(threading.get_ident())
            return 7.0

    source = Source()
    source.collect = lambda: [gauge("gfs_x", "A number", Number(1))]
    assert b"\ngfs_x 7.0\n" in await source.text()
    assert threads
    assert threading.get_ident() not in threads


def test_what_is_to_be_copied_is_counted_at_the_mean_length_of_chunks(tmp_path: Path) -> None:
    """Four chunks of 1000 bytes, each in three files: two that are there, one in the trash."""
    store = open_store(str(tmp_path), 1 << 24, False, "feed", 7)

    def fill(txn: Txn) -> None:
        for handle in range(4):
            txn.put(pack_u64(handle), pack_chunk(1, 1, 1000, 3, 3), txn.db.chunks)
        txn.state.bytes, txn.state.trash_bytes, txn.state.shared_bytes = 8000, 4000, 8000

    async def look(seed: int) -> list[Metric]:
        world = Universe(seed).machine("master").start_process().world
        master = Master(world, MasterSettings(), store)
        master.goals.repair.update(1, 1, 3)
        return list(families(master))

    try:
        store.commit(fill)
        text = exposition(run_simulated(0, look, 0)).decode()
    finally:
        store.close()
    [found] = re.findall(r"^gfs_master_repair_bytes (\S+)$", text, re.M)
    assert float(found) == 2 * 1000
