"""What a run found, as a Markdown table."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]

#: Its title, and what is acknowledged when a put returns.
WAYS = {
    "ours-http": (
        "this system, REST API",
        "name on the master's disk, bytes in the page cache of 3 servers",
    ),
    "seaweedfs-http": (
        "SeaweedFS, filer (HTTP)",
        "name in the page cache of the filer, bytes in that of 3 servers",
    ),
    "ours-s3": (
        "this system, S3",
        "name on the master's disk, bytes in the page cache of 3 servers",
    ),
    "seaweedfs-s3": (
        "SeaweedFS, S3",
        "name in the page cache of the filer, bytes in that of 3 servers",
    ),
    "ours-own": (
        "this system, library",
        "name on the master's disk, bytes in the page cache of 3 servers",
    ),
    "seaweedfs-own": (
        "SeaweedFS, its own programs",
        "bytes in the page cache of 3 servers, small ones without a name",
    ),
    "moosefs": (
        "MooseFS, mount",
        "name in the master's memory, bytes in the page cache of 3 servers",
    ),
}
SYSTEMS = {"ours": "this system", "seaweedfs": "SeaweedFS", "moosefs": "MooseFS"}
FIGURES = {
    "write": "large file written, MiB/s",
    "read": "large file read, MiB/s",
    "put": "1 KiB put /s",
    "get": "1 KiB got /s",
    "stat": "`stat` /s",
    "list": "entries listed /s",
    "delete": "deleted /s",
}


def turns(systems: list[str], number: int) -> list[str]:
    """Each round begins with another system."""
    at = number % len(systems)
    return systems[at:] + systems[:at]


def table(result: Result, conditions: str) -> str:
    """Medians; what did not run is said below."""
    figures = result["figures"]
    rows = [
        ["", "on acknowledgement", *FIGURES.values()],
        ["---", "---", *("---:" for _ in FIGURES)],
        *(
            [*WAYS[way], *(number(figures[way].get(key)) for key in FIGURES)]
            for way in WAYS
            if way in figures
        ),
    ]
    versions = ", ".join(
        f"{SYSTEMS[name]} {version}" for name, version in result["versions"].items()
    )
    about = (
        f"{conditions}. Medians of {result['rounds']} rounds; one large file of {result['mib']} "
        f"MiB, {result['in_flight']} calls in flight, directories of {result['listed']} files "
        f"listed, 3 replicas. {versions}."
    )
    missing = [f"{SYSTEMS[name]} was not run: {why}." for name, why in result["not_run"].items()]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", about, *missing])


def number(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.0f}"
