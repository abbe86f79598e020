"""Settings of compute: ``GFS_COMPUTE_*``, else table ``[compute]`` of the ``--config`` file."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from control.compute.backend.networks import Network
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
    #: Kubernetes: root of a container is nobody on its node. False: for clusters that have
    #: no user namespaces.
    user_namespaces: bool = True
    #: What containers reach besides the internet: networks with commas between.
    open_networks: str = ""
    #: Podman: where containers' ports are reached, and the first port for SSH.
    gateway_host: str = "127.0.0.1"
    ssh_port_base: int = 22000
    #: Podman: what containers that run may have together; 0: three quarters of the machine's.
    memory_mb_max: int = 0
    #: Podman: where containers' disks are (empty: in the state directory), and how much of
    #: that file system they leave free.
    disk_directory: str = ""
    disk_reserve_gb: int = 10
    #: Podman: the first of this machine's users who are containers' users, 65,536 for each.
    uid_base: int = 0x70000000
    #: Podman: the command, and the OCI runtime that it is to use; empty: its default.
    podman: str = "podman"
    podman_runtime: str = ""
    #: Podman: what the default image is built on; empty: Debian's own, from its registry.
    image_base: str = ""

    @property
    def open_network_list(self) -> list[Network]:
        return _networks(self.open_networks)

    def check(self) -> None:
        if self.backend not in BACKENDS and not _OWN.fullmatch(self.backend):
            raise SettingsError(f"compute backend must be one of {', '.join(BACKENDS)}")
        if not _DOMAIN.fullmatch(self.domain):
            raise SettingsError(f"compute domain: {self.domain!r} is no domain name")
        if not self.image.strip():
            raise SettingsError("compute image: name one")
        try:
            _networks(self.open_networks)
        except ValueError as error:
            raise SettingsError(
                f"compute open_networks: {error}: write networks as 10.1.2.0/24"
            ) from None
        try:
            address = str(ipaddress.ip_address(self.gateway_host))
        except ValueError:
            address = "127.0.0.1 or another address of this machine"
        if address != self.gateway_host:
            # The kernel's own words are compared with it.
            raise SettingsError(f"compute gateway_host: write {address}, not {self.gateway_host}")
        if not 1024 <= self.ssh_port_base <= 65000:
            raise SettingsError("compute ssh_port_base must be 1024 to 65000")
        if not 65536 <= self.uid_base <= 0x7FFE0000 - 65536:
            raise SettingsError("compute uid_base must be 65536 to 2147352576 - 65536")
        if self.disk_reserve_gb < 0 or self.memory_mb_max < 0:
            raise SettingsError("compute disk_reserve_gb and memory_mb_max must not be negative")


def _networks(text: str) -> list[Network]:
    """Raises ValueError."""
    return [ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()]
