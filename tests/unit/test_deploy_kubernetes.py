"""The manifests of deploy/kubernetes: valid, bounded in rights, and one with settings and docs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from kubernetes_validate import utils
from kustomized import DIRECTORY, containers, of_kind, pod_of, rendered

import gfs

MANIFESTS = rendered()
WORKLOADS = [each for each in MANIFESTS if containers(each)]
NAMES = [each["metadata"]["name"] for each in WORKLOADS]
CONTAINERFILE = DIRECTORY.parent / "container" / "Containerfile"
PAGE = (Path(__file__).parents[2] / "docs" / "pods.md").read_text()


@pytest.mark.parametrize("version", ["1.30.0", "1.35.0", "1.37.0"])
def test_current_schemas_take_every_manifest(version: str) -> None:
    for manifest in MANIFESTS:
        if manifest["kind"] == "ServiceMonitor":
            continue  # of Prometheus' operator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            utils.validate(manifest, version, strict=True)


def test_everything_is_in_one_namespace() -> None:
    (namespace,) = of_kind("Namespace", MANIFESTS)
    for manifest in MANIFESTS:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == namespace
    moved = rendered("other")
    assert list(of_kind("Namespace", moved)) == ["other"]
    assert "gfs.svc" not in str(moved)


def test_other_settings_replace_all_pods() -> None:
    """As another image does: a ConfigMap that changes in place is seen by no process."""
    changed = of_kind("ConfigMap", rendered(GFS_LOG_LEVEL="debug"))
    assert changed.keys().isdisjoint(of_kind("ConfigMap", MANIFESTS))
    others = [each for each in rendered(GFS_LOG_LEVEL="debug") if containers(each)]
    for before, after in zip(WORKLOADS, others, strict=True):
        assert before["spec"]["template"] != after["spec"]["template"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=NAMES)
def test_pods_keep_what_restricted_pod_security_asks_for(workload: dict) -> None:  # type: ignore[type-arg]
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    pod = pod_of(workload)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim"}
    assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])
    for container in containers(workload):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        # And more than it asks for.
        assert security["readOnlyRootFilesystem"] is True
        assert not any("hostPort" in port for port in container["ports"])
        assert container["startupProbe"]
        assert container["livenessProbe"]
        assert container["readinessProbe"]
    enforced = MANIFESTS[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


def test_masters_alone_may_do_something_and_that_is_their_lease() -> None:
    (role,) = of_kind("Role", MANIFESTS).values()
    assert not of_kind("ClusterRole", MANIFESTS)
    rights = {
        (verb, *rule.get("resourceNames", ())) for rule in role["rules"] for verb in rule["verbs"]
    }
    assert rights == {("get", "gfs-masters"), ("update", "gfs-masters"), ("create",)}
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"leases"}
    (binding,) = of_kind("RoleBinding", MANIFESTS).values()
    assert [subject["name"] for subject in binding["subjects"]] == ["gfs-master"]
    with_token = [
        name
        for name, each in zip(NAMES, WORKLOADS, strict=True)
        if pod_of(each)["automountServiceAccountToken"]
    ]
    assert with_token == ["gfs-master"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=NAMES)
def test_one_pod_at_a_time_is_evicted(workload: dict) -> None:  # type: ignore[type-arg]
    name = workload["metadata"]["name"]
    budget = of_kind("PodDisruptionBudget", MANIFESTS)[name]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == workload["spec"]["selector"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert labels["app.kubernetes.io/part-of"] == "gfs"


def test_the_masters_that_are_named_are_those_that_run() -> None:
    (masters,) = (each for each in WORKLOADS if each["metadata"]["name"] == "gfs-master")
    for workload in WORKLOADS:
        (container,) = containers(workload)
        variables = {each["name"]: each.get("value") for each in container["env"]}
        named = variables["GFS_MASTER"].split(",")
        assert named == [
            f"gfs-master-{number}.gfs-master.$(NAMESPACE).svc.cluster.local:9400"
            for number in range(masters["spec"]["replicas"])
        ]


def test_no_port_is_open_that_no_policy_names() -> None:
    named = {
        port["port"]
        for policy in of_kind("NetworkPolicy", MANIFESTS).values()
        for rule in policy["spec"].get("ingress", ())
        for port in rule["ports"]
    }
    opened = {
        port["containerPort"]
        for workload in WORKLOADS
        for container in containers(workload)
        for port in container["ports"]
    }
    assert named == opened
    everything = of_kind("NetworkPolicy", MANIFESTS)["gfs"]["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_image_and_the_page_are_of_this_version() -> None:
    used = {container["image"] for each in WORKLOADS for container in containers(each)}
    assert used == {f"gfs:{gfs.__version__}"}
    assert f"-t gfs:{gfs.__version__} ." in CONTAINERFILE.read_text()
    assert f"-t gfs:{gfs.__version__} ." in PAGE


def test_the_containerfile_names_no_host_but_the_images_of_its_base() -> None:
    text = CONTAINERFILE.read_text()
    (base,) = re.findall(r"^ARG BASE=(.+)$", text, re.M)
    # Of a release: the same at each build.
    assert base == "docker.io/library/python:3.13.7-slim-bookworm"
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["${BASE}"] * 2
    user = re.search(r"^USER (\d+):(\d+)$", text, re.M)
    assert user.groups() == ("10001", "10001")
    # What it copies is there.
    for line in re.findall(r"^COPY (?!--)(.+) /source", text, re.M):
        for name in line.split():
            assert (DIRECTORY.parents[1] / name).exists()
