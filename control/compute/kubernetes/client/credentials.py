"""Where the cluster is, and who we are there.

Looking for credentials takes a few file names and no import, so a machine that has none
pays nothing for it; reading them is left to the ``kubernetes`` client, which knows
tokens, certificates, plug-ins and what a pod is given. Files are found in the order that
the client itself has: the setting, ``KUBECONFIG``, ``~/.kube/config``, what a pod has.

Credentials get old. A pod's token is read again every minute, and a plug-in's when it
says so: by the client's own hook, before each request. Everything else (a file with
another token, a renewed certificate) is read again when the cluster no longer accepts
what we have, see :mod:`control.compute.kubernetes.client.api`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from control.compute.backend import BackendUnavailable

if TYPE_CHECKING:
    from kubernetes.client import Configuration

__all__ = ["HOW", "Source", "authorization", "find", "load"]

HOST = "KUBERNETES_SERVICE_HOST"
TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
HOW = (
    "name a kubeconfig file in GFS_COMPUTE_KUBECONFIG (or KUBECONFIG), or run the control "
    "plane in a pod of the cluster"
)


class Source(msgspec.Struct, frozen=True):
    """Where credentials are. ``str()`` is for messages."""

    #: Names of files, as ``KUBECONFIG`` has them; "" in a pod.
    files: str
    #: Of the file; "": the one that it calls current.
    context: str = ""

    def __str__(self) -> str:
        if not self.files:
            return f"the pod's token ({TOKEN})"
        return self.files + (f", context {self.context}" if self.context else "")


def find(kubeconfig: str, context: str, environ: Mapping[str, str] = os.environ) -> Source:
    """Raises BackendUnavailable, in words that say what to do, if there are none."""
    if kubeconfig:
        if not _exists(kubeconfig):
            raise BackendUnavailable(f"there is no file {kubeconfig}: {HOW}")
        return Source(kubeconfig, context)
    for files in (environ.get("KUBECONFIG", ""), "~/.kube/config"):
        if _exists(files):
            return Source(files, context)
    if context:
        raise BackendUnavailable(f"context {context}, but no kubeconfig file that has it: {HOW}")
    if environ.get(HOST) and TOKEN.is_file():
        return Source("")
    raise BackendUnavailable(f"there are no credentials of a cluster: {HOW}")


def load(source: Source) -> Configuration:
    """Read them. Blocks: files, and plug-ins that are programs. Raises BackendUnavailable."""
    # Only here: it takes half a second and 30 MB.
    from kubernetes import client, config

    loading: Any = config
    found = client.Configuration()
    try:
        if source.files:
            loading.load_kube_config(
                config_file=source.files,
                context=source.context or None,
                client_configuration=found,
                persist_config=False,
            )
        else:
            loading.load_incluster_config(client_configuration=found)
    except Exception as error:
        # Whatever is wrong with a file: the loader looks into it without checking it.
        said = " ".join(str(error).split()) or type(error).__name__
        raise BackendUnavailable(f"{source} cannot be used: {said}") from error
    return found


def authorization(configuration: Any) -> str:
    """The header, "" for none (a client certificate is enough). Blocks: it may be time to
    read a token again. Raises what ``load`` does."""
    try:
        for setting in configuration.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                return str(setting["value"])
    except Exception as error:
        raise BackendUnavailable(f"credentials cannot be renewed: {error}") from error
    return ""


def _exists(files: str) -> bool:
    return any(
        Path(name).expanduser().is_file() for name in files.split(os.pathsep) if name.strip()
    )
