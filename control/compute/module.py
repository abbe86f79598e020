"""The module: its routes, and the steps of each handler."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import ClassVar

import trio

from control.api import (
    ADMIN,
    BadRequest,
    Call,
    Content,
    Control,
    Module,
    Need,
    QuotaUsage,
    Response,
    Route,
    Schema,
    ScopeTable,
    Socket,
    Upgrade,
    UserDeletion,
    Workload,
    scoped,
    upgrade_only,
)
from control.api.internals import SEED_SCOPES, make_private_directory
from control.compute import names
from control.compute.backend import Backend, Elsewhere, Installation
from control.compute.reconcile import Changes, Driver, Lead
from control.compute.reconcile.choose import choose, installation_id
from control.compute.requests import (
    DELETE_SECONDS,
    AdminContainerInfo,
    AdminListQuery,
    ContainerInfo,
    ContainerList,
    Containers,
    LogsQuery,
    MountsChanged,
    MountsInfo,
    NewContainer,
    NewRule,
    RuleInfo,
    RuleList,
    SshInfo,
    SshKeys,
    Status,
)
from control.compute.rows import COMPUTE, forget_user, usage
from control.compute.settings import ComputeSettings
from control.compute.streams import (
    EVENTS_PING_SECONDS,
    READERS_MAX,
    TERMINAL_PING_SECONDS,
    TERMINALS_MAX,
    TEXT,
    Hub,
    Logs,
    Terminals,
)
from gfs.cluster import process
from gfs.config import Settings

_ONE = "/compute/containers/{id}"
_ANY = "/compute/admin/containers/{id}"
_DELETION = (
    "Answers when nothing is left of it. If that takes longer than "
    f"{DELETE_SECONDS:g} s, it answers while the deletion goes on: the container is listed as "
    "`deleting`, with the reason if there is one, and counts in the quota until it is gone."
)


def _container(action: str) -> Need:
    """The need for an action on the container that the path names."""
    return scoped("compute", "containers", action, parameter="id")


class Compute(Module):
    """Containers with SSH, ingress, mount paths, a terminal and logs."""

    name = "compute"
    summary = "Containers, and the SSH keys to reach them"
    scopes: ClassVar[ScopeTable] = {"compute": SEED_SCOPES["compute"]}
    schemas: ClassVar[Sequence[Schema]] = (COMPUTE,)
    on_user_deleted: ClassVar[UserDeletion | None] = staticmethod(forget_user)
    usage: ClassVar[QuotaUsage | None] = QuotaUsage(
        ["containers", "memory_mb", "storage_gb"], usage
    )

    settings_kind: ClassVar[type[Settings]] = ComputeSettings
    settings: ComputeSettings

    #: It exists only while the process serves.
    backend: Backend
    changes: Changes
    containers: Containers
    terminals: Terminals
    logs: Logs

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self._keys = SshKeys(control, lambda: self.changes.poke())
        control.workloads.append(self.workloads_of)

    async def workloads_of(self, user_id: str) -> list[Workload]:
        """The user's running containers."""
        return await self.containers.workloads(user_id)

    # --- tasks --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        records, image = self.control.records, self.settings.image
        directory = self.control.directory / "compute"
        make_private_directory(directory)
        lock = records.lock("compute")
        with contextlib.closing(Lead(self.control.directory / "compute.lock", lock)) as lead:
            installation = Installation(
                id=await installation_id(records),
                domain=self.settings.domain,
                image=image,
                directory=str(directory),
                descriptors=max(0, process.descriptors() - self.control.settings.descriptors),
                proxies=self.control.settings.proxies,
            )
            leads = await lead.take()
            self.backend = await choose(records, installation, self.settings, leads=leads)
            self.changes = Changes(records)
            self.containers = Containers(
                records, self.changes, self.backend, image, self.control.limits
            )
            self.terminals = Terminals(self.containers, self.backend)
            self.logs = Logs(self.containers, self.backend)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.changes.run)
                task_status.started()
                if isinstance(self.backend, Elsewhere):
                    await lead.release()
                    await trio.sleep_forever()
                while True:
                    await lead.wait()
                    async with trio.open_nursery() as driving:
                        driving.start_soon(self.make_driver().run)
                        await lead.lost()
                        driving.cancel_scope.cancel()

    def make_driver(self) -> Driver:
        return Driver(self.control.records, self.changes, self.backend, self.settings.image)

    async def check_ready(self) -> None:
        if self.backend.name != "none":
            await self.backend.check()

    # --- routes -------------------------------------------------------------------------

    def routes(self) -> Sequence[Route]:
        return [
            *self._container_routes(),
            *self._part_routes(),
            *self._socket_routes(),
            *self._keys.routes(),
        ]

    def _container_routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/compute/containers",
                self.list,
                scoped("compute", "containers", "read"),
                "List containers",
                answer=ContainerList,
                description="Your own, newest first.",
            ),
            Route(
                "POST",
                "/compute/containers",
                self.create,
                scoped("compute", "containers", "create"),
                "Create a container",
                body=NewContainer,
                answer=ContainerInfo,
                errors=[413, 507],
                description=(
                    "At most three per user, unless the quota says otherwise. It is "
                    "`pending`, then `initializing`, then `running`, or `failed` with a "
                    "reason: see `/compute/ws`."
                ),
            ),
            Route(
                "GET",
                _ONE,
                self.get,
                _container("read"),
                "One container, with its usage",
                answer=ContainerInfo,
            ),
            Route(
                "DELETE",
                _ONE,
                self.delete,
                _container("delete"),
                "Delete a container with all of its files",
                answer=Status,
                description=_DELETION,
            ),
            Route(
                "POST",
                f"{_ONE}/start",
                self.start,
                _container("start"),
                "Start a stopped or failed container",
                answer=ContainerInfo,
                errors=[413, 507],
                description="A container that runs, or is about to, is not changed.",
            ),
            Route(
                "POST",
                f"{_ONE}/stop",
                self.stop,
                _container("stop"),
                "Stop a container",
                answer=ContainerInfo,
                description="Data under its mount paths is kept; the rest starts from the image "
                "again.",
            ),
            Route(
                "GET",
                "/compute/admin/containers",
                self.list_all,
                ADMIN,
                "All containers of all users",
                query=AdminListQuery,
                answer=list[AdminContainerInfo],
                description=(
                    "Newest first. With `limit`, if there are more, the header "
                    '`Link: <…>; rel="next"` has the next page.'
                ),
            ),
            Route(
                "POST",
                f"{_ANY}/start",
                self.start,
                ADMIN,
                "Start a container of any user",
                answer=ContainerInfo,
                errors=[413, 507],
                description="It counts in the quota of its owner.",
            ),
            Route(
                "POST",
                f"{_ANY}/stop",
                self.stop,
                ADMIN,
                "Stop a container of any user",
                answer=ContainerInfo,
                description="Its owner may start it again.",
            ),
            Route(
                "DELETE",
                _ANY,
                self.delete,
                ADMIN,
                "Delete a container of any user with all of its files",
                answer=Status,
                description=_DELETION,
            ),
        ]

    def _part_routes(self) -> list[Route]:
        """SSH access, ingress rules, mount paths."""
        read, update = _container("read"), _container("update")
        return [
            Route("GET", f"{_ONE}/ssh", self.get_ssh, read, "Whether SSH is on", answer=SshInfo),
            Route(
                "PUT",
                f"{_ONE}/ssh",
                self.put_ssh,
                update,
                "Switch SSH on or off",
                body=SshInfo,
                answer=SshInfo,
            ),
            Route(
                "GET",
                f"{_ONE}/ingress",
                self.list_rules,
                read,
                "List ingress rules",
                answer=RuleList,
            ),
            Route(
                "POST",
                f"{_ONE}/ingress",
                self.add_rule,
                update,
                "Open a port",
                body=NewRule,
                answer=RuleInfo,
                description="The same port again changes its target.",
            ),
            Route(
                "DELETE",
                f"{_ONE}/ingress/{{port}}",
                self.remove_rule,
                update,
                "Close a port",
                answer=Status,
                description="A port that is not open is not an error.",
            ),
            Route(
                "GET",
                f"{_ONE}/mounts",
                self.get_mounts,
                read,
                "List mount paths",
                answer=MountsInfo,
            ),
            Route(
                "PUT",
                f"{_ONE}/mounts",
                self.put_mounts,
                update,
                "Change the mount paths",
                body=MountsInfo,
                answer=MountsChanged,
                description="A running container is restarted.",
            ),
        ]

    def _socket_routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/compute/ws",
                upgrade_only,
                scoped("compute", "containers", "read"),
                "Follow your containers",
                upgrade=Upgrade(
                    self.listen,
                    sends=(
                        'first `{"type":"containers","data":[…]}` with all of them, then '
                        '`{"type":"container_status","data":{"container_id","status",'
                        '"external_ip"}}` (`external_ip` when it is known) and '
                        '`{"type":"container_deleted","data":{"container_id"}}`'
                    ),
                    ping_seconds=EVENTS_PING_SECONDS,
                ),
            ),
            Route(
                "GET",
                f"{_ONE}/terminal",
                upgrade_only,
                _container("update"),
                "A shell in a running container",
                errors=[429],
                description=(
                    f"At most {TERMINALS_MAX} for a container at a time, then the answer is 429. "
                    "It is closed with 1000 when the shell has ended by itself, with 1011 and a "
                    "reason when the container has."
                ),
                upgrade=Upgrade(
                    self.open_terminal,
                    sends="the terminal's output, in binary frames",
                    takes=(
                        "the terminal's input, as text or binary; the text "
                        '`{"type":"resize","cols":80,"rows":24}` changes the size'
                    ),
                    ping_seconds=TERMINAL_PING_SECONDS,
                ),
            ),
            Route(
                "GET",
                f"{_ONE}/logs",
                self.get_logs,
                _container("read"),
                "The output of a container",
                query=LogsQuery,
                errors=[429],
                description=f"At most {READERS_MAX} readers at a time, then the answer is 429.",
                answer=Content(TEXT.partition(";")[0], "The lines, each with its time before it"),
                upgrade=Upgrade(
                    self.follow_logs,
                    sends="the last lines, then those to come: one in each text frame",
                ),
            ),
        ]

    # --- containers ---------------------------------------------------------------------

    async def list(self, call: Call) -> ContainerList:
        return ContainerList(await self.containers.listed(call.user.user_id))

    async def create(self, call: Call, body: NewContainer) -> ContainerInfo:
        return await self.containers.create(call.user.user_id, body, call.check_credential)

    async def get(self, call: Call) -> ContainerInfo:
        return (await self.containers.infos([self.containers.own(call)]))[0]

    async def delete(self, call: Call) -> Status:
        await self.containers.delete(call)
        return Status()

    async def start(self, call: Call) -> ContainerInfo:
        return await self.containers.start(call)

    async def stop(self, call: Call) -> ContainerInfo:
        return await self.containers.stop(call)

    async def list_all(self, call: Call) -> Response:
        return await self.containers.list_all(call)

    async def get_ssh(self, call: Call) -> SshInfo:
        return SshInfo(self.containers.own(call).ssh_enabled)

    async def put_ssh(self, call: Call, body: SshInfo) -> SshInfo:
        return SshInfo((await self.containers.set_ssh(call, body.ssh_enabled)).ssh_enabled)

    async def list_rules(self, call: Call) -> RuleList:
        return RuleList([RuleInfo.of(rule) for rule in self.containers.own(call).rules])

    async def add_rule(self, call: Call, body: NewRule) -> RuleInfo:
        return RuleInfo.of(await self.containers.add_rule(call, body))

    async def remove_rule(self, call: Call) -> Status:
        self.containers.own(call)
        text = call.params["port"]
        if not (text.isascii() and text.isdecimal() and len(text) <= 5):
            raise BadRequest("port: a number")
        names.check_port(int(text))
        await self.containers.remove_rule(call, int(text))
        return Status()

    async def get_mounts(self, call: Call) -> MountsInfo:
        return MountsInfo([*self.containers.own(call).mount_paths])

    async def put_mounts(self, call: Call, body: MountsInfo) -> MountsChanged:
        row, restarted = await self.containers.set_mounts(call, body.mount_paths)
        return MountsChanged([*row.mount_paths], restarted)

    # --- WebSockets ---------------------------------------------------------------------

    async def listen(self, call: Call, socket: Socket) -> None:
        await Hub(self.control.records, self.changes, self.containers).listen(call, socket)

    async def open_terminal(self, call: Call, socket: Socket) -> None:
        await self.terminals.open(call, socket)

    async def get_logs(self, call: Call) -> Response:
        return await self.logs.get(call)

    async def follow_logs(self, call: Call, socket: Socket) -> None:
        await self.logs.follow(call, socket)
