"""Refusals of the API server, and their consequences.

=============================  ========================================================
answer                         consequence
=============================  ========================================================
401                            read the credentials again, once; then retry later
403 by RBAC                    retry later: the message says what to grant
403 in a namespace that ends   retry later
403 by a quota or a policy     it is impossible, and the user gets the reason
404, 409                       retry later, unless the caller expects it
400, 405, 406, 415, 422 …      it is impossible
408, 429, 5xx, no answer       retry later
=============================  ========================================================
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import msgspec

from control.compute.backend import BackendUnavailable, Impossible
from control.compute.kubernetes.shapes import Problem
from gfs.errors import GfsError

TEXT_LENGTH_MAX = 500
GRANT = "grant the roles of control/compute/kubernetes/rbac.yaml"
#: The text of authorizers: User "x" cannot create resource "pods" in API group "" …; it ends
#: early where an apply would have created the object.
_RIGHTS = re.compile(r'cannot \w+ (resource|path) "|is forbidden:$')
_LATER = {404, 408, 409, 410, 429}


class Refused(Exception):
    """The API server answered with an error. ``str()`` is its message, in one line."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.message or f"status {status}")
        self.status = status
        self.problem = problem

    @classmethod
    def of(cls, status: int, body: bytes | str | None) -> Refused:
        raw = body.encode() if isinstance(body, str) else body or b""
        try:
            problem = msgspec.json.decode(raw, type=Problem)
        except msgspec.DecodeError:
            problem = Problem(message=raw[:TEXT_LENGTH_MAX].decode("utf-8", "replace"))
        said = " ".join((problem.message or "").split())[:TEXT_LENGTH_MAX]
        return cls(status, msgspec.structs.replace(problem, message=said))


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises BackendUnavailable or Impossible in place of Refused."""
    try:
        yield
    except Refused as refused:
        raise _translation(refused) from None


def _translation(refused: Refused) -> GfsError:
    status, said = refused.status, str(refused)
    if status == 401:
        return BackendUnavailable(f"the cluster does not accept our credentials ({said})")
    if status == 403:
        if refused.problem.cause("NamespaceTerminating") or "being terminated" in said:
            return BackendUnavailable("its namespace is still being deleted")
        if "system:anonymous" in said:
            return BackendUnavailable(f"the cluster does not know who we are ({said})")
        if _RIGHTS.search(said):
            return BackendUnavailable(f"the cluster does not let us ({said}): {GRANT}")
        return Impossible(f"the cluster forbids it: {said}")
    if status in _LATER or not 400 <= status < 500:
        return BackendUnavailable(f"the cluster cannot do it now: {said}")
    return Impossible(f"the cluster refuses it: {said}")
