"""The client of Kubernetes' API server: its address and our credentials
(:mod:`.credentials`), its calls (:mod:`.api`), its WebSockets (:mod:`.streams` over
:mod:`.connecting`), and the meaning of its refusals (:mod:`.refusals`)."""

from control.compute.kubernetes.client.api import Api, ItemT
from control.compute.kubernetes.client.credentials import Source, find
from control.compute.kubernetes.client.refusals import GRANT, Refused, translated
from control.compute.kubernetes.client.streams import open_stream

__all__ = [
    "GRANT",
    "Api",
    "ItemT",
    "Refused",
    "Source",
    "find",
    "open_stream",
    "translated",
]
