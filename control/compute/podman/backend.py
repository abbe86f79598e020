"""Containers on this machine.

A container consists of a run (a Podman container, kept after its end with its output until
the next run), a network of its own, both found by their labels, and a disk, with a directory
for each mount path and one for its SSH host keys. Podman publishes no ports: SSH and
ingress pass through :mod:`control.compute.podman.network.gateway`, in the process that
drives this machine.

- **The end of a run.** Podman restarts a run that died, five times at most; then it has
  failed, with the reason. A run that ended with code 0 (``kill 1`` in it, or a stop from
  outside) is stopped.
- **Its removal.** Commands of terminals are ended first, with their conmons, since Podman does
  not remove a container while one of them is left.
- **Files.** A start creates a new root file system from the image. The files under mount
  paths stay, also under a path that is not mounted any more, until the container is
  deleted. A path that is mounted for the first time begins with the files of the image.
- **Addresses.** SSH: a port of ``gateway_host`` that belongs to the container as long as
  it exists. Ingress: several containers may need port 80, which other services of this
  machine may have. So while ``gateway_host`` is a loopback address, each container
  has a loopback address of its own, in 127.64.0.0/10, shown as its ``external_ip``, and
  its ports are opened only there. With any other ``gateway_host`` they are opened on that
  address: the first container that asks for a port gets it, and no container gets a port
  that another service ever had (:mod:`control.compute.podman.network.foreign`).
- **Limits.** Memory (without swap), CPU time, processes, descriptors, and a disk of its own
  (:mod:`control.compute.podman.store.disks`). The architecture is this machine's own, whatever
  the instance type says.
- **Users.** Root of a container is a user of this machine that owns nothing else: each
  container has users of its own, and only the capabilities that a login needs.
- **Isolation.** Containers reach the internet, but neither one another (each has an isolated
  network), nor this machine at any of its addresses, nor private networks, nor the addresses
  where clouds give a machine its secrets (:mod:`control.compute.podman.network.fence`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import shutil
import socket
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import trio

from control.api.internals import Proxies
from control.compute.backend import (
    COLUMNS,
    ROWS,
    BackendUnavailable,
    Impossible,
    Installation,
    Room,
    Spec,
    Terminal,
    Usage,
    Watch,
)
from control.compute.podman import shapes
from control.compute.podman.background import Background
from control.compute.podman.engine import Api, Refused, Service, Volume, has_ended, run_podman
from control.compute.podman.logs import Lines
from control.compute.podman.machine_limits import raise_limits
from control.compute.podman.network import (
    DESCRIPTORS_MIN,
    OTHERS,
    SLOT_BITS,
    Address,
    Fence,
    ForeignPorts,
    Gateway,
    Slots,
    Target,
    connect_tcp,
    resolvers,
    ssh_ports,
)
from control.compute.podman.store import Disk, Disks, Images
from control.compute.podman.syscalls import write_profile
from control.compute.podman.terminal import Terminals
from control.compute.podman.watching import Watching
from control.compute.settings import ComputeSettings

log = logging.getLogger("control.compute")

SSH = 22
#: The resolvers of containers on a machine whose only resolver is on loopback, as in Podman.
PUBLIC_RESOLVERS = ["8.8.8.8", "8.8.4.4"]
#: What is on this machine answers for its clients itself: a proxy, or a way through SSH.
LOOPBACK = Proxies(["127.0.0.0/8", "::1"])
OWN_ADDRESSES = ipaddress.IPv4Network("127.64.0.0/10")
#: The programs that isolate containers and make their disks.
TOOLS = {"nft": "nftables", "mkfs.ext4": "e2fsprogs", "mount": "mount", "flock": "util-linux"}
#: How long a call waits until volumes are copied; then it is refused.
MOVE_WAIT_SECONDS = 10.0
MIB = 1024**2
GIB = 1024**3


def _move_name(container_id: str) -> str:
    return f"moving the volumes of {container_id}"


def make(installation: Installation, settings: ComputeSettings) -> Podman:
    return Podman(installation, settings)


class Podman:
    """See :class:`control.compute.backend.Backend`."""

    name = "podman"

    def __init__(self, installation: Installation, settings: ComputeSettings) -> None:
        self._installation = installation
        self._settings = settings
        self._cluster = installation.id
        Path(installation.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._service = Service(installation.directory, settings.podman, settings.podman_runtime)
        self._api = Api(self._service.client)
        own = "" if _is_loopback4(settings.gateway_host) else settings.gateway_host
        host, base = settings.gateway_host, settings.ssh_port_base
        self._foreign = ForeignPorts(installation.directory, own, host, ssh_ports(base))
        self._gateway = Gateway(
            connect_tcp,
            self._note_ports,
            self._foreign,
            descriptors=installation.descriptors,
            is_proxy=lambda client: LOOPBACK.has(client) or installation.proxies.has(client),
        )
        self._slots = Slots(installation.directory, host, base, self._foreign.has)
        self._disks = Disks(
            Path(settings.disk_directory or installation.directory) / "disks",
            self._cluster,
            settings.uid_base,
            settings.disk_reserve_gb,
        )
        self._background = Background()
        self._fence = Fence(self._cluster, settings.open_network_list)
        self._terminals = Terminals(self._api, installation.directory)
        self._images = Images(
            installation.directory,
            settings.podman,
            settings.podman_runtime,
            settings.image_base,
            self._api.image_exists,
            self._background,
        )
        self._watching: Watching | None = None

    async def check(self) -> None:
        if self._installation.descriptors < DESCRIPTORS_MIN:
            raise BackendUnavailable(
                f"Connections to containers need {DESCRIPTORS_MIN} open files and sockets, and "
                f"{self._installation.descriptors} are left: raise the limit of this process "
                "(ulimit -n, or LimitNOFILE= in its unit), or lower connections_max."
            )
        image = self._installation.image
        if missing := [package for name, package in TOOLS.items() if shutil.which(name) is None]:
            raise BackendUnavailable(f"Containers cannot be run here: install {missing[0]}.")
        if os.geteuid() != 0:
            raise BackendUnavailable(
                "Podman is used as root only: run the control plane as root, "
                "or use Kubernetes (compute.backend)."
            )
        if await self._service.answers():
            with _translated():
                is_there = await self._api.image_exists(image)
        else:
            # No process drives this machine yet.
            podman = (self._settings.podman, self._settings.podman_runtime)
            code, said = await run_podman(*podman, "image", "exists", image)
            if code not in (0, 1):
                raise BackendUnavailable(f"Podman does not work: {said}")
            is_there = code == 0
        if not is_there:
            self._images.check_missing(image)

    async def room(self) -> Room:
        memory = self._settings.memory_mb_max
        if not memory:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB * 3 // 4
        return Room(memory, await self._disks.in_thread(self._disks.room_gb))

    async def run(
        self, watch: Watch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        watching = Watching(
            self._service,
            self._api,
            self._cluster,
            _Keeping(watch, self._slots),
            self._ports,
            self._disks.all_owners,
        )
        if low := raise_limits():
            log.warning(
                "podman: one container can take from all others what the kernel counts for the "
                "whole machine, since this process cannot raise its settings: run, as root,  "
                "sysctl -w %s  and keep them in /etc/sysctl.d",
                " ".join(low),
            )
        try:
            async with trio.open_nursery() as nursery:
                # Before any port is opened.
                await self._foreign.look(self._gateway.listening)
                nursery.start_soon(self._foreign.watch, self._gateway.listening)
                await nursery.start(self._gateway.run)
                await nursery.start(self._background.run)
                nursery.start_soon(self._terminals.sweep_regularly)
                nursery.start_soon(self._fence.keep)
                self._watching = watching
                await nursery.start(watching.run)
                task_status.started()
        finally:
            self._watching = None
            await self._service.close()

    async def create(self, spec: Spec) -> None:
        await self._service.begun()
        with _translated():
            await self._make_parts(spec)
        self._slots.number(spec.id)
        self._touch(spec.id)

    async def _make_parts(self, spec: Spec) -> Disk:
        """Create the parts that outlive a run and are missing. No run may be using them."""
        old: dict[str, Volume] = {}
        for name in shapes.volumes(spec):
            if (found := await self._api.volume(f"{self._name(spec.id)}-{name}")) is not None:
                old[name] = found
        if old:
            busy = "Its files are being copied to a disk of its own, once."
            idle = "Containers are not driven by this process now."
            move = partial(self._move, spec, old)
            name = _move_name(spec.id)
            await self._background.do(name, move, MOVE_WAIT_SECONDS, busy=busy, idle=idle)
        disk = await self._disks.open(spec.id, spec.storage_gb)
        try:
            await self._api.ensure_network(shapes.network_body(self._cluster, spec))
        except Refused:
            # An older Podman has no stricter value.
            body = shapes.network_body(self._cluster, spec, isolate="true")
            await self._api.ensure_network(body)
        return disk

    async def _move(self, spec: Spec, old: dict[str, Volume]) -> None:
        """Copy the files in Podman's volumes to the container's disk. An interrupted copy begins
        again."""
        try:
            await self._move_volumes(spec, old)
        except (BackendUnavailable, Refused, OSError) as error:
            why = f"Its files cannot be copied to a disk of its own: {error}"
            raise BackendUnavailable(why) from error

    async def _move_volumes(self, spec: Spec, old: dict[str, Volume]) -> None:
        held = await self._disks.sizes([Path(volume.mountpoint) for volume in old.values()])
        disk = await self._disks.open(spec.id, spec.storage_gb, held)
        for name in await self._disks.in_thread(disk.begin, old):
            await self._disks.move_in(Path(old[name].mountpoint), disk.volume(name), disk)
            await self._disks.in_thread(disk.note_begun, name)
        for name in old:
            await self._api.remove_volume(f"{self._name(spec.id)}-{name}")

    async def start(self, spec: Spec) -> None:
        name = self._name(spec.id)
        await self._service.begun()
        with _translated():
            seen = await self._api.inspect(name)
            same = seen is not None and seen.generation == spec.generation
            if same and seen is not None and seen.runs and not has_ended(seen.state.pid):
                await self.expose(spec)
                return
            if seen is not None:
                # Also one that was created and not started, since its state is not known.
                await self._stop(name)
                await self._remove(name)
            disk = await self._make_parts(spec)
            await self._create_container(spec, disk)
            await self._fence.ensure()
            await self._api.start(name)
        self._slots.number(spec.id)
        self._touch(spec.id)
        await self.expose(spec)

    async def _create_container(self, spec: Spec, disk: Disk) -> None:
        await self._disks.in_thread(disk.write_keys, spec.ssh_keys)
        await self._disks.in_thread(disk.write_etc, spec.id, resolvers() or PUBLIC_RESOLVERS)
        name = self._name(spec.id)
        seccomp = await self._disks.in_thread(write_profile, self._installation.directory)
        device = await self._disks.in_thread(disk.device)
        body = shapes.container_body(self._cluster, spec, disk, device, seccomp)
        volumes = shapes.volumes(spec)
        new = await self._disks.in_thread(disk.begin, volumes)
        try:
            await self._api.create_container(body)
        except Refused:
            await self._images.need(spec.image)
            await self._api.create_container(body)
        made = await self._api.inspect(name)
        if made is None or made.written is None:
            raise Impossible("Podman does not use overlay here: see storage.conf(5).")
        await self._disks.hold_run(disk, made.written, made.written.parent / "work")
        if new:
            async with self._api.mounted(name) as root:
                for volume in new:
                    await self._fill(disk, volume, root, volumes[volume])

    async def _fill(self, disk: Disk, volume: str, root: Path, path: str) -> None:
        """Copy the image's files to a volume that is mounted at ``path`` for the first time."""

        def find() -> Path | None:
            parts = [root]
            for name in path.split("/")[1:]:
                parts.append(parts[-1] / name)
                if parts[-1].is_symlink() or not parts[-1].is_dir():
                    return None
            # It was filled, but that was not noted: nothing has run since.
            return None if os.listdir(disk.volume(volume)) else parts[-1]

        if (source := await self._disks.in_thread(find)) is not None:
            await self._disks.copy(source, disk.volume(volume), disk)
        await self._disks.in_thread(disk.note_begun, volume)

    async def stop(self, spec: Spec) -> None:
        self._gateway.set_rules(spec.id, {})
        await self._service.begun()
        with _translated():
            await self._stop(self._name(spec.id))
        await self._disks.close(spec.id)
        self._touch(spec.id)

    async def delete(self, container_id: str, user_id: str) -> None:
        self._gateway.set_rules(container_id, {})
        await self._background.cancel(_move_name(container_id))
        await self._service.begun()
        with _translated():
            await self._remove(self._name(container_id))
            for found in await self._api.find("containers", self._cluster, container_id):
                await self._remove(found.name)
            for found in await self._api.find("volumes", self._cluster, container_id):
                await self._api.remove_volume(found.name)
            for found in await self._api.find("networks", self._cluster, container_id):
                await self._api.remove_network(found.name)
        await self._disks.remove(container_id)
        self._slots.free(container_id)
        self._touch(container_id)

    def port_refusal(self, port: int) -> str:
        self._foreign.read()
        return OTHERS if self._foreign.has(port) else ""

    async def expose(self, spec: Spec) -> None:
        if (disk := await self._disks.find(spec.id)) is not None:
            # This withdraws deleted keys, too; users who are logged in stay.
            await self._disks.in_thread(disk.write_keys, spec.ssh_keys)
        self._gateway.set_rules(spec.id, self._rules(spec))
        if spec.ssh_enabled and self._foreign.has(self._slots.ssh_port(spec.id)):
            # Another service has taken the port for SSH meanwhile: the container gets a new one.
            self._slots.free(spec.id)
            self._gateway.set_rules(spec.id, self._rules(spec))
        self._touch(spec.id)
        await trio.lowlevel.checkpoint()

    def _rules(self, spec: Spec) -> dict[Address, Target]:
        host, own = self._settings.gateway_host, self._own_address(spec.id)
        rules: dict[Address, Target] = {}
        if spec.ssh_enabled:
            rules[host, self._slots.ssh_port(spec.id)] = self._target(spec.id, SSH, is_login=True)
        for port in spec.ports:
            rules[own or host, port.port] = self._target(spec.id, port.target_port)
        return rules

    async def usage(self, spec: Spec) -> Usage:
        name = self._name(spec.id)
        with _translated():
            seen = await self._api.inspect(name)
            if seen is None or seen.state.status != "running":
                return Usage()
            memory = await self._api.memory_bytes(name)
        used = await self._disks.used_bytes(spec.id)
        return Usage(
            memory_mb=None if memory is None else -(-memory // MIB),
            storage_gb=None if used is None else round(used / GIB, 3),
        )

    def exec(
        self, spec: Spec, command: list[str], columns: int = COLUMNS, rows: int = ROWS
    ) -> AbstractAsyncContextManager[Terminal]:
        return self._terminals.open(self._name(spec.id), command, columns, rows)

    async def logs(self, spec: Spec, tail: int, *, follow: bool) -> AsyncGenerator[str, None]:
        lines = Lines()
        try:
            async with self._api.logs(self._name(spec.id), tail, follow=follow) as body:
                while piece := await body.receive():
                    for line in lines.feed(piece):
                        yield line
        except Refused as refused:
            if refused.status == 404:
                return  # no run, no output
            raise BackendUnavailable(f"Podman shows no logs: {refused}") from None
        for line in lines.end():
            yield line

    def ssh_command(self, spec: Spec) -> str:
        host = _reachable(self._settings.gateway_host)
        return f"ssh -p {self._slots.ssh_port(spec.id)} root@{host}"

    def hostname(self, spec: Spec) -> str:
        return f"{spec.id}.{self._installation.domain}"

    def _name(self, container_id: str) -> str:
        return shapes.resource_name(self._cluster, container_id)

    def _touch(self, container_id: str) -> None:
        if self._watching is not None:
            self._watching.touch(container_id)

    async def _stop(self, name: str) -> None:
        """End a run. Podman keeps its output until it is removed."""
        with contextlib.suppress(Refused):
            await self._api.stop(name, shapes.STOP_SECONDS)
        seen = await self._api.inspect(name)
        # A run whose end Podman did not notice, or that never began, cannot be stopped; it can be
        # removed.
        if seen is not None and not shapes.has_ended_for_good(seen):
            await self._remove(name)

    async def _remove(self, name: str) -> None:
        with contextlib.suppress(Refused):  # one that is damaged can be removed nevertheless
            seen = await self._api.inspect(name)
            if seen is not None and seen.exec_ids:
                await self._terminals.end_all(seen.exec_ids)
        await self._api.remove_container(name)

    def _target(self, container_id: str, port: int, *, is_login: bool = False) -> Target:
        def now() -> Address | None:
            host = self._watching.address(container_id) if self._watching else ""
            return (host, port) if host else None

        return Target(now, is_login)

    def _own_address(self, container_id: str) -> str:
        """The container's loopback address; empty unless the gateway listens on loopback only."""
        if not _is_loopback4(self._settings.gateway_host):
            return ""
        number = self._slots.number(container_id) + 1
        # Another installation on this machine begins at another place.
        place = zlib.crc32(self._cluster.encode()) % (OWN_ADDRESSES.num_addresses >> SLOT_BITS)
        return str(OWN_ADDRESSES[(place << SLOT_BITS) + number % (1 << SLOT_BITS)])

    def _ports(self, container_id: str) -> tuple[str, str]:
        """The address of a container's ports, and a remark about those that are not opened."""
        host, own = self._settings.gateway_host, self._own_address(container_id)
        refused = self._gateway.refused(container_id)
        return own or _reachable(host), "; ".join(refused.values())

    def _note_ports(self, container_id: str) -> None:
        if remark := self._ports(container_id)[1]:
            log.warning("podman: not all ports of %s are open: %s", container_id, remark)
        self._touch(container_id)


class _Keeping:
    """A watch that also frees the ports of containers that are long gone."""

    def __init__(self, watch: Watch, slots: Slots) -> None:
        self._slots = slots
        self.seen = watch.seen
        self.gone = watch.gone
        self.exposure_lost = watch.exposure_lost
        self._synced = watch.synced

    def synced(self, present: set[str]) -> None:
        self._slots.keep(present)
        self._synced(present)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        if refused.status == 400:
            raise Impossible(f"Podman refuses it: {refused}") from None
        raise BackendUnavailable(f"Podman cannot do it: {refused}") from None


def _is_loopback4(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return address.version == 4 and address.is_loopback


def _reachable(host: str) -> str:
    """``host``; if it stands for every address, the one from which this machine connects."""
    if host not in ("0.0.0.0", "::"):
        return host
    family, far = (
        (socket.AF_INET, "192.0.2.1") if host == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # This only looks up a route; nothing is sent.
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "localhost"
