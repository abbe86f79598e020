"""A Lease of Kubernetes as the election engine, through its API server.

=============================  ============================================================
field                          value
=============================  ============================================================
``spec.holderIdentity``        the holder's address; empty: nobody has the hold
``spec.acquireTime``           the holder's wall clock when it got the hold, for people
``gfs/offered-to``             annotation: the address to which the holder gives it up
``gfs/cluster``                annotation: the id of the cluster, for good
=============================  ============================================================

Each change is a replacement that compares ``resourceVersion`` with that which was seen. A Lease
does not end by itself, and the clocks of its writers are not to be trusted: so ``renewTime`` is
for people alone, and a hold has ended for this process once it has seen the same
``resourceVersion`` for the whole of ``hold_seconds`` by its own clock, which runs on while the
machine is suspended; that of the holder (``leaseDurationSeconds``), if it is longer, since the
setting may be changed at one process after the other. The holder's own count began before the
change that was seen.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import trio

from gfs.config import MasterSettings
from gfs.errors import SettingsError
from gfs.master.election.engine import Claim, EngineAway, View

if TYPE_CHECKING:
    from kubernetes.client import CustomObjectsApi

#: As objects of any kind: the client's own Lease drops the microseconds of a time when they are
#: 0, which the API server then refuses.
GROUP, VERSION = "coordination.k8s.io", "v1"
OFFERED, CLUSTER = "gfs/offered-to", "gfs/cluster"
#: A request gets this share of the hold.
TRY_SHARE = 1 / 5
#: Threads of requests, abandoned ones included: each ends with its timeout.
THREADS_MAX = 8
#: How often a change is tried again that another one has overtaken.
TRIES = 5
CONFLICT, NOT_FOUND = 409, 404

Object = dict[str, Any]


class _Hold:
    """The Lease as this process wrote it last."""

    def __init__(self, lease: Object) -> None:
        self.lease = lease

    def is_in(self, lease: Object) -> bool:
        """Whether a Lease is still this hold's: written by this process, perhaps by a request
        whose answer was lost."""
        ours, found = self.lease["spec"], lease.get("spec", {})
        return all(found.get(field) == ours[field] for field in ("holderIdentity", "acquireTime"))


class KubernetesLease:
    """``hold_seconds`` is rounded up to whole seconds, as the Lease has it for the others."""

    def __init__(
        self,
        namespace: str,
        name: str,
        hold_seconds: float,
        api: CustomObjectsApi,
        elapsed: Callable[[], float],
    ) -> None:
        self.name = f"Kubernetes (Lease {namespace}/{name})"
        self._namespace = namespace
        self._lease = name
        self._seconds = hold_seconds
        self._api: Any = api
        self._elapsed = elapsed
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        #: The Lease that was seen last, and when its present version was seen first.
        self._seen: Object | None = None
        #: One that was deleted since: held for its time, for its holder may not know of it.
        self._gone: Object | None = None
        self._seen_at = 0.0
        self._version = 0

    async def view(self) -> View:
        self._look_at(await self._read())
        lease = self._seen or self._gone
        if lease is None:
            return View(version=self._version)
        spec, notes = lease.get("spec", {}), _annotations(lease)
        cluster, holder = notes.get(CLUSTER, ""), spec.get("holderIdentity") or ""
        lasts = max(self._seconds, float(spec.get("leaseDurationSeconds") or 0))
        if not holder or self._elapsed() - self._seen_at >= lasts:
            return View(cluster=cluster, version=self._version)
        since_ns = _from_time(spec.get("acquireTime") or "")
        return View(Claim(holder, since_ns, notes.get(OFFERED, "")), cluster, self._version)

    async def take(self, claim: Claim, seen: View) -> object | None:
        if seen.version != self._version:
            return None
        before = self._seen
        spec = (before or {}).get("spec", {})
        body = self._body(before, claim, int(spec.get("leaseTransitions") or 0) + 1)
        written = await self._write(body, is_new=before is None)
        return None if written is None else _Hold(written)

    async def renew(self, hold: object) -> bool:
        assert isinstance(hold, _Hold)
        return await self._change(hold, lambda lease: None)

    async def offer(self, hold: object, claim: Claim) -> None:
        assert isinstance(hold, _Hold)

        def offered(lease: Object) -> None:
            lease["metadata"]["annotations"] = _annotations(lease) | {OFFERED: claim.offered_to}

        await self._change(hold, offered)

    async def release(self, hold: object) -> None:
        assert isinstance(hold, _Hold)

        def released(lease: Object) -> None:
            lease["spec"]["holderIdentity"] = ""

        await self._change(hold, released)

    async def record(self, cluster: str) -> str:
        for _ in range(TRIES):
            lease = await self._read()
            recorded = "" if lease is None else _annotations(lease).get(CLUSTER, "")
            if recorded:
                return str(recorded)
            body = lease or self._body(None, Claim("", 0), 0)
            body["metadata"]["annotations"] = _annotations(body) | {CLUSTER: cluster}
            if await self._write(body, is_new=lease is None) is not None:
                return cluster
        raise EngineAway(f"the Lease was changed by others {TRIES} times")

    # --- the Lease ---------------------------------------------------------------------------

    def _look_at(self, lease: Object | None) -> None:
        if _version(lease) != _version(self._seen) or not self._version:
            self._seen_at = self._elapsed()
            self._version += 1
            self._gone = self._seen if lease is None else None
        self._seen = lease

    def _body(self, before: Object | None, claim: Claim, transitions: int) -> Object:
        """The Lease with a new holder."""
        now = _to_time(claim.since_ns) if claim.address else None
        notes = _annotations(before or {})
        notes.pop(OFFERED, None)
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Lease",
            "metadata": {
                **(before or {}).get("metadata", {}),
                "name": self._lease,
                "namespace": self._namespace,
                "annotations": notes,
            },
            "spec": {
                "holderIdentity": claim.address,
                "leaseDurationSeconds": max(1, math.ceil(self._seconds)),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }

    async def _change(self, hold: _Hold, change: Callable[[Object], None]) -> bool:
        """Write the hold's Lease with a change; False if it is another's by now."""
        for _ in range(TRIES):
            lease = msgspec.json.decode(msgspec.json.encode(hold.lease))
            lease["spec"]["renewTime"] = _now()
            change(lease)
            written = await self._write(lease, is_new=False)
            if written is not None:
                if lease["spec"]["holderIdentity"]:
                    hold.lease = written
                return True
            found = await self._read()
            if found is None or not hold.is_in(found):
                return False
            hold.lease = found  # an answer was lost, or somebody else changed something else
        raise EngineAway(f"the Lease was changed by others {TRIES} times")

    # --- asking ------------------------------------------------------------------------------

    async def _read(self) -> Object | None:
        try:
            return await self._ask(self._api.get_namespaced_custom_object, self._lease)
        except _Refused as error:
            if error.status == NOT_FOUND:
                return None
            raise EngineAway(str(error)) from None

    async def _write(self, body: Object, *, is_new: bool) -> Object | None:
        """None if the Lease has another version by now, or is there or gone."""
        try:
            if is_new:
                return await self._ask(self._api.create_namespaced_custom_object, body)
            replace = self._api.replace_namespaced_custom_object
            return await self._ask(replace, self._lease, body)
        except _Refused as error:
            if error.status in (CONFLICT, NOT_FOUND) and not error.lacks_namespace:
                return None
            raise EngineAway(str(error)) from None

    async def _ask(self, call: Callable[..., Any], *arguments: Any) -> Object:
        timeout = self._seconds * TRY_SHARE
        where = (GROUP, VERSION, self._namespace, "leases")
        work = partial(_call, call, *where, *arguments, _request_timeout=timeout)
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.lacks_namespace = status == NOT_FOUND and "namespaces" in message


def _call(call: Callable[..., Any], *arguments: Any, _request_timeout: float) -> Object:
    """In a thread. Raises _Refused or EngineAway."""
    from kubernetes.client import ApiException

    try:
        reply = call(*arguments, _request_timeout=_request_timeout, _preload_content=False)
        found = msgspec.json.decode(reply.data, type=Object)
    except ApiException as error:
        raise _Refused(error.status or 0, _said(error)) from None
    except Exception as error:  # any may come: the credentials may be fetched again, too
        raise EngineAway(str(error) or type(error).__name__) from None
    if not all(isinstance(found.get(field), dict) for field in ("metadata", "spec")):
        raise EngineAway("what answers is no API server: its answer is no Lease")
    return found


def _said(error: Any) -> str:
    try:
        message = msgspec.json.decode(error.body or b"", type=Object).get("message", "")
    except msgspec.DecodeError:
        message = str(error.reason)
    return f"HTTP {error.status}: {message}"[:300]


def _annotations(lease: Mapping[str, Any]) -> dict[str, str]:
    return dict(lease.get("metadata", {}).get("annotations") or {})


def _version(lease: Object | None) -> tuple[str, str]:
    found = {} if lease is None else lease["metadata"]
    return found.get("uid", ""), found.get("resourceVersion", "")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _to_time(time_ns: int) -> str:
    """As Kubernetes' MicroTime."""
    seconds, rest = divmod(time_ns, 10**9)
    whole = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def _from_time(text: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp() * 10**6) * 1000
    except ValueError:
        return 0


# --- settings --------------------------------------------------------------------------------


def from_settings(settings: MasterSettings, elapsed: Callable[[], float]) -> KubernetesLease:
    """The engine that ``settings.elect`` names. Raises SettingsError."""
    url = urlsplit(settings.elect)
    namespace, name = url.netloc, url.path.strip("/")
    if not namespace or not name or "/" in name or url.query or url.fragment:
        raise SettingsError(
            f"--elect {settings.elect}: it must be kubernetes://NAMESPACE/LEASE, where LEASE is "
            "the same for all masters of a cluster"
        )
    return KubernetesLease(namespace, name, settings.hold_seconds, _api(settings), elapsed)


def _api(settings: MasterSettings) -> CustomObjectsApi:
    """With the credentials of a kubeconfig file, else of the pod."""
    # Imported only here, since it takes half a second and 30 MB.
    from kubernetes import client, config

    loading: Any = config
    found = client.Configuration()
    files = os.environ.get("KUBECONFIG", "") or str(Path("~/.kube/config").expanduser())
    try:
        if any(Path(each).is_file() for each in files.split(os.pathsep)):
            loading.load_kube_config(
                config_file=files, client_configuration=found, persist_config=False
            )
        else:
            loading.load_incluster_config(client_configuration=found)
    except Exception as error:  # any may come, since the loader does not check the file
        raise SettingsError(
            f"--elect {settings.elect}: no credentials of a cluster ({error}): name a kubeconfig "
            "file in KUBECONFIG, or run the master in a pod with a service account"
        ) from error
    found.retries = False
    return client.CustomObjectsApi(client.ApiClient(found))
