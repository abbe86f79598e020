"""Ports that other services of this machine have, or have had."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from control.compute.podman.engine import processes
from control.compute.podman.engine.processes import listeners
from control.compute.podman.network import foreign
from control.compute.podman.network.foreign import ForeignPorts
from control.compute.podman.network.gateway import Address
from control.compute.podman.network.slots import Slots
from control.compute.settings import ComputeSettings
from gfs.errors import SettingsError


def look_at(monkeypatch: pytest.MonkeyPatch, *addresses: Address) -> None:
    """Only these: others on this machine begin to listen at any time, and end."""
    monkeypatch.setattr(foreign, "listeners", lambda of: listeners(of) & set(addresses))


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
        ("127.0.0.2", "::ffff:127.0.0.2", True),
        ("127.0.0.2", "::ffff:127.0.0.1", False),
    ],
)
async def test_a_port_where_another_service_was_seen_is_its_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, service: str, is_foreign: bool
) -> None:
    ports, other = ForeignPorts(str(tmp_path), host), ForeignPorts(str(tmp_path), host)
    family = socket.AF_INET6 if ":" in service else socket.AF_INET
    mapped = service.startswith("::ffff:")
    with socket.create_server((service, 0), family=family, dualstack_ipv6=mapped) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(foreign, "PORTS", frozenset({port}))
        seen_at = service.removeprefix("::ffff:")
        look_at(monkeypatch, (seen_at, port))
        assert (seen_at, port) in listeners("self")
        await ports.look(lambda: {(seen_at, port)})
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


async def test_a_port_that_cannot_be_recorded_is_refused_and_recorded_later(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "later"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ports = ForeignPorts(str(directory), "", "127.0.0.1", range(port, port + 1))
        await ports.look(set)
    assert ports.has(port)
    directory.mkdir()
    await ports.look(set)
    assert ForeignPorts(str(directory), "").has(port)


async def test_a_port_for_ssh_where_another_service_was_seen_is_its_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        look_at(monkeypatch, ("127.0.0.1", port))
        ports = ForeignPorts(str(tmp_path), "", "127.0.0.1", range(port, port + 2))
        await ports.look(set)
    assert ports.has(port)
    assert Slots(str(tmp_path), "127.0.0.1", port, ports.has).ssh_port("0badcafe") != port


async def test_a_port_that_a_connection_has_for_a_while_is_not_lost_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(monkeypatch)
    ports = ForeignPorts(str(tmp_path), "")
    ports.add(8080)
    for _ in range(foreign.LOOKS):
        assert ports.has(8080), "a service that is restarted has it again by then"
        await ports.look(set)
    assert not ports.has(8080)
    assert not ForeignPorts(str(tmp_path), "").has(8080)


def test_however_long_the_tables_of_a_container_are_only_their_beginning_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is in a container says how many sockets there are."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(20)]
        for table in ("tcp", "tcp6"):  # as they are now, since others begin to listen, and end
            for of in ("self", "7"):
                copy = tmp_path / f"proc/{of}/net/{table}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(Path(f"/proc/self/net/{table}").read_bytes())
        monkeypatch.setattr(processes, "Path", lambda path: tmp_path / path[1:])
        everything = listeners("self")
        for size in range(0, 2000, 7):
            monkeypatch.setattr(processes, "TABLE_BYTES_MAX", size)
            found = listeners(7)
            assert len(found) <= 2 * size // 100
            assert found <= everything
        # What listens here is ours and other services', and none of it hides another.
        assert everything >= {each.getsockname() for each in sockets}


@pytest.mark.parametrize("host", ["localhost", "2001:DB8::1", "0.0.0.0/0", ""])
def test_gateway_host_is_written_as_the_kernel_writes_addresses(host: str) -> None:
    """What others listen on is compared with it."""
    with pytest.raises(SettingsError, match="gateway_host: write"):
        ComputeSettings(gateway_host=host).check()
    for written in ("127.0.0.1", "2001:db8::1"):
        ComputeSettings(gateway_host=written).check()
