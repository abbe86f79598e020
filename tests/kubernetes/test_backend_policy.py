"""What admission.yaml keeps the control plane's account from, tried as that account.

Whoever has stolen its credentials asks for each of these. What RBAC grants and the policy
refuses is also asked without the policy: it is that which refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import httpx
import kube_policy
import policies
import pytest
import trio
from apiserver import Identity, place_of
from kube_api import Api
from kube_backend import running, spec
from kube_here import Kubernetes
from kube_rights import account_of_file
from needs import need
from test_backend_rights import live

from control.compute.backend import Installation, Port, Spec
from control.compute.kubernetes import manifests

HERE = Installation(id="c0ffee", domain="compute.example.org", image="unused", directory="unused")
ONE = spec(ports=(Port(443, 443), Port(8080, 80)))
NAMESPACE = manifests.namespace_name(ONE.user_id, ONE.id)
#: Made, and never started: what it would run is still to be said.
TWO = spec()
#: Not made.
THREE = spec()
#: A namespace with nothing in it yet.
FOUR = spec(ports=(Port(443, 443),))
#: Of somebody else in the same cluster.
FOREIGN = "foreign"
OPTIONS = manifests.Options()

Manifest = dict[str, Any]


@dataclass
class Try:
    """One request."""

    name: str
    method: str
    path: str
    body: Manifest | None = None
    #: What the refusal says.
    reported: str = ""
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def workload() -> Manifest:
    return manifests.workload(HERE, TWO, OPTIONS, run=True)


def service(of: Spec = ONE) -> Manifest:
    made = manifests.service(HERE, of, OPTIONS)
    assert made is not None
    return made


def ingress() -> Manifest:
    made = manifests.ingress(HERE, ONE, OPTIONS)
    assert made is not None
    return made


def policy() -> Manifest:
    return manifests.network_policy(HERE, ONE, OPTIONS, ())


def applied(name: str, manifest: Manifest, reported: str, **change: Any) -> Try:
    """A manifest by server-side apply, as the backend sends it. ``change``: parts of it by
    their paths, with ``__`` between."""
    made = deepcopy(manifest)
    for path, value in change.items():
        *way, last = (int(part) if part.isdigit() else part for part in path.split("__"))
        there: Any = made
        for part in way:
            there = there[part]
        if value is None:
            del there[last]
        else:
            there[last] = value
    return Try(name, "PATCH", place_of(made), made, reported)


def changed(
    manifest: Manifest, reported: str, tries: dict[str, dict[str, Any]], inside: str = ""
) -> Iterator[Try]:
    """Of each name the manifest with these parts of ``inside`` changed."""
    for name, change in tries.items():
        parts = {f"{inside}{path}": value for path, value in change.items()}
        yield applied(name, manifest, reported, **parts)


def pods(reported: str, tries: dict[str, dict[str, Any]]) -> Iterator[Try]:
    return changed(workload(), reported, tries, POD)


def out_to(name: str, block: Manifest) -> Try:
    return applied(name, policy(), "private networks", spec__egress=[{"to": [{"ipBlock": block}]}])


POD = "spec__template__spec__"
CONTAINER = f"{POD}containers__0__"
ELSEWHERE = "no container's namespace"
EXEC = {"command": "id", "container": "main", "stdout": "1"}
SPACE = manifests.namespace(HERE, THREE, "run-1")
VOLUMES = workload()["spec"]["template"]["spec"]["volumes"]
CONTAINERS = workload()["spec"]["template"]["spec"]["containers"]
CLAIM = {"kind": "PersistentVolumeClaim", "name": "others"}
INTERNET = [
    peer["ipBlock"]
    for rule in policy()["spec"]["egress"]
    for peer in rule["to"]
    if "except" in peer.get("ipBlock", {})
]
PSA = "pod-security.kubernetes.io/enforce"
METADATA_PAGE = {"httpGet": {"host": "169.254.169.254", "port": 80}}
GPUS = ("resources__limits__example.org/gpu", "resources__requests__example.org/gpu")

MORE = {
    "metadata": {"name": "more"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}

#: What RBAC grants in all namespaces, and the policy does not.
BY_POLICY = [
    *(
        applied(f"{each['kind']} in {there}", each, ELSEWHERE, metadata__namespace=there)
        for there in (FOREIGN, "kube-system")
        for each in (
            *(workload(), manifests.secret(HERE, ONE), service(), ingress(), policy()),
            *(manifests.volume_claim(HERE, ONE, OPTIONS), manifests.quota(HERE, ONE)),
        )
    ),
    applied(
        "another Secret", manifests.secret(HERE, ONE), "of the name token", metadata__name="token"
    ),
    applied("another workload", workload(), "of the name evil", metadata__name="evil"),
    *(
        Try(f"others' {path} deleted", "DELETE", f"/api/v1/namespaces/{path}", None, ELSEWHERE)
        for path in (f"{FOREIGN}/services/theirs", FOREIGN)
    ),
    *(
        Try(f"a command in {pod}", "GET", f"/api/v1/namespaces/{pod}/exec", None, reported, EXEC)
        for pod, reported in (
            (f"{FOREIGN}/pods/container-0", ELSEWHERE),
            ("kube-system/pods/container-0", ELSEWHERE),
            (f"{NAMESPACE}/pods/other", "of the name other"),
        )
    ),
    # --- namespaces
    *changed(
        SPACE,
        "has its name",
        {
            "a namespace of another name": {"name": "evil"},
            "a namespace without labels": {"labels": {}},
            "a namespace that may all": {f"labels__{PSA}": "privileged"},
            "a namespace without Pod Security": {f"labels__{PSA}": None},
        },
        "metadata__",
    ),
    applied(
        "a namespace of ours that may all from now on",
        manifests.namespace(HERE, ONE, "run-1"),
        "has its name",
        **{f"metadata__labels__{PSA}": "privileged"},
    ),
    *changed(
        SPACE,
        "no other labels",
        {
            "out of others' sight": {"labels__admission.example.org/ignore": "true"},
            "on nodes of its choice": {
                "annotations": {"scheduler.alpha.kubernetes.io/node-selector": "a=b"}
            },
        },
        "metadata__",
    ),
    *(
        applied(f"{name} with our labels", SPACE, ELSEWHERE, metadata__name=name)
        for name in (FOREIGN, "kube-system")
    ),
    # --- what a container keeps
    applied("a Secret of another type", manifests.secret(HERE, FOUR), "no token", type="x"),
    *changed(
        manifests.volume_claim(HERE, FOUR, OPTIONS),
        "a new volume",
        {
            "a volume that is there": {"spec__volumeName": "others"},
            "a volume that nobody made for it": {"spec__storageClassName": ""},
            "a volume of another class": {"spec__storageClassName": "manual"},
            "a volume by its labels": {"spec__selector": {"matchLabels": {"a": "b"}}},
            "a copy of a volume": {"spec__dataSource": CLAIM},
        },
    ),
    # --- what leads to a container
    *changed(
        service(),
        "no addresses",
        {
            "an address taken": {"externalIPs": ["192.0.2.1"]},
            "a Service of others' pods": {"selector": {"app": "x"}},
            "an address chosen": {"loadBalancerIP": "192.0.2.1"},
            "a port of all nodes": {"type": "NodePort"},
        },
        "spec__",
    ),
    applied(
        "another port of all nodes",
        service(FOUR),
        "no addresses",
        spec__externalTrafficPolicy="Local",
        # Of those that no service gets without asking for it.
        spec__healthCheckNodePort=30023,
    ),
    *changed(
        service(),
        "no other labels",
        {
            "an address chosen by an annotation": {
                "annotations": {"metallb.universe.tf/loadBalancerIPs": "192.0.2.1"}
            },
            "a Service out of others' sight": {
                "labels": {"service.kubernetes.io/service-proxy-name": ""}
            },
        },
        "metadata__",
    ),
    *changed(
        ingress(),
        "host name",
        {
            "a host name of others": {"rules__0__host": "example.org"},
            "a certificate of others": {"tls__0__hosts": ["example.org"]},
            "a certificate of all": {"tls__0": {"hosts": []}},
            "another Secret's": {"tls__0__secretName": "keys"},
            "all host names": {
                "defaultBackend": {"service": {"name": "web", "port": {"number": 443}}}
            },
        },
        "spec__",
    ),
    applied(
        "a snippet of configuration",
        ingress(),
        "no other labels",
        metadata__annotations={"nginx.ingress.kubernetes.io/configuration-snippet": "x"},
    ),
    *(
        out_to(f"out to {cidr}", {"cidr": cidr})
        for cidr in (
            *("0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/8", "169.254.169.254/32"),
            *("::/0", "2000::/3", "64:ff9b::/96", "fd00:ec2::254/128"),
        )
    ),
    *(
        out_to(
            f"out to {net} of {block['cidr']}",
            {"cidr": block["cidr"], "except": [each for each in block["except"] if each != net]},
        )
        for block in INTERNET
        for net in block["except"]
    ),
    *changed(
        policy(),
        "private networks",
        {
            "out to everywhere": {"egress": [{}]},
            "out to all pods": {"egress__0__to__0__podSelector": {}},
            "out to all of DNS": {"egress__0__ports": None},
            "out to more of DNS": {"egress__0__ports": [{"port": 53}, {"port": 9153}]},
            "in as one likes": {"policyTypes": ["Egress"]},
            "not for all pods": {"podSelector": {"matchLabels": {"a": "b"}}},
        },
        "spec__",
    ),
    # --- the container
    *pods(
        "user namespace",
        {
            "root of the node": {"hostUsers": True},
            "no word of a user namespace": {"hostUsers": None},
        },
    ),
    *pods(
        "nothing of its node",
        {
            "the node's network": {"hostNetwork": True},
            "the node's processes": {"hostPID": True},
            "the node's memory": {"hostIPC": True},
            "a node of its choice": {"nodeName": "node-amd64"},
            "a runtime of its choice": {"runtimeClassName": "trusted"},
            "nodes of its choice": {"nodeSelector": {"a": "b"}},
            "a scheduler of its choice": {"schedulerName": "mine"},
            "a token": {"automountServiceAccountToken": True},
            "another account": {"serviceAccountName": "other"},
            "first of all": {"priorityClassName": "system-node-critical"},
            "on the API server's nodes": {"tolerations": [{"operator": "Exists"}]},
            "a setting of the kernel": {
                "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}
            },
        },
    ),
    *changed(
        workload(),
        "no other labels",
        {
            "labels of its choice": {"labels__k8s-app": "x"},
            "annotations of its choice": {"annotations__k8s.v1.cni.cncf.io/networks": "x"},
        },
        "spec__template__metadata__",
    ),
    *pods(
        "its own volume",
        {
            f"{name} as a volume": {"volumes": [*VOLUMES, {"name": "more", **source}]}
            for name, source in {
                "a directory of the node": {"hostPath": {"path": "/"}},
                "another Secret": {"secret": {"secretName": "tls"}},
                "a token": {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
            }.items()
        },
    ),
    *changed(
        workload(),
        "no more privileges",
        {
            "privileges": {"securityContext__privileged": True},
            "escalation": {"securityContext__allowPrivilegeEscalation": True},
            "all that a node can": {"securityContext__capabilities__add": ["SYS_ADMIN"]},
            "what runtimes give": {"securityContext__capabilities__drop": []},
            "no seccomp": {"securityContext__seccompProfile": {"type": "Unconfined"}},
            "nothing said": {"securityContext": None},
            # The node's kubelet makes these, from the node's network.
            "a probe": {"livenessProbe": METADATA_PAGE},
            "a hook": {"lifecycle": {"postStart": METADATA_PAGE}},
            "a port of the node": {"ports": [{"containerPort": 80, "hostPort": 80}]},
            "variables of another Secret": {"envFrom": [{"secretRef": {"name": "tls"}}]},
            "a variable of another Secret": {
                "env": [
                    {
                        "name": "a",
                        "valueFrom": {"secretKeyRef": {"name": "tls", "key": "tls.key"}},
                    }
                ]
            },
        },
        CONTAINER,
    ),
    *changed(workload(), "has limits", {"no bounds": {"resources": {}}}, CONTAINER),
    *changed(workload(), "no devices", {"a device": dict.fromkeys(GPUS, "1")}, CONTAINER),
    *changed(
        workload(),
        "is one container",
        {
            "a second container": {
                f"{POD}containers": [*CONTAINERS, {**CONTAINERS[0], "name": "second"}]
            },
            "two pods": {"spec__replicas": 2},
            "more volumes": {"spec__volumeClaimTemplates": [MORE]},
        },
    ),
]

RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLE = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
EVIL = {"metadata": {"name": "evil"}}
EVIL_POD = {**EVIL, "spec": {"containers": [{"name": "x", "image": "x"}]}}
EVIL_ROLE = {"metadata": {"name": "gfs-control-compute"}, "rules": []}
EVIL_VOLUME = {
    "accessModes": ["ReadWriteOnce"],
    "capacity": {"storage": "1Gi"},
    "hostPath": {"path": "/"},
}
SYSTEM = "/api/v1/namespaces/kube-system"
OURS = f"/api/v1/namespaces/{NAMESPACE}"
#: What not even RBAC grants.
BY_RBAC = [
    Try("a pod of the system", "POST", f"{SYSTEM}/pods", EVIL_POD),
    Try("a pod", "POST", f"{OURS}/pods", EVIL_POD),
    Try("a pod deleted", "DELETE", f"{OURS}/pods/container-0"),
    Try("Secrets read", "GET", f"{SYSTEM}/secrets"),
    Try("its own Secret read", "GET", f"{OURS}/secrets/keys"),
    *(
        Try(f"all rights by {kind}", "POST", f"{RBAC}/{kind}", {**EVIL, "roleRef": ROLE})
        for kind in ("clusterrolebindings", f"namespaces/{NAMESPACE}/rolebindings")
    ),
    Try("more for its role", "PUT", f"{RBAC}/clusterroles/gfs-control-compute", EVIL_ROLE),
    Try("a token of others", "POST", f"{SYSTEM}/serviceaccounts/default/token", {"spec": {}}),
    Try("a node's kubelet", "GET", "/api/v1/nodes/node-amd64/proxy/pods"),
    *(
        Try(f"a pod's {way}", "GET", f"/api/v1/namespaces/{FOREIGN}/pods/x/{way}")
        for way in ("portforward", "attach")
    ),
    Try("a node changed", "DELETE", "/api/v1/nodes/node-amd64"),
    Try("its policy removed", "DELETE", f"{kube_policy.HOOKS}/{kube_policy.NAME}"),
    Try("a node's disk", "POST", "/api/v1/persistentvolumes", {**EVIL, "spec": EVIL_VOLUME}),
    Try(
        "somebody else's name",
        "GET",
        "/api/v1/secrets",
        headers={"Impersonate-User": "system:admin", "Impersonate-Group": "system:masters"},
    ),
]


# Not of the module: a worker may get its tests in two parts, and what it makes stays.
@pytest.fixture(scope="session")
def account(running_kubernetes: Kubernetes) -> Identity:
    """With a container, and a namespace of somebody else's beside it."""
    identity = account_of_file(running_kubernetes.server)

    async def prepare() -> None:
        async with running(identity, HERE.id) as here:
            await here.start(ONE)
            await here.backend.create(TWO)
        async with Api(running_kubernetes.admin) as kube:
            await kube.create("/api/v1/namespaces", {"metadata": {"name": FOREIGN}})
            await kube.create("/api/v1/namespaces", manifests.namespace(HERE, FOUR, ""))
            made = {"metadata": {"name": "theirs"}, "spec": {"ports": [{"port": 1}]}}
            await kube.create(f"/api/v1/namespaces/{FOREIGN}/services", made)

    trio.run(prepare)
    return identity


def ask(identity: Identity, what: Try) -> httpx.Response:
    """Nothing is stored, also of what is let through."""
    query = {"dryRun": "All", **what.query} if what.method != "GET" else what.query
    kind = "application/json"
    if what.method == "PATCH":
        query |= {"fieldManager": "gfs-control", "force": "true"}
        kind = "application/apply-patch+yaml"
    with identity.client() as client:
        return client.request(
            what.method,
            what.path,
            params=query,
            json=what.body,
            headers={"Content-Type": kind, **what.headers},
        )


def named(what: Try) -> str:
    """The same in each process that collects the tests; the namespace's name is new in each."""
    return what.name.replace(NAMESPACE, "its-own")


@pytest.mark.parametrize("what", BY_RBAC, ids=named)
def test_what_the_account_has_no_right_to(
    kubernetes: Kubernetes, account: Identity, what: Try
) -> None:
    answer = ask(account, what)
    assert answer.status_code == 403, answer.text
    assert "cannot" in answer.json()["message"]


@pytest.mark.parametrize("what", BY_POLICY, ids=named)
def test_what_rights_alone_do_not_keep_it_from(
    kubernetes: Kubernetes, account: Identity, what: Try
) -> None:
    answer = ask(account, what)
    assert answer.status_code != 403, answer.text


@pytest.fixture(scope="module")
def guarded(running_kubernetes: Kubernetes, account: Identity) -> Iterator[Identity]:
    """The account, with the policy in force."""
    need(policies.missing())
    with kube_policy.in_force(running_kubernetes.server):
        yield account


@pytest.mark.parametrize("what", BY_POLICY, ids=named)
def test_what_the_policy_refuses(kubernetes: Kubernetes, guarded: Identity, what: Try) -> None:
    answer = ask(guarded, what)
    assert answer.status_code in (403, 422), answer.text
    message = answer.json()["message"]
    assert "ValidatingAdmissionPolicy 'gfs-control-compute'" in message
    assert what.reported in message


@pytest.mark.parametrize(
    "what",
    [what for what in BY_RBAC if what.method != "GET" or "/pods/" in what.path],
    ids=named,
)
def test_what_the_policy_refuses_even_if_all_rights_are_granted(
    kubernetes: Kubernetes, guarded: Identity, what: Try
) -> None:
    """But for what removes the policy itself, which no policy can refuse, and for reading."""
    asked = replace(what, headers=kube_policy.ALMIGHTY)
    answer = ask(kubernetes.admin, asked)
    if what.path.startswith(kube_policy.HOOKS):
        assert answer.status_code == 200
        return
    assert answer.status_code in (403, 422), answer.text
    assert "ValidatingAdmissionPolicy 'gfs-control-compute'" in answer.json()["message"]
    assert "the control plane may not" in answer.json()["message"]


async def test_everything_that_the_control_plane_does_is_let_through(
    kubernetes: Kubernetes, guarded: Identity
) -> None:
    one = spec()
    async with running(guarded) as here:
        await live(here, one)


def test_what_operators_choose_is_let_through(kubernetes: Kubernetes, guarded: Identity) -> None:
    options = manifests.Options(
        storage_class=kube_policy.STORAGE_CLASS,
        ingress_class="nginx",
        service_type="ClusterIP",
        tls_issuer="issuer",
        open_networks=(kube_policy.OPEN_NETWORK,),
    )
    nodes = [ip_network("8.8.8.8/32"), ip_network("2001:4860::/64")]
    for made in (
        manifests.network_policy(HERE, FOUR, options, nodes),
        manifests.volume_claim(HERE, FOUR, options),
        manifests.workload(HERE, FOUR, options, run=True),
        manifests.service(HERE, FOUR, options),
        manifests.web_service(HERE, FOUR),
        manifests.ingress(HERE, FOUR, options),
    ):
        assert made is not None
        answer = ask(guarded, applied("", made, ""))
        assert answer.status_code in (200, 201), answer.text


def test_nobody_else_is_kept_from_anything(kubernetes: Kubernetes, guarded: Identity) -> None:
    for what in (*BY_POLICY, *BY_RBAC):
        answer = ask(kubernetes.admin, what)
        assert "ValidatingAdmissionPolicy" not in answer.text, what
