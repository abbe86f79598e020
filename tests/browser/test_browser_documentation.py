"""The page at /docs, in a real browser that reaches nothing but the server."""

from __future__ import annotations

from pathlib import Path

from chromium import Chromium
from inprocess import make_app, served

from control.auth import Auth
from control.compute import Compute

METHODS = {"get", "head", "post", "put", "patch", "delete"}


async def test_the_page_shows_every_route_and_finds_them(browser: Chromium, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with served(make_app(state, Auth, Compute)) as client:
        api = (await client.get("/openapi.json")).json()
        routes = [
            operation["operationId"]
            for operations in api["paths"].values()
            for method, operation in operations.items()
            if method in METHODS
        ]
        base = str(client.base_url).rstrip("/")
        page = await browser.open(f"{base}/docs")
        await page.until("document.querySelector('main').ariaBusy === 'false'")
        shown = await page.evaluate("[...document.querySelectorAll('.route')].map((e) => e.id)")
        assert sorted(shown) == sorted(routes)

        # One that is opened has a form to try it with.
        await page.evaluate("document.querySelector('.route summary').click()")
        await page.until("document.querySelector('.route form')?.checkVisibility()")

        await page.evaluate("document.querySelector('#filter').focus()")
        await page.type("terminal")
        visible = "[...document.querySelectorAll('.route')].filter((e) => e.checkVisibility())"
        await page.until(f"{visible}.length === 1")
        assert "terminal" in await page.evaluate(f"{visible}[0].querySelector('code').textContent")

        assert page.complaints == []
        assert all(address.startswith((base, "data:")) for address in page.asked), page.asked
