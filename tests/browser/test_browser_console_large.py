"""A folder with very many entries in the console, in a real browser on a real cluster."""

from __future__ import annotations

from pathlib import Path

import trio
from chromium import Chromium
from cloud import PASSWORD, Cloud
from console_page import ROWS, Console, missing
from needs import need

import gfs

#: Made in about 20 s.
ENTRIES = 100_000
#: The longest time, in ms, for which the page's scripts left the browser no turn.
WATCH = """
(() => {
    window.longest = 0;
    new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => {
        window.longest = Math.max(window.longest, duration);
    })).observe({ entryTypes: ["longtask"] });
})()
"""
#: When the first row is there, and when the page's scripts leave the browser its turns from then
#: on, in ms since the page was asked for.
READY = """
(() => {
    window.ready = window.idle = 0;
    new PerformanceObserver((list) => list.getEntries().forEach((each) => {
        window.idle = each.startTime + each.duration;
    })).observe({ type: "longtask", buffered: true });
    const look = () => {
        if (document.querySelector("tbody .name")) window.ready = performance.now();
        else requestAnimationFrame(look);
    };
    look();
})()
"""


async def fill(cloud: Cloud, space: str) -> None:
    """In the file system itself: over REST it would take minutes."""
    async with gfs.connect(state=cloud.cluster.state) as fs:
        spaces = [each.path async for each in fs.scan("/storage")]
        (home,) = [each for each in spaces if each.startswith(f"/storage/{space}.")]
        async with trio.open_nursery() as nursery:
            for start in range(0, ENTRIES, 5000):
                numbers = range(start, min(start + 5000, ENTRIES))
                items = [(f"{home}/many/{number:06}", b"") for number in numbers]
                nursery.start_soon(fs.put_many, items)


async def test_a_large_folder_is_scrolled_filtered_and_sorted(
    browser: Chromium, tmp_path: Path
) -> None:
    need(missing())
    (place := tmp_path / "cloud").mkdir()
    cloud = Cloud(place, chunkservers=1)
    last = f"{ENTRIES - 1:06}"
    try:
        cloud.start()
        client, user_id = cloud.make_user()
        space = f"space-{user_id}"
        client.post("/storage/namespaces", json={"name": space}).raise_for_status()
        client.put(f"/storage/{space}/many/large", content=b"x").raise_for_status()
        began = trio.current_time()
        await fill(cloud, space)
        print(f"made in {trio.current_time() - began:.0f} s")

        console = await Console.open(browser, cloud.url, f"#/files/{space}/many")
        await console.login(client.get("/api/session").json()["username"], PASSWORD)
        await console.sees("500 shown, there are more")
        await console.evaluate(WATCH)
        began = trio.current_time()
        # As somebody who drags the scroll bar down: each time to the end of what was read.
        scroll = "document.querySelector('#content').scrollTop = 1e9"
        await console.until(f"(({scroll}), {ROWS}.includes('large'))")
        print(f"scrolled to the end in {trio.current_time() - began:.1f} s")
        assert (await console.evaluate(ROWS))[-2:] == [last, "large"]
        # Only the rows around those that are seen are there, and each page was read once.
        assert await console.evaluate("document.querySelectorAll('tbody tr').length") < 120
        pages = [each for each in console.page.asked if "/entries?" in each and "after=" in each]
        assert len(pages) == len(set(pages)) <= ENTRIES / 1000 + 1
        await console.evaluate("document.querySelector('#content').scrollTop = 0")
        await console.until(f"{ROWS}.includes('000000')")

        await console.fill("Filter", last[1:])
        await console.until(f"{ROWS}.join() === '{last}'")
        await console.fill("Filter", "")
        for column, first in (
            ("Size", "000000"),
            ("Size", "large"),
            ("Name", "000000"),
            ("Name", "large"),
        ):
            began = trio.current_time()
            await console.press(column, "thead")
            await console.until(f"{ROWS}[0] === '{first}'")
            print(f"by {column}, {first} first: {trio.current_time() - began:.1f} s")
        longest = await console.evaluate("window.longest")
        print(f"of {ENTRIES} entries: at most {longest:.0f} ms without a turn for the browser")

        await console.page.call("Page.addScriptToEvaluateOnNewDocument", source=READY)
        await console.page.call("Emulation.setCPUThrottlingRate", rate=4)
        console.page.loaded = trio.Event()
        console.page.asked.clear()
        await console.page.call("Page.reload")
        await console.page.loaded.wait()
        await console.until("window.ready > 0")
        await trio.sleep(1)
        interactive = await console.evaluate("Math.max(window.ready, window.idle)")
        print(f"at a quarter of the processor: interactive after {interactive:.0f} ms")
        # However many there are, no more is loaded and drawn than the first page.
        assert len([each for each in console.page.asked if "/entries?" in each]) == 1
        assert await console.evaluate("document.querySelectorAll('tbody tr').length") < 120
        console.check_manners()
    finally:
        cloud.stop()
