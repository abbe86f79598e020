"""What users may write: whatever passes is harmless where it ends up."""

from __future__ import annotations

import base64
import posixpath
import re
import shlex
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest
from compute_inputs import BAD_MOUNTS, CURVES, GOOD_MOUNTS, TYPES, blob, new_key
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from hypothesis import example, given, settings
from hypothesis import strategies as st
from share import share

from control.api.call import decode_json
from control.compute import names
from control.compute.backend import Port
from control.compute.requests import shapes
from control.errors import BadRequest

T = TypeVar("T")

KEYS = {kind: new_key(kind) for kind in TYPES}


def done_or_refused(act: Callable[[], T], begins: str = "") -> T | None:
    """What ``act`` returns, or None if it has said in one line what is wrong."""
    try:
        return act()
    except BadRequest as error:
        reported = str(error)
    assert reported.startswith(begins)
    assert reported.isprintable()
    return None


# --- SSH keys ---------------------------------------------------------------------------

#: Words that mean something in a line of authorized_keys, and what parts them.
WORDS = st.sampled_from(
    [*TYPES, *(line.split()[1] for line in KEYS.values()), 'command="sh"', "no-pty", "#", "AAAA",
     " ", "  ", "\t", "\n", "\r", "\0", ",", '"', "ada@laptop", "\u2028", "\u00a0", "=", "@"]
)  # fmt: skip


def check_line(line: str) -> None:
    """It is one key that another implementation reads as of that type, and no options."""
    kind, blob, *comment = line.split(" ", 2)
    assert kind in TYPES
    assert line.replace("\t", " ").isprintable()
    assert load_ssh_public_key(f"{kind} {blob}".encode())
    data = base64.b64decode(blob, validate=True)
    size = struct.unpack(">I", data[:4])[0]
    assert data[4 : 4 + size].decode() == kind
    assert len(comment) <= 1


@settings(deadline=None, max_examples=share(300))
@given(st.lists(WORDS | st.text(max_size=8), max_size=8).map("".join))
def test_a_line_that_passes_is_one_key(text: str) -> None:
    try:
        line = names.clean_key(text)
    except BadRequest:
        return
    check_line(line)


@settings(deadline=None, max_examples=share(300))
@given(st.sampled_from(TYPES), st.data())
def test_a_key_with_other_bytes_is_none_or_another(kind: str, data: Any) -> None:
    """One byte is changed, or some are cut out or put in."""
    blob = bytearray(base64.b64decode(KEYS[kind].split()[1]))
    at = data.draw(st.integers(0, len(blob) - 1))
    count = data.draw(st.integers(0, 4))
    blob[at : at + count] = data.draw(st.binary(max_size=4))
    try:
        line = names.clean_key(f"{kind} {base64.b64encode(blob).decode()}")
    except BadRequest:
        return
    try:
        check_line(line)
    except UnsupportedAlgorithm:  # RSA with an exponent that is legal, and not 65537
        assert kind == "ssh-rsa"


@given(st.binary(max_size=200), st.sampled_from(TYPES))
def test_bytes_are_hardly_ever_a_key(blob: bytes, kind: str) -> None:
    with pytest.raises(BadRequest, match="public_key"):
        names.clean_key(f"{kind} {base64.b64encode(blob).decode()}")


@pytest.mark.parametrize("kind", TYPES)
def test_real_keys_pass_as_they_are(kind: str) -> None:
    for _ in range(3):
        line = new_key(kind)
        assert names.clean_key(line) == line


@pytest.mark.parametrize("kind", CURVES)
def test_a_point_off_its_curve_is_no_key(kind: str) -> None:
    curve = CURVES[kind]
    numbers = ec.generate_private_key(curve).public_key().public_numbers()
    size = (curve.key_size + 7) // 8
    for y, passes in ((numbers.y, True), (numbers.y ^ 1, False)):
        point = b"\4" + numbers.x.to_bytes(size, "big") + y.to_bytes(size, "big")
        name = kind.rpartition("-")[2]
        line = f"{kind} {blob(kind.encode(), name.encode(), point)}"
        if passes:
            assert names.clean_key(line) == line
        else:
            with pytest.raises(BadRequest):
                names.clean_key(line)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ssh-rsa", [b"\1\0\1", b"\0\0" + b"\xff" * 256]),  # a zero too many
        ("ssh-rsa", [b"\1\0\1", b"\0" + b"\xfe" * 256]),  # even
        ("ssh-rsa", [b"\1\0\1", b"\0" + b"\xff" * 256, b""]),
        ("ssh-rsa", [b"\1", b"\0" + b"\xff" * 256]),
        ("ssh-ed25519", [b"x" * 33]),
        ("ecdsa-sha2-nistp256", [b"nistp256", b"\2" + b"x" * 32]),  # compressed
        ("ecdsa-sha2-nistp256", [b"nistp384", b"\4" + b"x" * 64]),
    ],
)
def test_a_key_in_another_form_than_ssh_writes_is_none(kind: str, fields: list[bytes]) -> None:
    line = f"{kind} {blob(kind.encode(), *fields)}"
    with pytest.raises(BadRequest, match=f"no key of type {kind}"):
        names.clean_key(line)


# --- mount paths ------------------------------------------------------------------------

PARTS = st.sampled_from(
    ["/", "//", ".", "..", "a", "root", "etc", "proc", "dev", "sys", "$", "`", "'", '"', "\\", "\n",
     "\r", "\0", " ", ":", "{", "&", "~", "é", "日", "\u202e", "\u2215", "\uff0f", "-", "*"]
)  # fmt: skip
PATHS = st.lists(PARTS, max_size=8).map("".join) | st.text(max_size=20)


@settings(max_examples=share(200), deadline=None)
@given(st.lists(PATHS | PATHS.map("/{}".format), max_size=4))
@example(["/a", "/a"])
@example(["/a/b", "/a"])
@example(["/a" * 600])
def test_mount_paths_that_pass_are_harmless(paths: list[str]) -> None:
    found = done_or_refused(lambda: names.check_mounts(paths), "mount_paths: ")
    if found is None:
        return
    assert found == tuple(paths)
    for path in found:
        assert posixpath.isabs(path)
        assert posixpath.normpath(path) == path != "/"
        assert path.isprintable()
        plain = re.sub(r"[^\x00-\x7f]", "x", path)  # the shell quotes those, and need not
        assert shlex.quote(plain) == plain or "+" in plain
        assert path.split("/")[1] not in ("proc", "sys", "dev", "etc")
        assert not any(other != path and path.startswith(f"{other}/") for other in found)
    assert len(set(found)) == len(found) <= 16


@pytest.mark.parametrize("paths", GOOD_MOUNTS)
def test_good_mount_paths(paths: list[str]) -> None:
    assert names.check_mounts(paths) == tuple(paths)


@pytest.mark.parametrize("paths", BAD_MOUNTS, ids=ascii)
def test_bad_mount_paths(paths: list[str]) -> None:
    with pytest.raises(BadRequest, match=r"^mount_paths: "):
        names.check_mounts(paths)


# --- the rest ---------------------------------------------------------------------------


@given(st.integers() | st.sampled_from([79, 80, 81, 442, 443, 444, 7999, 8000, 8999, 9000]))
def test_ports(port: int) -> None:
    if port in (80, 443) or 8000 <= port <= 8999:
        assert names.check_rule(port, None) == Port(port, port)
    else:
        with pytest.raises(BadRequest, match=r"^port: "):
            names.check_rule(port, 1)


@given(st.integers() | st.sampled_from([0, 1, 65535, 65536]))
def test_targets(target: int) -> None:
    if 1 <= target <= 65535:
        assert names.check_rule(80, target) == Port(80, target)
    else:
        with pytest.raises(BadRequest, match=r"^target_port: "):
            names.check_rule(80, target)


@given(st.text(max_size=80))
def test_names(name: str) -> None:
    trimmed = name.strip()
    fits = 1 <= len(trimmed) <= 64 and not re.search(r"[\x00-\x1f\x7f-\x9f]", trimmed)
    if fits:
        assert names.clean_name(name) == trimmed
    else:
        with pytest.raises(BadRequest, match=r"^name: "):
            names.clean_name(name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = ["name", "ssh_key_ids", "instance_type", "memory_mb", "storage_gb", "ssh_enabled",
          "enable_ssh", "mount_paths", "ingress_rules", "port", "target_port",
          "public_key"]  # fmt: skip
BODIES = [shapes.NewContainer, shapes.NewKey, shapes.NewRule, shapes.SshInfo, shapes.MountsInfo]


@settings(max_examples=share(100), deadline=None)
@given(st.sampled_from(BODIES), st.dictionaries(st.sampled_from(FIELDS), JSON) | JSON)
def test_any_json_is_a_body_or_a_bad_request(kind: Any, value: Any) -> None:
    data = msgspec.json.encode(value)
    body = done_or_refused(lambda: decode_json(data, kind))
    for field in msgspec.structs.fields(kind):
        if (
            body is not None
            and isinstance(value, dict)
            and field.encode_name in value
            and field.type is str
        ):
            assert getattr(body, field.name) == value[field.encode_name]


@settings(max_examples=share(100), deadline=None)
@given(st.sampled_from(BODIES), st.binary(max_size=60))
def test_any_bytes_are_a_body_or_a_bad_request(kind: Any, data: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_json(data, kind)


#: Within the largest body that is taken.
DEEP = 25_000
HUGE, BOX = "9" * 5000, '"name": "box", "ssh_key_ids": [1]'
#: Bodies that no route takes, in JSON or nearly.
HOSTILE_BODIES = {
    "deep list": b"[" * DEEP,
    "deep object": b'{"":' * DEEP,
    "deep value": b'{"name":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep unknown": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "huge key id": f'{{"name": "box", "ssh_key_ids": [{HUGE}]}}'.encode(),
    "huge memory": f'{{{BOX}, "memory_mb": {HUGE}}}'.encode(),
    "tiny memory": f'{{{BOX}, "memory_mb": -{HUGE}}}'.encode(),
    "exponent": f'{{{BOX}, "memory_mb": 1e999999}}'.encode(),
    "surrogate": b'{"name": "\\ud800", "ssh_key_ids": [1]}',
    "latin": '{"name": "\xe9", "ssh_key_ids": [1]}'.encode("latin-1"),
    "utf-16": f"{{{BOX}}}".encode("utf-16"),
    "two values": f"{{{BOX}}} {{}}".encode(),
    "nan": f'{{{BOX}, "memory_mb": NaN}}'.encode(),
    "huge port": f'{{"port": {HUGE}, "ssh_enabled": {HUGE}, "mount_paths": {HUGE}}}'.encode(),
}


@pytest.mark.parametrize("what", HOSTILE_BODIES)
@pytest.mark.parametrize("kind", BODIES)
def test_bodies_that_are_not_what_they_seem(kind: Any, what: str) -> None:
    with pytest.raises(BadRequest):
        decode_json(HOSTILE_BODIES[what], kind)


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows() -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsAJxWLa5hrJRLBCTNBWqZBmqVKsbdLQWZYAhZVWSbC a b"
    reported = "SHA256:DKEYGpTV1aF9vkG6Ylx41Bw6eRwYNQupe54pPl/NRzw"  # ssh-keygen -l
    assert names.fingerprint(line) == reported
