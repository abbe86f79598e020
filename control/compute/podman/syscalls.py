"""The system calls that a container may make: Podman's own list, without namespaces.

Podman's list lets a container create user namespaces, since Podman itself runs in
containers. In one a process has all rights over new networks and mounts, and most escapes
from containers were found in that code of the kernel. A login needs none of it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from control.compute.backend import BackendUnavailable

__all__ = ["write_profile"]

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
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "pivot_root",
        "setns",
        "umount",
        "umount2",
        "unshare",
    }
)
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
    text = json.dumps(_without_namespaces(json.loads(source.read_bytes())))
    path = Path(directory) / FILE
    if not path.exists() or path.read_text() != text:
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as new:
            new.write(text)
        os.replace(new.name, path)
    return path


def _without_namespaces(profile: dict[str, Any]) -> dict[str, Any]:
    rules = []
    for rule in profile["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW":
            names = [name for name in rule["names"] if name not in REFUSED | {"clone"}]
            rule = {**rule, "names": names}
        if rule["names"]:
            rules.append(rule)
    no_flag = {"index": 0, "value": CLONE_NEW, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [no_flag]})
    return {**profile, "syscalls": rules}
