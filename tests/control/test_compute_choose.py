"""Which backend it is, and what works without any."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted
from auth_server import CheapAuth, running
from checks import ok, refused
from compute_cloud import ED25519

from control.compute import Compute
from control.compute.backend import BackendUnavailable, Installation
from control.compute.reconcile import choose
from control.compute.reconcile.choose import installation_id
from control.compute.rows import COMPUTE, Container, containers
from control.compute.settings import ComputeSettings
from control.records import Records
from gfs.errors import StartupError

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


async def chosen(records: Records, backend: str = "auto", *, leads: bool = True) -> str:
    settings = ComputeSettings(backend=backend)
    return (await choose.choose(records, INSTALLATION, settings, leads=leads)).name


async def use(records: Records) -> None:
    await records.write(lambda txn: containers.put(txn, ROW))


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


async def test_without_any_the_user_is_told_why(
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
    await use(records)
    assert await chosen(records) == "podman"
    await records.write(lambda txn: containers.delete(txn, ROW.id))
    assert await chosen(records) == "kubernetes"


async def test_it_stays_where_containers_are_that_a_setting_has_put_there(
    records: Records, answers: Callable[..., None]
) -> None:
    answers("", "")
    assert await chosen(records, "podman") == "podman"
    await use(records)
    assert await chosen(records, "none") == "none"
    assert await chosen(records) == "podman"


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


async def test_an_installation_has_one_id_for_ever(records: Records) -> None:
    first = await installation_id(records)
    assert len(first) == 16
    assert await installation_id(records) == first


def test_nothing_heavy_is_loaded_until_it_is_used() -> None:
    code = (
        "import sys, control.compute, control.app; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('kubernetes', 'trio_websocket', 'urllib3', 'yaml')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == "[]"
