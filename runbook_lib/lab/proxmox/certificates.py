"""Certificates of a node beyond reading them: one of its own uploaded and removed, and ACME as far as reads go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.certificates import TABLE
from .nodes import certificate_rows
from .nodes import pem_rows as rows_of_pem
from .nodes import this as this_node
from .routing import Call, PveError, param_error
from .schema import format_check
from .sections import Section, Sections, check_digest, digest_of, edit, stored
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

DIRECTORIES = {
    "Let's Encrypt V2": "https://acme-v02.api.letsencrypt.org/directory",
    "Let's Encrypt V2 Staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill ACME accounts and plugins from a scenario's `acme:`."""
    given = section.get("acme") or {}
    state.areas["acme"] = {
        "accounts": {name: dict(entry or {}) for name, entry in (given.get("accounts") or {}).items()},
        "plugins": {"standalone": {"type": "standalone"}, **(given.get("plugins") or {})},
    }
    state.areas["custom_certificates"] = {}


@format_check("pem-certificate-chain")
def _chain(value: str) -> None:
    if "-----BEGIN CERTIFICATE-----" not in value:
        raise ValueError("value does not look like a valid PEM-formatted certificate chain\n")


@format_check("pem-string")
def _pem(value: str) -> None:
    if "-----BEGIN " not in value:
        raise ValueError("value does not look like a valid PEM-formatted string\n")


# --- a certificate of one's own -------------------------------------------------------------------


def customs(state: PveState) -> dict[str, dict[str, Any]]:
    """The uploaded certificates, by node."""
    found: dict[str, dict[str, Any]] = state.areas.setdefault("custom_certificates", {})
    return found


@endpoint("GET /nodes/{node}/certificates/info")
def info(call: Call) -> list[dict[str, Any]]:
    """The certificates of a node: its cluster's authority, its own, and the one that was uploaded."""
    rows = certificate_rows(call.state, this_node(call))
    return [*rows, *([customs(call.state)[call.node]] if call.node in customs(call.state) else [])]


@endpoint("POST /nodes/{node}/certificates/custom")
def upload(call: Call) -> dict[str, Any]:
    """The certificate as the node now serves it; it must fit its key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509 import load_pem_x509_certificates

    params = call.params
    if call.node in customs(call.state) and not params.get("force"):
        raise param_error({"certificate": "Custom certificate exists but 'force' is not set."})
    try:
        leaf = load_pem_x509_certificates(params["certificates"].encode())[0]
        rows = rows_of_pem(params["certificates"])
    except (ValueError, IndexError) as error:
        raise PveError(500, "unable to load certificate") from error
    if "key" not in params:
        raise param_error({"key": "Attempted to upload custom certificate without (existing) key."})
    try:
        key = serialization.load_pem_private_key(params["key"].encode(), None)
    except (ValueError, TypeError) as error:
        raise PveError(500, "invalid private key") from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise PveError(500, "certificate and key do not match")
    row = {**rows[0], "filename": "pveproxy-ssl.pem"}
    customs(call.state)[call.node] = row
    return row


@endpoint("DELETE /nodes/{node}/certificates/custom")
def remove(call: Call) -> None:
    """Nothing; the node serves its cluster's certificate again."""
    customs(call.state).pop(call.node, None)


# --- ACME -----------------------------------------------------------------------------------------


def acme(state: PveState, what: str) -> Sections:
    """The accounts or plugins, by name."""
    found: Sections = state.areas.setdefault("acme", {}).setdefault(what, {})
    return found


@endpoint("GET /cluster/acme")
def acme_index(call: Call) -> list[dict[str, str]]:
    """The names below acme."""
    names = ("account", "tos", "meta", "directories", "plugins", "challenge-schema")
    return [{"name": name} for name in names]


@endpoint("GET /cluster/acme/directories")
def directories(call: Call) -> list[dict[str, str]]:
    """The ACME directories that are known by name."""
    return [{"name": name, "url": url} for name, url in DIRECTORIES.items()]


@endpoint("GET /cluster/acme/challenge-schema")
def challenges(call: Call) -> list[dict[str, Any]]:
    """The DNS plugins; the lab has none."""
    return []


@endpoint("GET /cluster/acme/account")
def list_accounts(call: Call) -> list[dict[str, str]]:
    """The accounts, by name."""
    return [{"name": name} for name in acme(call.state, "accounts")]


@endpoint("GET /cluster/acme/account/{name}")
def get_account(call: Call) -> Section:
    """One account."""
    name = call.params["name"]
    if name not in acme(call.state, "accounts"):
        raise param_error({"name": f"ACME account config file '{name}' does not exist."})
    entry = acme(call.state, "accounts")[name]
    contact = [f"mailto:{mail}" for mail in entry.get("contact", ())]
    return {
        "account": {"status": "valid", "contact": contact},
        "directory": entry.get("directory", DIRECTORIES["Let's Encrypt V2"]),
        "location": f"https://acme-v02.api.letsencrypt.org/acme/acct/{digest_of([name])[:8]}",
        "tos": entry.get("tos", "https://letsencrypt.org/documents/LE-SA-v1.5-February-24-2025.pdf"),
    }


@endpoint("GET /cluster/acme/plugins")
def list_plugins(call: Call) -> list[Section]:
    """The challenge plugins."""
    plugins, wanted = acme(call.state, "plugins"), call.params.get("type")
    configured = {name: entry for name, entry in plugins.items() if name != "standalone"}
    return [
        {"plugin": name, **entry, "digest": digest_of(configured)}
        for name, entry in plugins.items()
        if wanted in (None, entry["type"])
    ]


def plugin_of(call: Call) -> Section:
    """The plugin a path names, or the 500 that there is none."""
    if call.params["id"] not in acme(call.state, "plugins"):
        raise PveError(500, f"ACME plugin '{call.params['id']}' not defined")
    return acme(call.state, "plugins")[call.params["id"]]


@endpoint("GET /cluster/acme/plugins/{id}")
def get_plugin(call: Call) -> Section:
    """One challenge plugin."""
    return {"plugin": call.params["id"], **plugin_of(call), "digest": digest_of(acme(call.state, "plugins"))}


@endpoint("POST /cluster/acme/plugins")
def create_plugin(call: Call) -> None:
    """Nothing; the plugin is there."""
    plugins, name = acme(call.state, "plugins"), call.params["id"]
    if name in plugins:
        raise PveError(500, f"ACME plugin ID '{name}' already exists")
    plugins[name] = stored(call.params, without=("id",))


@endpoint("PUT /cluster/acme/plugins/{id}")
def update_plugin(call: Call) -> None:
    """Nothing; the plugin is as asked."""
    check_digest(call.params.get("digest"), acme(call.state, "plugins"))
    options = ("api", "data", "disable", "nodes", "validation-delay")
    edit(plugin_of(call), call.params, options=options, without=("id",))


@endpoint("DELETE /cluster/acme/plugins/{id}")
def delete_plugin(call: Call) -> None:
    """Nothing; the plugin is gone."""
    plugin_of(call)
    del acme(call.state, "plugins")[call.params["id"]]


@endpoint("GET /nodes/{node}/certificates/acme")
def node_acme_index(call: Call) -> list[dict[str, str]]:
    """The names below a node's acme."""
    return [{"name": "certificate"}]


def _order(method: str, kind: str, says: str) -> None:
    def handler(call: Call) -> str:
        node = this_node(call)

        def work(task: TaskContext) -> None:
            if "acme" not in node.config and not any(key.startswith("acmedomain") for key in node.config):
                raise TaskError("No ACME config for this node!" if method != "DELETE" else "no certificate to revoke")
            task.log("Loading ACME account details")
            raise TaskError("error: the lab reaches no ACME directory")

        return call.task(kind, "", work)

    handler.__doc__ = says
    endpoint(f"{method} /nodes/{{node}}/certificates/acme/certificate")(handler)


_order("POST", "acmenewcert", "The UPID of an order, which fails: the lab reaches no directory.")
_order("PUT", "acmerenew", "The UPID of a renewal, which fails: the lab reaches no directory.")
_order("DELETE", "acmerevoke", "The UPID of a revocation, which fails: the lab reaches no directory.")
