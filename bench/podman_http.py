"""What a request to Podman costs us, beside the client that we could have used instead.

``control.compute.podman.engine.http`` is some lines around h11. The same requests are made by
httpx and by httpcore, which do the like; all of them to one server of this script's, on a unix
socket, with a connection each. Processor time of this process, in turns.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import threading
import time

import httpcore
import httpx
import trio

from control.compute.podman.engine.http import Client

PATH = "/containers/json"
URL = f"http://podman/v4.0.0/libpod{PATH}"
BODY = b'{"Id": "0123456789abcdef"}' * 30
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
ROUNDS = 5


def answer(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(ANSWER)


async def ours(directory: str, count: int) -> None:
    client = Client(directory, "socket")
    for _ in range(count):
        assert (await client.ask("GET", PATH)).body == BODY


async def by_httpcore(directory: str, count: int) -> None:
    async with httpcore.AsyncConnectionPool(uds=f"{directory}/socket") as pool:
        for _ in range(count):
            with trio.fail_after(30):
                found = await pool.request("GET", URL, headers={"Connection": "close"})
            assert found.content == BODY


async def by_httpx(directory: str, count: int) -> None:
    transport = httpx.AsyncHTTPTransport(uds=f"{directory}/socket")
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(count):
            found = await client.get(URL, headers={"Connection": "close"}, timeout=30)
            assert found.content == BODY


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.podman_http", description=__doc__)
    parser.add_argument("--requests", type=int, default=500, help="of each client, in each round")
    count = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/socket")
        listener.listen()
        threading.Thread(target=answer, args=[listener], daemon=True).start()
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for client in (ours, by_httpcore, by_httpx):
                started = time.thread_time()  # the server is another thread
                trio.run(client, directory, count)
                spent = (time.thread_time() - started) / count * 1e6
                found.setdefault(client.__name__, []).append(spent)
    for name, microseconds in found.items():
        print(f"{name:12} {statistics.median(microseconds):6.0f} µs a request")


if __name__ == "__main__":
    main()
