"""Making a new file visible: its options, and the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from gfs.blocks import FileDigest
from gfs.client.core import ClientCore
from gfs.client.read import check_path
from gfs.errors import InvalidArgument, InvalidName
from gfs.protocol.attributes import check_attributes
from gfs.protocol.messages import Entry, Join, Publish, PublishedChunk, ServerAddress

Kind = TypeVar("Kind", bound=Publish)

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """How a new file takes its name, and its attributes. The options are checked before
    the first byte is sent.

    Raises InvalidArgument or InvalidName.
    """

    replace: bool = False
    #: Make missing directories; a path: only below that one, which must be there.
    parents: bool | str = True
    attributes: Mapping[str, str] | None = None
    #: 0: the path must not exist; n: the inode of the file that is replaced.
    expect: int | None = None
    #: The file's time of change; 0: when it is published.
    modified_ns: int = 0
    #: The inode of the file that is kept for its readers if it is replaced, while any other is
    #: deleted at once; None: whichever is replaced is kept.
    keeps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.parents, str):
            check_path(self.parents)
            if not self.parents:
                raise InvalidName("the path of the directory that must exist is empty")
        if self.attributes:
            check_attributes(self.attributes)
        check_expect(self.expect)


def check_expect(expect: int | None) -> None:
    if expect is not None and not (isinstance(expect, int) and 0 <= expect < 1 << 63):
        raise InvalidArgument(f"expect is not an inode number: {expect!r:.100}")


def goal_of(replication: int | None) -> int:
    """The goal in a message: 0 for the cluster's. The master ends a connection for one that is
    no number, and other calls use it. Raises InvalidArgument."""
    if not isinstance(replication, int | None):
        raise InvalidArgument(f"a replication of {replication!r:.100}: it must be a number")
    return replication or 0


class Written(Protocol):
    """A chunk that is on all servers of its chain."""

    handle: int
    version: int
    length: int
    chain: list[ServerAddress]


def publish_request(
    core: ClientCore,
    path: str,
    options: PublishOptions,
    replication: int,
    chunks: Sequence[Written],
    digest: bytes,
) -> tuple[Publish, bytes]:
    """The message that makes a file of these chunks visible, and its body."""
    ids: dict[str, int] = {}
    published = [
        PublishedChunk(
            handle=chunk.handle,
            version=chunk.version,
            length=chunk.length,
            servers=[ids.setdefault(s.id, len(ids)) for s in chunk.chain],
        )
        for chunk in chunks
    ]
    length = sum(chunk.length for chunk in chunks)
    request = _request(Publish, core, path, options, replication, length, list(ids), digest)
    return request, _encode(published)


def join_request(
    core: ClientCore, path: str, options: PublishOptions, replication: int, files: Sequence[Entry]
) -> tuple[Join, bytes]:
    """The message that makes a file of the chunks of these files visible, and its body."""
    digest = FileDigest()
    for each in files:
        digest.update(each.digest)
    length = sum(each.length for each in files)
    # That of one file stays.
    said = files[0].digest if len(files) == 1 else digest.digest()
    request = _request(Join, core, path, options, replication, length, [], said)
    return request, _encode([each.inode for each in files])


def _request(
    kind: type[Kind], core: ClientCore, path: str, options: PublishOptions, replication: int,
    length: int, servers: list[str], digest: bytes,
) -> Kind:  # fmt: skip
    return kind(
        *core.master.stamp(),
        path=path,
        length=length,
        replication=replication,
        replace=bool(options.replace),
        parents=bool(options.parents),
        servers=servers,
        digest=digest,
        attributes=dict(options.attributes or {}),
        expect=-1 if options.expect is None else options.expect,
        below=options.parents if isinstance(options.parents, str) else "",
        modified_ns=options.modified_ns,
        keeps=-1 if options.keeps is None else options.keeps,
    )
