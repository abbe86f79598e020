"""A small client of the API server on trio: for the stand-in kubelet, and for tests.

It shares no code with what is tested. Objects are plain dicts, as JSON has them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import httpx
import trio
from apiserver import Identity
from limits import HANG_SECONDS

Object = dict[str, Any]

RETRY_SECONDS = 0.1
CONFLICTS_MAX = 3

STRATEGIC = "application/strategic-merge-patch+json"


class Refused(Exception):
    """The API server said no. ``status`` is the HTTP status, ``reason`` its word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


class Api:
    """Calls as one identity. An async context manager."""

    def __init__(self, identity: Identity) -> None:
        self._client = httpx.AsyncClient(
            base_url=identity.server,
            headers={"Authorization": f"Bearer {identity.token}"},
            verify=identity.tls(),
            timeout=HANG_SECONDS,
            limits=httpx.Limits(max_connections=200),
            trust_env=False,
        )

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True):
            await self._client.aclose()

    async def get(self, path: str, **params: str) -> Object:
        return await self._call("GET", path, params=params)

    async def items(self, path: str, **params: str) -> list[Object]:
        found: list[Object] = (await self.get(path, **params))["items"]
        return found

    async def create(self, path: str, body: Object) -> Object:
        return await self._call("POST", path, json=body)

    async def patch(self, path: str, body: Object, kind: str = STRATEGIC) -> Object:
        content = json.dumps(body)
        return await self._call("PATCH", path, content=content, headers={"Content-Type": kind})

    async def delete(self, path: str, options: Object | None = None) -> Object:
        return await self._call("DELETE", path, json=options or {})

    async def _call(self, method: str, path: str, **arguments: Any) -> Object:
        answer = await self._client.request(method, path, **arguments)
        _check(answer)
        found: Object = answer.json()
        return found

    async def watch(
        self, path: str, version: str, changed: Callable[[str, Object], bool], **params: str
    ) -> None:
        """Give ``changed`` each event after ``version`` until it returns True or the
        server ends the watch.

        Raises:
            Refused: 410 when the server no longer knows ``version``.
            httpx.TransportError: the connection broke.
        """
        asked = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "1", **params}
        timeout = httpx.Timeout(HANG_SECONDS, read=None)
        failure: Refused | None = None
        # httpx reads through generators within generators, which only an exception from
        # the innermost ends in good order: so the loop is cancelled and not left.
        with trio.CancelScope() as scope:
            async with self._client.stream("GET", path, params=asked, timeout=timeout) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    _check(answer)
                async for line in answer.aiter_lines():
                    if scope.cancel_called:
                        continue
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        about = event["object"]
                        failure = Refused(about["code"], about["reason"], about["message"])
                        scope.cancel()
                    elif event["type"] != "BOOKMARK" and changed(event["type"], event["object"]):
                        scope.cancel()
        if failure is not None:
            raise failure

    async def observe(
        self, path: str, changed: Callable[[dict[str, Object]], bool], **params: str
    ) -> None:
        """Keep all objects of a collection at hand, by uid, and call ``changed`` after
        each change until it returns True. Outlives restarts of the server and 410."""
        done = False
        while not done:
            try:
                listed = await self.get(path, **params)
                present = {item["metadata"]["uid"]: item for item in listed["items"]}
                if changed(present):
                    return

                def note(kind: str, item: Object, present: dict[str, Object] = present) -> bool:
                    nonlocal done
                    uid = item["metadata"]["uid"]
                    if kind == "DELETED":
                        present.pop(uid, None)
                    else:
                        present[uid] = item
                    done = changed(present)
                    return done

                await self.watch(path, listed["metadata"]["resourceVersion"], note, **params)
            except httpx.TransportError:
                await trio.sleep(RETRY_SECONDS)
            except Refused as error:
                if error.status not in (410, 429, 500, 503):
                    raise
                await trio.sleep(RETRY_SECONDS)

    async def wait(
        self,
        path: str,
        condition: Callable[[list[Object]], object],
        *,
        seconds: float = HANG_SECONDS,
        **params: str,
    ) -> list[Object]:
        """The objects of a collection as soon as ``condition`` is true of them.

        Raises:
            TimeoutError: says what there was instead.
        """
        last: list[Object] = []

        def changed(present: dict[str, Object]) -> bool:
            nonlocal last
            last = list(present.values())
            return bool(condition(last))

        with trio.move_on_after(seconds):
            await self.observe(path, changed, **params)
            return last
        raise TimeoutError(f"{path} is still {json.dumps([_brief(item) for item in last])}")

    async def wait_one(self, path: str, condition: Callable[[Object], object]) -> Object:
        """The object at ``path`` as soon as it exists and ``condition`` is true of it."""
        collection, _, name = path.rpartition("/")
        found = await self.wait(
            collection,
            lambda items: items and condition(items[0]),
            fieldSelector=f"metadata.name={name}",
        )
        return found[0]


async def insist(call: Callable[[], Awaitable[object]]) -> None:
    """Repeat a call until it succeeds, or there is nothing (any more) to do it to."""
    conflicts = 0
    while True:
        try:
            await call()
            return
        except httpx.TransportError:
            pass
        except Refused as error:
            conflicts += error.status == 409
            # A conflict is a race with another writer, or says that a precondition
            # does not hold: that stays.
            if error.status == 404 or conflicts > CONFLICTS_MAX:
                return
            if error.status not in (409, 429, 500, 503):
                raise
        await trio.sleep(RETRY_SECONDS)


def condition(item: Object, kind: str) -> str:
    """The status of the condition ``kind`` of an object: True, False, Unknown or ""."""
    for found in item.get("status", {}).get("conditions") or ():
        if found["type"] == kind:
            return str(found["status"])
    return ""


def is_ready(item: Object) -> bool:
    return condition(item, "Ready") == "True"


def _brief(item: Object) -> Object:
    about = item["metadata"]
    return {"name": about["name"], "status": item.get("status")}


def _check(answer: httpx.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        about = answer.json()
        raise Refused(answer.status_code, about.get("reason", ""), about.get("message", ""))
    except ValueError:
        raise Refused(answer.status_code, "", answer.text[:500]) from None
