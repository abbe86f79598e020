"""The examples that users of this API have in front of them, run as they stand.

Each command is what people and scripts type, for a real shell and a real curl; only
the hosts (``$AUTH``, ``$STORAGE``), the password and the token are this test's own. Then what curl
users do besides: resume a download, upload with ``-T``. What each route answers, to whom, is in
test_contract_common, test_contract_storage and test_access_table.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checks import ok
from cloud import PASSWORD, Cloud
from limits import HANG_SECONDS

SIZE = 1048576
REPORT = random.Random(1).randbytes(SIZE)

pytestmark = pytest.mark.extra("curl")


class Shell:
    """Runs commands in a directory of their own, with the hosts and the token set."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        # Users have jq; this is as much of it as the examples ask for.
        pick = "import json, sys; print(json.load(sys.stdin)[sys.argv[2][1:]])"
        self._jq = f'jq() {{ {shlex.quote(sys.executable)} -c {shlex.quote(pick)} "$@"; }}\n'
        self.variables = {"AUTH": url, "STORAGE": url, "PATH": os.environ["PATH"]}

    def run(self, command: str) -> bytes:
        """What the command prints; it must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._jq + command],
            cwd=self.directory,
            env=self.variables,
            capture_output=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def json(self, command: str) -> Any:
        return json.loads(self.run(command))

    def status(self, command: str) -> tuple[int, Any]:
        """The status and the JSON of a command that begins with ``curl``."""
        assert command.startswith("curl ")
        printed = self.run(command.replace("curl ", "curl -s -w '\\n%{http_code}' ", 1))
        body, _, status = printed.rpartition(b"\n")
        return int(status), json.loads(body)

    def write(self, name: str, data: bytes) -> None:
        (self.directory / name).write_bytes(data)

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()


# Not of the module: a worker may get its tests in two parts, and his name is taken by then.
@pytest.fixture(scope="session")
def user(cloud: Cloud) -> dict[str, Any]:
    """The user of the examples: his session."""
    body = {"username": "eddison", "display_name": "Eddison", "password": PASSWORD}
    ok(cloud.admin.post("/admin/users", json=body))
    with cloud.client() as client:
        session: dict[str, Any] = ok(client.post("/api/login", json=body))
    return session


@pytest.fixture
def shell(cloud: Cloud, user: dict[str, Any], tmp_path: Path) -> Iterator[Shell]:
    """With the user's session, and nothing stored under the names of the examples."""
    made = Shell(tmp_path, cloud.url)
    made.variables["TOKEN"] = user["token"]
    made.write("report.pdf", REPORT)
    forget(cloud, user["token"])
    yield made
    forget(cloud, user["token"])


def forget(cloud: Cloud, token: str) -> None:
    """Remove what the examples make: they all use the same names."""
    cloud.admin.delete("/storage/delete", params={"name": "report.pdf"})
    with cloud.client(token) as client:
        client.delete("/storage/namespaces/my-files")


UPLOAD = """\
curl -X POST "$STORAGE/storage/upload?namespace=default" \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "X-File-Size: 1048576" \\
  -F "file=@report.pdf"
"""
CREATE = """\
curl -X POST $STORAGE/storage/namespaces \\
  -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{
    "name": "my-files",
    "visibility": 0
  }'
"""


def test_login_puts_the_token_into_a_variable(shell: Shell, user: dict[str, Any]) -> None:
    del shell.variables["TOKEN"]
    printed = shell.json(
        """\
TOKEN=$(curl -s -X POST $AUTH/api/login \\
  -H "Content-Type: application/json" \\
  -d '{"username":"eddison","password":"secret"}' | jq -r '.token')
curl -s $AUTH/api/session -H "Authorization: Bearer $TOKEN"
""".replace("secret", PASSWORD)
    )
    assert printed == {
        "username": "eddison",
        "display_name": "Eddison",
        "user_id": user["user_id"],
        "is_admin": False,
    }
    answer = shell.json(
        """\
curl -s -X POST $AUTH/api/login \\
  -H "Content-Type: application/json" \\
  -d '{
    "username": "eddison",
    "password": "secret"
  }'
""".replace("secret", PASSWORD)
    )
    assert answer.pop("token").startswith("eyJ")
    assert answer == printed


def test_a_file_is_uploaded_listed_downloaded_and_deleted(shell: Shell) -> None:
    answer = shell.json(UPLOAD)
    assert (answer["status"], answer["name"]) == ("ok", "report.pdf")

    listed = shell.json(
        """\
curl $STORAGE/storage/files?namespace=default \\
  -H "Authorization: Bearer $TOKEN"
"""
    )
    (found,) = [file for file in listed if file["path"] == "report.pdf"]
    times = {found.pop("created_at"), found.pop("modified_at")}
    assert all(isinstance(time, int) and time > 1_736_000_000 for time in times)
    assert found == {
        "name": "report.pdf",
        "path": "report.pdf",
        "namespace": "default",
        "size": 1048576,
    }

    (shell.directory / "report.pdf").unlink()
    shell.run(
        """\
curl -o report.pdf \\
  "$STORAGE/storage/download?name=report.pdf&namespace=default" \\
  -H "Authorization: Bearer $TOKEN"
"""
    )
    assert shell.read("report.pdf") == REPORT

    deleted = shell.json(
        """\
curl -X DELETE \\
  "$STORAGE/storage/delete?name=report.pdf&namespace=default" \\
  -H "Authorization: Bearer $TOKEN"
"""
    )
    assert deleted["status"] == "ok"
    paths = [file["path"] for file in shell.json("curl $STORAGE/storage/files?namespace=default")]
    assert "report.pdf" not in paths


def test_a_file_that_exists_is_a_conflict_unless_it_is_to_be_overwritten(shell: Shell) -> None:
    shell.json(UPLOAD)
    status, answer = shell.status(UPLOAD)
    assert (status, set(answer)) == (409, {"error"})
    shell.write("report.pdf", bytes(reversed(REPORT)))
    again = UPLOAD.replace("namespace=default", "namespace=default&overwrite=true")
    assert shell.status(again)[0] == 200
    stored = shell.run("curl -s '$STORAGE/storage/default/report.pdf'".replace("'", '"'))
    assert stored == bytes(reversed(REPORT))


def test_curl_resumes_a_download(shell: Shell) -> None:
    shell.json(UPLOAD)
    shell.write("part.pdf", REPORT[:300_001])
    printed = shell.run(
        'curl -s -C - -o part.pdf -w "%{http_code} %{size_download}" '
        '"$STORAGE/storage/download?name=report.pdf&namespace=default"'
    )
    assert printed.decode() == f"206 {SIZE - 300_001}"
    assert shell.read("part.pdf") == REPORT


def test_curl_has_nothing_to_resume_when_all_is_there(shell: Shell) -> None:
    shell.json(UPLOAD)
    shell.run('curl -s -C - -o report.pdf "$STORAGE/storage/default/report.pdf"')
    assert shell.read("report.pdf") == REPORT


@pytest.mark.parametrize(
    "source", ["-T report.pdf", "-T - < report.pdf", "-T report.pdf -H 'X-File-Size: 1048576'"]
)
def test_curl_uploads_from_a_file_or_a_pipe(shell: Shell, source: str) -> None:
    shell.json(CREATE)
    answer = shell.json(
        'curl "$STORAGE/storage/my-files/2026/report.pdf" '
        f'-H "Authorization: Bearer $TOKEN" {source}'
    )
    assert (answer["status"], answer["name"]) == ("ok", "report.pdf")
    stored = shell.run(
        'curl -s "$STORAGE/storage/my-files/2026/report.pdf" -H "Authorization: Bearer $TOKEN"'
    )
    assert stored == REPORT


def test_a_link_may_carry_the_token(shell: Shell) -> None:
    shell.json(CREATE)
    shell.json(UPLOAD.replace("namespace=default", "namespace=my-files"))
    assert shell.run('curl -s "$STORAGE/storage/my-files/report.pdf?token=$TOKEN"') == REPORT
