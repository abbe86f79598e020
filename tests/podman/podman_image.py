"""What the tests with real containers need of this machine.

    python tests/podman/podman_image.py             build the image, unless it is there
    python tests/podman/podman_image.py --install   and add Debian's packages for it first

Both as root. Nothing is pulled: the base is a Debian root file system made of the
packages that this machine's own apt installs from, kept as an archive in this user's
cache. From it the image is built with the Containerfile that users build from.

Guarantees: the archive in the cache is complete (it is renamed into its place), two
builds never run at once, and of older images of the tests none is left.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_DIRECTORY = Path(__file__).parents[2] / "control" / "compute" / "image"
REPOSITORY = "localhost/gfs-tests-compute"
BASE = "localhost/gfs-tests-base:latest"
#: crun, Podman's first choice, cannot run where cgroups of both versions are mounted.
RUNTIME = "runc"

#: Program -> the package that it comes with.
TO_TEST = {
    "podman": "podman",
    RUNTIME: RUNTIME,
    # Podman's networks are made with it, and its package is only recommended.
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "curl": "curl",
}
TO_BUILD = {"mmdebstrap": "mmdebstrap"}
#: What the image's own recipe would install, and a web server.
INSIDE = ("ca-certificates", "curl", "less", "openssh-server", "procps", "busybox")
UNUSED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
BUILD_SECONDS_MAX = 600.0


class CannotBuild(Exception):
    """Says what to do."""


def image() -> str:
    """The tests' image; another one for every change of what it is made of."""
    recipe = hashlib.sha256(repr((_codename(), INSIDE, UNUSED)).encode())
    for file in sorted(IMAGE_DIRECTORY.iterdir()):
        recipe.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return f"{REPOSITORY}:{recipe.hexdigest()[:16]}"


def missing() -> str:
    """Why there are no containers to test with, and what to do; "" if there are."""
    if os.geteuid() != 0:
        return "containers are run as root only: run  make test-podman  as root"
    if absent := _absent(TO_TEST):
        return f"no {absent[0]}: run  make test-podman"
    if podman("image", "exists", image(), check=False).returncode != 0:
        return f"no image {image()}: run  make test-podman"
    return ""


def podman(
    *arguments: str, check: bool = True, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, as the tests look at the machine with it. Raises CannotBuild."""
    command = ["podman", "--runtime", RUNTIME, *arguments]
    done = subprocess.run(
        command,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        env={**os.environ, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"},
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    if check and done.returncode:
        raise CannotBuild(f"{' '.join(command)}: {done.stderr.strip()}")
    return done


def build() -> None:
    """Build the image, unless it is there."""
    if os.geteuid() != 0:
        raise CannotBuild("it takes root")
    _cache().mkdir(parents=True, exist_ok=True)
    with _alone():
        if podman("image", "exists", image(), check=False).returncode == 0:
            return
        started = time.monotonic()
        base = _cache() / f"debian-{_codename()}-{_digest(*INSIDE, *UNUSED)}.tar"
        if not base.exists():
            _make_base(base)
        _remove_images()
        podman("import", str(base), BASE)
        try:
            build_image(IMAGE_DIRECTORY, image(), "--squash-all", "--build-arg", f"BASE={BASE}")
        finally:
            podman("rmi", "--force", BASE)
        print(f"podman: built {image()} in {time.monotonic() - started:.0f} s")


def build_image(directory: Path | str, name: str, *options: str, input: str | None = None) -> None:
    limits = []
    for word, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        # Podman asks for more than a root of few capabilities may have.
        hard = resource.getrlimit(number)[1]
        limits += ["--ulimit", f"{word}={hard}:{hard}"]
    podman("build", "--pull=never", *limits, *options, "-t", name, str(directory), input=input)


def install() -> None:
    """Add what is missing of Debian's packages."""
    absent = sorted({(TO_TEST | TO_BUILD)[name] for name in _absent(TO_TEST | TO_BUILD)})
    if not absent:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300"]
    for command in (
        ["apt-get", *options, "update"],
        ["apt-get", *options, "install", "-y", "--no-install-recommends", *absent],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"{' '.join(command)}: {done.stderr.strip()}")


def _make_base(archive: Path) -> None:
    mirror = subprocess.run(
        [
            *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
            *("Created-By: Packages", f"Codename: {_codename()}", "Component: main"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if not mirror:
        raise CannotBuild(f"apt knows no source of {_codename()}: see sources.list(5)")
    unfinished = archive.with_suffix(".new.tar")
    command = [
        *("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(INSIDE)}"),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={path}" for path in UNUSED),
        *(_codename(), str(unfinished), mirror[0]),
    ]
    print(f"podman: making a root file system of {_codename()}", flush=True)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_SECONDS_MAX, check=False
    )
    if done.returncode:
        raise CannotBuild(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    unfinished.replace(archive)
    for older in archive.parent.glob("debian-*.tar"):
        if older != archive:
            older.unlink()


def _remove_images() -> None:
    listed = podman("images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).stdout.split()
    if listed:
        podman("rmi", *listed, check=False)  # one that another run uses stays


def _absent(programs: dict[str, str]) -> list[str]:
    return [name for name in programs if shutil.which(name) is None]


def _codename() -> str:
    """Of the Debian that runs here."""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return "stable"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "gfs-tests" / "podman"


@contextmanager
def _alone() -> Iterator[None]:
    """One build at a time. The lock goes with the process that holds it."""
    with (_cache() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    try:
        if "--install" in sys.argv[1:]:
            install()
        build()
    except CannotBuild as error:
        print(f"podman: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
