"""A cloud with real containers, its users, and what the machine has of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checks import bearer, ok, unique, wait_for
from cloud import Cloud
from limits import HANG_SECONDS
from neighbours import place
from podman_image import RUNTIME, image, podman
from podman_left import left_of, remove, remove_fence

from control.compute.backend import LABEL_CLUSTER, LABEL_CONTAINER
from control.compute.rows import COMPUTE, containers, facts
from control.records import Records


class Here:
    """A running ``gfs up`` whose containers are Podman's."""

    def __init__(self, directory: Path, made: type[Cloud] = Cloud, **environment: str) -> None:
        self.directory = directory
        self.cloud = made(
            directory,
            chunkservers=1,
            environment={
                "GFS_COMPUTE_BACKEND": "podman",
                "GFS_COMPUTE_PODMAN_RUNTIME": RUNTIME,
                "GFS_COMPUTE_IMAGE": image(),
                # Processes that test at the same time keep out of each other's way.
                "GFS_COMPUTE_SSH_PORT_BASE": str(20_000 + place(1000) * 12),
                **environment,
            },
        )

    @property
    def port(self) -> int:
        return int(self.cloud.url.rpartition(":")[2])

    @property
    def control(self) -> Path:
        return self.directory / "state" / "control"

    def installation(self) -> str:
        """What the labels of its containers say."""
        with self._records() as records, records.read() as txn:
            fact = facts.get(txn, "installation")
        assert fact is not None
        return fact.value

    def recorded(self) -> set[str]:
        """The ids in the records, also of those that are being deleted."""
        with self._records() as records, records.read() as txn:
            return {row.id for row in containers.scan(txn)}

    @contextmanager
    def _records(self) -> Iterator[Records]:
        records = Records.open(self.control / "records", [COMPUTE], sync=False)
        try:
            yield records
        finally:
            records.close()

    def wait_gone(self, container: str) -> None:
        name = f"gfs-{self.installation()[:12]}-{container}"
        wait_for(
            lambda: (
                container not in self.recorded()
                and not [thing for thing in left_of(LABEL_CONTAINER, container) if name in thing]
            ),
            f"end of container {container}",
        )

    def user(self) -> User:
        return User(self)

    def service(self) -> int:
        """The process id of Podman's service; 0 if it does not run."""
        return service_in(self.control / "compute")


class User:
    """With an SSH key of his own."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.name = unique("user")
        self.client, self.id = here.cloud.make_user(self.name)
        self.key = here.directory / unique("key")
        self.known_hosts = here.directory / unique("known-hosts")
        make_key(self.key)
        made = ok(
            self.client.post(
                "/compute/ssh-keys",
                json={"name": "key", "public_key": self.key.with_suffix(".pub").read_text()},
            )
        )
        self.key_id = int(made["id"])

    def again(self) -> User:
        """The same, after the cloud was started again: it may be at another address."""
        self.here.cloud.forget()
        self.client = self.here.cloud.login(self.name)
        return self

    @property
    def token(self) -> str:
        return bearer(self.client)

    def create(self, **changes: Any) -> str:
        """The id of a new container."""
        body = {"name": "test", "ssh_key_ids": [self.key_id], **changes}
        return str(ok(self.client.post("/compute/containers", json=body))["id"])

    def run(self, **changes: Any) -> str:
        """The id of a new container that runs."""
        made = self.create(**changes)
        self.wait(made, "running")
        return made

    def get(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = ok(self.client.get(f"/compute/containers/{container}"))
        return found

    def act(self, container: str, action: str) -> dict[str, Any]:
        done: dict[str, Any] = ok(self.client.post(f"/compute/containers/{container}/{action}"))
        return done

    def wait(self, container: str, status: str) -> dict[str, Any]:
        """Until the API says that it has this status."""
        seen: list[dict[str, Any]] = []

        def has_it() -> dict[str, Any] | None:
            found = self.get(container)
            if not seen or seen[-1]["status"] != found["status"]:
                seen.append(found)
            assert found["status"] != "failed" or status == "failed", found
            return found if found["status"] == status else None

        found = wait_for(has_it, f"container {container} that is {status}: {seen}")
        assert found is not None
        return found

    def delete(self, container: str) -> None:
        """Returns when nothing is left of it."""
        ok(self.client.delete(f"/compute/containers/{container}"))
        self.here.wait_gone(container)

    def ssh(self, container: str, command: str, input: str = "") -> str:
        """What ``command`` prints, run as the API says that one gets in."""
        done = self.try_ssh(container, command, input)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def try_ssh(
        self, container: str, command: str, input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        program, *arguments = str(self.get(container)["ssh_command"]).split()
        assert program == "ssh", arguments
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": f"{HANG_SECONDS:.0f}",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(self.known_hosts),
            "LogLevel": "ERROR",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return subprocess.run(
            [program, "-F", "none", "-i", str(self.key), *flags, *arguments, command],
            input=input,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )


def make_key(path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)],
        check=True,
        timeout=HANG_SECONDS,
    )


def fetch(address: str, port: int) -> subprocess.CompletedProcess[str]:
    """A page, as a user of the service in a container gets it."""
    return subprocess.run(
        ["curl", "-sS", "--noproxy", "*", f"http://{address}:{port}/"],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


# --- what the machine has ---------------------------------------------------------------


def unmount_disks(directory: Path) -> list[str]:
    """Of containers whose disks are in here; those that were mounted still."""
    below = f"{os.path.realpath(directory)}/"
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [path for path in mounted if path.startswith(below)]
    for path in reversed(found):
        subprocess.run(["umount", "--lazy", path], check=True, timeout=HANG_SECONDS)
    return found


def name_of(container: str) -> str:
    """Podman's name of the run; it must have one."""
    (name,) = (
        thing.partition(" ")[2]
        for thing in left_of(LABEL_CONTAINER, container)
        if thing.startswith("container ")
    )
    return name


def inspect(container: str) -> Any:
    """What Podman says of the run."""
    return json.loads(podman("container", "inspect", name_of(container)).stdout)[0]


def processes(matches: Callable[[Path], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if matches(entry):
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended
    return found


def service_in(directory: Path) -> int:
    """The process id of the one Podman service that works there; 0 if there is none.

    Not by its working directory: ``/proc`` shows that of the first thread, which Go may have
    taken into a container's mounts."""
    settings = f"CONTAINERS_CONF_OVERRIDE={directory / 'containers.conf'}".encode()
    found = processes(
        lambda entry: (
            b"\0system\0service\0" in (entry / "cmdline").read_bytes()
            and settings in (entry / "environ").read_bytes().split(b"\0")
        )
    )
    # Its children look like it until they have become what they are to be.
    found = processes(lambda entry: int(entry.name) in found and _parent(entry) not in found)
    assert len(found) <= 1, found
    return found[0] if found else 0


def _parent(process: Path) -> int:
    return int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])


def processes_naming(text: str) -> list[int]:
    """Whose command line has ``text`` in it: Podman's names are in conmon's."""
    wanted = text.encode()
    return processes(lambda entry: wanted in (entry / "cmdline").read_bytes())


def runs_in(container: str, command: str) -> list[int]:
    """Processes of a container whose command line begins with this."""
    inside = os.readlink(f"/proc/{inspect(container)['State']['Pid']}/ns/pid")
    return processes(
        lambda entry: (
            os.readlink(entry / "ns" / "pid") == inside
            and (entry / "cmdline").read_bytes().startswith(command.encode())
        )
    )


@contextmanager
def running(
    directory: Path, made: type[Cloud] = Cloud, *, shared: bool = False, **environment: str
) -> Iterator[Here]:
    """A cloud from its start to its end. Nothing of it is left: what would be is removed, and is
    an error of a test that has the cloud for itself."""
    directory.mkdir(exist_ok=True)
    here = Here(directory, made, **environment)
    try:
        here.cloud.start()
        yield here
    finally:
        try:
            here.cloud.stop()
        finally:
            left = _clear(here)
    assert shared or not left, f"left behind: {left}"


def _clear(here: Here) -> list[str]:
    """What was left."""
    installation = here.installation()
    remove_fence(installation)
    left = left_of(LABEL_CLUSTER, installation)
    remove(left)
    left += unmount_disks(here.directory)
    wait_for(lambda: not here.service(), "end of Podman's service")
    prefix = f"gfs-{installation[:12]}"
    wait_for(lambda: not processes_naming(prefix), "end of what ran containers")
    return left
