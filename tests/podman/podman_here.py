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

from control.compute.backend import LABEL_CLUSTER, LABEL_CONTAINER
from control.compute.podman.network.fence import table_name
from control.compute.rows import COMPUTE, containers, facts
from control.records import Records

#: Of a start, a stop, a deletion; with others on the machine.
SECONDS = 60.0
KINDS = ("container", "volume", "network")


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
            "ConnectTimeout": "20",
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
        ["curl", "-sS", "--noproxy", "*", "--max-time", "20", f"http://{address}:{port}/"],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


# --- what the machine has ---------------------------------------------------------------


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
    assert len(found) <= 1, found
    return found[0] if found else 0


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
def nothing_left(here: Here) -> Iterator[None]:
    """Whatever happens within, nothing of the cloud's is left; it must have stopped after.

    What it would have left is removed, and is an error, unless there was one already.
    """
    try:
        yield
    except BaseException:
        here.cloud.stop()
        remove(left_of(LABEL_CLUSTER, here.installation()))
        remove_fence(here.installation())
        unmount_disks(here.directory)
        raise
    installation = here.installation()
    remove_fence(installation)
    left = left_of(LABEL_CLUSTER, installation)
    remove(left)
    left += unmount_disks(here.directory)
    assert not left, f"left behind: {left}"
    wait_for(lambda: not here.service(), "end of Podman's service")
    prefix = f"gfs-{installation[:12]}"
    wait_for(lambda: not processes_naming(prefix), "end of what ran containers")


@contextmanager
def running(directory: Path, made: type[Cloud] = Cloud, **environment: str) -> Iterator[Here]:
    """A cloud from its start to its end."""
    directory.mkdir(exist_ok=True)
    here = Here(directory, made, **environment)
    with nothing_left(here):
        here.cloud.start()
        yield here
        here.cloud.stop()
