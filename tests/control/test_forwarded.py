"""The client's address behind proxies."""

from __future__ import annotations

from pathlib import Path

import pytest
from auth_server import running
from hypothesis import given
from hypothesis import strategies as st

from control.http.forwarded import PROXIES_MAX, Proxies, network_of
from control.settings import ControlSettings
from gfs.errors import SettingsError

PEER = "10.0.0.1"
OURS = Proxies(["10.0.0.0/24", "fd00::/8"])
addresses = st.ip_addresses(v=4).map(str).filter(lambda address: not OURS.has(address))
proxies = st.integers(1, 254).map(lambda number: f"10.0.0.{number}")


def client(peer: str, *values: str, of: Proxies = OURS) -> str:
    return of.client(peer, [(b"x-forwarded-for", value.encode()) for value in values])


@given(
    st.lists(st.one_of(addresses, proxies, st.text("a ,:[", max_size=9)), max_size=4),
    addresses,
    st.lists(proxies, max_size=4),
    st.booleans(),
)
def test_what_the_client_wrote_does_not_count(
    forged: list[str], seen: str, between: list[str], joined: bool
) -> None:
    # Each proxy appends whom it saw: the outermost one the client, the others a proxy.
    entries = [*forged, seen, *between]
    values = [", ".join(entries)] if joined else entries
    assert client(PEER, *values) == seen
    # Whoever is no proxy of ours can write there what he likes.
    assert client(seen, *values) == seen
    assert client(PEER, *values, of=Proxies()) == PEER


@given(st.lists(st.text(st.characters(codec="latin-1"), max_size=20), max_size=3))
def test_whatever_it_is_an_address_comes_out_or_the_peer(values: list[str]) -> None:
    found = client(PEER, *values)
    assert found == PEER or found.replace(".", "").replace(":", "").isalnum()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], PEER),
        ([""], PEER),
        (["unknown"], PEER),
        (["192.0.2.1, nonsense"], PEER),
        (["nonsense, 10.0.0.2"], "10.0.0.2"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["192.0.2.9", "192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["192.0.2.1, fd00::2"], "192.0.2.1"),
        (["2001:DB8::1"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["fe80::1%eth0"], "fe80::1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1"),
        (["192.0.2.1" + ", 10.0.0.2" * PROXIES_MAX], "10.0.0.2"),
    ],
)
def test_forms_of_an_entry(values: list[str], expected: str) -> None:
    assert client(PEER, *values) == expected


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:0:0:1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_what_one_customer_has(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize("text", ["1", "10.0.0.1/8", "proxy.example", "10.0.0.1 10.0.0.2"])
def test_what_is_no_address_of_a_proxy(text: str) -> None:
    with pytest.raises(SettingsError, match="trusted_proxies"):
        ControlSettings(trusted_proxies=text).check()


@pytest.mark.parametrize(
    ("trusted", "others"), [("", 429), ("192.0.2.77", 429), ("192.0.2.77, 127.0.0.0/8", 401)]
)
async def test_failed_logins_count_by_the_address_that_a_trusted_proxy_sends(
    tmp_path: Path, trusted: str, others: int
) -> None:
    async with running(tmp_path, login_failures=1, trusted_proxies=trusted) as server:

        async def guess(forwarded: str) -> int:
            answer = await server.http.post(
                "/api/login",
                json={"username": "ada", "password": "no"},
                headers={"X-Forwarded-For": forwarded},
            )
            return answer.status_code

        assert await guess("192.0.2.1") == 401
        assert await guess("192.0.2.2") == others
        assert await guess("192.0.2.3, 192.0.2.1") == 429, "an address of one's own making"
        # Not the header that the framework keeps the peer's address in, either.
        answer = await server.http.post(
            "/api/login",
            json={"username": "ada", "password": "no"},
            headers={"X-Forwarded-For": "192.0.2.1", "Remote-Addr": "192.0.2.9"},
        )
        assert answer.status_code == 429
