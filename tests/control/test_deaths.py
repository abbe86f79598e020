"""Processes that die, or hang, in the middle of a transfer through the REST API.

Each test stops sending, or reading, where the death is to hit: nothing is asked of
time but that it does not run out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from checks import (
    bearer,
    get,
    make_namespace,
    make_token,
    metric,
    names,
    ok,
    paths,
    put,
    refused,
    unique,
    wait_for,
    with_token,
)
from cloud import Cloud
from raw import FORM_END, FORM_TYPE, Answer, Connection, form_part, head
from signals import send

pytestmark = pytest.mark.real

MIB = 1024 * 1024
#: A chunk of 64 MiB and one that is not full.
PIECES = 80
#: More than a chunk of it.
MOST = 70

SERVERS = ["chunkserver-1", "chunkserver-2", "chunkserver-3"]
KINDS = ["form", "raw"]
OVERWRITES = ["", "overwrite=true"]


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud whose processes may be killed, and that gives up soon what is nobody's."""
    with Cloud(
        tmp_path_factory.mktemp("mortal"),
        environment={
            "GFS_MASTER_GARBAGE_GRACE_SECONDS": "2",
            # A living client is heard from every 10 s, and more seldom on a busy machine.
            "GFS_MASTER_CLIENT_SILENCE_SECONDS": "40",
            "GFS_MASTER_DEAD_SECONDS": "5",
        },
    ) as made:
        yield made.start()


@pytest.fixture(scope="module")
def account(mortal: Cloud) -> tuple[str, str]:
    """Token and id of a user. A token: connections do not outlive the control plane."""
    client, user_id = mortal.make_user(unique("mortal"))
    return bearer(client), user_id


@pytest.fixture
def user(mortal: Cloud, account: tuple[str, str]) -> Iterator[httpx.Client]:
    settle(mortal)
    with with_token(mortal.url, account[0]) as client:
        yield client


@pytest.fixture
def space(user: httpx.Client) -> str:
    return make_namespace(user, "mortal")


def piece(number: int) -> bytes:
    """The ``number``-th MiB of the file: no two are alike."""
    return number.to_bytes(8, "big") * 16 + _PADDING


_PADDING = random.Random(20).randbytes(MIB - 128)


def digest_of(pieces: int = PIECES) -> str:
    digest = hashlib.sha256()
    for number in range(pieces):
        digest.update(piece(number))
    return digest.hexdigest()


def totals(cloud: Cloud) -> dict[str, Any]:
    found: dict[str, Any] = cloud.cluster.json("status")
    return found


def settle(cloud: Cloud) -> None:
    """Wait until all servers live and nothing is under way, broken or left over."""

    def is_settled() -> bool:
        status = totals(cloud)
        counts = status["totals"]
        live = [server for server in status["servers"] if server["state"] == "live"]
        return len(live) == len(SERVERS) and not any(
            counts[name]
            for name in ("under_replicated", "corrupt", "lost", "orphaned", "stale",
                         "repairs_active", "repairs_queued")
        )  # fmt: skip

    try:
        wait_for(is_settled, "settled cluster")
    except AssertionError as error:
        error.add_note(f"status: {json.dumps(totals(cloud))}")
        raise


def surplus(cloud: Cloud) -> int:
    """How many replicas lie on the disks beside those of files, as the last heartbeats said."""
    status = totals(cloud)
    counted = sum(server["chunks"] for server in status["servers"])
    return int(counted - len(SERVERS) * status["totals"]["chunks"])


def wait_for_collection(cloud: Cloud) -> None:
    wait_for(lambda: surplus(cloud) == 0, "collection of what is no file's")


class Upload:
    """An upload that is sent piece by piece."""

    def __init__(self, cloud: Cloud, user: httpx.Client, space: str, kind: str, query: str) -> None:
        self.connection = Connection(cloud.url)
        headers = {"Authorization": f"Bearer {bearer(user)}"}
        before, self.after = b"", b""
        if kind == "form":
            target = f"/storage/upload?namespace={space}&{query}"
            headers["Content-Type"] = FORM_TYPE
            before, self.after = form_part("file", b"", "f")[:-2], b"\r\n" + FORM_END
        else:
            target = f"/storage/{space}/f?{query}"
        length = len(before) + PIECES * MIB + len(self.after)
        headers |= {"Content-Length": str(length), "X-File-Size": str(PIECES * MIB)}
        self.connection.send(head("POST", target, self.connection.host, headers) + before)
        self.sent = 0

    def send(self, pieces: int) -> bool:
        """So many more; False if the server had closed."""
        for number in range(self.sent, self.sent + pieces):
            if not self.connection.send(piece(number)):
                return False
        self.sent += pieces
        return True

    def finish(self) -> Answer:
        if not self.send(PIECES - self.sent):
            pytest.fail(f"it was refused before its end: {self.connection.answer()}")
        self.connection.send(self.after)
        return self.connection.answer()


def download(user: httpx.Client, space: str) -> str:
    """The digest of all of the file."""
    digest = hashlib.sha256()
    with user.stream("GET", f"/storage/{space}/f") as answer:
        assert answer.status_code == 200
        for data in answer.iter_bytes():
            digest.update(data)
    return digest.hexdigest()


@pytest.mark.parametrize("name", SERVERS)
def test_an_upload_outlives_a_chunkserver(mortal: Cloud, user: httpx.Client, name: str) -> None:
    """Each of the three dies once in an upload of each kind, so the primary does, too."""
    uploads = {}
    for kind in KINDS:
        space = make_namespace(user, "mortal")
        uploads[space] = Upload(mortal, user, space, kind, "")
        assert uploads[space].send(PIECES // 2)
    old = mortal.cluster.kill(name)
    for space, upload in uploads.items():
        ok(upload.finish())
        assert download(user, space) == digest_of()
    mortal.cluster.wait_restarted(name, old)
    settle(mortal)
    assert mortal.cluster.json("fsck")["damaged"] == []


def test_an_upload_outlives_a_chunkserver_that_hangs(
    mortal: Cloud, user: httpx.Client, space: str
) -> None:
    upload = Upload(mortal, user, space, "form", "")
    assert upload.send(PIECES // 3)
    mortal.cluster.kill(SERVERS[0], signal.SIGSTOP)
    try:
        ok(upload.finish())
        assert download(user, space) == digest_of()
    finally:
        mortal.cluster.kill(SERVERS[0], signal.SIGCONT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_download_outlives_chunkservers(
    mortal: Cloud, user: httpx.Client, space: str, how: signal.Signals
) -> None:
    """Each of the three is hit once, so whichever serves is, too."""
    ok(Upload(mortal, user, space, "raw", "").finish())
    settle(mortal)
    with Connection(mortal.url, receive_bytes=256 * 1024) as connection:
        connection.request(
            "GET", f"/storage/{space}/f", {"Authorization": f"Bearer {bearer(user)}"}
        )
        assert connection.answer_head().status == 200
        digest, read = hashlib.sha256(), 0

        def more(pieces: int) -> None:
            nonlocal read
            for _ in range(pieces):
                digest.update(connection.read(MIB))
            read += pieces

        for name in SERVERS:
            more(PIECES // 5)
            old = mortal.cluster.kill(name, how)
            try:
                more(PIECES // 10)
            finally:
                if how == signal.SIGSTOP:
                    mortal.cluster.kill(name, signal.SIGCONT)
                else:
                    mortal.cluster.wait_restarted(name, old)
            settle(mortal)
        more(PIECES - read)
        assert digest.hexdigest() == digest_of()
        # And the connection is still good for more.
        assert connection.exchange("GET", "/healthz").status == 200


def test_a_download_with_no_replica_left_is_short(
    mortal: Cloud, user: httpx.Client, space: str
) -> None:
    """Closed short of ``Content-Length``: never padded, never wrong, never for ever."""
    ok(Upload(mortal, user, space, "raw", "").finish())
    with Connection(mortal.url, receive_bytes=256 * 1024) as connection:
        connection.request(
            "GET", f"/storage/{space}/f", {"Authorization": f"Bearer {bearer(user)}"}
        )
        assert connection.answer_head().status == 200
        data = connection.read(MIB)
        for name in SERVERS:
            mortal.cluster.kill(name, signal.SIGSTOP)
        try:
            rest = connection.read_to_end()
        finally:
            for name in SERVERS:
                mortal.cluster.kill(name, signal.SIGCONT)
    got = data + rest
    assert len(got) < PIECES * MIB
    whole = b"".join(piece(number) for number in range(len(got) // MIB + 1))
    assert got == whole[: len(got)]


def test_the_master_may_restart_in_the_middle(
    mortal: Cloud, user: httpx.Client, space: str
) -> None:
    upload = Upload(mortal, user, space, "raw", "")
    assert upload.send(PIECES // 2)
    old = mortal.cluster.kill("master")
    assert upload.send(10)
    mortal.cluster.wait_restarted("master", old)
    ok(upload.finish())
    assert download(user, space) == digest_of()


def test_nothing_is_left_of_uploads_whose_server_was_killed(
    mortal: Cloud, account: tuple[str, str], user: httpx.Client
) -> None:
    """All kinds of uploads at once: collection waits for a client that may come back."""
    api = make_token(user, {f"storage.{account[1]}": ["read"]})
    spaces = {kind: make_namespace(user, "killed") for kind in itertools.product(KINDS, OVERWRITES)}
    for (_, overwrite), space in spaces.items():
        if overwrite:
            put(user, space, "f", b"the old one")
    settle(mortal)
    wait_for_collection(mortal)
    known = names(user)

    uploads = [Upload(mortal, user, space, *kind) for kind, space in spaces.items()]
    for upload in uploads:
        assert upload.send(MOST)
    wait_for(lambda: surplus(mortal) > 0, "chunks of the uploads")
    old = mortal.cluster.kill("control")
    for upload in uploads:
        upload.send(1)
        assert upload.connection.read_to_end() == b"", "it had not answered"
    mortal.cluster.wait_restarted("control", old)

    with with_token(mortal.url, bearer(user)) as again:
        for (_, overwrite), space in spaces.items():
            assert paths(again, space) == (["f"] if overwrite else [])
            if overwrite:
                assert get(again, space, "f") == b"the old one"
            else:
                refused(again.get(f"/storage/{space}/f"), 404)
        assert names(again) == known
        assert api["id"] in [token["id"] for token in ok(again.get("/api/tokens"))]
        with with_token(mortal.url, api["token"]) as other:
            assert set(spaces.values()) <= set(names(other))

        wait_for_collection(mortal)
        for (kind, _), space in spaces.items():
            ok(Upload(mortal, again, space, kind, "overwrite=true").finish())
            assert download(again, space) == digest_of()
    assert mortal.cluster.json("fsck")["damaged"] == []


def test_what_was_answered_outlives_the_control_plane(
    mortal: Cloud, user: httpx.Client, space: str
) -> None:
    """Killed right after the answer: what was promised is done."""
    kept: str | None = None
    token = bearer(user)
    for number in range(5):
        with with_token(mortal.url, token) as client:
            gone, kept = kept, make_namespace(client, f"answered-{number}")
            put(client, kept, "f", kept.encode())
            if gone is not None:
                ok(client.delete(f"/storage/namespaces/{gone}"))
        old = mortal.cluster.kill("control")
        mortal.cluster.wait_restarted("control", old)
        with with_token(mortal.url, token) as again:
            assert get(again, kept, "f") == kept.encode()
            if gone is not None:
                refused(again.get("/storage/files", params={"namespace": gone}), 404)
    tree = mortal.cluster.gfs("ls", "-R", "/").stdout.decode()
    left = [line for line in tree.splitlines() if "answered-" in line]
    assert left
    assert all(f"/{kept}." in line for line in left), tree


def test_a_request_that_is_under_way_ends_when_the_server_stops(mortal: Cloud) -> None:
    """``SIGTERM`` to the control plane: no answer is cut in half; it is started again."""
    old = mortal.cluster.pid("control")
    with Connection(mortal.url) as connection:
        assert connection.exchange("GET", "/healthz").status == 200
        send(old, signal.SIGTERM)
        assert connection.is_closed()
    mortal.cluster.wait_restarted("control", old)
    with with_token(mortal.url, "x") as client:
        ok(client.get("/healthz"))


def active(cloud: Cloud) -> float:
    return metric(cloud.url, "gfs_control_transfers_active")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_client_that_leaves_an_upload_leaves_nothing(
    mortal: Cloud, user: httpx.Client, space: str, kind: str, reset: bool
) -> None:
    wait_for_collection(mortal)
    upload = Upload(mortal, user, space, kind, "")
    assert upload.send(MOST)
    wait_for(lambda: surplus(mortal) > 0, "chunks of the upload")
    wait_for(lambda: active(mortal) == 1, "one transfer")
    if reset:
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        upload.connection.socket.setsockopt(1, 13, linger)  # SO_LINGER of 0: a reset
    upload.connection.close()
    wait_for(lambda: active(mortal) == 0, "end of the transfer")
    assert paths(user, space) == []

    wait_for_collection(mortal)


def test_a_client_that_leaves_a_download_frees_its_place(
    mortal: Cloud, user: httpx.Client, space: str
) -> None:
    ok(Upload(mortal, user, space, "raw", "").finish())
    opened = []
    for _ in range(5):
        connection = Connection(mortal.url, receive_bytes=64 * 1024)
        connection.request(
            "GET", f"/storage/{space}/f", {"Authorization": f"Bearer {bearer(user)}"}
        )
        assert connection.answer_head().status == 200
        assert connection.read(MIB) == piece(0)
        opened.append(connection)
    wait_for(lambda: active(mortal) == 5, "five transfers")
    for connection in opened:
        connection.close()
    wait_for(lambda: active(mortal) == 0, "end of the transfers")
    assert download(user, space) == digest_of()
