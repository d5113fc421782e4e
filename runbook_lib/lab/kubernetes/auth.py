"""Who a request comes from: bearer tokens, service-account tokens, client certificates, impersonation."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import uuid
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .rbac import Request
from .status import ApiError, bad_request, forbidden

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cluster import Cluster, User

Json = dict[str, Any]
ISSUER = "https://kubernetes.default.svc"
BOOTSTRAP = re.compile(r"[a-z0-9]{6}\.[a-z0-9]{16}")
CREDENTIAL = "authentication.kubernetes.io/credential-id"


def _pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def issue(
    cluster: Cluster, namespace: str, name: str, uid: str, seconds: int, audiences: list[str] | None = None,
    bound: Json | None = None,
) -> tuple[str, float]:  # fmt: skip
    """A service-account token (a JWT of the lab's own key) and the moment it expires."""
    now = int(cluster.clock.now())
    claims: Json = {
        "aud": audiences or [ISSUER], "exp": now + seconds, "iat": now, "iss": ISSUER, "jti": str(uuid.uuid4()),
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
        "nbf": now, "sub": f"system:serviceaccount:{namespace}:{name}",
    }  # fmt: skip
    if bound:
        claims["kubernetes.io"][bound["kind"].lower()] = {"name": bound["name"], "uid": bound.get("uid", "")}
    head = _pack(json.dumps({"alg": "HS256", "kid": "lab"}).encode())
    body = head + "." + _pack(json.dumps(claims).encode())
    return body + "." + _pack(hmac.new(cluster.signing_key, body.encode(), hashlib.sha256).digest()), now + seconds


def service_account(namespace: str, name: str) -> tuple[str, tuple[str, ...]]:
    """The user name and groups of a service account."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return f"system:serviceaccount:{namespace}:{name}", groups


def verify(cluster: Cluster, token: str, audiences: list[str] | None = None) -> tuple[User | None, list[str], str]:
    """The user of a token with its audiences, or None and the reason a TokenReview gives."""
    from .cluster import User

    known = cluster.tokens.get(token)
    if known is not None:
        return known, [ISSUER], ""
    if BOOTSTRAP.fullmatch(token):
        user = bootstrap_user(cluster, *token.split("."))
        return (user, [ISSUER], "") if user else (None, [], "invalid bearer token")
    try:
        body, _, signature = token.rpartition(".")
        claims = json.loads(_unpack(body.split(".")[1]))
        wanted = hmac.new(cluster.signing_key, body.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(wanted, _unpack(signature)):
            return None, [], "invalid bearer token"
        own = claims["kubernetes.io"]
        namespace, account = own["namespace"], own["serviceaccount"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None, [], "invalid bearer token"
    if claims["exp"] < cluster.clock.now():
        return None, [], "[invalid bearer token, service account token has expired]"
    stored = cluster.store.get("/serviceaccounts", (namespace, account["name"]))
    if stored is None or stored.obj["metadata"]["uid"] != account["uid"]:
        return None, [], "[invalid bearer token, service account token has been invalidated]"
    given = claims["aud"]
    if not set(given) & set(audiences or [ISSUER]):
        shown = ", ".join(f'"{a}"' for a in given)
        target = ", ".join(f'"{a}"' for a in audiences or [ISSUER])
        text = f"token audiences [{shown}] is invalid for the target audiences [{target}]"
        return None, [], f"[invalid bearer token, {text}]"
    name, groups = service_account(namespace, account["name"])
    user = User(name, groups, account["uid"], {CREDENTIAL: [f"JTI={claims['jti']}"]})
    return user, [a for a in given if a in (audiences or [ISSUER])], ""


def bootstrap_user(cluster: Cluster, identifier: str, secret: str) -> User | None:
    """Who a bootstrap token stands for, by its Secret in kube-system; None for one that is not known or has expired."""
    from .cluster import User

    stored = cluster.store.get("/secrets", ("kube-system", f"bootstrap-token-{identifier}"))
    if stored is None or stored.obj.get("type") != "bootstrap.kubernetes.io/token":
        return None
    given = stored.obj.get("data") or {}
    data = {key: base64.b64decode(value).decode(errors="replace") for key, value in given.items()}
    if data.get("usage-bootstrap-authentication") != "true" or data.get("token-id") != identifier:
        return None
    if not hmac.compare_digest(data.get("token-secret", "").encode(), secret.encode()):
        return None
    try:
        if datetime.fromisoformat(data["expiration"].replace("Z", "+00:00")).timestamp() < cluster.clock.now():
            return None
    except (KeyError, ValueError):
        if "expiration" in data:
            return None
    extra = [group for group in data.get("auth-extra-groups", "").split(",") if group]
    return User(f"system:bootstrap:{identifier}", ("system:bootstrappers", *extra, "system:authenticated"))


def unauthorized() -> ApiError:
    """401."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def authenticate(cluster: Cluster, headers: Mapping[str, str], certificate: Mapping[str, Any] | None) -> User:
    """The user behind a request; ApiError 401 for a token nobody knows."""
    from .cluster import User

    header = headers.get("Authorization", "")
    if header.lower().startswith("bearer "):
        user, _, _ = verify(cluster, header[7:].strip())
        if user is None:
            raise unauthorized()
        if "system:authenticated" not in user.groups:
            user = User(user.name, (*user.groups, "system:authenticated"), user.uid, user.extra)
        return user
    if certificate:
        subject = [pair for group in certificate.get("subject", ()) for pair in group]
        names = [value for key, value in subject if key == "commonName"]
        groups = tuple(value for key, value in subject if key == "organizationName")
        if names:
            return User(names[0], (*groups, "system:authenticated"))
    return User("system:anonymous", ("system:unauthenticated",))


def impersonate(cluster: Cluster, user: User, headers: Any, request: Request) -> User:
    """The user asked for by Impersonate-* headers, once the real one may be them."""
    from .cluster import User

    name = headers.get("Impersonate-User", "")
    groups = tuple(headers.getall("Impersonate-Group", ()))
    extra: dict[str, list[str]] = {}
    for key, value in headers.items():
        if key.lower().startswith("impersonate-extra-"):
            extra.setdefault(key[18:].lower(), []).append(value)
    if not name:
        if groups or extra or headers.get("Impersonate-Uid"):
            raise bad_request("requested impersonation without impersonating a user")
        return user
    parts = name.split(":")
    if name.startswith("system:serviceaccount:") and len(parts) == 4:
        wish = Request("impersonate", "", "serviceaccounts", "", parts[2], parts[3])
    else:
        wish = Request("impersonate", "", "users", "", "", name)
    if not cluster.rbac.allowed(user, wish)[0]:
        if wish.resource == "users":
            on = replace(request, verb=f"impersonate-on:user-info:{request.verb}")
            raise refuse(user, on)
        raise refuse_impersonation(user, wish)
    for group in groups:
        wish = Request("impersonate", "", "groups", "", "", group)
        if not cluster.rbac.allowed(user, wish)[0]:
            raise refuse_impersonation(user, wish)
    if name.startswith("system:serviceaccount:") and len(parts) == 4 and not groups:
        groups = service_account(parts[2], parts[3])[1]
    if name != "system:anonymous" and "system:authenticated" not in groups:
        groups = (*groups, "system:authenticated")
    return User(name, groups, headers.get("Impersonate-Uid", ""), extra)


def refuse_impersonation(user: User, wish: Request) -> ApiError:
    """403 for someone who may not be another."""
    where = f' in the namespace "{wish.namespace}"' if wish.namespace else " at the cluster scope"
    text = f'User "{user.name}" cannot impersonate resource "{wish.resource}" in API group ""{where}'
    return forbidden("", wish.resource, wish.name, text)


def refuse(user: User, request: Request) -> ApiError:
    """403 for what RBAC does not allow."""
    if request.path:
        return ApiError(
            403, "Forbidden", f'forbidden: User "{user.name}" cannot {request.verb} path "{request.path}"', {}
        )
    resource = request.resource + (f"/{request.subresource}" if request.subresource else "")
    where = f' in the namespace "{request.namespace}"' if request.namespace else " at the cluster scope"
    text = f'User "{user.name}" cannot {request.verb} resource "{resource}" in API group "{request.group}"{where}'
    return forbidden(request.group, request.resource, request.name, text)
