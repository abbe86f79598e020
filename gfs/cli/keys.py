"""``gfs key``: change the cluster key while everything runs."""

from __future__ import annotations

import click

from gfs.cli.options import Cluster, cluster_options, key_file


@click.group()
def key() -> None:
    """Change the cluster key while the cluster runs.

    \b
    1. gfs key rotate     on one machine: its key file has a new key and the old one
    2. copy the file      to all machines, in any order, mode 0600
    3. gfs key retire     on each machine: it no longer accepts the old key

    Servers and clients notice within a second. Any two with a key in common can
    connect, so nothing stops in between; from step 3 on a process that has only the old
    key is refused.
    """


@key.command()
@cluster_options("state", "key_file")
def rotate(cluster: Cluster) -> None:
    """Add a new key to the key file; the old one is still accepted."""
    from gfs.state import rotate_key

    path = key_file(cluster)
    rotate_key(path)
    print(
        f"{path} has a new key, and the old one. Copy it to all machines that have one; when "
        "all have it, retire the old key on each: gfs key retire"
    )


@key.command()
@cluster_options("state", "key_file")
def retire(cluster: Cluster) -> None:
    """Accept only the new key, and end the connections made with the old one."""
    from gfs.state import retire_keys

    path = key_file(cluster)
    if retire_keys(path):
        print(f"{path}: the old key is retired.")
    else:
        print(f"{path}: it has one key, and no old one to retire.")


@key.command("show")
@cluster_options("state", "key_file")
def show(cluster: Cluster) -> None:
    """Print the names of the keys in the key file, which do not reveal them."""
    from gfs.protocol.credentials import key_name
    from gfs.state import read_keys

    for number, one in enumerate(read_keys(key_file(cluster))):
        print(key_name(one).hex(), "old" if number else "in use")
