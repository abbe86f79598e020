"""Who asks for what is in a storage namespace, and a table of what each is answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from checks import make_token, ok, with_token
from cloud import Cloud

#: A client of the REST API, and the user's id.
Who = tuple[httpx.Client, str]
ACTIONS = ["create", "read", "update", "delete"]


def at(space: str, what: str) -> str:
    return f"/storage/namespaces/{space}/{what}"


def used(client: httpx.Client) -> tuple[int, int]:
    """Files and bytes that count towards the quota."""
    quota = ok(client.get("/api/quota"))
    return quota["files"]["used"], quota["bytes"]["used"]


def post(client: httpx.Client, space: str, what: str, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = ok(client.post(at(space, what), json=body))
    return found


@contextmanager
def all_of_them(cloud: Cloud, owner: Who, other: Who) -> Iterator[dict[str, httpx.Client]]:
    """By the names that the tables have."""
    tokens = {
        "token": make_token(owner[0], {f"storage.{owner[1]}": ACTIONS}),
        "reader": make_token(owner[0], {f"storage.{owner[1]}": ["read"]}),
        "stranger": make_token(other[0], {f"storage.{other[1]}": ACTIONS}),
    }
    made = {name: with_token(cloud.url, token["token"]) for name, token in tokens.items()}
    people = {"owner": owner[0], "other": other[0], "admin": cloud.admin, "nobody": cloud.client()}
    yield {**people, **made}
    for client in made.values():
        client.close()


def rows(table: str) -> dict[str, tuple[list[str], dict[str, int]]]:
    """Of a table whose first line names who asks: kind and route, and the status of each. What is
    the same for several routes is one line."""
    first, *lines = (line.split() for line in table.strip().splitlines())
    return {
        f"{kind}-{what}": ([kind, what], dict(zip(first, map(int, cells), strict=True)))
        for kind, routes, *cells in lines
        for what in routes.split(",")
    }
