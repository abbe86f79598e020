"""What is read of Kubernetes, and what follows from its answers: without a cluster."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.compute.backend import BackendUnavailable, Impossible
from control.compute.kubernetes.client.refusals import Refused, translated
from control.compute.kubernetes.permissions import NEEDED, missing
from control.compute.kubernetes.shapes import (
    Event,
    Namespace,
    Node,
    Pod,
    PodMetrics,
    Rights,
    Rule,
    Service,
    address,
    is_ours,
    last_warning,
    memory_bytes,
    networks,
    remaining,
    sighting,
)

LABELS = {
    "gfs.control/managed": "true",
    "gfs.control/cluster": "c0ffee",
    "gfs.control/user": "aB1234",
    "gfs.control/container": "0badcafe",
}
NAME = "compute-ab1234-2-0badcafe"


def decode(value: Any, kind: Any) -> Any:
    return msgspec.json.decode(json.dumps(value), type=kind)


def namespace(wish: str = "run-3", **about: Any) -> Namespace:
    annotations = {"gfs.control/wish": wish} if wish else None
    metadata = {"name": NAME, "labels": LABELS, "annotations": annotations, **about}
    found: Namespace = decode({"metadata": metadata}, Namespace)
    return found


def pod(
    status: dict[str, Any], *, wish: str = "run-3", node: str | None = "node", **about: Any
) -> Pod:
    metadata = {"name": "container-0", "annotations": {"gfs.control/wish": wish}, **about}
    found: Pod = decode({"metadata": metadata, "spec": {"nodeName": node}, "status": status}, Pod)
    return found


def waiting(reason: str, message: str | None = None) -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


UP = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
PREPARED = [{"name": "prepare", "state": ended(0, "Completed")}]


def statuses(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    container = {"name": "container", "state": state, **more}
    return {"initContainerStatuses": PREPARED, "containerStatuses": [container]}


def unready(all_ready: str) -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": "False"},
        {"type": "ContainersReady", "status": all_ready},
    ]
    return {**statuses(UP), "conditions": conditions}


@pytest.mark.parametrize(
    ("status", "phase", "reason"),
    [
        ({}, "initializing", ""),
        (statuses(waiting("ContainerCreating")), "initializing", ""),
        (statuses(waiting("PodInitializing")), "initializing", ""),
        (statuses(waiting("SomethingNew", "why")), "initializing", "SomethingNew: why"),
        (statuses(UP), "running", ""),
        (unready("True"), "running", "its node does not answer"),
        (unready("False"), "running", ""),
        (statuses(waiting("ErrImagePull", "no tag")), "failed", "ErrImagePull: no tag"),
        (statuses(waiting("ImagePullBackOff")), "failed", "ImagePullBackOff"),
        (
            statuses(waiting("CreateContainerConfigError", 'secret "keys" not found')),
            "failed",
            'CreateContainerConfigError: secret "keys" not found',
        ),
        (
            statuses(waiting("CrashLoopBackOff"), restartCount=4, lastState=ended(2)),
            "failed",
            "CrashLoopBackOff: it ended with code 2, 4 times",
        ),
        (
            statuses(
                waiting("CrashLoopBackOff"), restartCount=1, lastState=ended(137, "OOMKilled")
            ),
            "failed",
            "CrashLoopBackOff: OOMKilled: it needed more memory than it has, 1 times",
        ),
        (statuses(ended(1)), "initializing", "it ended with code 1"),
        (statuses(ended(0, "Completed")), "initializing", "it ended with code 0"),
        (
            statuses(ended(128, "ContainerCannotRun")),
            "initializing",
            "ContainerCannotRun: it ended with code 128",
        ),
        (
            {"initContainerStatuses": [{"state": waiting("ImagePullBackOff", "no tag")}]},
            "failed",
            "ImagePullBackOff: no tag",
        ),
        (
            {"initContainerStatuses": [{"state": ended(1)}]},
            "initializing",
            "it ended with code 1",
        ),
        ({"initContainerStatuses": [{"state": UP}]}, "initializing", ""),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "disk pressure"},
            "initializing",
            "Evicted: disk pressure",
        ),
        ({"phase": "Failed"}, "initializing", "its pod failed"),
        (None, "initializing", ""),
    ],
)
def test_what_a_pod_on_a_node_means(status: Any, phase: str, reason: str) -> None:
    seen = sighting(namespace(), [pod(status)])
    assert (seen.phase, seen.reason) == (phase, reason)
    assert (seen.id, seen.user_id, seen.generation) == ("0badcafe", "aB1234", 3)


def test_a_pod_without_a_node_is_pending_and_says_why() -> None:
    reported = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "full",
    }
    seen = sighting(namespace(), [pod({"conditions": [reported]}, node=None)])
    assert (seen.phase, seen.reason) == ("pending", "Unschedulable: full")
    assert sighting(namespace(), [pod({}, node="")]).phase == "pending"


@pytest.mark.parametrize("wish", ["", "stop-3", "nonsense", "run-", "run--1", "run-x"])
def test_nothing_is_desired_and_nothing_runs(wish: str) -> None:
    seen = sighting(namespace(wish), [])
    assert seen.phase == "stopped"
    assert seen.generation == (3 if wish == "stop-3" else 0)


def test_a_stopped_container_runs_until_its_pod_is_ordered_to_end() -> None:
    assert sighting(namespace("stop-3"), [pod(statuses(UP))]).phase == "running"
    ending = pod(statuses(UP), deletionTimestamp="2026-01-01T00:00:00Z")
    assert sighting(namespace("stop-3"), [ending]).phase == "stopped"


def test_a_run_of_an_older_generation_does_not_count() -> None:
    old = pod(statuses(UP), wish="run-2")
    seen = sighting(namespace("run-3"), [old])
    assert (seen.phase, seen.generation) == ("pending", 3)
    new = pod(statuses(waiting("ContainerCreating")))
    for pods in ([old, new], [new, old]):
        assert sighting(namespace("run-3"), pods).phase == "initializing"


def test_a_run_that_is_being_ended_is_not_running() -> None:
    ending = pod(statuses(UP), deletionTimestamp="2026-01-01T00:00:00Z")
    assert sighting(namespace(), [ending]).phase == "initializing"
    for pods in ([ending, pod(statuses(UP))], [pod(statuses(UP)), ending]):
        assert sighting(namespace(), pods).phase == "running"


def test_a_namespace_that_ends_has_failed() -> None:
    seen = sighting(namespace(deletionTimestamp="2026-01-01T00:00:00Z"), [pod(statuses(UP))])
    assert seen.phase == "failed"
    assert NAME in seen.reason


def test_an_address_and_a_remark_are_reported_where_they_say_something() -> None:
    running, starting = pod(statuses(UP)), pod(statuses(waiting("ContainerCreating")))
    seen = sighting(namespace(), [running], "192.0.2.1", "old news")
    assert (seen.external_ip, seen.reason) == ("192.0.2.1", "")
    seen = sighting(namespace(), [starting], "192.0.2.1", "news")
    assert (seen.external_ip, seen.reason) == ("", "news")
    seen = sighting(namespace(), [], remark="news")
    assert (seen.phase, seen.reason) == ("pending", "news")
    seen = sighting(namespace(), [], has_workload=False)
    assert (seen.phase, seen.generation) == ("stopped", 3)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, True),
        ({"name": "kube-system"}, False),
        ({"labels": {**LABELS, "gfs.control/cluster": "other"}}, False),
        ({"labels": {**LABELS, "gfs.control/user": "ab1234"}}, False),
        ({"labels": {**LABELS, "gfs.control/container": "x"}}, False),
        ({"labels": None}, False),
    ],
)
def test_whose_a_namespace_is(about: dict[str, Any], expected: bool) -> None:
    assert is_ours(namespace(**about), "c0ffee") is expected


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        (None, ""),
        ([], ""),
        ([{}], ""),
        ([{"ip": "192.0.2.1"}], "192.0.2.1"),
        ([{"hostname": "lb.example.org"}], "lb.example.org"),
    ],
)
def test_the_address_of_a_service(ingress: Any, expected: str) -> None:
    status = {"loadBalancer": {"ingress": ingress}}
    service = decode({"metadata": {"name": "container"}, "status": status}, Service)
    bare = decode({"metadata": {"name": "https"}}, Service)
    assert address([bare, service]) == expected


def test_where_nodes_and_their_pods_are() -> None:
    found = decode(
        [
            {"metadata": {}, "spec": {"podCIDRs": ["2a01:4f8:2::/64", "10.244.1.0/24"]}},
            {
                "metadata": {},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": "10.0.0.7"},
                        {"type": "ExternalIP", "address": "5.9.0.7"},
                        {"type": "ExternalIP", "address": "2a01:4f8::7"},
                        {"type": "Hostname", "address": "node-7"},
                    ]
                },
            },
            {"metadata": {}, "spec": None, "status": None},
        ],
        list[Node],
    )
    assert [str(each) for each in networks(found)] == [
        *("5.9.0.7/32", "10.0.0.7/32", "10.244.1.0/24", "2a01:4f8::7/128", "2a01:4f8:2::/64")
    ]


def test_the_last_warning_is_reported() -> None:
    def event(time: str | None, kind: str, message: str) -> Event:
        body = {"metadata": {}, "type": kind, "reason": "FailedCreate", "message": message}
        found: Event = decode({**body, "lastTimestamp": time}, Event)
        return found

    events = [
        event("2026-01-01T00:00:02Z", "Warning", "new"),
        event("2026-01-01T00:00:01Z", "Warning", "old"),
        event("2026-01-01T00:00:03Z", "Normal", "fine"),
    ]
    assert last_warning(events, 0.0) == "FailedCreate: new"
    second = datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC).timestamp()
    assert last_warning(events, second) == "FailedCreate: new"
    assert last_warning(events, second + 0.5) == "", "it is of an earlier start"
    assert last_warning([], 0.0) == ""
    assert last_warning([event("nonsense", "Warning", "odd"), *events], 0.0) == "FailedCreate: new"
    assert last_warning([event(None, "Warning", "odd")], 1.0) == ""


def test_what_keeps_a_namespace() -> None:
    conditions = [
        {"type": "A", "status": "False", "message": "not this"},
        {"type": "B", "status": "True", "message": "a finalizer"},
    ]
    body = {"metadata": {"name": "x"}, "status": {"conditions": conditions}}
    assert remaining(decode(body, Namespace)) == "a finalizer"
    assert remaining(namespace()) == "its pods are ending"


@pytest.mark.parametrize(
    ("quantities", "expected"),
    [
        (["1000"], 1000),
        (["130000Ki"], 130000 * 1024),
        (["12Mi", "1Gi"], (12 + 1024) * 1024**2),
        (["3k"], 3000),
        (["1.5Gi"], None),
        (["-1"], None),
        (["x"], None),
        (["\u0663Ki"], None),
        ([""], None),
        ([], None),
    ],
)
def test_quantities_of_memory(quantities: list[str], expected: int | None) -> None:
    containers = [{"name": "c", "usage": {"memory": each}} for each in quantities]
    assert memory_bytes(decode({"containers": containers}, PodMetrics)) == expected


EXEC = ("", "pods/exec", "create")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]}, True),
        ({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, True),
        ({"apiGroups": [""], "resources": ["*/exec"], "verbs": ["create"]}, True),
        ({"apiGroups": [""], "resources": ["pods/*"], "verbs": ["create"]}, False),
        ({"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}, False),
        ({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}, False),
        ({"apiGroups": ["apps"], "resources": ["pods/exec"], "verbs": ["create"]}, False),
        (
            {
                "apiGroups": [""],
                "resources": ["pods/exec"],
                "verbs": ["create"],
                "resourceNames": ["container-0"],
            },
            False,
        ),
        ({"apiGroups": None, "resources": None, "verbs": None, "resourceNames": None}, False),
    ],
)
def test_what_a_rule_grants(rule: dict[str, Any], expected: bool) -> None:
    read: Rule = decode(rule, Rule)
    assert read.grants(*EXEC) is expected


@given(st.sets(st.sampled_from(NEEDED)))
def test_what_is_missing_is_what_no_rule_grants(without: set[tuple[str, str, str]]) -> None:
    rules = [
        Rule([group], [resource], None, [verb])
        for group, resource, verb in NEEDED
        if (group, resource, verb) not in without
    ]
    assert set(missing(Rights(rules))) == without


FORBIDDEN = 'pods is forbidden: User "x" cannot list resource "pods" in API group "" at the scope'


@pytest.mark.parametrize(
    ("status", "message", "kind", "says"),
    [
        (401, "Unauthorized", BackendUnavailable, "credentials"),
        (403, FORBIDDEN, BackendUnavailable, "rbac.yaml"),
        (403, 'statefulsets.apps "container" is forbidden: ', BackendUnavailable, "rbac.yaml"),
        (403, 'User "system:anonymous" cannot get', BackendUnavailable, "who we are"),
        (403, "exceeded quota: x", Impossible, "exceeded quota: x"),
        (403, "violates PodSecurity", Impossible, "violates PodSecurity"),
        (403, "ns is being terminated", BackendUnavailable, "still being deleted"),
        (404, "not found", BackendUnavailable, "not found"),
        (409, "conflict", BackendUnavailable, "conflict"),
        (422, "is invalid", Impossible, "is invalid"),
        (400, "bad", Impossible, "bad"),
        (429, "too many", BackendUnavailable, "too many"),
        (500, "oops", BackendUnavailable, "oops"),
        (503, "", BackendUnavailable, "status 503"),
        (200, "no upgrade", BackendUnavailable, "no upgrade"),
    ],
)
def test_what_follows_from_a_refusal(
    status: int, message: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says), translated():
        raise Refused.of(status, json.dumps({"message": message}))


@given(st.integers(100, 599), st.binary(max_size=2000))
def test_whatever_a_server_answers_is_reported_in_one_short_line(status: int, body: bytes) -> None:
    refused = Refused.of(status, body)
    assert len(str(refused)) <= 500
    assert "\n" not in str(refused)
    with pytest.raises((BackendUnavailable, Impossible)), translated():
        raise refused
