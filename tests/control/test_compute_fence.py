"""What containers must not reach: which networks this machine says it is in."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest

from control.compute.podman.network import fence


def word(address: str) -> str:
    packed = ipaddress.IPv4Address(address).packed
    return f"{int.from_bytes(packed, sys.byteorder):08X}"


def route(to: str, through: str, mask: str) -> str:
    return f"eth0\t{word(to)}\t{word(through)}\t0001\t0\t0\t0\t{word(mask)}\t0\t0\t0"


@pytest.mark.parametrize(
    ("to", "through", "mask", "network"),
    [
        ("198.51.100.0", "0.0.0.0", "255.255.255.0", "198.51.100.0/24"),
        ("198.51.100.7", "0.0.0.0", "255.255.255.255", "198.51.100.7/32"),
        ("0.0.0.0", "198.51.100.1", "0.0.0.0", ""),
        ("203.0.113.0", "198.51.100.1", "255.255.255.0", ""),
        # The internet, through a tunnel that has no other end: whole, and in halves.
        ("0.0.0.0", "0.0.0.0", "0.0.0.0", ""),
        ("128.0.0.0", "0.0.0.0", "128.0.0.0", ""),
    ],
)
def test_who_is_a_neighbour(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    through: str,
    mask: str,
    network: str,
) -> None:
    monkeypatch.setattr(fence, "ROUTES", tmp_path / "route")
    (tmp_path / "route").write_text(f"Iface\tDestination\n{route(to, through, mask)}\n")
    assert [str(each) for each in fence.neighbours()] == ([network] if network else [])


def test_resolvers_are_those_that_a_container_can_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "resolv.conf", tmp_path / "behind"
    monkeypatch.setattr(fence, "RESOLVERS", (first, tmp_path / "none", second))
    first.write_text("search example.org\nnameserver 127.0.0.53\nnameserver\nnameserver x y\n")
    second.write_text("# nameserver 10.9.9.9\nnameserver 10.0.0.53 \nnameserver fd00::53\n")
    assert fence.resolvers() == ["10.0.0.53", "fd00::53"]
