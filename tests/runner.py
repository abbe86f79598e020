"""Runs pytest so that nothing it started outlives it, and tries real tests that failed again.

    python tests/runner.py -n 2 -m real tests/cluster

All that the run starts is in a process group of its own, or becomes a child of this process:
when pytest has ended, or was killed, the rest is killed, and what was mounted or attached below
the run's own temporary folder is taken away. A run never signals anybody else.

A test with real processes that failed beside others is run once more, alone, when the others are
through. If it passes then, a line FLAKY names it with its first error, and it is added to
``build/flaky``; more than three of them fail the run. What is deterministic has no second
try.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from signals import send
from tiers import FAILED, FAILED_BEFORE

PR_SET_CHILD_SUBREAPER = 36
#: More than these is no chance: they are not tried again.
TRIED_AGAIN_MAX = 20
FLAKY = Path("build/flaky")
END_SECONDS = 60.0
CONTAINERS = Path(__file__).parent / "podman" / "podman_left.py"


def main(arguments: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Kept where a test failed, as pytest has it: its own folders of older runs go with time.
    place = Path(tempfile.mkdtemp(prefix="gfs-"))
    code = 1
    try:
        code = _tried_twice(arguments, place)
    finally:
        _release(place)
        if code == 0:
            shutil.rmtree(place, ignore_errors=True)
        else:
            print(f"what failed left its files in {place}", file=sys.stderr)
    return code


def _tried_twice(arguments: list[str], place: Path) -> int:
    first, second = place / "failed", place / "failed-again"
    code = _pytest(arguments, place, "1", {FAILED: str(first)})
    failed = json.loads(first.read_bytes()) if first.exists() else {}
    again = [name for name, facts in failed.items() if facts["real"]]
    if code != 1 or len(again) != len(failed) or not 0 < len(again) <= TRIED_AGAIN_MAX:
        return code
    print(f"{len(again)} tests with real processes failed beside others: again, alone", flush=True)
    code = _pytest(
        ["-n", "0", *again], place, "2", {FAILED: str(second), FAILED_BEFORE: str(first)}
    )
    if second.exists():
        _remember(failed.keys() - json.loads(second.read_bytes()).keys(), failed)
    return code


def _remember(flaky: set[str], failed: dict[str, dict[str, str]]) -> None:
    FLAKY.parent.mkdir(exist_ok=True)
    with FLAKY.open("a") as file:
        for name in sorted(flaky):
            print(time.strftime("%FT%TZ", time.gmtime()), name, failed[name]["error"], file=file)


def _pytest(arguments: list[str], place: Path, name: str, environment: dict[str, str]) -> int:
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", f"--basetemp={place / name}", *arguments],
        env={
            **os.environ,
            # The same order of sets on each machine; make explore has others.
            "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),
            **environment,
        },
        start_new_session=True,
        # Under nohup a program ignores SIGHUP, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            send(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.returncode = _wait(process.pid)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _kill_children()
    return code if code >= 0 else 128 - code


def _wait(child: int) -> int:
    """For its end, and that of those which became ours: who looks for one must not find a zombie
    for as long as the tests run."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(word) for word in text.split()]


def _kill_children() -> None:
    """All of them, and theirs, which become ours when they die."""
    deadline = time.monotonic() + END_SECONDS
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()[:200].replace(b"\0", b" ")
                if command:
                    print(f"left by a test, and killed: {pid} {command.decode(errors='replace')}")
                send(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            print(f"cannot be killed: {children}", file=sys.stderr)
            return
        time.sleep(0.01)


def _release(place: Path) -> None:
    """Containers whose files are below ``place``, what is mounted there, and loop devices of files
    there."""
    if next(place.rglob("containers.conf"), None):
        subprocess.run([sys.executable, str(CONTAINERS), str(place)], check=False)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    for point in reversed([each for each in points if place in Path(each).parents]):
        print(f"left mounted by a test: {point}")
        subprocess.run(["umount", "--lazy", point], check=False)
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if place in Path(file.read_text().strip()).parents:
                device = f"/dev/{file.parents[1].name}"
                print(f"left attached by a test: {device}")
                subprocess.run(["losetup", "--detach", device], check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
