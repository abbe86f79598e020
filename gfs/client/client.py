"""The client: one object for all operations of a program on the cluster."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from gfs import config
from gfs.client import small
from gfs.client.append import Appends
from gfs.client.contents import Contents
from gfs.client.core import ClientCore, flat_nursery
from gfs.client.master import MasterClient
from gfs.client.operator import Operator
from gfs.config import ClientSettings
from gfs.errors import ForeignPeer, SettingsError
from gfs.io import World, real_world
from gfs.protocol.credentials import Credentials, load_credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.links import Links
from gfs.protocol.pool import BulkPool
from gfs.state import KEY_NAME, READY_NAME, find_tls


@asynccontextmanager
async def connect(
    master: str | Sequence[str] | None = None,
    *,
    state: str | os.PathLike[str] | None = None,
    key: bytes | str | os.PathLike[str] | None = None,
    tls: str | os.PathLike[str] | None = None,
    settings: ClientSettings | None = None,
    world: World | None = None,
    refused_seconds: float = math.inf,
) -> AsyncIterator[Client]:
    """Connect to a cluster.

    Args:
        master: ``HOST:PORT`` of the master, or several (a list, or with commas): the
            master and its shadow masters, one of which may be promoted. Default:
            ``GFS_MASTER``, else the address that ``gfs up`` wrote into the state
            directory. The single address of a shadow master allows look-ups only.
        state: the state directory. Default: ``GFS_STATE``, else the one that
            ``gfs up`` uses.
        key: the cluster key, or its file, which is read again when it changes.
            Default: the file named by ``GFS_KEY_FILE``, else the state directory's.
        tls: a directory with the ``ca.pem`` of a cluster whose connections are
            encrypted (see :mod:`gfs.io.tls`). Default: ``tls`` in the state directory
            if it exists, else ``GFS_TLS``; no TLS if the key is given as bytes.
        settings: see :class:`gfs.config.ClientSettings`.
        world: clock, network and disks (:mod:`gfs.io`); only tests replace this machine's.
        refused_seconds: give up earlier if for so long nothing listens at any of the
            addresses, or their names do not resolve. Once connected, a call waits for
            ``settings.retry_seconds`` all the same.

    Raises SettingsError when the cluster cannot be found, MasterUnavailable when
    no master answers within ``settings.retry_seconds``, ForeignPeer when none of the
    addresses is a master's, WrongClusterKey, TlsRefused.

    When the block ends, running transfers are cancelled; an upload that was not
    acknowledged does not become visible.
    """
    settings = settings or config.load(ClientSettings, "client")
    settings.check()
    world = world or real_world()
    addresses = find_masters(master, state)
    credentials = find_credentials(key, tls, state)
    identity = Identity(role="client", peer=world.random_bytes(8).hex(), key=credentials)
    async with flat_nursery() as nursery:
        link = MasterClient(world, addresses, identity, nursery, settings.retry_seconds)
        pool = BulkPool(world, identity)
        links = Links(world, identity)
        core = ClientCore(world, settings, link, pool, links)
        small.start(core, nursery)
        appends = Appends(core, nursery)
        try:
            try:
                await link.connect_now(refused_seconds)
            except ForeignPeer as error:
                meant = _meant(addresses, state)
                raise ForeignPeer(f"{error}; {meant}") from error
            nursery.start_soon(core.upkeep)
            nursery.start_soon(core.patience.run)
            await nursery.start(links.run)
            yield Client(core, appends)
        finally:
            small.close(core)
            with trio.move_on_after(1.0, shield=True):
                await small.closed(core)
                await core.release_spare(everything=True)
            nursery.cancel_scope.cancel()
            pool.close()
            link.close()


def find_masters(
    master: str | Sequence[str] | None, state: str | os.PathLike[str] | None
) -> list[str]:
    """The masters' addresses: as given, else ``GFS_MASTER``, else from the state directory."""
    if master is None and state is None:
        master = os.environ.get("GFS_MASTER") or None
    if isinstance(master, str):
        master = [part.strip() for part in master.split(",")]
    if master:
        return list(master)
    return _masters_in(_state_directory(state) / READY_NAME)


def _meant(addresses: list[str], state: str | os.PathLike[str] | None) -> str:
    """Which address is meant instead of one that is not a master's, as far as is known here."""
    directory = _state_directory(state)
    with suppress(SettingsError):
        masters = _masters_in(directory / READY_NAME)
        if not set(masters) & set(addresses):
            return f"the master of the cluster in {directory} is at {','.join(masters)}"
    return f"give the address of a master: gfs status, and {READY_NAME} of gfs up, name it"


def _masters_in(path: Path) -> list[str]:
    try:
        ready = msgspec.json.decode(path.read_bytes())
        return [str(each["address"]) for each in ready.get("masters", [ready["master"]])]
    except FileNotFoundError:
        raise SettingsError(
            f"no cluster runs in {path.parent}: start one with `gfs up`, or say where it "
            "is with --master or --state"
        ) from None
    except (OSError, msgspec.DecodeError, AttributeError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None


def find_credentials(
    key: bytes | str | os.PathLike[str] | None,
    tls: str | os.PathLike[str] | None,
    state: str | os.PathLike[str] | None,
) -> Credentials:
    """The cluster key and TLS, found as :func:`connect` says."""
    secure = Path(tls) if tls is not None else None
    if isinstance(key, bytes):
        return load_credentials(key, secure, server=False)
    if key is None:
        key = (os.environ.get("GFS_KEY_FILE") or None) if state is None else None
        key = key if key is not None else _state_directory(state) / KEY_NAME
    secure = find_tls(secure, Path(state) if state is not None else None)
    return load_credentials(Path(key), secure, server=False)


def _state_directory(state: str | os.PathLike[str] | None) -> Path:
    return Path(state) if state is not None else config.default_state_directory()


class Client(Contents, Operator):
    """A connected client. Get one with :func:`connect`. Safe for many tasks.

    Every call may raise MasterUnavailable, and, if it reads or writes bytes,
    ChunkUnavailable; other errors are named with each call. A cancelled call may or may
    not have taken effect; a file is never partly visible.
    """
