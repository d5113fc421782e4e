"""Certificates of a node beyond reading them: one of its own uploaded and removed, and ACME as far as reads go."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.certificates import TABLE
from .nodes import certificate_rows
from .nodes import pem_rows as rows_of_pem
from .nodes import this as this_node
from .routing import Call, PveError, param_error, split_list
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
    """Fill ACME from a scenario's `acme:` — {accounts, plugins, reachable: whether a directory answers}."""
    given = section.get("acme") or {}
    state.areas["acme"] = {
        "accounts": {name: dict(entry or {}) for name, entry in (given.get("accounts") or {}).items()},
        "plugins": {"standalone": {"type": "standalone"}, **(given.get("plugins") or {})},
        "reachable": bool(given.get("reachable", False)),
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


TOS = "https://letsencrypt.org/documents/LE-SA-v1.5-February-24-2025.pdf"


def reach(call: Call, directory: str | None = None) -> str:
    """The directory's address, or the 500 that it does not answer."""
    url = directory or DIRECTORIES["Let's Encrypt V2"]
    if not call.state.areas.get("acme", {}).get("reachable"):
        raise PveError(500, unreached(url))
    return url


def unreached(url: str) -> str:
    """What a node without a way to the directory says."""
    host = url.partition("://")[2].partition("/")[0]
    return f"GET to {url} failed: 500 Can't connect to {host}:443 (Temporary failure in name resolution)"


@endpoint("GET /cluster/acme/tos")
def terms(call: Call) -> str:
    """Where the directory's terms of service are."""
    reach(call, call.params.get("directory"))
    return TOS


@endpoint("GET /cluster/acme/meta")
def meta(call: Call) -> dict[str, Any]:
    """What the directory says of itself."""
    reach(call, call.params.get("directory"))
    return {"termsOfService": TOS, "website": "https://letsencrypt.org", "caaIdentities": ["letsencrypt.org"]}


@endpoint("POST /cluster/acme/account")
def create_account(call: Call) -> str:
    """The UPID of an account's registration."""
    params, accounts = call.params, acme(call.state, "accounts")
    name, directory = params.get("name", "default"), params.get("directory", DIRECTORIES["Let's Encrypt V2"])
    if name in accounts:
        raise param_error({"name": f"ACME account config file '{name}' already exists."})

    async def work(task: TaskContext) -> None:
        task.log("Generating ACME account key..")
        task.log("Registering ACME account..")
        await task.sleep(2)
        if not call.state.areas["acme"]["reachable"]:
            raise TaskError(f"Registration failed: {unreached(directory)}")
        accounts[name] = {"contact": split_list(params["contact"]), "directory": directory}
        if "tos_url" in params:
            accounts[name]["tos"] = params["tos_url"]
        task.log(f"Registration successful, account URL: '{directory.rpartition('/')[0]}/acme/acct/1'")

    return call.task("acmeregister", name, work)


def _account_task(method: str, kind: str, says: str) -> None:
    def handler(call: Call) -> str:
        name, accounts = call.params["name"], acme(call.state, "accounts")
        if name not in accounts:
            raise param_error({"name": f"ACME account config file '{name}' does not exist."})

        def work(task: TaskContext) -> None:
            if not call.state.areas["acme"]["reachable"]:
                raise TaskError(unreached(accounts[name].get("directory", DIRECTORIES["Let's Encrypt V2"])))
            if method == "DELETE":
                del accounts[name]
            elif "contact" in call.params:
                accounts[name]["contact"] = split_list(call.params["contact"])

        return call.task(kind, name, work)

    handler.__doc__ = says
    endpoint(f"{method} /cluster/acme/account/{{name}}")(handler)


_account_task("PUT", "acmeupdate", "The UPID of an account's update.")
_account_task("DELETE", "acmedeactivate", "The UPID of an account's deactivation.")


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


def ordered_domains(call: Call) -> list[str]:
    """The domains a node's configuration orders a certificate for."""
    config = this_node(call).config
    found = split_list(
        dict(part.partition("=")[::2] for part in str(config.get("acme", "")).split(",")).get("domains", "")
    )
    for key in sorted(key for key in config if key.startswith("acmedomain")):
        found.append(str(config[key]).partition(",")[0].removeprefix("domain="))
    return found


def issued(domains: list[str], moment: float) -> str:
    """A certificate for the domains, valid for ninety days from then, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    start = dt.datetime.fromtimestamp(int(moment), dt.UTC)
    issuer = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Let's Encrypt"),
              x509.NameAttribute(x509.NameOID.COMMON_NAME, "E7")]  # fmt: skip
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, domains[0])]))
        .issuer_name(x509.Name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in domains]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _order(method: str, kind: str, says: str) -> None:
    def handler(call: Call) -> str:
        state, node, domains = call.state, call.node, ordered_domains(call)
        held = customs(state).get(node)
        if method == "POST" and held and not call.params.get("force"):
            raise param_error({"force": "Custom certificate exists but 'force' is not set."})
        if method != "POST" and not held:
            raise PveError(500, "No current (custom) certificate found.")
        long = held is not None and held["notafter"] - state.clock.now() > 30 * 86400
        if method == "PUT" and long and not call.params.get("force"):
            raise param_error({"force": "Certificate does not expire within the next 30 days, and 'force' is not set."})

        async def work(task: TaskContext) -> None:
            if method != "DELETE" and not domains:
                raise TaskError("No ACME config for this node!")
            task.log("Loading ACME account details")
            if not acme(state, "accounts") or not state.areas["acme"]["reachable"]:
                raise TaskError(unreached(DIRECTORIES["Let's Encrypt V2"]))
            await task.sleep(3)
            if method == "DELETE":
                task.log("Revoking old certificate")
                customs(state).pop(node, None)
                task.log("Deleting certificate files")
                return
            task.log("Placing ACME order")
            for domain in domains:
                task.log(f"The validation for {domain} is pending!")
                task.log(f"Status is 'valid', domain '{domain}' OK!")
            task.log("All domains validated!")
            task.log("Creating CSR")
            task.log("Downloading certificate")
            row = rows_of_pem(issued(domains, state.clock.now()))[0]
            customs(state)[node] = {**row, "filename": "pveproxy-ssl.pem"}
            task.log("Setting pveproxy certificate and key")
            task.log("Restarting pveproxy")

        return call.task(kind, "", work)

    handler.__doc__ = says
    endpoint(f"{method} /nodes/{{node}}/certificates/acme/certificate")(handler)


_order("POST", "acmenewcert", "The UPID of an order, which ends as the scenario's directory answers.")
_order("PUT", "acmerenew", "The UPID of a renewal.")
_order("DELETE", "acmerevoke", "The UPID of a revocation.")
