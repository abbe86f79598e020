"""The errors of the file system, in one tree.

Every failure a caller can see is one of these classes, whichever process it
happened in: a server sends ``code`` and the message, from which :func:`from_wire` makes
the same class on the other side.

::

    GfsError
    ├── NotFound (FileNotFoundError)            no such file or directory
    ├── AlreadyExists (FileExistsError)         the name is taken
    ├── IsADirectory (IsADirectoryError)        a file was wanted
    ├── NotADirectory (NotADirectoryError)      a directory was wanted
    ├── DirectoryNotEmpty                       delete without recursive
    ├── InvalidName (ValueError)                the path breaks the naming rules
    ├── InvalidArgument (ValueError)            any other argument is refused
    ├── Retryable
    │   ├── MasterUnavailable (ConnectionError) no master answers
    │   ├── ReplicaUnavailable (ConnectionError) one chunkserver does not answer
    │   ├── NotEnoughChunkservers               a new chunk cannot be placed now
    │   ├── StaleVersion                        the replica or the caller is behind
    │   ├── LeaseLost                           the primary may not order mutations
    │   ├── FileChanged                         the file was replaced while read
    │   ├── Busy                                a limit was reached: try again later
    │   │   └── NotEnoughShadows                too few shadow masters to acknowledge
    │   ├── NotTheMaster (ConnectionError)      a shadow master was asked to change something
    │   └── DeadlineExceeded (TimeoutError)     a wait reached its deadline
    ├── DrainRefused                            a chunkserver cannot be emptied
    ├── ChunkUnavailable                        no good replica can be reached now
    ├── CorruptReplica                          stored bytes fail their checksum
    ├── DiskFull                                no room on a chunkserver's disk
    ├── DiskFailed                              a disk refuses reads or writes
    ├── WrongClusterKey (PermissionError)       the peer does not have the key
    ├── WrongCluster (PermissionError)          the peer belongs to another cluster
    ├── TlsRefused (PermissionError)            no trusted encrypted connection
    ├── ProtocolError (ValueError)              the peer does not use our protocol
    │   ├── ForeignPeer                         the address is of another kind of server
    │   └── OlderRelease                        the peer does not know a message yet
    ├── Deposed                                 a master of a higher term took over
    ├── SettingsError (ValueError)              a setting is invalid
    └── StartupError                            the process cannot start here

``http_status`` is what the REST control plane answers, ``exit_code`` what the
command line returns, ``retryable`` whether the same call may succeed later.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AlreadyExists",
    "Busy",
    "ChunkUnavailable",
    "CorruptReplica",
    "DeadlineExceeded",
    "Deposed",
    "DirectoryNotEmpty",
    "DrainRefused",
    "DiskFailed",
    "DiskFull",
    "FileChanged",
    "ForeignPeer",
    "GfsError",
    "InvalidArgument",
    "InvalidName",
    "InvariantViolated",
    "IsADirectory",
    "LeaseLost",
    "MasterUnavailable",
    "NotADirectory",
    "NotEnoughChunkservers",
    "NotEnoughShadows",
    "NotFound",
    "NotTheMaster",
    "OlderRelease",
    "ProtocolError",
    "ReplicaUnavailable",
    "Retryable",
    "SettingsError",
    "StaleVersion",
    "StartupError",
    "TlsRefused",
    "WrongCluster",
    "WrongClusterKey",
    "from_wire",
    "invariant",
]


class GfsError(Exception):
    """Root of the tree. ``str(error)`` is one line that says what to do."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    #: The request that failed, as the servers' logs name it; empty: not known.
    request: str = ""

    # OSError's would leave out the sentence of one that has a filename.
    __str__ = Exception.__str__

    def __reduce__(self) -> tuple[type[GfsError], tuple[Any, ...], dict[str, Any]]:
        """Also with what OSError takes from its arguments, which here are one sentence."""
        kept = dict(self.__dict__)
        if isinstance(self, OSError):
            names = ("errno", "filename", "filename2")
            kept |= {name: getattr(self, name) for name in names}
        return type(self), self.args, kept


class NotFound(GfsError, FileNotFoundError):
    code = "not_found"
    http_status = 404


class AlreadyExists(GfsError, FileExistsError):
    code = "already_exists"
    http_status = 409


class IsADirectory(GfsError, IsADirectoryError):
    code = "is_a_directory"
    http_status = 409


class NotADirectory(GfsError, NotADirectoryError):
    code = "not_a_directory"
    http_status = 409


class DirectoryNotEmpty(GfsError, OSError):
    code = "directory_not_empty"
    http_status = 409


class InvalidName(GfsError, ValueError):
    code = "invalid_name"
    http_status = 400


class InvalidArgument(GfsError, ValueError):
    code = "invalid_argument"
    http_status = 400


class Retryable(GfsError):
    """The same call may succeed later, unchanged."""

    code = "retryable"
    http_status = 503
    retryable = True


class MasterUnavailable(Retryable, ConnectionError):
    code = "master_unavailable"
    exit_code = 3


class ReplicaUnavailable(Retryable, ConnectionError):
    """A chunkserver cannot be reached; ``server`` is its id when known."""

    code = "replica_unavailable"

    def __init__(self, message: str, server: str = "") -> None:
        super().__init__(message)
        self.server = server


class NotEnoughChunkservers(Retryable):
    code = "not_enough_chunkservers"


class StaleVersion(Retryable):
    code = "stale_version"


class LeaseLost(Retryable):
    code = "lease_lost"


class FileChanged(Retryable):
    code = "file_changed"
    http_status = 409


class Busy(Retryable):
    code = "busy"


class NotEnoughShadows(Busy):
    """The mutation may have been carried out. A retry with the same sequence number is
    acknowledged once enough shadow masters have it."""

    code = "not_enough_shadows"


class NotTheMaster(Retryable, ConnectionError):
    code = "not_the_master"


class DeadlineExceeded(Retryable, TimeoutError):
    code = "deadline_exceeded"
    http_status = 504


class DrainRefused(GfsError):
    """Goals could not be met, or data would be lost. The message says what to add."""

    code = "drain_refused"
    http_status = 409


class ChunkUnavailable(GfsError, OSError):
    """The chunk is unavailable, not corrupt (the paper, 2.7.1)."""

    code = "chunk_unavailable"
    http_status = 503


class CorruptReplica(GfsError, OSError):
    code = "corrupt_replica"


class DiskFull(GfsError, OSError):
    code = "disk_full"
    http_status = 507


class DiskFailed(GfsError, OSError):
    code = "disk_failed"


class WrongClusterKey(GfsError, PermissionError):
    code = "wrong_cluster_key"
    http_status = 502
    exit_code = 2


class WrongCluster(GfsError, PermissionError):
    code = "wrong_cluster"
    http_status = 502
    exit_code = 2


class TlsRefused(GfsError, PermissionError):
    """Only one side encrypts, or a certificate is not trusted."""

    code = "tls"
    http_status = 502
    exit_code = 2


class ProtocolError(GfsError, ValueError):
    code = "protocol"
    http_status = 502


class ForeignPeer(ProtocolError):
    """What answers at the address is not what is looked for: an HTTP server, for example, or a
    chunkserver where a master should be."""

    code = "foreign_peer"


class OlderRelease(ProtocolError):
    """The peer is of a release that does not know the message. It was not sent."""

    code = "older_release"


class Deposed(GfsError):
    """A master of a higher term replaced this one; it does not serve any more."""

    code = "deposed"
    http_status = 503
    exit_code = 2


class SettingsError(GfsError, ValueError):
    code = "settings"
    exit_code = 2


class StartupError(GfsError):
    code = "startup"
    exit_code = 2


class InvariantViolated(AssertionError):
    """An invariant of the code is violated: a bug, never bad input."""


def invariant(condition: object, sentence: str) -> None:
    """Raise :class:`InvariantViolated` unless ``condition``; ``-O`` keeps it."""
    if not condition:
        raise InvariantViolated(sentence)


def _tree(root: type[GfsError]) -> dict[str, type[GfsError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


_BY_CODE = _tree(GfsError)


def from_wire(code: str, message: str, server: str = "") -> GfsError:
    """The error a peer sent. An unknown code (a newer peer) is a GfsError.

    ``server`` is the id of the chunkserver that failed, if the peer named one;
    it becomes the error's attribute of that name.
    """
    error = _BY_CODE.get(code, GfsError)(message)
    if server:
        error.__dict__["server"] = server
    return error


def innermost(error: BaseException) -> BaseException:
    """The first exception in nested groups; an exception that is not a group,
    unchanged. For groups that were filtered (``subgroup``, ``except*``), where any of
    the exceptions will do."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
