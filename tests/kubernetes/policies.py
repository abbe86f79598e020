"""The program that decides by ValidatingAdmissionPolicies, made once for this user's cache.

    python tests/kubernetes/policies.py            make it, unless it is there

The API server of :mod:`binaries` is older than these policies, and no newer one can be
built of what Debian has. But Debian unstable has the library that newer ones are made of,
``k8s.io/apiserver``, whose code these policies are: policies.go serves it as a webhook.

Debian unstable changes from day to day, so this may fail on some day: then there is no such
program; the tests that want it are skipped and say so, or fail under ``make test-kubernetes``,
and nothing else is the worse for it.
The packages are unpacked into a scratch directory, and none is installed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import binaries

#: Grows when what is built changes.
RECIPE = 1
SUITE = "sid"
#: With all that they depend on: 350 packages, 400 MB, of which Go is a fifth.
PACKAGES = ("golang-k8s-apiserver-dev", "golang-go")
SOURCE = Path(__file__).with_name("policies.go")


def program() -> Path:
    """Where it is, or would be."""
    return binaries.home() / f"policies-{RECIPE}"


def missing() -> str:
    """Why there is none, and what to do; "" if there is one."""
    if program().is_file():
        return ""
    return f"no {program()}: run  make test-kubernetes, which tries to build it"


def build() -> None:
    """Make it, unless it is there. Raises CannotBuild."""
    with binaries.alone("policies"):
        if program().is_file():
            return
        for left_behind in binaries.home().glob("policies-building-*"):
            shutil.rmtree(left_behind)
        scratch = Path(tempfile.mkdtemp(prefix="policies-building-", dir=binaries.home()))
        try:
            _build_in(scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _build_in(scratch: Path) -> None:
    binaries.say("fetching the library of newer API servers")
    # A machine with nothing on it: so apt fetches all that is needed.
    (scratch / "status").touch()
    environment = binaries.apt(scratch, "deb", SUITE, f'Dir::State::status "{scratch}/status";')
    quiet = ["apt-get", "-qq"]
    binaries.run([*quiet, "update"], env=environment)
    wanted = ["install", "--download-only", "--no-install-recommends", *PACKAGES]
    binaries.run([*quiet, "-y", *wanted], env=environment)
    root = scratch / "root"
    for package in sorted((scratch / "apt" / "cache" / "archives").glob("golang-*.deb")):
        binaries.run(["dpkg-deb", "-x", str(package), str(root)])
    binaries.say("compiling the policies")
    tree = root / "usr" / "share" / "gocode"
    place = tree / "src" / "policies"
    place.mkdir()
    shutil.copy(SOURCE, place / "main.go")
    go = root / "usr" / "lib" / "go"
    done = scratch / "done"
    binaries.run(
        [str(go / "bin" / "go"), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(done), "."],
        cwd=place,
        env={
            **os.environ,
            "GO111MODULE": "off",
            "GOROOT": str(go.resolve()),
            "GOPATH": str(tree),
            "GOCACHE": str(scratch / "go-cache"),
            "GOTMPDIR": str(scratch),
            "GOPROXY": "off",
            "GOTOOLCHAIN": "local",
            "GOFLAGS": "",
            "CGO_ENABLED": "0",
        },
    )
    done.rename(program())
    binaries.say(f"done: {program()}")


def main() -> int:
    try:
        build()
    except binaries.CannotBuild as error:
        binaries.say(f"no policies: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
