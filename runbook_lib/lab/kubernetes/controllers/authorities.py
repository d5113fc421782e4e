"""Authorities of clusters, what they sign, and the kubeconfigs that carry it."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Json = dict[str, Any]
YEARS = 365


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def make_authority(title: str = "kubernetes") -> tuple[str, str]:
    """Certificate and key of a new cluster authority, as kubeadm names it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    made = _builder(name, name, key, 10 * YEARS).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    usage = x509.KeyUsage(True, False, True, False, False, True, False, False, False)
    made = made.add_extension(usage, True)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(), _pem(key)


def make_pair() -> tuple[str, str]:
    """Public and private key, as service accounts are signed with."""
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode(), _pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=days))
    )  # fmt: skip


def issued(
    ca_pem: str, ca_key: str, subject: x509.Name, usage: x509.ObjectIdentifier, names: list[str]
) -> tuple[str, str]:
    """Certificate and key that the authority gives to a subject, for these host names and addresses."""
    issuer = x509.load_pem_x509_certificate(ca_pem.encode())
    signing: Any = serialization.load_pem_private_key(ca_key.encode(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    made = _builder(subject, issuer.subject, key, YEARS).add_extension(x509.ExtendedKeyUsage([usage]), False)
    if names:
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        made = made.add_extension(x509.SubjectAlternativeName(alternatives), False)
    return made.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(), _pem(key)


def client_certificate(ca_pem: str, ca_key: str, name: str, group: str) -> tuple[str, str]:
    """Certificate and key of a user of the cluster."""
    subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    return issued(ca_pem, ca_key, x509.Name(subject), ExtendedKeyUsageOID.CLIENT_AUTH, [])


def kubeconfig(
    name: str, url: str, ca_pem: str, certificate: str = "", key: str = "", user: str = "kubernetes-admin"
) -> str:
    """The text of a kubeconfig as kubeadm writes it; without a user it is what cluster-info publishes."""

    def packed(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    cluster = {"server": url, "certificate-authority-data": packed(ca_pem)}
    body: Json = {"apiVersion": "v1", "kind": "Config", "preferences": {}}
    if not certificate:
        return yaml.safe_dump(
            {
                **body,
                "clusters": [{"name": "", "cluster": cluster}],
                "contexts": None,
                "current-context": "",
                "users": None,
            }
        )
    given = {"client-certificate-data": packed(certificate), "client-key-data": packed(key)}
    body |= {
        "clusters": [{"name": name, "cluster": cluster}],
        "contexts": [{"name": f"{user}@{name}", "context": {"cluster": name, "user": user}}],
        "current-context": f"{user}@{name}",
        "users": [{"name": user, "user": given}],
    }
    return yaml.safe_dump(body)
