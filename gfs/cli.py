"""The `gfs` command."""


def main() -> None:
    raise SystemExit("not yet")
