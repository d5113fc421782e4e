"""cert-manager: issuers and certificates become ready, Secrets get real PEM, and webhooks get their CA."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from . import klog
from .client import Cache, Key, Object, Refused
from .context import Context
from .installing import condition, is_true, row_of, with_conditions, without
from .internet import unreachable
from .processes import Process, Program
from .reconcile import reconcile

GROUP = "/apis/cert-manager.io/v1"
INJECT = "cert-manager.io/inject-ca-from"
NINETY_DAYS = 90 * 86400
COMPONENT = "cert-manager-certificates-"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


# -- pure judgement ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A certificate, its key and its authority, as PEM; when it begins and ends."""

    certificate: bytes
    key: bytes
    authority: bytes
    begins: datetime
    ends: datetime


def duration(text: str | None, default: float = NINETY_DAYS) -> float:
    """Seconds of a Go duration: "2160h0m0s"."""
    if not text:
        return default
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", text))


def issue(spec: Object, now: datetime, issuer: Mapping[str, bytes] | None = None) -> Pair:
    """The pair that the Certificate's spec asks for, signed by itself or by the issuer's `tls.crt` and `tls.key`."""
    key = _key(spec.get("privateKey") or {})
    organizations = (spec.get("subject") or {}).get("organizations") or ()
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    if spec.get("commonName"):
        names.append(x509.NameAttribute(NameOID.COMMON_NAME, spec["commonName"]))
    subject = x509.Name(names)
    signer, signing, authority = subject, key, b""
    if issuer is not None:
        above = x509.load_pem_x509_certificate(issuer["tls.crt"])
        loaded = serialization.load_pem_private_key(issuer["tls.key"], None)
        assert isinstance(loaded, PrivateKey)
        signer, signing, authority = above.subject, loaded, issuer.get("ca.crt") or issuer["tls.crt"]
    ends = now + timedelta(seconds=duration(spec.get("duration")))
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(signer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=bool(spec.get("isCA")), path_length=None), critical=True)
    )  # fmt: skip
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in spec.get("dnsNames") or ()]
    alternatives += [x509.IPAddress(ipaddress.ip_address(text)) for text in spec.get("ipAddresses") or ()]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=not names)
    if not spec.get("isCA"):
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    digest = None if isinstance(signing, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(signing, digest).public_bytes(serialization.Encoding.PEM)
    encoding = (spec.get("privateKey") or {}).get("encoding")
    form = serialization.PrivateFormat.PKCS8 if encoding == "PKCS8" else serialization.PrivateFormat.TraditionalOpenSSL
    if isinstance(key, ed25519.Ed25519PrivateKey):
        form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return Pair(certificate, pem, authority or certificate, now, ends)


def _key(wanted: Object) -> PrivateKey:
    if wanted.get("algorithm") == "ECDSA":
        curves = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}
        return ec.generate_private_key(curves[wanted.get("size") or 256])
    if wanted.get("algorithm") == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, wanted.get("size") or 2048)


def renewal(spec: Object, begins: datetime, ends: datetime) -> datetime:
    """When it is to be renewed: renewBefore its end, else after two thirds of its time."""
    if spec.get("renewBefore"):
        return ends - timedelta(seconds=duration(spec["renewBefore"]))
    return ends - (ends - begins) / 3


def why_issue(certificate: Object, secret: Object | None, now: datetime) -> tuple[str, str] | None:
    """Why a certificate has to be issued (reason and message of its Issuing condition), or None."""
    if secret is None:
        return "DoesNotExist", "Issuing certificate as Secret does not exist"
    data = secret.get("data") or {}
    if not data.get("tls.crt") or not data.get("tls.key"):
        return "MissingData", "Issuing certificate as Secret does not contain a certificate"
    try:
        held = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
    except ValueError as error:
        words = f"Issuing certificate as Secret contains an invalid certificate: {error}"
        return "InvalidCertificate", words
    spec = certificate["spec"]
    wanted = {*(spec.get("dnsNames") or ())}
    try:
        names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        have = set(names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        have = set()
    if wanted != have:
        words = "Fields on existing CertificateRequest resource not up to date: [spec.dnsNames]"
        return "RequestChanged", words
    if now >= renewal(spec, held.not_valid_before_utc, held.not_valid_after_utc):
        return "Renewing", "Renewing certificate as renewal was scheduled"
    return None


def issuer_condition(issuer: Object, secret: Object | None, dial: str, *, at: str) -> Object:
    """The Ready condition of an Issuer or ClusterIssuer. `dial` is why its ACME server does not answer."""
    spec, generation = issuer.get("spec") or {}, issuer["metadata"].get("generation", 1)
    if "selfSigned" in spec:
        return condition("Ready", "True", "IsReady", "", at=at, generation=generation)
    if "ca" in spec:
        name = spec["ca"].get("secretName", "")
        if secret is None:
            words = f'Error getting keypair for CA issuer: secret "{name}" not found'
            return condition("Ready", "False", "ErrGetKeyPair", words, at=at, generation=generation)
        return condition("Ready", "True", "KeyPairVerified", "Signing CA verified", at=at, generation=generation)
    if "acme" in spec:
        if dial:
            words = f'Failed to register ACME account: Get "{spec["acme"].get("server", "")}": {dial}'
            return condition("Ready", "False", "ErrRegisterACMEAccount", words, at=at, generation=generation)
        words = "The ACME account was registered with the ACME server"
        return condition("Ready", "True", "ACMEAccountRegistered", words, at=at, generation=generation)
    return condition("Ready", "False", "ErrInitIssuer", "no issuer specified", at=at, generation=generation)


# -- the controller ---------------------------------------------------------------------------------------------------


@dataclass
class Manager:
    """A running cert-manager-controller."""

    context: Context
    process: Process
    certificates: Cache
    issuers: Mapping[str, Cache]
    secrets: Cache
    asked: dict[Key, datetime] = field(default_factory=dict)

    async def issuer(self, kind: str, key: Key, item: Object | None) -> float | None:
        """An Issuer or ClusterIssuer tells whether it can sign."""
        if item is None or item["metadata"].get("deletionTimestamp"):
            return None
        spec = item.get("spec") or {}
        space = key[0] or "cozy-cert-manager"
        secret = await self.secret(space, (spec.get("ca") or {}).get("secretName", ""))
        server = str((spec.get("acme") or {}).get("server", ""))
        host = server.partition("://")[2].partition("/")[0]
        dial = unreachable(self.context.world, host) if host else ""
        wanted = issuer_condition(item, secret, dial, at=self.context.stamp())
        rows = with_conditions((item.get("status") or {}).get("conditions") or (), wanted)
        if rows != (item.get("status") or {}).get("conditions"):
            inside = f"/namespaces/{key[0]}" if key[0] else ""
            path = f"{GROUP}{inside}/{'issuers' if key[0] else 'clusterissuers'}/{key[1]}/status"
            body: Object = {"conditions": rows}
            if server and not dial:
                body["acme"] = {"uri": f"https://{host}/acme/acct/1", "lastRegisteredEmail": spec["acme"].get("email")}
            await self.issuers[kind].caught_up(await self.context.client.patch(path, {"status": body}))
        return None

    async def secret(self, space: str, name: str) -> Object | None:
        """A Secret as the server has it."""
        return await self.context.client.find(f"/api/v1/namespaces/{space}/secrets/{name}") if name else None

    async def certificate(self, key: Key, item: Object | None) -> float | None:
        """A Certificate gets its Secret, tells that it is ready, and is renewed in time."""
        if item is None or item["metadata"].get("deletionTimestamp"):
            return None
        now = datetime.fromtimestamp(self.context.clock.now(), UTC).replace(microsecond=0)
        secret = await self.secret(key[0], item["spec"]["secretName"])
        why = why_issue(item, secret, now)
        if why is None:
            assert secret is not None
            return await self.ready(key, item, secret, now)
        at, generation = self.context.stamp(), item["metadata"].get("generation", 1)
        if row_of(item, "Issuing").get("status") != "True":
            rows = with_conditions(
                (item.get("status") or {}).get("conditions") or (),
                condition("Ready", "False", why[0], why[1], at=at, generation=generation),
                condition("Issuing", "True", why[0], why[1], at=at, generation=generation),
            )
            item = await self.status(key, {"conditions": rows})
            about = {**item, "kind": "Certificate"}
            await self.context.event(about, "Issuing", why[1], component=COMPONENT + "trigger")
        reference = item["spec"]["issuerRef"]
        kind = reference.get("kind") or "Issuer"
        space = key[0] if kind == "Issuer" else ""
        issuer = self.issuers[kind].get(space, reference["name"]) if kind in self.issuers else None
        if not is_true(issuer):
            return None  # comes again when the issuer is ready
        assert issuer is not None
        above = None
        if "ca" in issuer["spec"]:
            held = await self.secret(space or "cozy-cert-manager", issuer["spec"]["ca"]["secretName"])
            above = {name: base64.b64decode(text) for name, text in ((held or {}).get("data") or {}).items()}
        made = await asyncio.to_thread(issue, item["spec"], now, above)
        await self.keep(key, item, made, reference, kind)
        return 0.0

    async def keep(self, key: Key, item: Object, made: Pair, reference: Object, kind: str) -> None:
        """Nothing; the Secret holds the pair."""
        spec, name = item["spec"], item["spec"]["secretName"]
        texts = {"tls.crt": made.certificate, "tls.key": made.key, "ca.crt": made.authority}
        template = spec.get("secretTemplate") or {}
        body = {
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {
                "name": name, "namespace": key[0],
                "labels": {"controller.cert-manager.io/fao": "true", **(template.get("labels") or {})},
                "annotations": {
                    **(template.get("annotations") or {}),
                    "cert-manager.io/certificate-name": key[1],
                    "cert-manager.io/common-name": spec.get("commonName", ""),
                    "cert-manager.io/alt-names": ",".join(spec.get("dnsNames") or ()),
                    "cert-manager.io/ip-sans": ",".join(spec.get("ipAddresses") or ()), "cert-manager.io/uri-sans": "",
                    "cert-manager.io/issuer-name": reference["name"], "cert-manager.io/issuer-kind": kind,
                    "cert-manager.io/issuer-group": reference.get("group", ""),
                },
            },
            "data": {field: base64.b64encode(text).decode() for field, text in texts.items()},
        }  # fmt: skip
        path = f"/api/v1/namespaces/{key[0]}/secrets/{name}"
        kept = await self.context.client.apply(path, body, manager="cert-manager-certificates-issuing")
        await self.secrets.caught_up(kept)
        words = "The certificate has been successfully issued"
        await self.context.event({**item, "kind": "Certificate"}, "Issuing", words, component=COMPONENT + "issuing")
        line = klog.line(self.context.clock.now(), "I", "issuing_controller.go:354", words, key="/".join(key))
        self.process.write(line)

    async def ready(self, key: Key, item: Object, secret: Object, now: datetime) -> float | None:
        """Seconds until the renewal; the Certificate says that it is ready."""
        held = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
        begins, ends = held.not_valid_before_utc, held.not_valid_after_utc
        again = renewal(item["spec"], begins, ends)
        status = item.get("status") or {}
        words, generation = "Certificate is up to date and has not expired", item["metadata"].get("generation", 1)
        true = condition("Ready", "True", "Ready", words, at=self.context.stamp(), generation=generation)
        rows = with_conditions(without(status.get("conditions") or (), "Issuing"), true)
        wanted: Object = {
            "conditions": rows, "notBefore": _stamp(begins), "notAfter": _stamp(ends), "renewalTime": _stamp(again),
        }  # fmt: skip
        if any(status.get(name) != value for name, value in wanted.items()):
            if row_of(item, "Issuing"):
                wanted["revision"] = status.get("revision", 0) + 1
            await self.status(key, wanted)
        asked, self.asked[key] = self.asked.get(key), now
        # where time does not wait, a second look in the same second would follow a second look
        return None if asked == now else max((again - now).total_seconds(), 1.0)

    async def status(self, key: Key, body: Object) -> Object:
        """The Certificate with this in its status."""
        path = f"{GROUP}/namespaces/{key[0]}/certificates/{key[1]}/status"
        made = await self.context.client.patch(path, {"status": body})
        await self.certificates.caught_up(made)
        return made


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


async def run(context: Context, process: Process) -> None:
    """cert-manager-controller: issuers and certificates."""
    issuers = {"Issuer": context.cache(f"{GROUP}/issuers"), "ClusterIssuer": context.cache(f"{GROUP}/clusterissuers")}
    certificates, secrets = context.cache(f"{GROUP}/certificates"), context.cache("/api/v1/secrets")
    manager = Manager(context, process, certificates, issuers, secrets)
    process.write(klog.line(context.clock.now(), "I", "controller.go:76", "starting cert-manager controller"))

    def of_secret(item: Object) -> list[Key]:
        space, name = item["metadata"]["namespace"], item["metadata"]["name"]
        rows = certificates.items.items()
        return [key for key, row in rows if key[0] == space and row["spec"].get("secretName") == name]

    def of_issuer(item: Object) -> list[Key]:
        name = item["metadata"]["name"]
        return [key for key, row in certificates.items.items() if row["spec"]["issuerRef"]["name"] == name]

    def signing(item: Object, cache: Cache) -> list[Key]:
        name = item["metadata"]["name"]
        rows = cache.items.items()
        return [key for key, row in rows if ((row.get("spec") or {}).get("ca") or {}).get("secretName") == name]

    async with asyncio.TaskGroup() as group:
        for kind, cache in issuers.items():

            async def work(key: Key, item: Object | None, kind: str = kind) -> float | None:
                return await manager.issuer(kind, key, item)

            seen = [(secrets, lambda item, cache=cache: signing(item, cache))]
            group.create_task(reconcile(context, cache, work, also=seen, workers=1))
        also = [(secrets, of_secret), *((cache, of_issuer) for cache in issuers.values())]
        group.create_task(reconcile(context, certificates, manager.certificate, also=also, workers=2))


INJECTED = (
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/apiregistration.k8s.io/v1/apiservices",
)
"""What may carry a CA."""


def injected(item: Object, bundle: str) -> Object | None:
    """The patch that puts the CA (base64) where it belongs, or None when it is there."""
    if "webhooks" in item:
        hooks = [
            {**hook, "clientConfig": {**hook["clientConfig"], "caBundle": bundle}} for hook in item["webhooks"] or ()
        ]
        return {"webhooks": hooks} if hooks != item["webhooks"] else None
    spec = item.get("spec") or {}
    if "group" in spec and "service" in spec:
        return {"spec": {"caBundle": bundle}} if spec.get("caBundle") != bundle else None
    conversion = spec.get("conversion") or {}
    client = (conversion.get("webhook") or {}).get("clientConfig") or {}
    if conversion.get("strategy") != "Webhook" or client.get("caBundle") == bundle:
        return None
    return {"spec": {"conversion": {"webhook": {"clientConfig": {"caBundle": bundle}}}}}


async def run_injector(context: Context, process: Process) -> None:
    """cainjector: what names a Certificate in cert-manager.io/inject-ca-from gets the CA of its Secret."""
    certificates, secrets = context.cache(f"{GROUP}/certificates"), context.cache("/api/v1/secrets")
    process.write(klog.line(context.clock.now(), "I", "start.go:166", "starting cert-manager ca-injector"))

    async def serve(path: str, cache: Cache) -> None:
        async def work(key: Key, item: Object | None) -> float | None:
            source = ((item or {}).get("metadata", {}).get("annotations") or {}).get(INJECT, "")
            space, _, name = source.partition("/")
            certificate = certificates.get(space, name)
            if item is None or certificate is None:
                return None
            secret = secrets.get(space, certificate["spec"]["secretName"])
            bundle = ((secret or {}).get("data") or {}).get("ca.crt")
            patch = injected(item, bundle) if bundle else None
            if patch is not None:
                try:
                    await cache.caught_up(await context.client.patch(f"{path}/{key[1]}", patch))
                except Refused as error:
                    if error.code != 404:
                        raise
            return None

        def of_secret(item: Object) -> list[Key]:
            meta = item["metadata"]
            name = (meta.get("annotations") or {}).get("cert-manager.io/certificate-name", "")
            place = f"{meta.get('namespace', '')}/{name}"
            rows = cache.items.items()
            return [key for key, row in rows if (row["metadata"].get("annotations") or {}).get(INJECT) == place]

        await reconcile(context, cache, work, also=[(secrets, of_secret)], workers=1)

    async with asyncio.TaskGroup() as group:
        for path in INJECTED:
            group.create_task(serve(path, context.cache(path)))


PROGRAMS = (
    Program("cert-manager-controller", run),
    Program("cert-manager-cainjector", run_injector),
)
