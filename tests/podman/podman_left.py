"""What the machine has of Podman's, and its end.

    python tests/podman/podman_left.py FOLDER

removes what a run of the tests has left that was killed: containers whose files are below its
folder, and what belongs to them. Podman keeps them beyond their processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from limits import HANG_SECONDS
from podman_image import podman

from control.compute.backend import LABEL_CLUSTER
from control.compute.podman.network.fence import table_name

KINDS = ("container", "volume", "network")


def left_of(label: str, value: str) -> list[str]:
    """Everything of Podman's with this label, as "kind name"."""
    found = []
    for kind in KINDS:
        names = "{{.Names}}" if kind == "container" else "{{.Name}}"
        every = ["--all"] if kind == "container" else []
        listed = podman(
            kind, "ls", *every, "--filter", f"label={label}={value}", "--format", names
        ).stdout
        found += [f"{kind} {name}" for name in listed.split()]
    return found


def remove(things: list[str]) -> None:
    """As well as it can be done."""
    # Containers come first, and one that is in disorder is removed the second time.
    for thing in [each for each in things if each.startswith("container ")] + things:
        kind, _, name = thing.partition(" ")
        at_once = ["--time=0"] if kind == "container" else []
        podman(kind, "rm", "--force", *at_once, name, check=False)


def remove_fence(cluster: str) -> None:
    """It stays, since containers do."""
    subprocess.run(
        ["nft", "delete", "table", "inet", table_name(cluster)],
        stderr=subprocess.DEVNULL,
        timeout=HANG_SECONDS,
        check=False,
    )


def main(folder: str) -> None:
    listed = podman("container", "ls", "--all", "--quiet", "--filter", f"label={LABEL_CLUSTER}")
    clusters = set()
    for each in listed.stdout.split():
        # One of another run may be gone by now.
        said = podman("container", "inspect", each, check=False).stdout
        if f"{folder}/" in said:
            clusters.add(json.loads(said)[0]["Config"]["Labels"][LABEL_CLUSTER])
    for cluster in clusters:
        left = left_of(LABEL_CLUSTER, cluster)
        print(f"left by a test, and removed: {', '.join(left)}")
        remove(left)
        remove_fence(cluster)


if __name__ == "__main__":
    main(sys.argv[1])
