"""The image is had when it is needed, by whoever has never heard of one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from limits import HANG_SECONDS
from podman_here import processes
from podman_image import image, podman
from podman_stage import stage, until_done

from control.compute.backend import BackendUnavailable
from control.compute.podman.store import images

pytestmark = pytest.mark.usefixtures("containers_work")

#: Nobody listens there.
NOWHERE = "127.0.0.1:9/nowhere:1"


@contextmanager
def own_image() -> Iterator[str]:
    """The name of a default image that is not there. It is removed after the test."""
    name = f"{images.OWN}:gfs-tests-{secrets.token_hex(4)}"
    try:
        yield name
    finally:
        podman("rmi", "--force", name)


async def test_the_default_image_is_built_for_the_first_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "WAIT_SECONDS", 0.1)
    with own_image() as name:
        async with stage(tmp_path / "stage", installed=name, image_base=image()) as here:
            await here.backend.check()
            first, second = (here.spec(image=name, ssh_enabled=True) for _ in range(2))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_done, here.backend.start, second)
                said = await until_done(here.backend.start, first)
            # While it waited it said what for, and nothing else.
            assert len(said) == 1, said
            (waiting,) = said
            assert f"{name} is being built" in waiting
            for spec in (first, second):
                await here.seen.phase(spec, "running")
                assert await here.shell(spec, "cat /etc/gfs/host_keys/ed25519.pub")
            await here.backend.check()


async def test_one_that_cannot_be_built_says_what_to_do_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "WAIT_SECONDS", HANG_SECONDS)
    monkeypatch.setattr(images, "AGAIN_SECONDS", HANG_SECONDS)
    with own_image() as name:
        absent = f"localhost/gfs-tests-{secrets.token_hex(4)}:1"
        async with stage(tmp_path / "stage", installed=name, image_base=absent) as here:
            spec = here.spec(image=name)
            says = f"compute.image_base.*podman build -t {name} .*Podman says: .*refused"
            with pytest.raises(BackendUnavailable, match=says):
                await here.backend.start(spec)
            # So say all who ask, for a while.
            with pytest.raises(BackendUnavailable, match=says):
                await here.backend.check()
            podman("tag", image(), absent)
            try:
                with pytest.raises(BackendUnavailable, match=says):
                    await here.backend.start(spec)
                monkeypatch.setattr(images, "AGAIN_SECONDS", 0.0)
                await here.backend.check()
                await here.backend.start(spec)
                await here.seen.phase(spec, "running")
            finally:
                podman("untag", image(), absent)


async def test_another_image_is_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "WAIT_SECONDS", HANG_SECONDS)
    async with stage(tmp_path / "stage", installed=NOWHERE) as here:
        await here.backend.check()
        with pytest.raises(BackendUnavailable, match=f"{NOWHERE} cannot be pulled.*refused"):
            await here.backend.start(here.spec(image=NOWHERE))


async def test_a_build_outlives_who_asked_for_it_and_serves_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "WAIT_SECONDS", 0.0)
    with own_image() as name:
        directory = tmp_path / "stage"
        async with stage(directory, installed=name, image_base=image()) as here:
            with pytest.raises(BackendUnavailable, match="is being built"):
                await here.backend.start(here.spec(image=name))
            with trio.fail_after(HANG_SECONDS):
                while not builds(name):  # noqa: ASYNC110
                    await trio.sleep(0.01)
        # Nobody could build it of this.
        async with stage(directory, installed=name, image_base="localhost/nobody-asks") as here:
            spec = here.spec(image=name)
            await until_done(here.backend.start, spec)
            await here.seen.phase(spec, "running")


def builds(name: str) -> list[int]:
    """Processes that build it."""
    return processes(lambda entry: f"\0-t\0{name}\0".encode() in (entry / "cmdline").read_bytes())


async def test_one_that_is_only_here_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    missing = "localhost/gfs-tests-nowhere:1"
    says = f"{missing}.*podman build -t {missing}"
    async with stage(tmp_path / "stage", installed=missing) as here:
        with pytest.raises(BackendUnavailable, match=says):
            await here.backend.start(here.spec(image=missing))
        with pytest.raises(BackendUnavailable, match=says):
            await here.backend.check()
