"""Which backend it is.

"auto" takes Kubernetes if it says that containers could be created now. Podman runs them
as root on this very machine, so an operator has to ask for it by name. Where containers
exist "auto" stays with what runs them, whatever else answers by now: they would
be lost otherwise. The choice is written down by the process that drives the backend;
the others of this machine take what is written.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
from pathlib import Path
from typing import cast

import trio

from control.compute.backend import Backend, BackendUnavailable, Installation
from control.compute.backend.none import NoBackend
from control.compute.rows import Fact, containers, facts
from control.compute.settings import ComputeSettings
from control.records import Records, Txn
from gfs.errors import GfsError, StartupError

log = logging.getLogger(__name__)

#: A busy machine takes some just to load what asks. A cluster that cannot be reached is
#: given up earlier.
CHECK_SECONDS = 30.0
_POD_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_MAKERS = {
    "kubernetes": "control.compute.kubernetes:make",
    "podman": "control.compute.podman:make",
}


async def installation_id(records: Records) -> str:
    """Random, and the same ever after."""

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

    Raises StartupError for one that was asked for by name and cannot be loaded.
    """
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
            log.info("compute uses %s, which its containers are in", written)
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
        log.exception("compute: kubernetes cannot be looked at")
        why = "it failed, see the server's log"
    else:
        log.info("compute uses kubernetes")
        return backend
    why = f"kubernetes: {why}; podman: only if asked for (GFS_COMPUTE_BACKEND=podman)"
    log.warning("compute can create no containers: %s", why)
    return NoBackend(installation, why)


def _has_credentials(settings: ComputeSettings) -> bool:
    """Whether there can be any for Kubernetes: its client takes a second to load."""
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
