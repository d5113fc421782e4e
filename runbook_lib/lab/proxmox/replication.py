"""Replication of guests' disks to other nodes: jobs, how they are, their log.

A job's figures are those of one that runs on schedule; a target that is offline makes it fail, as it would.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .calendar import next_run
from .declared import declared
from .declared.replication import TABLE
from .drift import phase
from .qemu.drives import drives, is_cdrom
from .qemu.guest import parse_options
from .quorum import require_quorum
from .routing import Call, PveError, param_error
from .schema import format_check
from .sections import Section, Sections, check_digest, digest_of, edit, stored

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

JOB_ID = re.compile(r"([1-9]\d{2,8})-(\d{1,9})")
OPTIONS = ("target", "source", "schedule", "rate", "comment", "disable", "remove_job")
DEFAULT_SCHEDULE = "*/15"
REMOVAL_SECONDS = 60.0
"""How long after its removal was asked for a job is still listed."""


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the jobs from a scenario's `replication:`, by id — {target, schedule …}."""
    state.areas["replication"] = {
        name: {**identity(name), "type": "local", **(job or {})}
        for name, job in (section.get("replication") or {}).items()
    }


@format_check("pve-replication-job-id")
def _job_id(value: str) -> None:
    if not JOB_ID.fullmatch(value):
        raise ValueError(f"invalid replication job id '{value}'\n")


def identity(name: str) -> Section:
    """What a job's id says: the guest and the number."""
    guest, _, number = name.partition("-")
    return {"id": name, "guest": int(guest), "jobnum": int(number)}


def jobs(state: PveState) -> Sections:
    """The replication jobs, by id; those marked for removal go at the scheduler's next look."""
    found: Sections = state.areas.setdefault("replication", {})
    leaving: dict[str, float] = state.areas.setdefault("replication_leaving", {})
    for name in [name for name, moment in leaving.items() if state.clock.elapsed() >= moment]:
        del leaving[name]
        found.pop(name, None)
    return found


def job_of(call: Call, *, missing: str = "no such replication job '{}'") -> Section:
    """The job a path names, or the 500 that there is none."""
    name = call.params["id"]
    if name not in jobs(call.state):
        raise PveError(500, missing.format(name))
    return jobs(call.state)[name]


def check_writer(call: Call, guest: int) -> None:
    """Nothing, or the 403 of a caller who may not replicate the guest."""
    if call.flavour == "8.4":
        call.check("/storage", "Datastore.Allocate")
    else:
        call.check(f"/vms/{guest}", "VM.Replicate")


@endpoint("GET /cluster/replication")
def list_jobs(call: Call) -> list[Section]:
    """The jobs of guests the caller may audit."""
    return [dict(job) for job in jobs(call.state).values() if call.allowed(f"/vms/{job['guest']}", "VM.Audit")]


@endpoint("GET /cluster/replication/{id}")
def get_job(call: Call) -> Section:
    """One job."""
    job = job_of(call)
    call.check(f"/vms/{job['guest']}", "VM.Audit")
    return {**job, "digest": digest_of(jobs(call.state))}


def replicatable(state: PveState, vmid: int) -> bool:
    """Whether the guest has a disk on ZFS, which alone can be replicated."""
    guest = state.guests[vmid]
    found = [options for _, options in drives(guest.config) if not is_cdrom(options)]
    found += [parse_options(str(v)) for k, v in guest.config.items() if k == "rootfs" or re.fullmatch(r"mp\d+", k)]
    for options in found:
        storage = state.storages.get(options.get("file", "").partition(":")[0])
        if storage is None or options.get("replicate") == "0":
            continue
        if storage.type == "zfspool":
            return True
    return False


@endpoint("POST /cluster/replication")
def create_job(call: Call) -> None:
    """Nothing; the job is there."""
    state, params = call.state, call.params
    known = identity(params["id"])
    check_writer(call, known["guest"])
    require_quorum(state, "cfs-lock 'file-replication_cfg' error: no quorum!")
    guest = state.guests.get(known["guest"])
    if guest is None:
        raise PveError(500, f"Guest '{known['guest']}' does not exist.")
    if params["target"] not in state.nodes:
        raise PveError(500, f"Target '{params['target']}' does not exist.")
    if params.get("source") not in (None, guest.node):
        given = f"Source '{params['source']}' does not match current node of guest '{guest.vmid}' ({guest.node})"
        raise PveError(500, given)
    if params["target"] == guest.node:
        raise PveError(500, "Source and target must not be identical")
    if not replicatable(state, guest.vmid):
        raise PveError(500, "No replicatable volumes found")
    if params["id"] in jobs(state):
        raise PveError(500, f"replication job '{params['id']}' already exists")
    if any(job["guest"] == guest.vmid and job["target"] == params["target"] for job in jobs(state).values()):
        raise PveError(500, f"replication job for guest '{guest.vmid}' to target '{params['target']}' already exists")
    jobs(state)[params["id"]] = {**known, "source": guest.node, **stored(params, without=("id",))}


@endpoint("PUT /cluster/replication/{id}")
def update_job(call: Call) -> None:
    """Nothing; the job is as asked."""
    check_writer(call, identity(call.params["id"])["guest"])
    check_digest(call.params.get("digest"), jobs(call.state))
    job = job_of(call, missing="no such job '{}'")
    edit(job, call.params, options=OPTIONS, required=("target",), fixed=("target",), without=("id",))


@endpoint("DELETE /cluster/replication/{id}")
def delete_job(call: Call) -> None:
    """Nothing; the job is taken away, with `force` at once."""
    state, name = call.state, call.params["id"]
    check_writer(call, identity(name)["guest"])
    if call.params.get("force"):
        if call.params.get("keep"):
            raise param_error({"keep": "conflicts with parameter 'force'"})
        jobs(state).pop(name, None)
        return
    job = job_of(call, missing="no such job '{}'")
    job["remove_job"] = "local" if call.params.get("keep") else "full"
    state.areas["replication_leaving"][name] = state.clock.elapsed() + REMOVAL_SECONDS


# --- on a node ------------------------------------------------------------------------------------


def status_row(call: Call, job: Section) -> Section:
    """A job with when it ran last, how long that took and how often it failed since."""
    state, now = call.state, call.clock.now()
    guest = state.guests.get(job["guest"])
    schedule = str(job.get("schedule", DEFAULT_SCHEDULE))
    following = next_run(schedule, now) or int(now)
    second = next_run(schedule, following) or following + 900
    last = max(0, following - (second - following))
    took = round(2 + 4 * phase(str(job["id"])), 3)
    row: Section = {
        **job,
        "source": guest.node if guest else job.get("source", call.node),
        "vmtype": guest.kind if guest else "qemu",
        "fail_count": 0,
        "duration": took,
        "last_sync": last,
        "last_try": last,
        "next_sync": following,
    }
    if why := unreachable(state, job):
        row |= {"fail_count": 1, "error": why}
    known = outcomes(state).get(str(job["id"]))
    if known:  # what really ran since the lab began
        row |= {key: known[key] for key in ("last_sync", "last_try", "fail_count", "duration")}
        row.pop("error", None)
        if known["error"]:
            row["error"] = known["error"]
            # after a failure it tries again in five minutes, then ten, at most thirty
            row["next_sync"] = int(known["last_try"]) + 300 * min(6, known["fail_count"])
    if job.get("disable"):
        row["next_sync"] = 0
    return row


def unreachable(state: PveState, job: Section) -> str:
    """Why the job cannot reach its target; empty when it can."""
    target = state.nodes.get(job["target"])
    if target is not None and target.online:
        return ""
    command = "command '/usr/bin/ssh -e none -o 'BatchMode=yes' -- /bin/true' failed: exit code 255"
    return f"{command} (node '{job['target']}')"


def outcomes(state: PveState) -> dict[str, Section]:
    """How each job's last run went, by id."""
    found: dict[str, Section] = state.areas.setdefault("replication_runs", {})
    return found


@endpoint("GET /nodes/{node}/replication")
def node_jobs(call: Call) -> list[Section]:
    """How the jobs of this node's guests are."""
    guests, wanted = call.state.guests, call.params.get("guest")
    return [
        status_row(call, job)
        for job in jobs(call.state).values()
        if job["guest"] in guests
        and guests[job["guest"]].node == call.node
        and wanted in (None, job["guest"])
        and call.allowed(f"/vms/{job['guest']}", "VM.Audit")
    ]


@endpoint("GET /nodes/{node}/replication/{id}")
def job_index(call: Call) -> list[dict[str, str]]:
    """The names below one job."""
    return [{"name": name} for name in ("schedule_now", "log", "status")]


@endpoint("GET /nodes/{node}/replication/{id}/status")
def job_status(call: Call) -> Section:
    """How one job is."""
    job = job_of(call)
    call.check(f"/vms/{job['guest']}", "VM.Audit")
    return status_row(call, job)


def run_lines(row: Section) -> list[str]:
    """What a job's last run wrote."""
    head = f"{row['id']}: "
    if row.get("error"):
        return [f"{head}start replication job", f"{head}end replication job with error: {row['error']}"]
    kind = "VM" if row["vmtype"] == "qemu" else "CT"
    return [
        f"{head}start replication job",
        f"{head}guest => {kind} {row['guest']}, running => {row['guest']}",
        f"{head}create snapshot '__replicate_{row['id']}_{row['last_sync']}__'",
        f"{head}using secure transmission, rate limit: {row.get('rate', 'none')}",
        f"{head}delete previous replication snapshot",
        f"{head}end replication job",
    ]


@endpoint("GET /nodes/{node}/replication/{id}/log")
def job_log(call: Call) -> list[dict[str, Any]]:
    """The log of a job's last run."""
    job = job_of(call)
    if not call.allowed(f"/nodes/{call.node}", "Sys.Audit"):
        call.check(f"/vms/{job['guest']}", "VM.Audit")
    lines = run_lines(status_row(call, job))
    call.extra["total"] = len(lines)
    start, limit = call.params.get("start", 0), call.params.get("limit", 50)
    return [{"n": number, "t": line} for number, line in enumerate(lines, 1)][start : start + limit]


@endpoint("POST /nodes/{node}/replication/{id}/schedule_now")
def schedule_now(call: Call) -> None:
    """Nothing; the job runs out of turn. There is no task: a run leaves only the job's status and log."""
    job = job_of(call)
    check_writer(call, job["guest"])
    begin(call.state, job)


def begin(state: PveState, job: Section) -> None:
    """Run the job once; its status and log tell how that went from then on."""
    now, name = state.clock.now(), str(job["id"])
    why = unreachable(state, job)
    old = outcomes(state).get(name) or {"last_sync": 0, "fail_count": 0}
    fresh = {"last_try": int(now), "duration": round(2 + 4 * phase(name), 3), "error": why}
    if why:
        outcomes(state)[name] = {**old, **fresh, "fail_count": old["fail_count"] + 1}
    else:
        outcomes(state)[name] = {**old, **fresh, "fail_count": 0, "last_sync": int(now)}


def run_scheduled(state: PveState, node: str, name: str, job: Section) -> None:
    """Run a job whose turn has come; its status and log tell how that went."""
    del node, name
    begin(state, job)
