"""What a container becomes in Kubernetes: valid for current versions, and nothing of what
a user writes gets where it could do harm."""

from __future__ import annotations

import base64
import functools
import ipaddress
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import referencing.jsonschema
import yaml
from backend_seen import spec as any_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes_validate import utils
from limits import HANG_SECONDS
from msgspec.structs import replace

from control.compute.backend import (
    LABEL_CLUSTER,
    LABEL_CONTAINER,
    LABEL_MANAGED,
    LABEL_USER,
    Impossible,
    Installation,
    Port,
    Spec,
)
from control.compute.kubernetes import manifests
from control.compute.names import check_mounts
from control.errors import BadRequest

HERE = Installation(id="c0ffee", domain="compute.example.org", image="unused", directory="/unused")

#: The newest three that were out when this was written are what people run.
VERSIONS = ("1.30.0", "1.34.0", "1.37.0")

HOSTILE = (
    "'\"; rm -rf / #",
    "$(HOME) ${HOME} `id` %s {{.Values}}",
    "a: b\n- c: &x *x\n---\nkind: Pod",
    "../../etc/passwd",
    "\u202e\u0000\ud800 \U0001f600",
    "x" * 64,
    "true",
    "gfs.control/managed=false,x",
)
names = st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=64))
user_ids = st.text(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=6, max_size=6
)
ids = st.text("0123456789abcdef", min_size=8, max_size=8)
# More than the API lets through: all that may stand in a path.
segments = st.text(
    st.characters(exclude_characters="/:\0", exclude_categories=("Cs",)), min_size=1, max_size=12
).filter(lambda s: s not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
outside = st.sampled_from([80, 443, *range(8000, 8005)])
ports = st.lists(
    st.builds(Port, outside, st.integers(1, 65535)), max_size=5, unique_by=lambda p: p.port
)
specs = st.builds(
    Spec,
    id=ids,
    user_id=user_ids,
    name=names,
    image=st.just("localhost/gfs-compute:latest"),
    architecture=st.sampled_from(["amd64", "arm64"]),
    cpus=st.sampled_from([0.5, 1, 2, 4]),
    memory_mb=st.integers(128, 65536),
    storage_gb=st.integers(1, 1000),
    ssh_keys=st.lists(st.text(max_size=40), max_size=3).map(tuple),
    ssh_enabled=st.booleans(),
    mount_paths=st.lists(paths, min_size=1, max_size=5, unique=True).map(tuple),
    ports=ports.map(tuple),
    generation=st.integers(1, 2**53),
)
options = st.builds(
    manifests.Options,
    storage_class=st.sampled_from(["", "fast"]),
    ingress_class=st.sampled_from(["", "nginx"]),
    service_type=st.sampled_from(["ClusterIP", "LoadBalancer"]),
    tls_issuer=st.sampled_from(["", "letsencrypt"]),
    user_namespaces=st.booleans(),
    open_networks=st.sampled_from([(), (ipaddress.ip_network("10.1.2.0/24"),)]),
)
DEFAULT = manifests.Options()


def spec(**changes: Any) -> Spec:
    given = {"id": "a1b2c3d4", "user_id": "XyZ123", "ssh_enabled": True}
    return any_spec(**{**given, **changes})


#: Where nodes are, as networks of their own: private, of the internet, and of their pods.
NODES = tuple(
    map(ipaddress.ip_network, ("10.0.0.7", "5.9.0.7", "2a01:4f8::7", "2a01:4f8:1::/64", "fd00::7"))
)


def policy(
    spec: Spec, options: manifests.Options = DEFAULT, nodes: tuple[manifests.Network, ...] = NODES
) -> manifests.Manifest:
    return manifests.network_policy(HERE, spec, options, nodes)


def everything(spec: Spec, options: manifests.Options) -> list[manifests.Manifest]:
    made = [
        manifests.namespace(HERE, spec, manifests.desired(spec.generation, run=True)),
        policy(spec, options),
        manifests.quota(HERE, spec),
        manifests.secret(HERE, spec),
        manifests.volume_claim(HERE, spec, options),
        manifests.workload(HERE, spec, options, run=True),
        manifests.service(HERE, spec, options),
        manifests.web_service(HERE, spec),
        manifests.ingress(HERE, spec, options),
    ]
    return [manifest for manifest in made if manifest is not None]


@functools.cache
def validator(kind: str, api: str, version: str) -> jsonschema.Draft202012Validator:
    """What ``kubernetes_validate.validate`` makes anew each time, from some megabytes."""
    minor = ".".join(version.split(".")[:2])
    folder = f"kubernetes-json-schema/v{minor}.0-local-strict"
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema = utils.schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    definitions = utils.schema_contents(f"{folder}/_definitions.json", version)
    registry: Any = referencing.Registry()
    for contents in (schema, definitions):
        registry = referencing.Resource.from_contents(contents) @ registry
    return jsonschema.Draft202012Validator(schema, registry=registry)


def validate(manifest: manifests.Manifest) -> None:
    for version in VERSIONS:
        validator(manifest["kind"], manifest["apiVersion"], version).validate(manifest)


def pod(spec: Spec) -> dict[str, Any]:
    found: dict[str, Any] = manifests.workload(HERE, spec, manifests.Options(), run=True)["spec"][
        "template"
    ]["spec"]
    return found


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@settings(deadline=None)
@given(specs, options)
def test_current_schemas_take_every_manifest(spec: Spec, options: manifests.Options) -> None:
    for manifest in everything(spec, options):
        validate(manifest)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("rbac.yaml", ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"]),
        (
            "admission.yaml",
            ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"],
        ),
    ],
)
def test_current_schemas_take_what_an_operator_applies(name: str, kinds: list[str]) -> None:
    file = Path(manifests.__file__).with_name(name)
    documents = list(yaml.safe_load_all(file.read_text()))
    assert [document["kind"] for document in documents] == kinds
    for document in documents:
        validate(document)
        for rule in document.get("rules", ()):
            assert "*" not in strings(rule)
            # Keys are written, never read.
            if "secrets" in rule["resources"]:
                assert set(rule["verbs"]) == {"create", "patch"}


def test_the_schemas_are_strict_and_those_of_the_package() -> None:
    manifest = manifests.workload(HERE, spec(), manifests.Options(), run=True)
    assert utils.validate(manifest, "1.37.0", strict=True) == "1.37"
    manifest["spec"]["podSelektor"] = {}
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


@given(specs, options)
def test_everything_carries_its_labels(spec: Spec, options: manifests.Options) -> None:
    for manifest in everything(spec, options):
        marks = manifest["metadata"]["labels"]
        assert marks[LABEL_MANAGED] == "true"
        assert marks[LABEL_CLUSTER] == HERE.id
        assert marks[LABEL_USER] == spec.user_id
        assert marks[LABEL_CONTAINER] == spec.id
    workload = manifests.workload(HERE, spec, manifests.Options(), run=True)["spec"]
    template = workload["template"]["metadata"]["labels"]
    assert workload["selector"]["matchLabels"].items() <= template.items()


@given(specs, options)
def test_what_a_user_writes_changes_only_what_is_his(
    spec: Spec, options: manifests.Options
) -> None:
    """The same container with an honest name and paths has the same strings, but the
    annotation, the paths where Kubernetes wants paths, and the sub-paths."""
    paths = tuple(f"/honest/{i}" for i in range(len(spec.mount_paths)))
    honest = replace(spec, name="honest", ssh_keys=("ssh-ed25519 AAAA",), mount_paths=paths)
    ours, theirs = everything(honest, options), everything(spec, options)
    for manifest in (*ours, *theirs):
        manifest["metadata"].get("annotations", {}).pop(manifests.ANNOTATION_NAME, None)
        if manifest["kind"] == "Secret":
            base64.b64decode(manifest["data"].pop("authorized_keys"), validate=True)
        if manifest["kind"] == "StatefulSet":
            body = manifest["spec"]["template"]["spec"]
            prepare, container = body["initContainers"][0], body["containers"][0]
            # sh takes what is after -c SCRIPT NAME as arguments, whatever they are.
            assert prepare["command"][:3] == ["/bin/sh", "-c", manifests.PREPARE]
            del prepare["command"][5:]
            del container["volumeMounts"][: len(spec.mount_paths)]
    assert ours == theirs


@given(paths)
def test_kubernetes_puts_no_variable_into_arguments_or_the_script(path: str) -> None:
    argument = pod(spec(mount_paths=(path,)))["initContainers"][0]["command"][5]
    assert expanded(argument) == path
    assert expanded(manifests.PREPARE) == manifests.PREPARE


def expanded(text: str) -> str:
    """As Kubernetes does it, where every variable has a value."""
    return re.sub(
        r"\$(\$|\([^)]*\))", lambda found: "$" if found.group(1) == "$" else "INJECTED", text
    )


def test_the_secret_has_a_line_for_each_key() -> None:
    keys = ("ssh-ed25519 AAAA laptop", "ssh-rsa BBBB \u20ac: {{x}}")
    made = manifests.secret(HERE, spec(ssh_keys=keys))["data"]["authorized_keys"]
    assert base64.b64decode(made).decode() == "".join(f"{key}\n" for key in keys)


@given(specs)
def test_manifests_are_yaml_and_json_that_say_the_same(spec: Spec) -> None:
    for manifest in everything(spec, manifests.Options()):
        sent = manifests.as_yaml(manifest)
        assert json.loads(sent) == manifest
        assert yaml.load(sent, yaml.CSafeLoader) == manifest


def test_every_letter_is_yaml() -> None:
    letters = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x11000), 0x1F600, 0x10FFFF)))
    sent = manifests.as_yaml({"all": letters})
    assert json.loads(sent) == {"all": letters}
    assert yaml.load(sent, yaml.CSafeLoader) == {"all": letters}


@given(user_ids, ids)
def test_a_namespace_is_a_label_of_dns(user_id: str, container_id: str) -> None:
    name = manifests.namespace_name(user_id, container_id)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 63
    assert name.startswith(f"compute-{user_id.lower()}-")
    assert name.endswith(f"-{container_id}")


@given(user_ids, st.integers(0, 63), ids)
def test_users_that_differ_in_case_share_no_namespace(user_id: str, flips: int, id: str) -> None:
    other = "".join(c.swapcase() if flips >> i & 1 else c for i, c in enumerate(user_id))
    same = manifests.namespace_name(user_id, id) == manifests.namespace_name(other, id)
    assert same == (user_id == other)


def test_the_usual_namespace_is_what_people_expect() -> None:
    assert manifests.namespace_name("abc123", "a1b2c3d4") == "compute-abc123-a1b2c3d4"
    # X and Z are letters 0 and 2: binary 101.
    assert manifests.namespace_name("XyZ123", "a1b2c3d4") == "compute-xyz123-5-a1b2c3d4"


@pytest.mark.parametrize(
    ("user_id", "container_id"),
    [("../../", "a1b2c3d4"), ("abc12\n", "a1b2c3d4"), ("abc123", "a1b2c3d4\n"), ("", "a1b2c3d4")],
)
def test_no_other_ids_get_a_namespace(user_id: str, container_id: str) -> None:
    with pytest.raises(Impossible):
        manifests.namespace_name(user_id, container_id)


@given(st.integers(0, 2**60), st.booleans())
def test_desired_states_are_read_back(generation: int, run: bool) -> None:
    assert manifests.parse_desired(manifests.desired(generation, run=run)) == (generation, run)


@given(st.text())
def test_any_other_text_is_no_desired_state(text: str) -> None:
    generation, run = manifests.parse_desired(text)
    assert (generation, run) == (
        0,
        False,
    ) or text == f"{'run' if run else 'stop'}-{generation:0{len(text.partition('-')[2])}d}"


def test_resources_come_from_the_instance_type() -> None:
    body = pod(spec(architecture="amd64", cpus=0.5, memory_mb=300, storage_gb=7))
    assert body["nodeSelector"]["kubernetes.io/arch"] == "amd64"
    wanted = {"cpu": "500m", "memory": "300Mi", "ephemeral-storage": "7Gi"}
    for container in (*body["initContainers"], *body["containers"]):
        assert container["resources"]["limits"] == wanted
    hard = manifests.quota(HERE, spec(architecture="amd64", memory_mb=300, storage_gb=7))["spec"]
    assert hard["hard"] == {
        **{f"limits.{name}": limit for name, limit in wanted.items()},
        "pods": "1",
        "persistentvolumeclaims": "1",
        "requests.storage": "7Gi",
    }
    claim = manifests.volume_claim(HERE, spec(storage_gb=7), manifests.Options())
    assert claim["spec"]["resources"]["requests"]["storage"] == "7Gi"
    assert "storageClassName" not in claim["spec"]


@given(specs)
def test_pods_keep_the_baseline_of_pod_security(spec: Spec) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    baseline = (
        "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP"
        " SETGID SETPCAP SETUID SYS_CHROOT"
    )
    allowed = set(baseline.split())
    body = pod(spec)
    assert body["hostUsers"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & body.keys()
    assert body["automountServiceAccountToken"] is False
    assert body["enableServiceLinks"] is False
    assert body["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(v.keys() & {"persistentVolumeClaim", "secret"} for v in body["volumes"])
    for container in (*body["initContainers"], *body["containers"]):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["privileged"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        assert set(security["capabilities"]["add"]) <= allowed
        assert "ports" not in container
        assert container["env"] == [{"name": "LANG", "value": "C.UTF-8"}]
    made = manifests.namespace(HERE, spec, "")["metadata"]["labels"]
    assert made["pod-security.kubernetes.io/enforce"] == "baseline"


@given(specs)
def test_mount_paths_have_places_of_their_own(spec: Spec) -> None:
    mounts = pod(spec)["containers"][0]["volumeMounts"]
    # As a directory, so that they change in a running pod.
    (keys,) = (mount for mount in mounts if mount["name"] == manifests.KEYS)
    assert keys == {"name": "keys", "mountPath": "/etc/gfs/keys", "readOnly": True}
    data = [mount for mount in mounts if mount["name"] == manifests.DATA]
    assert [m["mountPath"] for m in data] == [*spec.mount_paths, manifests.HOST_KEYS]
    assert len({m["subPath"] for m in data}) == len(data)
    assert all(re.fullmatch(r"mounts/[0-9a-f]{32}|host_keys", m["subPath"]) for m in data)


def test_only_what_is_opened_is_let_in() -> None:
    def opened(**changes: Any) -> list[int]:
        found = policy(spec(**changes))["spec"]
        assert found["podSelector"] == {}
        assert found["policyTypes"] == ["Ingress", "Egress"]
        return [port["port"] for rule in found["ingress"] for port in rule["ports"]]

    assert opened(ssh_enabled=False) == []
    assert opened(ssh_enabled=True) == [22]
    rules = (Port(80, 3000), Port(443, 3000), Port(8000, 22))
    assert opened(ssh_enabled=True, ports=rules) == [22, 3000]


def egress(address: str, port: int | None = None, options: manifests.Options = DEFAULT) -> bool:
    """Whether a container may speak to an address outside the cluster's pods."""
    ip = ipaddress.ip_address(address)
    for rule in policy(spec(), options)["spec"]["egress"]:
        if "ports" in rule and port not in {p["port"] for p in rule["ports"]}:
            continue
        for block in (to["ipBlock"] for to in rule["to"] if "ipBlock" in to):
            inside = ip in ipaddress.ip_network(block["cidr"])
            if inside and not any(ip in ipaddress.ip_network(n) for n in block.get("except", ())):
                return True
    return False


OPENED = manifests.Options(open_networks=(ipaddress.ip_network("10.1.2.0/24"),))
#: The internet; neighbours of nodes; what is private; nodes; what an operator has opened or not.
REACHED: list[tuple[bool, str, manifests.Options]] = [
    *(
        (True, each, DEFAULT)
        for each in ("1.1.1.1", "151.101.1.1", "172.32.0.1", "2606:4700::1111")
    ),
    *((True, each, DEFAULT) for each in ("64:ff9b::101:101", "5.9.0.8", "2a01:4f8::8")),
    *((False, each, DEFAULT) for each in ("10.96.0.1", "127.0.0.1", "169.254.169.254")),
    *((False, each, DEFAULT) for each in ("172.16.0.1", "192.168.1.1", "100.100.100.200")),
    *((False, each, DEFAULT) for each in ("168.63.129.16", "::1", "fd00::1", "fe80::1")),
    *((False, each, DEFAULT) for each in ("fd00:ec2::254", "64:ff9b::a9fe:a9fe")),
    *((False, each, DEFAULT) for each in ("64:ff9b::a00:1", "64:ff9b::a83f:8110")),
    *((False, each, DEFAULT) for each in ("5.9.0.7", "64:ff9b::509:7", "2a01:4f8::7")),
    *((False, each, DEFAULT) for each in ("2a01:4f8:1::abcd", "fd00::7", "10.1.2.3")),
    (True, "10.1.2.3", OPENED),
    (False, "10.1.3.3", OPENED),
]


@pytest.mark.parametrize(("is_reached", "address", "options"), REACHED, ids=str)
def test_what_is_reached(is_reached: bool, address: str, options: manifests.Options) -> None:
    assert egress(address, options=options) is is_reached


@given(st.ip_addresses())
def test_nothing_python_calls_private_is_reached(address: ipaddress.IPv4Address) -> None:
    if egress(str(address)):
        assert not address.is_private
        assert not address.is_link_local
        assert not address.is_multicast


def test_the_policy_names_networks_as_kubernetes_wants_them() -> None:
    # What is refused anyway is not said once more for each node.
    assert "10.0.0.7/32" not in strings(policy(spec()))
    for rule in policy(spec())["spec"]["egress"]:
        for block in (to["ipBlock"] for to in rule["to"] if "ipBlock" in to):
            whole = ipaddress.ip_network(block["cidr"])
            for text in block.get("except", ()):
                part = ipaddress.ip_network(text)
                assert str(part) == text
                assert part != whole
                assert part.subnet_of(whole)  # type: ignore[arg-type]


def test_services_have_the_ports_and_only_them() -> None:
    rules = (Port(80, 3000), Port(443, 4000), Port(8000, 22))
    plain = manifests.service(HERE, spec(ports=rules), manifests.Options())
    assert plain is not None
    assert plain["spec"]["type"] == "LoadBalancer"
    assert [(p["port"], p["targetPort"]) for p in plain["spec"]["ports"]] == [
        (22, 22),
        (80, 3000),
        (8000, 22),
    ]
    web = manifests.web_service(HERE, spec(ports=rules))
    assert web is not None
    assert web["spec"]["type"] == "ClusterIP"
    assert [(p["port"], p["targetPort"]) for p in web["spec"]["ports"]] == [(443, 4000)]


def test_nothing_opened_is_no_service() -> None:
    closed = spec(ssh_enabled=False)
    assert manifests.service(HERE, closed, manifests.Options()) is None
    assert manifests.web_service(HERE, closed) is None
    assert manifests.ingress(HERE, closed, manifests.Options()) is None
    far = spec(ports=(Port(8000, 1),))
    assert manifests.web_service(HERE, far) is None
    assert manifests.ingress(HERE, far, manifests.Options()) is None
    only = spec(ssh_enabled=False, ports=(Port(443, 1),))
    assert manifests.service(HERE, only, manifests.Options()) is None


TLS = {"tls": [{"hosts": ["a1b2c3d4.compute.example.org"]}]}
ISSUED = {"tls": [{**TLS["tls"][0], "secretName": "tls"}]}


@pytest.mark.parametrize(
    ("rules", "issuer", "target", "tls"),
    [
        ({443: 4000}, "", 4000, TLS),
        ({443: 4000}, "letsencrypt", 4000, ISSUED),
        ({80: 3000, 8000: 1}, "letsencrypt", 3000, {}),
        ({443: 4000, 80: 3000}, "letsencrypt", 4000, ISSUED),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_name_of_a_container_leads_to_443_or_else_to_80(
    rules: dict[int, int], issuer: str, target: int, tls: dict[str, Any], order: int
) -> None:
    of = spec(ports=tuple(Port(*rule) for rule in [*rules.items()][::order]))
    made = manifests.ingress(HERE, of, manifests.Options(ingress_class="nginx", tls_issuer=issuer))
    assert made is not None
    annotations = made["metadata"].get("annotations", {})
    assert annotations == ({"cert-manager.io/cluster-issuer": issuer} if tls is ISSUED else {})
    port = 443 if tls else 80
    backend = {"service": {"name": manifests.WEB, "port": {"number": port}}}
    (rule,) = made["spec"].pop("rules")
    assert rule["host"] == "a1b2c3d4.compute.example.org"
    assert rule["http"]["paths"][0]["backend"] == backend
    assert made["spec"] == {"ingressClassName": "nginx", **tls}
    web = manifests.web_service(HERE, of)
    assert web is not None
    assert [(p["port"], p["targetPort"]) for p in web["spec"]["ports"]] == [(port, target)]


def test_no_mount_path_has_the_volume_in_it() -> None:
    """Else it were copied into itself."""
    where = manifests.VOLUME
    for above in ("/etc", "/etc/gfs", where, f"{where}/mounts"):
        with pytest.raises(BadRequest, match="system's own"):
            check_mounts([above])
    (mount,) = pod(spec())["initContainers"][0]["volumeMounts"]
    assert mount["mountPath"] == where


def prepare(volume: Path, *mounts: Path) -> subprocess.CompletedProcess[str]:
    pairs = [text for path in mounts for text in (str(path), manifests.sub_path(str(path)))]
    command = ["/bin/sh", "-c", manifests.PREPARE, "prepare", str(volume), *pairs]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


def test_a_volume_begins_with_what_the_image_had(tmp_path: Path) -> None:
    image = tmp_path / "'; touch $0 `id` $(id) -rf"
    image.mkdir(mode=0o750)
    (image / ".profile").write_text("from the image")
    (image / "link").symlink_to("/nowhere")
    volume = tmp_path / "volume"
    kept = volume / manifests.sub_path(str(image))

    assert prepare(volume, image).returncode == 0
    assert (kept / ".profile").read_text() == "from the image"
    assert (kept / "link").is_symlink()
    assert kept.stat().st_mode & 0o7777 == 0o750
    assert (volume / "host_keys").stat().st_mode & 0o777 == 0o700

    # Later starts leave it as it is, and bring nothing back.
    (kept / ".profile").unlink()
    (kept / "mine").write_text("mine")
    assert prepare(volume, image).returncode == 0
    assert sorted(path.name for path in kept.iterdir()) == ["link", "mine"]


def test_a_copy_that_was_cut_short_begins_again(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.mkdir()
    (image / "file").write_text("whole")
    volume = tmp_path / "volume"
    half = volume / (manifests.sub_path(str(image)) + ".new")
    half.mkdir(parents=True)
    (half / "file").write_text("ha")
    (half / "other").write_text("not of this image")
    assert prepare(volume, image).returncode == 0
    kept = volume / manifests.sub_path(str(image))
    assert [(path.name, path.read_text()) for path in kept.iterdir()] == [("file", "whole")]
    assert not half.exists()


def test_a_path_the_image_does_not_have_is_empty(tmp_path: Path) -> None:
    missing, volume = tmp_path / "missing", tmp_path / "volume"
    assert prepare(volume, missing, tmp_path / "another").returncode == 0
    assert list((volume / manifests.sub_path(str(missing))).iterdir()) == []
    assert (volume / manifests.sub_path(str(tmp_path / "another"))).is_dir()
