"""This system: ``gfs up``, with its REST API."""

from __future__ import annotations

from pathlib import Path

import gfs
from bench import cluster, rest
from bench.peers.ways import Figures, Http, Library, measure


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
        http, library = Http(servers.url, header, target), Library(servers.state)
        return measure({"ours-http": http, "ours-own": library}, source, seconds, listed)
