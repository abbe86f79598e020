"""The programs of a real Kubernetes, made once for this user's cache.

    python tests/kubernetes/binaries.py            make them, unless they are there
    python tests/kubernetes/binaries.py --install  and add Debian's packages for it first (as root)

No package of Debian holds a kube-apiserver, and nothing here may pull images. But
Debian 12 has the whole of Kubernetes 1.20 as a *source* package with all that it
depends on inside, which Debian 13's Go compiles without any network: the API server,
the controllers and the scheduler take two to four minutes on two cores. etcd is a
package. So the tests meet the real thing: its admission, RBAC, watches, 409 and 410,
its garbage collector, and not an imitation that agrees with us.

Five things are done to the source:

* ``reflect2`` as it was in 2021 crashes under a current Go at the first custom
  resource; Debian's own package of it replaces it.
* The OpenAPI definitions are not part of the source: their generator is, and it runs
  first.
* A deleted namespace goes at once when it is empty. The controller waits 5 seconds,
  against clocks that differ between several API servers, of which there are none,
  and then half the grace period of the pods it met. Only the waiting is left out.
* Pods know ``hostUsers``, which came with 1.25, so that it reaches who decides by it. A
  field of the same type is its model: what there is of that in the code is copied.
* The program says ``v1.20``, or clients wonder about ``v0.0.0``.

Guarantees: what is in :func:`directory` is complete (it is renamed into its place
when everything is there), two builds never run at once (the second waits for the
first and takes its result), and nothing else is left, even of a build that was
killed (the next one clears up).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Grows when what is built changes, so that old results are not taken for new ones.
RECIPE = 2

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")

#: Of Debian 13. The first three to build with, etcd to run.
PACKAGES = ("golang-go", "golang-github-modern-go-reflect2-dev", "dpkg-dev", "etcd-server")

SUITE = "bookworm"
VERSION = "1.20"
REFLECT2 = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.pgp")

#: A build that takes longer has hung.
BUILD_SECONDS_MAX = 30 * 60

PACKAGE = "k8s.io/kubernetes"
#: Where types are marked for the OpenAPI generator, and who only speaks of the mark.
MARKED = ("vendor/k8s.io", "pkg", "cmd", "plugin")
UNMARKED = {"code-generator", "sample-apiserver", "gengo", "kube-openapi"}
MARK = re.compile(rb"^//\s*\+k8s:openapi-gen=", re.MULTILINE)

NAMESPACE_CONTROLLER = Path("pkg/controller/namespace/namespace_controller.go")
PATCHES = (
    (NAMESPACE_CONTROLLER, "namespaceDeletionGracePeriod = 5 * time.Second", "{} = 0"),
    (NAMESPACE_CONTROLLER, "time.Duration(t)*time.Second", "100*time.Millisecond"),
)

#: The field that ``hostUsers`` is made like, each with its number on the wire, which is 280
#: or 296 for a variable-length integer.
MODEL, FIELD = "SetHostnameAsFQDN", "HostUsers"
NUMBERS = ((",35,", ",37,"), ("case 35:", "case 37:"), ("= 0x98", "= 0xa8"))
API = Path("staging/src/k8s.io/api/core/v1")
INTERNAL = Path("pkg/apis/core")
#: File, and how often the model is in it.
MODELLED = (
    (API / "types.go", 1),
    (API / "zz_generated.deepcopy.go", 1),
    (API / "generated.pb.go", 3),
    (INTERNAL / "types.go", 1),
    (INTERNAL / "zz_generated.deepcopy.go", 1),
    (INTERNAL / "v1" / "zz_generated.conversion.go", 2),
)
#: A declaration, an assignment, a block that begins with it, a case that holds it.
_MODEL = re.compile(
    rf"^\t{MODEL} \*bool.*\n"
    rf"|^\tout\.{MODEL} = .*\n"
    rf"|^\tif \w+\.{MODEL} != nil {{\n(?:\t\t.*\n)+\t}}\n"
    rf"|^\t\tcase 35:\n\t\t\tif .*\n.* field {MODEL}\"(?:.*\n)(?:\t\t\t.*\n)+",
    re.MULTILINE,
)


class CannotBuild(Exception):
    """Says what to do."""


def directory() -> Path:
    """Where the programs are, or would be."""
    return home() / f"kubernetes-{VERSION}-{RECIPE}"


def missing() -> str:
    """Why there is no Kubernetes to test with, and what to do; "" if there is one."""
    absent = [name for name in PROGRAMS if not (directory() / name).is_file()]
    if absent:
        return f"no {absent[0]} in {directory()}: run  make test-kubernetes"
    if shutil.which("etcd") is None:
        return "no etcd: apt-get install etcd-server"
    return ""


def home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "gfs-tests"


def _absent_packages() -> list[str]:
    found = {
        "golang-go": shutil.which("go"),
        "golang-github-modern-go-reflect2-dev": REFLECT2.is_dir(),
        "dpkg-dev": shutil.which("dpkg-source"),
        "etcd-server": shutil.which("etcd"),
    }
    return [name for name in PACKAGES if not found[name]]


def install() -> None:
    """Add the packages that are missing; nothing is asked of apt if none is."""
    absent = _absent_packages()
    if not absent:
        return
    get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run([*get, "update"], env=environment)
    run([*get, "install", "-y", "--no-install-recommends", *absent], env=environment)


def build() -> None:
    """Make the programs, unless they are there.

    Raises:
        CannotBuild: a package is missing, or a step failed.
    """
    with alone("kubernetes"):
        for name in PROGRAMS:
            if not (directory() / name).is_file():
                break
        else:
            return
        absent = _absent_packages()
        if absent:
            raise CannotBuild(f"apt-get install {' '.join(absent)}")
        for left_behind in home().glob("building-*"):
            shutil.rmtree(left_behind)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=home()))
        try:
            _build_in(scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def alone(what: str) -> Iterator[None]:
    """One build of this at a time. The lock goes with the process that holds it."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / f"{what}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_in(scratch: Path) -> None:
    tree = scratch / "go" / "src" / PACKAGE
    tree.parent.mkdir(parents=True)
    say("fetching the source")
    version = _unpack_source(scratch, tree)
    _adapt(tree)
    environment = _go_environment(scratch)
    say(f"generating the OpenAPI definitions of {version}")
    _generate_openapi(scratch, tree, environment)
    say(f"compiling {', '.join(PROGRAMS)}")
    done = scratch / "done"
    _compile(tree, done, version, environment)
    if directory().exists():  # Incomplete: somebody deleted a program.
        shutil.rmtree(directory())
    done.rename(directory())
    say(f"done: {directory()}")


def _unpack_source(scratch: Path, tree: Path) -> str:
    """Unpack the source package of Debian into ``tree``; returns its version."""
    environment = apt(scratch, "deb-src", SUITE)
    source = scratch / "source"
    source.mkdir()
    run(["apt-get", "-qq", "update"], env=environment)
    run(["apt-get", "-qq", "source", "--download-only", "kubernetes"], cwd=source, env=environment)
    described = sorted(source.glob(f"kubernetes_{VERSION}.*.dsc"))
    if len(described) != 1:
        raise CannotBuild(f"{SUITE} has no source package of kubernetes {VERSION} any more")
    # apt has checked it against the signed index; of its uploader we know no key.
    run(["dpkg-source", "--no-check", "-x", str(described[0]), str(tree)])
    # Such as 1.20.5+really1.20.2-1.1: the last one counts.
    return re.findall(r"\d+\.\d+\.\d+", described[0].stem)[-1]


def apt(scratch: Path, kind: str, suite: str, *more: str) -> dict[str, str]:
    """The environment for an apt of its own, with everything below ``scratch``, for which
    there is one suite. The machine's stays as it is."""
    apt = scratch / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "sources.list").write_text(
        f"{kind} [signed-by={KEYRING}] {_mirror()} {suite} main\n", encoding="utf-8"
    )
    (apt / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{apt}/sources.list";\n'
        'Dir::Etc::SourceParts "/dev/null";\n'
        'Dir::Etc::Preferences "/dev/null";\n'
        'Dir::Etc::PreferencesParts "/dev/null";\n'
        f'Dir::State::Lists "{apt}/lists";\n'
        f'Dir::Cache "{apt}/cache";\n'
        # Its own user could not write here.
        'APT::Sandbox::User "root";\n'
        'Acquire::Retries "3";\n' + "".join(f"{line}\n" for line in more),
        encoding="utf-8",
    )
    return {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}


def _mirror() -> str:
    """Where this machine gets Debian from, as its apt says."""
    targets = run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]
    )
    for line in targets.splitlines():
        site, _, release = line.partition(" ")
        if site.startswith(("http://", "https://")) and "security" not in release:
            return site
    raise CannotBuild("apt knows no mirror of Debian: add one to /etc/apt/sources.list.d")


def _adapt(tree: Path) -> None:
    vendored = tree / "vendor" / "github.com" / "modern-go" / "reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(REFLECT2, vendored)
    for path, old, new in PATCHES:
        text = (tree / path).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise CannotBuild(f"{path} is not as expected: {old!r} is not there once")
        changed = text.replace(old, new.format(old.split(" ")[0]))
        (tree / path).write_text(changed, encoding="utf-8")
    for path, count in MODELLED:
        text, found = _MODEL.subn(_modelled, (tree / path).read_text(encoding="utf-8"))
        if found != count:
            raise CannotBuild(f"{path} is not as expected: {MODEL} is there {found} times")
        (tree / path).write_text(text, encoding="utf-8")


def _modelled(found: re.Match[str]) -> str:
    """The model, and the field that is made like it."""
    made = found[0].replace(MODEL, FIELD).replace(MODEL[0].lower() + MODEL[1:], "hostUsers")
    for old, new in NUMBERS:
        made = made.replace(old, new)
    return found[0] + made


def _go_environment(scratch: Path) -> dict[str, str]:
    """For a build that touches nothing outside ``scratch`` and no network."""
    return {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(scratch / "go"),
        "GOCACHE": str(scratch / "go-cache"),
        "GOTMPDIR": str(scratch),
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        # The generator looks for the standard library there.
        "GOROOT": run(["go", "env", "GOROOT"]).strip(),
    }


def _generate_openapi(scratch: Path, tree: Path, environment: dict[str, str]) -> None:
    generator = scratch / "openapi-gen"
    source = "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"
    run(["go", "build", "-o", str(generator), source], cwd=tree, env=environment)
    run(
        [
            str(generator),
            *("--input-dirs", ",".join(f"{PACKAGE}/{path}" for path in _marked(tree))),
            *("--output-package", f"{PACKAGE}/pkg/generated/openapi"),
            *("--output-file-base", "zz_generated.openapi"),
            *("--go-header-file", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"),
            *("--report-filename", str(scratch / "violations")),
        ],
        cwd=tree,
        env=environment,
    )


def _marked(tree: Path) -> list[str]:
    """The packages whose types shall be in the OpenAPI definitions."""
    found = set()
    for top in MARKED:
        # The libraries of Kubernetes itself are links into staging/.
        for parent, folders, files in os.walk(tree / top, followlinks=True):
            folders[:] = [name for name in folders if name not in UNMARKED]
            for name in files:
                if name.endswith(".go") and MARK.search((Path(parent) / name).read_bytes()):
                    found.add(str(Path(parent).relative_to(tree)))
    return sorted(found)


def _compile(tree: Path, done: Path, version: str, environment: dict[str, str]) -> None:
    major, minor, _ = version.split(".")
    flags = ["-s", "-w"]
    for package in ("component-base/version", "client-go/pkg/version"):
        for name, value in (
            ("gitVersion", f"v{version}"),
            ("gitMajor", major),
            ("gitMinor", minor),
        ):
            flags += ["-X", f"{PACKAGE}/vendor/k8s.io/{package}.{name}={value}"]
    done.mkdir()
    run(
        [
            *("go", "build", "-trimpath", "-tags", "providerless dockerless"),
            *("-ldflags", " ".join(flags), "-o", f"{done}/"),
            *(f"./cmd/{name}" for name in PROGRAMS),
        ],
        cwd=tree,
        env=environment,
    )


def run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run one step; its output is shown only if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        reported = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise CannotBuild(f"{' '.join(command)[:200]} failed:\n{reported}")
    return done.stdout


_STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"kubernetes: {text} ({time.monotonic() - _STARTED:.0f} s)", flush=True)


def main() -> int:
    # To stop as after Ctrl-C: what was started ends, and what was written goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if "--missing" in sys.argv[1:]:
        print(missing())
        return 1 if missing() else 0
    try:
        if "--install" in sys.argv[1:]:
            install()
        build()
    except CannotBuild as error:
        print(f"kubernetes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
