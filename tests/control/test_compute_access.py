"""Who gets what of compute: every route, for everybody, and each action of a scope alone.

Columns:

owner      the session of the container's (and the key's) owner
other      the session of another user
admin      a session of the administrator
nobody     no credentials
token      the owner's API token with every ``compute`` scope of his
named      the owner's API token with every action on this one container
narrow     the owner's API token that has no ``compute`` scope
stranger   the other user's API token that has every ``compute`` scope of his
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from checks import anonymous, bearer, make_token, ok, refused, with_token
from compute_cloud import ED25519, ComputeCloud
from raw import Connection

COLUMNS = ["owner", "other", "admin", "nobody", "token", "named", "narrow", "stranger"]
ACTIONS = ["create", "read", "update", "delete", "start", "stop"]

#: ``own``: it is done, with what is the asker's own.
TABLE = """
              owner  other  admin  nobody  token  named  narrow  stranger
list            200    own    own     401    200    403     403       own
create          200    own    own     401    200    403     403       own
get             200    403    403     401    200    200     403       403
start           200    403    403     401    200    200     403       403
stop            200    403    403     401    200    200     403       403
delete          200    403    403     401    200    200     403       403
get-ssh         200    403    403     401    200    200     403       403
put-ssh         200    403    403     401    200    200     403       403
list-rules      200    403    403     401    200    200     403       403
add-rule        200    403    403     401    200    200     403       403
remove-rule     200    403    403     401    200    200     403       403
get-mounts      200    403    403     401    200    200     403       403
put-mounts      200    403    403     401    200    200     403       403
logs            200    403    403     401    200    200     403       403
follow-logs     101    403    403     401    101    101     403       403
terminal        101    403    403     401    101    101     403       403
ws              101    101    101     401    101    403     403       101
list-all        403    403    200     401    403    403     403       403
admin-start     403    403    200     401    403    403     403       403
admin-stop      403    403    200     401    403    403     403       403
admin-delete    403    403    200     401    403    403     403       403
list-keys       200    own    own     401    200    403     403       own
add-key         200    own    own     401    200    403     403       own
delete-key      200    404    404     401    200    403     403       404
"""

#: What an API token needs: the resource, and one of the actions.
NEEDED = {
    "create": ("containers", {"create"}),
    "start": ("containers", {"start", "update"}),
    "stop": ("containers", {"stop", "update"}),
    "delete": ("containers", {"delete"}),
    "list-keys": ("keys", {"read"}),
    "add-key": ("keys", {"create"}),
    "delete-key": ("keys", {"delete"}),
    **dict.fromkeys(
        ("list", "get", "get-ssh", "list-rules", "get-mounts", "logs", "follow-logs", "ws"),
        ("containers", {"read"}),
    ),
    **dict.fromkeys(
        ("put-ssh", "add-rule", "remove-rule", "put-mounts", "terminal"),
        ("containers", {"update"}),
    ),
}


class Mine:
    """A user with a container that runs, and a key."""

    def __init__(self, computing: ComputeCloud) -> None:
        self.client, self.user_id = computing.make_user()
        self.key = computing.key(self.client)
        self.container = str(computing.running(self.client, ssh_key_ids=[self.key])["id"])
        self.path = f"/compute/containers/{self.container}"
        self.admin_path = f"/compute/admin/containers/{self.container}"

    def view(self) -> dict[str, Any]:
        """All of his that somebody could have changed."""
        found: dict[str, Any] = {
            path: ok(self.client.get(path))
            for path in (
                *("/compute/ssh-keys", self.path),
                *(f"{self.path}/{part}" for part in ("ssh", "ingress", "mounts")),
            )
        }
        found["/compute/containers"] = [
            each["id"] for each in ok(self.client.get("/compute/containers"))["containers"]
        ]
        return found


UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


def upgrade(client: httpx.Client, path: str) -> httpx.Response:
    """The answer to who asks for a WebSocket; 101 has no more to it."""
    token = client.headers.get("Authorization")
    with Connection(str(client.base_url).rstrip("/")) as connection:
        connection.request("GET", path, {**UPGRADE, **({"Authorization": token} if token else {})})
        head = connection.next_head()
        size = 0 if head.status == 101 else int(head.header("Content-Length") or 0)
        return httpx.Response(head.status, headers=head.headers, content=connection.read(size))


def create(client: httpx.Client, mine: Mine) -> httpx.Response:
    body = {"name": "made", "ssh_key_ids": [mine.key]}
    return client.post("/compute/containers", json=body)


Do = Callable[[httpx.Client, Mine], httpx.Response]
ROUTES: dict[str, Do] = {
    "list": lambda c, m: c.get("/compute/containers"),
    "create": create,
    "get": lambda c, m: c.get(m.path),
    "start": lambda c, m: c.post(f"{m.path}/start"),
    "stop": lambda c, m: c.post(f"{m.path}/stop"),
    "delete": lambda c, m: c.delete(m.path),
    "get-ssh": lambda c, m: c.get(f"{m.path}/ssh"),
    "put-ssh": lambda c, m: c.put(f"{m.path}/ssh", json={"ssh_enabled": True}),
    "list-rules": lambda c, m: c.get(f"{m.path}/ingress"),
    "add-rule": lambda c, m: c.post(f"{m.path}/ingress", json={"port": 8080}),
    "remove-rule": lambda c, m: c.delete(f"{m.path}/ingress/8080"),
    "get-mounts": lambda c, m: c.get(f"{m.path}/mounts"),
    "put-mounts": lambda c, m: c.put(f"{m.path}/mounts", json={"mount_paths": ["/srv"]}),
    "logs": lambda c, m: c.get(f"{m.path}/logs"),
    "follow-logs": lambda c, m: upgrade(c, f"{m.path}/logs"),
    "terminal": lambda c, m: upgrade(c, f"{m.path}/terminal"),
    "ws": lambda c, m: upgrade(c, "/compute/ws"),
    "list-all": lambda c, m: c.get("/compute/admin/containers"),
    "admin-start": lambda c, m: c.post(f"{m.admin_path}/start"),
    "admin-stop": lambda c, m: c.post(f"{m.admin_path}/stop"),
    "admin-delete": lambda c, m: c.delete(m.admin_path),
    "list-keys": lambda c, m: c.get("/compute/ssh-keys"),
    "add-key": lambda c, m: c.post(
        "/compute/ssh-keys", json={"name": "made", "public_key": ED25519}
    ),
    "delete-key": lambda c, m: c.delete(f"/compute/ssh-keys/{m.key}"),
}
CHANGES = {"create", "stop", "delete", "put-ssh", "add-rule", "put-mounts", "add-key", "delete-key",
           "admin-stop", "admin-delete"}  # fmt: skip
#: For which no API token can be granted anything.
OF_ADMINISTRATORS = {"list-all", "admin-start", "admin-stop", "admin-delete"}


@pytest.fixture(scope="module")
def others(computing: ComputeCloud) -> Iterator[dict[str, httpx.Client]]:
    """Whoever is neither the owner nor a token of his."""
    other, other_id = computing.make_user()
    computing.key(other)
    token = make_token(other, {f"compute.{other_id}": ACTIONS})["token"]
    made = {
        "other": other,
        "admin": computing.admin,
        "nobody": anonymous(computing.url),
        "stranger": with_token(computing.url, token),
    }
    yield made
    made["nobody"].close()
    made["stranger"].close()


@pytest.fixture(scope="module")
def kept(computing: ComputeCloud) -> Mine:
    """For tests that change nothing."""
    return Mine(computing)


def tokens(mine: Mine) -> dict[str, dict[str, list[str]]]:
    whole = f"compute.{mine.user_id}"
    return {
        "token": {whole: ACTIONS},
        "named": {f"{whole}.containers.{mine.container}": ACTIONS},
        "narrow": {f"storage.{mine.user_id}": ["read", "create", "update", "delete"]},
    }


def rows() -> list[list[str]]:
    return [line.split() for line in TABLE.splitlines() if line.strip()][1:]


def test_the_table_is_whole() -> None:
    assert TABLE.split("\n")[1].split() == COLUMNS
    assert [row[0] for row in rows()] == list(ROUTES)
    assert set(NEEDED) == set(ROUTES) - OF_ADMINISTRATORS


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_who_gets_what(
    computing: ComputeCloud, others: dict[str, httpx.Client], row: list[str]
) -> None:
    route, *cells = row
    mine = Mine(computing)
    for who, cell in zip(COLUMNS, cells, strict=True):
        if cell in ("200", "101") and route in CHANGES and who != "owner":
            mine = Mine(computing)
        before = mine.view()
        if who == "owner":
            answer = ROUTES[route](mine.client, mine)
        elif who in others:
            answer = ROUTES[route](others[who], mine)
        else:
            token = make_token(mine.client, tokens(mine)[who])["token"]
            with with_token(computing.url, token) as client:
                answer = ROUTES[route](client, mine)
        if cell == "own":
            check_own(route, answer, mine)
        elif cell in ("200", "101"):
            assert answer.status_code == int(cell), f"{who}: {answer.text[:200]}"
            if route in CHANGES:
                mine = Mine(computing)  # the next one finds it as it was
                continue
        else:
            refused(answer, int(cell))
        assert mine.view() == before, f"{who} changed it"


def check_own(route: str, answer: httpx.Response, mine: Mine) -> None:
    """It is about the asker's own things: nothing of the owner's is in it."""
    if route == "create":
        refused(answer, 400, "ssh_key_ids")  # the key is the owner's
        return
    ok(answer)
    assert mine.container not in answer.text
    if route == "list-keys":
        assert mine.key not in [each["id"] for each in answer.json()["ssh_keys"]]


@pytest.mark.parametrize("route", NEEDED)
def test_which_action_a_token_needs(computing: ComputeCloud, route: str) -> None:
    """One token for each action alone, and one for all but what is needed."""
    resource, needed = NEEDED[route]
    known = ACTIONS if resource == "containers" else ["create", "read", "delete"]
    mine = Mine(computing)
    scope = f"compute.{mine.user_id}.{resource}"
    rest = [action for action in known if action not in needed]
    for actions in [*([action] for action in known), rest]:
        token = make_token(mine.client, {scope: actions})["token"]
        with with_token(computing.url, token) as client:
            before = mine.view()
            answer = ROUTES[route](client, mine)
            if needed.isdisjoint(actions):
                refused(answer, 403)
                assert mine.view() == before
                continue
            assert answer.status_code in (200, 101), (actions, answer.text)
        if route in CHANGES:
            mine = Mine(computing)
            scope = f"compute.{mine.user_id}.{resource}"


def test_a_token_may_be_in_the_query(computing: ComputeCloud, kept: Mine) -> None:
    mine, token = kept, bearer(kept.client)
    with anonymous(computing.url) as client:
        assert ok(client.get(mine.path, params={"token": token}))["id"] == mine.container
        for path in ("/compute/ws", f"{mine.path}/terminal", f"{mine.path}/logs"):
            assert upgrade(client, f"{path}?token={token}").status_code == 101
            for wrong in ("", "?token=", "?token=nonsense", f"?token={token[:-4]}"):
                answer = upgrade(client, f"{path}{wrong}")
                refused(answer, 401)
                assert answer.headers["www-authenticate"].startswith("Bearer")
        # Not where something is changed.
        refused(client.post(f"{mine.path}/stop", params={"token": token}), 401)
        refused(client.delete(mine.path, params={"token": token}), 401)
    # The header wins.
    refused(upgrade(computing.client("nonsense"), f"/compute/ws?token={token}"), 401)


def test_a_terminal_needs_a_container_that_runs(computing: ComputeCloud) -> None:
    mine = Mine(computing)
    ok(mine.client.post(f"{mine.path}/stop"))
    refused(upgrade(mine.client, f"{mine.path}/terminal"), 400, "stopped")
    refused(upgrade(mine.client, "/compute/containers/00000000/terminal"), 404)
    refused(upgrade(mine.client, "/compute/containers/00000000/logs"), 404)


@pytest.mark.parametrize("path", ["/compute/ws", "/terminal"])
def test_a_websocket_route_answers_426_to_plain_requests(kept: Mine, path: str) -> None:
    answer = kept.client.get(path if path.startswith("/compute") else kept.path + path)
    refused(answer, 426, "WebSocket")
    assert answer.headers["upgrade"] == "websocket"


@pytest.mark.parametrize("tail", ["-1", "x", "1.5", "10001", "", "9" * 30])
def test_a_tail_that_is_no_number_of_lines(kept: Mine, tail: str) -> None:
    refused(kept.client.get(f"{kept.path}/logs", params={"tail": tail}), 400, "tail")
    refused(upgrade(kept.client, f"{kept.path}/logs?tail={tail}"), 400, "tail")
