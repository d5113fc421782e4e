"""CertificateSigningRequests: who asks, who may approve, and the certificate that follows an approval.

`Cluster.signer` is the seam: a function from the request's PEM and a life in seconds to a certificate's PEM, as
`signer(certificate_pem, key_pem)` makes one. Without it approved requests stay unsigned, as on a cluster whose
controller manager has no key.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .rbac import Request
from .status import FieldError, forbidden, invalid_value, required

if TYPE_CHECKING:
    from .cluster import Cluster, User
    from .schema import Kind

Json = dict[str, Any]
Signer = Callable[[bytes, int], bytes]
BUCKET = "certificates.k8s.io/certificatesigningrequests"
CLIENT, KUBELET, SERVING = (
    "kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet",
    "kubernetes.io/kubelet-serving",
)  # fmt: skip
# What the usages of a request may be, by signer; others sign nothing here.
USAGES = {
    CLIENT: {"digital signature", "key encipherment", "client auth"},
    KUBELET: {"digital signature", "key encipherment", "client auth"},
    SERVING: {"digital signature", "key encipherment", "server auth"},
}
NEEDED = {CLIENT: "client auth", KUBELET: "client auth", SERVING: "server auth"}
YEAR = 365 * 86400


def is_request(kind: Kind) -> bool:
    """Whether a kind is the CertificateSigningRequest."""
    return kind.bucket == BUCKET


def requested(obj: Json, user: User) -> Json:
    """A new request under the name of who sends it, whatever it says of itself."""
    own: Json = {"username": user.name, "groups": list(user.groups)}
    own |= ({"uid": user.uid} if user.uid else {}) | ({"extra": user.extra} if user.extra else {})
    spec = {k: v for k, v in (obj.get("spec") or {}).items() if k not in ("username", "uid", "groups", "extra")}
    return {k: v for k, v in obj.items() if k != "status"} | {"spec": spec | own}


def errors(obj: Json) -> list[FieldError]:
    """Why a new request is refused."""
    spec = obj.get("spec") or {}
    found = []
    text = _read(spec.get("request", ""))
    if text is None:
        detail = "PEM block type must be CERTIFICATE REQUEST"
        found.append(invalid_value("spec.request", spec.get("request", ""), detail))
    if not spec.get("usages"):
        found.append(required("spec.usages"))
    name = spec.get("signerName", "")
    if not name:
        found.append(required("spec.signerName"))
    elif "/" not in name:
        detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'"
        found.append(invalid_value("spec.signerName", name, detail))
    seconds = spec.get("expirationSeconds")
    if seconds is not None and seconds < 600:
        detail = "may not specify a duration less than 600 seconds (10 minutes)"
        found.append(invalid_value("spec.expirationSeconds", seconds, detail))
    return found


def _read(text: str) -> bytes | None:
    """The PEM of a request, or None when it is none."""
    from cryptography import x509

    try:
        raw = base64.b64decode(text, validate=True)
        x509.load_pem_x509_csr(raw)
    except (ValueError, binascii.Error, TypeError):
        return None
    return raw


def approved(cluster: Cluster, old: Json, obj: Json, user: User) -> Json:
    """The request after its conditions were written; ApiError 403 for who may not approve for this signer."""
    name = old["metadata"]["name"]
    signer = old["spec"].get("signerName", "")
    domain = signer.split("/")[0] + "/*"
    allowed = any(
        cluster.rbac.allowed(user, Request("approve", "certificates.k8s.io", "signers", "", "", wanted))[0]
        for wanted in (signer, domain)
    )
    if not allowed:
        text = f'user not permitted to approve requests with signerName "{signer}"'
        raise forbidden("certificates.k8s.io", "certificatesigningrequests", name, text)
    rows = [
        {"lastUpdateTime": cluster.now(), "lastTransitionTime": cluster.now()} | row
        for row in (obj.get("status") or {}).get("conditions") or []
    ]
    return old | {"status": (old.get("status") or {}) | {"conditions": rows}}


def settle(cluster: Cluster, name: str) -> None:
    """Signs an approved request, or says why its signer will not."""
    stored = cluster.store.get(BUCKET, ("", name))
    if stored is None or cluster.signer is None:
        return
    spec, status = stored.obj["spec"], stored.obj.get("status") or {}
    conditions = {row["type"] for row in status.get("conditions") or []}
    signer = spec.get("signerName", "")
    if "Approved" not in conditions or conditions & {"Denied", "Failed"} or status.get("certificate"):
        return
    if signer not in USAGES:
        return
    usages = set(spec.get("usages") or [])
    if not usages <= USAGES[signer] or NEEDED[signer] not in usages:
        row = {
            "type": "Failed", "status": "True", "reason": "SignerValidationFailure",
            "message": "invalid usages", "lastUpdateTime": cluster.now(), "lastTransitionTime": cluster.now(),
        }  # fmt: skip
        status = status | {"conditions": [*(status.get("conditions") or []), row]}
    else:
        pem = cluster.signer(base64.b64decode(spec["request"]), int(spec.get("expirationSeconds") or YEAR))
        status = status | {"certificate": base64.b64encode(pem).decode()}
    cluster.store.put(BUCKET, ("", name), stored.obj | {"status": status})


def signer(certificate_pem: bytes, key_pem: bytes) -> Signer:
    """What signs requests with a certificate authority's key."""

    def sign(request: bytes, seconds: int) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID

        issuer = x509.load_pem_x509_certificate(certificate_pem)
        key: Any = serialization.load_pem_private_key(key_pem, None)
        asked = x509.load_pem_x509_csr(request)
        now = dt.datetime.now(dt.UTC)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        made = (
            x509.CertificateBuilder()
            .subject_name(asked.subject)
            .issuer_name(issuer.subject)
            .public_key(asked.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(min(now + dt.timedelta(seconds=seconds), issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    return sign
