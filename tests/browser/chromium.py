"""A headless Chromium that a test drives, by its DevTools protocol.

It has a profile of its own, without a sandbox (tests run as root) and without anything
that it would fetch for itself. It dies with the test's process, whatever ends that.

For root it has a network of its own, too: Chromium ends what it is loading whenever an
address of the machine comes or goes (``ERR_NETWORK_CHANGED``), and other tests make
containers. The ports of the addresses that it opens are passed on from there.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import browser_files
import trio
from checks import wait_for
from lifeline import Lifeline
from limits import HANG_SECONDS
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    # Loopback alone, a port that is free.
    "--remote-debugging-port=0",
)
LISTENS = re.compile(r"DevTools listening on (ws://\S+)")
PORT = re.compile(r"127\.0\.0\.1:(\d+)")
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "alone")
RELAYED_BYTES = 256 * 1024


class Failed(Exception):
    """The browser refused a command, or a page's script failed."""


class Chromium:
    """Its pages are opened with :meth:`open`, and end with it."""

    def __init__(
        self, connection: WebSocketConnection, network: Network, nursery: trio.Nursery
    ) -> None:
        self._connection = connection
        self._network = network
        self._nursery = nursery
        self._relayed: set[int] = set()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def open(self, url: str) -> Page:
        """A page in a tab of its own, when all that it names has been loaded. It reaches
        the ports of 127.0.0.1 that are in ``url``."""
        if self._network.process:
            for port in {int(found) for found in PORT.findall(url)} - self._relayed:
                self._relayed.add(port)
                await self._nursery.start(relay, self._network, port)
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, attached["sessionId"])
        self._pages[attached["sessionId"]] = page
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.call(f"{domain}.enable")
        answer = await page.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise Failed(f"{url}: {answer['errorText']}")
        with trio.fail_after(HANG_SECONDS):
            await page.loaded.wait()
        return page

    async def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        sender, receiver = trio.open_memory_channel[dict[str, Any]](1)
        self._waiting[number] = sender
        try:
            with trio.fail_after(HANG_SECONDS):
                await self._connection.send_message(json.dumps(message))
                answer = await receiver.receive()
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise Failed(f"{method}: {answer['error']['message']}")
        found: dict[str, Any] = answer["result"]
        return found

    async def listen(self) -> None:
        """Hand out what the browser says, until it goes."""
        while True:
            try:
                message = json.loads(await self._connection.get_message())
            except ConnectionClosed:
                return
            if "id" in message:
                if message["id"] in self._waiting:
                    self._waiting[message["id"]].send_nowait(message)
            elif page := self._pages.get(message.get("sessionId", "")):
                page.note(message["method"], message["params"])


class Page:
    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        self.loaded = trio.Event()
        #: What its scripts threw, and what the browser complained about.
        self.complaints: list[str] = []
        #: Every address that it asked for.
        self.asked: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self._browser.call(method, self._session, **parameters)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of what it promises."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise Failed(_story(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Until a JavaScript expression is true; it is looked at before every frame."""
        wait = (
            "new Promise((done) => { const look = () =>"
            f" ({condition}) ? done() : requestAnimationFrame(look); look(); }})"
        )
        try:
            await self.evaluate(wait)
        except trio.TooSlowError:
            text = await self.evaluate("document.body.innerText")
            said = f"never: {condition}; {self.complaints}; the page shows:\n{text}"
            raise AssertionError(said) from None

    async def type(self, text: str) -> None:
        """Press the key of each character, whatever has the focus."""
        for character in text:
            enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
            key = enter if character == "\r" else {"key": character}
            await self.call("Input.dispatchKeyEvent", type="keyDown", text=character, **key)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(_story(about["exceptionDetails"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.asked.append(about["url"])


def _story(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


@dataclass(frozen=True)
class Network:
    """That of a process; of ours if that is 0."""

    process: int

    def socket(self, make: Callable[[], socket.socket]) -> socket.socket:
        """What ``make`` makes there. A socket stays where it was made."""
        made: list[socket.socket | BaseException] = []

        def enter() -> None:
            try:
                if self.process:
                    with open(f"/proc/{self.process}/ns/net", "rb") as there:
                        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), 0):
                            raise OSError(ctypes.get_errno(), "setns")
                made.append(make())
            except BaseException as error:
                made.append(error)

        # The thread is there to its end.
        thread = Thread(target=enter)
        thread.start()
        thread.join()
        if isinstance(made[0], BaseException):
            raise made[0]
        return made[0]


async def relay(
    network: Network, port: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Pass the connections to a port of 127.0.0.1 there on to the same port here."""
    made = network.socket(lambda: socket.create_server(("127.0.0.1", port), backlog=128))
    made.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(made))
    await trio.serve_listeners(
        functools.partial(_pass_on, port), [listener], task_status=task_status
    )


async def _pass_on(port: int, theirs: trio.SocketStream) -> None:
    try:
        ours = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return  # Who connected sees an end, and no refusal.
    async with ours, trio.open_nursery() as nursery:
        nursery.start_soon(_copy, theirs, ours)
        await _copy(ours, theirs)
        # Nobody speaks to a server that has ended.
        nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        while data := await source.receive_some(RELAYED_BYTES):
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await target.aclose()


@contextmanager
def running(directory: Path) -> Iterator[tuple[str, Network]]:
    """The address of a browser, whose files are all in ``directory``, and its network.
    Nothing of it is left after the block but its log."""
    directory.mkdir()
    profile, log = directory / "profile", directory / "chromium.log"
    alone = ALONE if os.geteuid() == 0 else ()
    program = [*alone, "env", f"HOME={directory}", browser_files.browser()]
    keeper = Lifeline(
        [*program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        log=log,
        directory=directory,
    )

    def address() -> str:
        said = log.read_text(errors="replace")
        if found := LISTENS.search(said):
            return found[1]
        assert not keeper.ended, f"no browser: {said[-2000:]}"
        return ""

    try:
        found = wait_for(address, "the browser") or ""
        yield found, Network(keeper.pid if alone else 0)
    finally:
        keeper.kill()
        # Its other processes end when they miss the first.
        wait_for(lambda: not _processes(profile), "end of the browser")
        wait_for(lambda: _removed(profile), "end of the browser's files")


def _removed(directory: Path) -> bool:
    """A thread of a process that has no command line any more may still be making a file."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def _processes(profile: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(profile) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # It has ended.
    return found


@asynccontextmanager
async def connected(address: str, network: Network) -> AsyncIterator[Chromium]:
    parts = urlsplit(address)
    to = (parts.hostname or "", parts.port or 0)
    made = network.socket(lambda: socket.create_connection(to, HANG_SECONDS))
    made.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(made))
    try:
        async with trio.open_nursery() as nursery:
            connection = await wrap_client_stream(
                nursery, stream, parts.netloc, parts.path, max_message_size=MESSAGE_BYTES_MAX
            )
            browser = Chromium(connection, network, nursery)
            nursery.start_soon(browser.listen)
            yield browser
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)
