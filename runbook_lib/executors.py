"""The hands of both systems: how a Change is sent, taken back, and found again by the run's mark.

A Proxmox request is `{"method", "path", "params"}`; a task is waited for. Its `look` tells where the thing is listed:
`{"path", "match": {field: value}}`, with `"mark": field` where the thing can carry the run's mark. Undo puts the found
row's fields into its path. A Kubernetes request is `{"manifest"}` (server-side apply) or `{"method", "path", "body"}`;
its undo is `{"delete": manifest}`, or again a request.

Nothing is ever deleted before it was looked at: a thing that does not carry the mark of its run belongs to somebody
else, whatever the journal of a killed process may believe.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from runbook_lib import bridges, staging
from runbook_lib.errors import ApiError, BadAnswer, Conflict, NotFound, TaskFailed, UnfinishedChange, WaitTimeout
from runbook_lib.model import Change
from runbook_lib.plan import MARK, Marked, Search, mark

RUN_LABEL = "runbook.cozystack.io/run"
KIND_LABEL = "runbook.cozystack.io/kind"  # "borrow" | "install"
BORROWED = "borrowed"
"""The word beside the run's mark that tells a borrowed thing from an installed one, should the journal be lost."""

LOSING_TRIES = 8

GONE_SECONDS = 120.0
"""How long an undone thing may take to disappear."""

_MARK = re.compile(MARK + r"(\d{8}t\d{6}z-[0-9a-f]{4})", re.IGNORECASE)
_MARK_OF_SPACE = re.compile(r"-(\d{8}t\d{6}z-[0-9a-f]{4})$")
MOST_OUTPUT = 20_000
"""Of what a command in a pod says, the end is kept."""


def _room_kib(pve: Any, room: Mapping[str, Any]) -> int:
    """What is free in a storage now but for what is to be left, KiB; at least 1."""
    found = pve.get(f"/nodes/{room['node']}/storage/{room['storage']}/status") or {}
    return max(int(found.get("avail") or 0) // 1024 - int(room["leave_kib"]), 1)


class ProxmoxExecutor:
    """Changes of one Proxmox VE."""

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        root: Path,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect, self._root, self._sleep, self._clock = connect, root, sleep, clock

    def send(self, change: Change) -> Mapping[str, Any]:
        """The answer; of a task its UPID and end, of a secret only the reference to where it now lies."""
        return self._request(change, change.request)

    def undo(self, change: Change) -> str:
        """The proof that the thing is gone. Raises UnfinishedChange when it is still there after two minutes."""
        undo = change.undo
        if undo is None:
            raise UnfinishedChange(f"take back {change.id} {change.target}", "the plan knows no way back")
        proof = self._taken_back(undo, change)
        if "forget" in undo:
            (self._root / undo["forget"]).unlink(missing_ok=True)
        return proof

    def _taken_back(self, undo: Mapping[str, Any], change: Change) -> str:
        if "nothing" in undo:
            return str(undo["nothing"])
        if "bridge" in undo:
            return self._bridge_taken_back(undo["bridge"], change)
        if "guest" in undo:
            self._power_off(undo, change)
        look = undo.get("look")
        if look is None:
            self._request(change, undo)
            return f"sent {undo['method']} {undo['path']}"
        found, row = self._settled(look, change)
        if row is None:
            seen = "lists it without the mark of this run; left alone" if found else "does not list it"
            return f"GET {look['path']} {seen}"
        with contextlib.suppress(NotFound):  # somebody was faster; the look below proves it
            self._request(change, {**undo, "path": _filled(undo["path"], row)})
        return self._gone(look, change)

    def _bridge_taken_back(self, bridge: Mapping[str, Any], change: Change) -> str:
        def send(method: str, path: str) -> None:
            self._request(change, {"method": method, "path": path})

        return bridges.take_back(
            self._connect(), bridge, send, sleep=self._sleep, clock=self._clock, patience=GONE_SECONDS
        )

    def _power_off(self, undo: Mapping[str, Any], change: Change) -> None:
        """Nothing; the guest, if it is ours, is off, and its bootstrap image with the join token is gone."""
        row = self._settled(undo["look"], change)[1]
        if row is None:
            return
        node, vmid = undo["guest"]["node"], undo["guest"]["vmid"]
        if row.get("status") == "running":
            self._request(change, {"method": "POST", "path": f"/nodes/{node}/qemu/{vmid}/status/stop"})
        for storage in self._connect().get(f"/nodes/{node}/storage", content="iso", enabled=1) or []:
            path = f"/nodes/{node}/storage/{storage['storage']}/content"
            if not storage.get("active", 1):
                continue
            for volume in self._connect().get(path, content="iso") or []:
                if str(volume["volid"]).endswith(f":iso/user-data-{vmid}.iso"):
                    self._request(change, {"method": "DELETE", "path": _filled(f"{path}/{{volid}}", volume)})

    def _lose(self, change: Change, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Which VM was destroyed: the one with the lowest number of those whose name begins so.

        Whoever watches over it may start it again between the stop and the end, so it is tried a few times.
        """
        pve = self._connect()
        rows = [
            (int(row["vmid"]), str(node["node"]), str(row["name"]))
            for node in pve.get("/nodes")
            if node.get("status") != "offline"
            for row in pve.get(f"/nodes/{node['node']}/qemu") or []
            if str(row.get("name") or "").startswith(given["name"]) and not row.get("template")
        ]
        if not rows:
            raise NotFound(f"{change.action} {change.target}", f"no VM has a name that begins with {given['name']}")
        vmid, node, name = min(rows)
        path = f"/nodes/{node}/qemu/{vmid}"
        for attempt in range(1, LOSING_TRIES + 1):
            try:
                if (pve.get(f"{path}/status/current") or {}).get("status") == "running":
                    self._request(change, {"method": "POST", "path": f"{path}/status/stop"})
                self._request(change, {"method": "DELETE", "path": path, "params": {"purge": 1}})
                break
            except NotFound:
                break  # it went by another hand
            except (TaskFailed, ApiError):
                if attempt == LOSING_TRIES:
                    raise
                self._sleep(0.2)
        return {"vmid": vmid, "node": node, "name": name}

    def exists(self, change: Change) -> bool:
        """Whether the thing is listed with the run's mark."""
        if "bridge" in (change.undo or {}):
            bridge = (change.undo or {})["bridge"]
            seen = bridges.look(self._connect(), bridge)
            return not seen.gone and bridges.is_ours(seen, bridge)
        look = (change.undo or change.request).get("look")
        return look is not None and self._find(look, change)[1] is not None

    def marked(self, run: str | None, targets: Iterable[str] = ()) -> Search:
        """Guests, pools, users, tokens, volumes and bridges with the mark, as the nodes themselves list them."""
        pve, things, unseen = self._connect(), [], []

        def answer(path: str, **params: Any) -> Mapping[str, Any]:
            try:
                found: Mapping[str, Any] = pve.answer(path, **params)
            except ApiError as error:
                unseen.append(f"GET {path}: {error.came or error}")
                return {}
            return found

        def rows(path: str, **params: Any) -> list[dict[str, Any]]:
            return [dict(row) for row in answer(path, **params).get("data") or []]

        def note(target: str, text: Any, undo: Callable[[str], dict[str, Any]], kept: bool | None = None) -> None:
            found = _MARK.search(str(text or ""))
            if found and (run is None or mark(run) == mark(found[1])):
                stays = BORROWED not in str(text) if kept is None else kept
                things.append(Marked("proxmox", target, found[1], stays, undo(found[1])))

        for row in rows("/pools"):
            note(f"/pools/{row['poolid']}", row.get("comment"), partial(pool_undo, row["poolid"]))
        for user in rows("/access/users", full=1):
            name = user["userid"]
            for token in user.get("tokens") or []:
                target = f"/access/users/{name}/token/{token['tokenid']}"
                note(target, token.get("comment"), partial(token_undo, name, token["tokenid"]))
            note(f"/access/users/{name}", user.get("comment"), partial(user_undo, name))
        shared: set[str] = set()
        for node in [str(row["node"]) for row in rows("/nodes")]:
            for kind in ("qemu", "lxc"):
                for row in rows(f"/nodes/{node}/{kind}"):
                    target = f"/nodes/{node}/{kind}/{row['vmid']}"
                    if _MARK.search(str(row.get("tags") or "")):
                        note(target, row.get("tags"), partial(guest_undo, node, int(row["vmid"]), kind=kind))
                    elif kind == "qemu":  # what others clone for us bears the mark in its name long before its tags
                        undo = partial(guest_undo, node, int(row["vmid"]), field="name")
                        note(target, row.get("name"), undo, kept=False)
            for iface, comment in bridges.marked(answer(f"/nodes/{node}/network")):
                note(f"/nodes/{node}/network/{iface}", comment, partial(bridges.undo, node, iface), kept=False)
            for storage in rows(f"/nodes/{node}/storage", enabled=1):
                if not storage.get("active", 1) or storage["storage"] in shared:
                    continue
                if storage.get("shared"):
                    shared.add(storage["storage"])
                path = f"/nodes/{node}/storage/{storage['storage']}/content"
                for row in rows(path):
                    filename = re.split(r"[:/]", str(row["volid"]))[-1]
                    freed = partial(volume_undo, node, storage["storage"], filename)
                    note(f"{path}/{row['volid']}", row["volid"], freed, kept=False)
        return Search(tuple(things), tuple(unseen))

    def _request(self, change: Change, request: Mapping[str, Any]) -> Mapping[str, Any]:
        from runbook_lib.proxmox_verbs import upload, wait_task

        pve = self._connect()
        if "take_back" in request:
            return {"proof": self._taken_back(request["take_back"], change)}
        if "lose" in request:
            return self._lose(change, request["lose"])
        params = dict(request.get("params") or {})
        if "room" in request:  # others have taken some since the plan
            params["size"] = str(_room_kib(pve, request["room"]))
        with pve.wire.permit(change.id):
            if "upload" in request:
                file = request["upload"]
                with self._file(file) as path:
                    content = file.get("content", "import")
                    answer = upload(pve, file["node"], file["storage"], path, content, sha256=file.get("sha256", ""))
            else:
                answer = pve.request(request["method"], request["path"], **params)
        if isinstance(answer, str) and answer.startswith("UPID:"):
            task = wait_task(pve, answer, timeout_seconds=float(request.get("timeout_seconds", 600)))
            return {"upid": answer, "status": task.status}
        if "secret" in request:
            return self._keep_secret(answer, request["secret"], change)
        return {"data": answer}

    @contextlib.contextmanager
    def _file(self, file: Mapping[str, Any]) -> Iterator[Path]:
        """The file to be uploaded: one of the project's, or so many random bytes under the name that is given."""
        if "file" in file:
            yield self._root / file["file"]
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / str(file["name"])
            path.write_bytes(os.urandom(int(file["bytes"])))
            yield path

    def _keep_secret(self, answer: Any, where: Mapping[str, str], change: Change) -> Mapping[str, Any]:
        """The answer with the secret exchanged for its reference; the value is on disk before anything else happens."""
        from runbook_lib.secrets import register

        value = answer.get(where["field"]) if isinstance(answer, Mapping) else None
        if not isinstance(value, str) or not value:
            raise BadAnswer(f"{change.action} {change.target}", f"the answer holds no {where['field']!r}")
        register(value)
        keep_secret(self._root / where["file"], {**where.get("beside", {}), where["key"]: value})  # type: ignore[dict-item]
        return {"data": {**answer, where["field"]: f"file:{where['file']}#{where['key']}"}}

    def _find(self, look: Mapping[str, Any], change: Change) -> tuple[bool, dict[str, Any] | None]:
        """Whether the thing is listed, and its row when it is this run's."""
        try:
            rows = self._connect().get(look["path"], **look.get("params", {})) or []
        except NotFound:
            return False, None  # the folder of a thing that is gone with its owner: a token's user
        found = [row for row in rows if _matches(row, look)]
        ours = [row for row in found if "mark" not in look or look["text"] in str(row.get(look["mark"]) or "").lower()]
        return bool(found), (ours[0] if ours else None)

    def _settled(self, look: Mapping[str, Any], change: Change) -> tuple[bool, dict[str, Any] | None]:
        """`_find`, once no task is still making the thing: PVE writes a VM's tags when its creation ends."""
        until = self._clock() + GONE_SECONDS
        while True:
            found, row = self._find(look, change)
            if row is not None or not found or "mark" not in look or not self._is_locked(look):
                return found, row
            if self._clock() > until:
                raise UnfinishedChange(f"take back {change.id} {change.target}", "a task still holds it locked")
            self._sleep(1.0)

    def _is_locked(self, look: Mapping[str, Any]) -> bool:
        rows = self._connect().get(look["path"]) or []
        return any(row.get("lock") for row in rows if _matches(row, look))

    def _gone(self, look: Mapping[str, Any], change: Change) -> str:
        until, pause = self._clock() + GONE_SECONDS, 0.05
        while self._find(look, change)[1] is not None:
            if self._clock() > until:
                raise UnfinishedChange(
                    f"take back {change.id} {change.target}", f"GET {look['path']} still lists it", "`runbook sweep`"
                )
            self._sleep(pause)
            pause = min(2.0, pause * 2)
        return f"GET {look['path']} no longer lists it"


class KubernetesExecutor:
    """Changes of one Kubernetes cluster."""

    def __init__(self, connect: Callable[[], Any], *, seconds: float = GONE_SECONDS, root: Path | None = None) -> None:
        self._connect, self._seconds, self._root = connect, seconds, root

    def send(self, change: Change) -> Mapping[str, Any]:
        """The object's identity as the server made it, or the answer of another request.

        A create raises Conflict when somebody else's object has the name: server-side apply would take it over.
        """
        request = staging.prepared(self._connect(), change.request)
        if change.action == "create" and "manifest" in request:
            self._nobody_elses(change)
        try:
            return _identity(self._request(change, request))
        except ApiError as error:
            # A trial goes on where one of its requests makes no sense any more; what it wanted is then not seen.
            if "trial" not in request or error.status not in {404, 409, 422}:
                raise
            return {"exit": None, "output": "", "error": str(error)}

    def undo(self, change: Change) -> str:
        """The proof that the object is gone. Raises UnfinishedChange when it is still there after two minutes."""
        undo = change.undo
        if undo is None:
            raise UnfinishedChange(f"take back {change.id} {change.target}", "the plan knows no way back")
        if "nothing" in undo:
            return str(undo["nothing"])
        if "delete" not in undo:
            self._request(change, undo)
            return "sent back as it was"
        proof = self._deleted(undo, change)
        if claims := undo.get("claims"):
            proof += f"; {self._without_claims(undo['delete']['metadata']['namespace'], claims, change)}"
        return proof

    def _deleted(self, undo: Mapping[str, Any], change: Change) -> str:
        path, found = self._look(undo["delete"])
        if found is None:
            return f"GET {path} finds nothing"
        if not _is_of_run(found, undo["delete"]):
            return f"GET {path} finds an object without the mark of this run; left alone"
        kube = self._connect()
        try:
            with kube.wire.permit(change.id):
                kube.delete(path, uid=found["metadata"].get("uid"))
        except Conflict:
            pass  # another object took the name meanwhile; ours is gone
        uid = found["metadata"].get("uid")
        seconds = float(undo.get("seconds", self._seconds))
        try:
            kube.wait(path, lambda thing: thing is None or thing["metadata"].get("uid") != uid, seconds)
        except WaitTimeout as error:
            stuck = f"take back {change.id} {change.target}"
            raise UnfinishedChange(stuck, "it is still being deleted; finalizers?", "`runbook sweep`") from error
        return f"GET {path} no longer finds it"

    def exists(self, change: Change) -> bool:
        """Whether the object is there with the run's label."""
        manifest = (change.undo or {}).get("delete") or change.request.get("manifest")
        if manifest is None:
            return False
        found = self._look(manifest)[1]
        return found is not None and _is_of_run(found, manifest)

    def marked(self, run: str | None, targets: Iterable[str] = ()) -> Search:
        """Every object with the run's label: of the kinds that were made, or of all kinds served if none is named."""
        kube = self._connect()
        things: list[Marked] = []
        unseen: list[str] = []
        selector = RUN_LABEL if run is None else f"{RUN_LABEL}={run}"
        kinds = {_kind_of(target) for target in targets} or None
        for api_version, entry in _deletable(kube, kinds, unseen):
            base = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
            try:
                found = kube.list(f"{base}/{entry['name']}", labelSelector=selector)
            except ApiError as error:
                unseen.append(f"GET {base}/{entry['name']}: {error.came or error}")
                continue
            things += [_marked_object(api_version, entry["kind"], thing) for thing in found]
        if kinds is None or ("v1", "PersistentVolumeClaim") in kinds:
            things += self._volumes_left(run, unseen)
        return Search(tuple(things), tuple(unseen))

    def _volumes_left(self, run: str | None, unseen: list[str]) -> Iterator[Marked]:
        """Volumes whose claim was in a namespace that bears the mark: the driver makes them, and labels nothing."""
        try:
            found = self._connect().list("/api/v1/persistentvolumes")
        except ApiError as error:
            unseen.append(f"GET /api/v1/persistentvolumes: {error.came or error}")
            return
        for volume in found:
            claim = volume["spec"].get("claimRef") or {}
            of = _MARK_OF_SPACE.search(str(claim.get("namespace") or ""))
            if of and (run is None or of[1] == run.lower()):
                name, space = volume["metadata"]["name"], claim["namespace"]
                gone = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
                whole = {**gone, "metadata": {"name": claim["name"], "namespace": space}}
                undo = {"delete": whole, "claims": [claim["name"]]}
                yield Marked("kubernetes", f"v1/PersistentVolume/{name}", run or of[1], False, undo)

    def _request(self, change: Change, request: Mapping[str, Any]) -> Mapping[str, Any]:
        kube = self._connect()
        with kube.wire.permit(change.id):
            if "secret_data" in request:
                return kube.apply(self._with_secrets(request), force=True)
            if "exec" in request:
                return self._run(request["exec"])
            if "drain" in request:
                return self._drained(request["drain"])
            if "manifest" in request:
                return kube.apply(request["manifest"], force=bool(request.get("force")))
            if "delete" in request:
                return kube.delete(request["delete"]) or {}
            return kube.request(
                request["method"],
                request["path"],
                body=request.get("body"),
                content_type=request.get("content_type", "application/json"),
            )

    def _with_secrets(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The Secret with its data: each text with the value of its reference, which is nowhere else."""
        from runbook_lib.secrets import register, resolve

        data = {}
        for key, part in request["secret_data"].items():
            text = part["text"]
            if "{secret}" in text:
                text = text.replace("{secret}", resolve(part["secret"], base=self._root))
                register(text)
            data[key] = base64.b64encode(text.encode()).decode()
        return {**request["manifest"], "data": data}

    def _drained(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """How many pods of the apps were evicted from the node; a disruption budget that refuses is asked again.

        Raises WaitTimeout when it still refuses at the end.
        """
        kube, base = self._connect(), f"/api/v1/namespaces/{given['namespace']}/pods"
        until, evicted = time.monotonic() + float(given["seconds"]), 0
        for app in given["apps"]:
            for pod in kube.list(base, labelSelector=f"app={app}"):
                if (pod["spec"] or {}).get("nodeName") != given["node"]:
                    continue
                name = pod["metadata"]["name"]
                body = {"apiVersion": "policy/v1", "kind": "Eviction",
                        "metadata": {"name": name, "namespace": given["namespace"]}}  # fmt: skip
                while True:
                    try:
                        kube.request("POST", f"{base}/{name}/eviction", body=body)
                        evicted += 1
                        break
                    except NotFound:
                        break
                    except ApiError as error:
                        if error.status != 429:
                            raise
                        if time.monotonic() > until:
                            asked = f"evict {name} from {given['node']}"
                            raise WaitTimeout(asked, "a disruption budget forbids it still") from error
                        time.sleep(0.5)
        return {"evicted": evicted}

    def _run(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        """How a command in a pod ended, and the end of what it said."""
        seconds = float(command.get("seconds", 60))
        try:
            code, out, err = self._connect().exec(
                command["namespace"], command["pod"], command["words"], timeout_seconds=seconds
            )
        except (ApiError, WaitTimeout) as error:  # a pod that does not run is what the check is about
            return {"exit": None, "output": "", "error": str(error)}
        return {"exit": code, "output": out[-MOST_OUTPUT:], "error": err[-MOST_OUTPUT:]}

    def _without_claims(self, namespace: str, names: Iterable[str], change: Change) -> str:
        """The proof that the claims, their volumes and with them their disks are gone.

        A volume that outlives its claim by its policy is given back to the driver, which then frees the disk.
        """
        kube = self._connect()
        for name in names:
            path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
            with kube.wire.permit(change.id):
                kube.delete(path)
            self._until_gone(path, change)
            for volume in kube.list("/api/v1/persistentvolumes"):
                claim = volume["spec"].get("claimRef") or {}
                if (claim.get("namespace"), claim.get("name")) != (namespace, name):
                    continue
                where = f"/api/v1/persistentvolumes/{volume['metadata']['name']}"
                if volume["spec"].get("persistentVolumeReclaimPolicy") != "Delete":
                    body = {"spec": {"persistentVolumeReclaimPolicy": "Delete"}}
                    with kube.wire.permit(change.id), contextlib.suppress(NotFound):
                        kube.request("PATCH", where, body=body, content_type="application/merge-patch+json")
                self._until_gone(where, change)
        return f"no volume of {', '.join(names)} is left"

    def _until_gone(self, path: str, change: Change) -> None:
        try:
            self._connect().wait(path, lambda thing: thing is None, self._seconds)
        except WaitTimeout as error:
            stuck = f"take back {change.id} {change.target}"
            raise UnfinishedChange(stuck, f"{path} is still there; {error}", "`runbook sweep`") from error

    def _nobody_elses(self, change: Change) -> None:
        manifest = change.request["manifest"]
        path, found = self._look(manifest)
        if found is not None and not _is_of_run(found, manifest):
            raise Conflict(
                f"create {change.target}",
                "an object of this name was made by somebody else since the plan",
                "plan again",
                system="kubernetes",
                method="PATCH",
                path=path,
                status=409,
            )

    def _look(self, manifest: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
        kube = self._connect()
        try:
            path = kube.path_of(manifest)
        except NotFound:
            return f"{manifest['apiVersion']} {manifest['kind']}", None  # the kind went, and its objects with it
        return path, kube.find(path)


# --- what undoes what, in Proxmox VE ---------------------------------------------------------------


def pool_undo(pool: str, run: str) -> dict[str, Any]:
    """The request that removes a pool which carries the mark."""
    # The old DELETE /pools/{poolid} cannot take names with a slash; 8.x and 9.x both know this one.
    return {**_undo("/pools", "/pools", {"poolid": pool}, "comment", run), "params": {"poolid": pool}}


def user_undo(userid: str, run: str) -> dict[str, Any]:
    """The request that removes a user who carries the mark."""
    return _undo(f"/access/users/{userid}", "/access/users", {"userid": userid}, "comment", run)


def token_undo(userid: str, token: str, run: str) -> dict[str, Any]:
    """The request that removes a token which carries the mark."""
    path = f"/access/users/{userid}/token"
    return _undo(f"{path}/{token}", path, {"tokenid": token}, "comment", run)


def guest_undo(node: str, vmid: int, run: str, *, kind: str = "qemu", field: str = "tags") -> dict[str, Any]:
    """The request that destroys a guest which carries the mark in this field; a VM that runs is stopped before."""
    path = f"/nodes/{node}/{kind}"
    undo = {**_undo(f"{path}/{vmid}", path, {"vmid": vmid}, field, run), "params": {"purge": 1}}
    return {**undo, "guest": {"node": node, "vmid": vmid}} if kind == "qemu" else undo


def volume_undo(node: str, storage: str, filename: str, run: str) -> dict[str, Any]:
    """The request that frees a volume; its mark is part of its name."""
    path = f"/nodes/{node}/storage/{storage}/content"
    look = {"path": path, "ends": {"volid": filename}, "mark": "volid", "text": mark(run)}
    return {"method": "DELETE", "path": f"{path}/{{volid}}", "params": {}, "look": look}


def acl_undo(path: str, role: str, who: str, name: str) -> dict[str, Any]:
    """The request that removes one ACL entry; `who` is "user", "group" or "token"."""
    look = {"path": "/access/acl", "match": {"path": path, "roleid": role, "type": who, "ugid": name}}
    params = {"path": path, "roles": role, f"{who}s": name, "delete": 1}
    return {"method": "PUT", "path": "/access/acl", "params": params, "look": look}


def _undo(path: str, listed: str, match: Mapping[str, Any], field: str, run: str) -> dict[str, Any]:
    look = {"path": listed, "match": dict(match), "mark": field, "text": mark(run)}
    return {"method": "DELETE", "path": path, "params": {}, "look": look}


def _matches(row: Mapping[str, Any], look: Mapping[str, Any]) -> bool:
    equal = all(str(row.get(name)) == str(value) for name, value in look.get("match", {}).items())
    ends = look.get("ends", {}).items()
    return equal and all(re.split(r"[:/]", str(row.get(name)))[-1] == value for name, value in ends)


def _filled(path: str, row: Mapping[str, Any]) -> str:
    """The path with the found row's fields, each quoted so that it stays one part."""
    from urllib.parse import quote

    return re.sub(r"\{(\w+)\}", lambda name: quote(str(row[name[1]]), safe=""), path)


def keep_secret(path: Path, values: Mapping[str, Any]) -> None:
    """Nothing; afterwards the JSON file at `path` (0600, in a folder 0700) holds the values, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(dict(values), indent=1))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


# --- Kubernetes objects --------------------------------------------------------------------------


def labelled(manifest: Mapping[str, Any], run: str, kind: str) -> dict[str, Any]:
    """The manifest with the run's label and whether the object is borrowed or installed."""
    metadata = manifest["metadata"]
    labels = {**(metadata.get("labels") or {}), RUN_LABEL: run, KIND_LABEL: kind}
    return {**manifest, "metadata": {**metadata, "labels": labels}}


def reference(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed to find the object again and to know it as ours."""
    metadata = manifest["metadata"]
    kept = {name: metadata[name] for name in ("name", "namespace") if metadata.get(name)}
    run = (metadata.get("labels") or {}).get(RUN_LABEL)
    own = {"labels": {RUN_LABEL: run}} if run else {}
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": {**kept, **own}}


def target_of(manifest: Mapping[str, Any]) -> str:
    """How a plan names an object: "v1/Namespace/runbook-test", "v1/Pod/ns/name"."""
    metadata = manifest["metadata"]
    parts = (manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"])
    return "/".join(part for part in parts if part)


def _is_of_run(found: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    wanted = (manifest["metadata"].get("labels") or {}).get(RUN_LABEL)
    return wanted is None or (found["metadata"].get("labels") or {}).get(RUN_LABEL) == wanted


def _marked_object(api_version: str, kind: str, thing: Mapping[str, Any]) -> Marked:
    whole = {"apiVersion": api_version, "kind": kind, "metadata": thing["metadata"]}
    labels = thing["metadata"]["labels"]
    kept = labels.get(KIND_LABEL) == "install"
    undo: dict[str, Any] = {"delete": reference(whole)}
    if kind == "PersistentVolumeClaim":
        undo["claims"] = [thing["metadata"]["name"]]
    return Marked("kubernetes", target_of(whole), labels[RUN_LABEL], kept, undo)


def _identity(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if "exit" in answer:
        return answer
    metadata = answer.get("metadata") or {}
    return {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion") if metadata.get(name)}


def _kind_of(target: str) -> tuple[str, str]:
    """("apps/v1", "Deployment") of "apps/v1/Deployment/ns/name"."""
    parts = target.split("/")
    at = next(index for index, part in enumerate(parts) if part[:1].isupper())
    return "/".join(parts[:at]), parts[at]


def _deletable(
    kube: Any, kinds: set[tuple[str, str]] | None, unseen: list[str]
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """What can be listed and deleted: of the kinds given, or of all that the cluster serves."""
    versions = {version for version, _ in kinds} if kinds is not None else _versions(kube, unseen)
    for version in sorted(versions):
        try:
            served = kube.resources("/api/v1" if version == "v1" else f"/apis/{version}")
        except ApiError as error:
            unseen.append(f"discovery of {version}: {error.came or error}")
            continue
        for entry in served:
            wanted = kinds is None or (version, entry["kind"]) in kinds
            if wanted and {"list", "delete"} <= set(entry.get("verbs") or ["list", "delete"]):
                yield version, entry


def _versions(kube: Any, unseen: list[str]) -> set[str]:
    try:
        groups = kube.get("/apis").get("groups") or []
    except ApiError as error:
        unseen.append(f"GET /apis: {error.came or error}")
        groups = []
    return {"v1", *(group["preferredVersion"]["groupVersion"] for group in groups if group.get("preferredVersion"))}
