"""An authority and a certificate for a cluster on this machine, made by ``openssl``.

The files are those that :mod:`gfs.io.tls` reads, and ``ca.key``, the authority's own
key, for certificates of further machines (docs/keys.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from gfs.errors import StartupError
from gfs.io.tls import CA_NAME, CERTIFICATE_NAME, PRIVATE_KEY_NAME

OPENSSL_SECONDS = 30.0
DAYS = 3650
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_certificates(directory: Path) -> None:
    """Make the files in ``directory`` unless it exists. Raises StartupError."""
    if directory.exists():
        return
    draft = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(mode=0o700, parents=True)
        authority, authority_key = draft / CA_NAME, draft / "ca.key"
        _openssl(
            *("-subj", "/CN=gfs cluster", "-keyout", authority_key, "-out", authority),
            *("-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        _openssl(
            *("-CA", authority, "-CAkey", authority_key, "-subj", "/CN=gfs server"),
            *("-keyout", draft / PRIVATE_KEY_NAME, "-out", draft / CERTIFICATE_NAME),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost"),
        )
        draft.rename(directory)
    except OSError as error:
        raise StartupError(f"{directory}: cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _openssl(*arguments: str | Path) -> None:
    command = ["openssl", "req", "-x509", *_NEW_KEY, "-days", str(DAYS), *map(str, arguments)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=OPENSSL_SECONDS,
            check=False,
            umask=0o077,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise StartupError(
            "--tls needs the command openssl (version 3): install it, or put ca.pem, cert.pem "
            "and key.pem there yourself"
        ) from None
    except subprocess.TimeoutExpired:
        raise StartupError(f"openssl did not end within {OPENSSL_SECONDS:g} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise StartupError(f"openssl (version 3 is needed) made no certificate: {said}")
