"""The fields of Kubernetes' objects that we read, and their meaning. Plain code.

Only the fields that are used are decoded: a list of a thousand pods is a few megabytes, of
which we keep little. A field that is null or missing counts as empty.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from datetime import datetime

import msgspec

from control.compute.backend import (
    LABEL_CLUSTER,
    LABEL_CONTAINER,
    LABEL_USER,
    Impossible,
    Network,
    Phase,
    Sighting,
)
from control.compute.kubernetes.manifests import (
    ANNOTATION_DESIRED,
    ANNOTATION_LOGS,
    desired,
    namespace_name,
    parse_desired,
)


class Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    #: In a list: the token of the next page.
    continue_: str | None = msgspec.field(default=None, name="continue")

    def label(self, name: str) -> str:
        return (self.labels or {}).get(name, "")

    @property
    def desired(self) -> tuple[int, bool]:
        return parse_desired((self.annotations or {}).get(ANNOTATION_DESIRED, ""))


class Condition(msgspec.Struct):
    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None


class NamespaceStatus(msgspec.Struct):
    conditions: list[Condition] | None = None


class Namespace(msgspec.Struct):
    metadata: Meta
    status: NamespaceStatus | None = None


class Waiting(msgspec.Struct):
    reason: str | None = None
    message: str | None = None


class Terminated(msgspec.Struct, rename="camel"):
    exit_code: int = 0
    reason: str | None = None
    message: str | None = None


class Running(msgspec.Struct, rename="camel"):
    started_at: str | None = None


class State(msgspec.Struct):
    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, rename="camel"):
    name: str = ""
    restart_count: int = 0
    state: State | None = None
    last_state: State | None = None


class PodStatus(msgspec.Struct, rename="camel"):
    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    conditions: list[Condition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None

    def condition(self, kind: str) -> Condition:
        return next((each for each in self.conditions or () if each.type == kind), Condition())


class PodSpec(msgspec.Struct, rename="camel"):
    node_name: str | None = None
    host_users: bool | None = None


class Pod(msgspec.Struct):
    metadata: Meta
    spec: PodSpec | None = None
    status: PodStatus | None = None


class Template(msgspec.Struct):
    spec: PodSpec


class WorkloadSpec(msgspec.Struct):
    template: Template


class Workload(msgspec.Struct):
    """A StatefulSet."""

    metadata: Meta
    spec: WorkloadSpec

    @property
    def logs(self) -> str:
        """What was kept of its last run; "" if nothing was."""
        return (self.metadata.annotations or {}).get(ANNOTATION_LOGS, "")


class NodeAddress(msgspec.Struct):
    address: str = ""


class NodeStatus(msgspec.Struct):
    addresses: list[NodeAddress] | None = None


class NodeSpec(msgspec.Struct):
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class Node(msgspec.Struct):
    metadata: Meta
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class LoadBalancerIngress(msgspec.Struct):
    ip: str | None = None
    hostname: str | None = None


class LoadBalancer(msgspec.Struct):
    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(msgspec.Struct, rename="camel"):
    load_balancer: LoadBalancer | None = None


class Service(msgspec.Struct):
    metadata: Meta
    status: ServiceStatus | None = None


class Event(msgspec.Struct, rename="camel"):
    """A report of Kubernetes about an object: why there is no pod or no volume."""

    metadata: Meta
    type: str | None = None
    reason: str | None = None
    message: str | None = None
    last_timestamp: str | None = None
    event_time: str | None = None


class MetricsUsage(msgspec.Struct):
    memory: str | None = None


class ContainerMetrics(msgspec.Struct):
    name: str = ""
    usage: MetricsUsage | None = None


class PodMetrics(msgspec.Struct):
    containers: list[ContainerMetrics] | None = None


class Rule(msgspec.Struct, rename="camel"):
    api_groups: list[str] | None = None
    resources: list[str] | None = None
    resource_names: list[str] | None = None
    verbs: list[str] | None = None

    def grants(self, group: str, resource: str, verb: str) -> bool:
        """Whether the rule grants this for all objects. ``resource`` may be
        ``resource/subresource``."""
        _, _, subresource = resource.partition("/")
        names = {resource, "*", f"*/{subresource}" if subresource else "*"}
        return (
            not self.resource_names
            and not {group, "*"}.isdisjoint(self.api_groups or ())
            and not names.isdisjoint(self.resources or ())
            and not {verb, "*"}.isdisjoint(self.verbs or ())
        )


class Rights(msgspec.Struct, rename="camel"):
    """Our rights. Some authorizers (those of clouds) cannot list them, so there may be more."""

    resource_rules: list[Rule] | None = None
    incomplete: bool = False


class RulesReview(msgspec.Struct):
    status: Rights


class Access(msgspec.Struct):
    allowed: bool = False


class AccessReview(msgspec.Struct):
    status: Access


class Page(msgspec.Struct):
    """A page of a list. The caller, who knows their type, decodes its items one by one."""

    metadata: Meta
    items: list[msgspec.Raw]


class Happening(msgspec.Struct):
    """A message of a watch."""

    type: str
    object: msgspec.Raw


class Cause(msgspec.Struct):
    reason: str | None = None
    message: str | None = None


class Details(msgspec.Struct, rename="camel"):
    causes: list[Cause] | None = None


class Problem(msgspec.Struct):
    """A ``Status`` of Kubernetes: how a request, or a command in a container, ended."""

    code: int | None = None
    status: str | None = None
    reason: str | None = None
    message: str | None = None
    details: Details | None = None

    def cause(self, reason: str) -> Cause | None:
        causes = (self.details.causes if self.details else None) or ()
        return next((each for each in causes if each.reason == reason), None)


# --- meaning ----------------------------------------------------------------------------

#: Reasons for which somebody must do something; the container may still recover.
_FAILED = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
    "RunContainerError",
    "SignatureValidationFailed",
    "StartError",
}
#: The ordinary steps of a start, which are not reported.
_ORDINARY = {"ContainerCreating", "PodInitializing", ""}


def is_ours(namespace: Namespace, installation_id: str) -> bool:
    """Whether we created the namespace: it has our labels, and the name that belongs to them.
    A namespace that somebody labelled by hand must not be deleted."""
    about = namespace.metadata
    if about.label(LABEL_CLUSTER) != installation_id:
        return False
    user_id, container_id = about.label(LABEL_USER), about.label(LABEL_CONTAINER)
    try:
        return about.name == namespace_name(user_id, container_id)
    except Impossible:
        return False


def sighting(
    namespace: Namespace,
    pods: Sequence[Pod],
    external_ip: str = "",
    remark: str = "",
    *,
    has_workload: bool = True,
) -> Sighting:
    """The observed state of a container.

    Args:
        pods: All pods of its namespace.
        external_ip: The address of its Service.
        remark: Why it does not start, if that is known and not in ``pods``.
        has_workload: Whether it has a StatefulSet, which creates its pod.
    """
    about = namespace.metadata
    generation, is_to_run = about.desired
    pod = _current(pods, desired(generation, run=True))
    phase: Phase
    if about.deletion_timestamp:
        phase, reason = "failed", f"its namespace {about.name} was deleted: start it again"
    elif not is_to_run:
        alive = [each for each in pods if not each.metadata.deletion_timestamp]
        phase, reason = ("running" if alive else "stopped"), ""
    elif pod is None:
        phase, reason = ("pending" if has_workload else "stopped"), remark
    elif pod.metadata.deletion_timestamp:
        phase, reason = "initializing", "the cluster ends this run and begins another"
    else:
        phase, reason = _phase(pod)
        reason = reason or ("" if phase == "running" else remark)
    return Sighting(
        id=about.label(LABEL_CONTAINER),
        user_id=about.label(LABEL_USER),
        phase=phase,
        generation=generation,
        reason=reason,
        external_ip=external_ip if phase == "running" else "",
    )


def _current(pods: Sequence[Pod], marked: str) -> Pod | None:
    """The pod of the desired state; one that is not being deleted is preferred."""
    found = [
        pod for pod in pods if (pod.metadata.annotations or {}).get(ANNOTATION_DESIRED) == marked
    ]
    return min(found, key=lambda pod: pod.metadata.deletion_timestamp or "", default=None)


def _phase(pod: Pod) -> tuple[Phase, str]:
    status = pod.status or PodStatus()
    if status.phase == "Failed":
        return "initializing", _sentence(status.reason or "its pod failed", status.message)
    if not (pod.spec and pod.spec.node_name):
        scheduled = status.condition("PodScheduled")
        if scheduled.status == "False":
            return "pending", _sentence(scheduled.reason, scheduled.message)
        return "pending", ""
    for preparing in status.init_container_statuses or ():
        state = preparing.state or State()
        if state.waiting or (state.terminated and state.terminated.exit_code):
            return _stuck(preparing)
    for container in status.container_statuses or ():
        state = container.state or State()
        if state.running:
            # Its node is silent: the cluster reports the pod as unready, and its containers
            # as they were.
            ready, all_ready = (
                status.condition(kind).status for kind in ("Ready", "ContainersReady")
            )
            is_silent = ready == "False" and all_ready == "True"
            return "running", "its node does not answer" if is_silent else ""
        return _stuck(container)
    return "initializing", ""


def _stuck(container: ContainerStatus) -> tuple[Phase, str]:
    """The phase of a container that does not run, not yet or not any more."""
    state = container.state or State()
    if state.terminated:
        return "initializing", _ending(state.terminated)
    waiting = state.waiting or Waiting()
    reason = waiting.reason or ""
    if reason == "CrashLoopBackOff":
        last = (container.last_state or State()).terminated
        said = _ending(last) if last else waiting.message
        return "failed", _sentence(reason, f"{said}, {container.restart_count} times")
    if reason in _FAILED:
        return "failed", _sentence(reason, waiting.message)
    return "initializing", "" if reason in _ORDINARY else _sentence(reason, waiting.message)


def _ending(terminated: Terminated) -> str:
    if terminated.reason == "OOMKilled":
        return "OOMKilled: it needed more memory than it has"
    said = f"it ended with code {terminated.exit_code}"
    reason = terminated.reason or ""
    return _sentence("" if reason in ("Error", "Completed") else reason, said)


def _sentence(reason: str | None, message: str | None) -> str:
    return ": ".join(part for part in (reason, message) if part)


def address(services: Sequence[Service]) -> str:
    """The address of SSH and the ports, if the cluster gave one."""
    for service in services:
        balancer = (service.status.load_balancer if service.status else None) or LoadBalancer()
        for ingress in balancer.ingress or ():
            if found := ingress.ip or ingress.hostname:
                return found
    return ""


def networks(nodes: Sequence[Node]) -> tuple[Network, ...]:
    """The networks of the nodes and of the pods on them. Host names are ignored."""
    found: set[Network] = set()
    for node in nodes:
        addresses = (node.status.addresses if node.status else None) or ()
        cidrs = (node.spec.pod_cidrs if node.spec else None) or ()
        for text in (*(each.address for each in addresses), *cidrs):
            with contextlib.suppress(ValueError):
                found.add(ipaddress.ip_network(text, strict=False))
    return tuple(sorted(found, key=lambda net: (net.version, net)))


def last_warning(events: Sequence[Event], since: float) -> str:
    """The last warning of Kubernetes since a time, in seconds since 1970."""
    warnings = [
        (happened, event)
        for event in events
        if event.type == "Warning" and event.message and (happened := _when(event)) >= since
    ]
    _, last = max(warnings, key=lambda pair: pair[0], default=(0.0, Event(Meta())))
    return _sentence(last.reason, last.message)


def _when(event: Event) -> float:
    said = event.last_timestamp or event.event_time or ""
    try:
        return datetime.fromisoformat(said).timestamp()
    except ValueError:
        return 0.0


def remaining(namespace: Namespace) -> str:
    """Why a deleted namespace is still there, in Kubernetes' words."""
    conditions = (namespace.status.conditions if namespace.status else None) or ()
    said = [each.message for each in conditions if each.status == "True" and each.message]
    return "; ".join(said) or "its pods are ending"


_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def memory_bytes(metrics: PodMetrics) -> int | None:
    """The memory of all containers of a pod; None if it is not reported."""
    total = 0
    for container in metrics.containers or ():
        quantity = (container.usage.memory if container.usage else None) or ""
        number = quantity.rstrip("kKMGTi")
        unit = quantity[len(number) :]
        if not (number.isascii() and number.isdigit() and unit in _UNITS):
            return None
        total += int(number) * _UNITS[unit]
    return total if metrics.containers else None
