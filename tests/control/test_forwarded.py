"""The client's address behind proxies."""

from __future__ import annotations

from pathlib import Path

import pytest
from auth_server import running
from hypothesis import given
from hypothesis import strategies as st

from control.forwarded import client_address
from control.settings import ControlSettings
from gfs.errors import SettingsError

PEER = "10.0.0.1"
addresses = st.ip_addresses(v=4).map(str)


@given(st.lists(addresses, max_size=4), st.lists(addresses, min_size=1, max_size=4), st.booleans())
def test_what_the_client_wrote_does_not_count(
    forged: list[str], seen: list[str], joined: bool
) -> None:
    # Each proxy appends whom it saw: the outermost one the client.
    values = [", ".join(forged + seen)] if joined else forged + seen
    assert client_address(PEER, values, len(seen)) == seen[0]


@given(st.lists(st.text(max_size=20), max_size=3), st.integers(0, 3))
def test_whatever_it_is_an_address_comes_out_or_the_peer(values: list[str], proxies: int) -> None:
    found = client_address(PEER, values, proxies)
    assert found == PEER or found.replace(".", "").replace(":", "").isalnum()


@pytest.mark.parametrize(
    ("values", "proxies", "expected"),
    [
        (["192.0.2.1"], 0, PEER),
        ([], 1, PEER),
        ([""], 1, PEER),
        (["unknown"], 1, PEER),
        (["192.0.2.1, nonsense"], 1, PEER),
        (["192.0.2.1"], 2, "192.0.2.1"),
        (["192.0.2.1:4711"], 1, "192.0.2.1"),
        (["2001:DB8::1"], 1, "2001:db8::1"),
        (["[2001:db8::1]:4711"], 1, "2001:db8::1"),
        (["[2001:db8::1]"], 1, "2001:db8::1"),
        (["fe80::1%eth0"], 1, "fe80::1"),
        (["::ffff:192.0.2.1"], 1, "192.0.2.1"),
    ],
)
def test_forms_of_an_entry(values: list[str], proxies: int, expected: str) -> None:
    assert client_address(PEER, values, proxies) == expected


@pytest.mark.parametrize("proxies", [-1, 17])
def test_a_number_of_proxies_that_makes_no_sense(proxies: int) -> None:
    with pytest.raises(SettingsError, match="trusted_proxies"):
        ControlSettings(trusted_proxies=proxies).check()


@pytest.mark.parametrize(("proxies", "others"), [(0, 429), (1, 401)])
async def test_failed_logins_count_by_what_the_proxy_tells(
    tmp_path: Path, proxies: int, others: int
) -> None:
    async with running(tmp_path, login_failures=1, trusted_proxies=proxies) as server:

        async def guess(username: str, forwarded: str) -> int:
            answer = await server.http.post(
                "/api/login",
                json={"username": username, "password": "no"},
                headers={"X-Forwarded-For": forwarded},
            )
            return answer.status_code

        assert await guess("ada", "192.0.2.1") == 401
        assert await guess("bob", "192.0.2.2") == others
        assert await guess("cy", "192.0.2.3, 192.0.2.1") == 429, "an address of one's own making"
        # Not the header that the framework keeps the peer's address in, either.
        answer = await server.http.post(
            "/api/login",
            json={"username": "dan", "password": "no"},
            headers={"X-Forwarded-For": "192.0.2.1", "Remote-Addr": "192.0.2.9"},
        )
        assert answer.status_code == 429
