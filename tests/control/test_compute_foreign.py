"""Ports that other services of this machine have, or have had."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from control.compute.podman import foreign, processes
from control.compute.podman.foreign import ForeignPorts
from control.compute.podman.processes import listeners


@pytest.mark.parametrize(
    ("host", "service", "is_foreign"),
    [
        # Each container has a loopback address of its own.
        ("", "127.0.0.1", False),
        ("", "0.0.0.0", True),
        ("", "::", True),
        ("127.0.0.2", "127.0.0.2", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("127.0.0.2", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
    ],
)
async def test_a_port_where_another_service_was_seen_is_its_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, service: str, is_foreign: bool
) -> None:
    ports, other = ForeignPorts(str(tmp_path), host), ForeignPorts(str(tmp_path), host)
    family = socket.AF_INET6 if ":" in service else socket.AF_INET
    with socket.create_server((service, 0), family=family) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(foreign, "PORTS", frozenset({port}))
        assert (service, port) in listeners("self")
        await ports.look(lambda: {(service, port)})
        assert not ports.has(port), "what is ours is not another's"
        await ports.look(set)
    assert ports.has(port) == is_foreign
    # Also in other processes, when that service is down, and when we have been restarted.
    other.read()
    assert other.has(port) == is_foreign
    assert ForeignPorts(str(tmp_path), host).has(port) == is_foreign


async def test_ports_that_no_rule_can_open_are_of_no_interest(tmp_path: Path) -> None:
    ports = ForeignPorts(str(tmp_path), "0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await ports.look(set)
        assert not ports.has(listener.getsockname()[1])


def test_a_port_that_cannot_be_written_down_is_refused_and_written_later(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    ports = ForeignPorts(str(directory), "")
    ports.add(8080)
    assert ports.has(8080)
    directory.mkdir()
    ports.add(8081)
    again = ForeignPorts(str(directory), "")
    assert again.has(8080)
    assert again.has(8081)


def test_however_long_the_tables_of_a_container_are_only_their_beginning_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is in a container says how many sockets there are."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(20)
        ]
        everything = listeners("self")
        own = os.getpid()
        for size in range(0, 2000, 7):
            monkeypatch.setattr(processes, "TABLE_BYTES_MAX", size)
            found = listeners(own)
            assert found <= everything
            assert len(found) <= 2 * size // 100
        # What listens here is ours and other services', and none of it hides another.
        monkeypatch.setattr(processes, "TABLE_BYTES_MAX", 0)
        assert listeners("self") >= {each.getsockname() for each in sockets}
