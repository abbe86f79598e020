"""``python -m gfs.cli``: the `gfs` command."""

from gfs.cli import main

if __name__ == "__main__":
    main()
