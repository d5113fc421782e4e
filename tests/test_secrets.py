"""References become values, and no value leaves in any encoding."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import keyring
import keyring.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbook_lib import secrets
from runbook_lib.errors import SecretError
from runbook_lib.secrets import REDACTED, redact, redact_json, register, resolve

CANARY = "c4n@ry/Ключ \"\\&<'+=% x"


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Each test begins and ends with a redactor that knows nothing."""
    secrets.forget()
    yield
    secrets.forget()


# --- references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["env:X", "file:a/b#c", "keyring:s/u", "k8s:ns/s/k"])
def test_references_are_recognised(text: str) -> None:
    """Each of the four forms is a reference."""
    assert secrets.is_reference(text)


@pytest.mark.parametrize("text", ["hunter2", "", "env:", "ENV:X", "https://x", "env: X", "vault:x"])
def test_anything_else_is_a_literal(text: str) -> None:
    """What only looks like a reference is none."""
    assert not secrets.is_reference(text)


def test_an_environment_variable_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """env: reads the environment, and the value is redacted from then on."""
    monkeypatch.setenv("PVE_SECRET", "hunter2!")
    assert resolve("env:PVE_SECRET") == "hunter2!"
    assert redact("is hunter2! there") == f"is {REDACTED} there"


def test_a_file_resolves_without_its_newline(tmp_path: Path) -> None:
    """file: reads a whole file relative to base, less the newline an editor leaves."""
    (tmp_path / "secret").write_text("hunter2!\n", encoding="utf-8")
    assert resolve("file:secret", base=tmp_path) == "hunter2!"


@pytest.mark.parametrize("text", ['{"a": "hunter2!"}', "a: hunter2!"])
def test_a_key_of_a_file_resolves(tmp_path: Path, text: str) -> None:
    """file:path#key reads one key of JSON or YAML."""
    (tmp_path / "secrets").write_text(text, encoding="utf-8")
    assert resolve(f"file:{tmp_path}/secrets#a") == "hunter2!"


def test_a_keyring_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """keyring: asks for service and user; the service may have slashes."""
    monkeypatch.setattr(keyring, "get_password", lambda service, user: f"{service}|{user}")
    assert resolve("keyring:runbook/prod/root@pam") == "runbook/prod|root@pam"


def test_a_kubernetes_secret_resolves_through_the_given_reader() -> None:
    """k8s: hands namespace, secret and key to the caller's reader."""
    assert resolve("k8s:ns/creds/token", kube=lambda *parts: "-".join(parts)) == "ns-creds-token"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("hunter2", "a secret was given as a literal: a reference is expected"),
        ("env:NOT_SET", "env:NOT_SET: the environment variable is not set; export NOT_SET before the run"),
        ("env:EMPTY", "the value of env:EMPTY is empty"),
        ("env:SHORT", "the value of env:SHORT has fewer than 4 characters"),
        ("file:nowhere", "cannot be read: No such file or directory"),
        ("file:data#b", "file:data#b: the file has no key 'b'; it has a, n"),
        ("file:data#n", "file:data#n: the value is a int, not text; quote it"),
        ("file:broken#a", "file:broken#a: the file is neither JSON nor YAML"),
        ("file:binary", "not UTF-8 text"),
        ("keyring:x", "service and user are expected"),
        ("keyring:x/y", "keyring:x/y: there is no such entry; keyring set x y"),
        ("k8s:a/b", "three parts are expected"),
        ("k8s:a/b/c", "no Kubernetes connection is at hand here"),
    ],
)
def test_what_does_not_resolve_is_told_in_one_line(
    reference: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference without a usable value is a SecretError that says what to do and shows no value."""
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("SHORT", "abc")
    monkeypatch.setattr(keyring, "get_password", lambda service, user: None)
    (tmp_path / "data").write_text("{a: hunter2, n: 12345}", encoding="utf-8")
    (tmp_path / "broken").write_text("a: [hunter2", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SecretError) as caught:
        resolve(reference, base=tmp_path)
    told = str(caught.value)
    assert expected in told
    assert "hunter2" not in told
    assert "\n" not in told
    assert caught.value.exit_code == 2


def test_no_keyring_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without a keyring gets a hint at the other references."""

    def broken(service: str, user: str) -> str:
        raise keyring.errors.NoKeyringError("no backend")

    monkeypatch.setattr(keyring, "get_password", broken)
    with pytest.raises(SecretError, match="no usable keyring: no backend; use env: or file:"):
        resolve("keyring:a/b")


def test_a_file_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A secret file with loose permissions is used, and a log line says so."""
    path = tmp_path / "secret"
    path.write_text("hunter2!", encoding="utf-8")
    path.chmod(0o644)
    resolve(f"file:{path}")
    assert "is readable by others; chmod 600 it" in caplog.text


# --- every encoding ----------------------------------------------------------------------------------------------


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENCODINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "base64": b64,
    "base64 shifted by 1": lambda text: b64("." + text + "..."),
    "base64 shifted by 2": lambda text: b64(".." + text + ".."),
    "urlsafe base64": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "urlsafe base64 without padding": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 twice": lambda text: b64(b64(text)),
    "basic auth": lambda text: b64("user:" + text),
    "url": lambda text: quote(text, safe=""),
    "url with slashes": quote,
    "url, small letters": lambda text: "".join(
        part if len(part) != 3 else part.lower() for part in _percent(quote(text, safe=""))
    ),
    "form": quote_plus,
    "JSON": lambda text: json.dumps({"x": text}),
    "JSON, Unicode kept": lambda text: json.dumps({"x": text}, ensure_ascii=False),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "JSON in base64": lambda text: b64(json.dumps(text)),
    "JSON with escaped slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "URL in JSON": lambda text: json.dumps(urlencode({"password": text})),
    "repr": repr,
    "HTML": html.escape,
    "HTML text": lambda text: html.escape(text, quote=False),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "hex with colons": lambda text: text.encode().hex(":"),
}


def _percent(text: str) -> list[str]:
    pieces, at = [], 0
    while at < len(text):
        step = 3 if text[at] == "%" else 1
        pieces.append(text[at : at + step])
        at += step
    return pieces


def reveals(told: str, secret: str) -> bool:
    """Whether any encoding of the secret is left in what was told."""
    pieces = told.split(REDACTED)
    cores = [secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.encode().hex(), html.escape(secret)]
    raw = secret.encode()
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw).decode()
        cores.append(text[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6])
    return any(core in piece for core in cores for piece in pieces)


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_canary_is_redacted_in_every_encoding(name: str) -> None:
    """A secret with every awkward character is found however it is written."""
    register(CANARY)
    told = redact(f"before {ENCODINGS[name](CANARY)} after")
    assert REDACTED in told
    assert not reveals(told, CANARY)
    assert told.startswith("before ")
    assert told.endswith(" after")


no_surrogates = st.characters(exclude_categories=["Cs"])
values = st.text(no_surrogates, min_size=4, max_size=40)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=values, before=st.text(no_surrogates, max_size=20), after=st.text(no_surrogates, max_size=20),
       name=st.sampled_from(sorted(ENCODINGS)))  # fmt: skip
def test_any_secret_is_redacted_in_any_encoding(secret: str, before: str, after: str, name: str) -> None:
    """Random secrets in random texts never come through, in whatever encoding."""
    secrets.forget()
    register(secret)
    assert not reveals(redact(before + ENCODINGS[name](secret) + after), secret)


containers = st.recursive(
    st.sampled_from(["<secret>", "x<secret>y", "harmless"]) | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "k<secret>"]), inner, max_size=3),
    max_leaves=12,
)


def _filled(value: object, secret: str) -> object:
    if isinstance(value, str):
        return value.replace("<secret>", secret)
    if isinstance(value, list):
        return [_filled(entry, secret) for entry in value]
    if isinstance(value, dict):
        return {_filled(key, secret): _filled(entry, secret) for key, entry in value.items()}
    return value


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=st.text("abcXYZ/+='\"\\ éЖ", min_size=5, max_size=20), container=containers)
def test_any_secret_is_redacted_in_any_container(secret: str, container: object) -> None:
    """Random secrets within random JSON data, as values and as keys, never come through."""
    secrets.forget()
    register(secret)
    told = json.dumps(redact_json(_filled(container, secret)), ensure_ascii=False)
    assert not reveals(told, secret)


def test_overlapping_secrets_leave_nothing_between() -> None:
    """Where two secrets overlap the whole stretch is replaced once."""
    register("abcdef")
    register("defghi")
    assert redact("<abcdefghi>") == f"<{REDACTED}>"


def test_a_secret_within_another_does_not_uncover_it() -> None:
    """The longer of two nested secrets goes as a whole."""
    register("long-secret-value")
    register("secret")
    assert redact("a long-secret-value b") == f"a {REDACTED} b"


def test_a_line_of_a_key_is_secret_on_its_own() -> None:
    """A multi-line secret is found line by line, as where it is wrapped anew."""
    register("first-line-0123456789\nsecond-line-0123456789\n")
    assert redact("  second-line-0123456789") == f"  {REDACTED}"


def test_short_values_are_not_remembered() -> None:
    """Three characters would redact half of every text."""
    register("abc")
    assert redact("abc") == "abc"


# --- shapes ------------------------------------------------------------------------------------------------------

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIabc+/=\n"
    "-----END RSA PRIVATE KEY-----"
)
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
TICKET = "PVE:root@pam:65F2A0B1::" + "aB3/+x" * 40 + "=="


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Authorization: PVEAPIToken=root@pam!ci=8a6d1c5e-0000-4000-8000-00000000abcd;",
            f"Authorization: PVEAPIToken=root@pam!ci={REDACTED};",
        ),
        (f"a {TICKET} b", f"a {REDACTED} b"),
        (f"Cookie: PVEAuthCookie={quote(TICKET, safe='')}; x=1", f"Cookie: PVEAuthCookie={REDACTED}; x=1"),
        (f'{{"ticket":"{TICKET}"}}', f'{{"ticket":"{REDACTED}"}}'),
        ('"CSRFPreventionToken":"65F2A0B1:abc/def+"', f'"CSRFPreventionToken":"{REDACTED}"'),
        ("authorization: bearer abcdefgh", f"authorization: bearer {REDACTED}"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: Basic {REDACTED}"),
        ("{'Authorization': 'Bearer abc'}", f"{{'Authorization': 'Bearer {REDACTED}'}}"),
        (f"token={JWT}.", f"token={REDACTED}."),
        ("kubeadm join --token abcdef.0123456789abcdef x", f"kubeadm join --token {REDACTED} x"),
        (f"key: {PEM}\nrest", f"key: {REDACTED}\nrest"),
        (json.dumps(PEM), f'"{REDACTED}"'),
        ("client-key-data: " + b64(PEM), f"client-key-data: {REDACTED}"),
        ("client-key-data: " + b64(PEM.replace("RSA ", "")), f"client-key-data: {REDACTED}"),
        ("client-key-data: " + b64(PEM.replace("RSA ", "EC ")), f"client-key-data: {REDACTED}"),
        ("client-key-data: " + b64(PEM.replace("RSA ", "OPENSSH ")), f"client-key-data: {REDACTED}"),
        ("-----BEGIN PRIVATE KEY-----\nMIIcut off", REDACTED),
    ],
)
def test_shapes_of_secrets_are_redacted_unknown(text: str, expected: str) -> None:
    """What has the form of a credential goes, though nobody registered it; what names it stays."""
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "status.containerstatuses and worker.example.org, 10.0.0.1",
        "UPID:pve1:0000C530:001C9BEC:65F2A0B1:qmcreate:100:root@pam:",
        "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----",
        "the bearer of this, PVE: a system; Basic authentication",
        "token_id runbook@pve!runbook",
        "a Bearer token",
    ],
)
def test_ordinary_texts_are_left_alone(text: str) -> None:
    """Names, task ids, certificates and prose pass unchanged."""
    assert redact(text) == text


# --- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    ["a", "eyJ", "eyJ-", "PVE:", "PVE:a:", "PVEAPIToken=", "Bearer ", "-----BEGIN PRIVATE KEY-----", "abcde.",
     "LS0tLS1CRUdJTiBQUklWQVRFIEtFW", "Authorization: Bearer ", "-", "CSRFPreventionToken "],
)  # fmt: skip
def test_redaction_is_linear(piece: str) -> None:
    """Eight times the text takes about eight times the time, not sixty-four."""
    register("aaaaaaaa")

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        began = time.process_time()
        redact(text)
        return time.process_time() - began

    small = max(0.002, min(seconds(8_000), seconds(8_000)))
    assert seconds(64_000) < 24 * small


# --- logs --------------------------------------------------------------------------------------------------------


def test_logs_are_redacted() -> None:
    """Message, arguments and traceback of a log record lose the secret."""
    register("hunter2!")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(secrets.RedactingFilter())
    log = logging.Logger("test")
    log.addHandler(handler)
    try:
        raise ValueError("with hunter2! inside")
    except ValueError:
        log.exception("failed with %s", {"password": "hunter2!"}, stack_info=True)
    told = stream.getvalue()
    assert "hunter2" not in told
    assert told.count(REDACTED) >= 2
    assert "Traceback" in told


def test_json_keeps_its_other_values() -> None:
    """Numbers, booleans and null pass; tuples become lists."""
    register("hunter2!")
    assert redact_json({"a": (1, None, True, "hunter2!")}) == {"a": [1, None, True, REDACTED]}


def test_a_kubeconfig_is_redacted_with_all_it_logs_in_with(tmp_path: Path) -> None:
    """Token, password and client key of every user, the key decoded too."""
    key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIH1eBase64IshLineOfAKeyFile\n-----END EC PRIVATE KEY-----\n"
    wrapped = base64.b64encode(key.encode()).decode()
    users = [{"name": "a", "user": {"token": "tok-4711-a", "client-key-data": wrapped}}, {"name": "b", "user": None}]
    users.append({"name": "c", "user": {"password": "hunter2!"}})
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps({"users": users}))
    secrets.register_kubeconfig(path)
    told = redact(f"tok-4711-a {wrapped} MHcCAQEEIH1eBase64IshLineOfAKeyFile hunter2!")
    assert told == " ".join([REDACTED] * 4)


@pytest.mark.parametrize("text", ["", "[]", "users: 1", "users: [1]", "users: [{user: 3}]", "{", "\x00"])
def test_what_is_no_kubeconfig_is_passed_over(tmp_path: Path, text: str) -> None:
    """Whoever connects with it tells what is wrong; here nothing is known and nothing breaks."""
    (tmp_path / "kubeconfig").write_text(text)
    secrets.register_kubeconfig(tmp_path / "kubeconfig")
    secrets.register_kubeconfig(tmp_path / "absent")
    assert redact("users 1") == "users 1"


def test_what_earlier_steps_kept_is_redacted(tmp_path: Path) -> None:
    """The secrets in the project's own folder, while the names beside them stay readable."""
    (tmp_path / "csi.json").write_text(json.dumps({"token_id": "csi@pve!csi", "token_secret": "5ecre7-value"}))
    (tmp_path / "torn.json").write_text("{")
    secrets.register_folder(tmp_path)
    assert redact("csi@pve!csi=5ecre7-value").endswith(f"={REDACTED}")
