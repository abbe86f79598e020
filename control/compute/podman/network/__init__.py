"""The network of containers: their addresses, ports and firewall.

:mod:`.slots` gives a container an address and an SSH port, :mod:`.gateway` forwards ports of
this machine to it, :mod:`.foreign` knows the ports of other services, :mod:`.fence` is the
firewall.
"""

from control.compute.podman.network.fence import Fence, resolvers
from control.compute.podman.network.foreign import ForeignPorts
from control.compute.podman.network.gateway import (
    DESCRIPTORS_MIN,
    OTHERS,
    Address,
    Gateway,
    Target,
    connect_tcp,
)
from control.compute.podman.network.slots import SLOT_BITS, SLOTS_MAX, Slots, ssh_ports

__all__ = [
    "DESCRIPTORS_MIN",
    "OTHERS",
    "SLOTS_MAX",
    "SLOT_BITS",
    "Address",
    "Fence",
    "ForeignPorts",
    "Gateway",
    "Slots",
    "Target",
    "connect_tcp",
    "resolvers",
    "ssh_ports",
]
