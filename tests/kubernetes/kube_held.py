"""The backend for Kubernetes, held up where a test wants it to die.

``GFS_COMPUTE_BACKEND=kube_held:make`` takes it. Whoever makes the file ``hold-PLACE`` in
``TEST_HOLDS`` holds it up there, and finds ``held-PLACE`` when it has come so far. A place
is a call of the API server, before it is sent or after it was answered.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from control.compute.backend import Installation
from control.compute.kubernetes import Kubernetes
from control.compute.kubernetes import make as make_kubernetes

LOOK_SECONDS = 0.01


def make(installation: Installation, settings: Any) -> Kubernetes:
    backend = make_kubernetes(installation, settings)
    api, holds = backend._api, Path(os.environ["TEST_HOLDS"])
    for name in ("create_namespace", "apply_namespace", "apply", "delete_namespace"):
        setattr(api, name, _held(getattr(api, name), name, holds))
    return backend


def _held(call: Callable[..., Awaitable[Any]], name: str, holds: Path) -> Any:
    async def hold(place: str) -> None:
        if (holds / f"hold-{place}").exists():
            (holds / f"held-{place}").touch()
            while (holds / f"hold-{place}").exists():  # noqa: ASYNC110
                await trio.sleep(LOOK_SECONDS)

    async def held(*arguments: Any) -> Any:
        what = arguments[0]["kind"] if isinstance(arguments[0], dict) else "Namespace"
        await hold(f"{name}-{what}-before")
        answer = await call(*arguments)
        await hold(f"{name}-{what}-after")
        return answer

    return held
