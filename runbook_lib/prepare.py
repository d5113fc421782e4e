"""The test environment of a site as changes: access, pool, template, namespace; and what proves it, borrowed.

Every function reads what is there and returns what is wanted beyond that. What is as wanted already makes no change,
so preparing twice changes nothing, and preparing again after a kill goes on where the kill struck.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from runbook_lib.errors import ApiError, NotAllowed, NotFound
from runbook_lib.executors import (
    BORROWED,
    acl_undo,
    guest_undo,
    labelled,
    pool_undo,
    reference,
    target_of,
    token_undo,
    user_undo,
    volume_undo,
)
from runbook_lib.facts import Storage
from runbook_lib.model import Change, ChangeKind
from runbook_lib.plan import flat, mark
from runbook_lib.privileges import COMPONENTS, Account, Grant, account

FILE_STORAGES = frozenset({"dir", "nfs", "cifs", "cephfs", "glusterfs", "btrfs"})
"""Storage types whose volumes are files, and named like files."""

TEMPLATE_MEMORY_MIB = 2048
TEMPLATE_CORES = 2
VOLUME_MIB = 128
ALL_COMPONENTS = tuple(component.name for component in COMPONENTS)
EXPIRED = 1
"""A second after the epoch: long expired, and not 0, which means never."""

_SERVER_SIDE = frozenset({"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"})


@dataclass(frozen=True)
class Wanted:
    """What is still to be changed, what is as wanted already, and what stands in the way. Iterates over the changes."""

    changes: tuple[Change, ...] = ()
    unchanged: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __add__(self, other: Wanted) -> Wanted:
        return Wanted(
            self.changes + other.changes, self.unchanged + other.unchanged, self.problems + other.problems
        ).numbered(_prefix(self.changes + other.changes))

    def numbered(self, step: str) -> Wanted:
        """The same with change ids "<step>-01", "<step>-02" … in order."""
        changes = tuple(replace(entry, id=f"{step}-{index:02d}") for index, entry in enumerate(self.changes, start=1))
        return replace(self, changes=changes)


# --- access ----------------------------------------------------------------------------------------


def access(
    pve: Any,
    site: Any,
    run: str,
    *,
    components: Iterable[str] = ALL_COMPONENTS,
    accounts: Iterable[Account] | None = None,
    root: Path | None = None,
    step: str = "13",
) -> Wanted:
    """Role, user, token and ACL entries of each component with its least privileges.

    `accounts` take the place of what the components' own data say, where a step knows the paths better.

    A token's secret is shown by PVE once. It is kept under `.secrets/<site>/` and never anywhere else; a token whose
    secret is not there is of no use to anyone here and is made anew.
    """
    root, site = root or _root(), _settled(pve, site)
    if problems := _open_storages(site):
        return Wanted(problems=problems)
    version = str(pve.get("/version")["version"])
    roles = {row["roleid"]: _names(row.get("privs")) for row in pve.get("/access/roles")}
    users = {row["userid"]: row for row in pve.get("/access/users", full=1)}
    acl = [dict(row) for row in pve.get("/access/acl")]
    wanted = Wanted()
    for entry in accounts if accounts is not None else [account(name, site, version) for name in components]:
        one_each = {grant.role: grant for grant in entry.grants}
        for part in (
            *(_role(grant, roles) for grant in one_each.values()),
            _user(entry, users, run),
            _token(entry, users, run, site, root),
            *(_acl(entry, grant, acl, users, site, root) for grant in entry.grants),
        ):
            wanted = Wanted(wanted.changes + part.changes, wanted.unchanged + part.unchanged)
    return wanted.numbered(step)


def secret_file(site: Any, component: str) -> str:
    """Where the component's token is kept, relative to the project: JSON with `token_id` and `token_secret`, 0600."""
    return f".secrets/{site.name}/{component}.json"


def secret_reference(site: Any, component: str) -> str:
    """The reference to the component's token secret, as a parameters file wants it."""
    return f"file:{secret_file(site, component)}#token_secret"


def _role(grant: Grant, roles: Mapping[str, tuple[str, ...]]) -> Wanted:
    wanted = ",".join(grant.privileges)
    undo = {
        "method": "DELETE",
        "path": f"/access/roles/{grant.role}",
        "look": {"path": "/access/roles", "match": {"roleid": grant.role}},
    }
    if grant.role not in roles:
        request = {"method": "POST", "path": "/access/roles", "params": {"roleid": grant.role, "privs": wanted}}
        summary = f"Role for: {grant.purpose}"
        return _change("create", f"/access/roles/{grant.role}", summary, request, after={"privs": wanted}, undo=undo)
    held = ",".join(roles[grant.role])
    if held == wanted:
        return Wanted(unchanged=(f"role {grant.role}",))
    path = f"/access/roles/{grant.role}"
    request = {"method": "PUT", "path": path, "params": {"privs": wanted}}
    before = {"method": "PUT", "path": path, "params": {"privs": held}}
    summary = "Role with exactly the privileges needed"
    return _change("update", path, summary, request, before={"privs": held}, after={"privs": wanted}, undo=before)


def _user(entry: Account, users: Mapping[str, Mapping[str, Any]], run: str) -> Wanted:
    path = f"/access/users/{entry.user}"
    found = users.get(entry.user)
    if found is None:
        comment = f"{entry.title}; {mark(run)}"
        request = {"method": "POST", "path": "/access/users", "params": {"userid": entry.user, "comment": comment}}
        after = {"userid": entry.user, "comment": comment, "enable": 1}
        summary = f"User of {entry.title}, without a password"
        return _change("create", path, summary, request, after=after, undo=user_undo(entry.user, run))
    if int(found.get("enable", 1)):
        return Wanted(unchanged=(f"user {entry.user}",))
    request = {"method": "PUT", "path": path, "params": {"enable": 1}}
    undo = {"method": "PUT", "path": path, "params": {"enable": 0}}
    summary = "User enabled again"
    return _change("update", path, summary, request, before={"enable": 0}, after={"enable": 1}, undo=undo)


def _token(entry: Account, users: Mapping[str, Mapping[str, Any]], run: str, site: Any, root: Path) -> Wanted:
    found = _found_token(entry, users)
    path = f"/access/users/{entry.user}/token/{entry.token}"
    file = secret_file(site, entry.component)
    privsep = int(entry.privsep)
    if found is not None and (root / file).exists():
        if int(found.get("privsep", 1)) == privsep:
            return Wanted(unchanged=(f"token {entry.token_id}",))
        request = {"method": "PUT", "path": path, "params": {"privsep": privsep}}
        undo = {"method": "PUT", "path": path, "params": {"privsep": 1 - privsep}}
        before, after = {"privsep": 1 - privsep}, {"privsep": privsep}
        summary = "Token with privilege separation"
        return _change("update", path, summary, request, before=before, after=after, undo=undo)
    made = _new_token(entry, path, file, run, privsep)
    if found is None:
        return made
    # PVE shows a secret once; this one is not here, so whoever made it holds it, or a kill came before it was kept.
    summary = "Token whose secret is not kept here; made anew, the old secret ends to be valid"
    gone = _change("delete", path, summary, {"method": "DELETE", "path": path}, before=dict(found))
    return Wanted(gone.changes + made.changes)


def _new_token(entry: Account, path: str, file: str, run: str, privsep: int) -> Wanted:
    comment = f"{entry.title}; {mark(run)}"
    request = {
        "method": "POST",
        "path": path,
        "params": {"privsep": privsep, "comment": comment},
        "secret": {"field": "value", "file": file, "key": "token_secret", "beside": {"token_id": entry.token_id}},
    }
    after = {"token": entry.token_id, "privsep": privsep, "secret kept in": file}
    undo = token_undo(entry.user, entry.token, run)
    return _change("create", path, f"Token of {entry.title}", request, after=after, undo=undo)


def _found_token(entry: Account, users: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    tokens = users.get(entry.user, {}).get("tokens") or []
    return next((dict(token) for token in tokens if token["tokenid"] == entry.token), None)


def _acl(
    entry: Account,
    grant: Grant,
    acl: Iterable[Mapping[str, Any]],
    users: Mapping[str, Mapping[str, Any]],
    site: Any,
    root: Path,
) -> Wanted:
    kept = _found_token(entry, users) is not None and (root / secret_file(site, entry.component)).exists()

    def granted(kind: str, who: str) -> bool:
        return any(
            (row["path"], row["roleid"], row["type"], row["ugid"]) == (grant.path, grant.role, kind, who)
            and bool(int(row.get("propagate", 1))) == grant.propagate
            for row in acl
        )

    # A token that is deleted takes its ACL entries with it, so a token made anew needs them anew.
    missing = {
        "users": "" if granted("user", entry.user) else entry.user,
        "tokens": "" if kept and granted("token", entry.token_id) else entry.token_id,
    }
    who = {name: value for name, value in missing.items() if value}
    if not who:
        return Wanted(unchanged=(f"{grant.role} on {grant.path} for {entry.token_id}",))
    params = {"path": grant.path, "roles": grant.role, "propagate": int(grant.propagate), **who}
    request = {"method": "PUT", "path": "/access/acl", "params": params}
    undo = {**acl_undo(grant.path, grant.role, "user", entry.user)}
    undo["params"] = {"path": grant.path, "roles": grant.role, "delete": 1, **who}
    target = f"/access/acl{grant.path if grant.path != '/' else ''} {entry.component}"
    summary = f"{entry.title} may here: {grant.purpose}"
    return _change("create", target, summary, request, after={"role": grant.role, **params}, undo=undo)


def refused_tokens(pve: Any, site: Any, run: str, *, step: str = "21") -> Wanted:
    """An expired token, and a token of a disabled user: borrowed, to see that Proxmox VE refuses both.

    Read them back with `kept_token(site, "expired")` and `kept_token(site, "disabled")`.
    """
    changes: list[Change] = []
    realm = str(site.names.user).rpartition("@")[2]
    for case, enable, expire in (("expired", 1, EXPIRED), ("disabled", 0, 0)):
        user = f"{site.names.prefix}-{case}-{run.rpartition('-')[2].lower()}@{realm}"
        comment = f"{mark(run)} {BORROWED}"
        params = {"userid": user, "enable": enable, "comment": comment}
        undo = user_undo(user, run)
        request = {"method": "POST", "path": "/access/users", "params": params}
        summary = f"User for the refused login: {case} token"
        made = _change("create", f"/access/users/{user}", summary, request, after=params, undo=undo, borrow=True)
        file = secret_file(site, f"refused-{case}")
        path = f"/access/users/{user}/token/refused"
        own = {"comment": comment, "privsep": 1, "expire": expire}
        secret = {"field": "value", "file": file, "key": "token_secret", "beside": {"token_id": f"{user}!refused"}}
        ask = {"method": "POST", "path": path, "params": own, "secret": secret}
        gone = {**token_undo(user, "refused", run), "forget": file}
        token = _change("create", path, f"Token that must be refused: {case}", ask, after=own, undo=gone, borrow=True)
        changes += [*made.changes, *token.changes]
    return Wanted(tuple(changes)).numbered(step)


def kept_token(site: Any, component: str, *, root: Path | None = None) -> tuple[str, str]:
    """(token id, secret) of a token kept under `.secrets/`. Raises SecretError when there is none."""
    from runbook_lib.secrets import resolve

    path = (root or _root()) / secret_file(site, component)
    secret = resolve(f"file:{path}#token_secret")
    # The id is no secret: resolved as one, every text that names the user would be redacted.
    return str(json.loads(path.read_text())["token_id"]), secret


# --- pool and storage ------------------------------------------------------------------------------


def pool(pve: Any, site: Any, run: str, *, step: str = "13") -> Wanted:
    """The resource pool that holds everything the runbook and its machines own."""
    name = site.names.pool
    if any(row["poolid"] == name for row in pve.get("/pools")):
        return Wanted(unchanged=(f"pool {name}",))
    comment = f"Test environment; {mark(run)}"
    request = {"method": "POST", "path": "/pools", "params": {"poolid": name, "comment": comment}}
    after = {"poolid": name, "comment": comment}
    summary = "Pool for test machines; rights on it are rights on nothing else"
    return _change("create", f"/pools/{name}", summary, request, after=after, undo=pool_undo(name, run)).numbered(step)


def with_storages(site: Any, storages: Iterable[Storage]) -> Any:
    """The site with the storages it leaves open chosen: for ISO images the first that takes them, for disks the
    largest, in either case one that every node of the site has."""
    rows = [row for row in storages if row.active and row.enabled]
    nodes = set(site.names.nodes or {row.node for row in rows})

    def everywhere(content: str) -> dict[str, int]:
        """Name → least free bytes on any of the nodes."""
        takers = [row for row in rows if content in row.content and row.node in nodes]
        names = {row.name for row in takers if {other.node for other in takers if other.name == row.name} == nodes}
        free = {name: [row.available_bytes or 0 for row in takers if row.name == name] for name in names}
        return {name: min(free[name]) for name in sorted(names)}

    isos, disks = everywhere("iso"), everywhere("images")
    chosen = {
        "iso_storage": site.names.iso_storage or next(iter(isos), None),
        "disk_storage": site.names.disk_storage or max(disks, key=lambda name: disks[name], default=None),
    }
    return site.model_copy(update={"names": site.names.model_copy(update=chosen)})


def _settled(pve: Any, site: Any) -> Any:
    if site.names.iso_storage and site.names.disk_storage:
        return site
    from runbook_lib import proxmox

    return with_storages(site, proxmox.storages(pve))


def _open_storages(site: Any) -> tuple[str, ...]:
    """What could not be chosen; rights and disks need a storage by name."""
    wanted = (("iso_storage", "iso", "ISO images"), ("disk_storage", "images", "disks"))
    return tuple(
        f"names.{field}: no active storage that every node of the site has takes {purpose}; "
        f"add `{content}` to one's content types with `pvesm set`"
        for field, content, purpose in wanted
        if not getattr(site.names, field)
    )


@dataclass(frozen=True)
class StorageUse:
    """One purpose and the storage that serves it on one node; `problem` says why it cannot."""

    purpose: str  # "ISO images", "disks", "cloud images"
    node: str
    storage: str
    type: str = ""
    available_bytes: int | None = None
    shared: bool = False
    problem: str = ""


def storage_uses(storages: Iterable[Storage], site: Any, *, nodes: Iterable[str] | None = None) -> list[StorageUse]:
    """The site's storages by purpose on each of its nodes, with what is wrong about them."""
    rows = list(storages)
    names = with_storages(site, rows).names
    hosts = list(nodes or names.nodes or sorted({row.node for row in rows}))
    wanted = (("ISO images", names.iso_storage, "iso"), ("disks", names.disk_storage, "images"))
    return [_use(purpose, host, name, content, rows) for host in hosts for purpose, name, content in wanted]


def _use(purpose: str, node: str, name: str | None, content: str, rows: Iterable[Storage]) -> StorageUse:
    if name is None:
        return StorageUse(purpose, node, "", problem=f"no storage that every node has takes {content}")
    row = next((row for row in rows if (row.node, row.name) == (node, name)), None)
    if row is None:
        return StorageUse(purpose, node, name, problem="there is no such storage on this node")
    problem = (
        "it is disabled"
        if not row.enabled
        else "it is not active"
        if not row.active
        else f"its content types ({', '.join(row.content)}) lack {content}"
        if content not in row.content
        else ""
    )
    return StorageUse(purpose, node, name, row.type, row.available_bytes, row.shared, problem)


def test_volumes(pve: Any, site: Any, run: str, *, storages: Iterable[Storage], step: str = "13") -> Wanted:
    """One small volume on the disk storage of each node, borrowed: allocated, to be listed and freed again."""
    changes: list[Change] = []
    seen_shared = False
    for use in storage_uses(storages, site):
        if use.purpose != "disks" or use.problem or (use.shared and seen_shared):
            continue
        seen_shared = seen_shared or use.shared
        changes += _test_volume(use, site, run).changes
    return Wanted(tuple(changes)).numbered(step)


test_volumes.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def _test_volume(use: StorageUse, site: Any, run: str) -> Wanted:
    vmid = site.names.vmid_range.end
    # PVE wants vm-<vmid>-…, and the format as suffix where volumes are files.
    filename = f"vm-{vmid}-{mark(run)}" + (".raw" if use.type in FILE_STORAGES else "")
    path = f"/nodes/{use.node}/storage/{use.storage}/content"
    params = {"vmid": vmid, "filename": filename, "size": f"{VOLUME_MIB}M", "format": "raw"}
    request = {"method": "POST", "path": path, "params": params, "cost": {"gib": VOLUME_MIB / 1024}}
    undo = volume_undo(use.node, use.storage, filename, run)
    summary = f"Test volume of {VOLUME_MIB} MiB, freed again"
    return _change("create", f"{path}/{filename}", summary, request, after=params, undo=undo, borrow=True)


# --- the template ----------------------------------------------------------------------------------


def template(pve: Any, site: Any, run: str, *, step: str = "13") -> Wanted:
    """The VM template, imported from the site's cloud image unless it is there.

    A half-made one of ours (a kill in the middle) is finished or made anew; a VM of somebody else with that id is a
    problem, not a change.
    """
    names = site.names
    nodes = [row["node"] for row in pve.get("/nodes") if row.get("status") == "online"]
    if names.template_vmid is None:
        return _any_template(pve, nodes)
    vmid = int(names.template_vmid)
    node, row = _where(pve, vmid, nodes)
    if row is None:
        return _import(pve, site, run, _first(names.nodes, nodes)).numbered(step)
    if row.get("template"):
        return Wanted(unchanged=(f"template {vmid} {row.get('name', '')} on {node}",))
    return _half_made(pve, site, run, node, row).numbered(step)


def _any_template(pve: Any, nodes: Iterable[str]) -> Wanted:
    found = [(node, row) for node in nodes for row in pve.get(f"/nodes/{node}/qemu") if row.get("template")]
    if not found:
        return Wanted(problems=("names.template_vmid: the site names no id, and there is no template at all",))
    return Wanted(unchanged=tuple(f"template {row['vmid']} {row.get('name', '')} on {node}" for node, row in found))


def _half_made(pve: Any, site: Any, run: str, node: str, row: Mapping[str, Any]) -> Wanted:
    vmid = int(row["vmid"])
    path = f"/nodes/{node}/qemu/{vmid}"
    ours = re.search(r"runbook-\d{8}t\d{6}z-[0-9a-f]{4}", str(row.get("tags") or ""))
    if not ours:
        return Wanted(
            problems=(f"VM {vmid} on {node}: it is no template and was not made by the runbook; choose another id",)
        )
    config = pve.get(f"{path}/config")
    if config.get("lock"):
        return Wanted(problems=(f"VM {vmid} on {node}: it is locked ({config['lock']}); wait for its task",))
    if "scsi0" in config:
        return _to_template(path, vmid)
    summary = "VM left half-made by a run that was killed"
    request = {"method": "DELETE", "path": path, "params": {"purge": 1}}
    gone = _change("delete", path, summary, request, before={"vmid": vmid, "tags": row.get("tags")})
    made = _import(pve, site, run, node)
    return Wanted(gone.changes + made.changes, made.unchanged, made.problems)


def _import(pve: Any, site: Any, run: str, node: str) -> Wanted:
    site = _settled(pve, site)
    names, vmid = site.names, int(site.names.template_vmid)
    image = names.cloud_image
    if image is None:
        return Wanted(problems=(f"VM {vmid}: there is no such template, and the site names no `names.cloud_image`",))
    if problems := _open_storages(site):
        return Wanted(problems=problems)
    if not node:
        return Wanted(problems=("Proxmox VE: none of the site's nodes is online",))
    source = str(getattr(image, "url", None) or getattr(image, "file", None))
    filename = _image_name(source)
    store = _image_storage(pve, node, names.iso_storage)
    fetched = _fetch(pve, node, names.iso_storage, image, filename, vmid)
    path = f"/nodes/{node}/qemu"
    params = {
        "vmid": vmid,
        "name": f"{names.prefix}-template",
        "pool": names.pool,
        "tags": mark(run),
        "description": f"Cloud image {filename}",
        "ostype": "l26",
        "cores": TEMPLATE_CORES,
        "memory": TEMPLATE_MEMORY_MIB,
        "agent": "enabled=1",
        "scsihw": "virtio-scsi-single",
        "scsi0": f"{names.disk_storage}:0,import-from={names.iso_storage}:import/{filename},discard=on,iothread=1",
        # CAPMOX brings its ISO on ide0; this drive serves people who clone the template by hand.
        "ide2": f"{names.disk_storage}:cloudinit",
        "net0": f"virtio,bridge={names.bridge}",
        "serial0": "socket",
        "vga": "serial0",
        # CAPMOX extends an existing order; the legacy form is refused (its issue 225).
        "boot": "order=scsi0",
    }
    undo = guest_undo(node, vmid, run)
    request = {"method": "POST", "path": path, "params": params, "timeout_seconds": 1800, "cost": {"vms": 1}}
    made = _change("create", f"{path}/{vmid}", "VM from the cloud image", request, after=params, undo=undo)
    converted = _to_template(f"{path}/{vmid}", vmid)
    return Wanted(
        store.changes + fetched.changes + made.changes + converted.changes,
        store.unchanged + fetched.unchanged,
        store.problems + fetched.problems,
    )


def _to_template(path: str, vmid: int) -> Wanted:
    request = {"method": "POST", "path": f"{path}/template", "timeout_seconds": 600}
    return _change(
        "update",
        f"{path}/template",
        f"VM {vmid} becomes a template; there is no way back but to remove it",
        request,
        before={"template": 0},
        after={"template": 1},
    )


def _image_storage(pve: Any, node: str, storage: str) -> Wanted:
    """The storage takes cloud images: content type `import`, which storages of before 8.3 do not name."""
    try:
        config = pve.get(f"/storage/{storage}")
        content = _names(config.get("content"))
    except NotAllowed:  # needs Datastore.Allocate; the node's own list needs less
        rows = pve.get(f"/nodes/{node}/storage")
        content = next((_names(row.get("content")) for row in rows if row["storage"] == storage), ())
    except NotFound:
        return Wanted(problems=(f"{storage}: there is no such storage",))
    if "import" in content:
        return Wanted(unchanged=(f"storage {storage} takes cloud images",))
    path = f"/storage/{storage}"
    before, after = ",".join(content), ",".join(sorted({*content, "import"}))
    request = {"method": "PUT", "path": path, "params": {"content": after}}
    undo = {"method": "PUT", "path": path, "params": {"content": before}}
    summary = "Storage takes cloud images too"
    states = {"content": before}, {"content": after}
    return _change("update", path, summary, request, before=states[0], after=states[1], undo=undo)


def _fetch(pve: Any, node: str, storage: str, image: Any, filename: str, vmid: int) -> Wanted:
    volid = f"{storage}:import/{filename}"
    path = f"/nodes/{node}/storage/{storage}"
    try:
        listed = pve.get(f"{path}/content", content="import") or []
    except ApiError:  # a storage that does not take imports yet refuses the question
        listed = []
    if any(row["volid"] == volid for row in listed):
        return Wanted(unchanged=(f"cloud image {volid}",))
    checksum = str(getattr(image, "checksum", None) or "")
    algorithm, _, digest = checksum.rpartition(":")
    proof = {"checksum": digest, "checksum-algorithm": algorithm or "sha256"} if digest else {}
    look = {"path": f"{path}/content", "match": {"volid": volid}}
    undo = {"method": "DELETE", "path": f"{path}/content/{{volid}}", "look": look}
    url = getattr(image, "url", None)
    if url:
        params = {"url": str(url), "filename": filename, "content": "import", **proof}
        request = {"method": "POST", "path": f"{path}/download-url", "params": params, "timeout_seconds": 1800}
    else:
        params = {"content": "import", **proof}
        file = str(image.file)
        request = {"upload": {"node": node, "storage": storage, "file": file, "sha256": digest}, "params": params}
    summary = f"Cloud image for VM {vmid}" + ("" if digest else "; the site names no checksum, so it is not verified")
    return _change("create", f"{path}/content/{volid}", summary, request, after={"volid": volid, **params}, undo=undo)


def _image_name(source: str) -> str:
    """A file name that PVE takes for an import: it wants .qcow2, .raw, .vmdk or .ova, where Ubuntu says .img."""
    name = re.sub(r"[^\w.+-]", "_", PurePosixPath(urlsplit(source).path).name)
    return f"{name.removesuffix('.img')}.qcow2" if name.endswith(".img") else name


def _where(pve: Any, vmid: int, nodes: Iterable[str]) -> tuple[str, Mapping[str, Any] | None]:
    for node in nodes:
        for row in pve.get(f"/nodes/{node}/qemu"):
            if int(row["vmid"]) == vmid:
                return node, row
    return "", None


def _first(preferred: Iterable[str] | None, online: Iterable[str]) -> str:
    """The first of the site's nodes that is online."""
    up = sorted(online)
    return next((node for node in preferred or up if node in up), "")


# --- Kubernetes ------------------------------------------------------------------------------------


def namespace(kube: Any, site: Any, run: str, *, step: str = "13") -> Wanted:
    """The test namespace under the `restricted` Pod Security level, with a quota that bounds every mistake."""
    name = site.names.namespace
    home = restricted_namespace(name)
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": site.names.prefix, "namespace": name},
        "spec": {
            "hard": {
                "pods": "20",
                "requests.cpu": "4",
                "requests.memory": "8Gi",
                "persistentvolumeclaims": "10",
                "requests.storage": "50Gi",
            }
        },
    }
    first = install_object(kube, home, run, summary="Namespace of the tests, Pod Security level restricted")
    second = install_object(kube, quota, run, summary="Quota of the test namespace")
    return Wanted(first.changes + second.changes, first.unchanged + second.unchanged).numbered(step)


def restricted_namespace(name: str) -> dict[str, Any]:
    """A Namespace that holds its pods to the `restricted` Pod Security level."""
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": levels}}


def install_object(kube: Any, manifest: Mapping[str, Any], run: str, *, summary: str) -> Wanted:
    """The object as server-side apply would leave it, if that differs from what is there; it stays."""
    path = kube.path_of(manifest)
    found = kube.find(path)
    # An object that is there keeps the label of the run that made it, else every run would differ from the last.
    made_by = ((found or {}).get("metadata", {}).get("labels") or {}).get("runbook.cozystack.io/run", run)
    whole = labelled(manifest, made_by, "install")
    after = _plain(_dry_run(kube, whole))
    before = None if found is None else _plain(found)
    if before is not None and flat(before) == flat(after):
        return Wanted(unchanged=(target_of(manifest),))
    undo = {"delete": reference(whole)} if before is None else None
    return _change(
        "create" if before is None else "update",
        target_of(manifest),
        summary,
        {"manifest": whole},
        system="kubernetes",
        before=before,
        after=after,
        undo=undo,
    )


def borrow_object(manifest: Mapping[str, Any], run: str, *, summary: str, step: str = "13") -> Wanted:
    """The object as something borrowed: created, labelled with the run, and deleted at the step's end."""
    whole = labelled(manifest, run, "borrow")
    return _change(
        "create",
        target_of(manifest),
        summary,
        {"manifest": whole},
        system="kubernetes",
        after=_plain(whole),
        undo={"delete": reference(whole)},
        borrow=True,
    ).numbered(step)


def _dry_run(kube: Any, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What server-side apply would make of it; the manifest itself while its namespace is still to be made."""
    try:
        return kube.apply(manifest, dry_run=True)
    except NotFound:
        return manifest


def _plain(thing: Mapping[str, Any]) -> dict[str, Any]:
    """The object without what the server keeps for itself."""
    metadata = {key: value for key, value in thing["metadata"].items() if key not in _SERVER_SIDE}
    return {**{key: value for key, value in thing.items() if key not in {"metadata", "status"}}, "metadata": metadata}


# --- together --------------------------------------------------------------------------------------


def environment(pve: Any, kube: Any, site: Any, run: str, *, root: Path | None = None, step: str = "13") -> Wanted:
    """Everything that notebook 13 installs, in the order in which it can be made.

    The pool comes before the VM in it; access comes last, because its ACL paths name what was made before.
    """
    parts = (
        pool(pve, site, run),
        template(pve, site, run),
        access(pve, site, run, root=root),
        namespace(kube, site, run),
    )
    return Wanted(
        tuple(change for part in parts for change in part.changes),
        tuple(name for part in parts for name in part.unchanged),
        tuple(dict.fromkeys(problem for part in parts for problem in part.problems)),
    ).numbered(step)


def _change(
    action: str,
    target: str,
    summary: str,
    request: Mapping[str, Any],
    *,
    system: str = "proxmox",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    undo: Mapping[str, Any] | None = None,
    borrow: bool = False,
) -> Wanted:
    kind = ChangeKind.BORROW if borrow else ChangeKind.INSTALL
    return Wanted((Change("", system, action, target, summary, kind, request, before, after, undo),))


def _names(text: Any) -> tuple[str, ...]:
    return tuple(sorted(part.strip() for part in str(text or "").split(",") if part.strip()))


def _prefix(changes: Iterable[Change]) -> str:
    return next((change.id.rpartition("-")[0] for change in changes if change.id), "13")


def project_folder() -> Path:
    """The project's root, which paths of kept secrets are relative to."""
    return _root()


def _root() -> Path:
    from runbook_lib.parameters import project_root

    return project_root()
