"""Which backend it is, and what works without any."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import scripted
import trio
import trio.testing
from auth_server import CheapAuth, running
from checks import ok, refused
from compute_cloud import ED25519
from limits import HANG_SECONDS
from postgresql import PostgreSQL

from control.compute import Compute
from control.compute.backend import Backend, BackendUnavailable, Elsewhere, Installation
from control.compute.backend.none import NoBackend
from control.compute.reconcile import Changes, Lead, choose
from control.compute.reconcile import changes as changes_module
from control.compute.reconcile.choose import installation_id
from control.compute.rows import COMPUTE, Container, add_event, containers
from control.compute.settings import ComputeSettings
from control.records import Records
from gfs.errors import SettingsError, StartupError

# --- none -------------------------------------------------------------------------------


async def test_without_a_backend_all_works_but_creating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GFS_COMPUTE_BACKEND", "none")
    async with running(tmp_path, modules=(CheapAuth, Compute)) as server:
        ada = await server.new_user("ada")
        assert ok(await server.call("GET", "/compute/containers", ada)) == {"containers": []}
        key = ok(
            await server.call("POST", "/compute/ssh-keys", ada, name="laptop", public_key=ED25519)
        )
        assert ok(await server.call("GET", "/compute/ssh-keys", ada)) == {"ssh_keys": [key]}
        body: dict[str, Any] = {"name": "box", "ssh_key_ids": [key["id"]]}
        answer = await server.call("POST", "/compute/containers", ada, **body)
        refused(answer, 503, "apt install podman", "GFS_COMPUTE_KUBECONFIG", "GFS_COMPUTE_BACKEND")
        # What is wrong with a request is wrong whatever runs containers.
        bad = await server.call("POST", "/compute/containers", ada, **{**body, "memory_mb": 1})
        refused(bad, 400, "memory_mb")
        assert ok(await server.call("GET", "/compute/containers", ada)) == {"containers": []}
        assert ok(await server.call("GET", "/compute/admin/containers", server.admin)) == []
        ok(await server.call("DELETE", f"/compute/ssh-keys/{key['id']}", ada))
        assert ok(await server.call("GET", "/readyz")) == {"status": "ok"}


async def test_no_backend_refuses_whatever_a_container_needs() -> None:
    given = Installation(id="one", domain="example.org", image="image", directory="/")
    backend, spec = NoBackend(given, "none"), mock.Mock()
    for call in (backend.create, backend.start, backend.stop, backend.expose, backend.usage):
        with pytest.raises(BackendUnavailable, match="no containers can run here"):
            await call(spec)
    with pytest.raises(BackendUnavailable):
        await backend.delete("container", "user")
    with pytest.raises(BackendUnavailable):
        backend.exec(spec, ["sh"])
    with pytest.raises(BackendUnavailable):
        await anext(backend.logs(spec, 1, follow=False))


# --- the choice -------------------------------------------------------------------------


class Fake(scripted.Scripted):
    def __init__(self, name: str, why: str) -> None:
        super().__init__(scripted.World())
        self.name = name
        self.why = why

    async def check(self) -> None:
        if self.why:
            raise BackendUnavailable(self.why)


INSTALLATION = Installation(id="0" * 16, domain="test", image="image", directory="/nowhere")
ROW = Container("00000000", "ada", "box", "nano", 512, 5, (), False, ("/root",), (), 0, 1)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records.open(tmp_path / "records", [COMPUTE], sync=False)
    yield made
    made.close()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says why Kubernetes and Podman cannot be used; empty: they can."""
    monkeypatch.setenv("KUBECONFIG", "/somewhere")

    def say(kubernetes: str, podman: str) -> None:
        for name, why in (("kubernetes", kubernetes), ("podman", podman)):
            function = f"fake_{name}"
            monkeypatch.setattr(
                scripted, function, lambda i, s, n=name, w=why: Fake(n, w), raising=False
            )
            monkeypatch.setitem(choose._MAKERS, name, f"scripted:{function}")

    return say


async def chosen(
    records: Records, backend: str = "auto", *, leads: bool = True, **more: Any
) -> str:
    settings = ComputeSettings(backend=backend, **more)
    return (await choose.choose(records, INSTALLATION, settings, leads=leads)).name


@pytest.mark.parametrize(("kubernetes", "expected"), [("", "kubernetes"), ("no cluster", "none")])
async def test_auto_takes_kubernetes_if_it_answers_and_never_podman(
    records: Records,
    answers: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kubernetes: str,
    expected: str,
) -> None:
    caplog.set_level("INFO")
    answers(kubernetes, "")
    monkeypatch.setitem(choose._MAKERS, "podman", "no.such.module:make")
    assert await chosen(records) == expected
    if kubernetes:
        assert f"kubernetes: {kubernetes}; podman: only if asked for" in caplog.text


async def test_without_any_the_user_gets_the_reason(
    records: Records, answers: Callable[..., None]
) -> None:
    answers("no cluster", "no podman")
    backend = await choose.choose(records, INSTALLATION, ComputeSettings(), leads=True)
    with pytest.raises(BackendUnavailable, match="kubernetes: no cluster; podman: only if asked"):
        await backend.check()


async def test_without_credentials_kubernetes_is_not_even_loaded(
    records: Records, answers: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers("", "")
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(choose._MAKERS, "kubernetes", "no.such.module:make")
    assert await chosen(records) == "none"
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    monkeypatch.setitem(choose._MAKERS, "kubernetes", "scripted:fake_kubernetes")
    assert await chosen(records) == "kubernetes"


async def test_it_stays_where_containers_are(
    records: Records, answers: Callable[..., None]
) -> None:
    answers("", "")
    assert await chosen(records, "podman") == "podman"
    await records.write(lambda txn: containers.put(txn, ROW))
    assert await chosen(records) == "podman"
    assert await chosen(records, "none") == "none"
    assert await chosen(records) == "podman"
    await records.write(lambda txn: containers.delete(txn, ROW.id))
    assert await chosen(records) == "kubernetes"


@pytest.mark.parametrize("led", ["kubernetes", "podman", "none"])
async def test_those_who_do_not_lead_follow(
    records: Records, answers: Callable[..., None], led: str
) -> None:
    answers("no cluster", "")
    assert await chosen(records, led) == led
    answers("", "")
    assert await chosen(records, leads=False) == led


async def test_a_backend_of_ones_own(records: Records) -> None:
    settings = ComputeSettings(backend="scripted:make")
    backend = await choose.choose(records, INSTALLATION, settings, leads=True)
    assert isinstance(backend, scripted.Scripted)


@pytest.mark.parametrize("name", ["no.such.module:make", "scripted:nothing"])
async def test_a_backend_that_cannot_be_loaded_ends_the_start(records: Records, name: str) -> None:
    with pytest.raises(StartupError, match=name):
        await chosen(records, name)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("backend", ["", "no such"], ["auto", "kubernetes", "podman", "none", "a.module:make"]),
        ("domain", ["", "a b"], ["compute.example.org"]),
        ("image", [" "], ["an-image"]),
        ("open_networks", ["10.1.2.3/8", "x"], ["", "10.0.0.0/8, fd00::/8"]),
        ("ssh_port_base", [1023, 65001], [1024, 65000]),
        ("uid_base", [65535, 0x7FFE0000 - 65535], [65536, 0x7FFE0000 - 65536]),
        ("disk_reserve_gb", [-1], [0]),
        ("memory_mb_max", [-1], [0]),
    ],
)
def test_settings_are_checked(name: str, wrong: list[Any], right: list[Any]) -> None:
    for value in right:
        ComputeSettings(**{name: value}).check()
    for value in wrong:
        with pytest.raises(SettingsError, match=name):
            ComputeSettings(**{name: value}).check()


async def test_an_installation_has_one_id_forever(records: Records) -> None:
    first = await installation_id(records)
    assert len(first) == 16
    assert await installation_id(records) == first


def test_nothing_heavy_is_loaded_until_it_is_used() -> None:
    code = (
        "import sys, control.compute, control.app; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('kubernetes', 'trio_websocket', 'urllib3', 'yaml')])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, timeout=HANG_SECONDS) == b"[]\n"


_STORES = (f"machines_{number}" for number in itertools.count())


@pytest.fixture
def machines(postgresql: PostgreSQL, tmp_path: Path) -> Iterator[tuple[Records, Records]]:
    """The same records, open on two."""
    store = next(_STORES)
    with contextlib.ExitStack() as stack:

        def opened(name: str) -> Records:
            made = Records.open_shared(postgresql.url, tmp_path / name, [COMPUTE], store=store)
            stack.callback(made.close)
            return made

        yield opened("one"), opened("two")


@pytest.mark.extra
async def test_containers_of_podman_belong_to_one_machine(
    answers: Callable[..., None], machines: tuple[Records, Records]
) -> None:
    answers("no cluster", "")

    async def named(records: Records, host: str) -> Backend:
        settings = ComputeSettings(backend="podman", host=host)
        return await choose.choose(records, INSTALLATION, settings, leads=False)

    one, two = machines
    assert isinstance(await named(one, "one"), Fake)
    await two.fresh()
    other = await named(two, "two")
    assert isinstance(other, Elsewhere)
    assert isinstance(await named(one, "one"), Fake)
    assert isinstance(await named(two, "one"), Fake), "it replaces the machine"
    spec = mock.Mock()
    await other.check()
    assert await other.room() is None
    assert other.ssh_command(spec) == ""
    for call in (other.usage(spec), other.logs(spec, 1, follow=False).__anext__()):
        with pytest.raises(BackendUnavailable, match="on the machine one"):
            await call


@pytest.mark.extra
async def test_a_machine_that_does_not_have_them_leaves_the_lock_to_the_other(
    machines: tuple[Records, Records], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        leads = [
            stack.enter_context(contextlib.closing(Lead(tmp_path / f"{n}.lock", each.lock("c"))))
            for n, each in enumerate(machines)
        ]
        assert await leads[1].take()
        assert not await leads[0].take()
        await leads[1].release()
        assert await leads[0].take()
        assert not await leads[1].take()


@pytest.mark.extra
async def test_events_of_another_machine_are_announced_and_not_polled_for(
    machines: tuple[Records, Records], monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(changes_module, "POLL_SECONDS", 600.0)
    one, other = machines
    changes = Changes(other)
    nursery.start_soon(changes.run)
    for number in range(3):
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as both:
                both.start_soon(changes.after, number)
                await trio.testing.wait_all_tasks_blocked()
                await one.write(lambda txn: add_event(txn, ROW, "status"))


async def test_records_of_one_machine_have_no_host(
    records: Records, answers: Callable[..., None]
) -> None:
    """Its name may change."""
    answers("no cluster", "")
    for host in ("one", "two"):
        assert await chosen(records, "podman", host=host) == "podman"
