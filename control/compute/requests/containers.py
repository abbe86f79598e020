"""Users' requests about containers: each writes the desired state; the driver applies it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlencode

import trio
from msgspec.structs import replace
from quart import Response

from control.api import (
    ADMIN,
    BadRequest,
    Call,
    Limits,
    NoSuchThing,
    Records,
    Taken,
    Txn,
    Unavailable,
    Workload,
    in_order,
    json_array,
)
from control.api.internals import check_quota, limits_of, users
from control.compute import names
from control.compute.backend import Backend, Room, Spec, Usage, as_answers
from control.compute.reconcile import Changes, machine
from control.compute.requests.shapes import (
    AdminContainerInfo,
    AdminListQuery,
    ContainerInfo,
    NewContainer,
    NewRule,
    admin_info,
    info,
)
from control.compute.rows import (
    Container,
    Rule,
    add_event,
    containers,
    count_up,
    keys,
    mark_deleted,
    of_user,
    usage,
)
from gfs.blocks import MIB
from gfs.errors import GfsError
from gfs.failures import plural

T = TypeVar("T")

log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0
#: Usage that is not known within this time is left out.
USAGE_SECONDS = 2.0
#: How long usage is cached.
USAGE_KEPT_SECONDS = 3.0
USAGE_KEPT = 1024
USAGE_AT_ONCE = 8
#: How long a deletion waits for its end; it takes Podman a second or two.
DELETE_SECONDS = 10.0


class Containers:
    def __init__(
        self, records: Records, changes: Changes, backend: Backend, image: str, limits: Limits
    ) -> None:
        self._records = records
        #: The limits of users for whom no administrator set others.
        self._limits = limits
        self._changes = changes
        self._backend = backend
        self._image = image
        self._usages: dict[str, tuple[float, Usage]] = {}
        self._asking = trio.CapacityLimiter(USAGE_AT_ONCE)

    # --- reading ------------------------------------------------------------------------

    def own(self, call: Call) -> Container:
        """The container that the path names. Raises NoSuchThing or Forbidden."""
        with self._records.read() as txn:
            return _own(txn, call)

    def spec(self, row: Container) -> Spec:
        return machine.spec(row, self._image)

    async def infos(self, rows: Sequence[Container]) -> list[ContainerInfo]:
        """The containers, with their usage where that is known in time."""
        usages = await self._usages_of(rows)
        return [info(row, self._backend, self._image, usages.get(row.id, Usage())) for row in rows]

    async def workloads(self, user_id: str) -> list[Workload]:
        """The user's running containers, with their usage where that is known in time."""
        with self._records.read() as txn:
            rows = [row for row in of_user(txn, user_id) if row.status == "running"]
        usages = await self._usages_of(rows)
        return [_workload(row, self.spec(row), usages[row.id]) for row in rows]

    async def _usages_of(self, rows: Sequence[Container]) -> dict[str, Usage]:
        """By the ids of those that run."""
        usages: dict[str, Usage] = {}

        async def look(row: Container) -> None:
            usages[row.id] = await self._usage(row)

        async with trio.open_nursery() as nursery:
            for row in rows:
                if row.shown == "running":
                    nursery.start_soon(look, row)
        return usages

    async def _usage(self, row: Container) -> Usage:
        now = trio.current_time()
        kept = self._usages.get(row.id)
        if kept is not None and now - kept[0] < USAGE_KEPT_SECONDS:
            return kept[1]
        usage = Usage()
        try:
            with trio.move_on_after(USAGE_SECONDS):
                async with self._asking:
                    usage = await self._backend.usage(self.spec(row))
        except GfsError:
            pass
        except Exception:
            log.exception("container %s: its usage cannot be read", row.id)
        if len(self._usages) >= USAGE_KEPT:
            self._usages.clear()
        self._usages[row.id] = trio.current_time(), usage
        return usage

    async def listed(self, user_id: str) -> list[ContainerInfo]:
        with self._records.read() as txn:
            rows = of_user(txn, user_id)
        return await self.infos(rows)

    async def list_all(self, call: Call) -> Response:
        """All containers, newest first, without asking the backend about each."""
        query = call.query(AdminListQuery)

        def info(row: Container) -> AdminContainerInfo:
            with self._records.read() as txn:
                owner = users.get(txn, row.user_id)
            name = owner.username if owner is not None else ""
            return admin_info(row, self._backend, self._image, name)

        found = [
            row
            for row in await self._records.all(containers)
            if query.before is None or row.serial < query.before
        ]
        rows = await in_order(found, lambda row: -row.serial)
        response = json_array(rows[: query.limit], info)
        if query.limit is not None and len(rows) > query.limit:
            more = {"limit": query.limit, "before": rows[query.limit - 1].serial}
            response.headers["Link"] = f'<{call.request.path}?{urlencode(more)}>; rel="next"'
        return response

    def is_over(self, row: Container) -> bool:
        """Whether the run of ``row`` is not desired, or not any more."""
        with self._records.read() as txn:
            now = containers.get(txn, row.id)
        return now is None or now.wanted != "running" or now.generation != row.generation

    async def until_over(self, row: Container) -> None:
        """Wait until it is stopped, restarted or deleted."""
        while True:
            number = self._changes.number()
            if self.is_over(row):
                return
            await self._changes.after(number)

    async def until_not_running(self, row: Container) -> None:
        """Wait until it does not run any more, or is not to run."""
        while True:
            number = self._changes.number()
            with self._records.read() as txn:
                now = containers.get(txn, row.id)
            if now is None or now.status != "running" or self.is_over(row):
                return
            await self._changes.after(number)

    async def until_deleted(self, row: Container) -> None:
        """Wait until its user has deleted it."""
        await self._until(row.id, lambda now: now is None or now.wanted == "deleted")

    async def _until(
        self, container_id: str, condition: Callable[[Container | None], bool]
    ) -> None:
        while True:
            number = self._changes.number()
            with self._records.read() as txn:
                if condition(containers.get(txn, container_id)):
                    return
            await self._changes.after(number)

    # --- creating and deleting ----------------------------------------------------------

    async def create(
        self, user_id: str, body: NewContainer, check: Callable[[Txn], None]
    ) -> ContainerInfo:
        """Create a container. It is checked twice: in a snapshot, so that a refusal comes
        before the backend is asked, and in the transaction, where the limits hold.
        ``check`` is called there as well, and raises if the user may not have it by then."""
        with self._records.read() as txn:
            _new(txn, user_id, body, self._limits)
        room = await self._room(check=True)
        for rule in body.ingress_rules:
            self._check_port(rule.port)

        def insert(txn: Txn) -> Container:
            check(txn)
            draft = _new(txn, user_id, body, self._limits)
            rules = tuple(replace(rule, id=count_up(txn, "rule")) for rule in draft.rules)
            row = replace(draft, serial=count_up(txn, "container"), rules=rules)
            _check_room(txn, room, row)
            while True:
                try:
                    containers.insert(txn, row)
                except Taken:
                    row = replace(row, id=_new_id())
                    continue
                add_event(txn, row, "status")
                return row

        row = await self._write(insert)
        return (await self.infos([row]))[0]

    async def _room(self, *, check: bool = False) -> Room | None:
        with as_answers(), trio.fail_after(CHECK_SECONDS):
            if check:
                await self._backend.check()
            return await self._backend.room()

    async def delete(self, call: Call) -> None:
        """Delete it. Returns when nothing is left of it; after :data:`DELETE_SECONDS` it may still
        be listed, as deleting, and the driver goes on."""

        def mark(txn: Txn) -> str:
            row = _own(txn, call)
            mark_deleted(txn, row)
            return row.id

        container_id = await self._write(mark)
        with trio.move_on_after(DELETE_SECONDS):
            await self._until(container_id, lambda now: now is None)

    # --- changing -----------------------------------------------------------------------

    async def start(self, call: Call) -> ContainerInfo:
        """Start it. A stopped one needs memory again, and its disk exists already."""
        self.own(call)
        room = await self._room()

        def check(txn: Txn, row: Container) -> None:
            if row.wanted == "stopped":
                limits = limits_of(txn, row.user_id, self._limits)
                used = usage(txn, row.user_id)["memory_mb"]
                check_quota("memory_mb", limits.memory_mb, used, row.memory_mb)
                _check_room(txn, room, row)

        return await self._info(await self._change(call, machine.start, check))

    async def stop(self, call: Call) -> ContainerInfo:
        return await self._info(await self._change(call, machine.stop))

    async def set_ssh(self, call: Call, ssh_enabled: bool) -> Container:
        return await self._change(
            call, lambda row: machine.expose(row, ssh_enabled=ssh_enabled, rules=row.rules)
        )

    async def set_mounts(self, call: Call, paths: Sequence[str]) -> tuple[Container, bool]:
        self.own(call)
        checked = names.check_mounts(paths)
        restarted = False

        def decide(row: Container) -> Container:
            nonlocal restarted
            row, restarted = machine.mount(row, checked)
            return row

        return await self._change(call, decide), restarted

    async def add_rule(self, call: Call, body: NewRule) -> Rule:
        self.own(call)
        asked = names.check_rule(body.port, body.target_port)
        self._check_port(asked.port)
        found: list[Rule] = []

        def write(txn: Txn) -> None:
            row = _changeable(txn, call)
            rule = next((rule for rule in row.rules if rule.port == asked.port), None)
            if rule is None:
                rule = Rule(count_up(txn, "rule"), asked.port, asked.target_port, int(time.time()))
            else:
                rule = replace(rule, target_port=asked.target_port)
            found.append(rule)
            others = [each for each in row.rules if each.port != rule.port]
            if len(others) == len(row.rules):
                names.check_rule_count(len(others) + 1)
            rules = tuple(sorted([*others, rule], key=lambda each: each.port))
            _put(txn, row, machine.expose(row, ssh_enabled=row.ssh_enabled, rules=rules))

        await self._write(write)
        return found[-1]

    def _check_port(self, port: int) -> None:
        if refusal := self._backend.port_refusal(port):
            raise BadRequest(f"port {port}: {refusal}")

    async def remove_rule(self, call: Call, port: int) -> None:
        def decide(row: Container) -> Container:
            rules = tuple(rule for rule in row.rules if rule.port != port)
            return machine.expose(row, ssh_enabled=row.ssh_enabled, rules=rules)

        await self._change(call, decide)

    async def _change(
        self,
        call: Call,
        decide: Callable[[Container], Container],
        check: Callable[[Txn, Container], None] = lambda txn, row: None,
    ) -> Container:
        def write(txn: Txn) -> Container:
            before = _changeable(txn, call)
            check(txn, before)
            after = decide(before)
            _put(txn, before, after)
            return after

        return await self._write(write)

    async def _write(self, decide: Callable[[Txn], T]) -> T:
        result = await self._records.write(decide)
        self._changes.poke()
        return result

    async def _info(self, row: Container) -> ContainerInfo:
        return (await self.infos([row]))[0]


def _put(txn: Txn, before: Container, after: Container) -> None:
    """Write what has changed, with its event."""
    if after == before:
        return
    containers.put(txn, after)
    is_visible = (after.status, after.external_ip) != (before.status, before.external_ip)
    add_event(txn, after, "status" if is_visible else "wish")


def _own(txn: Txn, call: Call) -> Container:
    """The container that the path names, if it is the caller's, or if the route is for
    administrators. Raises NoSuchThing, Unauthorized, Forbidden."""
    row = containers.get(txn, call.params["id"])
    if row is None:
        raise NoSuchThing("there is no such container")
    if call.need is ADMIN:
        call.check_credential(txn)
    else:
        call.allow(row.target)
    return row


def _changeable(txn: Txn, call: Call) -> Container:
    """As :func:`_own`. Raises BadRequest if it is being deleted."""
    row = _own(txn, call)
    if row.wanted == "deleted":
        raise BadRequest("the container is being deleted: it cannot be changed any more")
    return row


def _check_room(txn: Txn, room: Room | None, row: Container) -> None:
    """Raise Unavailable unless there is room for ``row`` to run, beside all others. Exact,
    since concurrent requests have their transactions before or after this one."""
    if room is None:
        return
    others = [each for each in containers.scan(txn) if each.id != row.id]
    memory = sum(each.memory_mb for each in others if each.holds_memory)
    storage = sum(each.storage_gb for each in others)
    for what, unit, there_is, taken, asked in (
        ("memory", "MB", room.memory_mb, memory, row.memory_mb),
        ("disk", "GB", room.storage_gb, storage, row.storage_gb),
    ):
        if taken + asked > there_is:
            raise Unavailable(
                f"there is no room for it: of {there_is} {unit} of {what} for containers "
                f"{taken} are taken, and it needs {asked}: request less, or try again when "
                f"others are gone"
            )


def _new(txn: Txn, user_id: str, body: NewContainer, defaults: Limits) -> Container:
    """The row of a new container, without its serial and the ids of its rules. Raises
    BadRequest for the first invalid field, in the order of the reference; TooLarge or
    QuotaReached if the quota has no room."""
    name = names.clean_name(body.name)
    limits, used = limits_of(txn, user_id, defaults), usage(txn, user_id)
    if used["containers"] >= limits.containers:
        raise BadRequest(
            f"you have {plural(used['containers'], 'container')} already, and your quota is "
            f"{limits.containers}: delete one first"
        )
    lines = _key_lines(txn, user_id, body.ssh_key_ids)
    names.check_instance_type(body.instance_type)
    names.check_sizes(body.memory_mb, body.storage_gb)
    mount_paths = names.check_mounts(body.mount_paths or names.MOUNTS_DEFAULT)
    now = int(time.time())
    rules: dict[int, Rule] = {}
    for rule in body.ingress_rules:
        asked = names.check_rule(rule.port, rule.target_port)
        rules[asked.port] = Rule(0, asked.port, asked.target_port, now)
    names.check_rule_count(len(rules))
    check_quota("memory_mb", limits.memory_mb, used["memory_mb"], body.memory_mb)
    check_quota("storage_gb", limits.storage_gb, used["storage_gb"], body.storage_gb)
    return Container(
        id=_new_id(),
        user_id=user_id,
        name=name,
        instance_type=body.instance_type,
        memory_mb=body.memory_mb,
        storage_gb=body.storage_gb,
        ssh_keys=lines,
        ssh_enabled=body.ssh_enabled or body.enable_ssh,
        mount_paths=mount_paths,
        rules=tuple(rules[port] for port in sorted(rules)),
        created_at=now,
        serial=0,
    )


def _key_lines(txn: Txn, user_id: str, ids: Sequence[int]) -> tuple[str, ...]:
    if not ids:
        raise BadRequest("ssh_key_ids: give at least one SSH key")
    if len(set(ids)) < len(ids):
        raise BadRequest("ssh_key_ids: one is given twice")
    own = {key.id: key.public_key for key in keys.by(txn, "owner", user_id)}
    for id_ in ids:
        if id_ not in own:
            raise BadRequest(f"ssh_key_ids: you have no SSH key {id_}")
    return tuple(own[id_] for id_ in ids)


def _new_id() -> str:
    return secrets.token_hex(4)


def _workload(row: Container, spec: Spec, usage: Usage) -> Workload:
    return Workload(
        name=row.name,
        namespace=f"compute-{row.id}",
        cpu_total=spec.cpus,
        memory_used=(usage.memory_mb or 0) * MIB,
        memory_total=row.memory_mb * MIB,
        disk_used=round((usage.storage_gb or 0) * 1024 * MIB),
        disk_total=row.storage_gb * 1024 * MIB,
    )
