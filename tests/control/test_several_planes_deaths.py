"""Three control planes on one PostgreSQL: what they share besides rows, and kill -9 of one of
them, and of PostgreSQL, under load."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from checks import PLAIN, bearer, make_token, unique, wait_for
from cloud import PASSWORD
from limits import HANG_SECONDS
from postgresql import PostgreSQL
from s3_client import S3Client, begin, complete, done, new_key, put_part, switch
from spread import Plane, Proxy, SpreadCloud, a_connection_for_each_request
from test_several_planes import server as server

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def cloud(server: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadCloud]:
    directory: Path = tmp_path_factory.mktemp("spread")
    with (
        SpreadCloud(
            directory, server, chunkservers=1, environment={"GFS_CONTROL_LOGIN_FAILURES": "3"}
        ) as made,
        a_connection_for_each_request(),
    ):
        yield made.start()


def at(url: str, token: str | None = None, **options: Any) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, timeout=HANG_SECONDS, **PLAIN, **options)


def test_completions_at_several_make_one_version(cloud: SpreadCloud) -> None:
    """Each machine has lock files of its own; PostgreSQL has one lock for all."""
    key = new_key(*cloud.make_user())
    secret = key["access_key_id"], key["secret_access_key"]
    clients = [S3Client(url, *secret) for url in cloud.s3_urls]
    first, bucket = clients[0], unique("bucket")
    first.put(bucket)
    switch(first, bucket)
    pieces = [b"x" * (6 << 20), b"end"]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for number in range(3):
            path = f"{bucket}/{number}"
            upload = begin(first, path)
            parts = [
                (n, put_part(first, path, upload, n, piece)) for n, piece in enumerate(pieces, 1)
            ]
            asked = [pool.submit(complete, each, path, upload, parts) for each in clients * 2]
            ids = {done(each.result()).headers["x-amz-version-id"] for each in asked}
            listed = done(first.call("GET", bucket, {"versions": "", "prefix": f"{number}"})).text
            assert [listed.count("<Version>"), *map(listed.count, ids)] == [1, 1]
    for each in clients:
        each.close()


def test_versions_stored_at_several_are_all_kept(cloud: SpreadCloud) -> None:
    """Of one key, while some are deleted: everything acknowledged is a version."""
    key = new_key(*cloud.make_user())
    secret = key["access_key_id"], key["secret_access_key"]
    clients = [S3Client(url, *secret) for url in cloud.s3_urls]
    bucket = unique("bucket")
    clients[0].put(bucket)
    switch(clients[0], bucket)

    def store(number: int) -> tuple[str, bytes]:
        client, data = clients[number % 3], f"{number}".encode()
        if number % 5 == 4:
            client.call("DELETE", f"{bucket}/x")
        return done(client.put(f"{bucket}/x", data)).headers["x-amz-version-id"], data

    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        stored = dict(pool.map(store, range(60)))
    assert len(stored) == 60
    for number, (version, data) in enumerate(stored.items()):
        found = clients[number % 3].call("GET", f"{bucket}/x", {"versionId": version})
        assert done(found).content == data
    for each in clients:
        each.close()


def test_a_session_that_ended_at_one_is_refused_by_all(cloud: SpreadCloud) -> None:
    for url in cloud.urls:
        token = cloud.token("admin")
        with at(url, token) as client:
            file = f"/storage/default/{unique('ended')}"
            client.put(file, content=b"1").raise_for_status()
            tickets = "/storage/namespaces/default/tickets"
            ticket = client.post(tickets, json={"path": file[17:]}).json()["ticket"]
            film = f"{file}?ticket={ticket}"
            for other in cloud.urls:
                assert at(other).get(film).content == b"1"
            client.post("/api/logout").raise_for_status()
        for other in cloud.urls:
            with at(other, token) as client:
                assert client.get("/api/session").status_code == 401
            assert at(other).get(film).status_code == 401


def test_a_token_that_is_revoked_at_one_ends_what_is_open_at_the_others(cloud: SpreadCloud) -> None:
    client, user_id = cloud.make_user()
    latest = time.monotonic() + HANG_SECONDS
    for number, url in enumerate(cloud.urls):
        made = make_token(client, {f"storage.{user_id}": ["create", "read", "update", "delete"]})
        with (
            at(cloud.urls[number - 1], made["token"]) as listener,
            listener.stream("GET", "/sse/progress", params={"id": unique("transfer")}) as answer,
        ):
            lines = answer.iter_lines()
            assert next(lines) == ": listening"
            with at(url, bearer(client)) as here:
                here.delete(f"/api/tokens/{made['id']}").raise_for_status()
            with pytest.raises(httpx.RemoteProtocolError):
                list(itertools.takewhile(lambda _: time.monotonic() < latest, lines))


def test_failed_logins_count_everywhere(cloud: SpreadCloud) -> None:
    name = unique("victim")
    cloud.make_user(name)
    wrong = {"username": name, "password": "not the password"}
    for number in range(3):
        with at(cloud.urls[number]) as client:
            assert client.post("/api/login", json=wrong).status_code == 401
    right = {"username": name, "password": PASSWORD}
    for url in cloud.urls:
        with at(url) as client:
            wait_for(
                lambda client=client: client.post("/api/login", json=right).status_code == 429,
                "refusal",
            )


def test_the_progress_of_an_upload_is_seen_elsewhere(cloud: SpreadCloud) -> None:
    client, _ = cloud.make_user()
    space = unique("space")
    client.post("/storage/namespaces", json={"name": space}).raise_for_status()
    token = str(client.headers["Authorization"]).removeprefix("Bearer ")
    for number, url in enumerate(cloud.urls):
        transfer = unique("transfer")
        with at(url, token) as uploader:
            uploader.post(
                "/storage/upload",
                files={"file": (f"{number}.bin", b"x" * 1000)},
                params={"id": transfer, "namespace": space},
            ).raise_for_status()
        with (
            at(cloud.urls[number - 1], token) as listener,
            listener.stream("GET", "/sse/progress", params={"id": transfer}) as answer,
        ):
            lines = [line for line in answer.iter_lines() if line.startswith("data:")]
        last = json.loads(lines[-1].removeprefix("data:"))
        assert last["done"]
        assert last["bytes"] == 1000


class Load:
    """Makes storage namespaces, one after another, until it is stopped."""

    def __init__(self, cloud: SpreadCloud, name: str) -> None:
        self.acknowledged: set[str] = set()
        self.refused: list[httpx.Response] = []
        self._client, _ = cloud.make_user()
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            name = f"{self._name}-{number}"
            try:
                answer = self._client.post("/storage/namespaces", json={"name": name})
            except httpx.TransportError:
                continue  # of a control plane that was killed
            if answer.is_success:
                self.acknowledged.add(name)
            else:
                self.refused.append(answer)
                time.sleep(0.05)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(HANG_SECONDS)

    def wait_for_more(self) -> None:
        count = len(self.acknowledged)
        wait_for(lambda: len(self.acknowledged) > count + 5, "more")

    def all_of_them(self, url: str) -> set[str]:
        with at(url, str(self._client.headers["Authorization"]).removeprefix("Bearer ")) as client:
            return {each["name"] for each in client.get("/storage/namespaces").json()}


def test_kill_9_of_postgresql_and_of_a_control_plane(
    cloud: SpreadCloud, server: PostgreSQL
) -> None:
    loads = [Load(cloud, unique("load")) for _ in range(3)]
    try:
        for turn in range(2):
            for load in loads:
                load.wait_for_more()
            server.kill()
            wait_for(lambda: all(load.refused for load in loads), "refusals")
            with at(cloud.urls[turn]) as client:
                assert client.get("/healthz").status_code == 200
                refusal = client.get("/readyz")
                assert (refusal.status_code, "Retry-After" in refusal.headers) == (503, True)
            server.start()
            for load in loads:
                load.wait_for_more()
            cloud.planes[turn].kill()
            for load in loads:
                load.wait_for_more()
            cloud.planes[turn].start()
    finally:
        for load in loads:
            load.stop()
    for load in loads:
        assert {answer.status_code for answer in load.refused} <= {503, 409}
        assert all(
            "Retry-After" in each.headers for each in load.refused if each.status_code == 503
        )
        for url in cloud.urls:
            assert load.acknowledged <= load.all_of_them(url)


def body(begun: threading.Event, ends: threading.Event) -> Iterator[bytes]:
    """A form with a file that grows until ``ends``."""
    yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="slow"\r\n\r\n'
    for number in itertools.count():
        if ends.wait(0.05):
            break
        yield b"x" * 1000
        if number > 10:
            begun.set()
    yield b"\r\n--B--\r\n"


def test_a_control_plane_that_is_cut_off_from_postgresql_refuses_and_waits_for_nothing(
    cloud: SpreadCloud, server: PostgreSQL, tmp_path: Path
) -> None:
    """Nothing arrives any more, and no connection fails. Requests that are under way end, too; the
    others go on meanwhile."""
    line = Proxy([("127.0.0.1", server.port)])
    url = server.url.replace(str(server.port), str(line.port))
    plane = Plane(cloud, tmp_path, GFS_CONTROL_RECORDS=url)
    answers: dict[str, httpx.Response] = {}
    client, _ = cloud.make_user()
    space, name = unique("space"), unique("other")
    client.post("/storage/namespaces", json={"name": space}).raise_for_status()
    token = str(client.headers["Authorization"]).removeprefix("Bearer ")
    begun, ends = threading.Event(), threading.Event()

    def ask(request: str, method: str, path: str, **options: Any) -> None:
        with at(plane.url, token) as asking:
            answers[request] = asking.request(method, path, **options)

    form = {"Content-Type": "multipart/form-data; boundary=B"}
    where = {"namespace": space, "id": unique("transfer")}
    upload = {"params": where, "content": body(begun, ends), "headers": form}
    try:
        plane.start()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            under_way = threads.submit(ask, "upload", "POST", "/storage/upload", **upload)
            assert begun.wait(HANG_SECONDS)
            line.flows.clear()
            asked = [
                threads.submit(ask, "list", "GET", "/storage/namespaces"),
                threads.submit(ask, "make", "POST", "/storage/namespaces", json={"name": name}),
            ]
            with at(cloud.urls[0], token) as other:
                other.post("/storage/namespaces", json={"name": name}).raise_for_status()
            concurrent.futures.wait(asked)
            ends.set()
            under_way.result()
        for answer in answers.values():
            assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert len(answers) == 3
        line.flows.set()
        wait_for(lambda: plane.answers("/readyz"), "control plane")
        with at(plane.url, token) as back:
            assert name in {each["name"] for each in back.get("/storage/namespaces").json()}
            assert back.get("/storage/files", params={"namespace": space}).json() == []
    finally:
        line.flows.set()
        ends.set()
        plane.stop()
        line.close()
