"""The bootstrap signer and token cleaner: cluster-info is signed for every token that may, expired tokens go."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .alarms import Alarms
from .client import Key, Object, Refused
from .context import Context
from .reconcile import reconcile

SECRETS = "/api/v1/namespaces/kube-system/secrets"
PUBLIC = "/api/v1/namespaces/kube-public/configmaps"
KIND = "bootstrap.kubernetes.io/token"
PREFIX = "jws-kubeconfig-"


def signature(content: str, identifier: str, secret: str) -> str:
    """The detached JWS of a text by a token."""
    header = _packed(json.dumps({"alg": "HS256", "kid": identifier}, separators=(",", ":")).encode())
    signed = f"{header}.{_packed(content.encode())}".encode()
    return f"{header}..{_packed(hmac.new(secret.encode(), signed, hashlib.sha256).digest())}"


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token_of(secret: Mapping[str, Any]) -> dict[str, str]:
    """What a bootstrap token's Secret says; empty for another one."""
    if secret.get("type") != KIND:
        return {}
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in (secret.get("data") or {}).items()}


def left(token: Mapping[str, str], now: float) -> float | None:
    """Seconds until the token expires; None for one that never does."""
    try:
        return datetime.fromisoformat(token["expiration"].replace("Z", "+00:00")).timestamp() - now
    except (KeyError, ValueError):
        return None


def signatures(content: str, tokens: list[dict[str, str]], now: float) -> dict[str, str]:
    """What cluster-info is to hold beside the kubeconfig."""
    found = {}
    for token in tokens:
        rest = left(token, now)
        if token.get("usage-bootstrap-signing") == "true" and (rest is None or rest > 0):
            identifier = token.get("token-id", "")
            found[PREFIX + identifier] = signature(content, identifier, token.get("token-secret", ""))
    return found


async def run(context: Context) -> None:
    """The two controllers of one cluster."""
    secrets, maps = context.cache(SECRETS), context.cache(PUBLIC)
    alarms = Alarms(context)
    info: Key = ("kube-public", "cluster-info")

    async def sign(key: Key, item: Object | None) -> None:
        if key != info or item is None:
            return
        data = item.get("data") or {}
        tokens = [token for secret in secrets.items.values() if (token := token_of(secret))]
        wanted = signatures(data.get("kubeconfig", ""), tokens, context.clock.now())
        known = {name: text for name, text in data.items() if name.startswith(PREFIX)}
        if wanted != known:
            body = {"data": dict.fromkeys(known.keys() - wanted.keys()) | wanted}
            await maps.caught_up(await context.client.patch(f"{PUBLIC}/cluster-info", body))

    async def clean(key: Key, secret: Object | None) -> None:
        rest = left(token_of(secret), context.clock.now()) if secret else None
        if rest is None:
            alarms.cancel(key)
        elif rest > 0:
            alarms.set(key, rest)
        else:
            try:
                await context.client.delete(f"{SECRETS}/{key[1]}")
            except Refused as error:
                if error.code != 404:
                    raise

    cleaner = context.spawn(
        reconcile(context, secrets, clean, also=((alarms, Alarms.keys),), workers=1), name="lab-token-cleaner"
    )
    try:
        await reconcile(context, maps, sign, also=((secrets, lambda _: (info,)),), workers=1)
    finally:
        cleaner.cancel()
        alarms.close()
