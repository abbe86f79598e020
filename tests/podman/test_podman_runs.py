"""What becomes of a run: its limits, its end, its starts, what it prints and uses."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
import trio
from checks import unique
from limits import HANG_SECONDS
from msgspec.structs import replace
from podman_here import inspect, name_of, processes_naming
from podman_image import RUNTIME, build_image, image, podman
from podman_stage import Stage, stage, until, until_done
from signals import send

from control.compute.backend import BackendUnavailable, Spec
from control.compute.podman import backend, shapes, watching
from control.compute.podman.engine import service
from control.compute.podman.engine.http import Refused

pytestmark = pytest.mark.usefixtures("containers_work")

MIB = 1024**2


@contextmanager
def image_that(*lines: str) -> Iterator[str]:
    """The tests' image with more lines of a Containerfile. It is removed after the test."""
    name = f"localhost/gfs-tests-{unique('image')}"
    build_image("-", name, "--layers=false", input="\n".join([f"FROM {image()}", *lines]))
    try:
        yield name
    finally:
        podman("rmi", name)


@pytest.fixture
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for the SSH server of an image that has none."""
    monkeypatch.setattr(watching, "ANSWER_SECONDS", 0.2)


# --- limits and use ---------------------------------------------------------------------


def cgroup(pid: int, controller: str, old: str, new: str) -> int:
    """What the kernel holds a process to: a file of cgroups of version 1, or of 2."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/{controller}{path}/{old}").read_text())
        if not controllers and (file := Path(f"/sys/fs/cgroup{path}/{new}")).exists():
            return int(file.read_text().split()[0])
    raise AssertionError(f"no {controller} for {pid}")


async def test_the_kernel_holds_a_container_to_its_limits(here: Stage) -> None:
    spec = await here.run(memory_mb=192, cpus=0.5)
    pid = inspect(spec.id)["State"]["Pid"]
    assert cgroup(pid, "memory", "memory.limit_in_bytes", "memory.max") == 192 * MIB
    assert cgroup(pid, "cpu", "cpu.cfs_quota_us", "cpu.max") == shapes.CPU_PERIOD_US // 2
    assert cgroup(pid, "pids", "pids.max", "pids.max") == shapes.PIDS
    host = inspect(spec.id)["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 192 * MIB

    # What asks for more is ended, and the container goes on.
    _, code = await here.execute(spec, ["tail", "/dev/zero"])
    assert code == 128 + signal.SIGKILL
    assert here.seen.now[spec.id].phase == "running"


async def test_what_a_container_uses_is_counted(here: Stage) -> None:
    idle, busy = await here.run(), await here.run()
    await here.shell(busy, "head -c 40M /dev/zero > /root/file; mkdir /opt/more")
    await here.shell(busy, "head -c 20M /dev/zero > /opt/more/file")
    # It holds the line that does not end, and waits for more.
    holds = ["/bin/sh", "-c", "(head -c 60M /dev/zero; echo >&2 all; sleep 999) | tail -n 1"]
    async with here.backend.exec(busy, holds) as terminal:
        printed = b""
        with trio.fail_after(HANG_SECONDS):
            while b"all" not in printed:
                printed += await terminal.receive()
        idle_usage = await here.backend.usage(idle)
        busy_usage = await here.backend.usage(busy)
    assert idle_usage.memory_mb is not None
    assert busy_usage.memory_mb is not None
    assert 1 <= idle_usage.memory_mb < 60 <= busy_usage.memory_mb <= 256
    assert idle_usage.storage_gb is not None
    assert busy_usage.storage_gb is not None
    assert idle_usage.storage_gb < 0.01
    assert 60 / 1024 <= busy_usage.storage_gb < 80 / 1024
    await here.backend.stop(busy)
    stopped = await here.backend.usage(busy)
    assert (stopped.memory_mb, stopped.storage_gb) == (None, None)


async def test_the_log_of_podman_has_a_bound_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LIST_SECONDS", 0.05)
    monkeypatch.setattr(service, "LOG_BYTES_MAX", 10_000)
    monkeypatch.setattr(service, "LOG_BYTES_KEPT", 1000)
    log = tmp_path / "stage" / service.LOG
    async with stage(tmp_path / "stage") as here:
        with log.open("ab") as file:
            file.write(b"old line\n" * 2000)
        with trio.fail_after(HANG_SECONDS):
            while log.stat().st_size > 10_000:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert set(log.read_bytes().splitlines()) == {b"old line"}
        pid = await here.service()
        assert appends(pid, 1)
        assert appends(pid, 2)


def appends(pid: int, descriptor: int) -> bool:
    """Whether what it writes there comes at the end, also of what was cut."""
    (flags,) = re.findall(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text())
    return bool(int(flags, 8) & os.O_APPEND)


# --- several at a time ------------------------------------------------------------------

#: A runtime that pauses nothing, and takes as long as FLAG is there to say so: so long
#: Podman answers nothing about the container.
HOLDS = """\
#!/bin/sh
case " $* " in *" pause "*)
    touch FLAG.entered
    while [ -e FLAG ]; do sleep 0.1; done
    exit 1
esac
exec RUNTIME "$@"
"""


async def test_news_of_one_do_not_wait_for_podman_to_be_done_with_another(tmp_path: Path) -> None:
    flag, runtime = tmp_path / "flag", tmp_path / "runtime"
    program = shutil.which(RUNTIME)
    assert program is not None
    runtime.write_text(HOLDS.replace("FLAG", str(flag)).replace("RUNTIME", program))
    runtime.chmod(0o755)
    flag.touch()

    async def hold(name: str) -> None:
        with pytest.raises(Refused):
            await here.backend._api._client.ask(
                "POST", f"/containers/{name}/pause", seconds=HANG_SECONDS
            )

    try:
        async with stage(tmp_path / "stage", podman_runtime=str(runtime)) as here:
            held = await here.run()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, name_of(held.id))
                with trio.fail_after(HANG_SECONDS):
                    while "flag.entered" not in os.listdir(tmp_path):  # noqa: ASYNC110
                        await trio.sleep(0.02)
                    here.backend._touch(held.id)
                    others = [await here.run() for _ in range(2)]
                    await here.backend.stop(others[0])
                    await here.seen.phase(others[0], "stopped")
                    # As in the list that is made from time to time.
                    assert here.backend._watching is not None
                    await here.backend._watching._next_look(held.id)
                assert here.seen.now[held.id].phase == "running"
                flag.unlink()
            await here.backend.stop(held)
            await here.seen.phase(held, "stopped")
    finally:
        flag.unlink(missing_ok=True)


# --- what it prints ---------------------------------------------------------------------

#: And more, when it is asked for.
PRINTS = "trap 'echo more' USR1; trap exit TERM; seq 300; while :; do sleep 999 & wait; done"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")


@pytest.mark.usefixtures("_no_server")
async def test_what_a_container_prints_is_reported_from_any_line_on(tmp_path: Path) -> None:
    with image_that(f'CMD ["/bin/sh", "-c", "{PRINTS}"]') as printing:
        async with stage(tmp_path / "stage") as here:
            spec = await here.run(image=printing)

            async def lines(tail: int) -> list[str]:
                found = [line async for line in here.backend.logs(spec, tail, follow=False)]
                assert all(STAMP.match(line) for line in found), found
                return [STAMP.sub("", line) for line in found]

            with trio.fail_after(HANG_SECONDS):
                while await lines(1) != ["300"]:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert await lines(1000) == [str(number) for number in range(1, 301)]
            assert await lines(2) == ["299", "300"]
            assert await lines(0) == []

            with trio.fail_after(HANG_SECONDS):
                async with aclosing(here.backend.logs(spec, 1, follow=True)) as following:
                    assert STAMP.sub("", await anext(following)) == "300"
                    await here.shell(spec, "kill -USR1 1")
                    assert STAMP.sub("", await anext(following)) == "more"
                    await here.backend.stop(spec)
                    assert [line async for line in following] == []
            # Of the last run, until there is another one.
            await here.seen.phase(spec, "stopped")
            assert await lines(2) == ["300", "more"]
            again = replace(spec, generation=spec.generation + 1)
            await here.backend.start(again)
            await here.seen.phase(again, "running")
            assert "more" not in await lines(1000)


# --- mounts -----------------------------------------------------------------------------


async def test_a_mount_path_begins_with_what_the_image_has_there_and_keeps_what_it_gets(
    tmp_path: Path,
) -> None:
    seed = "RUN mkdir -m 0751 /srv/seed && echo image > /srv/seed/a && chown 33:33 /srv/seed/a"
    look = "cd /srv/seed && stat -c '%n %a %u' . * && cat * && ls -A /new/dir"
    with image_that(seed) as seeded:
        async with stage(tmp_path / "stage") as here:
            paths = ("/srv/seed", "/new/dir")
            spec = await here.run(image=seeded, mount_paths=paths)
            assert await here.shell(spec, look) == ". 751 0\na 644 33\nimage\n"
            await here.shell(spec, "echo mine > /srv/seed/a; echo new > /new/dir/b; echo > /srv/c")

            spec = await restarted(here, spec, image=seeded, mount_paths=paths)
            assert await here.shell(spec, look) == ". 751 0\na 644 33\nmine\nb\n"
            # What is not under a mount path is fresh.
            assert await here.shell(spec, "ls /srv") == "seed\n"

            # What was emptied stays empty: the first use is over.
            await here.shell(spec, "rm /srv/seed/a")
            spec = await restarted(here, spec, image=seeded, mount_paths=paths)
            assert await here.shell(spec, "ls -A /srv/seed; ls -A /new/dir") == "b\n"

            # A path that is not mounted for a while has not lost what it had.
            spec = await restarted(here, spec, image=seeded, mount_paths=("/srv/seed",))
            assert await here.shell(spec, "ls -A / | grep -x new || echo none") == "none\n"
            spec = await restarted(here, spec, image=seeded, mount_paths=paths)
            assert await here.shell(spec, "cat /new/dir/b") == "new\n"


async def test_a_container_whose_disk_is_full_starts_and_can_be_emptied(here: Stage) -> None:
    spec = await here.run(ssh_enabled=True)
    _, code = await here.execute(spec, ["/bin/sh", "-c", "cat /dev/zero > /root/fill"])
    assert code == 1
    spec = await restarted(here, spec, ssh_enabled=True)
    assert await here.shell(spec, "rm /root/fill; echo room > /root/file; cat /root/file") == (
        "room\n"
    )


async def test_what_a_container_of_an_older_version_kept_is_taken_over(
    here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those had volumes of Podman's, and their users were this machine's."""
    spec = here.spec(mount_paths=("/srv/data",))
    (name,) = [each for each in shapes.volumes(spec) if each != "host-keys"]
    volume = f"{shapes.resource_name(here.cluster, spec.id)}-{name}"
    flags = [
        word
        for label, value in shapes.labels(here.cluster, spec.id, spec.user_id).items()
        for word in ("--label", f"{label}={value}")
    ]
    podman("volume", "create", *flags, volume)
    at = Path(podman("volume", "inspect", volume, "--format", "{{.Mountpoint}}").stdout.strip())
    (at / "mine").write_text("kept")
    (at / "theirs").write_text("kept")
    os.chown(at / "theirs", 33, 33)
    (at / "theirs").chmod(0o4755)
    # However long it takes, no call waits for it, and it is not begun anew by each.
    monkeypatch.setattr(backend, "MOVE_WAIT_SECONDS", 0.0)
    with pytest.raises(BackendUnavailable, match="being copied to a disk"):
        await here.backend.start(spec)
    monkeypatch.setattr(backend, "MOVE_WAIT_SECONDS", HANG_SECONDS)
    await here.backend.start(spec)
    await here.seen.phase(spec, "running")
    look = "cd /srv/data && stat -c '%n %a %u %g' * && cat *"
    assert await here.shell(spec, look) == "mine 644 0 0\ntheirs 4755 33 33\nkeptkept"
    assert volume not in podman("volume", "ls", "--quiet").stdout
    spec = await restarted(here, spec, mount_paths=("/srv/data",))
    assert await here.shell(spec, "cat /srv/data/mine") == "kept"


async def restarted(here: Stage, spec: Spec, **changes: object) -> Spec:
    after = here.spec(id=spec.id, generation=spec.generation + 1, **changes)
    await until_done(here.backend.start, after)
    await here.seen.phase(after, "running")
    return after


# --- ends -------------------------------------------------------------------------------


async def test_a_container_whose_first_process_dies_runs_again(spec: Spec, here: Stage) -> None:
    await here.shell(spec, "echo kept > /root/file")
    for _ in range(2):
        pid = inspect(spec.id)["State"]["Pid"]
        send(pid, signal.SIGKILL)
        await until(lambda pid=pid: inspect(spec.id)["State"]["Pid"] not in (0, pid), "another run")
        await here.seen.phase(spec, "running")
    assert await here.shell(spec, "cat /root/file") == "kept\n"


async def test_one_that_ends_in_peace_has_stopped(spec: Spec, here: Stage) -> None:
    await here.execute(spec, ["kill", "1"])
    assert "by itself" in (await here.seen.phase(spec, "stopped")).reason


@pytest.mark.usefixtures("_no_server")
async def test_one_that_needs_too_much_memory_fails_and_says_so(tmp_path: Path) -> None:
    with image_that('CMD ["tail", "/dev/zero"]') as greedy:
        async with stage(tmp_path / "stage") as here:
            spec = here.spec(image=greedy, memory_mb=128)
            await here.backend.start(spec)
            assert "memory" in (await here.seen.phase(spec, "failed")).reason
            assert inspect(spec.id)["RestartCount"] == shapes.RESTARTS


@pytest.mark.usefixtures("_no_server")
async def test_one_that_always_ends_with_an_error_fails_with_its_code(tmp_path: Path) -> None:
    with image_that('CMD ["/bin/sh", "-c", "echo a reason; exit 42"]') as failing:
        async with stage(tmp_path / "stage") as here:
            spec = here.spec(image=failing)
            await here.backend.start(spec)
            assert "42" in (await here.seen.phase(spec, "failed")).reason
            printed = [line async for line in here.backend.logs(spec, 10, follow=False)]
            assert printed[-1].endswith(" a reason")


async def test_one_that_nobody_looks_after_any_more_is_seen_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "UNNOTICED_SECONDS", 0.5)
    async with stage(tmp_path / "stage") as here:
        spec = await here.run()
        pid = inspect(spec.id)["State"]["Pid"]
        name = f"-n\0{name_of(spec.id)}\0"
        # Others look like it until they have become what they are to be.
        (conmon,) = await until(lambda: len(found := processes_naming(name)) == 1 and found, "it")
        send(conmon, signal.SIGKILL)
        send(pid, signal.SIGKILL)
        await here.seen.until(lambda: here.seen.now[spec.id].phase in ("stopped", "failed"))
        after = await restarted(here, spec)
        assert await here.shell(after, "echo runs") == "runs\n"
