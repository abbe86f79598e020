"""What runs for users, as other modules show it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Something that runs for a user, such as a container. CPU is in cores, the rest in bytes;
    0: not known."""

    name: str
    #: Distinguishes those of the same name.
    namespace: str
    #: The machine that it is on; "": not known.
    node: str = ""
    cpu_used: float = 0.0
    cpu_total: float = 0.0
    memory_used: int = 0
    memory_total: int = 0
    disk_used: int = 0
    disk_total: int = 0


#: What runs now for the user with this id. It answers within some seconds.
WorkloadsOf = Callable[[str], Awaitable[Sequence[Workload]]]
