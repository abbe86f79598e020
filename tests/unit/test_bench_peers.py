"""What the comparison with others reads of their answers, and how it shows figures. That it
runs is for ``make bench-peers ARGS=--quick``."""

from __future__ import annotations

import argparse
import os
import socket
from typing import Any

import pytest

from bench import rest
from bench.circumstances import add_page_option
from bench.peers import moosefs, seaweedfs
from bench.peers.table import FIGURES, WAYS, table, turns

BENCHMARK = """
Concurrency Level:      16
Time taken for tests:   6.861 seconds
Failed requests:        {failed}
Requests per second:    874.52 [#/sec]
"""
FILE_INFO = """/mnt/probe:
\tchunk 0: 0000000000000001_00000001 / (id:1 ver:1) ; mtime:1795872191 (2026-11-28 13:23:11)
\t\tcopy 1: 10.255.255.1:9511 ; status:VALID
\t\tcopy 2: 10.255.255.1:9512 ; status:VALID
\t\tcopy 3: 10.255.255.1:9513 ; status:{status}
"""


def test_no_page_gets_figures_of_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_page_option(parser, "docs/speed.md")
    assert not parser.parse_args([]).page
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 9.0, 9.0))
    assert parser.parse_args(["--page"]).page
    monkeypatch.setattr(os, "getloadavg", lambda: (0.51, 0.0, 0.0))
    with pytest.raises(SystemExit):
        parser.parse_args(["--page"])
    assert "the load average is 0.51" in capsys.readouterr().err


def test_a_load_of_weed_with_failures_has_no_figure() -> None:
    assert seaweedfs.requests_per_second(BENCHMARK.format(failed=0)) == 874.52
    for said in (BENCHMARK.format(failed=3), "no writable volumes"):
        with pytest.raises(RuntimeError, match="weed benchmark"):
            seaweedfs.requests_per_second(said)


def test_copies_of_moosefs_that_are_good() -> None:
    assert moosefs.copies(FILE_INFO.format(status="VALID")) == 3
    assert moosefs.copies(FILE_INFO.format(status="WRONG VERSION")) == 2


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole"),
        (b"PUT", b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n"),
        (b"DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ],
)
def test_an_answer_counts_when_it_is_whole_and_a_refusal_does_not(
    request_: bytes, answer: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = rest.Connection(listener.getsockname())
        server, _ = listener.accept()
        with connection.socket, server:
            connection.send(request_ + b" /x HTTP/1.1\r\n\r\n")
            server.sendall(answer[:-1])
            assert not connection.is_answered()
            server.sendall(answer[-1:])
            assert connection.is_answered()
            connection.send(request_ + b" /x HTTP/1.1\r\n\r\n")
            server.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            with pytest.raises(RuntimeError, match="503"):
                connection.is_answered()


def test_each_round_begins_with_another_system() -> None:
    systems = ["a", "b", "c"]
    orders = [turns(systems, number) for number in range(3)]
    assert [order[0] for order in orders] == systems
    assert all(sorted(order) == systems for order in orders)


def test_what_did_not_run_is_said_with_the_command_that_adds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    why = moosefs.missing()
    assert "apt-get install moosefs-master" in why
    result: dict[str, Any] = {
        "rounds": 1, "mib": 64, "listed": 10, "in_flight": 16, "versions": {"ours": "1"},
        "not_run": {"moosefs": why},
        "figures": {way: dict.fromkeys(FIGURES, 1234.5) for way in WAYS if way != "moosefs"},
    }  # fmt: skip
    del result["figures"]["seaweedfs-own"]["stat"]
    lines = table(result, "today").splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {len(FIGURES) + 3}
    row = next(line for line in lines if "its own programs" in line)
    assert row.endswith("| 1,234 | - | 1,234 | 1,234 |")
    assert lines[-1] == f"MooseFS was not run: {why}."
