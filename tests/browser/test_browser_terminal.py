"""A shell in a real container, in a real browser."""

from __future__ import annotations

import trio
from chromium import Chromium, Page
from podman_here import User


async def until_shown(page: Page, line: str) -> None:
    """Until the terminal's screen has exactly this line."""
    await page.until(f"lines().includes({line!r})")


async def test_a_terminal_shows_what_the_shell_prints(
    browser: Chromium, user: User, pages: str
) -> None:
    container = await trio.to_thread.run_sync(user.run)
    address = user.here.cloud.url.replace("http://", "ws://")
    target = f"{address}/compute/containers/{container}/terminal?token={user.token}"
    page = await browser.open(f"{pages}/terminal.html#{target}")

    # The prompt of root; what is typed before it could be shown twice.
    await page.until("lines().some((line) => line.endsWith('#'))")
    await page.type("echo $((6*7))\r")
    await until_shown(page, "42")

    await page.evaluate("terminal.resize(101, 37)")
    # It comes another way than what is typed.
    await page.type("until stty size | grep '37 101'; do sleep 0.1; done\r")
    await until_shown(page, "37 101")

    await page.type("exit\r")
    await page.until("closed !== null")
    assert await page.evaluate("closed") == 1000
    assert page.complaints == []
