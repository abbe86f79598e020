"""Files in the console, in a real browser on a real cluster."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import films
import httpx
import pytest
import trio
from checks import get, wait_for
from chromium import Chromium, Page
from cloud import PASSWORD, Cloud
from console_page import ROWS, WIDTHS, Console
from limits import HANG_SECONDS
from signals import send

import gfs

#: A name that would be markup, a path and a query if it were not quoted everywhere.
HOSTILE = "<img src=x onerror=alert(1)> %2e?a=b#c&amp;'\".svg"
SCRIPTED = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" onload="top.hacked=1">'
    b'<script>top.hacked = 1</script><circle r="40"/></svg>'
)
LARGE = 1 << 30
#: More than the parts of 16 MiB that an upload may have.
HUGE = 200 << 30
MIB = 1 << 20
#: What is sent waits in ``window.held``, until ``window.release()`` sends it.
HOLD_UPLOADS = """(() => {
    const { send } = XMLHttpRequest.prototype;
    window.held = [];
    XMLHttpRequest.prototype.send = function (data) {
        window.held.push({ data, go: () => send.call(this, data) });
    };
    window.release = () => {
        XMLHttpRequest.prototype.send = send;
        window.held.forEach(({ go }) => go());
    };
})()"""
#: The next request whose address matches waits for ``window.release()``.
HOLD_REQUEST = """(() => {
    const { fetch } = window;
    window.isHeld = false;
    window.fetch = async (address, options) => {
        if (!PATTERN.test(address)) return fetch(address, options);
        window.fetch = fetch;
        await new Promise((done) => Object.assign(window, { isHeld: true, release: done }));
        return fetch(address, options);
    };
})()"""
#: How far what was there has been moved, by nobody's act.
WATCH_MOVES = """(() => {
    window.moved = 0;
    new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => {
        window.moved += value;
    })).observe({ type: "layout-shift", buffered: true });
})()"""
#: Where all is that the page shows, but what says that the server is away.
PLACES = """
[...document.querySelectorAll("#app *:not(.banner, .banner *)")]
    .filter((each) => each.checkVisibility({ visibilityProperty: true }))
    .map((each) => {
        const { x, y, width, height } = each.getBoundingClientRect();
        return [each.cloneNode().outerHTML, x, y, width, height].join(" ");
    })
"""
#: What can be read or pressed, and is below what says that.
COVERED = """
[...document.querySelectorAll("#app :is(h1, h2, a, p, button):not(.banner *)")].filter((each) => {
    const [one, other] = [each, document.querySelector(".banner")]
        .map((each) => each.getBoundingClientRect());
    return each.checkVisibility({ visibilityProperty: true }) && one.left < other.right
        && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
}).map((each) => each.outerHTML)
"""
#: Every request is answered so, until ``window.usual()``; what is looked at again is so at once.
ANSWER_ALL = """(() => {
    const { fetch } = window;
    const look = () => document.dispatchEvent(new Event("visibilitychange"));
    window.fetch = async () => ANSWER;
    window.usual = () => {
        window.fetch = fetch;
        look();
    };
    look();
})()"""
#: Of any folder or trash, as if it had over 500,000 entries.
REFUSE_ORDERS = """(() => {
    const { fetch } = window;
    window.refused = 0;
    window.fetch = async (address, options) => {
        if (!/(entries|trash)[?]/.test(address)) return fetch(address, options);
        if (/sort=(name|path)&order=asc/.test(address) && !/match=/.test(address))
            return fetch(address, options);
        window.refused += 1;
        return new Response('{"error": "over 500,000 entries"}', { status: 400 });
    };
})()"""
#: How many requests had been sent when the page was first laid out for a script.
WATCH_LAYOUT = """(() => {
    const { fetch } = window;
    const { scrollTo } = Element.prototype;
    let count = 0;
    window.fetch = (...args) => {
        count += 1;
        return fetch(...args);
    };
    Element.prototype.scrollTo = function (...args) {
        window.sent ??= count;
        scrollTo.apply(this, args);
    };
})()"""
#: Until what is there has been painted.
PAINTED = "new Promise((done) => setTimeout(() => requestAnimationFrame(done), 50))"
#: The servers' last pass of verifying began long ago, and has only just ended.
OLD_SCRUB = """(() => {
    const { fetch } = window;
    window.fetch = async (address, options) => {
        const answer = await fetch(address, options);
        if (!/locate/.test(address)) return answer;
        const said = await answer.json();
        for (const { replicas } of said.chunks)
            for (const each of replicas)
                Object.assign(each, {
                    scrub_whole_began_at: 1000, scrub_ended_at: 4e9, scrub_began_at: 4e9,
                });
        return new Response(JSON.stringify(said));
    };
})()"""
#: Each part is sent in less time than the speed is measured in; and the third waits for ``go``.
FAST_PARTS = """(() => {
    const { send } = XMLHttpRequest.prototype;
    let [clock, count] = [1000, 0];
    performance.now = () => clock;
    XMLHttpRequest.prototype.send = function (data) {
        clock += 200;
        count += 1;
        if (count === 3) window.go = () => send.call(this, data);
        else send.call(this, data);
    };
    window.usual = () => {
        XMLHttpRequest.prototype.send = send;
        delete performance.now;
    };
})()"""


@pytest.fixture
def owner(cloud: Cloud) -> httpx.Client:
    """A user with the storage namespace ``photos-N``."""
    client, user_id = cloud.make_user()
    # What the tests need to know of it.
    client.headers["x-space"] = f"photos-{user_id}"
    client.headers["x-username"] = client.get("/api/session").json()["username"]
    make_space(client, client.headers["x-space"])
    return client


@pytest.fixture
async def console(browser: Chromium, cloud: Cloud, owner: httpx.Client) -> AsyncIterator[Console]:
    """In that storage namespace."""
    made = await Console.open(browser, cloud.url, f"#/files/{owner.headers['x-space']}")
    await made.login(owner.headers["x-username"], PASSWORD)
    yield made
    made.check_manners()


def make_space(client: httpx.Client, name: str) -> None:
    client.post("/storage/namespaces", json={"name": name}).raise_for_status()


def names(client: httpx.Client, space: str = "") -> list[str]:
    query = {"namespace": space or client.headers["x-space"]}
    answer = client.get("/storage/files", params=query)
    return [each["path"] for each in answer.json()]


def put(client: httpx.Client, path: str, data: bytes) -> None:
    query = {"namespace": client.headers["x-space"], "name": path}
    client.post("/storage/upload", params=query, content=data).raise_for_status()


def remove(client: httpx.Client, path: str) -> None:
    query = {"namespace": client.headers["x-space"], "name": path}
    client.delete("/storage/delete", params=query).raise_for_status()


def show(client: httpx.Client, visibility: int) -> None:
    path = f"/storage/namespaces/{client.headers['x-space']}"
    client.put(path, json={"visibility": visibility}).raise_for_status()


async def throttle(console: Console, upload: int = -1, *, offline: bool = False) -> None:
    """``upload`` in bytes per second; without arguments as it was."""
    options = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": upload}
    await console.page.call("Network.emulateNetworkConditions", offline=offline, **options)


async def wait_files(owner: httpx.Client, count: int) -> None:
    """Until so many count towards the quota: parts of uploads do, as well."""

    def look() -> bool:
        return bool(owner.get("/api/quota").json()["files"]["used"] == count)

    await trio.to_thread.run_sync(lambda: wait_for(look, "deletion of the parts"))


async def downloaded(there: Path, data: bytes) -> None:
    def look() -> bool:
        return there.exists() and there.read_bytes() == data

    await trio.to_thread.run_sync(lambda: wait_for(look, "download"))


async def home_of(fs: gfs.Client, owner: httpx.Client) -> str:
    """The directory of its storage namespace."""
    spaces = [each.path async for each in fs.scan("/storage")]
    (home,) = [each for each in spaces if each.startswith(f"/storage/{owner.headers['x-space']}.")]
    return home


def anybody(address: str) -> httpx.Response:
    return httpx.get(address, timeout=HANG_SECONDS)


@pytest.mark.smoke
async def test_files_and_folders_are_uploaded_and_downloaded(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    await console.sees("This folder is empty")
    await console.picture("files-none")
    folder = tmp_path / "trip"
    (folder / "day one").mkdir(parents=True)
    (folder / "map.txt").write_text("here")
    (folder / "day one" / "ä.txt").write_text("there")
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(3 << 20))

    await console.choose_files([big])
    await console.sees("big.bin")
    await console.drop([folder])
    await console.until(f"{ROWS}.includes('trip')")
    await console.sees("3 of 3")
    await console.picture("uploads")
    assert names(owner) == ["big.bin", "trip/day one/ä.txt", "trip/map.txt"]
    # A file over what does not take it is not the browser's to open, in the place of the page.
    await console.evaluate(
        "addEventListener('dragover', (event) => { window.isKept = event.defaultPrevented; })"
    )
    await console.drop([big], ".side")
    await console.until("window.isKept === true")
    await console.sees("3 of 3")

    # Again: nothing is replaced that nobody asked to replace.
    await console.choose_files([big])
    await console.sees("There is a file of this name")
    await console.press("Replace: big.bin")
    await console.misses("There is a file of this name")
    console.page.complaints.clear()  # the browser's own of the 409
    await console.press("Clear the list")

    await console.press("trip")
    await console.until(f"{ROWS}.join() === 'day one,map.txt'")
    downloads = await console.download_to(tmp_path / "downloads")
    await console.act("map.txt", "Download")
    await downloaded(downloads / "map.txt", b"here")
    addresses = [each for each in console.page.asked if "/storage/download/" in each]
    assert len(addresses) == 1
    assert anybody(addresses[0]).content == b"here"
    await console.press("Log out")
    await console.sees("Password")

    def is_refused() -> bool:
        return anybody(addresses[0]).status_code == 401

    await trio.to_thread.run_sync(lambda: wait_for(is_refused, "end of the session"))


async def test_names_that_are_taken_are_replaced_kept_or_skipped(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    names_ = ["a.txt", "b.txt", "c.tar.gz", ".env"]
    for name in names_:
        (tmp_path / name).write_text(f"new {name}")
        put(owner, name, b"old")
    put(owner, "a (2).txt", b"old")
    files = [tmp_path / name for name in names_]

    async def upload() -> None:
        await console.choose_files(files)
        await console.sees("4 names are taken")

    await upload()
    await console.picture("uploads-taken")
    await console.press("Skip: b.txt")
    await console.sees("3 names are taken")
    await console.press("Skip all")
    await console.misses("Uploads")
    assert names(owner) == sorted([*names_, "a (2).txt"])

    await upload()
    await console.press("Keep all")
    await console.sees("4 of 4")
    kept = [".env (2)", "a (3).txt", "b (2).txt", "c.tar (2).gz"]
    assert names(owner) == sorted([*names_, "a (2).txt", *kept])
    assert get(owner, owner.headers["x-space"], "a (3).txt") == b"new a.txt"
    await console.press("Clear the list")

    await upload()
    await console.press("Replace all")
    await console.sees("4 of 4")
    console.page.complaints.clear()  # the browser's own of each 409
    for name in names_:
        assert get(owner, owner.headers["x-space"], name) == f"new {name}".encode()


async def test_files_are_renamed_moved_copied_and_deleted(
    console: Console, owner: httpx.Client
) -> None:
    for path in ("a.txt", "b.txt", "in/c.txt"):
        put(owner, path, b"x")
    await console.go(f"#/files/{owner.headers['x-space']}?sort=name&order=desc")
    await console.until(f"{ROWS}.join() === 'in,b.txt,a.txt'")

    await console.act("a.txt", "Rename…", "Save", {"New name": "z.txt"})
    await console.until(f"{ROWS}.join() === 'z.txt,in,b.txt'")

    for name in ("Select in", "Select z.txt"):
        await console.evaluate(f"document.querySelector('[aria-label=\"{name}\"]').click()")
    await console.press("Copy…")
    await console.answer("Copy", {"Folder": "copies"})
    await console.until(f"{ROWS}.join() === 'z.txt,in,copies,b.txt'")
    assert names(owner) == ["b.txt", "copies/in/c.txt", "copies/z.txt", "in/c.txt", "z.txt"]

    await console.act("in", "Move…", "Move", {"Folder": "copies/deep"})
    await console.until(f"{ROWS}.join() === 'z.txt,copies,b.txt'")
    # What went wrong is said in the dialog, and nothing is lost.
    await console.act("z.txt", "Rename…", "Save", {"New name": "b.txt"})
    await console.until("document.querySelector('dialog [role=alert]')")
    console.page.complaints.clear()  # the browser's own of the 409
    await console.press("Cancel", "dialog")

    await console.act("copies", "Delete", "Delete")
    await console.until(f"{ROWS}.join() === 'z.txt,b.txt'")
    assert names(owner) == ["b.txt", "z.txt"]


async def test_what_users_upload_is_shown_and_never_run(
    console: Console, owner: httpx.Client
) -> None:
    page = b"<script>top.hacked = 1</script><b>bold</b>"
    for path, data in ((HOSTILE, SCRIPTED), ("page.html", page), ("in/a.txt", b"x")):
        put(owner, path, data)
    await console.go(f"#/files/{owner.headers['x-space']}?sort=name&order=desc")
    await console.until(f"{ROWS}.length === 3")
    assert HOSTILE in await console.evaluate(ROWS)
    assert await console.evaluate("document.querySelectorAll('main img').length") == 0

    await console.press(HOSTILE)
    await console.until("document.querySelector('dialog img')?.naturalWidth === 40")
    await console.picture("preview")
    await console.press("Close", "dialog")
    await console.press("page.html")
    await console.until("document.querySelector('dialog pre')?.innerText.includes('<b>bold')")
    await console.picture("preview-text")
    await console.key("Escape")
    await console.until("!document.querySelector('dialog')")
    assert await console.evaluate("window.hacked") is None


class Answers:
    """What a page was answered, to those addresses that have this in them."""

    def __init__(self, page: Page, part: str) -> None:
        self.ranges: list[str] = []
        self.kinds: set[str] = set()
        note = page.note

        def noted(method: str, about: dict[str, Any]) -> None:
            note(method, about)
            if method == "Network.responseReceived" and part in about["response"]["url"]:
                headers = {k.lower(): v for k, v in about["response"]["headers"].items()}
                self.ranges.append(headers.get("content-range", ""))
                self.kinds.add(headers["content-type"])

        page.note = noted  # type: ignore[method-assign]


async def test_sound_is_played_from_where_one_likes(console: Console, owner: httpx.Client) -> None:
    data = films.sound(300)
    put(owner, "long.wav", data)
    await console.go(f"#/files/{owner.headers['x-space']}?sort=name&order=desc")
    answers = Answers(console.page, "long.wav")
    await console.press("long.wav")
    player = "document.querySelector('dialog audio')"
    await console.until(f"{player}?.duration === 300")
    await console.picture("preview-audio")
    await seek(console, player, 280)
    assert answers.kinds == {"audio/wav"}
    assert jumped(answers.ranges, len(data)), answers.ranges


async def test_a_film_is_played_from_where_one_likes(console: Console, owner: httpx.Client) -> None:
    colors = ("#ff0000", "#00ff00", "#0000ff", "#ffff00")
    pictures = [await console.evaluate(films.PICTURE % color) for color in colors]
    frames = [films.key_frame(base64.b64decode(each)) for each in pictures]
    data = films.film(frames * 24)
    assert len(data) > 16 << 20
    put(owner, "long.webm", data)
    await console.go(f"#/files/{owner.headers['x-space']}?sort=name&order=desc")
    answers = Answers(console.page, "long.webm")
    await console.press("long.webm")
    player = "document.querySelector('dialog video')"
    await console.until(f"{player}?.duration === 96 && {player}.videoWidth === 640")
    await console.picture("preview-video")
    # The frame of that second is seen.
    pixel = (
        "(() => { const seen = new OffscreenCanvas(640, 480).getContext('2d');"
        f" seen.drawImage({player}, 0, 0); return [...seen.getImageData(320, 50, 1, 1).data]; }})()"
    )
    for second, expected in ((90, (0, 0, 255)), (5, (0, 255, 0))):
        await seek(console, player, second + 0.5)
        seen = await console.evaluate(pixel)
        assert all(abs(a - b) < 40 for a, b in zip(seen, expected, strict=False)), (second, seen)
    assert answers.kinds == {"video/webm"}
    assert jumped(answers.ranges, len(data)), answers.ranges


async def seek(console: Console, player: str, second: float) -> None:
    await console.evaluate(f"void ({player}.currentTime = {second})")
    await console.until(f"!{player}.seeking && {player}.readyState >= 2")
    assert abs(await console.evaluate(f"{player}.currentTime") - second) < 0.1


def jumped(ranges: list[str], size: int) -> bool:
    """Whether its end was asked for without all that is before it."""
    starts = [int(each.removeprefix("bytes ").partition("-")[0]) for each in ranges if each]
    return any(start > size // 2 for start in starts)


async def test_the_address_of_a_pdf_has_no_token(console: Console, owner: httpx.Client) -> None:
    """Its scripts run in the browser's viewer, and can read it."""
    space = owner.headers["x-space"]
    data = films.document("Chunks")
    put(owner, "a.pdf", data)
    for visibility in (0, 2):
        show(owner, visibility)
        await console.go("#/containers")
        await console.go(f"#/files/{space}")
        await console.until(f"{ROWS}.length === 1")
        await console.press("a.pdf")
        await console.until("document.querySelector('dialog iframe')")
        address = await console.evaluate("document.querySelector('dialog iframe').src")
        assert "token" not in address
        answer = anybody(address)
        assert answer.content == data
        assert answer.headers["content-type"] == "application/pdf"
        assert answer.headers["content-disposition"].startswith("inline")
        await console.picture("preview-pdf")
        await console.key("Escape")
        await console.until("!document.querySelector('dialog')")
        # The link ends with the dialog.
        await trio.to_thread.run_sync(
            lambda url=address: wait_for(lambda: anybody(url).status_code == 404, "the link's end")
        )


async def test_the_page_goes_on_when_the_server_is_back(console: Console, cloud: Cloud) -> None:
    space = await console.evaluate("location.hash")
    pid = cloud.cluster.ready["control"]["pid"]
    send(pid, 9)
    await console.go("#/files")
    await console.until("document.querySelector('.card, .banner')")
    await console.sees("default")
    await console.misses("The server does not answer")
    await console.go(space)
    await console.sees("This folder is empty")
    console.page.complaints.clear()
    cloud.forget()


async def test_what_was_deleted_is_restored_or_deleted_for_good(
    console: Console, owner: httpx.Client, cloud: Cloud
) -> None:
    for path in ("a.txt", "b.txt", "c/d.txt", "e.txt"):
        put(owner, path, b"first")
        remove(owner, path)
    put(owner, "a.txt", b"second")
    await console.press("Trash")
    await console.sees("c/d.txt")
    await console.picture("trash")

    await console.press("Restore: c/d.txt")
    await console.sees("c/d.txt is restored")
    await console.until("!document.querySelector('tbody').innerText.includes('c/d.txt')")
    # Of several, what cannot be restored does not keep the others from it.
    await console.press("Select all")
    await console.evaluate("document.querySelector('[aria-label=\"Select b.txt\"]').click()")
    await console.sees("2 selected")
    await console.press("Restore what is selected")
    await console.sees("1 of 2 are restored. a.txt stays in the trash:")
    await console.until("!document.querySelector('tbody').innerText.includes('e.txt')")
    await console.sees("0 selected")
    # Something is there by now: it is restored beside that.
    await console.press("Restore: a.txt")
    await console.until("document.querySelector('dialog input')")
    await console.picture("restore-as")
    await console.press("Restore", "dialog")
    await console.until("!document.querySelector('tbody').innerText.includes('a.txt')")
    console.page.complaints.clear()  # the browser's own of the 409
    assert names(owner) == ["a (restored).txt", "a.txt", "c/d.txt", "e.txt"]

    await console.press("Delete for good: b.txt")
    await console.press("Delete for good", "dialog")
    await console.sees("The trash is empty")

    # So many as one has wanted to see are still there after a restore.
    async with gfs.connect(state=cloud.cluster.state) as fs:
        home = await home_of(fs, owner)
        paths = [f"{home}/many/{number:03}" for number in range(250)]
        await fs.put_many([(path, b"") for path in paths])
        await fs.delete_many(paths)
    await console.press("Files", ".tabs")
    await console.press("Trash")
    rows = "document.querySelectorAll('tbody tr').length"
    await console.until(f"{rows} === 200")
    await console.press("Show more")
    await console.until(f"{rows} === 250")
    await console.press("Restore: many/003")
    await console.until(f"{rows} === 249")


async def test_what_is_too_large_for_another_order_is_listed_in_its_own(
    console: Console, owner: httpx.Client, cloud: Cloud
) -> None:
    """The server's refusal (test_storage_trees has it) comes first, and is not asked for again."""
    space = owner.headers["x-space"]
    for name in ("a", "b", "c"):
        put(owner, name, b"x" * len(name))
        remove(owner, name)
        put(owner, f"{name}.txt", b"x")
    await console.go("#/account")
    await console.evaluate(REFUSE_ORDERS)
    await console.go(f"#/files/{space}?sort=size&order=desc")
    await console.sees("so many entries that they are listed by name")
    await console.until(f"{ROWS}.join() === 'a.txt,b.txt,c.txt'")
    await console.fill("Filter", "b")
    await console.go(f"#/trash/{space}")
    await console.sees("it is listed by path, and not by when it was deleted")
    assert await console.evaluate(ROWS) == ["a", "b", "c"]
    await console.press("Restore: b")
    await console.until(f"{ROWS}.join() === 'a,c'")
    assert await console.evaluate("window.refused") == 2


@pytest.mark.parametrize(
    ("place", "late", "others", "comes"),
    [
        ("#/files/{space}", "namespaces$", 2, f"{ROWS}.join() === 'a.txt'"),
        ("#/access", "api.tokens$", 3, "document.querySelectorAll('.part .empty').length === 3"),
    ],
)
async def test_nothing_moves_when_what_is_above_it_comes_late(
    console: Console, owner: httpx.Client, place: str, late: str, others: int, comes: str
) -> None:
    put(owner, "a.txt", b"x")
    await console.go(place.format(space=owner.headers["x-space"]))
    for source in (HOLD_REQUEST.replace("PATTERN", f"/{late}/"), WATCH_MOVES):
        await console.page.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    console.page.loaded = trio.Event()
    console.page.asked.clear()
    await console.page.call("Page.reload")
    await console.page.loaded.wait()
    await console.until("window.isHeld")
    answered = "performance.getEntriesByType('resource').filter((each) => each.initiatorType"
    await console.until(f"{answered} === 'fetch').length === {others}")
    await console.evaluate(PAINTED)
    await console.evaluate("window.release()")
    await console.until(comes)
    await console.evaluate(PAINTED)
    assert await console.evaluate("window.moved") == 0
    paths = [each.split("?")[0] for each in console.page.asked]
    assert len(paths) == len(set(paths)), "each is asked for once"


async def test_what_a_folder_needs_is_asked_for_before_it_is_laid_out(
    console: Console, owner: httpx.Client
) -> None:
    put(owner, "a.txt", b"x")
    await console.page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH_LAYOUT)
    console.page.loaded = trio.Event()
    await console.page.call("Page.reload")
    await console.page.loaded.wait()
    await console.until(f"{ROWS}.join() === 'a.txt'")
    # The entries, where one may write, and whether the session goes on.
    assert await console.evaluate("window.sent") == 3


@pytest.mark.parametrize(
    "answer",
    [
        "Promise.reject(new TypeError('no server'))",
        "new Response('{}', { status: 503 })",
    ],
    ids=["control plane", "master"],
)
async def test_nothing_moves_or_is_covered_while_the_server_is_away(
    console: Console, answer: str
) -> None:
    await console.go("#/files")
    await console.until("document.querySelector('.card')")
    for width in ("laptop", "phone"):
        await console.resize(*WIDTHS[width])
        await console.evaluate(PAINTED)
        places = await console.evaluate(PLACES)
        await console.evaluate(ANSWER_ALL.replace("ANSWER", answer))
        await console.sees("What you see is from before")
        await console.evaluate(PAINTED)
        assert await console.evaluate(PLACES) == places
        assert await console.evaluate(COVERED) == []
        await console.evaluate("window.usual()")
        await console.misses("What you see is from before")
        assert await console.evaluate(PLACES) == places


async def test_on_the_way_back_to_a_folder_its_tabs_are_there(
    console: Console, owner: httpx.Client
) -> None:
    put(owner, "a.txt", b"x")
    await console.press("Trash", ".tabs")
    await console.sees("The trash is empty")
    await console.evaluate(HOLD_REQUEST.replace("PATTERN", "/namespaces$/"))
    await console.press("Files", ".tabs")
    await console.until(f"{ROWS}.join() === 'a.txt'")
    assert await console.evaluate("window.isHeld && !!document.querySelector('.tabs')")
    await console.evaluate("window.release()")


async def test_a_large_upload_goes_on_after_the_connection_was_cut(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    big, whole = tmp_path / "big.bin", hashlib.sha256()
    with big.open("wb") as file:
        for _ in range(LARGE >> 24):
            piece = os.urandom(1 << 20) * 16
            whole.update(piece)
            file.write(piece)
    await console.choose_files([big])
    sent = "(document.querySelector('.uploads li progress')?.value ?? 0)"
    await console.until(f"{sent} > {LARGE // 4}")
    await throttle(console, offline=True)
    await console.until("document.querySelector('[data-state=interrupted]')")
    await console.picture("upload-interrupted")
    await throttle(console)
    # It goes on where it was.
    await console.until("document.querySelector('[data-state=running]')")
    assert await console.evaluate(sent) >= LARGE // 8
    await console.until("document.querySelector('[data-state=done]')")
    console.page.complaints.clear()  # the browser's own of what could not be sent

    def digest() -> str:
        found = hashlib.sha256()
        query = {"namespace": owner.headers["x-space"], "name": "big.bin"}
        with owner.stream("GET", "/storage/download", params=query) as answer:
            for piece in answer.iter_bytes(1 << 20):
                found.update(piece)
        return found.hexdigest()

    assert await trio.to_thread.run_sync(digest) == whole.hexdigest()
    assert names(owner) == ["big.bin"]


async def test_an_upload_shows_its_speed_is_cancelled_and_tried_again(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(40 * MIB))
    await console.evaluate(FAST_PARTS)
    await console.choose_files([big])
    await console.until("!!window.go")
    # 16 MiB and some of the next 16 in 0.4 s.
    row = "document.querySelector('.uploads li small').innerText"
    await console.until(f"/ 40.0 MiB · [4-8]\\d\\.\\d MiB.s$/.test({row})")
    await console.until(
        "/^[4-8]\\d\\.\\d MiB.s, < 1 s left$/.test(document.querySelector('.rate').innerText)"
    )
    await console.picture("upload-speed")
    await throttle(console, MIB // 64)
    await console.evaluate("window.go()")
    await console.evaluate("window.usual()")
    await console.press("Cancel: big.bin")
    await console.sees("Cancelled")
    await wait_files(owner, 0)
    await throttle(console)
    await console.press("Try again")
    await console.sees("1 of 1")
    await wait_files(owner, 1)
    assert names(owner) == ["big.bin"]


async def test_uploads_are_cancelled_under_way_waiting_and_interrupted(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    names_ = ["1.bin", "2.bin", "3.bin", "4.bin"]
    for name in names_:
        (tmp_path / name).write_bytes(bytes(MIB))
    files = [tmp_path / name for name in names_]
    await throttle(console, MIB // 256)
    await console.choose_files(files)
    states = "[...document.querySelectorAll('.uploads li')].map((li) => li.dataset.state).join()"
    await console.until(f"{states} === 'running,running,running,waiting'")
    await console.press("Cancel all")
    await console.until(f"{states} === 'cancelled,cancelled,cancelled,cancelled'")
    await throttle(console)
    await console.press("Try again")
    await console.sees("1 of 4")
    assert names(owner) == ["1.bin"]
    await console.press("Clear the list")

    # The server can be reached again before it would have been tried again.
    await console.evaluate(
        """(() => {
            const { setTimeout } = window;
            window.setTimeout = (f, ms) => setTimeout(f, ms === 1000 ? 1e9 : ms);
            window.usual = () => { window.setTimeout = setTimeout; };
        })()"""
    )
    await throttle(console, offline=True)
    await console.choose_files(files[1:2])
    await console.until(f"{states} === 'interrupted'")
    await throttle(console)
    await console.evaluate("window.usual()")
    await console.press("Cancel: 2.bin")
    await console.until(f"['cancelled', 'done'].includes({states})")
    assert await console.evaluate(states) == "cancelled"
    assert names(owner) == ["1.bin"]
    console.page.complaints.clear()  # the browser's own of what could not be sent


async def test_folders_are_chosen_made_restored_and_copied_elsewhere(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    space = owner.headers["x-space"]
    folder = tmp_path / "trip"
    (folder / "day one").mkdir(parents=True)
    (folder / "map.txt").write_text("here")
    (folder / "day one" / "ä.txt").write_text("there")
    await console.choose_files([folder], index=1)
    await console.sees("2 of 2")
    trip = ["trip/day one/ä.txt", "trip/map.txt"]
    assert names(owner) == trip

    # A new one is there as soon as it has a file.
    await console.press("Show more")
    await console.press("New folder", "[role=menu]")
    await console.answer("Create", {"Name": "plans/50% ?"})
    await console.until("document.querySelector('h1').innerText === '50% ?'")
    await console.sees("This folder is empty")
    await console.choose_files([folder / "map.txt"])
    await console.until(f"{ROWS}.join() === 'map.txt'")
    await console.press(space, ".crumbs")
    await console.until(f"{ROWS}.join() === 'plans,trip'")
    plans = ["plans/50% ?/map.txt"]
    assert names(owner) == [*plans, *trip]

    async def delete(name: str) -> None:
        await console.act(name, "Delete", "Delete")
        await console.until(f"!{ROWS}.includes({name!r})")

    await delete("trip")
    assert names(owner) == plans
    await console.press("Trash")
    await console.press("Restore: trip")
    await console.sees("trip is restored")
    await console.sees("The trash is empty")
    assert names(owner) == [*plans, *trip]
    # What is there by now stays, and another name is offered.
    put(owner, ".env", b"old")
    await console.press("Files", ".tabs")
    await console.until(f"{ROWS}.join() === '.env,plans,trip'")
    await delete("trip")
    await delete(".env")
    for path in ("trip/new.txt", ".env"):
        put(owner, path, b"new")
    await console.press("Trash")
    for path in ("trip", ".env"):
        await console.press(f"Restore: {path}")
        await console.until("document.querySelector('dialog input')")
        field = await console.evaluate("document.querySelector('dialog input').value")
        assert field == f"{path} (restored)"
        await console.press("Restore", "dialog")
        await console.until("!document.querySelector('dialog')")
    console.page.complaints.clear()  # the browser's own of each 409
    await console.sees("The trash is empty")
    restored = [each.replace("trip", "trip (restored)") for each in trip]
    assert names(owner) == sorted([".env", ".env (restored)", *plans, *restored, "trip/new.txt"])

    other = space.replace("photos", "albums")
    make_space(owner, other)
    await console.go(f"#/files/{space}")
    await console.until(f"{ROWS}.includes('trip (restored)')")
    await console.act("trip (restored)", "Copy…")
    await console.choose("Storage namespace", other, "dialog")
    await console.fill("Folder", "2026", "dialog")
    await console.fill("Name", "trip", "dialog")
    await console.picture("copy")
    await console.press("Copy", "dialog")
    await console.sees("Copied")
    assert names(owner, other) == [f"2026/{path}" for path in trip]


async def test_an_upload_whose_answer_was_lost_is_not_in_its_own_way(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    """Another file of the same length is."""
    (tmp_path / "a.txt").write_text("mine")
    lose_answer = """(() => {
        const { send } = XMLHttpRequest.prototype;
        XMLHttpRequest.prototype.send = function (data) {
            XMLHttpRequest.prototype.send = send;
            this.onload = this.onerror;
            send.call(this, data);
        };
    })()"""
    await console.evaluate(lose_answer)
    await console.choose_files([tmp_path / "a.txt"])
    await console.sees("1 of 1")
    assert get(owner, owner.headers["x-space"], "a.txt") == b"mine"
    put(owner, "b.txt", b"ours")
    (tmp_path / "b.txt").write_text("mine")
    await console.evaluate(lose_answer)
    await console.choose_files([tmp_path / "b.txt"])
    await console.press("Keep both: b.txt")
    await console.sees("2 of 2")
    console.page.complaints.clear()  # the browser's own of each 409
    assert names(owner) == ["a.txt", "b (2).txt", "b.txt"]


@pytest.mark.parametrize(("choice", "files"), [("Skip", 1), ("Keep both", 2), ("Replace", 1)])
async def test_parts_of_an_upload_whose_name_was_taken_are_deleted(
    console: Console, owner: httpx.Client, tmp_path: Path, choice: str, files: int
) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(40 << 20))
    # The first part is on its way until the name is taken.
    await console.evaluate(
        """(() => {
            const { send } = XMLHttpRequest.prototype;
            XMLHttpRequest.prototype.send = function (data) {
                XMLHttpRequest.prototype.send = send;
                window.go = () => send.call(this, data);
            };
        })()"""
    )
    await console.choose_files([big])
    await console.until("!!window.go")
    put(owner, "big.bin", b"another")
    await console.evaluate("window.go()")
    await console.sees("There is a file of this name")
    await console.press(f"{choice}: big.bin")
    await console.until("!document.querySelector('.uploads li:not([data-state=done])')")
    console.page.complaints.clear()  # the browser's own of the 409
    await wait_files(owner, files)
    assert len(names(owner)) == files


async def test_a_file_is_shared_with_anyone_until_that_is_revoked(
    console: Console, owner: httpx.Client, cloud: Cloud
) -> None:
    put(owner, "a b.txt", b"for you")
    await console.go(f"#/files/{owner.headers['x-space']}?sort=name&order=desc")
    await console.act("a b.txt", "Share…", "Make a link")
    await console.until("document.querySelector('dialog pre')")
    await console.picture("share")
    await console.click_beside()
    url = await console.evaluate("document.querySelector('dialog pre').innerText")
    with cloud.client() as anonymous:
        assert anonymous.get(url).content == b"for you"
        await console.press("Close", "dialog")
        await console.press("Share links")
        await console.until("document.querySelector('tbody tr')")
        await console.picture("shares")
        await console.press("Revoke: a b.txt")
        await console.press("Revoke", "dialog")
        await console.sees("No file is shared")
        assert anonymous.get(url).status_code == 404


async def test_a_snapshot_keeps_what_was_and_gives_it_back(
    console: Console, owner: httpx.Client, tmp_path: Path
) -> None:
    downloads = await console.download_to(tmp_path / "downloads")
    put(owner, "in/a.txt", b"first")
    await console.press("Snapshots")
    await console.press("New snapshot")
    await console.answer("Create", {"Name": "before <b>"})
    await console.sees("before <b>")
    remove(owner, "in/a.txt")
    await console.picture("snapshots")
    await console.press("before <b>")
    await console.press("in")
    await console.until(f"{ROWS}.join() === 'a.txt'")
    await console.picture("snapshot")
    await console.act("a.txt", "Download")
    await downloaded(downloads / "a.txt", b"first")
    await console.act("a.txt", "Restore…", "", {"Restore to": "again.txt"})
    await console.picture("restore")
    await console.press("Restore", "dialog")
    await console.sees("Restored")
    assert names(owner) == ["again.txt"]
    await console.press("Snapshots")
    await console.press("Delete: before <b>")
    await console.press("Delete", "dialog")
    await console.sees("There is no snapshot yet")


async def test_one_sees_where_a_file_is_and_has_it_checked(
    console: Console, owner: httpx.Client
) -> None:
    put(owner, "a.txt", b"x" * 100_000)
    await console.go(f"#/files/{owner.headers['x-space']}?sort=name&order=desc")
    await console.evaluate(OLD_SCRUB)
    await console.act("a.txt", "Where it is stored")
    await console.sees("1 of 1")
    # What was verified before there was the file is not.
    await console.sees("not verified yet")
    await console.press("Check now", "dialog")
    await console.sees("Every replica is whole: 1")
    await console.misses("not verified yet")
    await console.sees("verified ")
    await console.picture("locate")
    # What can be looked at again is closed by a click beside it.
    await console.click_beside()
    await console.until("!document.querySelector('dialog')")
    await console.act("a.txt", "Where it is stored")
    # It may take longer than others do to answer, and says so if it does.
    await console.evaluate(
        "((timeout) => AbortSignal.timeout = (ms) =>"
        " timeout.call(AbortSignal, ms === 310000 ? 0 : ms))(AbortSignal.timeout)"
    )
    await console.press("Check now", "dialog")
    await console.sees("It takes longer than five minutes")
    assert await console.evaluate("document.querySelector('.banner')") is None


async def test_what_the_browser_cannot_read_fails_and_the_others_are_uploaded(
    console: Console, owner: httpx.Client, cloud: Cloud, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("gone.txt", "longer.txt", "newer.txt", "well.bin")]
    for path in files:
        path.write_bytes(bytes(16 * MIB if path.suffix == ".bin" else 10))
    await console.evaluate(HOLD_UPLOADS)
    await console.choose_files(files)
    await console.until("window.held.length === 3")
    files[0].unlink()
    files[1].write_bytes(bytes(20))
    for path in files[1:3]:
        os.utime(path, (0, 0))
    # The fourth is then sent to a server that has stopped.
    await console.evaluate(
        """(() => {
            const { setTimeout } = window;
            window.setTimeout = (f, ms) => setTimeout(f, ms < 60000 ? ms : 1000);
            window.usual = () => { window.setTimeout = setTimeout; };
        })()"""
    )
    control = cloud.cluster.ready["control"]["pid"]
    send(control, signal.SIGSTOP)
    try:
        await console.evaluate("window.release()")
        await console.until("document.querySelectorAll('[data-state=failed]').length === 3")
        await console.sees("The file has changed, or cannot be read")
        await console.until("document.querySelector('[data-state=interrupted]')")
    finally:
        send(control, signal.SIGCONT)
    await console.evaluate("window.usual()")
    await console.until("document.querySelector('[data-state=done]')")
    assert names(owner) == ["well.bin"]

    # A folder is no file; and one of several that is not read does not keep the others back.
    for name in ("none", "some"):
        (tmp_path / name).mkdir()
    await console.drop([tmp_path / "none"])
    await console.sees("There is no file in what was dropped")
    await console.evaluate(
        """(() => {
            const { webkitGetAsEntry } = DataTransferItem.prototype;
            DataTransferItem.prototype.webkitGetAsEntry = function () {
                const entry = webkitGetAsEntry.call(this), reader = entry.createReader();
                const readEntries = reader.readEntries.bind(reader);
                reader.readEntries = (done, refuse) => readEntries((some) => {
                    for (const each of some)
                        if (each.name === "bad.txt")
                            each.file = (_, refuse) => refuse(new DOMException("unread"));
                    done(some);
                }, refuse);
                entry.createReader = () => reader;
                return entry;
            };
        })()"""
    )
    for name in ("bad.txt", "good.txt"):
        (tmp_path / "some" / name).write_text(name)
    await console.drop([tmp_path / "some"])
    await console.sees("cannot read some/bad.txt")
    await console.sees("2 of 5")
    console.page.complaints.clear()  # the browser's own of what it could not send
    assert names(owner) == ["some/good.txt", "well.bin"]


async def test_a_huge_upload_has_parts_enough_and_says_when_it_cannot_go_on(
    console: Console, owner: httpx.Client, cloud: Cloud, tmp_path: Path
) -> None:
    def allow(size: int) -> None:
        user = owner.get("/api/session").json()["user_id"]
        answer = cloud.admin.put("/admin/quotas", params={"id": user}, json={"bytes": size})
        answer.raise_for_status()

    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(HUGE)
    allow(HUGE + MIB)
    await console.evaluate(HOLD_UPLOADS)
    await console.choose_files([tmp_path / "huge.bin"])
    await console.sees("There is no room to put it together from parts")
    assert await console.evaluate("window.held[0].data.size") == HUGE
    allow(3 * HUGE)
    await console.choose_files([tmp_path / "huge.bin"])
    await console.until("window.held.length === 2")
    console.page.complaints.clear()  # the browser's own of the 413
    assert HUGE // 10_000 < await console.evaluate("window.held[1].data.size") < HUGE // 8000


async def test_without_a_master_lists_say_that_they_are_from_before(
    browser: Chromium, cloud: Cloud
) -> None:
    for path in ("before/a.txt", "before/in/b.txt"):
        query = {"namespace": "default", "name": path}
        cloud.admin.post("/storage/upload", params=query, content=b"x").raise_for_status()
    console = await Console.open(browser, cloud.url, "#/cluster")
    await console.login("admin", PASSWORD)
    await console.until("document.querySelector('.tile')")
    master = cloud.cluster.pid("master")
    send(master, signal.SIGSTOP)
    try:
        await console.sees("What you see is from before")
        await console.accessible()
        await console.until("document.querySelector('.tile')")
    finally:
        send(master, signal.SIGCONT)
    await console.misses("What you see is from before")

    await console.go("#/files/default/before")
    await console.until(f"{ROWS}.join() === 'a.txt,in'")
    send(master, signal.SIGSTOP)
    try:
        await console.press("Name", "thead")
        await console.sees("What you see is from before")
        assert await console.evaluate(ROWS) == ["a.txt", "in"]
        await console.press("in")
        await console.until("document.querySelector('main .problem')")
    finally:
        send(master, signal.SIGCONT)
    await console.until(f"{ROWS}.join() === 'b.txt'")
    assert not await console.evaluate("document.querySelector('main .problem')")
    console.page.complaints.clear()  # the browser's own of each 503


async def test_several_are_moved_and_deleted_although_one_fails(
    console: Console, owner: httpx.Client
) -> None:
    for path in ("a.txt", "b.txt", "c.txt", "to/b.txt"):
        put(owner, path, b"x")

    async def select(*paths: str) -> None:
        for path in paths:
            await console.evaluate(
                f"document.querySelector('[aria-label=\"Select {path}\"]').click()"
            )

    await console.go(f"#/files/{owner.headers['x-space']}?sort=name&order=desc")
    await console.until(f"{ROWS}.join() === 'to,c.txt,b.txt,a.txt'")
    await select("a.txt", "b.txt", "c.txt")
    await console.press("Move…")
    await console.answer("Move", {"Folder": "to"})
    await console.sees("2 of 3 done")
    assert "b.txt: " in await console.evaluate(
        "document.querySelector('dialog .problem').innerText"
    )
    # The list shows it, and what is left can have another name.
    await console.until(f"{ROWS}.join() === 'to,b.txt'")
    await console.answer("Move", {"Name": "d.txt"})
    await console.until(f"{ROWS}.join() === 'to'")
    assert names(owner) == ["to/a.txt", "to/b.txt", "to/c.txt", "to/d.txt"]

    await console.press("to")
    await console.until(f"{ROWS}.length === 4")
    await select("a.txt", "b.txt")
    remove(owner, "to/a.txt")
    await console.press("Delete", ".selection")
    await console.press("Delete", "dialog")
    await console.until(f"{ROWS}.join() === 'c.txt,d.txt'")

    # A dialog that was closed meanwhile says so all the same, and closes no other.
    await console.evaluate(HOLD_REQUEST.replace("PATTERN", "/move/"))
    await console.act("c.txt", "Rename…", "Save", {"New name": "d.txt"})
    await console.until("window.isHeld")
    await console.press("Cancel", "dialog")
    await console.act("d.txt", "Rename…", "", {"New name": "e.txt"})
    await console.evaluate("window.release()")
    await console.until(
        "document.querySelector('.note.bad')?.innerText.startsWith('Rename c.txt: ')"
    )
    await console.press("Save", "dialog")
    await console.until(f"{ROWS}.join() === 'c.txt,e.txt'")
    console.page.complaints.clear()  # the browser's own of each 404 and 409


async def test_a_list_keeps_its_rows_and_what_is_selected_when_it_is_read_again(
    console: Console, owner: httpx.Client, cloud: Cloud, tmp_path: Path
) -> None:
    space, count = owner.headers["x-space"], 2700
    put(owner, "many/0000x", b"x")
    async with gfs.connect(state=cloud.cluster.state) as fs:
        home = await home_of(fs, owner)
        await fs.put_many([(f"{home}/many/{number:04}", b"") for number in range(count)])
    await console.go(f"#/files/{space}/many")
    await console.sees("500 shown, there are more")
    scroll = "document.querySelector('#content').scrollTop"
    await console.evaluate(f"{scroll} = 1e9")
    await console.sees("1,500 shown, there are more")

    # A page is on its way while the list is read again.
    await console.evaluate(HOLD_REQUEST.replace("PATTERN", "/after=/"))
    await console.evaluate(f"{scroll} = 1e9")
    await console.until("window.isHeld")
    top = await console.evaluate(scroll)
    asked = len(console.page.asked)
    (tmp_path / "1480x").write_text("new")
    await console.choose_files([tmp_path / "1480x"])
    await console.until(f"{ROWS}.includes('1480x')")
    assert await console.evaluate(scroll) == top
    await console.evaluate("window.release()")
    await console.until(f"({scroll} = 1e9, {ROWS}.includes('2699'))")
    await console.sees(f"{count + 2:,}")
    assert len([each for each in console.page.asked[asked:] if "/entries?" in each]) < 20

    # All of them stay selected, and the column header keeps the focus.
    await console.evaluate(f"{scroll} = 0")
    await console.evaluate("document.querySelector('[aria-label=\"Select all\"]').click()")
    await console.sees(f"{count + 2:,} selected")
    (tmp_path / "0000y").write_text("new")
    await console.choose_files([tmp_path / "0000y"])
    await console.until(f"{ROWS}.includes('0000y')")
    await console.sees(f"{count + 2:,} selected")
    await console.evaluate("document.querySelector('th.size a').focus()")
    await console.key("Enter")
    await console.until(
        "document.querySelector('th.size').ariaSort && !document.querySelector('.old')"
    )
    assert await console.evaluate("document.activeElement.innerText.trim()") == "Size"
    await console.sees(f"{count + 2:,} selected")
