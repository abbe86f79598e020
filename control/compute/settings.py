"""Settings of compute: ``GFS_COMPUTE_*``, else table ``[compute]`` of the ``--config`` file."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from control.compute.backend import Network
from gfs.config import Settings
from gfs.errors import SettingsError

BACKENDS = ("auto", "kubernetes", "podman", "none")

_DOMAIN = re.compile(
    r"(?=.{1,200}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)
#: Another backend: ``package.module:function``.
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ComputeSettings(Settings, frozen=True, kw_only=True):
    #: "auto" takes Kubernetes if it accepts our credentials, else none; Podman must be named.
    #: ``module:function`` names a function that creates another backend.
    backend: str = "auto"
    #: The image of containers.
    image: str = "localhost/gfs-compute:latest"
    #: A container's host name is its id below this.
    domain: str = "compute.eddisonso.com"
    #: Kubernetes: the file with credentials, and which context of it; empty: the usual ones.
    kubeconfig: str = ""
    context: str = ""
    #: Kubernetes: classes of volumes and of the ingress; empty: the cluster's default.
    storage_class: str = ""
    ingress_class: str = ""
    #: Kubernetes: how SSH and ports are reached. "LoadBalancer": each container has an
    #: address. "ClusterIP": a gateway of the cluster forwards the host names.
    service_type: Literal["LoadBalancer", "ClusterIP"] = "LoadBalancer"
    #: Kubernetes: the ClusterIssuer (cert-manager) of certificates for port 443; empty: the
    #: certificate that the ingress controller has.
    tls_issuer: str = ""
    #: Kubernetes: root of a container has no rights on its node. False: for clusters without
    #: user namespaces.
    user_namespaces: bool = True
    #: The networks that containers reach besides the internet, separated by commas.
    open_networks: str = ""
    #: Podman, where several control planes share the records: the name of this machine; empty: its
    #: host name. Containers belong to the one that had this name first.
    host: str = ""
    #: Podman: the address of containers' ports, and the first port for SSH.
    gateway_host: str = "127.0.0.1"
    ssh_port_base: int = 22000
    #: Podman: the memory of all running containers; 0: three quarters of the machine's.
    memory_mb_max: int = 0
    #: Podman: the directory of containers' disks (empty: in the state directory), and how much
    #: space they leave free in its file system.
    disk_directory: str = ""
    disk_reserve_gb: int = 10
    #: Podman: the first user id of this machine for containers, 65,536 for each.
    uid_base: int = 0x70000000
    #: Podman: the command, and the OCI runtime that it is to use; empty: its default.
    podman: str = "podman"
    podman_runtime: str = ""
    #: Podman: the base of the default image; empty: Debian's own, from its registry.
    image_base: str = ""

    @property
    def open_network_list(self) -> list[Network]:
        return _networks(self.open_networks)

    def check(self) -> None:
        if self.backend not in BACKENDS and not _OWN.fullmatch(self.backend):
            raise SettingsError(f"compute backend must be one of {', '.join(BACKENDS)}")
        if not _DOMAIN.fullmatch(self.domain):
            raise SettingsError(f"compute domain: {self.domain!r} is not a domain name")
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
            # It is compared with addresses as the kernel writes them.
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
