"""The manifests of a container in Kubernetes: pure functions of its Spec.

Every container has a namespace of its own, so the names in it are fixed and deleting the
namespace deletes it all::

    Namespace compute-<user>-<id>   has the desired state: see ``desired``
    ├── NetworkPolicy container     out: DNS and the internet; in: only what is opened
    ├── ResourceQuota container     one pod, one volume, and no more than the container's
    ├── Secret keys                 authorized_keys
    ├── PersistentVolumeClaim data  one sub-path for each mount path, one for the host keys
    ├── StatefulSet container       one pod, ``container-0``, or none
    ├── Service container           SSH and the ports but 443, if there are any
    └── Service web, Ingress web    443 with TLS, else 80, under the host name

It is a StatefulSet and not a Deployment, since that never runs two pods at once, which
would write to the same volume. It is ``Parallel``, since with the default a broken pod is
never replaced by one of a newer template.

Users' text is never interpreted: names are lower-case letters and digits, the container's
name is only in an annotation, mount paths are only where Kubernetes expects a path, and in
arguments, never in a command. All manifests are sent as JSON, so text cannot break out of
its string; also where YAML is required, see ``as_yaml``.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from control.compute.backend import (
    INTERNET_6,
    LABEL_CLUSTER,
    LABEL_CONTAINER,
    LABEL_MANAGED,
    LABEL_USER,
    REFUSED_4,
    REFUSED_6,
    Impossible,
    Installation,
    Network,
    Port,
    Spec,
)

#: A manifest for the API server, as JSON.
Manifest = dict[str, Any]


ServiceType = Literal["ClusterIP", "LoadBalancer"]

CONTAINER = "container"
INIT_CONTAINER = "prepare"
POD = "container-0"  # a StatefulSet's first pod
KEYS = "keys"
DATA = "data"
WEB = "web"

ANNOTATION_NAME = "gfs.control/name"
#: The desired state, on the namespace and on the pod; see ``desired``.
ANNOTATION_DESIRED = "gfs.control/wish"
#: What its last run printed, on the StatefulSet of one that is stopped: its pod is gone, and with
#: it what the node has of its logs.
ANNOTATION_LOGS = "gfs.control/logs"

SSH_PORT = 22
HTTP_PORT = 80
HTTPS_PORT = 443
#: The image reads the keys here, see control/compute/image.
KEYS_DIRECTORY = "/etc/gfs/keys"
HOST_KEYS = "/etc/gfs/host_keys"
#: Where the init container, and only it, has the whole volume. Mount paths cannot be below
#: /etc, or the volume would be copied into itself.
VOLUME = "/etc/gfs/volume"

#: The time between SIGTERM and SIGKILL.
GRACE_SECONDS = 15

#: The Pod Security Standard. "restricted" requires a user other than root, and no capability
#: but NET_BIND_SERVICE, with which sshd cannot log anybody in. Pods fulfil all its other
#: rules: no privilege escalation, a seccomp profile, volumes of two harmless types.
POD_SECURITY = "baseline"
#: The capabilities of root in its user namespace: it can install packages and serve SSH.
#: These are those of "baseline" without MKNOD, SETFCAP and SETPCAP. sshd needs SETUID,
#: SETGID and SYS_CHROOT for its unprivileged process, AUDIT_WRITE for logins, CHOWN
#: for terminals, NET_BIND_SERVICE for port 22; dpkg and tar need the rest.
CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
    "SYS_CHROOT",
)

#: The capabilities of the init container, which copies files of an image with their owners.
CAPABILITIES_TO_COPY = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID")

#: NAT64, the only way to IPv4 in some clusters: IPv4 addresses written as IPv6.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: The address of a node's DNS cache, by convention.
NODE_DNS = "169.254.20.10/32"

#: The init container's script. $1 is the volume; then, for each mount path, come the path and
#: its directory in the volume. A copy gets its name when it is complete, so a start that was
#: interrupted copies again. It has no ``$(`` and no ``$$``: see ``_literal``. It has no -e:
#: an unreadable file of the image must not keep a container from starting.
PREPARE = """\
set -u
volume=$1
shift
mkdir -p "$volume/mounts" "$volume/host_keys" && chmod 0700 "$volume/host_keys" || exit 1
while [ $# -gt 1 ]; do
    source=$1
    target=$volume/$2
    shift 2
    [ -d "$target" ] && continue
    rm -rf "$target.new" && mkdir "$target.new" || exit 1
    if [ -d "$source" ]; then
        cp -a "$source/." "$target.new/" || echo "not all of $source could be copied" >&2
    fi
    mv "$target.new" "$target" || exit 1
done
"""

#: Characters that YAML reads as the end of a line, or refuses, even in quotes.
_UNREADABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

_USER = re.compile(r"[0-9A-Za-z]{1,32}")
_ID = re.compile(r"[0-9a-f]{8}")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that differ between clusters."""

    #: "" is the cluster's default; so it is for ``ingress_class``.
    storage_class: str = ""
    ingress_class: str = ""
    #: The type of the Service for SSH and ports: with LoadBalancer each container has an
    #: address; with ClusterIP a gateway of the cluster leads to it.
    service_type: ServiceType = "LoadBalancer"
    #: A cert-manager ClusterIssuer; "": the ingress controller's own certificate is used.
    tls_issuer: str = ""
    #: Whether pods have user namespaces, so that their root has no rights on the node.
    user_namespaces: bool = True
    #: The networks that containers may reach besides the internet.
    open_networks: tuple[Network, ...] = ()


def namespace_name(user_id: str, container_id: str) -> str:
    """``compute-<user>-<id>``, in lower case. If the ids have capitals, a number
    between the two encodes which letters they are, so no two users share a name."""
    if not _USER.fullmatch(user_id) or not _ID.fullmatch(container_id):
        raise Impossible(f"not the ids of a user and a container: {user_id!r}, {container_id!r}")
    capitals = sum(1 << i for i, letter in enumerate(user_id) if letter.isupper())
    mark = f"-{capitals:x}" if capitals else ""
    return f"compute-{user_id.lower()}{mark}-{container_id}"


def labels(installation: Installation, user_id: str, container_id: str) -> dict[str, str]:
    return {
        LABEL_MANAGED: "true",
        LABEL_CLUSTER: installation.id,
        LABEL_USER: user_id,
        LABEL_CONTAINER: container_id,
    }


def selector(installation: Installation) -> str:
    """The label selector of all objects of an installation."""
    return f"{LABEL_MANAGED}=true,{LABEL_CLUSTER}={installation.id}"


def desired(generation: int, *, run: bool) -> str:
    """The desired state of a namespace, with which the watch compares pods."""
    return f"{'run' if run else 'stop'}-{generation}"


def parse_desired(text: str) -> tuple[int, bool]:
    """The generation, and whether it is to run; (0, False) if there is none yet."""
    verb, _, generation = text.partition("-")
    if verb not in ("run", "stop") or not generation.isascii() or not generation.isdigit():
        return 0, False
    return int(generation), verb == "run"


def sub_path(mount_path: str) -> str:
    """The directory of a mount path in the volume; it depends on the path alone."""
    return f"mounts/{hashlib.sha256(mount_path.encode()).hexdigest()[:32]}"


def namespace(installation: Installation, spec: Spec, state: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": namespace_name(spec.user_id, spec.id),
            "labels": {
                **labels(installation, spec.user_id, spec.id),
                "pod-security.kubernetes.io/enforce": POD_SECURITY,
            },
            "annotations": {ANNOTATION_NAME: _text(spec.name), ANNOTATION_DESIRED: state},
        },
    }


def network_policy(
    installation: Installation, spec: Spec, options: Options, nodes: Iterable[Network]
) -> Manifest:
    """``nodes`` are the networks of the cluster itself. They are refused, like private ones."""
    opened = ([SSH_PORT] if spec.ssh_enabled else []) + [port.target_port for port in spec.ports]
    dns = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(installation, spec, CONTAINER),
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"ports": [{"port": port, "protocol": "TCP"} for port in sorted(set(opened))]}
            ]
            if opened
            else [],
            "egress": [
                {
                    "to": [
                        {
                            "namespaceSelector": {},
                            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                        },
                        {"ipBlock": {"cidr": NODE_DNS}},
                    ],
                    "ports": dns,
                },
                {"to": [*_internet(nodes), *map(_block, map(str, options.open_networks))]},
            ],
        },
    }


def _internet(nodes: Iterable[Network]) -> list[Manifest]:
    """The internet in IPv4, in IPv6, and in IPv4 written as IPv6."""
    refused_4 = [ipaddress.IPv4Network(each) for each in REFUSED_4]
    refused_6 = [ipaddress.IPv6Network(each) for each in REFUSED_6]
    for node in nodes:
        if isinstance(node, ipaddress.IPv4Network):
            if not any(map(node.subnet_of, refused_4)):
                refused_4.append(node)
        elif node.subnet_of(ipaddress.IPv6Network(INTERNET_6)) and not any(
            map(node.subnet_of, refused_6)
        ):
            refused_6.append(node)
    nat64 = [
        ipaddress.IPv6Network((int(NAT64[0]) + int(net[0]), NAT64.prefixlen + net.prefixlen))
        for net in refused_4
    ]
    return [
        _block("0.0.0.0/0", refused_4),
        _block(INTERNET_6, refused_6),
        _block(str(NAT64), nat64),
    ]


def _block(cidr: str, refused: Iterable[Network] = ()) -> Manifest:
    block: Manifest = {"cidr": cidr}
    if without := list(map(str, refused)):
        block["except"] = without
    return {"ipBlock": block}


def quota(installation: Installation, spec: Spec) -> Manifest:
    """A quota for exactly one container: whatever else goes wrong, a tenant's namespace takes
    no more of the cluster. The nodes' kubelets bound its processes."""
    limits = _limits(spec)
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": _metadata(installation, spec, CONTAINER),
        "spec": {
            "hard": {
                "pods": "1",
                **{f"limits.{name}": limit for name, limit in limits.items()},
                "persistentvolumeclaims": "1",
                "requests.storage": f"{spec.storage_gb}Gi",
            }
        },
    }


def secret(installation: Installation, spec: Spec) -> Manifest:
    lines = "".join(f"{key}\n" for key in spec.ssh_keys)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(installation, spec, KEYS),
        "type": "Opaque",
        "data": {"authorized_keys": base64.b64encode(lines.encode()).decode()},
    }


def volume_claim(installation: Installation, spec: Spec, options: Options) -> Manifest:
    claim: Manifest = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{spec.storage_gb}Gi"}},
    }
    if options.storage_class:
        claim["storageClassName"] = options.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(installation, spec, DATA),
        "spec": claim,
    }


def workload(
    installation: Installation, spec: Spec, options: Options, *, run: bool, logs: str = ""
) -> Manifest:
    marks = labels(installation, spec.user_id, spec.id)
    kept = {"annotations": {ANNOTATION_LOGS: _text(logs)}} if logs else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {**_metadata(installation, spec, CONTAINER), **kept},
        "spec": {
            "replicas": 1 if run else 0,
            "serviceName": CONTAINER,
            "podManagementPolicy": "Parallel",
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {LABEL_CONTAINER: spec.id}},
            "template": {
                "metadata": {
                    "labels": marks,
                    "annotations": {ANNOTATION_DESIRED: desired(spec.generation, run=True)},
                },
                "spec": _pod(spec, options),
            },
        },
    }


def service(installation: Installation, spec: Spec, options: Options) -> Manifest | None:
    """The Service; None if no port is opened, and then there must be none."""
    ports = ([Port(SSH_PORT, SSH_PORT)] if spec.ssh_enabled else []) + [
        port for port in spec.ports if port.port not in (HTTPS_PORT, SSH_PORT)
    ]
    return _service(installation, spec, CONTAINER, options.service_type, ports)


def web_service(installation: Installation, spec: Spec) -> Manifest | None:
    """The Service of the Ingress: separate from the other, which may have an address."""
    port = _web_port(spec)
    return _service(installation, spec, WEB, "ClusterIP", [] if port is None else [port])


def ingress(installation: Installation, spec: Spec, options: Options) -> Manifest | None:
    """The Ingress. It cannot lead http and https of one host to two ports: if both are opened,
    it leads to that of 443. Its controller then decides about http; most redirect to https."""
    port = _web_port(spec)
    if port is None:
        return None
    host = f"{spec.id}.{installation.domain}"
    metadata = _metadata(installation, spec, WEB)
    backend = {"service": {"name": WEB, "port": {"number": port.port}}}
    body: Manifest = {
        "rules": [
            {
                "host": host,
                "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
            }
        ],
    }
    if port.port == HTTPS_PORT:
        tls: Manifest = {"hosts": [host]}
        if options.tls_issuer:
            metadata["annotations"] = {"cert-manager.io/cluster-issuer": options.tls_issuer}
            tls["secretName"] = "tls"
        body["tls"] = [tls]
    if options.ingress_class:
        body["ingressClassName"] = options.ingress_class
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata,
        "spec": body,
    }


def _web_port(spec: Spec) -> Port | None:
    by_port = {port.port: port for port in spec.ports}
    return by_port.get(HTTPS_PORT) or by_port.get(HTTP_PORT)


def _metadata(installation: Installation, spec: Spec, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": namespace_name(spec.user_id, spec.id),
        "labels": labels(installation, spec.user_id, spec.id),
    }


def _service(
    installation: Installation, spec: Spec, name: str, kind: ServiceType, ports: Iterable[Port]
) -> Manifest | None:
    listed = [
        {
            "name": f"port-{port.port}",
            "port": port.port,
            "targetPort": port.target_port,
            "protocol": "TCP",
        }
        for port in ports
    ]
    if not listed:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(installation, spec, name),
        "spec": {"type": kind, "selector": {LABEL_CONTAINER: spec.id}, "ports": listed},
    }


def _limits(spec: Spec) -> dict[str, str]:
    """The limits of a container. What it writes beside its volume is bounded like the volume."""
    return {
        "cpu": f"{round(spec.cpus * 1000)}m",
        "memory": f"{spec.memory_mb}Mi",
        "ephemeral-storage": f"{spec.storage_gb}Gi",
    }


def _security(capabilities: Iterable[str]) -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "capabilities": {"drop": ["ALL"], "add": list(capabilities)},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _pod(spec: Spec, options: Options) -> Manifest:
    limits = _limits(spec)
    requests = {**limits, "ephemeral-storage": "64Mi"}
    common: Manifest = {
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "LANG", "value": "C.UTF-8"}],
        "resources": {"limits": limits, "requests": requests},
    }
    paths = [text for path in spec.mount_paths for text in (_literal(path), sub_path(path))]
    return {
        **({"hostUsers": False} if options.user_namespaces else {}),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {"kubernetes.io/arch": spec.architecture, "kubernetes.io/os": "linux"},
        # Some clouds taint nodes of this kind.
        "tolerations": [
            {
                "key": "kubernetes.io/arch",
                "operator": "Equal",
                "value": spec.architecture,
                "effect": "NoSchedule",
            }
        ],
        "initContainers": [
            {
                **common,
                "name": INIT_CONTAINER,
                "securityContext": _security(CAPABILITIES_TO_COPY),
                "command": ["/bin/sh", "-c", PREPARE, INIT_CONTAINER, VOLUME, *paths],
                "volumeMounts": [{"name": DATA, "mountPath": VOLUME}],
            }
        ],
        "containers": [
            {
                **common,
                "name": CONTAINER,
                "securityContext": _security(CAPABILITIES),
                "volumeMounts": [
                    *(
                        {"name": DATA, "mountPath": path, "subPath": sub_path(path)}
                        for path in spec.mount_paths
                    ),
                    {"name": DATA, "mountPath": HOST_KEYS, "subPath": "host_keys"},
                    # A directory: a single file of it would stay as it was at the start, and
                    # a deleted key would still allow logins.
                    {"name": KEYS, "mountPath": KEYS_DIRECTORY, "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": DATA, "persistentVolumeClaim": {"claimName": DATA}},
            {"name": KEYS, "secret": {"secretName": KEYS, "defaultMode": 0o400}},
        ],
    }


def _literal(text: str) -> str:
    """Escape text for a command, in which Kubernetes replaces ``$(NAME)`` by variables."""
    return text.replace("$", "$$")


def as_yaml(manifest: Manifest) -> bytes:
    """A manifest as JSON that is YAML, too, since the server reads an apply as YAML. YAML has no
    pairs of escapes, which JSON may have for an emoji, and requires escapes for some
    characters that JSON does not."""
    text = json.dumps(manifest, ensure_ascii=False)
    return _UNREADABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def _text(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON cannot have."""
    return text.encode("utf-8", "replace").decode()
