"""The proxy of docs/machines.md, with Debian's nginx: HTTP/2 for clients, and each is known by
its own address."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority
from deployed import DEPLOY, run
from harness import Cluster
from limits import HANG_SECONDS, wait_for
from processes import free_port

PAGE = DEPLOY.parent / "docs" / "machines.md"
PASSWORD = "correct horse battery staple"
#: The proxy trusts nobody else, so a client has another address.
CLIENT = "127.0.0.2"
WHOLE = """
daemon off;
user root;
pid {directory}/pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site;
}}
"""


class Proxied:
    """A cloud behind nginx with the page's configuration; only places and addresses differ."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cluster = Cluster(directory, control=True)
        self.cluster.environment |= {
            "GFS_ADMIN_PASSWORD": PASSWORD,
            "GFS_CONTROL_TRUSTED_PROXIES": "127.0.0.1",
        }
        self.cluster.start()
        self.direct = str(self.cluster.ready["control"]["storage"])
        place = f"127.0.0.1:{free_port()}"
        self.url = f"https://{place}"
        keys = Authority().write(directory / "keys", "127.0.0.1")
        [site] = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        for written, here in {
            "listen 443": f"listen {place}",
            "/etc/gfs/cloud.pem": f"{keys / 'cert.pem'}",
            "/etc/gfs/cloud.key": f"{keys / 'key.pem'}",
            "http://127.0.0.1:8080": self.direct,
        }.items():
            assert written in site
            site = site.replace(written, here)
        (directory / "site").write_text(site)
        (directory / "nginx.conf").write_text(WHOLE.format(directory=directory))
        with open(directory / "nginx.log", "wb") as log:
            self._nginx = subprocess.Popen(
                ["nginx", "-p", directory, "-c", directory / "nginx.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: self._nginx.poll() is not None or self._answers(), "answer of nginx")
        assert self._nginx.poll() is None, (directory / "nginx.log").read_text()

    def _answers(self) -> bool:
        command = ["curl", "-skf", "-o", "/dev/null", f"{self.url}/healthz"]
        return subprocess.run(command, timeout=HANG_SECONDS, check=False).returncode == 0

    def curl(self, path: str, *options: str | Path) -> str:
        return run("curl", "-skS", "--interface", CLIENT, *options, f"{self.url}{path}")

    def token(self) -> str:
        body = json.dumps({"username": "admin", "password": PASSWORD})
        forged = ("-H", "X-Forwarded-For: 203.0.113.9")
        return str(json.loads(self.curl("/api/login", *forged, "--json", body))["token"])

    def stop(self) -> None:
        self._nginx.terminate()
        try:
            self._nginx.wait(HANG_SECONDS)
        finally:
            self._nginx.kill()
            self._nginx.wait()
            self.cluster.stop()


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    made = Proxied(tmp_path)
    yield made
    made.stop()


def test_clients_get_http_2_and_are_known_by_their_own_addresses(proxied: Proxied) -> None:
    assert proxied.curl("/healthz", "-o", "/dev/null", "-w", "%{http_version}") == "2"
    authorization = ("-H", f"Authorization: Bearer {proxied.token()}")
    sessions = json.loads(proxied.curl("/admin/sessions", *authorization))
    assert [each["ip_address"] for each in sessions] == [CLIENT]

    sent, got = proxied.directory / "sent", proxied.directory / "got"
    sent.write_bytes(secrets.token_bytes(9_000_000))
    proxied.curl("/storage/namespaces", *authorization, "--json", '{"name": "photos"}')
    form = ("-F", f"file=@{sent}", "--http2")
    proxied.curl("/storage/upload?namespace=photos", *authorization, *form)
    proxied.curl("/storage/download/photos/sent", *authorization, "-o", got)
    assert got.read_bytes() == sent.read_bytes()


def test_metrics_are_closed_in_every_spelling(proxied: Proxied) -> None:
    status = ("--path-as-is", "-o", "/dev/null", "-w", "%{http_code}")
    assert run("curl", "-sS", *status, f"{proxied.direct}/metrics") == "200"
    for spelling in ("/metrics", "/metrics/", "//metrics", "/./metrics", "/x/../metrics",
                     "/metrics?a", "/%6detrics", "/%2Fmetrics", "/metrics%2F", "/metrics//",
                     "/metrics;a", "/metrics%00"):  # fmt: skip
        answer = proxied.curl(spelling, *status)
        assert answer in ("400", "404"), spelling
    assert proxied.curl("/healthz", *status) == "200"


def test_an_upgrade_reaches_the_control_plane(proxied: Proxied) -> None:
    """What is no terminal is refused by the control plane, in the words that it has without."""
    path = f"/compute/containers/none/terminal?token={proxied.token()}"
    upgrade = [
        *("--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket"),
        *("-H", "Sec-WebSocket-Version: 13", "-H", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        *("-w", " %{http_code}"),
    ]
    answer = proxied.curl(path, *upgrade)
    assert answer == run("curl", "-sS", *upgrade, f"{proxied.direct}{path}")
    assert answer[-3:] in ("404", "503")
