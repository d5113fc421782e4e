"""Secret references become values, and every value that was resolved is redacted from what leaves the process.

References: `env:NAME`, `file:path[#key]`, `keyring:service/user`, `k8s:namespace/secret/key`.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from runbook_lib.errors import SecretError

logger = logging.getLogger(__name__)

REDACTED = "‹redacted›"
SHORTEST = 4
"""Fewer characters than this would redact half of every text, and protect nothing."""

KubeSecret = Callable[[str, str, str], str]
"""Reads (namespace, secret, key) and returns the decoded value."""

_REFERENCE = re.compile(r"(env|file|keyring|k8s):(\S.*)", re.DOTALL)


def is_reference(text: str) -> bool:
    """True when `text` has the form of a secret reference; whether it resolves is another question."""
    return _REFERENCE.fullmatch(text) is not None


def resolve(reference: str, *, base: Path | None = None, kube: KubeSecret | None = None) -> str:
    """The value behind `reference`, from now on redacted everywhere.

    A relative `file:` path starts at `base` (default: the working directory); one trailing newline is not part of
    the value. Raises SecretError, never showing a value, when there is none or it is too short to be one.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise SecretError(
            "a secret was given as a literal",
            "a reference is expected",
            "write env:NAME, file:path[#key], keyring:service/user or k8s:namespace/secret/key",
        )
    kind, rest = match.groups()
    value = (
        _from_k8s(rest, kube) if kind == "k8s" else _from_file(rest, base) if kind == "file" else _READERS[kind](rest)
    )
    if len(value) < SHORTEST:
        came = "is empty" if not value else f"has fewer than {SHORTEST} characters"
        raise SecretError(f"the value of {reference} {came}", hint="a secret this short cannot be kept out of texts")
    register(value)
    return value


def _from_env(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise SecretError(f"env:{name}", "the environment variable is not set", f"export {name} before the run")
    return value.removesuffix("\n")


def _from_file(rest: str, base: Path | None) -> str:
    name, _, key = rest.partition("#")
    path = (base or Path.cwd()) / Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SecretError(f"file:{rest}", f"{path} cannot be read: {said}", "create it with mode 0600") from error
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s holds a secret and is readable by others; chmod 600 it", path)
    return _key_of(text, key, rest) if key else text.removesuffix("\n").removesuffix("\r")


def _key_of(text: str, key: str, rest: str) -> str:
    import yaml  # JSON is YAML; imported here because most sites never need it

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:  # its message would quote the file
        raise SecretError(f"file:{rest}", "the file is neither JSON nor YAML") from None
    if not isinstance(data, Mapping) or key not in data:
        known = ", ".join(sorted(map(str, data))) if isinstance(data, Mapping) else "no keys at all"
        raise SecretError(f"file:{rest}", f"the file has no key {key!r}", f"it has {known}")
    if not isinstance(data[key], str):
        raise SecretError(f"file:{rest}", f"the value is a {type(data[key]).__name__}, not text", "quote it")
    return data[key]


def _from_keyring(rest: str) -> str:
    service, _, user = rest.rpartition("/")
    if not service or not user:
        raise SecretError(f"keyring:{rest}", "service and user are expected", "write keyring:service/user")
    try:
        import keyring
        import keyring.errors
    except ImportError as error:
        raise SecretError(
            f"keyring:{rest}",
            "the keyring package is not installed",
            "pip install 'proxmox-cozystack-runbook[keyring]'",
        ) from error
    try:
        value = keyring.get_password(service, user)
    except keyring.errors.KeyringError as error:
        raise SecretError(f"keyring:{rest}", f"no usable keyring: {error}", "use env: or file: on a server") from error
    if value is None:
        raise SecretError(f"keyring:{rest}", "there is no such entry", f"keyring set {service} {user}")
    return value


def _from_k8s(rest: str, kube: KubeSecret | None) -> str:
    parts = rest.split("/")
    if len(parts) != 3 or not all(parts):
        raise SecretError(f"k8s:{rest}", "three parts are expected", "write k8s:namespace/secret/key")
    if kube is None:
        raise SecretError(f"k8s:{rest}", "no Kubernetes connection is at hand here", "use env: or file: for this field")
    return kube(*parts)


_READERS: Mapping[str, Callable[[str], str]] = {"env": _from_env, "keyring": _from_keyring}


# --- the redactor -----------------------------------------------------------------------------------------------

_lock = threading.Lock()
_values: set[str] = set()
_forms: tuple[str, ...] = ()


def register(value: str) -> None:
    """From now on `value` is redacted in every encoding; values shorter than four characters are not remembered."""
    global _forms
    if len(value) < SHORTEST:
        return
    with _lock:
        fresh = {part for part in {value, value.strip(), *_long_lines(value)} if len(part) >= SHORTEST} - _values
        if fresh:
            _values.update(fresh)
            _forms = tuple(sorted({*_forms, *(form for part in fresh for form in _encodings(part))}))


_KUBECONFIG_SECRETS = ("token", "password", "client-key-data")


def register_kubeconfig(path: Path) -> None:
    """From now on what the users of this kubeconfig log in with is redacted; a file that is none says nothing."""
    with suppress(OSError, ValueError):  # whoever connects with it will tell what is wrong
        register_kubeconfig_text(path.read_text(encoding="utf-8"))


def register_kubeconfig_text(text: str) -> None:
    """From now on what the users of this kubeconfig log in with is redacted; a text that is none says nothing."""
    import yaml

    try:
        users = yaml.safe_load(text)["users"]
        given = [user["user"] for user in users if isinstance(user.get("user"), Mapping)]
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return
    for entry in given:
        for key in _KUBECONFIG_SECRETS:
            if isinstance(entry.get(key), str):
                register(entry[key])
        with suppress(ValueError, TypeError):
            register(base64.b64decode(entry.get("client-key-data", "")).decode())


def register_folder(folder: Path) -> None:
    """From now on the secrets that earlier steps kept in this folder (one JSON map a file) are redacted."""
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, AttributeError):
            for key, value in json.loads(path.read_text(encoding="utf-8")).items():
                if key.endswith("secret") and isinstance(value, str):
                    register(value)


def _long_lines(value: str) -> list[str]:
    """Lines of a key file that are secret on their own, wherever the text is wrapped anew."""
    return [line.strip() for line in value.splitlines() if len(line.strip()) >= 16 and "-----" not in line]


def _encodings(value: str) -> Iterator[str]:
    """Every form in which `value` may meet a reader."""
    plain = {value, *_escaped(value)}
    plain |= {form for each in tuple(plain) for form in _escaped(each)}  # JSON in JSON: a notebook's output cell
    for form in plain:
        yield form
        yield from _base64(form.encode("utf-8", "surrogatepass"))
    raw = value.encode("utf-8", "surrogatepass")
    for digits in (raw.hex(), raw.hex(":"), raw.hex(" ")):
        yield digits
        yield digits.upper()
    yield from _base64(base64.b64encode(raw))  # client-key-data inside a Secret


def _escaped(value: str) -> set[str]:
    raw = value.encode("utf-8", "surrogatepass")
    urls = {quote(raw, safe=""), quote(raw, safe="/"), quote(raw, safe="/:@!$&'()*+,;="), quote_plus(raw)}
    urls |= {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), url) for url in urls}
    ascii_json, json_text = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]
    others = {ascii_json, json_text, ascii_json.replace("/", "\\/"), repr(value)[1:-1]}
    # HTML writers disagree about the apostrophe
    pages = {html.escape(value, quote=False), html.escape(value), html.escape(value).replace("&#x27;", "&#39;")}
    return {form for form in urls | others | pages if form != value}


def _base64(raw: bytes) -> Iterator[str]:
    """The characters that `raw` alone decides, at each of the three places it may start within a longer text."""
    alphabets = (base64.b64encode, base64.urlsafe_b64encode)
    for encode in alphabets:
        yield encode(raw).decode()
        for shift in range(3):
            text = encode(b"\0" * shift + raw).decode()
            fragment = text[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
            if len(fragment) >= SHORTEST:
                yield fragment


_WORD = r"[^\s\"'<>;,]+"
# What a secret looks like: text that must be there, and the pattern, whose group `keep` stays. Looking for the text
# first, and patterns that start with it, make this ten times as fast as one alternation; what must stand before it
# is asked by a look-behind that comes after it. No pattern gives back what it took: linear time. A private key comes
# first, so that no other shape leaves half of it.
_SHAPES = tuple(
    (literal, re.compile(pattern))
    for literal, pattern in (
        (
            "PRIVATE KEY-----",
            r"(?P<keep>)-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY-----[^-]*(?:-(?!----)[^-]*)*"
            r"(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY-----)?",
        ),
        (
            "uthorization",
            r"(?P<keep>uthorization(?<=\b[Aa]uthorization)[\"']{0,1}\s{0,3}[:=]\s{0,3}[\"']{0,1}"
            rf"(?:[Bb]earer|[Bb]asic)\s{{1,3}}){_WORD}",
        ),
        ("earer ", rf"(?P<keep>earer (?<=\b[Bb]earer )(?=[A-Za-z0-9._~+/=-]{{20}})){_WORD}"),
        (
            "PVE",
            r"(?P<keep>)PVE[A-Z]{0,12}(?::|%3[Aa])[^\s:\"'<>]{1,100}(?::|%3[Aa])[0-9A-Fa-f]{8}(?::|%3[Aa]){2}"
            r"[A-Za-z0-9+/=%._-]+",
        ),
        ("eyJ", r"(?P<keep>)eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
        ("PVEAPIToken=", rf"(?P<keep>PVEAPIToken=[^\s=\"'<>]{{1,200}}=(?=[^\s\"'<>])){_WORD}"),
        ("PVEAuthCookie", rf"(?P<keep>PVEAuthCookie(?:=|%3[Dd])){_WORD}"),
        ("CSRFPrev", rf"(?P<keep>CSRFPreventionToken[\"']{{0,1}}\s{{0,3}}[:=]\s{{0,3}}[\"']{{0,1}}){_WORD}"),
        (
            "LS0tLS1CRUdJTi",
            r"(?P<keep>)LS0tLS1CRUdJTi(?:BQUklWQVRFIEtFW|BSU0EgUFJJVkFURSBLRV|BFQyBQUklWQVRFIEtFW"
            r"|BPUEVOU1NIIFBSSVZBVEUgS0VZ)[\w+/=-]*",
        ),
    )
)
# A bootstrap token, from its dot on. A digit is asked for, because names like status.containerstatuses look alike.
_BOOTSTRAP = re.compile(
    r"\.(?:(?<=[^a-z0-9.][a-z0-9]{6}\.)|(?<=\A[a-z0-9]{6}\.))(?=[a-z]{0,15}[0-9])[a-z0-9]{16}(?![a-z0-9.])"
)
_BEFORE_DOT = 6


def redact(text: str) -> str:
    """`text` with every known secret, in every encoding, and everything shaped like one replaced by ‹redacted›."""
    text = _without_values(text)
    for literal, shape in _SHAPES:
        if literal in text:
            text = shape.sub(_keep, text)
    spans = [(match.start() - _BEFORE_DOT, match.end()) for match in _BOOTSTRAP.finditer(text)]
    return _without(text, spans) if spans else text


def _keep(match: re.Match[str]) -> str:
    return str(match["keep"]) + REDACTED


def _without_values(text: str) -> str:
    spans = sorted(_spans(text))
    return _without(text, spans) if spans else text


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """`text` with these stretches replaced; they come in order, and may overlap."""
    pieces: list[str] = []
    end = 0
    for start, stop in spans:
        if start > end or not pieces:
            pieces += [text[end:start], REDACTED]
        end = max(end, stop)
    return "".join([*pieces, text[end:]])


def holds_secret(text: str) -> bool:
    """Whether some known secret stands in the text, in any of its spellings."""
    return next(_spans(text), None) is not None


def _spans(text: str) -> Iterator[tuple[int, int]]:
    for form in _forms:
        at = text.find(form)
        while at >= 0:
            yield at, at + len(form)
            at = text.find(form, at + 1)


def redact_json(value: Any) -> Any:
    """`value` (plain JSON data) with every text in it redacted, keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: redact_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact_json(entry) for entry in value]
    return value


class RedactingFilter(logging.Filter):
    """A logging filter that lets every record pass, redacted: message, arguments and traceback."""

    _formatter = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        """True, after the record's texts were replaced."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = self._formatter.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


def forget(values: Iterable[str] | None = None) -> None:
    """None; the redactor no longer knows `values` (default: any). For tests and for rotated credentials' tests."""
    global _forms
    with _lock:
        _values.difference_update(set(_values) if values is None else set(values))
        _forms = tuple(sorted({form for value in _values for form in _encodings(value)}))
