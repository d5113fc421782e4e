"""What a step borrows to prove something, and what it reads off it: probe pods, test volumes, refused tokens."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runbook_lib import kubernetes, prepare, privileges, proxmox
from runbook_lib.errors import NotFound, RunbookError, WaitTimeout
from runbook_lib.facts import Cluster, Held, KubeNode, LoginAttempt, Reach, Storage, Template, TestVolume
from runbook_lib.model import Change
from runbook_lib.plan import Applied
from runbook_lib.prepare import Wanted

API_PORT = 8006
PROBE_SECONDS = 180


# --- pods that try a connection ----------------------------------------------------------------------


def probes(k8s: Any, site: Any, run: str, nodes: Iterable[KubeNode], cluster: Cluster, *, step: str = "12") -> Wanted:
    """One pod per Kubernetes node that tries the Proxmox API, and one more for each further member, all borrowed.

    They live in a namespace of their own, borrowed with them, so that this works before anything is prepared.
    """
    home = f"{site.names.prefix}-probe-{run.rpartition('-')[2].lower()}"
    space = prepare.restricted_namespace(home)
    wanted = prepare.borrow_object(space, run, summary="Namespace of the probe pods", step=step)
    hosts = [member.ip for member in cluster.members if member.online and member.ip]
    ready = [node.name for node in nodes if node.ready == "True"]
    pairs = [(name, hosts[0]) for name in ready if hosts] + [(ready[0], host) for host in hosts[1:] if ready]
    changes = list(wanted.changes)
    for name, host in pairs:
        pod = kubernetes.probe_manifest(site, run, name, host, API_PORT)
        pod["metadata"]["namespace"] = home
        summary = f"Probe pod on {name}: does it reach {host}:{API_PORT}?"
        changes += prepare.borrow_object(pod, run, summary=summary, step=step).changes
    return Wanted(tuple(changes)).numbered(step)


def probe_results(k8s: Any, applied: Applied, *, timeout_seconds: float = PROBE_SECONDS) -> list[Reach]:
    """How the connection of each probe pod ended; "not tried" with the reason where nothing was sent."""
    pods = [change for change in applied.plan.changes if "/Pod/" in change.target]
    if applied.refused:
        return [Reach("pods", "Proxmox VE", "not tried", note=applied.refused)]
    deadline = time.monotonic() + timeout_seconds
    rows = []
    for change in pods:
        manifest = change.request["manifest"]
        path = k8s.path_of(manifest)
        left = max(1.0, deadline - time.monotonic())
        try:
            pod = k8s.wait(path, _has_ended, left)
        except WaitTimeout:
            pod = k8s.get(path)
        rows.append(kubernetes.probe_outcome(pod, _log(k8s, manifest)))
    return rows


def _has_ended(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def _log(k8s: Any, manifest: Mapping[str, Any]) -> str:
    try:
        return str(k8s.logs(manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
    except RunbookError as error:  # a pod that never started has no log, and that is the finding
        return "" if isinstance(error, NotFound) else error.came


# --- volumes -----------------------------------------------------------------------------------------


def listed_volumes(pve: Any, applied: Applied, *, storages: Iterable[Storage] = ()) -> list[TestVolume]:
    """Each volume of the plan beside what its storage's own list says of it; nothing where nothing was sent.

    With `storages` a volume on a shared one is looked for through every node that has it: that is what shared means.
    """
    rows = []
    others = [row for row in storages if row.shared and row.active]
    for change in () if applied.refused else applied.plan.changes:
        made, storage, filename = _place(change)
        nodes = [made, *(row.node for row in others if row.name == storage and row.node != made)]
        for node in nodes if filename else ():
            found = {volume.volid: volume for volume in proxmox.volumes(pve, node, storage)}
            match = next((volid for volid in found if volid.rpartition("/")[2].rpartition(":")[2] == filename), None)
            volid = match or f"{storage}:{filename}"
            rows.append(TestVolume(node, storage, volid, found.get(volid)))
    return rows


def _place(change: Change) -> tuple[str, str, str]:
    """Node, storage and file name of a volume that a change makes; an empty name of any other change."""
    if "upload" in change.request:
        file = change.request["upload"]
        return file["node"], file["storage"], file["name"]
    parts = change.request["path"].split("/")
    name = (change.request.get("params") or {}).get("filename", "")
    return (parts[2], parts[4], name) if name and parts[-1] == "content" else ("", "", "")


def own_template(pve: Any, site: Any) -> list[Template]:
    """The template that the site's parameters name; none where they name none or it is not there."""
    return [row for row in proxmox.templates(pve) if row.vmid == site.names.template_vmid]


# --- who may what ------------------------------------------------------------------------------------


def login_attempts(site: Any, applied: Applied) -> list[LoginAttempt]:
    """Logins tried on purpose, with the expired and the disabled token where they were borrowed."""
    if not applied.refused:
        expired, disabled = (prepare.kept_token(site, f"refused-{case}") for case in ("expired", "disabled"))
        return proxmox.login_attempts(site, expired=expired, disabled=disabled)
    untried = {"expired token", "disabled token"}
    return [replace(row, note=applied.refused) if row.case in untried else row for row in proxmox.login_attempts(site)]


# --- rights ------------------------------------------------------------------------------------------


def held(pve: Any, site: Any) -> list[Held]:
    """The identity of this run and every component whose token exists here, each with what it needs.

    The identity of this run is judged by the runbook's needs; a token's rights are read by whoever may read them.
    None where no storage could be chosen, because rights are needed on a storage by name.
    """
    site = prepare.with_storages(site, proxmox.storages(pve))
    if not (site.names.iso_storage and site.names.disk_storage):
        return []
    version = proxmox.version(pve).version
    rows = [Held("runbook", proxmox.permissions(pve), _needs("runbook", site, version))]
    tokens = _tokens(pve)
    for account in privileges.accounts(site, version):
        if account.token_id in tokens and account.token_id != pve.identity:
            granted = proxmox.permissions(pve, account.token_id)
            rows.append(Held(account.component, granted, _needs(account.component, site, version)))
    return rows


def _needs(component: str, site: Any, version: str) -> Mapping[str, tuple[str, ...]]:
    return privileges.needs(component, site, version)


def _tokens(pve: Any) -> Sequence[str]:
    """The ids of every token this identity may see."""
    return [
        f"{user['userid']}!{token['tokenid']}"
        for user in pve.get("/access/users", full=1)
        for token in user.get("tokens") or ()
    ]
