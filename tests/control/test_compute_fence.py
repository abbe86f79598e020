"""What containers must not reach: which networks this machine says it is in."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

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


class Tables:
    """Stands for the kernel's, with the count of their changes."""

    def __init__(self) -> None:
        self.count = 7
        self.ours = ""
        self.loads = 0
        #: What others do right after our next load.
        self.meanwhile = ""

    def change(self, what: str) -> None:
        self.count += 1
        if what == "flush":
            self.ours = ""

    async def nft(self, *arguments: str, input: str = "") -> str:
        await trio.sleep(0.01)
        if "list" in arguments:
            return self.ours
        self.loads += 1
        self.count += 1
        self.ours = f"listed {input}"
        if self.meanwhile:
            self.change(self.meanwhile)
            self.meanwhile = ""
        return ""


async def test_the_firewall_is_back_within_a_second_and_not_loaded_for_what_others_do(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables()
    monkeypatch.setattr(fence, "_nft", tables.nft)
    monkeypatch.setattr(fence, "changes", lambda: tables.count)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fence.Fence("c" * 16, []).keep)
        await trio.sleep(5)
        assert tables.loads == 1
        for _ in range(10):
            tables.change("other's")
            await trio.sleep(1)
        assert tables.loads == 1
        tables.change("flush")
        await trio.sleep(1)
        assert tables.ours
        assert tables.loads == 2
        # Also if it is flushed again while it is being loaded.
        tables.meanwhile = "flush"
        tables.change("flush")
        await trio.sleep(1)
        assert tables.ours
        assert tables.loads == 4
        await trio.sleep(fence.AGAIN_SECONDS)
        assert tables.loads == 5
        nursery.cancel_scope.cancel()
