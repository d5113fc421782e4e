"""Pools: names for groups of guests and storages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .quorum import require_quorum
from .routing import Boolean, Call, PveError, String, perm, route, split_list

if TYPE_CHECKING:
    from .state import PveState


@dataclass
class PoolState:
    """One pool."""

    poolid: str
    comment: str | None = None
    vms: list[int] = field(default_factory=list)
    storages: list[str] = field(default_factory=list)


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the pools from a scenario's `pools:`, name → {comment, vms, storages}."""
    for poolid, entry in (section.get("pools") or {}).items():
        state.pools[poolid] = PoolState(poolid, **(entry or {}))


POOL = {"poolid": String(format="pve-poolid")}
ALLOCATE = perm("/pool/{poolid}", "Pool.Allocate")


def require_pool(state: PveState, poolid: str) -> PoolState:
    """The pool, or PVE's 500."""
    if poolid not in state.pools:
        raise PveError(500, f"pool '{poolid}' does not exist")
    return state.pools[poolid]


@route(
    "GET",
    "/pools",
    params={
        "poolid": String(optional=True, format="pve-poolid"),
        "type": String(optional=True, enum=("qemu", "lxc", "storage"), requires="poolid"),
    },
    permission="any",
)
def list_pools(call: Call) -> list[dict[str, Any]]:
    """The pools the caller may audit; with `poolid` that one with its members."""
    wanted = call.params.get("poolid")
    if wanted:
        call.check(f"/pool/{wanted}", "Pool.Audit")
        return [members_of(call, require_pool(call.state, wanted))]
    rows = []
    for pool in call.state.pools.values():
        if call.allowed(f"/pool/{pool.poolid}", "Pool.Audit"):
            row = {"poolid": pool.poolid}
            if pool.comment is not None:
                row["comment"] = pool.comment
            rows.append(row)
    return rows


def members_of(call: Call, pool: PoolState) -> dict[str, Any]:
    """A pool with the rows of its members."""
    from .cluster import guest_resource, storage_resource  # cluster.py needs this module

    kind = call.params.get("type")
    members: list[dict[str, Any]] = []
    for vmid in pool.vms:
        guest = call.state.guests.get(vmid)
        if guest is not None and kind in (None, guest.kind):
            members.append(guest_resource(call.state, guest))
    for name in pool.storages:
        storage = call.state.storages.get(name)
        if storage is not None and kind in (None, "storage"):
            members += [storage_resource(call.state, storage, node) for node in call.state.nodes if storage.on(node)]
    row: dict[str, Any] = {"poolid": pool.poolid, "members": members}
    if pool.comment is not None:
        row["comment"] = pool.comment
    return row


@route("GET", "/pools/{poolid}", params={**POOL, "type": String(optional=True, enum=("qemu", "lxc", "storage"))},
       permission=perm("/pool/{poolid}", "Pool.Audit"))  # fmt: skip
def get_pool(call: Call) -> dict[str, Any]:
    """One pool with its members."""
    return members_of(call, require_pool(call.state, call.params["poolid"]))


@route("POST", "/pools", params={**POOL, "comment": String(optional=True)}, permission=ALLOCATE)
def create_pool(call: Call) -> None:
    """Nothing; the pool is there."""
    poolid = call.params["poolid"]
    require_quorum(call.state, "create pool failed: cfs-lock 'file-user_cfg' error: no quorum!")
    if poolid in call.state.pools:
        raise PveError(500, f"create pool failed: pool '{poolid}' already exists")
    if "/" in poolid and poolid.rpartition("/")[0] not in call.state.pools:
        raise PveError(500, f"create pool failed: parent '{poolid.rpartition('/')[0]}' of pool does not exist")
    call.state.pools[poolid] = PoolState(poolid, call.params.get("comment"))


UPDATE: dict[str, Any] = {
    **POOL,
    "comment": String(optional=True),
    "vms": String(optional=True, format="pve-vmid-list"),
    "storage": String(optional=True, format="pve-storage-id-list"),
    "delete": Boolean(optional=True),
    "allow-move": Boolean(optional=True),
}


@route("PUT", "/pools", params=UPDATE, permission=ALLOCATE)
@route("PUT", "/pools/{poolid}", params=UPDATE, permission=ALLOCATE)
def update_pool(call: Call) -> None:
    """Nothing; members came or went, or the comment is another."""
    state, params = call.state, call.params
    require_quorum(state, "update pools failed: cfs-lock 'file-user_cfg' error: no quorum!")
    if params["poolid"] not in state.pools:
        raise PveError(500, f"update pools failed: pool '{params['poolid']}' does not exist")
    pool, delete = state.pools[params["poolid"]], params.get("delete")
    if "comment" in params:
        pool.comment = params["comment"]
    for text in split_list(params.get("vms", "")):
        vmid = int(text)
        call.check(f"/vms/{vmid}", "VM.Allocate")
        if delete:
            if vmid not in pool.vms:
                raise PveError(500, f"update pools failed: VM {vmid} is not a pool member")
            pool.vms.remove(vmid)
            continue
        if vmid not in state.guests:
            raise PveError(500, f"update pools failed: VM {vmid} does not exist")
        for other in state.pools.values():
            if vmid in other.vms:
                if not params.get("allow-move") and other is not pool:
                    raise PveError(
                        500,
                        f"update pools failed: VM {vmid} belongs to pool '{other.poolid}' and 'allow-move' is not set",
                    )
                if other is pool:
                    raise PveError(500, f"update pools failed: VM {vmid} is already a pool member")
                other.vms.remove(vmid)
        pool.vms.append(vmid)
    for name in split_list(params.get("storage", "")):
        call.check(f"/storage/{name}", "Datastore.Allocate")
        if delete:
            if name not in pool.storages:
                raise PveError(500, f"update pools failed: Storage '{name}' is not a pool member")
            pool.storages.remove(name)
        elif name in pool.storages:
            raise PveError(500, f"update pools failed: Storage '{name}' is already a pool member")
        else:
            pool.storages.append(name)


@route("DELETE", "/pools", params=POOL, permission=ALLOCATE)
@route("DELETE", "/pools/{poolid}", params=POOL, permission=ALLOCATE)
def delete_pool(call: Call) -> None:
    """Nothing; the pool, which must be empty, is gone."""
    state, poolid = call.state, call.params["poolid"]
    require_quorum(state, "delete pool failed: cfs-lock 'file-user_cfg' error: no quorum!")
    if poolid not in state.pools:
        raise PveError(500, f"delete pool failed: pool '{poolid}' does not exist")
    pool = state.pools[poolid]
    if pool.vms:
        raise PveError(500, f"delete pool failed: pool '{poolid}' is not empty (contains VM {pool.vms[0]})")
    if pool.storages:
        raise PveError(500, f"delete pool failed: pool '{poolid}' is not empty (contains storage '{pool.storages[0]}')")
    if any(other.startswith(f"{poolid}/") for other in state.pools):
        raise PveError(500, f"delete pool failed: pool '{poolid}' is not empty (contains pools)")
    del state.pools[poolid]
    state.access.acl.pop(f"/pool/{poolid}", None)
