"""SSH keys and mount paths, good ones and bad ones, for tests of compute."""

from __future__ import annotations

import base64
import struct
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CURVES = {
    "ecdsa-sha2-nistp256": ec.SECP256R1(),
    "ecdsa-sha2-nistp384": ec.SECP384R1(),
    "ecdsa-sha2-nistp521": ec.SECP521R1(),
}
TYPES = ["ssh-rsa", "ssh-ed25519", *CURVES]


def new_key(kind: str) -> str:
    """A key of this type, as another implementation writes it."""
    private: Any
    if kind == "ssh-rsa":
        private = rsa.generate_private_key(65537, 2048)
    elif kind == "ssh-ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
    else:
        private = ec.generate_private_key(CURVES[kind])
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert line.startswith(f"{kind} ")
    return str(line)


def blob(*fields: bytes) -> str:
    return base64.b64encode(b"".join(struct.pack(">I", len(f)) + f for f in fields)).decode()


#: Of names that mean no more than they say.
GOOD_MOUNTS = [
    ["/a"],
    ["/root", "/var/data", "/opt/app"],
    ["/data", "/data2", "/datab/c"],
    ["/etcetera", "/process", "/system", "/devel", "/home/etc"],
    ["/-rf", "/.hidden", "/a.b_c-d+e@f", "/ünïcode/日本"],
    [f"/{number}" for number in range(16)],
    ["/" + "x" * 255],
]

BAD_MOUNTS: list[list[str]] = [
    *([], [""], ["/"], ["root"], ["./a"], ["~/a"], ["//a"], ["/a/"], ["/a//b"], ["/a/./b"]),
    *(["/a/../b"], ["/.."], ["/../etc"], ["/a/.."], ["/."], ["\\a"], ["C:/a"]),
    *([path] for top in ("proc", "sys", "dev", "etc") for path in (f"/{top}", f"/{top}/x")),
    *([f"/a{letter}b"] for letter in "\"'\\`$&|;<>()[]{}*?!#~=%^:, \t\n\r\0\x1b\x7f"),
    *([f"/a{letter}b"] for letter in "\u00a0\u2028\u2029\u202e\u200b\ufeff\ue000"),
    *(["/a", "/a"], ["/a", "/a/b"], ["/a/b/c", "/a"], ["/b", "/a/b", "/a"]),
    *([f"/{number}" for number in range(17)], ["/" + "x" * 256], ["/" + "é" * 128]),
    ["/" + "/".join(["x" * 200] * 6)],
    ["/ok", "/${HOME}"],
    ["/a\nkind: Secret"],
    ["/a: {b: c}"],
]
