"""What a simulation that was killed left in memory goes with the next one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from limits import HANG_SECONDS

from gfs.testing.scratch import make_scratch, remove_left

CHILD = """
import time
from gfs.testing.scratch import make_scratch
print(make_scratch(), flush=True)
time.sleep(600)
"""


def test_only_what_the_dead_left_is_removed() -> None:
    own = Path(make_scratch())
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    try:
        other = Path(child.stdout.readline().strip())
        (other / "data.mdb").write_bytes(b"rows")
        remove_left(other.parent)
        assert other.is_dir()
        child.send_signal(signal.SIGKILL)
        child.wait(HANG_SECONDS)
        remove_left(other.parent)
        assert not other.exists()
        assert own.is_dir()
    finally:
        child.kill()
        child.communicate(timeout=HANG_SECONDS)
        shutil.rmtree(own)
