"""What the tests with a browser need of this machine.

    python tests/browser/browser_files.py             fetch axe-core, unless it is there
    python tests/browser/browser_files.py --install   and add Debian's packages first, as root

The browser is Debian's Chromium. Pages are looked at by axe-core, which npm fetches in the
version that ``package.json`` pins into this user's cache: only tests need it, so the tree
holds none of it.

Guarantees: what is in :func:`directory` is complete (it is renamed into its place when
everything is there).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE / "package.json"
#: The first that is there; the one that has no windows is the smaller. These are the
#: programs: some of the scripts in PATH do not become what they start, and outlive it.
PROGRAMS = ("/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium")
FILES = ("axe-core/axe.min.js",)
SECONDS_MAX = 600.0


class CannotFetch(Exception):
    """Says what to do."""


def directory() -> Path:
    """Where the page's files are, or would be."""
    pinned = hashlib.sha256(PACKAGE.read_bytes()).hexdigest()[:16]
    return _home() / f"browser-{pinned}"


def browser() -> str:
    """The program; "" if there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), "")


def missing() -> str:
    """Why there is no browser to test with, and what to do; "" if there is one."""
    if not browser():
        return "no chromium: run  make test-browser"
    if os.geteuid() == 0 and not shutil.which("ip"):
        return "no iproute2: run  make test-browser"
    if not all((directory() / name).is_file() for name in FILES):
        return f"no axe-core in {directory()}: run  make test-browser"
    return ""


def fetch() -> None:
    """Raises CannotFetch."""
    if all((directory() / name).is_file() for name in FILES):
        return
    if shutil.which("npm") is None:
        raise CannotFetch("no npm: apt-get install npm")
    _home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=_home()) as scratch:
        shutil.copy(PACKAGE, scratch)
        _run(
            *("npm", "install", "--no-package-lock", "--ignore-scripts"),
            *("--no-audit", "--no-fund", "--loglevel=error"),
            cwd=scratch,
        )
        absent = [name for name in FILES if not (Path(scratch) / "node_modules" / name).is_file()]
        if absent:
            raise CannotFetch(f"npm has brought no {absent[0]}: see {PACKAGE}")
        shutil.rmtree(directory(), ignore_errors=True)
        (Path(scratch) / "node_modules").rename(directory())


def install() -> None:
    """Add the packages that are missing; nothing is asked of apt if none is."""
    absent = [] if browser() else ["chromium-headless-shell"]
    absent += [
        package
        for program, package in (("npm", "npm"), ("ip", "iproute2"))
        if not shutil.which(program)
    ]
    if absent:
        get = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
        _run(*get, "update")
        _run(*get, "install", "-y", "--no-install-recommends", *absent)


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "gfs-tests"


def _run(*command: str, cwd: str | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        raise CannotFetch(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}".rstrip())


def main() -> int:
    try:
        if "--install" in sys.argv[1:]:
            install()
        fetch()
    except CannotFetch as error:
        print(f"browser: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
