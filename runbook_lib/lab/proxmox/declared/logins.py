"""Second factors and OpenID logins."""

from __future__ import annotations

from ..routing import Boolean, String
from . import Endpoint

TABLE: dict[str, Endpoint] = {
    "POST /access/openid/auth-url": Endpoint(
        "world", {"realm": String(format="pve-realm", max_length=32), "redirect-url": String(max_length=255)}
    ),
    "POST /access/openid/login": Endpoint(
        "world",
        {"code": String(max_length=4096), "redirect-url": String(max_length=255), "state": String(max_length=1024)},
    ),
    "POST /access/tfa/{userid}": Endpoint(
        "any",
        {
            "challenge": String(optional=True),
            "description": String(optional=True, max_length=255),
            "password": String(optional=True, min_length=5, max_length=64),
            "totp": String(optional=True),
            "type": String(enum=("totp", "u2f", "webauthn", "recovery", "yubico")),
            "userid": String(format="pve-userid", max_length=64),
            "value": String(optional=True),
        },
        tokens=False,
    ),
    "DELETE /access/tfa/{userid}/{id}": Endpoint(
        "any",
        {
            "password": String(optional=True, min_length=5, max_length=64),
            "userid": String(format="pve-userid", max_length=64),
        },
        tokens=False,
    ),
    "PUT /access/tfa/{userid}/{id}": Endpoint(
        "any",
        {
            "description": String(optional=True, max_length=255),
            "enable": Boolean(optional=True),
            "password": String(optional=True, min_length=5, max_length=64),
            "userid": String(format="pve-userid", max_length=64),
        },
        tokens=False,
    ),
    "PUT /access/users/{userid}/unlock-tfa": Endpoint("any", {"userid": String(format="pve-userid", max_length=64)}),
}
