"""What a stand-in kubelet acts out, and how Kubernetes words it. Plain code.

An *act* says what becomes of pods on a node, for as long as it lasts. The statuses are
those that a real kubelet writes, field for field as far as a client may look at them.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

from kube_api import Object


@dataclass(frozen=True)
class Held:
    """It stays in ContainerCreating, and starts when the act is over."""


@dataclass(frozen=True)
class PullFails:
    """Its image cannot be had: ErrImagePull, then ImagePullBackOff. Can be, afterwards."""

    message: str = "manifest unknown"


Act = Held | PullFails


@dataclass
class Run:
    """The state of one pod on its node. All its containers fare alike."""

    pod: Object
    address: str
    started_at: str
    restarts: int = 0
    #: What the containers do now: "waiting" or "running".
    stage: str = "waiting"
    reason: str = "ContainerCreating"
    message: str = ""
    running_since: str = ""
    initialized: bool = False
    ready: bool = False
    #: How the run before ended, as ``terminated`` has it.
    last: Object = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def phase(self) -> str:
        came_up = self.initialized and (self.running_since or self.restarts)
        return "Running" if came_up else "Pending"

    def waits(self, reason: str, message: str = "") -> None:
        self.stage, self.reason, self.message, self.ready = "waiting", reason, message, False

    def runs(self) -> None:
        self.stage, self.initialized, self.ready = "running", True, True
        self.running_since = now()

    def crashes(self, exit_code: int) -> None:
        """The containers' processes are over. The kubelet starts them again, after a pause."""
        self.last = {
            "exitCode": exit_code,
            "reason": "Error",
            "startedAt": self.running_since,
            "finishedAt": now(),
            "containerID": f"standin://{self.uid}-{self.restarts}",
        }
        self.waits("CrashLoopBackOff")
        self.restarts += 1
        self.running_since = ""

    def status(self) -> Object:
        """For the pod's status, as a strategic merge patch."""
        spec = self.pod["spec"]
        ready = self.ready and self.stage == "running"
        initialized = not spec.get("initContainers") or self.initialized
        found = {
            "phase": self.phase,
            "conditions": [
                _condition("Initialized", initialized, "ContainersNotInitialized"),
                _condition("Ready", ready, "ContainersNotReady"),
                _condition("ContainersReady", ready, "ContainersNotReady"),
                _condition("PodScheduled", True, ""),
            ],
            "hostIP": "127.0.0.1",
            "startTime": self.started_at,
            "containerStatuses": [self._container(each, ready) for each in spec["containers"]],
        }
        if self.running_since or self.restarts:
            found["podIP"] = self.address
            found["podIPs"] = [{"ip": self.address}]
        if spec.get("initContainers"):
            found["initContainerStatuses"] = [
                self._init_container(each) for each in spec["initContainers"]
            ]
        return found

    def _container(self, container: Object, ready: bool) -> Object:
        return {
            **_names(container),
            "ready": ready,
            "started": self.stage == "running",
            "restartCount": self.restarts,
            "state": self._state(),
            "lastState": {"terminated": self.last} if self.last else {},
        }

    def _state(self) -> Object:
        if self.stage == "running":
            return {"running": {"startedAt": self.running_since}}
        return self._waiting()

    def _waiting(self) -> Object:
        reported = {"message": self.message} if self.message else {}
        return {"waiting": {"reason": self.reason, **reported}}

    def _init_container(self, container: Object) -> Object:
        found: Object = {**_names(container), "ready": self.initialized, "restartCount": 0}
        if not self.initialized:
            return found | {"state": self._waiting()}
        over = {"exitCode": 0, "reason": "Completed", "finishedAt": now()}
        return found | {"state": {"terminated": over | {"startedAt": self.started_at}}}


def node(name: str, architecture: str) -> Object:
    return {
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/arch": architecture,
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
            },
        }
    }


def node_status(name: str, architecture: str, port: int) -> Object:
    """Of a machine with room for everything that a test may ask for."""
    room = {"cpu": "4000", "memory": "16Ti", "ephemeral-storage": "16Ti", "pods": "20000"}
    return {
        "capacity": room,
        "allocatable": room,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "KubeletReady",
                "lastHeartbeatTime": now(),
            }
        ],
        "addresses": [
            {"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "Hostname", "address": name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "architecture": architecture,
            "operatingSystem": "linux",
            "kubeletVersion": "v1.20.2",
        },
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise_now() -> str:
    """As the lines of a log have it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def _condition(kind: str, holds: bool, reason: str) -> dict[str, Any]:
    # An explicit null takes back the reason of before.
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": None if holds else reason,
        "message": None,
        "lastProbeTime": None,
        "lastTransitionTime": now(),
    }


def _names(container: Object) -> Object:
    image = container["image"]
    return {"name": container["name"], "image": image, "imageID": f"standin://{image}"}
