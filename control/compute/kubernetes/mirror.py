"""A copy of all objects of one kind that are ours.

It lists them, then watches from the list's version on. A watch that ends properly is opened
again where it ended, or, from time to time, after another list, in case an event was
missed. After everything else (410 Gone, a server that was restarted or is silent, a
connection that broke, an invalid answer) it lists again, and compares that with the copy.

Pings detect a silent server: within :data:`PING_SECONDS` + :data:`PONG_SECONDS`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Generic

import msgspec
import trio
import trio_websocket

from control.compute.backend import BackendUnavailable
from control.compute.kubernetes.client import Api, ItemT, Refused, open_stream, translated
from control.compute.kubernetes.shapes import Happening, Meta, Problem
from gfs.errors import GfsError

log = logging.getLogger("control.compute")

#: How long a watch lasts at most; randomly less, so that not all end together.
WATCH_SECONDS = 300.0
#: How often to list, if nothing goes wrong.
LIST_SECONDS = 600.0
PING_SECONDS = 10.0
PONG_SECONDS = 10.0
#: The pause before the next attempt.
AGAIN_SECONDS = 0.2
AGAIN_SECONDS_MAX = 10.0
#: The largest message, with one object: etcd takes up to 1.5 MiB.
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
#: How many messages wait at most.
MESSAGES = 64


class _About(msgspec.Struct):
    metadata: Meta


class Mirror(Generic[ItemT]):
    """Objects of one kind, by their namespace (a namespace by itself) and their name.

    Args:
        changed: Called after each change with the namespaces that may have changed, and
            whether this was a list.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        kind: type[ItemT],
        labels: str,
        changed: Callable[[set[str], bool], None],
    ) -> None:
        self._api = api
        self._path = path
        self._kind: type[ItemT] = kind
        self._labels = labels
        self._changed = changed
        self._items: dict[str, dict[str, ItemT]] = {}
        #: The version after which the next watch begins; "": list first.
        self._version = ""
        self._listed_at = 0.0
        self.is_listed = False

    @property
    def namespaces(self) -> set[str]:
        return set(self._items)

    def of(self, namespace: str) -> list[ItemT]:
        return list(self._items.get(namespace, {}).values())

    async def run(self) -> None:
        """Follow the objects until cancelled."""
        failures = 0
        while True:
            try:
                with translated():
                    if not self._version or trio.current_time() - self._listed_at > LIST_SECONDS:
                        await self._list()
                    await self._watch()
                failures = 0
            except GfsError as error:
                self._version = ""
                failures += 1
                level = logging.WARNING if failures in (1, 10) else logging.DEBUG
                log.log(level, "kubernetes: restarting the watch of %s: %s", self._path, error)
            await trio.sleep(min(AGAIN_SECONDS * 2 ** min(failures, 10), AGAIN_SECONDS_MAX))

    async def _list(self) -> None:
        items, version = await self._api.list(self._kind, self._labels)
        before = self.namespaces
        self._items = {}
        for item in items:
            self._put(item)
        self._version = version
        self._listed_at = trio.current_time()
        self.is_listed = True
        self._changed(before | self.namespaces, True)

    async def _watch(self) -> None:
        """Watch until the stream ends properly, or is old enough."""
        query = {
            "watch": "true",
            "labelSelector": self._labels,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
        }
        with trio.move_on_after(WATCH_SECONDS * random.uniform(0.5, 1.0)):
            async with open_stream(
                self._api,
                self._path,
                query.items(),
                message_bytes_max=MESSAGE_BYTES_MAX,
                messages=MESSAGES,
            ) as stream:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_ping, stream)
                        await self._read(stream)
                        nursery.cancel_scope.cancel()
                except* trio_websocket.ConnectionClosed:
                    raise BackendUnavailable("the connection broke") from None

    async def _read(self, stream: trio_websocket.WebSocketConnection) -> None:
        while True:
            try:
                message = await stream.get_message()
            except trio_websocket.ConnectionClosed as closed:
                if closed.reason is not None and closed.reason.code in (1000, 1001):
                    return
                raise
            self._take(message)

    def _take(self, message: str | bytes) -> None:
        try:
            happening = msgspec.json.decode(message, type=Happening)
            if happening.type == "ERROR":
                problem = msgspec.json.decode(happening.object, type=Problem)
                raise Refused(problem.code or 500, problem)
            if happening.type == "BOOKMARK":
                about = msgspec.json.decode(happening.object, type=_About).metadata
                self._version = about.resource_version
                return
            item = msgspec.json.decode(happening.object, type=self._kind)
        except msgspec.DecodeError as error:
            raise BackendUnavailable(f"a message of a watch cannot be read: {error}") from None
        about = item.metadata
        self._version = about.resource_version
        if happening.type == "DELETED":
            self._drop(item)
        else:
            self._put(item)
        self._changed({_namespace(item)}, False)

    def _put(self, item: ItemT) -> None:
        self._items.setdefault(_namespace(item), {})[item.metadata.name] = item

    def _drop(self, item: ItemT) -> None:
        namespace = _namespace(item)
        others = self._items.get(namespace, {})
        others.pop(item.metadata.name, None)
        if not others:
            self._items.pop(namespace, None)


def _namespace(item: ItemT) -> str:
    return item.metadata.namespace or item.metadata.name


async def _ping(stream: trio_websocket.WebSocketConnection) -> None:
    while True:
        await trio.sleep(PING_SECONDS)
        with trio.move_on_after(PONG_SECONDS):
            await stream.ping()
            continue
        raise BackendUnavailable(f"silent for {PING_SECONDS + PONG_SECONDS:g} s")
