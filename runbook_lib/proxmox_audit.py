"""What an audit reads of Proxmox VE: accounts, tokens, access list, firewalls, fences of guests, targets of backups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from runbook_lib.audit import Account, AclEntry, ApiToken, BackupTarget, Firewall, FirewallRule, GuestFence
from runbook_lib.facts import Guest
from runbook_lib.proxmox_reading import Reader, integer, true, words

DATACENTER = "datacenter"


def accounts(pve: Reader) -> list[Account]:
    """Every user we may see, with second factors. Needs Sys.Audit or User.Modify on /access/groups to see others."""
    factors = {row["userid"]: _kinds(row.get("entries") or ()) for row in pve.get("/access/tfa") or []}
    realms = {row["realm"]: str(row.get("tfa") or "") for row in pve.get("/access/domains") or []}
    rows = [
        Account(
            userid=row["userid"],
            enabled=true(row.get("enable", 1)),
            expires=integer(row.get("expire")) or 0,
            groups=words(row.get("groups")),
            factors=factors.get(row["userid"], ()),
            realm_factor=realms.get(row["userid"].rpartition("@")[2], ""),
        )
        for row in pve.get("/access/users", full=1) or []
    ]
    return sorted(rows, key=lambda row: row.userid)


def _kinds(entries: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    # recovery keys are a way back in, not a factor that is asked for
    return tuple(
        sorted(
            {str(entry["type"]) for entry in entries if true(entry.get("enable", 1)) and entry["type"] != "recovery"}
        )
    )


def tokens(pve: Reader) -> list[ApiToken]:
    """Every API token we may see, by id."""
    rows = [
        ApiToken(
            f"{user['userid']}!{token['tokenid']}",
            user["userid"],
            true(token.get("privsep", 1)),
            integer(token.get("expire")) or 0,
        )
        for user in pve.get("/access/users", full=1) or []
        for token in user.get("tokens") or ()
    ]
    return sorted(rows, key=lambda row: row.id)


def acl(pve: Reader) -> list[AclEntry]:
    """The access list by path, with what each role holds."""
    roles = {row["roleid"]: words(row.get("privs")) for row in pve.get("/access/roles") or []}
    rows = [
        AclEntry(
            row["path"],
            row["type"],
            row["ugid"],
            row["roleid"],
            true(row.get("propagate", 1)),
            roles.get(row["roleid"], ()),
        )
        for row in pve.get("/access/acl") or []
    ]
    return sorted(rows, key=lambda row: (row.path, row.kind, row.who, row.role))


def firewalls(pve: Reader) -> list[Firewall]:
    """The datacenter's firewall, then each node's by name. A node that does not answer is remembered in `unread`."""
    groups: dict[str, list[FirewallRule]] = {}
    options = pve.get("/cluster/firewall/options") or {}
    whole = Firewall(
        DATACENTER,
        true(options.get("enable")),  # off unless it is switched on
        str(options.get("policy_in") or "DROP"),
        tuple(_rules(pve, "/cluster/firewall/rules", groups)),
    )

    def of_node(reader: Reader, node: str) -> Firewall:
        own = reader.get(f"/nodes/{node}/firewall/options") or {}
        found = tuple(_rules(reader, f"/nodes/{node}/firewall/rules", groups))
        return Firewall(node, true(own.get("enable", 1)), "", found)  # a node has no policy of its own

    return [whole, *(row for _, row in pve.each_node("firewalls", of_node))]


def _rules(pve: Reader, path: str, groups: dict[str, list[FirewallRule]]) -> Iterator[FirewallRule]:
    for row in pve.get(path) or []:
        if not true(row.get("enable", 0)):
            continue
        if row.get("type") == "group":
            name = row["action"]
            if name not in groups:
                groups[name] = list(_rules(pve, f"/cluster/firewall/groups/{name}", {name: []}))
            yield from groups[name]
        elif row.get("type") == "in":
            yield FirewallRule(
                action=str(row.get("action", "")),
                source=str(row.get("source") or ""),
                macro=str(row.get("macro") or ""),
                protocol=str(row.get("proto") or ""),
                ports=str(row.get("dport") or ""),
                comment=str(row.get("comment") or ""),
            )


def fences(pve: Reader, guests: Iterable[Guest]) -> list[GuestFence]:
    """Every guest that is no template, by vmid, as its config and its firewall's options have it."""
    found = [guest for guest in guests if not guest.template]

    def ask(reader: Reader, guest: Guest) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        base = f"/nodes/{guest.node}/{guest.kind}/{guest.vmid}"
        return reader.get(f"{base}/config") or {}, reader.get(f"{base}/firewall/options") or {}

    read = pve.each("fences", found, ask, name=lambda guest: f"{guest.node}/{guest.vmid}")
    return [_fence(guest, config, options) for guest, (config, options) in read]


def _fence(guest: Guest, config: Mapping[str, Any], options: Mapping[str, Any]) -> GuestFence:
    cards = [_parts(value) for key, value in config.items() if key[:3] == "net" and key[3:].isdigit()]
    return GuestFence(
        vmid=guest.vmid,
        name=guest.name,
        node=guest.node,
        kind=guest.kind,
        firewalled=true(options.get("enable")) and all(true(card.get("firewall")) for card in cards),
        untagged_bridges=tuple(
            sorted({card["bridge"] for card in cards if card.get("bridge") and not card.get("tag")})
        ),
        privileged=guest.kind == "lxc" and not true(config.get("unprivileged")),
        hardware=tuple(sorted(key for key, value in config.items() if _passes_by(guest.kind, key, str(value)))),
    )


def _passes_by(kind: str, key: str, value: str) -> bool:
    head, digits = key.rstrip("0123456789"), key[-1:].isdigit()
    if kind == "lxc":
        return (head == "mp" and digits and value.startswith("/")) or (head == "dev" and digits)
    if head == "usb" and digits:
        return "host=" in value or "mapping=" in value  # spice redirects from a viewer, not from the node
    return (head == "hostpci" and digits) or key == "args"


def _parts(value: Any) -> dict[str, str]:
    pairs = (part.partition("=") for part in str(value).split(","))
    return {key: rest for key, _, rest in pairs}


def backup_targets(pve: Reader) -> list[BackupTarget]:
    """Where each backup job that is switched on writes. Only Proxmox Backup Server stores take encrypted backups."""
    storages = {row["storage"]: row for row in pve.get("/storage") or []}
    rows = []
    for job in pve.get("/cluster/backup") or []:
        if not true(job.get("enabled", 1)):
            continue
        name = str(job.get("storage") or "local")
        kind = str(storages.get(name, {}).get("type", ""))
        encrypted = kind == "pbs" and bool(storages[name].get("encryption-key"))
        rows.append(BackupTarget(job["id"], name, kind, encrypted))
    return sorted(rows, key=lambda row: row.job)
