"""A Kubernetes on loopback: etcd, the API server, the controllers and the scheduler.

What runs is what runs in a cluster, so the tests meet its true answers: RBAC,
admission, 409, 410, resource versions, finalisers, garbage collection. Only nodes are
missing; :mod:`kubelet` stands in for them. It takes some seconds to start and about
half a gigabyte, so a test session starts it once. A test may kill it, hang it, or
make it forget the past; it is always there again for the next one.

Ports are looked for below the range that outgoing connections use, or one of those
could take the API server's port while it is down for a restart. Two sessions may
still pick the same one: whoever loses finds his program ended, and tries others.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import binaries
import httpx
from certificates import Authority
from lifeline import Lifeline
from limits import HANG_SECONDS, wait_for

START_ATTEMPTS_MAX = 5

PORTS = range(20_000, 32_000)

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
#: Where the tests' own ServiceAccounts live.
IDENTITY_NAMESPACE = "identities"

#: Left out: what needs a cloud, and certificates that nobody here asks for.
CONTROLLERS = (
    "*,-cloud-node-lifecycle,-route,-service,-nodeipam,-ttl"
    ",-csrapproving,-csrcleaner,-csrsigning,-tokencleaner,-bootstrapsigner"
    ",-horizontalpodautoscaling,-cronjob"
)
#: Of all API groups; the scheduler wants one that was never more than beta.
LEFT_OUT = (
    "api/beta=false,policy/v1beta1=true"
    ",autoscaling/v1=false,batch/v1=false,certificates.k8s.io/v1=false"
)


def place_of(manifest: dict[str, Any]) -> str:
    """The path of an object."""
    about, group = manifest["metadata"], manifest["apiVersion"]
    inside = f"/namespaces/{about['namespace']}" if "namespace" in about else ""
    kind = str(manifest["kind"]).lower()
    plural = {"networkpolicy": "networkpolicies", "ingress": "ingresses"}.get(kind, f"{kind}s")
    return f"/{'apis' if '/' in group else 'api'}/{group}{inside}/{plural}/{about['name']}"


def write_private(path: Path, text: str) -> Path:
    """A kubeconfig that others can read makes some clients complain."""
    path.touch(mode=0o600)
    path.write_text(text)
    return path


class Unavailable(Exception):
    """The cluster did not start; the message names the log."""


class Identity:
    """Somebody who may talk to the API server."""

    def __init__(self, name: str, token: str, server: str, certificate: Path, path: Path) -> None:
        self.name = name
        self.token = token
        self.server = server
        self.certificate = certificate
        #: A file as ``kubectl`` and the clients read it.
        self.kubeconfig = write_private(path, json.dumps(self._config(), indent=1))

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)

    def client(self) -> httpx.Client:
        """For plain synchronous calls."""
        return httpx.Client(
            base_url=self.server,
            headers={"Authorization": f"Bearer {self.token}"},
            verify=self.tls(),
            timeout=HANG_SECONDS,
            trust_env=False,
        )

    def _config(self) -> dict[str, object]:
        # JSON is YAML.
        cluster = {"server": self.server, "certificate-authority": str(self.certificate)}
        context = {"cluster": "tests", "user": self.name}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": self.name, "user": {"token": self.token}}],
            "contexts": [{"name": self.name, "context": context}],
            "current-context": self.name,
        }


class Server:
    """The cluster. Methods block: in an async test call them in a thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._bin = binaries.directory()
        #: The authority that all here trust, and what everybody shows.
        self.tls = Authority().write(directory / "tls", "127.0.0.1")
        self.certificate = self.tls / "ca.pem"
        self._tokens = {name: secrets.token_urlsafe(24) for name in ("admin", "parts")}
        table = "".join(
            f'{token},{name},{name},"system:masters"\n' for name, token in self._tokens.items()
        )
        write_private(directory / "tokens.csv", table)
        self._etcd: Lifeline | None = None
        self._api: Lifeline | None = None
        self._others: list[Lifeline] = []

    def start(self) -> None:
        """Returns when the API server is ready.

        Raises:
            Unavailable: it is not, in spite of some attempts.
        """
        for _ in range(START_ATTEMPTS_MAX):
            self._etcd_port, self._peer_port, self._port = _free_ports(3)
            self.url = f"https://127.0.0.1:{self._port}"
            self.admin = self._identity("admin", self._tokens["admin"])
            #: The controllers, the scheduler and the kubelet.
            self.parts = self._identity("parts", self._tokens["parts"])
            try:
                self._start_etcd()
                self._start_api()
            except Unavailable as error:
                self.stop()
                failure = error
                continue
            self._start_others()
            self._prepare()
            return
        raise failure

    def stop(self) -> None:
        """End everything and remove what it wrote, except logs and identities."""
        self._stop_others()
        for part in (self._api, self._etcd):
            if part is not None:
                # etcd's data go anyway; nobody needs a gentle end.
                part.kill()
        self._api = self._etcd = None
        shutil.rmtree(self.directory / "etcd", ignore_errors=True)

    def kill(self) -> None:
        """The API server dies, and every connection to it."""
        if self._api is not None:
            self._api.kill()
            self._api = None

    def restart(self) -> None:
        """Kill the API server if it runs, and start it again, at the same address.

        With new controllers and a new scheduler: those of before would look for it ever
        more seldom, up to a minute apart, and the tests would wait for that.

        The objects are as they were; the resource versions of before can be watched
        from as long as nothing was compacted and nothing changed since.
        """
        self.kill()
        self._start_api()
        self._start_others()

    def freeze(self) -> None:
        """The API server hangs: it takes connections and answers nothing."""
        assert self._api is not None
        self._api.freeze()

    def thaw(self) -> None:
        assert self._api is not None
        self._api.thaw()

    def forget(self) -> None:
        """Restart so that every resource version from before is 410 Gone.

        The API server remembers recent changes in memory, so compacting etcd alone
        is not enough: it must also start anew, after a change that it has not seen.
        """
        self.kill()
        self.compact(self._touch_etcd())
        self._start_api()
        self._start_others()

    def compact(self, revision: int | None = None) -> None:
        """Let etcd drop the history before ``revision`` (None: all there is).

        What is listed in pages goes 410 Gone at its next page; watches go on, as the
        API server has its own memory (see :meth:`forget`).
        """
        wanted = self._touch_etcd() if revision is None else revision
        self._etcd_call("kv/compaction", {"revision": str(wanted), "physical": True})

    def ensure_up(self) -> None:
        """After a test that left it dead or hanging."""
        if self._api is not None:
            self._api.thaw()
        if self._api is None or self._api.ended:
            self.restart()

    def identity(self, name: str, rules: list[dict[str, object]]) -> Identity:
        """A ServiceAccount that may do in all namespaces what ``rules`` (those of a
        ClusterRole) say, and nothing else."""
        group = "rbac.authorization.k8s.io"
        role = {"apiGroup": group, "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "namespace": IDENTITY_NAMESPACE, "name": name}
        accounts = f"/api/v1/namespaces/{IDENTITY_NAMESPACE}/serviceaccounts"
        made = [
            (accounts, {"metadata": {"name": name}}),
            (f"/apis/{group}/v1/clusterroles", {"metadata": {"name": name}, "rules": rules}),
            (
                f"/apis/{group}/v1/clusterrolebindings",
                {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]},
            ),
        ]
        with self.admin.client() as client:
            for path, body in made:
                client.post(path, json=body).raise_for_status()
        return self.account(IDENTITY_NAMESPACE, name, rules)

    def account(
        self, namespace: str, name: str, rules: Sequence[Mapping[str, Any]] = ()
    ) -> Identity:
        """A ServiceAccount that there is, with a token for the time of the tests. The API server
        knows that it may do what ``rules`` say: it takes note a little later than it answers."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        with self.admin.client() as client:
            body = {"spec": {"expirationSeconds": 24 * 3600}}
            answer = client.post(path, json=body).raise_for_status()
        found = self._identity(name, answer.json()["status"]["token"])
        if rules:
            keys = ("apiGroups", "resources", "verbs")
            group, resource, verb = (rules[0][each][0] for each in keys)
            asked = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
            review = {"spec": {"resourceAttributes": asked}}
            with found.client() as client:
                wait_for(
                    lambda: client.post(REVIEWS, json=review).json()["status"]["allowed"],
                    f"rights of {name}",
                )
        return found

    def apply(self, manifest: dict[str, Any]) -> None:
        """As ``kubectl apply --server-side`` does it."""
        with self.admin.client() as client:
            client.patch(
                place_of(manifest),
                params={"fieldManager": "tests", "force": "true"},
                headers={"Content-Type": "application/apply-patch+yaml"},
                content=json.dumps(manifest),
            ).raise_for_status()

    def _identity(self, name: str, token: str) -> Identity:
        path = self.directory / f"{name}.kubeconfig"
        return Identity(name, token, self.url, self.certificate, path)

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        self._etcd = self._run(
            "etcd",
            shutil.which("etcd") or "etcd",
            *("--data-dir", str(self.directory / "etcd")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}"),
            *("--log-level", "warn", "--unsafe-no-fsync"),
        )

    def _start_api(self) -> None:
        here, tls = self.directory, self.tls
        self._api = self._run(
            "kube-apiserver",
            str(self._bin / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            # Compacting is for the tests to decide.
            "--etcd-compaction-interval=0",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            "--insecure-port=0",
            f"--tls-cert-file={tls}/cert.pem",
            f"--tls-private-key-file={tls}/key.pem",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={tls}/key.pem",
            f"--service-account-key-file={tls}/cert.pem",
            f"--token-auth-file={here}/tokens.csv",
            "--anonymous-auth=false",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            f"--kubelet-certificate-authority={self.certificate}",
            f"--kubelet-client-certificate={tls}/cert.pem",
            f"--kubelet-client-key={tls}/key.pem",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
            # Nobody here asks for them, and each costs time at every start.
            f"--runtime-config={LEFT_OUT}",
            "--feature-gates=APIPriorityAndFairness=false",
        )
        self._wait_until_ready(self._api)

    def _start_others(self) -> None:
        self._stop_others()
        config = self.parts.kubeconfig
        common = ("--leader-elect=false", "--port=0", "--secure-port=0", "--profiling=false")
        quick = ("--kube-api-qps=1000", "--kube-api-burst=2000")
        self._others.append(
            self._run(
                "kube-controller-manager",
                str(self._bin / "kube-controller-manager"),
                f"--kubeconfig={config}",
                f"--controllers={CONTROLLERS}",
                # What keeps a node's heart beating may have to wait for a processor.
                "--node-monitor-grace-period=1h",
                f"--service-account-private-key-file={self.tls}/key.pem",
                f"--root-ca-file={self.certificate}",
                *common,
                *quick,
            )
        )
        self._others.append(
            self._run(
                "kube-scheduler",
                str(self._bin / "kube-scheduler"),
                f"--kubeconfig={config}",
                *common,
                *quick,
            )
        )

    def _stop_others(self) -> None:
        for part in self._others:
            part.kill()
        self._others.clear()

    def _run(self, name: str, *command: str) -> Lifeline:
        log = self.directory / f"{name}.log"
        return Lifeline(list(command), log=log, directory=self.directory)

    def _wait_until_ready(self, program: Lifeline) -> None:
        log = f"{self.directory}/kube-apiserver.log"
        with self.admin.client() as client:

            def is_ready() -> bool:
                if program.ended:
                    raise Unavailable(f"the API server did not start: see {log}")
                with suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            wait_for(is_ready, f"API server that is ready, see {log}")

    def _prepare(self) -> None:
        with self.admin.client() as client:
            body = {"metadata": {"name": IDENTITY_NAMESPACE}}
            client.post("/api/v1/namespaces", json=body).raise_for_status()

    def _touch_etcd(self) -> int:
        """Make one more revision; returns its number."""
        # "gfs-tests" and "x" in base64.
        answer = self._etcd_call("kv/put", {"key": "Z2ZzLXRlc3Rz", "value": "eA=="})
        return int(answer["header"]["revision"])

    def _etcd_call(self, path: str, body: dict[str, object]) -> dict[str, dict[str, str]]:
        url = f"http://127.0.0.1:{self._etcd_port}/v3/{path}"
        answer = httpx.post(url, json=body, timeout=HANG_SECONDS, trust_env=False)
        found: dict[str, dict[str, str]] = answer.raise_for_status().json()
        return found


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise Unavailable("no free port")
