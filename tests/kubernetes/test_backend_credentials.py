"""Credentials: where they are looked for, and what happens when they change."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from certificates import Authority
from kube_backend import made_with, spec
from kube_here import Kubernetes
from kubelet_server import served_with
from limits import HANG_SECONDS

from control.compute.backend import BackendUnavailable
from control.compute.kubernetes import Kubernetes as Backend
from control.compute.kubernetes.client import api, credentials
from control.compute.kubernetes.client.credentials import Source, find
from control.compute.kubernetes.client.streams import open_stream


def kubeconfig(
    kubernetes: Kubernetes, path: Path, cluster: dict[str, str] | None = None, **user: Any
) -> Path:
    """The administrator's, with something else about the cluster or the user."""
    config = json.loads(kubernetes.admin.kubeconfig.read_text())
    config["clusters"][0]["cluster"] |= cluster or {}
    if user:
        config["users"][0]["user"] = user
    path.write_text(json.dumps(config))
    return path


async def is_accepted(one: Backend) -> None:
    """Calls and streams, both."""
    await one.check()
    path = "/api/v1/namespaces"
    async with open_stream(one._api, path, [("watch", "true")], message_bytes_max=2**20) as stream:
        with trio.fail_after(HANG_SECONDS):
            await stream.get_message()


def test_a_machine_without_credentials_does_not_load_the_client(tmp_path: Path) -> None:
    code = """
import sys, trio
from control.compute.backend import BackendUnavailable, Installation
from control.compute.kubernetes import make
from control.compute.settings import ComputeSettings
here = Installation(id="x", domain="example.org", image="x", directory="x")
try:
    trio.run(make(here, ComputeSettings()).check)
except BackendUnavailable as error:
    print(error)
assert not {"kubernetes", "urllib3", "yaml"} & set(sys.modules), "the client was loaded"
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "GFS_COMPUTE_KUBECONFIG" in done.stdout


def test_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, token = tmp_path / "home", tmp_path / "token"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(credentials, "TOKEN", token)
    one, two = tmp_path / "one", tmp_path / "two"
    environ: dict[str, str] = {}
    with pytest.raises(BackendUnavailable, match="no credentials"):
        find("", "", environ)
    environ["KUBERNETES_SERVICE_HOST"] = "10.96.0.1"
    with pytest.raises(BackendUnavailable, match="no credentials"):
        find("", "", environ)
    token.write_text("token")
    assert find("", "", environ) == Source("")
    with pytest.raises(BackendUnavailable, match="context here"):
        find("", "here", environ)
    (home / ".kube").mkdir(parents=True)
    (home / ".kube" / "config").write_text("{}")
    assert find("", "here", environ) == Source("~/.kube/config", "here")
    environ["KUBECONFIG"] = f"{two}:{one}"
    assert find("", "", environ) == Source("~/.kube/config")
    one.write_text("{}")
    assert find("", "", environ) == Source(f"{two}:{one}")
    with pytest.raises(BackendUnavailable, match=f"no file {two}"):
        find(str(two), "", environ)
    assert find(str(one), "", environ) == Source(str(one))


@pytest.mark.parametrize(
    "text",
    ["", "- a", "{", "{}", "a: b", '{"current-context": "x", "contexts": []}', "\0"],
    ids=["empty", "list", "broken", "nothing", "other", "no context", "binary"],
)
async def test_a_file_that_is_not_a_kubeconfig_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(BackendUnavailable, match=str(path)):
        await made_with(kubeconfig=str(path)).check()


async def test_a_context_can_be_chosen(kubernetes: Kubernetes, tmp_path: Path) -> None:
    path = kubeconfig(kubernetes, tmp_path / "config", token="wrong")
    config = json.loads(path.read_text())
    config["users"].append({"name": "right", "user": {"token": kubernetes.admin.token}})
    context = {"cluster": config["clusters"][0]["name"], "user": "right"}
    config["contexts"].append({"name": "other", "context": context})
    path.write_text(json.dumps(config))
    with pytest.raises(BackendUnavailable, match="none-such"):
        await made_with(kubeconfig=str(path), context="none-such").check()
    one = made_with(kubeconfig=str(path), context="other")
    await is_accepted(one)


async def test_a_token_that_is_not_accepted_is_read_again(
    kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "RELOAD_SECONDS", 0.0)
    path = kubeconfig(kubernetes, tmp_path / "config", token="wrong")
    one = made_with(kubeconfig=str(path))
    with pytest.raises(BackendUnavailable, match="does not accept our credentials"):
        await one.check()
    with pytest.raises(BackendUnavailable, match="does not accept our credentials"):
        async with one.exec(spec(), ["true"]):
            pass
    kubeconfig(kubernetes, path, token=kubernetes.admin.token)
    await is_accepted(one)


async def test_a_token_file_is_read_again_when_it_changes(
    kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "RELOAD_SECONDS", 0.0)
    token = tmp_path / "token"
    token.write_text("expired")
    path = kubeconfig(kubernetes, tmp_path / "config", tokenFile=str(token))
    one = made_with(kubeconfig=str(path))
    with pytest.raises(BackendUnavailable, match="does not accept our credentials"):
        await one.check()
    token.write_text(kubernetes.admin.token)
    await is_accepted(one)


async def test_credentials_that_stay_wrong_are_not_read_for_each_call(
    kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    load = api.load

    def counted(source: Source) -> Any:
        nonlocal reads
        reads += 1
        return load(source)

    monkeypatch.setattr(api, "load", counted)
    one = made_with(kubeconfig=str(kubeconfig(kubernetes, tmp_path / "config", token="wrong")))
    for _ in range(5):
        with pytest.raises(BackendUnavailable):
            await one.check()
    assert reads == 1


async def test_a_plugin_is_asked(kubernetes: Kubernetes, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    status = {"token": kubernetes.admin.token}
    version = "client.authentication.k8s.io/v1"
    answer = {"apiVersion": version, "kind": "ExecCredential", "status": status}
    plugin.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    plugin.chmod(0o700)
    how = {"apiVersion": version, "command": str(plugin), "interactiveMode": "Never"}
    one = made_with(kubeconfig=str(kubeconfig(kubernetes, tmp_path / "config", exec=how)))
    await is_accepted(one)


async def test_a_pod_has_its_own(
    kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    token = tmp_path / "token"
    token.write_text(kubernetes.admin.token)
    host, _, port = kubernetes.admin.server.removeprefix("https://").partition(":")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(credentials, "TOKEN", token)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(
        incluster_config, "SERVICE_CERT_FILENAME", str(kubernetes.admin.certificate)
    )
    one = made_with()
    await is_accepted(one)


async def test_a_server_of_another_authority_is_not_trusted(
    kubernetes: Kubernetes, tmp_path: Path
) -> None:
    """Neither by calls nor by streams: a token would be shown to anybody."""
    other = Authority().write(tmp_path / "other", "127.0.0.1")
    cluster = {"certificate-authority": str(other / "ca.pem")}
    path = kubeconfig(kubernetes, tmp_path / "config", cluster)
    one = made_with(kubeconfig=str(path))
    with pytest.raises(BackendUnavailable, match="certificate verify failed"):
        await one.check()
    with pytest.raises(BackendUnavailable, match="certificate verify failed"):
        async with one.exec(spec(), ["true"]):
            pass


async def test_streams_show_the_clients_certificate(kubernetes: Kubernetes, tmp_path: Path) -> None:
    """To a server that wants one, since the API server of the tests does not; and that says
    nothing after that."""
    tls = Authority().write(tmp_path / "tls", "127.0.0.1", name="client")
    shown: list[Any] = []

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        shown.append(stream.getpeercert())
        await stream.receive_some()
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        serve_tls = partial(trio.serve_ssl_over_tcp, serve, 0, served_with(tls), host="127.0.0.1")
        (listener,) = await nursery.start(serve_tls)
        port = listener.transport_listener.socket.getsockname()[1]
        user = {"client-certificate": f"{tls}/cert.pem", "client-key": f"{tls}/key.pem"}
        cluster = {
            "server": f"https://127.0.0.1:{port}",
            "certificate-authority": f"{tls}/ca.pem",
        }
        path = kubeconfig(kubernetes, tmp_path / "config", cluster, **user)
        one = made_with(kubeconfig=str(path))._api
        with pytest.raises(BackendUnavailable, match="hung up without an answer"):
            async with open_stream(one, "/", [], message_bytes_max=1):
                pass
        nursery.cancel_scope.cancel()
    assert [dict(x[0] for x in each["subject"])["commonName"] for each in shown] == ["client"]


class Proxy:
    """An HTTP proxy that does CONNECT for who knows the password, and counts."""

    def __init__(self) -> None:
        self.connected = 0
        self.refused = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        verb, target, _ = head.split(b" ", 2)
        password = base64.b64encode(b"me:p ss")
        if verb != b"CONNECT" or b"Basic " + password not in head:
            self.refused += 1
            await stream.send_all(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return
        self.connected += 1
        host, _, port = target.decode().rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as far:
            await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, stream, far, nursery.cancel_scope)
                nursery.start_soon(self._copy, far, stream, nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await source.receive_some(65536):
                await target.send_all(data)
        scope.cancel()


@pytest.mark.parametrize("password", ["p%20ss", "wrong"])
async def test_calls_and_streams_go_through_the_proxy_of_the_file(
    kubernetes: Kubernetes, tmp_path: Path, password: str
) -> None:
    proxy = Proxy()
    async with trio.open_nursery() as nursery:
        serve_tcp = partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve_tcp)
        port = listener.socket.getsockname()[1]
        cluster = {"proxy-url": f"http://me:{password}@127.0.0.1:{port}"}
        path = kubeconfig(kubernetes, tmp_path / "config", cluster)
        one = made_with(kubeconfig=str(path))._api
        stream = open_stream(
            one, "/api/v1/namespaces", [("watch", "true")], message_bytes_max=2**20
        )
        if password == "wrong":
            with pytest.raises(BackendUnavailable, match="status 407"):
                async with stream:
                    pass
            assert proxy.refused == 1
            with pytest.raises(BackendUnavailable, match="407"):
                await one.namespace("default")
        else:
            async with stream as opened:
                with trio.fail_after(HANG_SECONDS):
                    await opened.get_message()
            assert proxy.connected == 1
            assert await one.namespace("default") is not None
            assert proxy.connected == 2
        nursery.cancel_scope.cancel()
