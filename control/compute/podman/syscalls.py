"""Which calls of the kernel a container may make: Podman's own list, without namespaces.

Podman lets a container make user namespaces, since it is run in containers itself. In one
a process has all rights over new networks and mounts, and the code behind these is where
most ways out of containers were found. A login takes none of it.
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
#: The one that an administrator wrote comes first, as with Podman.
LISTS = (Path("/etc/containers/seccomp.json"), Path("/usr/share/containers/seccomp.json"))
PACKAGE = "golang-github-containers-common (Debian, Ubuntu) or containers-common (others)"
REFUSED = frozenset(
    {
        # It has its flags in memory, where they cannot be looked at: C libraries then take
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
    """The file for ``seccomp_profile_path``. It is replaced as a whole, and only if the list
    that it is made of was changed: others may be reading it.

    Raises BackendUnavailable: there is no list.
    """
    source = next((path for path in LISTS if path.exists()), None)
    if source is None:
        raise BackendUnavailable(
            f"There is no list of the kernel's calls that containers may make ({LISTS[-1]}), so "
            f"none is started. It is in the package {PACKAGE}."
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
