"""The part of the help about settings that have no flag."""

from __future__ import annotations

from typing import Any

import click

#: Role → setting → its help. docs/settings.md has all settings.
SHOWN = {
    "master": {
        "trash_seconds": "How long deleted files can be undeleted",
        "moves_total": "Replicas moved at once to rebalance racks and disks; 0: none",
        "balance_share": "Disks whose use differs by more than this share are rebalanced",
    },
    "chunkserver": {
        "scrub_seconds": "All blocks are read and verified once in this time",
        "durability": "With fsync, a power cut of all machines loses nothing acknowledged",
    },
}


class ServerCommand(click.Command):
    """A command whose help ends with the settings of ``roles``."""

    def __init__(self, *args: Any, roles: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.roles = roles

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_settings(formatter, self.roles)
        super().format_epilog(ctx, formatter)


def write_settings(formatter: click.HelpFormatter, roles: tuple[str, ...] = tuple(SHOWN)) -> None:
    from gfs.config import ChunkserverSettings, MasterSettings

    defaults = {"master": MasterSettings(), "chunkserver": ChunkserverSettings()}
    with formatter.section("Settings of servers (or in --config; all are in docs/settings.md)"):
        formatter.write_dl(
            [
                (
                    f"GFS_{role}_{name}".upper(),
                    f"{what} (default {_shown(getattr(defaults[role], name))})",
                )
                for role in roles
                for name, what in SHOWN[role].items()
            ]
        )


def _shown(value: object) -> str:
    """Durations of a day or more are shown in days."""
    days = value / (24 * 3600) if isinstance(value, float) else 0.0
    return f"{days:g} days" if days >= 1 else str(value)
