"""The system calls that a container may make: Podman's own list, without what is not the
container's own.

Podman's list lets a container create user namespaces, since Podman itself runs in
containers. In one a process has all rights over new networks and mounts, and most escapes
from containers were found in that code of the kernel. A login needs none of it.

It also lets it open sockets of any family. Those of AF_VSOCK reach what runs this machine, if
it is a virtual one, and no firewall sees them. A container has the families of
:data:`FAMILIES`.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from control.compute.backend import BackendUnavailable

FILE = "seccomp.json"
#: An administrator's own list comes first, as in Podman.
LISTS = (Path("/etc/containers/seccomp.json"), Path("/usr/share/containers/seccomp.json"))
PACKAGE = "golang-github-containers-common (Debian, Ubuntu) or containers-common (others)"
REFUSED = frozenset(
    {
        # Its flags are in memory, where seccomp cannot check them. C libraries fall back to
        # the older clone().
        "clone3",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        # The kernel has room for few contexts of AIO, which it does not count by container.
        # Databases and web servers use threads instead.
        "io_setup",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "pivot_root",
        "setns",
        # The older way to all calls of sockets, with the family in memory, of programs for
        # 32 bits from before 2015.
        "socketcall",
        "umount",
        "umount2",
        "unshare",
    }
)
#: AF_UNIX, AF_INET and AF_INET6.
FAMILIES = (1, 2, 10)
AF_NETLINK = 16
NETLINK_AUDIT = 9
#: What a kernel without audit says. With any other error nobody could log in or become a user.
NO_AUDIT = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EINVAL}
#: linux/sched.h: CLONE_NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER and NEWUTS.
CLONE_NEW = 0x7E020000


def write_profile(directory: str) -> Path:
    """Write the file for ``seccomp_profile_path``. It is replaced as a whole, and only if
    Podman's list has changed, since other processes may be reading it.

    Raises BackendUnavailable if there is no list.
    """
    source = next((path for path in LISTS if path.exists()), None)
    if source is None:
        raise BackendUnavailable(
            f"There is no list of the system calls that containers may make ({LISTS[-1]}), so no "
            f"container is started. The list is in the package {PACKAGE}."
        )
    text = json.dumps(_narrowed(json.loads(source.read_bytes())))
    path = Path(directory) / FILE
    if not path.exists() or path.read_text() != text:
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as new:
            new.write(text)
        os.replace(new.name, path)
    return path


def _narrowed(profile: dict[str, Any]) -> dict[str, Any]:
    rules = []
    for rule in profile["syscalls"]:
        # The rules for sockets are replaced as a whole, with what they refuse.
        is_allowed = rule["action"] == "SCMP_ACT_ALLOW"
        replaced = REFUSED | {"clone", "socket"} if is_allowed else {"socket"}
        names = [name for name in rule["names"] if name not in replaced]
        if names:
            rules.append({**rule, "names": names})
    rules.append(_allow("clone", _argument(0, "MASKED_EQ", CLONE_NEW)))
    rules += [_allow("socket", _argument(0, "EQ", family)) for family in FAMILIES]
    netlink = _argument(0, "EQ", AF_NETLINK)
    rules.append(_allow("socket", netlink, _argument(2, "NE", NETLINK_AUDIT)))
    audit = {**_allow("socket", netlink, _argument(2, "EQ", NETLINK_AUDIT)), **NO_AUDIT}
    rules.append(audit)
    return {**profile, "syscalls": rules}


def _allow(name: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(arguments)}


def _argument(index: int, comparison: str, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": 0, "op": f"SCMP_CMP_{comparison}"}
