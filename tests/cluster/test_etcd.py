"""The adapter of etcd for elections, with a real one: open, with users, and with TLS."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from certificates import Authority
from elected import EtcdServer
from limits import HANG_SECONDS
from processes import free_port, wait_until

from gfs.config import MasterSettings
from gfs.errors import SettingsError
from gfs.master.election import Claim, EngineAway, View
from gfs.master.election.etcd import Etcd, _Hold, from_settings

pytestmark = pytest.mark.extra("etcd")

#: How a connection looks that the server has ended: how far it came is a matter of luck.
BROKEN = "disconnected|EOF|reset|closed|broken|ReadError|WriteError"
#: Of a hold that is kept.
SECONDS = 60
#: The shortest that etcd grants.
SECONDS_MIN = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    made = EtcdServer(tmp_path_factory.mktemp("etcd") / "one")
    yield made
    made.stop()


def ask(server: EtcdServer, path: str, token: str = "", **body: object) -> Any:
    headers = {"Authorization": token} if token else {}
    request = urllib.request.Request(
        f"{server.url}/v3/{path}", data=json.dumps(body).encode(), headers=headers
    )
    with urllib.request.urlopen(request, timeout=HANG_SECONDS, context=server.trust) as reply:
        return json.load(reply)


@contextmanager
def answering(answer: Callable[[str, bytes], tuple[int, bytes]]) -> Iterator[int]:
    """A server of HTTP that answers a path and a body with a status and a body; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, reply = answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def engine(server: EtcdServer, name: str, seconds: int = SECONDS, **more: Any) -> Etcd:
    settings = MasterSettings(
        elect=f"etcd://127.0.0.1:{server.port}/{name}", hold_seconds=seconds, **more
    )
    return from_settings(settings)


@pytest.mark.smoke
async def test_one_at_a_time_has_the_hold(server: EtcdServer) -> None:
    async with aclosing(engine(server, "one")) as one, aclosing(engine(server, "one")) as other:
        seen = await one.view()
        assert (seen.claim, seen.cluster) == (None, "")
        hold = await one.take(Claim("a:1", 7), seen)
        assert hold is not None
        assert await other.take(Claim("b:1", 8), seen) is None
        now = await other.view()
        assert now.claim == Claim("a:1", 7)
        lease = hold.lease

        def left() -> int:
            return int(ask(server, "lease/timetolive", ID=lease)["TTL"])

        async def is_older() -> bool:
            return left() < SECONDS - 2

        async def is_new() -> bool:
            return await one.renew(hold) and left() >= SECONDS - 2

        await wait_until(is_older, "time to pass")
        await wait_until(is_new, "renewal")
        # Handed over: only to whom has seen that.
        await one.offer(hold, Claim("a:1", 7, offered_to="b:1"))
        assert not await one.renew(hold)
        assert await other.take(Claim("b:1", 9), now) is None
        now = await other.view()
        assert now.claim == Claim("a:1", 7, offered_to="b:1")
        theirs = await other.take(Claim("b:1", 9), now)
        assert theirs is not None
        await one.release(hold)
        assert await other.renew(theirs)
        await other.release(theirs)
        assert (await one.view()).claim is None


async def test_a_hold_ends_that_is_not_renewed_or_whose_key_was_deleted(server: EtcdServer) -> None:
    async with aclosing(engine(server, "two", SECONDS_MIN)) as one:
        hold = await one.take(Claim("a:1", 7), await one.view())

        async def is_free() -> bool:
            return (await one.view()).claim is None

        await wait_until(is_free, "end of the hold")
        assert not await one.renew(hold)
        hold = await one.take(Claim("a:1", 7), await one.view())
        ask(server, "kv/deleterange", key=base64.b64encode(b"gfs/two/master").decode())
        assert not await one.renew(hold)


async def test_a_cluster_is_recorded_once(server: EtcdServer) -> None:
    async with aclosing(engine(server, "three")) as one:
        assert await one.record("first") == "first"
        assert await one.record("second") == "first"
        assert (await one.view()).cluster == "first"


async def test_an_endpoint_that_is_dead_is_passed_over(server: EtcdServer) -> None:
    settings = MasterSettings(
        elect=f"etcd://127.0.0.1:{free_port()},127.0.0.1:{server.port}/four", hold_seconds=SECONDS
    )
    async with aclosing(from_settings(settings)) as one:
        assert (await one.view()).claim is None
    settings = msgspec.structs.replace(settings, elect=f"etcd://127.0.0.1:{free_port()}/four")
    async with aclosing(from_settings(settings)) as one:
        with pytest.raises(EngineAway, match=r"refused|failed"):
            await one.view()


def make_users(server: EtcdServer) -> str:
    """``root``, and ``gfs``, which has what is below ``gfs/prod/``. Returns root's token."""
    for name, password in (("root", "r"), ("gfs", "secret")):
        ask(server, "auth/user/add", name=name, password=password)
    ask(server, "auth/role/add", name="root")
    ask(server, "auth/user/grant", user="root", role="root")
    ask(server, "auth/role/add", name="gfs")
    first, last = (base64.b64encode(key).decode() for key in (b"gfs/prod/", b"gfs/prod0"))
    allowed = {"permType": "READWRITE", "key": first, "range_end": last}
    ask(server, "auth/role/grant", name="gfs", perm=allowed)
    ask(server, "auth/user/grant", user="gfs", role="gfs")
    ask(server, "auth/enable")
    return str(ask(server, "auth/authenticate", name="root", password="r")["token"])


def signing(path: Path) -> str:
    """The option for tokens that etcd signs."""
    key, public = path.with_suffix(".pem"), path.with_suffix(".pub")
    for command in (
        ["genrsa", "-out", str(key), "2048"],
        ["rsa", "-in", str(key), "-pubout", "-out", str(public)],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return f"--auth-token=jwt,pub-key={public},priv-key={key},sign-method=RS256,ttl=3s"


@pytest.mark.parametrize("tokens", ["simple", "signed"])
async def test_users_of_etcd(tmp_path: Path, tokens: str) -> None:
    options = [signing(tmp_path / "token")] if tokens == "signed" else []
    server = EtcdServer(tmp_path / "etcd", *options)
    try:
        root = make_users(server)
        secret, wrong = tmp_path / "secret", tmp_path / "wrong"
        secret.write_text("secret\n")
        wrong.write_text("guess\n")
        more = {"elect_user": "gfs", "elect_password_file": str(secret)}
        async with aclosing(engine(server, "prod", **more)) as one:
            hold = await one.take(Claim("a:1", 7), await one.view())
            assert await one.renew(hold)
            one._token = "one that etcd has forgotten"  # as after its restart
            assert await one.renew(hold)
            # Signed tokens end with each change of the users, and with time.
            ask(server, "auth/user/add", root, name="somebody", password="else")
            assert await one.renew(hold)
            for _ in range(8):
                await trio.sleep(0.5)
                assert await one.renew(hold)
            await one.release(hold)
        for bad in ({}, {**more, "elect_password_file": str(wrong)}):
            async with aclosing(engine(server, "prod", **bad)) as one:
                with pytest.raises(EngineAway, match="HTTP 4"):
                    await one.view()
        async with aclosing(engine(server, "else", **more)) as one:
            with pytest.raises(EngineAway, match="permission denied"):
                await one.view()
        async with aclosing(engine(server, "prod", **more)) as one:
            await one.view()
            # The password is changed at etcd, and then in the file.
            root = str(ask(server, "auth/authenticate", name="root", password="r")["token"])
            ask(server, "auth/user/changepw", root, name="gfs", password="newer")
            one._token = ""
            with pytest.raises(EngineAway, match="HTTP 4"):
                await one.view()
            secret.unlink()
            with pytest.raises(EngineAway, match=r"HTTP 4.*elect_password_file"):
                await one.view()
            secret.write_text("newer\n")
            assert (await one.view()).claim is None
    finally:
        server.stop()


@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_tls_and_users_of_etcd(tmp_path: Path) -> None:
    """Where etcd has users, its gateway refuses certificates of clients with a CommonName."""
    authority = Authority()
    named = authority.write(tmp_path / "named", "127.0.0.1")
    ours = authority.write(tmp_path / "ours", "127.0.0.1", name="")
    server = EtcdServer(tmp_path / "etcd", tls=ours)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    more = {"elect_user": "gfs", "elect_password_file": str(secret)}
    try:
        make_users(server)
        async with aclosing(engine(server, "prod", elect_tls=str(ours), **more)) as one:
            hold = await one.take(Claim("a:1", 7), await one.view())
            assert await one.renew(hold)
        bare = tmp_path / "bare"
        bare.mkdir()
        (bare / "ca.pem").write_bytes((ours / "ca.pem").read_bytes())
        stranger = Authority("stranger").write(tmp_path / "stranger", "127.0.0.1")
        for directory, why in (
            (str(stranger), "verify failed"),
            (str(bare), f"certificate|{BROKEN}"),
            (str(named), "HTTP 400: CommonName"),
            ("", f"HTTP 400|{BROKEN}"),
        ):
            async with aclosing(engine(server, "prod", elect_tls=directory, **more)) as one:
                with pytest.raises(EngineAway, match=why):
                    await one.view()
    finally:
        server.stop()
    elsewhere = EtcdServer(
        tmp_path / "elsewhere", tls=authority.write(tmp_path / "other", "10.0.0.1")
    )
    try:
        async with aclosing(engine(elsewhere, "prod", elect_tls=str(ours))) as one:
            with pytest.raises(EngineAway, match="not valid for"):
                await one.view()
    finally:
        elsewhere.stop()
    with pytest.raises(SettingsError, match="must hold ca"):
        engine(server, "prod", elect_tls=str(tmp_path / "nowhere"))


async def test_the_revisions_of_etcd_are_compacted(server: EtcdServer) -> None:
    async with aclosing(engine(server, "compacted")) as one:
        hold = await one.take(Claim("a:1", 7), await one.view())
        last = ask(server, "kv/range", key=base64.b64encode(b"x").decode())["header"]["revision"]
        ask(server, "kv/compaction", revision=last, physical=True)
        assert await one.renew(hold)
        await one.release(hold)
        assert (await one.view()).claim is None


async def test_a_member_that_is_cut_off_renews_nothing(tmp_path: Path) -> None:
    """One that was the leader before, and does not know yet that it is not: until etcd 3.5.9 it
    kept leases alive by itself. The key has gone by then at the others."""
    members = EtcdServer.three(tmp_path)
    try:
        async with aclosing(engine(members[0], "cut")) as one:
            hold = await one.take(Claim("a:1", 7), await one.view())
            assert await one.renew(hold)

        def answer(path: str, body: bytes) -> tuple[int, bytes]:
            if path.endswith("keepalive"):
                return 200, b'{"result": {"TTL": "2"}}'
            url = f"{members[0].url}{path}"
            try:
                with urllib.request.urlopen(url, data=body, timeout=HANG_SECONDS) as reply:
                    return reply.status, reply.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        for member in members[1:]:
            member.freeze()
        with answering(answer) as port:
            elect = f"etcd://127.0.0.1:{port}/cut"
            settings = MasterSettings(elect=elect, hold_seconds=SECONDS_MIN)
            async with aclosing(from_settings(settings)) as one:
                with pytest.raises(EngineAway):
                    await one.renew(hold)
    finally:
        for member in members:
            member.stop()


@pytest.mark.parametrize(
    "junk", [b"{}", b"[]", b'{"responses": 5}', b'{"ID": {}, "result": 7}', b"<html>", b'"\xff"']
)
async def test_what_is_no_etcd_is_away(junk: bytes) -> None:
    """And does not end the master."""
    with answering(lambda path, body: (200, junk)) as port:
        settings = MasterSettings(elect=f"etcd://127.0.0.1:{port}/x", hold_seconds=SECONDS)
        async with aclosing(from_settings(settings)) as one:
            hold = _Hold("7", 7)
            for call in (one.view(), one.record("c"), one.renew(hold)):
                with pytest.raises(EngineAway):
                    await call
            taken = None
            with suppress(EngineAway):
                taken = await one.take(Claim("a:1", 7), View())
            assert taken is None


@pytest.mark.parametrize(
    "elect",
    [
        *("etcd://", "etcd://a:1", "etcd://a:1/", "zookeeper://a:1/x", "etcd://nonsense/x"),
        *("etcd://root:secret@a:1/x", "etcd://\x7f:1/x"),
    ],
)
def test_what_is_no_engine_is_refused(elect: str) -> None:
    with pytest.raises(SettingsError, match="--elect") as refusal:
        from_settings(MasterSettings(elect=elect))
    assert "secret" not in str(refusal.value)
