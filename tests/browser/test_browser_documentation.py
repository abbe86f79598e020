"""The page at /docs, in a real browser that reaches nothing but the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Chromium
from inprocess import make_app, served

from control.auth import Auth
from control.compute import Compute

METHODS = {"get", "head", "post", "put", "patch", "delete"}
PASSWORD = "correct horse battery staple"


async def test_the_page_shows_every_route_and_finds_and_tries_them(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GFS_ADMIN_PASSWORD", PASSWORD)
    async with served(make_app(tmp_path / "state", Auth, Compute)) as client:
        api = (await client.get("/openapi.json")).json()
        routes = [
            f"operations-{operation['tags'][0]}-{operation['operationId']}"
            for operations in api["paths"].values()
            for method, operation in operations.items()
            if method in METHODS
        ]
        login = {"username": "admin", "password": PASSWORD}
        token = (await client.post("/api/login", json=login)).json()["token"]
        base = str(client.base_url).rstrip("/")

        # The route that the address ends with is open, and has a form to try it with.
        page = await browser.open(f"{base}/docs#/auth/get_api_session")
        await page.until("document.querySelector('.opblock.is-open .execute')?.checkVisibility()")
        shown = await page.evaluate("[...document.querySelectorAll('.opblock')].map((e) => e.id)")
        assert sorted(shown) == sorted(routes)

        # The token goes along, and is not in the command that is to be copied.
        await page.evaluate("document.querySelector('.auth-wrapper .authorize').click()")
        await page.until("document.querySelector('#auth-bearer-value')")
        await page.evaluate("document.querySelector('#auth-bearer-value').focus()")
        await page.type(token)
        await page.evaluate(
            "document.querySelector('#auth-bearer-value').form.querySelector('.authorize').click()"
        )
        await page.evaluate("document.querySelector('.opblock.is-open .execute').click()")
        await page.until("document.querySelector('.live-responses-table .response')")
        answer = "document.querySelector('.live-responses-table').innerText"
        assert '"username": "admin"' in await page.evaluate(answer)
        command = await page.evaluate("document.querySelector('.curl-command').innerText")
        assert "Bearer <token>" in command
        assert token not in command

        await page.evaluate("document.querySelector('.operation-filter-input').focus()")
        await page.type("terminal")
        await page.until("document.querySelectorAll('.opblock').length === 1")
        assert "terminal" in await page.evaluate(
            "document.querySelector('.opblock-summary-path').textContent"
        )

        assert page.complaints == []
        assert all(address.startswith((base, "data:")) for address in page.asked), page.asked
