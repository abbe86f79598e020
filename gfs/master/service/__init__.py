"""The service of a master: the sessions of its connections, and the handlers of requests.

:mod:`.client_session` and :mod:`.chunkserver_session` are the two kinds of connections.
Requests that are more than a look-up or a single mutation have files of their own:
:mod:`.uploads` (new files), :mod:`.snapshots`, :mod:`.fsck`, :mod:`.disk_usage`, :mod:`.status`,
:mod:`.drain_command` and :mod:`.operator_commands`. :mod:`.metrics` has the metrics.

Decisions are made in the rooms below; the code here waits for sockets, disks and clocks.
"""

from gfs.master.service.chunkserver_session import ChunkserverSession, forget
from gfs.master.service.client_session import ANSWERS, Answer, ClientSession, send_failure
from gfs.master.service.drain_command import drained, plan_drain
from gfs.master.service.metrics import families
from gfs.master.service.snapshots import Snapshots
from gfs.master.service.status import cluster_totals, status_reply

__all__ = [
    "ANSWERS",
    "Answer",
    "ChunkserverSession",
    "ClientSession",
    "Snapshots",
    "cluster_totals",
    "drained",
    "families",
    "forget",
    "plan_drain",
    "send_failure",
    "status_reply",
]
