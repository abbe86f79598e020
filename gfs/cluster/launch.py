"""A cluster in the background: start it, wait for it; find it again, stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import trio

from gfs.cluster.children import STOP_SECONDS, interpreter
from gfs.cluster.directory import StateDirectory, is_locked, open_log, supervisor_pid
from gfs.cluster.report import failure, receive_report
from gfs.errors import GfsError, SettingsError, StartupError
from gfs.variables import environment_of_child

#: A supervisor stops within this, killing what does not end.
DOWN_SECONDS = STOP_SECONDS + 10.0


async def detach(state: Path, arguments: list[str]) -> dict[str, Any]:
    """Run ``gfs up`` with ``arguments`` in the background until it is ready.

    Returns its report. Raises the GfsError that kept it from starting.
    Cancelled, it stops what was started.
    """
    directory = StateDirectory(state)
    try:
        directory.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"{directory.logs}: cannot be made: {error.strerror}") from None
    log_path = directory.log("up")
    log = open_log(log_path)
    receive, send = os.pipe()
    try:
        process = await trio.lowlevel.open_process(
            [*interpreter(), "up", *arguments, f"--ready-fd={send}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(send,),
            env=environment_of_child(is_control=True),  # it starts the control plane
            start_new_session=True,
        )
    except BaseException:
        os.close(receive)
        raise
    finally:
        os.close(send)
        os.close(log)
    try:
        report = await receive_report(receive)
    except BaseException:
        with trio.CancelScope(shield=True):
            process.terminate()
            await process.wait()
        raise
    if report is None:
        await process.wait()
        raise StartupError(f"the cluster did not start; see {log_path}")
    failed = failure(report)
    if failed is not None:
        await process.wait()
        raise failed
    return report


def down(state: Path) -> bool:
    """Stop the cluster on ``state``; False if none runs. Returns when it is gone."""
    directory = StateDirectory(state)
    if not directory.path.is_dir():
        raise SettingsError(f"{directory.path}: no state directory there: name it with --state")
    if not is_locked(directory.lock):
        return False
    signalled: int | None = None
    deadline = time.monotonic() + DOWN_SECONDS
    while is_locked(directory.lock):
        # The pid is valid only while the lock is held. A supervisor writes it right
        # after taking the lock; without one, the other processes stop by themselves.
        pid = supervisor_pid(directory.lock)
        if pid is not None and pid != signalled:
            with contextlib.suppress(ProcessLookupError):
                _terminate(pid)
            signalled = pid
        if time.monotonic() > deadline:
            raise GfsError(
                f"{directory.path}: the cluster did not stop within {DOWN_SECONDS:g} s; "
                f"its processes hold {directory.lock}"
            )
        time.sleep(0.02)
    return True


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise GfsError(f"the cluster (pid {pid}) belongs to another user") from None
