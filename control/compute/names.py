"""Checks of users' values: names, keys, sizes, paths, ports.

Plain functions that raise BadRequest. The values are used in YAML, shell commands, labels,
paths and an ``authorized_keys`` file. So each function allows known good values instead of
forbidding known bad ones, wherever that is acceptable for users.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from control.api import BadRequest
from control.compute.backend import Port

NAME_LENGTH_MAX = 64
KEY_BYTES_MAX = 16 * 1024
KEY_TYPES = (
    "ssh-rsa",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
)
RSA_BITS_MIN = 1024
RSA_BITS_MAX = 16384

MEMORY_MB = range(128, 65536 + 1)
STORAGE_GB = range(1, 1000 + 1)
MEMORY_MB_DEFAULT = 512
STORAGE_GB_DEFAULT = 5

MOUNTS_MAX = 16
MOUNT_BYTES_MAX = 1024
#: The longest part between two slashes, as in file systems.
SEGMENT_BYTES_MAX = 255
MOUNTS_DEFAULT = ("/root",)
#: Directories of the system: a volume there would break the container, or more.
MOUNTS_FORBIDDEN = ("/proc", "/sys", "/dev", "/etc")
#: Characters with a meaning in a shell, a mount option or a list of volumes.
_SPECIAL = frozenset("\"'\\`$&|;<>()[]{}*?!#~=%^:,")

HTTPS = 443
#: How many rules one container has: each is a listening socket of a shared process.
RULES_MAX = 32
#: The ports that an ingress rule may open.
PORTS = frozenset({80, HTTPS, *range(8000, 9000)})
TARGETS = range(1, 65535 + 1)


class InstanceType(NamedTuple):
    architecture: Literal["amd64", "arm64"]
    cpus: float


INSTANCE_TYPES = {
    "nano": InstanceType("arm64", 0.5),
    "micro": InstanceType("arm64", 1.0),
    "mini": InstanceType("arm64", 2.0),
    "tiny": InstanceType("amd64", 1.0),
    "small": InstanceType("amd64", 2.0),
    "medium": InstanceType("amd64", 4.0),
}
INSTANCE_TYPE_DEFAULT = "nano"


def clean_name(name: str) -> str:
    """``name`` trimmed: 1 to 64 characters, except control characters."""
    name = name.strip()
    if not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise BadRequest(f"name: 1 to {NAME_LENGTH_MAX} characters")
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise BadRequest("name: no control characters")
    return name


def check_instance_type(name: str) -> None:
    if name not in INSTANCE_TYPES:
        raise BadRequest(f"instance_type: one of {', '.join(INSTANCE_TYPES)}")


def check_sizes(memory_mb: int, storage_gb: int) -> None:
    if memory_mb not in MEMORY_MB:
        raise BadRequest(f"memory_mb: {MEMORY_MB[0]} to {MEMORY_MB[-1]}")
    if storage_gb not in STORAGE_GB:
        raise BadRequest(f"storage_gb: {STORAGE_GB[0]} to {STORAGE_GB[-1]}")


# --- mount paths ------------------------------------------------------------------------


def check_mounts(paths: Sequence[str]) -> tuple[str, ...]:
    """``paths``, if a container can have them all."""
    if not paths:
        raise BadRequest("mount_paths: give at least one")
    if len(paths) > MOUNTS_MAX:
        raise BadRequest(f"mount_paths: at most {MOUNTS_MAX}")
    for path in paths:
        _check_mount(path)
    known = set(paths)
    if len(known) < len(paths):
        raise BadRequest("mount_paths: one is given twice")
    for path in paths:
        for above in _above(path):
            if above in known:
                raise BadRequest(f"mount_paths: {path} is inside {above}")
    return tuple(paths)


def _check_mount(path: str) -> None:
    shown = ascii(path[:60])
    if len(path.encode(errors="replace")) > MOUNT_BYTES_MAX:
        raise BadRequest(f"mount_paths: {shown}… is longer than {MOUNT_BYTES_MAX} bytes")
    if not path.startswith("/"):
        raise BadRequest(f"mount_paths: {shown} does not begin with /")
    if any(letter in _SPECIAL or letter == " " or not letter.isprintable() for letter in path):
        raise BadRequest(f"mount_paths: {shown}: no spaces, control or special characters")
    if any(part in ("", ".", "..") for part in path[1:].split("/")):
        raise BadRequest(f"mount_paths: {shown}: no //, no . or .., and no / at the end")
    if any(len(part.encode()) > SEGMENT_BYTES_MAX for part in path.split("/")):
        raise BadRequest(f"mount_paths: {shown}… has a part longer than {SEGMENT_BYTES_MAX} bytes")
    for forbidden in MOUNTS_FORBIDDEN:
        if path == forbidden or path.startswith(f"{forbidden}/"):
            raise BadRequest(f"mount_paths: {shown}: {forbidden} is the system's own")


def _above(path: str) -> Iterable[str]:
    path = path.rpartition("/")[0]
    while path:
        yield path
        path = path.rpartition("/")[0]


# --- ports ------------------------------------------------------------------------------


def check_port(port: int) -> None:
    if port not in PORTS:
        raise BadRequest("port: 80, 443 or 8000 to 8999")


def check_rule(port: int, target_port: int | None) -> Port:
    """The rule, whose target is ``port`` by default."""
    check_port(port)
    target = port if target_port is None else target_port
    if target not in TARGETS:
        raise BadRequest(f"target_port: {TARGETS[0]} to {TARGETS[-1]}")
    return Port(port, target)


def check_rule_count(count: int) -> None:
    if count > RULES_MAX:
        raise BadRequest(f"a container has {RULES_MAX} ingress rules at most: delete one first")


# --- SSH keys ---------------------------------------------------------------------------


def clean_key(text: str) -> str:
    """A line for ``authorized_keys``: ``type base64 [comment]``, and nothing else."""
    text = text.strip()
    if len(text.encode(errors="replace")) > KEY_BYTES_MAX:
        raise BadRequest(f"public_key: longer than {KEY_BYTES_MAX} bytes")
    if not text.replace("\t", " ").isprintable():
        raise BadRequest("public_key: one line, without control characters")
    kind, *rest = text.split(None, 2)[:3] or [""]
    if kind not in KEY_TYPES:
        raise BadRequest(f"public_key: begins with one of {', '.join(KEY_TYPES)}")
    if not rest:
        raise BadRequest("public_key: the key is missing after its type")
    _check_blob(kind, rest[0])
    return " ".join([kind, *rest])


def fingerprint(line: str) -> str:
    """``SHA256:…`` of a line from :func:`clean_key`."""
    blob = base64.b64decode(line.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _check_blob(kind: str, text: str) -> None:
    try:
        blob = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        raise BadRequest("public_key: the second word is not base64") from None
    if base64.b64encode(blob).decode() != text:
        raise BadRequest("public_key: the second word is not base64")
    try:
        key = load_ssh_public_key(f"{kind} {text}".encode())
        written = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (ValueError, NotImplementedError, UnsupportedAlgorithm):
        raise BadRequest(f"public_key: this is no key of type {kind}") from None
    is_odd = True
    if isinstance(key, RSAPublicKey):
        if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
            raise BadRequest(f"public_key: an RSA key has {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
        is_odd = key.public_numbers().n % 2 == 1
    # The library accepts a number with leading zeros, and writes it without.
    if not is_odd or written != f"{kind} {text}":
        raise BadRequest(f"public_key: this is no key of type {kind}")
