"""The choice of the backend.

"auto" takes Kubernetes if containers can be created there now. Podman runs them
as root on this machine, so an operator has to name it. If containers
exist, "auto" keeps their backend, whatever else answers, since they would
be lost otherwise. The process that drives the backend records the choice;
the others of this machine follow the record.

Podman's containers are on one machine. Where several share the records, they belong to the one
that has recorded its name first, and only its processes drive them.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import cast

import trio

from control.api import Records, Txn
from control.compute.backend import (
    Backend,
    BackendUnavailable,
    Elsewhere,
    Installation,
    NoBackend,
)
from control.compute.rows import Fact, containers, facts
from control.compute.settings import ComputeSettings
from gfs.errors import GfsError, StartupError

log = logging.getLogger(__name__)

#: How long the check may take: a busy machine needs some seconds just to load the client. A
#: cluster that cannot be reached fails earlier.
CHECK_SECONDS = 30.0
_POD_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_MAKERS = {
    "kubernetes": "control.compute.kubernetes:make",
    "podman": "control.compute.podman:make",
}


async def installation_id(records: Records) -> str:
    """The installation's id: random at first, and then always the same."""

    def decide(txn: Txn) -> str:
        found = facts.get(txn, "installation")
        if found is None:
            found = Fact("installation", secrets.token_hex(8))
            facts.put(txn, found)
        return found.value

    with records.read() as txn:
        known = facts.get(txn, "installation")
    return known.value if known is not None else await records.write(decide)


async def choose(
    records: Records, installation: Installation, settings: ComputeSettings, *, leads: bool
) -> Backend:
    """The backend. ``leads``: this process drives it, so it decides for the others.

    Raises StartupError for a named backend that cannot be loaded.
    """
    backend = await _choose(records, installation, settings, leads=leads)
    if backend.name == "podman" and records.writer:
        own = settings.host or socket.gethostname()
        host = await _recorded_host(records, own)
        if host != own:
            log.info("compute: containers are on the machine %s, and this is %s", host, own)
            return Elsewhere(installation, backend.name, host)
    return backend


async def _recorded_host(records: Records, own: str) -> str:
    """The machine that has the containers; this one, if there was none yet."""

    def decide(txn: Txn) -> str:
        found = facts.get(txn, "host") or Fact("host", own)
        facts.put(txn, found)
        return found.value

    return await records.write(decide)


async def _choose(
    records: Records, installation: Installation, settings: ComputeSettings, *, leads: bool
) -> Backend:
    with records.read() as txn:
        fact = facts.get(txn, "backend")
        is_used = containers.count(txn) > 0
    written = fact.value if fact is not None else ""
    if settings.backend != "auto":
        backend = make(settings.backend, installation, settings)
        name = settings.backend
        if is_used and written not in ("", name):
            log.warning("compute uses %s; there are containers in %s", name, written)
    elif written and (not leads or (is_used and written != "none")):
        if leads:
            log.info("compute uses %s, which has its containers", written)
        return make(written, installation, settings)
    else:
        backend = await _kubernetes_or_none(installation, settings)
        name = backend.name
    if leads and name != written and not (is_used and name == "none"):
        await records.write(lambda txn: facts.put(txn, Fact("backend", name)))
    return backend


async def _kubernetes_or_none(installation: Installation, settings: ComputeSettings) -> Backend:
    try:
        if not _has_credentials(settings):
            raise BackendUnavailable("no credentials, neither a pod's nor a kubeconfig")
        backend = make("kubernetes", installation, settings)
        with trio.fail_after(CHECK_SECONDS):
            await backend.check()
    except trio.TooSlowError:
        why = f"no answer within {CHECK_SECONDS:g} s"
    except (GfsError, OSError) as error:
        why = str(error)
    except Exception:
        log.exception("compute: kubernetes cannot be checked")
        why = "it failed, see the server's log"
    else:
        log.info("compute uses kubernetes")
        return backend
    why = f"kubernetes: {why}; podman: only if asked for (GFS_COMPUTE_BACKEND=podman)"
    log.warning("compute can create no containers: %s", why)
    return NoBackend(installation, why)


def _has_credentials(settings: ComputeSettings) -> bool:
    """Whether there can be credentials for Kubernetes, whose client takes a second to load."""
    named = settings.kubeconfig or os.environ.get("KUBECONFIG", "")
    return bool(named) or _POD_TOKEN.exists() or Path("~/.kube/config").expanduser().exists()


def make(name: str, installation: Installation, settings: ComputeSettings) -> Backend:
    """Raises StartupError."""
    if name == "none":
        return NoBackend(installation)
    module, _, function = _MAKERS.get(name, name).partition(":")
    try:
        maker = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise StartupError(f"compute backend {name} cannot be loaded: {error}") from error
    return cast(Backend, maker(installation, settings))
