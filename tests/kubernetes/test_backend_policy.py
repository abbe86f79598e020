"""What admission.yaml keeps the control plane's account from, tried as that account.

Whoever has stolen its credentials asks for each of these. What RBAC grants and the policy
refuses is also asked without the policy: it is that which refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import httpx
import kube_policy
import policies
import pytest
import trio
from apiserver import Identity
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


def namespace(**changes: Any) -> Manifest:
    made = manifests.namespace(HERE, THREE, "run-1")
    made["metadata"] |= changes
    return made


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
    about = made["metadata"]
    group = made["apiVersion"]
    inside = f"/namespaces/{about['namespace']}" if "namespace" in about else ""
    kind = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}.get(
        made["kind"], f"{made['kind'].lower()}s"
    )
    path = f"/{'apis' if '/' in group else 'api'}/{group}{inside}/{kind}/{about['name']}"
    return Try(name, "PATCH", path, made, reported)


def pod_of(name: str, reported: str, **change: Any) -> Try:
    """A workload with something else in its pod."""
    inside = {f"spec__template__spec__{path}": value for path, value in change.items()}
    return applied(name, workload(), reported, **inside)


def in_container(name: str, reported: str = "no more privileges", **change: Any) -> Try:
    return pod_of(
        name, reported, **{f"containers__0__{path}": value for path, value in change.items()}
    )


def out_to(name: str, block: Manifest) -> Try:
    return applied(name, policy(), "private networks", spec__egress=[{"to": [{"ipBlock": block}]}])


def elsewhere(manifest: Manifest, namespace: str = FOREIGN) -> Try:
    return applied(
        f"{manifest['kind']} in {namespace}",
        manifest,
        "no container's namespace",
        metadata__namespace=namespace,
    )


EXEC = {"command": "id", "container": "main", "stdout": "1"}
LABELS = namespace()["metadata"]["labels"]
VOLUMES = [*workload()["spec"]["template"]["spec"]["volumes"]]
CLAIM = {"kind": "PersistentVolumeClaim", "name": "others"}
INTERNET = [
    peer["ipBlock"]
    for rule in policy()["spec"]["egress"]
    for peer in rule["to"]
    if "except" in peer.get("ipBlock", {})
]
PSA = "pod-security.kubernetes.io/enforce"

#: What RBAC grants in all namespaces, and the policy does not.
BY_POLICY = [
    *(
        elsewhere(manifest, there)
        for there in (FOREIGN, "kube-system")
        for manifest in (
            workload(),
            manifests.secret(HERE, ONE),
            service(),
            ingress(),
            policy(),
            manifests.volume_claim(HERE, ONE, OPTIONS),
            manifests.quota(HERE, ONE),
        )
    ),
    applied(
        "another Secret", manifests.secret(HERE, ONE), "of the name token", metadata__name="token"
    ),
    applied("another workload", workload(), "of the name evil", metadata__name="evil"),
    Try(
        "a Service of others deleted",
        "DELETE",
        f"/api/v1/namespaces/{FOREIGN}/services/theirs",
        reported="no container's namespace",
    ),
    Try(
        "a command in a pod of others",
        "GET",
        f"/api/v1/namespaces/{FOREIGN}/pods/container-0/exec",
        reported="no container's namespace",
        query=EXEC,
    ),
    Try(
        "a command in a pod of the system",
        "GET",
        "/api/v1/namespaces/kube-system/pods/container-0/exec",
        reported="no container's namespace",
        query=EXEC,
    ),
    Try(
        "a command in another pod",
        "GET",
        f"/api/v1/namespaces/{NAMESPACE}/pods/other/exec",
        reported="of the name other",
        query=EXEC,
    ),
    # --- namespaces
    applied("a namespace of another name", namespace(name="evil"), "has its name"),
    applied("a namespace without labels", namespace(labels={}), "has its name"),
    applied(
        "a namespace that may all", namespace(labels=LABELS | {PSA: "privileged"}), "has its name"
    ),
    applied(
        "a namespace of ours that may all from now on",
        manifests.namespace(HERE, ONE, "run-1"),
        "has its name",
        metadata__labels=manifests.labels(HERE, ONE.user_id, ONE.id) | {PSA: "privileged"},
    ),
    applied(
        "a namespace without Pod Security",
        namespace(labels={name: LABELS[name] for name in LABELS.keys() - {PSA}}),
        "has its name",
    ),
    applied(
        "a namespace out of others' sight",
        namespace(labels=LABELS | {"admission.example.org/ignore": "true"}),
        "no other labels",
    ),
    applied(
        "a namespace of others with our labels", namespace(name=FOREIGN), "no container's namespace"
    ),
    applied(
        "the system's with our labels", namespace(name="kube-system"), "no container's namespace"
    ),
    Try(
        "others' namespace deleted",
        "DELETE",
        f"/api/v1/namespaces/{FOREIGN}",
        reported="no container's",
    ),
    applied(
        "a namespace on nodes of its choice",
        namespace(annotations={"scheduler.alpha.kubernetes.io/node-selector": "a=b"}),
        "no other labels",
    ),
    # --- what a container keeps
    applied("a Secret of another type", manifests.secret(HERE, FOUR), "no token", type="x"),
    *(
        applied(name, manifests.volume_claim(HERE, FOUR, OPTIONS), "a new volume", **change)
        for name, change in {
            "a volume that is there": {"spec__volumeName": "others"},
            "a volume that nobody made for it": {"spec__storageClassName": ""},
            "a volume of another class": {"spec__storageClassName": "manual"},
            "a volume by its labels": {"spec__selector": {"matchLabels": {"a": "b"}}},
            "a copy of a volume": {"spec__dataSource": CLAIM},
        }.items()
    ),
    # --- what leads to a container
    applied("an address taken", service(), "no addresses", spec__externalIPs=["192.0.2.1"]),
    applied("a Service of others' pods", service(), "no addresses", spec__selector={"app": "x"}),
    applied("an address chosen", service(), "no addresses", spec__loadBalancerIP="192.0.2.1"),
    applied("a port of all nodes", service(), "no addresses", spec__type="NodePort"),
    applied(
        "another port of all nodes",
        service(FOUR),
        "no addresses",
        spec__externalTrafficPolicy="Local",
        spec__healthCheckNodePort=30123,
    ),
    applied(
        "an address chosen by an annotation",
        service(),
        "no other labels",
        metadata__annotations={"metallb.universe.tf/loadBalancerIPs": "192.0.2.1"},
    ),
    applied(
        "out of others' sight",
        service(),
        "no other labels",
        metadata__labels={"service.kubernetes.io/service-proxy-name": ""},
    ),
    applied("a host name of others", ingress(), "host name", spec__rules__0__host="example.org"),
    applied("a certificate of others", ingress(), "host name", spec__tls__0__hosts=["example.org"]),
    applied("a certificate of all", ingress(), "host name", spec__tls__0={"hosts": []}),
    applied("another Secret's", ingress(), "host name", spec__tls__0__secretName="keys"),
    applied(
        "a snippet of configuration",
        ingress(),
        "no other labels",
        metadata__annotations={"nginx.ingress.kubernetes.io/configuration-snippet": "x"},
    ),
    applied(
        "all host names",
        ingress(),
        "host name",
        spec__defaultBackend={"service": {"name": "web", "port": {"number": 443}}},
    ),
    applied("out to everywhere", policy(), "private networks", spec__egress=[{}]),
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
    applied(
        "out to all pods", policy(), "private networks", spec__egress__0__to__0__podSelector={}
    ),
    applied("out to all of DNS", policy(), "private networks", spec__egress__0__ports=None),
    applied(
        "out to more of DNS",
        policy(),
        "private networks",
        spec__egress__0__ports=[{"port": 53}, {"port": 9153}],
    ),
    applied("in as one likes", policy(), "private networks", spec__policyTypes=["Egress"]),
    applied(
        "not for all pods",
        policy(),
        "private networks",
        spec__podSelector={"matchLabels": {"a": "b"}},
    ),
    # --- the container
    pod_of("root of the node", "user namespace", hostUsers=True),
    pod_of("no word of a user namespace", "user namespace", hostUsers=None),
    pod_of("the node's network", "nothing of its node", hostNetwork=True),
    pod_of("the node's processes", "nothing of its node", hostPID=True),
    pod_of("the node's memory", "nothing of its node", hostIPC=True),
    pod_of("a node of its choice", "nothing of its node", nodeName="node-amd64"),
    pod_of("a runtime of its choice", "nothing of its node", runtimeClassName="trusted"),
    pod_of("nodes of its choice", "nothing of its node", nodeSelector={"a": "b"}),
    pod_of("a scheduler of its choice", "nothing of its node", schedulerName="mine"),
    *(
        applied(
            f"{kind} of its choice",
            workload(),
            "no other labels",
            **{f"spec__template__metadata__{kind}__{name}": "x"},
        )
        for kind, name in (
            ("labels", "k8s-app"),
            ("annotations", "k8s.v1.cni.cncf.io/networks"),
        )
    ),
    pod_of("a token", "nothing of its node", automountServiceAccountToken=True),
    pod_of("another account", "nothing of its node", serviceAccountName="other"),
    pod_of("first of all", "nothing of its node", priorityClassName="system-node-critical"),
    pod_of(
        "on the API server's nodes", "nothing of its node", tolerations=[{"operator": "Exists"}]
    ),
    pod_of(
        "a setting of the kernel",
        "nothing of its node",
        securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "1"}]},
    ),
    pod_of(
        "a directory of the node",
        "its own volume",
        volumes=[*VOLUMES, {"name": "host", "hostPath": {"path": "/"}}],
    ),
    pod_of(
        "another Secret as a volume",
        "its own volume",
        volumes=[*VOLUMES, {"name": "more", "secret": {"secretName": "tls"}}],
    ),
    pod_of(
        "a token as a volume",
        "its own volume",
        volumes=[
            *VOLUMES,
            {
                "name": "more",
                "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]},
            },
        ],
    ),
    in_container("privileges", securityContext__privileged=True),
    in_container("escalation", securityContext__allowPrivilegeEscalation=True),
    in_container("all that a node can", securityContext__capabilities__add=["SYS_ADMIN"]),
    in_container("what runtimes give", securityContext__capabilities__drop=[]),
    in_container("no seccomp", securityContext__seccompProfile={"type": "Unconfined"}),
    in_container("nothing said", securityContext=None),
    # The node's kubelet makes these, from the node's network.
    in_container("a probe", livenessProbe={"httpGet": {"host": "169.254.169.254", "port": 80}}),
    in_container(
        "a hook",
        lifecycle={"postStart": {"httpGet": {"host": "169.254.169.254", "port": 80}}},
    ),
    in_container("a port of the node", ports=[{"containerPort": 80, "hostPort": 80}]),
    in_container("no bounds", "has limits", resources={}),
    in_container(
        "a device",
        "no devices",
        **dict.fromkeys(
            ("resources__limits__example.org/gpu", "resources__requests__example.org/gpu"), "1"
        ),
    ),
    in_container("variables of another Secret", envFrom=[{"secretRef": {"name": "tls"}}]),
    in_container(
        "a variable of another Secret",
        env=[{"name": "a", "valueFrom": {"secretKeyRef": {"name": "tls", "key": "tls.key"}}}],
    ),
    pod_of(
        "a second container",
        "is one container",
        containers=[
            *workload()["spec"]["template"]["spec"]["containers"],
            {**workload()["spec"]["template"]["spec"]["containers"][0], "name": "second"},
        ],
    ),
    applied("two pods", workload(), "is one container", spec__replicas=2),
    applied(
        "more volumes",
        workload(),
        "is one container",
        spec__volumeClaimTemplates=[
            {
                "metadata": {"name": "more"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }
        ],
    ),
]

RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLE = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
POD = {"metadata": {"name": "evil"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
#: What not even RBAC grants.
BY_RBAC = [
    Try("a pod of the system", "POST", "/api/v1/namespaces/kube-system/pods", POD),
    Try("a pod", "POST", f"/api/v1/namespaces/{NAMESPACE}/pods", POD),
    Try("a pod deleted", "DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/container-0"),
    Try("Secrets read", "GET", "/api/v1/namespaces/kube-system/secrets"),
    Try("its own Secret read", "GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/keys"),
    Try(
        "all rights",
        "POST",
        f"{RBAC}/clusterrolebindings",
        {"metadata": {"name": "evil"}, "roleRef": ROLE},
    ),
    Try(
        "all rights in a namespace",
        "POST",
        f"{RBAC}/namespaces/{NAMESPACE}/rolebindings",
        {"metadata": {"name": "evil"}, "roleRef": ROLE},
    ),
    Try(
        "more rights for its role",
        "PUT",
        f"{RBAC}/clusterroles/gfs-control-compute",
        {"metadata": {"name": "gfs-control-compute"}, "rules": []},
    ),
    Try(
        "a token of others",
        "POST",
        "/api/v1/namespaces/kube-system/serviceaccounts/default/token",
        {"spec": {}},
    ),
    Try("a node's kubelet", "GET", "/api/v1/nodes/node-amd64/proxy/pods"),
    Try("a pod's ports", "GET", f"/api/v1/namespaces/{FOREIGN}/pods/x/portforward"),
    Try("a pod's console", "GET", f"/api/v1/namespaces/{FOREIGN}/pods/x/attach"),
    Try("a node changed", "DELETE", "/api/v1/nodes/node-amd64"),
    Try("its policy removed", "DELETE", f"{kube_policy.HOOKS}/{kube_policy.NAME}"),
    Try(
        "a volume of a node",
        "POST",
        "/api/v1/persistentvolumes",
        {
            "metadata": {"name": "evil"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi"},
                "hostPath": {"path": "/"},
            },
        },
    ),
    Try(
        "somebody else's name",
        "GET",
        "/api/v1/secrets",
        headers={"Impersonate-User": "system:admin", "Impersonate-Group": "system:masters"},
    ),
]


@pytest.fixture(scope="module")
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


named: Callable[[Try], str] = lambda what: what.name  # noqa: E731


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
