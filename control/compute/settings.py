"""Settings of compute: ``GFS_COMPUTE_*``, else table ``[compute]`` of the ``--config`` file."""

from __future__ import annotations

import re
from typing import Literal

from gfs.config import Settings
from gfs.errors import SettingsError

BACKENDS = ("auto", "kubernetes", "podman", "none")

_DOMAIN = re.compile(
    r"(?=.{1,200}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)
#: A backend of somebody else's: ``package.module:function``.
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ComputeSettings(Settings, frozen=True, kw_only=True):
    #: "auto" takes Kubernetes if credentials answer, else none; Podman is asked for by name.
    #: ``module:function`` names one that makes a backend of somebody else's.
    backend: str = "auto"
    #: What containers run.
    image: str = "localhost/gfs-compute:latest"
    #: A container's host name is its id below this.
    domain: str = "compute.eddisonso.com"
    #: Kubernetes: the file with credentials, and which context of it; empty: the usual ones.
    kubeconfig: str = ""
    context: str = ""
    #: Kubernetes: classes of volumes and of the ingress; empty: the cluster's default.
    storage_class: str = ""
    ingress_class: str = ""
    #: Kubernetes: what leads to SSH and ports. "LoadBalancer": an address for each
    #: container. "ClusterIP": a gateway of the cluster's own, by the host name.
    service_type: Literal["LoadBalancer", "ClusterIP"] = "LoadBalancer"
    #: Kubernetes: the ClusterIssuer (cert-manager) of certificates for port 443; empty: the
    #: certificate that the ingress controller has.
    tls_issuer: str = ""
    #: Podman: where containers' ports are reached, and the first port for SSH.
    gateway_host: str = "127.0.0.1"
    ssh_port_base: int = 22000
    #: Podman: the command, and the OCI runtime that it is to use; empty: its default.
    podman: str = "podman"
    podman_runtime: str = ""
    #: Podman: what the default image is built on; empty: Debian's own, from its registry.
    image_base: str = ""

    def check(self) -> None:
        if self.backend not in BACKENDS and not _OWN.fullmatch(self.backend):
            raise SettingsError(f"compute backend must be one of {', '.join(BACKENDS)}")
        if not _DOMAIN.fullmatch(self.domain):
            raise SettingsError(f"compute domain: {self.domain!r} is no domain name")
        if not self.image.strip():
            raise SettingsError("compute image: name one")
        if not 1024 <= self.ssh_port_base <= 65000:
            raise SettingsError("compute ssh_port_base must be 1024 to 65000")
