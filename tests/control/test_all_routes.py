"""What all routes have in common, where it is hard to see from outside."""

from __future__ import annotations

import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from checks import refused

from control.api import Call, Module, Route
from control.app import application
from control.identity.access import PUBLIC
from control.records import RecordsFailed
from control.settings import ControlSettings
from control.testing import CheapAuth, make_app, served
from gfs.errors import DiskFull, MasterUnavailable, SettingsError


class Body(msgspec.Struct):
    text: str = ""


async def _nothing(call: Call) -> dict[str, str]:
    return {}


def failing(*errors: BaseException) -> type[Module]:
    """A module whose one route fails with all of ``errors`` at once."""

    class Failing(Module):
        name = "failing"

        def routes(self) -> Sequence[Route]:
            return [Route("GET", "/fail", self.fail, PUBLIC, "Fails", answer=dict[str, str])]

        async def fail(self, call: Call) -> dict[str, str]:
            raise BaseExceptionGroup("many", [BaseExceptionGroup("inner", [*errors])])

    return Failing


class Taking(Module):
    name = "taking"

    def routes(self) -> Sequence[Route]:
        return [
            Route("POST", "/take", self.take, PUBLIC, "Takes", body=Body, answer=dict[str, str])
        ]

    async def take(self, call: Call, body: Body) -> dict[str, str]:
        return {"text": body.text}


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([MasterUnavailable("gone"), MasterUnavailable("gone")], 503),
        ([DiskFull("full"), DiskFull("full")], 507),
        ([MasterUnavailable("gone"), LookupError("a bug")], 500),
        ([LookupError("a bug"), MasterUnavailable("gone")], 500),
    ],
)
async def test_what_fails_in_several_tasks_at_once_is_answered_as_what_it_is(
    tmp_path: Path, errors: list[BaseException], status: int
) -> None:
    async with served(make_app(tmp_path, failing(*errors))) as http:
        answer = await http.get("/fail")
        assert answer.status_code == status
        assert set(answer.json()) == {"error"}


async def test_records_that_failed_end_the_process_whatever_failed_with_them(
    tmp_path: Path,
) -> None:
    app = make_app(tmp_path, failing(ValueError("first"), RecordsFailed("the disk is gone")))

    async def serve_until_it_ends() -> None:
        async with served(app) as http:
            assert (await http.get("/fail")).status_code == 500
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await serve_until_it_ends()
    assert caught.group_contains(RecordsFailed)


async def test_a_client_that_leaves_in_its_json_is_no_error_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(make_app(tmp_path, Taking)) as http:
        stream = await trio.open_tcp_stream("127.0.0.1", http.base_url.port or 0)
        async with stream:
            await stream.send_all(b"POST /take HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            await stream.send_eof()
            answer = b"".join([piece async for piece in stream])
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":' in answer
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/healthz", 400), ("/take", 405)])
async def test_a_websocket_where_there_is_none_is_refused_in_json(
    tmp_path: Path, path: str, status: int
) -> None:
    app = make_app(tmp_path, Taking, origins="https://app.example")
    async with served(app) as http:
        answer = await http.get(
            path,
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
                "Origin": "https://app.example",
            },
        )
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert set(answer.json()) == {"error"}


async def test_a_wrong_method_is_405_with_allow(tmp_path: Path) -> None:
    """On each route; and what clients make up is counted as one, or it would fill the memory of
    whoever scrapes."""
    app = make_app(tmp_path, CheapAuth)
    allowed = defaultdict(set)
    for _, route in app.table:
        allowed[re.sub(r"\{.*?\}", "1", route.path)].add(route.method)
    async with served(app) as http:
        for number, (path, methods) in enumerate(allowed.items()):
            for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", f"BREW{number}"}:
                if method not in methods:
                    answer = await http.request(method, path)
                    refused(answer, 405)
                    assert methods <= set(answer.headers["Allow"].split(", ")), path
            assert (await http.get(f"/made-up-{number}")).status_code == 404
        text = (await http.get("/metrics")).text
        assert "BREW" not in text
        assert "made-up" not in text
        assert 'method="other"' in text


async def test_shared_facts_that_cannot_be_swept_do_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(application, "SWEEP_SECONDS", 0.01)
    async with served(make_app(tmp_path, Taking)) as http:
        shutil.rmtree(tmp_path / "control" / "volatile")
        while "could not be removed" not in caplog.text:
            await trio.lowlevel.checkpoint()
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/page", "null"])
def test_an_origin_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(SettingsError, match="origins"):
        ControlSettings(origins=f"https://good.example, {origin}").check()


def test_origins_as_people_write_them() -> None:
    settings = ControlSettings(origins="https://App.Example/, http://[::1]:8080")
    settings.check()
    assert settings.origin_list == ["https://app.example", "http://[::1]:8080"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"session_seconds": 0.0},
        {"session_seconds": float("inf")},
        {"session_seconds": float("nan")},
        {"login_window_seconds": float("nan")},
        {"header_seconds": -1.0},
        {"graceful_seconds": -1.0},
        {"json_bytes_max": 0},
        {"connections_max": 0},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ControlSettings(**wrong).check()


def test_settings_at_their_bounds() -> None:
    ControlSettings().check()
    ControlSettings(graceful_seconds=0.0, session_seconds=1.0, login_failures=0).check()
