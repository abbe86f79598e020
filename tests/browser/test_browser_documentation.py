"""The page at /docs, in a real browser that reaches nothing but the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Chromium, Page
from console_page import Console

from control.auth import Auth
from control.compute import Compute
from control.testing import make_app, served

METHODS = {"get", "head", "post", "put", "patch", "delete"}
PASSWORD = "correct horse battery staple"
#: The page computes for seconds, of which others may leave us a tenth.
SECONDS = 300.0


def check_manners(page: Page, base: str) -> None:
    """Its policy lets all of it run, and it has asked nobody else."""
    assert page.complaints == []
    assert all(address.startswith((base, "data:")) for address in page.asked), page.asked


async def test_the_page_shows_every_route_and_finds_them(browser: Chromium, tmp_path: Path) -> None:
    async with served(make_app(tmp_path / "state", Auth, Compute), SECONDS) as client:
        api = (await client.get("/openapi.json")).json()
        routes = [
            f"operations-{operation['tags'][0]}-{operation['operationId']}"
            for operations in api["paths"].values()
            for method, operation in operations.items()
            if method in METHODS
        ]
        base = str(client.base_url).rstrip("/")
        page = await browser.open(f"{base}/docs")
        await page.until(f"document.querySelectorAll('.opblock').length === {len(routes)}")
        shown = await page.evaluate("[...document.querySelectorAll('.opblock')].map((e) => e.id)")
        assert sorted(shown) == sorted(routes)

        await page.evaluate("document.querySelector('.operation-filter-input').focus()")
        await page.call("Input.insertText", text="terminal")
        await page.until("document.querySelectorAll('.opblock').length === 1")
        path = "document.querySelector('.opblock-summary-path').textContent"
        assert "terminal" in await page.evaluate(path)
        check_manners(page, base)


async def test_it_is_in_the_dress_of_the_console_and_can_be_read(
    browser: Chromium, tmp_path: Path
) -> None:
    """By everybody, with routes of each method open, in light and dark, on a phone, too."""
    async with served(make_app(tmp_path / "state", Auth, Compute), SECONDS) as client:
        base = str(client.base_url).rstrip("/")
        page = await browser.open(f"{base}/docs#/auth/put_api_password")
        await page.until("document.querySelector('.opblock.is-open .execute')?.checkVisibility()")
        for method in ("get", "delete"):
            await page.evaluate(
                f"document.querySelector('.opblock-{method} .opblock-summary-control').click()"
            )
        await page.until("document.querySelectorAll('.opblock.is-open .execute').length === 3")
        await Console(page, base).picture("docs")

        # As is chosen in the console, in another tab.
        ground = "getComputedStyle(document.body).backgroundColor"
        for theme, color in (("dark", "rgb(20, 23, 27)"), ("light", "rgb(246, 247, 249)")):
            await page.evaluate(f"localStorage.setItem('gfs-theme', '{theme}')")
            await page.evaluate("dispatchEvent(new Event('storage'))")
            await page.until(f"{ground} === {color!r}")
        check_manners(page, base)


async def test_a_route_is_linked_to_and_tried_with_a_token(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GFS_ADMIN_PASSWORD", PASSWORD)
    async with served(make_app(tmp_path / "state", Auth), SECONDS) as client:
        login = {"username": "admin", "password": PASSWORD}
        token = (await client.post("/api/login", json=login)).json()["token"]
        base = str(client.base_url).rstrip("/")
        page = await browser.open(f"{base}/docs#/auth/get_api_session")
        await page.until("document.querySelector('.opblock.is-open .execute')?.checkVisibility()")

        await page.evaluate("document.querySelector('.auth-wrapper .authorize').click()")
        await page.until("document.querySelector('#auth-bearer-value')")
        await page.evaluate("document.querySelector('#auth-bearer-value').focus()")
        await page.call("Input.insertText", text=token)
        submit = "document.querySelector('#auth-bearer-value').form.querySelector('.authorize')"
        await page.evaluate(f"{submit}.click()")
        await page.evaluate("document.querySelector('.opblock.is-open .execute').click()")
        await page.until("document.querySelector('.live-responses-table .response')")
        answer = "document.querySelector('.live-responses-table').innerText"
        await page.until(f"""{answer}.includes('"username": "admin"')""")

        # What is to be copied holds no secret.
        command = await page.evaluate("document.querySelector('.curl-command').innerText")
        assert "Bearer <token>" in command
        assert token not in command
        check_manners(page, base)
