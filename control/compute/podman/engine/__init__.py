"""Podman's own REST service: run as a process (:mod:`.service`, :mod:`.processes`) and
called (:mod:`.api`, :mod:`.http`); :mod:`.answers` decodes its answers."""

from control.compute.podman.engine.answers import LABEL_GENERATION, Inspected, State, Volume
from control.compute.podman.engine.api import KINDS, Api
from control.compute.podman.engine.http import Body, Refused
from control.compute.podman.engine.processes import (
    children,
    copy_descriptor,
    end,
    has_ended,
    held,
    listeners,
    parent,
    reaped,
    running,
)
from control.compute.podman.engine.service import Service, environment, run_podman

__all__ = [
    "KINDS",
    "LABEL_GENERATION",
    "Api",
    "Body",
    "Inspected",
    "Refused",
    "Service",
    "State",
    "Volume",
    "children",
    "copy_descriptor",
    "end",
    "environment",
    "has_ended",
    "held",
    "listeners",
    "parent",
    "reaped",
    "run_podman",
    "running",
]
