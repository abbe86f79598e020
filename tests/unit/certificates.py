"""Certificates for tests of TLS: as they should be, and as they should not."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


class Authority:
    def __init__(self, name: str = "authority") -> None:
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self._key, days=30, ca=True)

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, days: int, ca: bool, host: str = ""
    ) -> x509.Certificate:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - datetime.timedelta(days=60))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if host:
            try:
                found: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                found = x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([found]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def write(self, directory: Path, host: str, *, days: int = 10, name: str = "server") -> Path:
        """ca.pem, cert.pem and key.pem for a server at ``host``; negative ``days``:
        it ended so long ago. Its CommonName is ``name``; empty: it has none."""
        directory.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        (directory / "ca.pem").write_bytes(self.certificate.public_bytes(_PEM))
        certificate = self._sign(name, key, days=days, ca=False, host=host)
        (directory / "cert.pem").write_bytes(certificate.public_bytes(_PEM))
        private = directory / "key.pem"
        private.touch(mode=0o600)
        private.write_bytes(
            key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return directory
