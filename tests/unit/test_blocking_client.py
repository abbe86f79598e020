"""The blocking client has the methods of the async one, made from them."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getmembers, isfunction, signature
from threading import get_ident
from typing import Any

import pytest

from gfs.client import Client
from gfs.client.sync import SyncClient

#: Not for threads that block: pieces of one buffer, and what only gfs and its control plane use.
ASYNC_ALONE = {"stream", "files", "prune", "order_disk"}
NAMES = {name for name, _ in getmembers(Client, isfunction) if name[0] != "_"}


@pytest.mark.parametrize("name", sorted(NAMES - ASYNC_ALONE))
def test_it_has_the_method_with_its_parameters(name: str) -> None:
    mine, theirs = (
        list(signature(getattr(each, name)).parameters.values())[1:]
        for each in (SyncClient, Client)
    )
    assert mine == theirs
    assert getattr(SyncClient, name).__doc__ or not getattr(Client, name).__doc__


@pytest.mark.parametrize(
    ("name", "before", "items"),
    [
        ("put_many", (), [("/a", b""), ("/b", b"")]),
        ("get_many", (), ["/a", "/b"]),
        ("stat_many", (), ["/a", "/b"]),
        ("delete_many", (), ["/a", "/b"]),
        ("get_ranges", (), [("/a", 0, 1), ("/b", None, None)]),
        ("append_many", ("/log",), [b"1", b"2"]),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_generator_runs_in_the_callers_thread(
    name: str, before: tuple[str, ...], items: list[Any], named: bool
) -> None:
    """It may call the client, which waits for the other thread."""
    given: list[Any] = []

    class Called(SyncClient):
        def __init__(self) -> None:
            self._begin({})

        def _method(self, method: str, *args: Any, **kwargs: Any) -> Any:
            given.extend([*args, *kwargs.values()][len(before)])
            return [b""] * len(given)

    threads = set()

    def generate() -> Iterator[Any]:
        for item in items:
            threads.add(get_ident())
            yield item

    parameter = list(signature(getattr(Client, name)).parameters)[1 + len(before)]
    method = getattr(Called(), name)
    found = method(*before, **{parameter: generate()}) if named else method(*before, generate())
    assert given == items
    assert len(found) == len(items)
    assert threads == {get_ident()}
