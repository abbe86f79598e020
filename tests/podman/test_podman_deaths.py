"""Processes are killed in the middle of things; what was wished comes true all the same."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest
import trio
from alone import Alone
from checks import ok, refused, wait_for
from podman_here import (
    Here,
    inspect,
    left_of,
    name_of,
    remove,
    running,
    runs_in,
    unmount_disks,
)
from podman_image import podman
from podman_shell import shell
from podman_stage import Stage, until_done
from signals import send

from control.compute.backend import LABEL_CLUSTER, LABEL_CONTAINER, Spec

#: After a call began: each of its steps takes some of this.
DELAYS = (0.0, 0.15, 0.4)


def die(here: Here, after: float) -> None:
    """Kill the control plane, and start it again."""
    assert isinstance(here.cloud, Alone)
    deadline = time.monotonic() + after
    wait_for(lambda: time.monotonic() >= deadline, "time")
    here.cloud.kill()
    here.cloud.start()


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_a_control_plane_that_dies_at_any_step_leaves_nothing_half_done(
    alone: Here, delay: float
) -> None:
    user = alone.user()
    made = user.create(mount_paths=["/data"], ssh_enabled=True)
    die(alone, delay)
    user.again().wait(made, "running")
    assert user.ssh(made, "echo kept > /data/file; echo one") == "one\n"

    user.act(made, "stop")
    die(alone, delay)
    user.again()
    wait_for(lambda: not has_run(made), "stop")

    user.act(made, "start")
    die(alone, delay)
    user.again().wait(made, "running")
    assert user.ssh(made, "cat /data/file") == "kept\n"

    ok(user.client.delete(f"/compute/containers/{made}"))
    die(alone, delay)
    alone.wait_gone(made)
    assert left_of(LABEL_CLUSTER, alone.installation()) == []


async def test_a_shell_does_not_outlive_the_process_that_its_terminal_was_open_in(
    alone: Here,
) -> None:
    user = alone.user()
    made = user.run()
    with contextlib.suppress(trio.BrokenResourceError):
        async with shell(user, made) as terminal:
            await terminal.run("(setsid sleep 6543 &)")
            assert runs_in(made, "bash")
            wait_for(lambda: runs_in(made, "sleep\0006543"), "command in the background")
            die(alone, 0.0)
    wait_for(lambda: not runs_in(made, "bash"), "end of the shell")
    # What its user has put into the background is the container's.
    assert runs_in(made, "sleep\0006543")
    user.again().delete(made)


def has_run(container: str) -> bool:
    label = f"label={LABEL_CONTAINER}={container}"
    return bool(podman("container", "ls", "--quiet", "--filter", label).stdout)


def test_what_runs_outlives_the_control_plane_and_what_was_removed_meanwhile_runs_again(
    alone: Here,
) -> None:
    user = alone.user()
    made = user.run(ssh_enabled=True, mount_paths=["/data"])
    user.ssh(made, "echo kept > /data/file")
    pid = inspect(made)["State"]["Pid"]
    alone.cloud.stop()
    wait_for(lambda: not alone.service(), "end of Podman's service")

    alone.cloud.start()
    assert user.again().get(made)["status"] == "running"
    wait_for(lambda: user.try_ssh(made, "true").returncode == 0, "way in")
    assert inspect(made)["State"]["Pid"] == pid

    alone.cloud.stop()
    podman("rm", "--force", "--time=0", name_of(made))
    alone.cloud.start()
    # Before everything is listed once more.
    wait_for(lambda: has_run(made), "another run")
    user.again().wait(made, "running")
    wait_for(lambda: user.try_ssh(made, "true").returncode == 0, "way in")
    assert user.ssh(made, "cat /data/file") == "kept\n"

    # What is gone altogether has failed; it is for its owner to say that it shall be anew.
    alone.cloud.stop()
    remove(left_of(LABEL_CONTAINER, made))
    assert [Path(path).name for path in unmount_disks(alone.directory)] == [made]
    (disk,) = alone.control.glob(f"compute/disks/{made}.*")
    disk.unlink()
    alone.cloud.start()
    assert "does not have it any more" in user.again().wait(made, "failed")["reason"]
    assert left_of(LABEL_CONTAINER, made) == []
    user.act(made, "start")
    user.wait(made, "running")
    user.known_hosts.unlink()  # its keys were gone as well
    assert user.ssh(made, "ls -A /data") == ""
    user.delete(made)


# --- calls that are cut off, and repeated -----------------------------------------------


async def test_calls_may_be_cut_off_anywhere_and_made_again(here: Stage) -> None:
    for seconds in DELAYS:
        spec = here.spec(ssh_enabled=True)
        for call in (here.backend.create, here.backend.start):
            with trio.move_on_after(seconds):
                await call(spec)
            # What was cut off may still be done, by Podman; so it is tried again.
            await until_done(call, spec)
            await call(spec)
        await here.seen.phase(spec, "running")
        with trio.move_on_after(seconds):
            await here.backend.stop(spec)
        await until_done(here.backend.stop, spec)
        await here.backend.stop(spec)
        await here.seen.phase(spec, "stopped")
        for _ in range(3):
            with trio.move_on_after(seconds):
                await here.backend.delete(spec.id, spec.user_id)
        await until_done(here.backend.delete, spec.id, spec.user_id)
        assert left_of(LABEL_CONTAINER, spec.id) == []


async def test_a_service_that_is_killed_is_started_again(spec: Spec, here: Stage) -> None:
    pid = inspect(spec.id)["State"]["Pid"]
    for _ in range(2):
        killed, times = await here.service(), len(here.seen.syncs)
        send(killed, signal.SIGKILL)
        await here.seen.until(lambda times=times: len(here.seen.syncs) > times)
        assert await here.service() != killed
    assert inspect(spec.id)["State"]["Pid"] == pid
    # News come as before.
    send(pid, signal.SIGKILL)
    await here.seen.until(lambda: here.seen.now[spec.id].phase == "initializing")
    await here.seen.phase(spec, "running")


def test_one_that_a_killed_process_left_is_taken_over_and_ended(alone: Here) -> None:
    left = wait_for(alone.service, "service of Podman's")
    user = alone.user()
    made = user.run()
    die(alone, 0.0)
    # Something that only the next one can do, and only with it.
    user.again().act(made, "stop")
    user.act(made, "start")
    user.wait(made, "running")
    assert alone.service() == left
    user.delete(made)
    alone.cloud.stop()
    wait_for(lambda: not alone.service(), "end of the service")


@pytest.mark.usefixtures("containers_work")
def test_where_podman_is_gone_everything_says_so_and_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "alone", Alone) as here:
        user = here.user()
        made = user.run(ssh_enabled=True)
        environment = here.cloud.cluster.environment
        here.cloud.stop()
        here.cloud.cluster.environment = environment | {"GFS_COMPUTE_PODMAN": "no-such-podman"}
        here.cloud.start()
        says = ("'no-such-podman'", "install podman", "compute.podman")
        body = {"name": "test", "ssh_key_ids": [user.key_id]}
        refused(user.again().client.post("/compute/containers", json=body), 503, *says)
        assert [
            each["id"] for each in ok(user.client.get("/compute/containers"))["containers"]
        ] == [made]
        user.act(made, "stop")
        user.act(made, "start")
        found = wait_for(lambda: user.get(made).get("reason", ""), "reason")
        assert all(word in found for word in says), found
        assert user.get(made)["status"] == "pending"

        here.cloud.stop()
        here.cloud.cluster.environment = environment
        here.cloud.start()
        user.again().wait(made, "running")
        wait_for(lambda: user.try_ssh(made, "true").returncode == 0, "way in")
        user.delete(made)
