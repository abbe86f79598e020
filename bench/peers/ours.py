"""This system: ``gfs up``, with its REST API and S3."""

from __future__ import annotations

from pathlib import Path

import gfs
from bench import cluster, rest, s3
from bench.peers.ways import BUCKET, Figures, Http, Library, Signed, measure


def missing() -> str:
    return ""


def version() -> str:
    return gfs.__version__


def run(folder: Path, source: Path, seconds: float, listed: int) -> dict[str, Figures]:
    def target(operation: str, path: str) -> str:
        if operation == "list":
            return f"/storage/files?namespace={rest.SPACE}&prefix={path}/"
        return f"/storage/{rest.SPACE}/{path}"

    with cluster.running(folder=str(folder)) as servers:
        header = f"Authorization: Bearer {rest.log_in(servers).token}"
        port = s3.connected(servers)
        port.call("PUT", f"/{BUCKET}")
        ways = {
            "ours-http": Http(servers.url, header, target),
            "ours-s3": Signed(port),
            "ours-own": Library(servers.state),
        }
        return measure(ways, source, seconds, listed)
