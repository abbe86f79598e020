"""MooseFS: a master, three chunkservers and two mounts in namespaces of their own.

It refuses a master on 127.0.0.1, so it has a network namespace with another address; its
mounts and processes are in namespaces as well. All of them end with the process that is
the first in them, and that one ends with this one: nothing is left, whatever happens.

    python -m bench.peers.moosefs FOLDER SOURCE SECONDS LISTED   # inside, as root

Set up as its manual pages have it by default, which is what they recommend for speed:
neither the change log (CHANGELOG_SAVE_MODE) nor chunks (HDD_FSYNC_BEFORE_CLOSE) are synced.
Otherwise: three copies, no trash, and no process before others (NICE_LEVEL).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.peers.ways import DIRECTORIES, Figures, Mount, measure

PROGRAMS = ("mfsmaster", "mfschunkserver", "mfsmount", "mfsfileinfo", "unshare", "ip")
PACKAGES = "moosefs-master moosefs-chunkserver moosefs-client iproute2"
ADDRESS = "10.255.255.1"
MASTER_PORT, CHUNKSERVER_PORT = 9421, 9510
START_SECONDS = 60.0
STOP_SECONDS = 30.0
RUN_SECONDS = 1800.0


def missing() -> str:
    """Why it cannot run, and what adds it; nothing if it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"there is no {', '.join(absent)}: apt-get install {PACKAGES}"
    if os.geteuid() != 0:
        return "it needs namespaces and a mount, so root: sudo make bench-peers"
    return ""


def version() -> str:
    said = subprocess.run(["mfsmaster", "-v"], capture_output=True, check=False)
    return (re.search(rb"\d+(\.\d+)+", said.stdout + said.stderr) or [b"?"])[0].decode()


def run(folder: Path, source: Path, seconds: float, listed: int) -> dict[str, Figures]:
    # The other end of its standard input: when that is closed, the first process ends.
    its_end, our_end = os.pipe()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc",
                sys.executable, "-m", "bench.peers.moosefs",
                str(folder), str(source), str(seconds), str(listed),
            ],
            stdin=its_end,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the bench, which ends it
        )  # fmt: skip
        os.close(its_end)
        try:
            found, _ = process.communicate(timeout=RUN_SECONDS)
        finally:
            os.close(our_end)
            process.wait(STOP_SECONDS)
    if process.returncode:
        said = (folder / "log").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"MooseFS: {said[-1000:]}")
    figures: dict[str, Figures] = json.loads(found)
    return figures


# --- inside --------------------------------------------------------------------------


def main() -> None:
    folder, source = Path(sys.argv[1]), Path(sys.argv[2])
    threading.Thread(target=end_with_our_parent, daemon=True).start()
    call("ip", "link", "set", "lo", "up")
    call("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    mounts = serve(folder)
    found = measure({"moosefs": Mount(*mounts)}, source, float(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps(found), flush=True)
    os._exit(0)  # and with this process its whole namespaces


def end_with_our_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def call(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [name, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name} {arguments}: {(done.stdout + done.stderr).decode()}")
    return done.stdout.decode()


def start(folder: Path, *command: str) -> None:
    subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def configured(folder: Path, name: str, **options: object) -> str:
    """The path of a configuration file for a server that has a directory of that name."""
    own = folder / name
    own.mkdir()
    options |= {"DATA_PATH": own, "NICE_LEVEL": os.nice(0), "WORKING_USER": "root"}
    path = folder / f"{name}.cfg"
    path.write_text("".join(f"{key} = {value}\n" for key, value in options.items()))
    return str(path)


def serve(folder: Path) -> tuple[Path, Path]:
    """Start it; a mount to write and one to read, when three copies are made."""
    exports = folder / "exports.cfg"
    exports.write_text("* / rw,alldirs,admin,maproot=0:0\n")
    options = {f"{who}_LISTEN_HOST": ADDRESS for who in ("MATOML", "MATOCS", "MATOCL")}
    master = configured(folder, "master", EXPORTS_FILENAME=exports, **options)
    (folder / "master" / "metadata.mfs").write_bytes(b"MFSM NEW")  # empty
    start(folder, "mfsmaster", "-f", "-c", master, "start")
    wait("its master", lambda: socket.create_connection((ADDRESS, MASTER_PORT), 1).close())
    for number in range(3):
        disk = folder / f"disk-{number}"
        disk.mkdir()
        (folder / f"disk-{number}.cfg").write_text(f"{disk} =\n")  # shared with other servers
        server = configured(
            folder,
            f"chunkserver-{number}",
            HDD_CONF_FILENAME=folder / f"disk-{number}.cfg",
            MASTER_HOST=ADDRESS,
            CSSERV_LISTEN_HOST=ADDRESS,
            CSSERV_LISTEN_PORT=CHUNKSERVER_PORT + number,
        )
        start(folder, "mfschunkserver", "-f", "-c", server, "start")
    writing = mount(folder / "writing", "AUTO")
    reading = mount(folder / "reading", "DIRECT")  # no reads from this machine's page cache
    call("mfssetsclass", "3CP", str(writing))
    call("mfssettrashretention", "0", str(writing))
    for name in ("list", *map(str, range(DIRECTORIES))):
        (writing / name).mkdir()
    wait("three copies", lambda: probe(writing))
    return writing, reading


def mount(point: Path, cache: str) -> Path:
    point.mkdir()
    start(
        point.parent, "mfsmount", "-f", "-H", ADDRESS,
        "-o", f"mfsnice={os.nice(0)},mfscachemode={cache}", str(point),
    )  # fmt: skip

    def check() -> None:
        if not os.path.ismount(point):
            raise OSError(f"{point} is not mounted yet")

    wait("a mount", check)
    return point


def probe(mounted: Path) -> None:
    path = mounted / "probe"
    path.unlink(missing_ok=True)
    path.write_bytes(b"x")
    said = call("mfsfileinfo", str(path))
    path.unlink()
    if copies(said) != 3:
        raise RuntimeError(said)


def copies(said: str) -> int:
    """Good copies of a file of one chunk, by ``mfsfileinfo``."""
    return len(re.findall(r"copy \d+: .*status:VALID", said))


def wait(what: str, check: Callable[[], None]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return check()
        except (OSError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"MooseFS: no {what}: {error}") from error
            time.sleep(0.1)


if __name__ == "__main__":
    main()
