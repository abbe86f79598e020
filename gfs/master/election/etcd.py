"""etcd as the election engine, through its JSON gateway.

========================  =================================================================
key                       value
========================  =================================================================
``gfs/NAME/master``       the holder's claim as JSON; bound to its etcd lease, so it goes when
                          the lease ends
``gfs/NAME/cluster``      the id of the cluster, for good
========================  =================================================================

The hold is taken by a transaction that compares the revision of the key with that which was seen.
Renewing it is to keep the lease alive, and then to see that the key still has the revision of our
transaction: somebody may have deleted the key of a live lease by hand, and a member that was the
leader, and is stuck or cut off, may keep alive what the others have ended (up to etcd 3.5.9). So
both are asked of one member, and the second question is one that it cannot answer by itself. Reads
are linearizable, which is the gateway's default; a transaction without any operation is not.

Its lease counts from when etcd's leader got the request, on a monotonic clock, and again
from the election of another leader: so it never ends early, which is all that is asked of it.
"""

from __future__ import annotations

import base64
import math
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from gfs.config import MasterSettings, split_addresses
from gfs.errors import SettingsError
from gfs.io import split_address
from gfs.master.election.engine import Claim, EngineAway, View

T = TypeVar("T")

#: An endpoint gets this share of the hold to answer, then the next one is asked.
TRY_SHARE = 1 / 8
#: And this one to check a password, which is meant to take a while.
LOGIN_SHARE = 1 / 2

_LOG_IN_AGAIN = (httpx.codes.UNAUTHORIZED, httpx.codes.BAD_REQUEST)


class _Hold(NamedTuple):
    lease: str
    revision: int


class Etcd:
    """``hold_seconds`` is rounded up to whole seconds. Close it with ``aclose``."""

    def __init__(
        self,
        endpoints: list[str],
        name: str,
        hold_seconds: float,
        *,
        tls: ssl.SSLContext | None = None,
        user: str = "",
        password: Callable[[], str] = str,
    ) -> None:
        scheme = "http" if tls is None else "https"
        self.name = f"etcd ({', '.join(endpoints)})"
        self._endpoints = [f"{scheme}://{each}" for each in endpoints]
        self._seconds = math.ceil(hold_seconds)
        self._master = _text(f"gfs/{name}/master")
        self._cluster = _text(f"gfs/{name}/cluster")
        self._login = {"name": user, "password": password()} if user else None
        self._read_password = password
        self._token = ""
        self._client = httpx.AsyncClient(
            trust_env=False,
            verify=True if tls is None else tls,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def view(self) -> View:
        ranges = [{"request_range": {"key": key}} for key in (self._master, self._cluster)]
        return await self._ask("kv/txn", {"success": ranges}, self._read_view)

    def _read_view(self, answer: dict[str, Any]) -> View:
        master, cluster = (each["response_range"].get("kvs") for each in answer["responses"])
        recorded = _bytes(cluster[0]["value"]).decode() if cluster else ""
        if not master:
            return View(cluster=recorded)
        try:
            claim = msgspec.json.decode(_bytes(master[0]["value"]), type=Claim)
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"the value of {self._master!r} is not ours: {error}") from None
        return View(claim, recorded, int(master[0]["mod_revision"]))

    async def take(self, claim: Claim, seen: View) -> object | None:
        ttl = {"TTL": str(self._seconds)}
        lease = await self._ask("lease/grant", ttl, lambda granted: str(granted["ID"]))
        revision = await self._put(seen.version, claim, lease)
        if revision is None:
            await self.release(_Hold(lease, 0))
            return None
        return _Hold(lease, revision)

    async def renew(self, hold: object) -> bool:
        assert isinstance(hold, _Hold)
        kept = {"ID": hold.lease}
        look = {"request_range": {"key": self._master, "count_only": True}}
        ours = {"compare": [_unchanged(self._master, hold.revision)]}

        async def of_one(endpoint: str) -> bool:
            answer = await self._ask_one(endpoint, "lease/keepalive", kept)
            if int(answer["result"].get("TTL", 0)) <= 0:
                return False
            answer = await self._ask_one(
                endpoint, "kv/txn", {**ours, "success": [look], "failure": [look]}
            )
            return bool(answer.get("succeeded"))

        return await self._in_turn(of_one)

    async def offer(self, hold: object, claim: Claim) -> None:
        assert isinstance(hold, _Hold)
        await self._put(hold.revision, claim, hold.lease)

    async def release(self, hold: object) -> None:
        assert isinstance(hold, _Hold)
        await self._ask("lease/revoke", {"ID": hold.lease}, lambda _: None)

    async def record(self, cluster: str) -> str:
        def read(answer: dict[str, Any]) -> str:
            if answer.get("succeeded"):
                return cluster
            return _bytes(answer["responses"][0]["response_range"]["kvs"][0]["value"]).decode()

        return await self._ask(
            "kv/txn",
            {
                "compare": [_unchanged(self._cluster, 0)],
                "success": [{"request_put": {"key": self._cluster, "value": _text(cluster)}}],
                "failure": [{"request_range": {"key": self._cluster}}],
            },
            read,
        )

    async def _put(self, revision: int, claim: Claim, lease: str) -> int | None:
        """Write the claim if the key has this revision. Returns its new one."""
        value = base64.b64encode(msgspec.json.encode(claim)).decode()
        put = {"request_put": {"key": self._master, "value": value, "lease": lease}}
        compare = [_unchanged(self._master, revision)]

        def read(answer: dict[str, Any]) -> int | None:
            return int(answer["header"]["revision"]) if answer.get("succeeded") else None

        return await self._ask("kv/txn", {"compare": compare, "success": [put]}, read)

    # --- asking ------------------------------------------------------------------------------

    async def _ask(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """Returns what ``read`` takes from the answer."""

        async def of_one(endpoint: str) -> T:
            return read(await self._ask_one(endpoint, path, body))

        return await self._in_turn(of_one)

    async def _in_turn(self, ask: Callable[[str], Awaitable[T]]) -> T:
        """Ask the endpoints in turn, beginning with the one that answered last. One whose answer
        is not etcd's has not answered."""
        reason = ""
        for endpoint in self._endpoints.copy():
            try:
                return await ask(endpoint)
            except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"{endpoint}: {_why(error)}"
                self._endpoints.remove(endpoint)
                self._endpoints.append(endpoint)
        raise EngineAway(reason)

    async def _ask_one(self, endpoint: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        for is_last in (False, True):
            if self._login is not None and not self._token:
                self._token = await self._log_in(endpoint, self._login)
            reply = await self._post(f"{endpoint}/v3/{path}", body, self._token)
            # Tokens end after some minutes, or with a restart of etcd; those that etcd signs, with
            # each change of its users, which is a bad request (400).
            if is_last or self._login is None or reply.status_code not in _LOG_IN_AGAIN:
                break
            self._token = ""
        return _checked(reply)

    async def _log_in(self, endpoint: str, login: dict[str, str]) -> str:
        """Returns a token. The password may have been changed, at etcd and in its file."""
        url = f"{endpoint}/v3/auth/authenticate"
        found = await self._post(url, login, "", LOGIN_SHARE)
        if found.status_code in _LOG_IN_AGAIN:
            read = self._read_password
            try:
                password = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
            except SettingsError as error:
                raise ValueError(f"HTTP {found.status_code}, and {error}") from None
            if password != login["password"]:
                login["password"] = password
                found = await self._post(url, login, "", LOGIN_SHARE)
        return str(_checked(found)["token"])

    async def _post(
        self, url: str, body: dict[str, Any], token: str, share: float = TRY_SHARE
    ) -> httpx.Response:
        headers = {"Authorization": token} if token else {}
        return await self._client.post(
            url, content=msgspec.json.encode(body), headers=headers, timeout=self._seconds * share
        )


def _why(error: Exception) -> str:
    if isinstance(error, LookupError | TypeError | AttributeError):
        return f"what answers there is no etcd ({type(error).__name__}: {error})"
    # That of TLS is somewhere below.
    found: BaseException | None = error
    while found is not None and not str(found):
        found = found.__cause__ or found.__context__
    return str(found or type(error).__name__)


def _checked(reply: httpx.Response) -> dict[str, Any]:
    """The answer. Raises ValueError."""
    if reply.status_code != httpx.codes.OK:
        raise ValueError(f"HTTP {reply.status_code}: {reply.text[:200]}")
    try:
        found = msgspec.json.decode(reply.content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ValueError(f"no JSON object: {error}") from None
    return found


def _unchanged(key: str, revision: int) -> dict[str, str]:
    """The comparison of a transaction; revision 0 is that of a key that does not exist."""
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def _text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _bytes(value: str) -> bytes:
    return base64.b64decode(value)


def from_settings(settings: MasterSettings) -> Etcd:
    """The engine that ``settings.elect`` names. Raises SettingsError."""
    url = urlsplit(settings.elect)
    if "@" in url.netloc:
        raise SettingsError(
            "--elect etcd://…: the URL must not contain a user or a password: set elect_user and "
            "elect_password_file"
        )
    endpoints, name = split_addresses(url.netloc), url.path.strip("/")
    if url.scheme != "etcd" or not endpoints or not name or url.query or url.fragment:
        raise SettingsError(
            f"--elect {settings.elect}: it must be etcd://HOST:PORT[,HOST:PORT…]/NAME or "
            "kubernetes://NAMESPACE/LEASE, the same for all masters of a cluster"
        )
    for endpoint in endpoints:
        try:
            split_address(endpoint)
            httpx.URL(f"http://{endpoint}")
        except (ValueError, httpx.InvalidURL) as error:
            raise SettingsError(f"--elect {settings.elect}: {error}") from None

    def password() -> str:
        path = Path(settings.elect_password_file)
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"elect_password_file {str(path)!r}: {getattr(error, 'strerror', error)}: it must "
                f"hold the password of {settings.elect_user} at etcd"
            ) from None

    return Etcd(
        endpoints,
        name,
        settings.hold_seconds,
        tls=_tls(settings.elect_tls) if settings.elect_tls else None,
        user=settings.elect_user,
        password=password,
    )


def _tls(directory: str) -> ssl.SSLContext:
    """Of a directory with ``ca.pem``, and ``cert.pem`` and ``key.pem`` if etcd wants them."""
    base = Path(directory)
    try:
        context = ssl.create_default_context(cafile=str(base / "ca.pem"))
        if (base / "cert.pem").exists():
            context.load_cert_chain(base / "cert.pem", base / "key.pem")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"elect_tls {directory!r}: {error}: it must hold ca.pem, and cert.pem and key.pem if "
            "etcd asks for certificates"
        ) from None
    return context
