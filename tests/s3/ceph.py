"""Runs the ceph s3-tests by hand, and says what is not as ``s3-tests.toml`` has it.

    git clone https://github.com/ceph/s3-tests /tmp/s3-tests
    python3 -m venv /tmp/s3-tests/.venv
    /tmp/s3-tests/.venv/bin/pip install -r /tmp/s3-tests/requirements.txt
    .venv/bin/python tests/s3/ceph.py /tmp/s3-tests

More arguments are those of its pytest, for instance ``-k listv2``; then only the tests that ran
are judged. ``--results FILE`` judges the JUnit file of an earlier run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from harness import Cluster

LISTED = Path(__file__).parent / "s3-tests.toml"
SUITE = "s3tests/functional/test_s3.py"
SECTIONS = ("s3 main", "s3 alt", "s3 tenant", "iam", "iam root", "iam alt root")
#: A "day" of lifecycle rules: what the suite assumes if it is not configured.
DAY_SECONDS = "10"
PASSWORD = "a password of the suite"


def results(path: Path) -> dict[str, bool]:
    """Whether each test of a JUnit file passed, with all its parameters. One that was skipped
    did not."""
    found: dict[str, bool] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = str(case.get("name")).partition("[")[0]
        has_passed = all(child.tag in ("properties", "system-out") for child in case)
        found[name] = found.get(name, True) and has_passed
    return found


def judge(passed: Mapping[str, bool], listed: Mapping[str, Any]) -> list[str]:
    """What is not as it is listed."""
    must = set(listed["must_pass"])
    excluded = {name for group in listed["excluded"] for name in group["tests"]}
    wrong = [f"is listed twice: {name}" for name in sorted(must & excluded)]
    for name, is_good in passed.items():
        if name in must and not is_good:
            wrong.append(f"must pass, and does not: {name}")
        elif name in excluded and is_good:
            wrong.append(f"is excluded, and passes: {name}")
        elif name not in must | excluded:
            wrong.append(f"is not listed, and {'passes' if is_good else 'fails'}: {name}")
    return wrong


def configuration(cluster: Cluster) -> str:
    """The suite's configuration file, with a user and an access key for each of its sections."""
    ready = cluster.ready["control"]
    host, port = urlsplit(ready["s3"]).hostname, urlsplit(ready["s3"]).port
    lines = ["[DEFAULT]", f"host = {host}", f"port = {port}", "is_secure = False", "[fixtures]",
             "bucket prefix = suite-{random}-"]  # fmt: skip
    with httpx.Client(base_url=ready["storage"], trust_env=False) as admin:
        login = {"username": "admin", "password": PASSWORD}
        token = admin.post("/api/login", json=login).raise_for_status().json()["token"]
        admin.headers["Authorization"] = f"Bearer {token}"
        for section in SECTIONS:
            name = section.replace(" ", "-")
            user = {"username": name, "password": PASSWORD}
            made = admin.post("/admin/users", json=user).raise_for_status().json()
            key = cluster.gfs("control", "s3-key", name, f"--state={cluster.state}").stdout.decode()
            fields = dict(line.split(": ") for line in key.splitlines())
            lines += [
                f"[{section}]",
                f"user_id = {made['id']}",
                f"display_name = {name}",
                f"email = {name}@example.org",
                f"access_key = {fields['access key']}",
                f"secret_key = {fields['secret key']}",
                "tenant = none",
            ]
    return "\n".join(lines) + "\n"


def run(suite: Path, arguments: list[str], file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gfs-s3-tests-") as name:
        directory = Path(name)
        cluster = Cluster(directory, control=True)
        cluster.environment |= {
            "GFS_S3_LIFECYCLE_DAY_SECONDS": DAY_SECONDS,
            "GFS_ADMIN_PASSWORD": PASSWORD,
        }
        try:
            cluster.start()
            config = directory / "s3tests.conf"
            config.write_text(configuration(cluster))
            config.chmod(0o600)
            python = str(suite / ".venv/bin/python")
            command = [python, "-m", "pytest", "-q", "--tb=short", SUITE]
            command += [f"--junitxml={file}", "-p", "no:cacheprovider", *arguments]
            subprocess.run(
                command, cwd=suite, env={**os.environ, "S3TEST_CONF": str(config)}, check=False
            )
        finally:
            cluster.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, nargs="?", help="its directory, with .venv")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir(), "s3-tests.xml"))
    known, arguments = parser.parse_known_args()
    if known.suite is not None:
        run(known.suite.resolve(), arguments, known.results.resolve())
    passed = results(known.results)
    wrong = judge(passed, tomllib.loads(LISTED.read_text()))
    print(*wrong, sep="\n")
    print(f"{sum(passed.values())} of {len(passed)} pass; {len(wrong)} are not as listed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
