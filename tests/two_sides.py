"""Both systems in memory (or in one JSON file), small enough to be read, with a hook where a process may die."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from runbook_lib.answers import error_for
from runbook_lib.kubernetes_session import Reader as KubeReader
from runbook_lib.proxmox_session import Reader as PveReader
from runbook_lib.wire import Wire

Hook = Callable[[str, str, str], None]
"""Called with ("before" | "after", method, path) around each mutating request."""

KINDS = {
    "v1": {
        "Namespace": ("namespaces", False),
        "PersistentVolume": ("persistentvolumes", False),
        "Pod": ("pods", True),
        "ResourceQuota": ("resourcequotas", True),
        "ConfigMap": ("configmaps", True),
    }
}


class Killed(BaseException):
    """What stands for kill -9 inside of one process: no `except` of the library catches it."""


def quiet(point: str, method: str, path: str) -> None:
    """A hook that lets everything pass."""


class World:
    """The state of both sides; with `path` every change is written there, so that another process can go on."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.hook: Hook = quiet
        self.sent: list[tuple[str, str]] = []
        self.state: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else fresh()

    def save(self) -> None:
        """Nothing; the state is in the file."""
        if self.path:
            self.path.write_text(json.dumps(self.state))

    def around(self, method: str, path: str, work: Callable[[], Any]) -> Any:
        """The answer of a mutating request, with the hook before and after it."""
        self.hook("before", method, path)
        self.sent.append((method, path))
        try:
            return work()
        finally:
            self.save()
            self.hook("after", method, path)


def fresh() -> dict[str, Any]:
    """One node with one directory and one thin storage; an empty cluster."""
    storages = {
        "local": {"type": "dir", "content": "iso,vztmpl,backup", "avail": 50 << 30},
        "local-lvm": {"type": "lvmthin", "content": "images,rootdir", "avail": 100 << 30},
    }
    return {
        "version": "9.2.11",
        "pools": {},
        "roles": {"PVEAuditor": "Sys.Audit,VM.Audit"},
        "users": {"root@pam": {"enable": 1, "tokens": {}}},
        "acl": [],
        "guests": {},
        "volumes": {name: [] for name in storages},
        "storages": storages,
        "objects": {},
        "uid": 0,
    }


class FakePve(PveReader):
    """As much of Proxmox VE as the preparation asks for, with its texts."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.wire = world, Wire("proxmox")

    def answer(self, path: str, /, **params: Any) -> Mapping[str, Any]:
        return {"data": self.get(path, **params)}

    def for_thread(self) -> FakePve:
        return self

    def get(self, path: str, /, **params: Any) -> Any:
        state = copy.deepcopy(self.world.state)
        if path == "/version":
            return {"version": state["version"], "release": state["version"][:3], "repoid": "x"}
        if path == "/nodes":
            return [{"node": "pve1", "status": "online"}]
        if path == "/pools":
            return [{"poolid": name, **row} for name, row in state["pools"].items()]
        if path == "/access/roles":
            return [{"roleid": name, "privs": privs} for name, privs in state["roles"].items()]
        if path == "/access/acl":
            return state["acl"]
        if path == "/access/users":
            return [
                {"userid": name, **row, "tokens": self._tokens(name) or None} for name, row in state["users"].items()
            ]
        if path == "/nodes/pve1/qemu":
            return [
                {"vmid": int(vmid), **{k: row[k] for k in ("name", "tags", "template") if k in row}}
                for vmid, row in state["guests"].items()
            ]
        if path in {"/nodes/pve1/lxc", "/nodes/pve1/network"}:
            return []
        if path == "/nodes/pve1/storage":
            return [
                {"storage": name, "active": 1, "enabled": 1, "shared": 0, "used": 0, "total": row["avail"], **row}
                for name, row in state["storages"].items()
            ]
        if found := re.fullmatch(r"/access/users/([^/]+)/token", path):
            self._known("user", found[1], state["users"], "GET", path, f"no such user ('{found[1]}')")
            return self._tokens(found[1])
        if found := re.fullmatch(r"/storage/([^/]+)", path):
            return state["storages"][found[1]]
        if found := re.fullmatch(r"/nodes/pve1/storage/([^/]+)/content", path):
            rows = state["volumes"][found[1]]
            return [row for row in rows if params.get("content") in (None, row["content"])]
        if found := re.fullmatch(r"/nodes/pve1/qemu/(\d+)/config", path):
            return state["guests"][found[1]]
        if re.fullmatch(r"/nodes/pve1/tasks/[^/]+/status", path):
            upid = unquote(path.split("/")[4])
            return {
                "status": "stopped",
                "exitstatus": "OK",
                "upid": upid,
                "node": "pve1",
                "type": "x",
                "id": "",
                "user": "",
            }
        if re.fullmatch(r"/nodes/pve1/tasks/[^/]+/log", path):
            return [{"n": 1, "t": "TASK OK"}]
        raise error_for("proxmox", "GET", path, 501, f"Method 'GET {path}' not implemented")

    def request(self, method: str, path: str, /, **params: Any) -> Any:
        self.wire.guard(method, path)
        return self.world.around(method, path, lambda: self._write(method, path, params))

    def _tokens(self, user: str) -> list[dict[str, Any]]:
        tokens = self.world.state["users"].get(user, {}).get("tokens", {})
        return [{"tokenid": name, **row} for name, row in tokens.items()]

    def _known(self, what: str, name: str, among: Mapping[str, Any], method: str, path: str, text: str) -> None:
        if name not in among:
            raise error_for("proxmox", method, path, 500, text)

    def _fails(self, method: str, path: str, text: str, status: int = 500) -> None:
        raise error_for("proxmox", method, path, status, text)

    def _write(self, method: str, path: str, params: dict[str, Any]) -> Any:
        state = self.world.state
        where = f"{method} {path}"
        if where == "POST /pools":
            if params["poolid"] in state["pools"]:
                self._fails(method, path, f"create pool failed: pool '{params['poolid']}' already exists")
            state["pools"][params["poolid"]] = {"comment": params.get("comment", "")}
        elif where == "DELETE /pools":
            self._known("pool", params["poolid"], state["pools"], method, path, "pool does not exist")
            del state["pools"][params["poolid"]]
        elif where == "POST /access/roles":
            state["roles"][params["roleid"]] = params["privs"]
        elif found := re.fullmatch(r"PUT /access/roles/(.+)", where):
            state["roles"][found[1]] = params["privs"]
        elif found := re.fullmatch(r"DELETE /access/roles/(.+)", where):
            del state["roles"][found[1]]
        elif where == "POST /access/users":
            if params["userid"] in state["users"]:
                self._fails(method, path, f"create user failed: user '{params['userid']}' already exists")
            own = {"comment": params.get("comment", ""), "enable": int(params.get("enable", 1)), "tokens": {}}
            state["users"][params["userid"]] = own
        elif found := re.fullmatch(r"(POST|PUT|DELETE) /access/users/([^/]+)/token/([^/]+)", where):
            return self._token(found[1], found[2], found[3], params)
        elif found := re.fullmatch(r"PUT /access/users/([^/]+)", where):
            state["users"][found[1]].update(params)
        elif found := re.fullmatch(r"DELETE /access/users/([^/]+)", where):
            self._known("user", found[1], state["users"], method, path, f"no such user ('{found[1]}')")
            del state["users"][found[1]]
        elif where == "PUT /access/acl":
            self._acl(params)
        elif found := re.fullmatch(r"PUT /storage/([^/]+)", where):
            state["storages"][found[1]].update(params)
        elif found := re.fullmatch(r"POST /nodes/pve1/storage/([^/]+)/download-url", where):
            volid = f"{found[1]}:import/{params['filename']}"
            state["volumes"][found[1]].append({"volid": volid, "content": "import", "size": 1, "format": "qcow2"})
            return self._upid("download")
        elif found := re.fullmatch(r"POST /nodes/pve1/storage/([^/]+)/content", where):
            return self._allocate(found[1], params)
        elif found := re.fullmatch(r"DELETE /nodes/pve1/storage/([^/]+)/content/(.+)", where):
            rows = state["volumes"][found[1]]
            state["volumes"][found[1]] = [row for row in rows if row["volid"] != unquote(found[2])]
            return self._upid("imgdel")
        elif where == "POST /nodes/pve1/qemu":
            if str(params["vmid"]) in state["guests"]:
                self._fails(method, path, f"unable to create VM {params['vmid']} - VM already exists on node 'pve1'")
            state["guests"][str(params["vmid"])] = dict(params)
            return self._upid("qmcreate")
        elif found := re.fullmatch(r"POST /nodes/pve1/qemu/(\d+)/template", where):
            state["guests"][found[1]]["template"] = 1
            return self._upid("qmtemplate")
        elif found := re.fullmatch(r"DELETE /nodes/pve1/qemu/(\d+)", where):
            del state["guests"][found[1]]
            return self._upid("qmdestroy")
        else:
            self._fails(method, path, f"Method '{where}' not implemented", 501)
        return None

    def _token(self, method: str, user: str, name: str, params: dict[str, Any]) -> Any:
        state = self.world.state
        tokens = state["users"][user]["tokens"]
        if method == "DELETE":
            del tokens[name]
            state["acl"] = [row for row in state["acl"] if row["ugid"] != f"{user}!{name}"]
            return None
        if method == "POST" and name in tokens:
            self._fails(method, f"/access/users/{user}/token/{name}", "Token already exists.", 400)
        tokens[name] = {**tokens.get(name, {}), **params}
        state["uid"] += 1
        return {"full-tokenid": f"{user}!{name}", "info": params, "value": f"canary-{state['uid']}-5c1e-token-secret"}

    def _acl(self, params: dict[str, Any]) -> None:
        state = self.world.state
        for kind in ("user", "token"):
            if who := params.get(f"{kind}s"):
                row = {"path": params["path"], "roleid": params["roles"], "type": kind, "ugid": who}
                same = set(row.items())
                state["acl"] = [entry for entry in state["acl"] if not same <= set(entry.items())]
                if not params.get("delete"):
                    state["acl"].append({**row, "propagate": int(params.get("propagate", 1))})

    def _allocate(self, storage: str, params: dict[str, Any]) -> str:
        rows = self.world.state["volumes"][storage]
        folder = f"{params['vmid']}/" if self.world.state["storages"][storage]["type"] == "dir" else ""
        volid = f"{storage}:{folder}{params['filename']}"
        if any(row["volid"] == volid for row in rows):
            self._fails("POST", "content", f"disk image '{volid}' already exists")
        rows.append({"volid": volid, "content": "images", "size": 1 << 27, "format": "raw", "vmid": params["vmid"]})
        return volid

    def _upid(self, kind: str) -> str:
        return f"UPID:pve1:00000001:00000002:6B0478DC:{kind}::root@pam:"


class FakeKube(KubeReader):
    """As much of Kubernetes as the preparation asks for."""

    def __init__(self, world: World) -> None:
        self.world, self.wire = world, Wire("kubernetes")

    def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        if path == "/apis":
            return {"groups": []}
        if path == "/api/v1":
            resources = [
                {"name": plural, "kind": kind, "namespaced": namespaced, "verbs": ["list", "delete", "create"]}
                for kind, (plural, namespaced) in KINDS["v1"].items()
            ]
            return {"resources": resources}
        found = self.world.state["objects"].get(path)
        if found is not None:
            return copy.deepcopy(found)
        plural = path.rpartition("/")[2]
        if plural in {name for name, _ in KINDS["v1"].values()}:
            items = [
                copy.deepcopy(thing)
                for where, thing in self.world.state["objects"].items()
                if where.split("/")[-2] == plural and _selected(thing, query.get("labelSelector"))
            ]
            return {"items": items, "metadata": {}}
        raise error_for("kubernetes", "GET", path, 404, "Not Found", json.dumps({"message": f"{path} not found"}))

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False, **options: Any) -> dict[str, Any]:
        path = self.path_of(manifest)
        if dry_run:
            return self._applied(manifest, path)
        self.wire.guard("PATCH", path)
        return self.world.around("PATCH", path, lambda: self._keep(path, self._applied(manifest, path)))

    def delete(self, thing: Mapping[str, Any] | str, *, uid: str | None = None, **options: Any) -> Any:
        path = thing if isinstance(thing, str) else self.path_of(thing)
        self.wire.guard("DELETE", path)
        return self.world.around("DELETE", path, lambda: self._drop(path))

    def wait(self, path: str, predicate: Callable[[Any], Any], timeout: float = 60, **options: Any) -> Any:
        found = self.find(path)
        assert predicate(found), f"{path} would be waited for in vain"
        return found

    def _applied(self, manifest: Mapping[str, Any], path: str) -> dict[str, Any]:
        home = manifest["metadata"].get("namespace")
        if home and f"/api/v1/namespaces/{home}" not in self.world.state["objects"]:
            raise error_for(
                "kubernetes", "PATCH", path, 404, "Not Found", json.dumps({"message": "namespace not found"})
            )
        before = self.world.state["objects"].get(path, {"metadata": {"uid": f"uid-{len(self.world.state['objects'])}"}})
        whole = copy.deepcopy(dict(manifest))
        whole["metadata"] = {**before["metadata"], **whole["metadata"]}
        return whole

    def _keep(self, path: str, thing: dict[str, Any]) -> dict[str, Any]:
        self.world.state["objects"][path] = thing
        return thing

    def _drop(self, path: str) -> None:
        objects = self.world.state["objects"]
        objects.pop(path, None)
        for inner in [where for where in objects if where.startswith(f"{path}/")]:
            del objects[inner]


def _selected(thing: Mapping[str, Any], selector: str | None) -> bool:
    labels = thing["metadata"].get("labels") or {}
    name, _, value = (selector or "").partition("=")
    return not name or (labels.get(name) == value if value else name in labels)
