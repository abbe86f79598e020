"""Credentials: what is valid, what is not, and when it stops being so."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
import trio
import trio.testing
from auth_server import Hands
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS

from control.errors import Unauthorized
from control.identity import users as people
from control.identity.credentials import (
    EXPIRED_TOKEN_SECONDS,
    SESSIONS_MAX,
    SWEEP_ROWS,
    TICKET_SECONDS,
    Credentials,
    Fault,
    PasswordChanged,
)
from control.identity.keys import SigningKeys
from control.identity.rows import (
    IDENTITY,
    ServiceAccount,
    Session,
    User,
    accounts,
    sessions,
    tokens,
    users,
)
from control.records import Records, Txn

ADA = User("AdaAda", "ada", "Ada", "hash", False, 1)
SCOPES = {"storage.AdaAda.files": ["read"]}
DAY = 24 * 3600

VERIFY = """
import sys
from pathlib import Path
from control.identity.credentials import Credentials
from control.identity.keys import SigningKeys
from control.identity.rows import IDENTITY
from control.records import Records
place = Path(sys.argv[1])
credentials = Credentials(
    Records.open(place / "records", [IDENTITY], sync=False), SigningKeys.open(place / "keys")
)
for line in sys.stdin:
    principal = credentials.verify(line.strip())
    print(principal.user_id if principal else "-", flush=True)
"""


class House:
    """Records, keys and credentials in one directory, with the user Ada."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.hands = Hands()
        self.records = Records.open(place / "records", [IDENTITY], sync=False)
        self.keys = SigningKeys.open(place / "keys", clock=self.hands, ticks=self.hands)
        self.credentials = Credentials(self.records, self.keys, self.hands)

    async def session(self, user: User = ADA, **more: Any) -> str:
        with self.records.read() as txn:
            there = users.get(txn, user.id) is not None
        if not there:
            await self.write(lambda txn: users.insert(txn, user))
        return await self.credentials.issue_session(user, "127.0.0.1", **more)

    async def token(self, expires_in: str = "never", **more: Any) -> str:
        await self.session()
        issue = self.credentials.issue_token
        made = await issue("AdaAda", "ci", SCOPES, expires_in, check=lambda txn: None, **more)
        return made[1]

    async def write(self, decide: Callable[[Txn], Any]) -> Any:
        return await self.records.write(decide)

    def last_used_at(self, text: str) -> int:
        """As it is stored."""
        with self.records.read() as txn:
            row = tokens.get(txn, claims_of(text)["token_id"])
        assert row is not None
        return row.last_used_at

    def is_valid(self, text: str) -> bool:
        return self.credentials.verify(text) is not None


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.records.close()


def claims_of(text: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        text.removeprefix("ecloud_"), options={"verify_signature": False}
    )
    return claims


def resigned(house: House, text: str, **changes: Any) -> str:
    """``text`` with other claims (None: without), signed by the real key."""
    prefix = "ecloud_" if text.startswith("ecloud_") else ""
    claims = {k: v for k, v in {**claims_of(text), **changes}.items() if v is not None}
    key = house.keys.current
    return prefix + jwt.encode(claims, key.raw, "HS256", {"kid": key.id})


def b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def signed(head: Any, payload: Any, key: bytes) -> str:
    text = f"{b64(head)}.{b64(payload)}"
    signature = jwt.get_algorithm_by_name("HS256").sign(text.encode(), key)
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


@pytest.mark.parametrize("kind", ["session", "token"])
@pytest.mark.parametrize("row", ["kept", "swept"])
async def test_what_is_wrong_with_a_text_that_has_expired(
    house: House, kind: str, row: str
) -> None:
    text = await (house.session(seconds=30 * DAY) if kind == "session" else house.token("30d"))
    house.hands.at += 30 * DAY + (EXPIRED_TOKEN_SECONDS if row == "swept" else 0)
    await house.credentials.tidy()
    assert house.credentials.fault(text) is Fault.EXPIRED


@pytest.mark.parametrize("kind", ["session", "token"])
async def test_what_is_wrong_with_a_text_that_was_revoked(house: House, kind: str) -> None:
    text = await (house.session() if kind == "session" else house.token("30d"))
    found = house.credentials.verify(text)
    assert found is not None
    table = sessions if kind == "session" else tokens
    await house.write(lambda txn: table.delete(txn, found.credential_id))
    assert house.credentials.fault(text) is Fault.REVOKED
    house.hands.at += 31 * DAY
    assert house.credentials.fault(text) is Fault.EXPIRED


async def test_of_an_api_token_whose_user_is_gone_it_is_said(house: House) -> None:
    text = await house.token("never")
    await house.write(lambda txn: users.delete(txn, "AdaAda"))
    assert not house.is_valid(text)
    assert house.credentials.fault(text) is Fault.REVOKED


async def test_a_text_of_a_key_that_is_gone_is_not_valid(house: House) -> None:
    text = await house.session()
    house.keys.rotate(0)
    assert house.credentials.fault(text) is Fault.NOT_VALID


FILE = ["photos", "a.jpg"]


@pytest.mark.parametrize("kind", ["session", "token"])
async def test_a_ticket_is_for_one_file_until_it_or_its_credential_ends(
    house: House, kind: str
) -> None:
    text = await (house.session() if kind == "session" else house.token())
    made_by = house.credentials.verify(text)
    assert made_by is not None

    def is_good(ticket: str, file: list[str] = FILE) -> bool:
        return house.credentials.verify_ticket(ticket, file) == made_by

    ticket, expires_at = house.credentials.issue_ticket(made_by, FILE, 3600)
    assert is_good(ticket)
    assert not house.is_valid(ticket)
    for other in (["photos", "a.jp"], ["photos", "", "a.jpg"], ["photos/a.jpg"], ["b", "a.jpg"]):
        assert not is_good(ticket, other)
    for other in (text, "", ticket[:-1], f"{ticket}A", f"ecloud_{ticket}"):
        assert not is_good(other)
    assert not is_good(resigned(house, ticket, type="session"))
    assert not is_good(resigned(house, ticket, is_session=kind == "token"))
    again = Credentials(house.records, SigningKeys.open(house.place / "keys"), house.hands)
    assert again.verify_ticket(ticket, FILE) == made_by, "another process knows it"
    longest, ends_at = house.credentials.issue_ticket(made_by, FILE, 10 * DAY)
    assert ends_at == house.hands.at + TICKET_SECONDS
    house.hands.at = expires_at - 1
    assert is_good(ticket)
    house.hands.at = expires_at
    assert not is_good(ticket)
    assert is_good(longest)

    table = sessions if kind == "session" else tokens
    await house.write(lambda txn: table.delete(txn, made_by.credential_id))
    assert not is_good(longest)


@pytest.mark.parametrize("how", ["user", "key"])
async def test_a_ticket_ends_with_its_user_and_with_the_key(house: House, how: str) -> None:
    made_by = house.credentials.verify(await house.session())
    assert made_by is not None
    ticket, _ = house.credentials.issue_ticket(made_by, FILE, 3600)
    assert house.credentials.verify_ticket(ticket, FILE) == made_by
    if how == "key":
        house.keys.rotate(0)
    else:
        await house.write(lambda txn: users.delete(txn, "AdaAda"))
    assert house.credentials.verify_ticket(ticket, FILE) is None


@pytest.mark.parametrize("kind", ["session", "token"])
async def test_a_credential_is_its_users_until_it_expires(house: House, kind: str) -> None:
    text = await (house.session(seconds=30 * DAY) if kind == "session" else house.token("30d"))
    found = house.credentials.verify(text)
    assert found is not None
    assert (found.user_id, found.is_session) == ("AdaAda", kind == "session")
    assert found.username == "ada" if kind == "session" else found.grants == SCOPES
    house.hands.at += 30 * DAY - 1
    assert house.is_valid(text)
    house.hands.at += 1
    assert not house.is_valid(text)


async def test_a_token_that_never_expires_has_no_exp(house: House) -> None:
    text = await house.token("never")
    assert "exp" not in claims_of(text)
    house.hands.at += 20 * 365 * DAY
    assert house.is_valid(text)


async def test_what_is_not_exactly_what_was_issued_is_refused(house: House) -> None:
    session, token = await house.session(), await house.token()
    head, payload, signature = session.split(".")
    token_payload = token.split(".")[1]
    kid = house.keys.current.id
    none_head = b64({"alg": "none", "typ": "JWT", "kid": kid})
    real, wrong = house.keys.current.raw, b"w" * 32
    claims = claims_of(session)
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    forged = {
        "empty": "",
        "prefix alone": "ecloud_",
        "prefix cut off": token.removeprefix("ecloud_"),
        "prefix added": f"ecloud_{session}",
        "prefix twice": f"ecloud_{token}",
        "alg none": f"{none_head}.{payload}.",
        "alg none, old signature": f"{none_head}.{payload}.{signature}",
        "alg none token": f"ecloud_{none_head}.{token_payload}.",
        "alg HS512": jwt.encode(claims, real * 2, "HS512", {"kid": kid}),
        "alg HS384": jwt.encode(claims, real * 2, "HS384", {"kid": kid}),
        **{
            f"head with {change}": signed({"alg": "HS256", "kid": kid, **change}, claims, wrong)
            for change in (
                *({"alg": alg} for alg in ("None", "NONE", "RS256", "ES256", None)),
                *({"kid": other} for other in ("../../../dev/null", 0, ["x"], None)),
                {"jwk": {"kty": "oct", "k": b64("w" * 32)}},
                {"crit": ["exp"]},
            )
        },
        "empty key": signed({"alg": "HS256", "kid": kid}, claims, b""),
        "key is the kid": signed({"alg": "HS256", "kid": kid}, claims, kid.encode()),
        "claims are a list": signed({"alg": "HS256", "kid": kid}, [], real),
        "claims changed": f"{head}.{b64({**claims, 'is_admin': True})}.{signature}",
        "signature of another": f"{head}.{payload}.{token.split('.')[2]}",
        "scopes changed": f"ecloud_{token.split('.')[0].removeprefix('ecloud_')}."
        f"{b64({**claims_of(token), 'scopes': {'storage.AdaAda': ['delete']}})}."
        f"{token.split('.')[2]}",
        "cut": session[:-2],
        "cut by a letter": session[:-1],
        "lengthened": f"{session}A",
        "twice": f"{session}.{session}",
        "dots": "..",
        "wrong key": jwt.encode(claims, wrong, "HS256", {"kid": kid}),
        "wrong kid": jwt.encode(claims, real, "HS256", {"kid": "other"}),
        "no kid": jwt.encode(claims, real, "HS256"),
        "signature changed": f"{head}.{payload}.{flipped}",
        "signature cut off": f"{head}.{payload}.",
        "two parts": f"{head}.{payload}",
        "four parts": f"{session}.x",
        "space": f" {session}",
        "a NUL": f"{session}\0",
        "not ASCII": f"{session}é",
        "half a letter": f"{session}\ud800",
        "very long": "x" * 100_000,
        "very deep": f"{head}.{b64('x')}.{'[' * 3000}",
        "token's other key": "ecloud_" + jwt.encode(claims_of(token), wrong, "HS256"),
        "token signed again": resigned(house, token, jti="0" * 32),
        "type of a token": resigned(house, session, type="api_token"),
        "another session": resigned(house, session, jti="x" * 22),
        "another user": resigned(house, session, user_id="EveEve"),
        "expired": resigned(house, session, exp=int(house.hands.at)),
        "exp of another type": resigned(house, session, exp="never"),
        "is_admin of another type": resigned(house, session, is_admin="no"),
        **{f"no {claim}": resigned(house, session, **{claim: None}) for claim in claims},
    }
    assert {what for what, text in forged.items() if house.is_valid(text)} == set()
    malformed = {
        *("empty", "prefix alone", "dots", "two parts", "four parts", "twice", "very long"),
        *("very deep", "not ASCII", "half a letter", "claims are a list", "a NUL", "space"),
        *("cut", "prefix twice", "head with {'crit': ['exp']}"),
        *(f"head with {{'kid': {other}}}" for other in (0, ["x"], None)),
    }
    ended = {"expired": Fault.EXPIRED, "another session": Fault.REVOKED}
    faults = {what: house.credentials.fault(text) for what, text in forged.items()}
    # One signature in sixteen ends in bits that are 0: without its last letter it is still
    # well-formed.
    assert faults.pop("cut by a letter") in (Fault.MALFORMED, Fault.NOT_VALID)
    assert {what for what, fault in faults.items() if fault is Fault.MALFORMED} == malformed
    assert {what: faults[what] for what in ended} == ended
    assert house.is_valid(session)
    assert house.is_valid(token)
    assert house.is_valid(resigned(house, session, color="red")), "what is forged above is enough"


async def test_each_credential_has_one_spelling(house: House) -> None:
    """Nothing may be put into its text or behind it, and no letter may be another one: decoders
    of Base64 pass over padding, over foreign letters, and over the last bits of the last one."""
    token, session = await house.token(), await house.session()
    made_by = house.credentials.verify(token)
    assert made_by is not None
    ticket, _ = house.credentials.issue_ticket(made_by, ["n", "f"], 60)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def is_valid(text: str) -> bool:
        verify = house.credentials.verify_ticket
        return house.is_valid(text) or verify(text, ["n", "f"]) is not None

    for text in (token, session, ticket):
        assert is_valid(text)
        others = {
            f"{text}{end}" for end in ("=", "==", "=" * 43, " ", "\n", "\r\n", ".", "!", "+/")
        }
        others |= {text[:at] + odd + text[at:] for at in range(len(text)) for odd in "= \n!/+."}
        others |= {text[:-1] + letter for letter in letters} - {text}
        assert {other for other in others if is_valid(other)} == set()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text() | st.text(alphabet="abcXYZ019_-.=").map(lambda text: f"ecloud_{text}"))
def test_no_text_makes_verify_fail(house: House, text: str) -> None:
    assert not house.is_valid(text)
    assert house.credentials.fault(text) in (Fault.MALFORMED, Fault.NOT_VALID)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    ),
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), st.text() | st.none()),
)
def test_no_signed_nonsense_makes_verify_fail(house: House, payload: Any, head: Any) -> None:
    key = house.keys.current
    head = {"alg": "HS256", "kid": key.id, **head}
    assert not house.is_valid(signed(head, payload, key.raw))


async def test_a_verified_credential_is_looked_up_again_each_time(house: House) -> None:
    """The signature is remembered, nothing else is."""
    session, token = await house.session(), await house.token()
    assert house.is_valid(session)
    assert house.is_valid(token)
    renamed = msgspec.structs.replace(ADA, display_name="Countess", is_admin=True)
    await house.write(lambda txn: users.put(txn, renamed))
    found = house.credentials.verify(session)
    assert found is not None
    assert (found.display_name, found.is_admin) == ("Countess", True)
    jti = claims_of(session)["jti"]
    await house.write(lambda txn: sessions.delete(txn, jti))
    assert not house.is_valid(session)
    await house.write(lambda txn: tokens.delete(txn, claims_of(token)["token_id"]))
    assert not house.is_valid(token)


async def test_a_deleted_users_credentials_end(house: House) -> None:
    root = User("Root01", "root", "Root", "hash", True, 1)
    await house.write(lambda txn: users.insert(txn, root))
    session, token = await house.session(), await house.token()
    called: list[str] = []
    await house.write(lambda txn: people.delete(txn, ADA.id, [lambda _, who: called.append(who)]))
    assert called == [ADA.id]
    assert not house.is_valid(session)
    assert not house.is_valid(token)
    with house.records.read() as txn:
        assert sessions.count(txn) == tokens.count(txn) == accounts.count(txn) == 0
        assert users.count(txn) == 1


async def test_beyond_the_bound_the_oldest_session_ends(house: House) -> None:
    first = await house.session()
    house.hands.at += 1
    second = await house.session()

    def fill(txn: Txn) -> None:
        for number in range(SESSIONS_MAX - 2):
            row = Session(f"s{number}", ADA.id, int(house.hands.at) + 1, 2_000_000_000, "")
            sessions.insert(txn, row)

    await house.write(fill)
    assert house.is_valid(first)
    third = await house.session()
    assert [house.is_valid(text) for text in (first, second, third)] == [False, True, True]


async def test_no_session_for_a_password_that_is_not_the_users_any_more(house: House) -> None:
    await house.session()
    changed = msgspec.structs.replace(ADA, password="another hash")
    await house.write(lambda txn: users.put(txn, changed))
    with pytest.raises(PasswordChanged):
        await house.credentials.issue_session(ADA, "::1", new_password="renewed hash")
    with house.records.read() as txn:
        assert users.get(txn, ADA.id) == changed
        assert sessions.count(txn) == 1


async def test_no_session_for_a_user_who_went_meanwhile(house: House) -> None:
    with pytest.raises(Unauthorized):
        await house.credentials.issue_session(ADA, "::1")


async def test_a_service_accounts_token_holds_what_the_account_holds_now(house: House) -> None:
    account = ServiceAccount("acc", ADA.id, "bot", SCOPES, 1, 1)
    await house.write(lambda txn: accounts.insert(txn, account))
    text = await house.token(account_id="acc")
    found = house.credentials.verify(text)
    assert found is not None
    assert found.grants == SCOPES
    wider = {"storage.AdaAda": ["read", "create"]}
    await house.write(lambda txn: accounts.put(txn, msgspec.structs.replace(account, scopes=wider)))
    found = house.credentials.verify(text)
    assert found is not None
    assert found.grants == wider
    await house.write(lambda txn: accounts.delete(txn, "acc"))
    assert not house.is_valid(text)


async def test_a_rotation_ends_neither_sessions_nor_tokens(house: House) -> None:
    session, token = await house.session(seconds=DAY), await house.token()
    house.keys.rotate(keep_seconds=DAY)
    fresh = await house.session(seconds=DAY)
    heads = [jwt.get_unverified_header(text)["kid"] for text in (session, fresh)]
    assert heads[0] != heads[1] == house.keys.current.id
    assert all(house.is_valid(text) for text in (session, token, fresh))
    house.hands.at += 2 * DAY
    assert house.is_valid(token)
    fresh = await house.session(seconds=DAY)
    assert house.is_valid(fresh)
    house.keys.rotate(keep_seconds=0)
    assert not house.is_valid(fresh), "the key was stolen"
    assert house.is_valid(token), "what proves a token is its hash, no key"


async def test_neither_tokens_nor_passwords_are_stored(house: House) -> None:
    text = await house.token()
    house.records.close()
    stored = b"".join(path.read_bytes() for path in house.place.rglob("*") if path.is_file())
    assert b"AdaAda" in stored
    assert text.encode() not in stored
    assert text.rpartition(".")[2].encode() not in stored


@pytest.mark.real
async def test_another_process_sees_everything_with_its_next_look(tmp_path: Path) -> None:
    house = House(tmp_path)
    # The other process has the real clock.
    house.hands.at = 4_000_000_000.0
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", VERIFY, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    async def ask(text: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(text.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await process.stdout.receive_some()
        return answer.decode().strip()

    with trio.fail_after(HANG_SECONDS):
        try:
            session, token = await house.session(seconds=DAY), await house.token()
            assert await ask(session) == await ask(token) == "AdaAda"
            await house.write(lambda txn: tokens.delete(txn, claims_of(token)["token_id"]))
            assert await ask(token) == "-"
            house.keys.rotate(keep_seconds=DAY)
            fresh = await house.session(seconds=DAY)
            assert await ask(fresh) == await ask(session) == "AdaAda"
            await house.write(lambda txn: sessions.delete(txn, claims_of(session)["jti"]))
            assert await ask(session) == "-"
            await house.write(lambda txn: users.delete(txn, ADA.id))
            assert await ask(fresh) == "-"
        finally:
            process.terminate()
            await process.wait()
    house.records.close()


async def test_the_last_use_is_reported_at_once_and_saved_later(house: House) -> None:
    text = await house.token()
    house.hands.at += 100
    assert house.is_valid(text)
    assert house.last_used_at(text) == 0
    with house.records.read() as txn:
        row = tokens.get(txn, claims_of(text)["token_id"])
    assert row is not None
    assert house.credentials.last_used_at(row) == int(house.hands.at)
    await house.credentials.tidy()
    assert house.last_used_at(text) == int(house.hands.at)


async def test_a_later_use_in_another_process_is_not_set_back(house: House) -> None:
    text = await house.token()
    other = Credentials(house.records, house.keys, house.hands)
    assert other.verify(text)
    house.hands.at += 10
    assert house.is_valid(text)
    await house.credentials.flush()
    await other.flush()
    assert house.last_used_at(text) == int(house.hands.at)


async def test_upkeep_writes_the_last_uses_when_it_is_cancelled(house: House) -> None:
    text = await house.token()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.credentials.upkeep)
        await trio.testing.wait_all_tasks_blocked()
        assert house.is_valid(text)
        nursery.cancel_scope.cancel()
    assert house.last_used_at(text) == int(house.hands.at)


async def test_upkeep_removes_what_has_expired_and_nothing_else(house: House) -> None:
    short, long = await house.session(seconds=10), await house.session(seconds=1000)
    await house.token("never")
    expired = claims_of(await house.token("30d"))["token_id"]
    house.hands.at += 10
    await house.credentials.tidy()
    with house.records.read() as txn:
        assert sessions.get(txn, claims_of(short)["jti"]) is None
        assert sessions.get(txn, claims_of(long)["jti"]) is not None
    house.hands.at += 30 * DAY
    await house.credentials.tidy()
    with house.records.read() as txn:
        assert tokens.get(txn, expired) is not None, "it is shown as expired for a while"
    house.hands.at += EXPIRED_TOKEN_SECONDS
    await house.credentials.tidy()
    with house.records.read() as txn:
        assert tokens.get(txn, expired) is None
        assert tokens.count(txn) == 1


async def test_upkeep_comes_round_in_bounded_steps(house: House) -> None:
    total = 2 * SWEEP_ROWS + 10

    def fill(txn: Txn) -> None:
        for number in range(total):
            sessions.insert(txn, Session(f"s{number:06}", "x", 0, number % 2 * 2_000_000_000, ""))

    await house.write(fill)
    left = []
    for _ in range(3):
        await house.credentials.tidy()
        with house.records.read() as txn:
            left.append(sessions.count(txn))
    assert left == [total - SWEEP_ROWS // 2, total - SWEEP_ROWS, total // 2]
