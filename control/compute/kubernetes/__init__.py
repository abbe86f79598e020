"""Containers in a Kubernetes cluster. See :mod:`control.compute.kubernetes.backend`."""

from __future__ import annotations

from control.compute.kubernetes.backend import Kubernetes, make

__all__ = ["Kubernetes", "make"]
