"""Real certificates for emulated webhooks: a CA each, a serving certificate, and the ways they go wrong."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """A CA with one serving certificate, all PEM."""

    ca: bytes
    certificate: bytes
    key: bytes

    @property
    def bundle(self) -> str:
        """The CA as `caBundle` wants it: base64 of PEM."""
        return base64.b64encode(self.ca).decode()


def authority(
    namespace: str, service: str, now: float, *, born_days_ago: float = 41, valid_days: float = 365
) -> Authority:
    """A CA and what it signed for `service.namespace.svc`; `valid_days` may lie in the past."""
    start = datetime.fromtimestamp(now, UTC) - timedelta(days=born_days_ago)
    end = datetime.fromtimestamp(now, UTC) + timedelta(days=valid_days)
    if end <= start:
        start = end - timedelta(days=90)
    ca_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{service}-ca")])
    ca = (
        _builder(issuer, issuer, ca_key, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    host = f"{service}.{namespace}.svc"
    leaf = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]), issuer, leaf_key, start, end)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host), x509.DNSName(f"{host}.cozy.local")]), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return Authority(
        ca.public_bytes(serialization.Encoding.PEM),
        leaf.public_bytes(serialization.Encoding.PEM),
        leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
