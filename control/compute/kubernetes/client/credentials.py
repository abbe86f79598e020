"""The address of the cluster and our credentials.

Looking for credentials checks a few file names and imports nothing, so it costs a machine
without any nothing; the ``kubernetes`` client reads them, which knows
tokens, certificates, plug-ins and the token of a pod. They are looked for in the client's
own order: the setting, ``KUBECONFIG``, ``~/.kube/config``, the token of a pod.

Credentials expire. A pod's token is read again every minute, and a plug-in's when the
plug-in says so, by the client's own hook before each request. Other credentials (a file with
another token, a renewed certificate) are read again when the cluster no longer accepts the
old ones, see :mod:`control.compute.kubernetes.client.api`.
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

HOST = "KUBERNETES_SERVICE_HOST"
TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
HOW = (
    "name a kubeconfig file in GFS_COMPUTE_KUBECONFIG (or KUBECONFIG), or run the control "
    "plane in a pod of the cluster"
)


class Source(msgspec.Struct, frozen=True):
    """Where the credentials are. ``str()`` is for messages."""

    #: Names of files, as ``KUBECONFIG`` has them; "" in a pod.
    files: str
    #: The context in the file; "": the current one.
    context: str = ""

    def __str__(self) -> str:
        if not self.files:
            return f"the pod's token ({TOKEN})"
        return self.files + (f", context {self.context}" if self.context else "")


def find(kubeconfig: str, context: str, environ: Mapping[str, str] = os.environ) -> Source:
    """Find the credentials. If there are none, raises BackendUnavailable, which says what to
    do."""
    if kubeconfig:
        if not _exists(kubeconfig):
            raise BackendUnavailable(f"there is no file {kubeconfig}: {HOW}")
        return Source(kubeconfig, context)
    for files in (environ.get("KUBECONFIG", ""), "~/.kube/config"):
        if _exists(files):
            return Source(files, context)
    if context:
        raise BackendUnavailable(f"no kubeconfig file has the context {context}: {HOW}")
    if environ.get(HOST) and TOKEN.is_file():
        return Source("")
    raise BackendUnavailable(f"there are no credentials of a cluster: {HOW}")


def load(source: Source) -> Configuration:
    """Read the credentials. Blocks on files, and on plug-ins that are programs. Raises
    BackendUnavailable."""
    # Imported only here, since it takes half a second and 30 MB.
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
        # Any exception may come, since the loader does not check the file.
        said = " ".join(str(error).split()) or type(error).__name__
        raise BackendUnavailable(f"{source} cannot be used: {said}") from error
    return found


def authorization(configuration: Any) -> str:
    """The header; "" if there is none (a client certificate is enough). Blocks, since it may
    read a token again. Raises BackendUnavailable."""
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
