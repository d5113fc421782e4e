"""Backups: jobs and what they cover, vzdump and what it writes, pruning, and the restore of a VM from an archive."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import scheduler
from .calendar import next_run, parse_event, written
from .declared import declared
from .declared.backup import TABLE
from .qemu.config import join_pool, stored, with_mac
from .qemu.drives import COPY_RATE, drives, free_volumes, is_cdrom, is_cloud_init
from .qemu.guest import GuestState, identity, newborn, parse_net, parse_options, print_net, print_options
from .quorum import require_quorum
from .routing import Call, PveError, param_error, split_list
from .schema import format_check
from .sections import Section, Sections
from .sections import stored as as_section
from .storage import (
    MIB,
    StorageState,
    VolumeState,
    add_volume,
    allocate,
    check_volume_access,
    find_volume,
    format_size,
    next_disk_name,
    require_active,
    require_storage,
    usage,
    volume_path,
    volumes_on,
)
from .worker import TaskContext, TaskError

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

ROOT_ONLY = ("tmpdir", "dumpdir", "script", "bwlimit", "ionice", "performance", "prune-backups", "fleecing")
SUFFIX = {"0": "", "1": ".lzo", "lzo": ".lzo", "gzip": ".gz", "zstd": ".zst"}
KEEPS = ("keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly")
PERIODS = {
    "keep-hourly": "%Y%m%d%H",
    "keep-daily": "%Y%m%d",
    "keep-weekly": "%G%V",
    "keep-monthly": "%Y%m",
    "keep-yearly": "%Y",
}


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the backup jobs from a scenario's `backup_jobs:`, by id."""
    state.areas["backup"] = {name: dict(job) for name, job in (section.get("backup_jobs") or {}).items()}
    state.areas["realm_sync"] = {}


def jobs(state: PveState) -> Sections:
    """The backup jobs, by id."""
    found: Sections = state.areas.setdefault("backup", {})
    return found


@format_check("pve-day-of-week")
def _weekday(value: str) -> None:
    if not re.fullmatch(r"mon|tue|wed|thu|fri|sat|sun", value):
        raise ValueError(f"invalid day '{value}'\n")


@format_check("email-or-username")
def _recipient(value: str) -> None:
    if not re.fullmatch(r"[^\s@/:]+(@[A-Za-z0-9.\-_]+)?", value):
        raise ValueError(f"value does not look like a valid email address or user name: '{value}'\n")


def parse_keep(text: str) -> dict[str, int]:
    """A retention as numbers: {"keep-last": 3}."""
    return {key: int(value) for key, value in parse_options(text).items() if key.startswith("keep-")}


# --- jobs -----------------------------------------------------------------------------------------


def job_row(state: PveState, name: str) -> Section:
    """One job as answers hold it: its retention as numbers, and when it runs next."""
    row: Section = {"id": name, "type": "vzdump", "enabled": 1, **jobs(state)[name]}
    if isinstance(row.get("prune-backups"), str):
        row["prune-backups"] = {key: str(value) for key, value in parse_keep(row["prune-backups"]).items()}
    if row["enabled"] and row.get("schedule"):
        moment = next_run(str(row["schedule"]), state.clock.now())
        if moment is not None:
            row["next-run"] = moment
    return row


def require_job(call: Call) -> str:
    """The id of the job a path names. Raises 400 when there is none."""
    name = str(call.params["id"])
    if name not in jobs(call.state):
        raise param_error({"id": f"No such job '{name}'"})
    return name


def check_selection(job: Mapping[str, Any]) -> None:
    """Nothing, or the 400 of a job that names its guests twice or not at all."""
    given = [key for key in ("all", "vmid", "pool") if job.get(key)]
    if len(given) > 1:
        raise param_error({given[0]: f"option conflicts with option '{given[1]}'"})
    if job.get("exclude") and (job.get("vmid") or job.get("pool")):
        raise param_error({"exclude": f"option conflicts with option '{'vmid' if job.get('vmid') else 'pool'}'"})
    if not given:
        raise param_error({"vmid": "property is missing"})


def check_job(call: Call, job: Mapping[str, Any]) -> None:
    """Nothing, or the refusal of a storage or pool that is not there."""
    if job.get("storage"):
        require_storage(call.state, job["storage"])
    if job.get("dumpdir") and job.get("storage"):
        raise param_error({"storage": "mutually exclusive with 'dumpdir'"})
    if job.get("pool"):
        call.check(f"/pool/{job['pool']}", "Pool.Audit")
    if not (call.auth and call.auth.is_root):
        for key in ("tmpdir", "dumpdir", "script"):
            if key in call.params:
                raise param_error({key: "Only root may set this option."})


def schedule_of(params: Mapping[str, Any]) -> str | None:
    """The schedule of a request, which may still be given as days and a time."""
    if "starttime" not in params:
        return params.get("schedule")
    if "schedule" in params:
        raise param_error({"schedule": "'schedule' and 'starttime' cannot both be set"})
    days = ",".join(split_list(params.get("dow", "")))
    return f"{days} {params['starttime']}".strip()


@endpoint("GET /cluster/backup")
def list_jobs(call: Call) -> list[Section]:
    """The backup jobs."""
    return [job_row(call.state, name) for name in jobs(call.state)]


@endpoint("GET /cluster/backup/{id}")
def get_job(call: Call) -> Section:
    """One backup job."""
    return job_row(call.state, require_job(call))


@endpoint("POST /cluster/backup")
def create_job(call: Call) -> None:
    """Nothing; the job is there."""
    state, params = call.state, call.params
    require_quorum(state, "cfs-lock 'file-jobs_cfg' error: no quorum!")
    job = as_section(params, without=("id", "starttime", "dow"))
    schedule = schedule_of(params)
    if not schedule:
        raise param_error({"schedule": "neither 'starttime' nor 'schedule' were set"})
    if "exclude" in job and not job.get("vmid") and not job.get("pool"):
        job["all"] = 1
    check_selection(job)
    check_job(call, job)
    name = params.get("id") or f"backup-{call.state.dice.uuid('backup')[:13]}"
    if name in jobs(state):
        raise PveError(500, f"Job '{name}' already exists")
    jobs(state)[name] = {"enabled": 1, **job, "schedule": schedule}


@endpoint("PUT /cluster/backup/{id}")
def update_job(call: Call) -> None:
    """Nothing; the job is as asked."""
    state, params = call.state, call.params
    require_quorum(state, "cfs-lock 'file-jobs_cfg' error: no quorum!")
    name = require_job(call)
    job = dict(jobs(state)[name])
    for key in split_list(params.get("delete", "")):
        if key not in TABLE["PUT /cluster/backup/{id}"].params:
            raise PveError(500, f"no such option '{key}'")
        job.pop(key, None)
    given = as_section(params, without=("id", "starttime", "dow"))
    # one way to choose the guests takes the place of another
    for key in ("all", "vmid", "pool"):
        if given.get(key):
            for other in {"all", "vmid", "pool", "exclude"} - {key, *given}:
                if not (key == "all" and other == "exclude"):
                    job.pop(other, None)
    job |= given
    schedule = schedule_of(params)
    if schedule:
        job["schedule"] = schedule
    check_selection(job)
    check_job(call, job)
    jobs(state)[name] = job


@endpoint("DELETE /cluster/backup/{id}")
def delete_job(call: Call) -> None:
    """Nothing; the job is gone."""
    require_quorum(call.state, "cfs-lock 'file-jobs_cfg' error: no quorum!")
    del jobs(call.state)[require_job(call)]


# --- coverage -------------------------------------------------------------------------------------


def covered_by(state: PveState, job: Mapping[str, Any]) -> list[int]:
    """The guests a job saves."""
    if job.get("all"):
        excluded = {int(text) for text in split_list(str(job.get("exclude", "")))}
        found = [vmid for vmid in state.guests if vmid not in excluded]
    elif job.get("pool"):
        pool = state.pools.get(str(job["pool"]))
        found = list(pool.vms) if pool else []
    else:
        found = [int(text) for text in split_list(str(job.get("vmid", "")))]
    node = job.get("node")
    return sorted(v for v in found if not node or (v in state.guests and state.guests[v].node == node))


def included(guest: GuestState) -> list[dict[str, Any]]:
    """A guest's volumes, and whether a backup holds each of them."""
    rows = []
    if guest.kind == "qemu":
        for key, options in drives(guest.config):
            volid = options.get("file", "")
            if is_cdrom(options) and not is_cloud_init(options):
                continue
            wanted = options.get("backup", "1") != "0"
            if key == "efidisk0" and guest.config.get("bios") != "ovmf":
                rows.append({"id": key, "name": volid, "included": 0, "reason": "efidisk but no OMVF BIOS"})
            else:
                reason = "enabled" if wanted else "disabled"
                rows.append({"id": key, "name": volid, "included": int(wanted), "reason": reason})
        return rows
    for key in sorted(guest.config):
        if key == "rootfs" or re.fullmatch(r"mp\d+", key):
            options = parse_options(str(guest.config[key]))
            wanted = key == "rootfs" or options.get("backup") == "1"
            reason = "rootfs" if key == "rootfs" else ("enabled" if wanted else "disabled")
            rows.append({"id": key, "name": options.get("file", ""), "included": int(wanted), "reason": reason})
    return rows


@endpoint("GET /cluster/backup/{id}/included_volumes")
def included_volumes(call: Call) -> dict[str, Any]:
    """The guests a job saves with their volumes, as a tree."""
    state = call.state
    children = []
    for vmid in covered_by(state, jobs(state)[require_job(call)]):
        guest = state.guests.get(vmid)
        if guest is None:
            children.append({"id": vmid, "type": "unknown"})
            continue
        row: dict[str, Any] = {"id": vmid, "type": guest.kind, "name": guest.name, "children": included(guest)}
        children.append(row)
    return {"children": children}


@endpoint("GET /cluster/backup-info")
def info_index(call: Call) -> list[dict[str, str]]:
    """The names below backup-info."""
    return [{"subdir": "not-backed-up"}]


@endpoint("GET /cluster/backup-info/not-backed-up")
def not_backed_up(call: Call) -> list[dict[str, Any]]:
    """The guests that no job saves; a disabled job counts, as it does for the vendor."""
    covered = {vmid for job in jobs(call.state).values() for vmid in covered_by(call.state, job)}
    rows = []
    for guest in call.state.guests.values():
        if guest.vmid not in covered:
            row: dict[str, Any] = {"vmid": guest.vmid, "type": guest.kind}
            if "name" in guest.config or "hostname" in guest.config:
                row["name"] = guest.name
            rows.append(row)
    return rows


# --- schedules ------------------------------------------------------------------------------------


@endpoint("GET /cluster/jobs")
def jobs_index(call: Call) -> list[dict[str, str]]:
    """The names below jobs."""
    return [{"subdir": "schedule-analyze"}, {"subdir": "realm-sync"}]


LAST_MOMENT = 67_768_036_191_676_799
"""The last second whose year the C library can hold."""


@endpoint("GET /cluster/jobs/schedule-analyze")
def analyze(call: Call) -> list[dict[str, Any]]:
    """The next times a schedule comes round."""
    start = call.params.get("starttime", call.clock.now())
    if abs(start) > LAST_MOMENT:
        raise PveError(500, f"libc::localtime failed for '{start}'")
    rows: list[dict[str, Any]] = []
    for moment in parse_event(call.params["schedule"]).after(start):
        if len(rows) >= call.params.get("iterations", 10):
            break
        rows.append({"timestamp": moment, "utc": written(moment)})
    return rows


def syncs(state: PveState) -> Sections:
    """The realm sync jobs."""
    found: Sections = state.areas.setdefault("realm_sync", {})
    return found


def sync_row(state: PveState, name: str) -> Section:
    """One realm sync job."""
    row: Section = {"id": name, "type": "realm-sync", "enabled": 1, **syncs(state)[name]}
    moment = next_run(str(row["schedule"]), state.clock.now())
    return row | ({"next-run": moment} if moment is not None else {})


@endpoint("GET /cluster/jobs/realm-sync")
def list_syncs(call: Call) -> list[Section]:
    """The realm sync jobs."""
    return [sync_row(call.state, name) for name in syncs(call.state)]


def require_sync(call: Call) -> str:
    """The id of the sync job a path names, or the 500 that there is none."""
    if call.params["id"] not in syncs(call.state):
        raise PveError(500, f"realm-sync job '{call.params['id']}' does not exist")
    return str(call.params["id"])


@endpoint("GET /cluster/jobs/realm-sync/{id}")
def get_sync(call: Call) -> Section:
    """One realm sync job."""
    return sync_row(call.state, require_sync(call))


@endpoint("POST /cluster/jobs/realm-sync/{id}")
def create_sync(call: Call) -> None:
    """Nothing; the job is there."""
    name, realm = call.params["id"], call.params.get("realm", "")
    if name in syncs(call.state):
        raise PveError(500, f"job '{name}' already exists")
    found = call.state.access.realms.get(realm)
    if found is None:
        raise PveError(500, f"domain '{realm}' does not exist")
    if found.type not in ("ldap", "ad"):
        raise PveError(500, f"Cannot sync realm '{realm}'; no such type")
    syncs(call.state)[name] = as_section(call.params, without=("id",))


@endpoint("PUT /cluster/jobs/realm-sync/{id}")
def update_sync(call: Call) -> None:
    """Nothing; the job is as asked."""
    job = syncs(call.state)[require_sync(call)]
    for key in split_list(call.params.get("delete", "")):
        job.pop(key, None)
    job.update(as_section(call.params, without=("id",)))


@endpoint("DELETE /cluster/jobs/realm-sync/{id}")
def delete_sync(call: Call) -> None:
    """Nothing; the job is gone."""
    del syncs(call.state)[require_sync(call)]


# --- vzdump ---------------------------------------------------------------------------------------


@endpoint("GET /nodes/{node}/vzdump/defaults")
def defaults(call: Call) -> dict[str, Any]:
    """What a backup does unless told otherwise."""
    name = call.params.get("storage", "local")
    call.check(f"/storage/{name}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
    storage = require_storage(call.state, name)
    row: dict[str, Any] = {
        "all": 0,
        "bwlimit": 0,
        "compress": "0",
        "fleecing": {"enabled": 0},
        "ionice": 7,
        "lockwait": 180,
        "mailnotification": "always",
        "mode": "snapshot",
        "notification-mode": "auto",
        "performance": {"max-workers": 16, "pbs-entries-max": 1048576},
        "pigz": 0,
        "prune-backups": str(storage.options.get("prune-backups", "keep-all=1")),
        "quiet": 0,
        "remove": 1,
        "stdexcludes": 1,
        "stop": 0,
        "stopwait": 10,
        "storage": name,
        "zstd": 1,
    }
    if call.flavour == "8.4":
        row["notification-policy"] = "always"
    if storage.file_based:
        row["dumpdir"] = f"{storage.path()}/dump"
    if not call.allowed(f"/nodes/{call.node}", "Sys.Audit"):
        row = {key: value for key, value in row.items() if key not in ("dumpdir", "ionice")}
    return row


@endpoint("POST /nodes/{node}/vzdump")
def vzdump(call: Call) -> str:
    """The UPID of a backup of the chosen guests that are on this node, or "OK" when none is."""
    state, node, params = call.state, call.node, call.params
    if params.get("stdout"):
        raise param_error({"stdout": "option is only allowed on the command line interface."})
    if not (call.auth and call.auth.is_root):
        for key in ROOT_ONLY:
            if key in params and key not in ("prune-backups", "fleecing", "performance", "bwlimit"):
                raise param_error({key: "Only root may set this option."})
    chosen = dict(params)
    if "exclude" in chosen and not chosen.get("vmid") and not chosen.get("pool"):
        chosen["all"] = True
    if not params.get("stop"):
        check_selection(chosen)
    if params.get("pool"):
        call.check(f"/pool/{params['pool']}", "Pool.Audit")
    chosen.pop("node", None)
    vmids = covered_by(state, chosen)
    local = [v for v in vmids if v not in state.guests or state.guests[v].node == node]
    if not local and not params.get("all"):
        return "OK"
    name = params.get("storage", "local")
    if "storage" in params:
        call.check(f"/storage/{name}", "Datastore.AllocateSpace")
    permitted = [v for v in local if call.allowed(f"/vms/{v}", "VM.Backup")]

    return begin(state, node, params, local, permitted, user=call.authid)


def begin(
    state: PveState, node: str, params: Mapping[str, Any], local: list[int], permitted: list[int], *, user: str
) -> str:
    """The UPID of a backup of `local`, the guests on this node; of those that are not permitted the log complains."""
    name = str(params.get("storage", "local"))

    async def work(task: TaskContext) -> None:
        words = " ".join(f"--{key} {value}" for key, value in sorted(params.items()) if key not in ("node", "vmid"))
        storage = backup_storage(state, name, node)
        task.log(f"INFO: starting new backup job: vzdump {' '.join(map(str, local))} {words}".rstrip())
        failed = 0
        for vmid in local:
            try:
                if vmid not in permitted:
                    raise TaskError(f"Permission check failed (/vms/{vmid}, VM.Backup)")
                await back_up(state, task, storage, node, vmid, params)
            except (PveError, TaskError) as error:
                failed += 1
                task.log(f"ERROR: Backup of VM {vmid} failed - {str(error).strip()}")
        if failed:
            task.log("INFO: Backup job finished with errors")
            raise TaskError("job errors")
        task.log("INFO: Backup job finished successfully")

    return state.tasks.start("vzdump", str(local[0]) if len(local) == 1 else "", work, node=node, user=user)


UNSAID = {"enabled", "schedule", "repeat-missed", "comment", "type", "id", "node"}
"""What a job says of itself and not to vzdump."""


def run_job(state: PveState, node: str, name: str, job: Mapping[str, Any]) -> None:
    """Start a job's backup on one node, when any of its guests is there; root's scheduler asks nobody."""
    params = {key: value for key, value in job.items() if key not in UNSAID} | {"job-id": name}
    chosen = covered_by(state, {key: value for key, value in job.items() if key != "node"})
    local = [vmid for vmid in chosen if vmid in state.guests and state.guests[vmid].node == node]
    if local or job.get("all"):
        begin(state, node, params, local, local, user="root@pam")


async def live(state: PveState) -> None:
    """Let every node's scheduler look after its jobs."""
    await scheduler.live(state)


def backup_storage(state: PveState, name: str, node: str) -> StorageState:
    """The storage backups go to. Raises TaskError when it cannot hold any."""
    try:
        storage = require_active(state, name, node)
    except PveError as error:
        raise TaskError(f"could not get storage information for '{name}': {error.message.strip()}") from error
    if "backup" not in storage.content:
        why = f"can't use storage '{name}' for backups - wrong content type"
        raise TaskError(f"could not get storage information for '{name}': {why}")
    return storage


async def back_up(
    state: PveState, task: TaskContext, storage: StorageState, node: str, vmid: int, params: Mapping[str, Any]
) -> None:
    """Write one guest's backup to the storage, and prune older ones."""
    guest = state.guests.get(vmid)
    if guest is None:
        raise TaskError(f"unable to find VM '{vmid}'")
    began = state.clock.now()
    start = dt.datetime.fromtimestamp(began, dt.UTC)
    kind = "VM" if guest.kind == "qemu" else "CT"
    mode = params.get("mode", "snapshot") if guest.running else "stop"
    task.log(f"INFO: Starting Backup of VM {vmid} ({guest.kind})")
    task.log(f"INFO: Backup started at {start:%Y-%m-%d %H:%M:%S}")
    task.log(f"INFO: status = {'running' if guest.running else 'stopped'}")
    if guest.lock:
        raise TaskError(f"{kind} is locked ({guest.lock})")
    task.log(f"INFO: backup mode: {mode}")
    task.log("INFO: ionice priority: 7")
    task.log(f"INFO: {kind} Name: {guest.name}")
    rows, size, used = included(guest), 0, 0
    for row in rows:
        volume = find_volume(state, guest.node, row["name"])
        if not row["included"] or volume is None:
            task.log(f"INFO: exclude disk '{row['id']}' '{row['name']}' (backup=no)")
            continue
        task.log(f"INFO: include disk '{row['id']}' '{row['name']}' {format_size(volume.size)}")
        size, used = size + volume.size, used + volume.used
    volid = archive_volid(storage, guest, start, str(params.get("compress", "0")))
    written = max(MIB, int(used * (0.55 if SUFFIX[str(params.get("compress", "0"))] else 1.0)))
    if written > usage(state, storage, node)[2]:
        raise TaskError("vma_queue_write: write error - No space left on device")
    task.log(f"INFO: creating vzdump archive '{volume_path(storage, volid)}'")
    guest.config["lock"] = "backup"
    try:
        if not guest.running and guest.kind == "qemu":
            task.log("INFO: starting kvm to execute backup task")
        task.log(f"INFO: started backup task '{state.dice.uuid(f'vzdump/{guest.vmid}')}'")
        for part in (25, 50, 75, 100):
            await task.sleep(used / COPY_RATE / 4)
            task.log(f"INFO: {part:3}% ({used * part / 100 / 2**30:.1f} GiB of {used / 2**30:.1f} GiB)")
    finally:
        guest.config.pop("lock", None)
    task.log(f"INFO: archive file size: {written / 2**20:.0f}MB")
    notes = params.get("notes-template")
    volume = VolumeState(
        volid,
        "backup",
        archive_format(volid),
        written,
        written,
        int(began),
        vmid=vmid,
        notes=filled(notes, state, guest) if notes else None,
        protected=bool(params.get("protected")),
        data=contents(state, guest),
        bootable=guest.bootable,
    )
    add_volume(state, storage.at(node), volume)
    keep = params.get("prune-backups") or storage.options.get("prune-backups")
    if params.get("remove", True) and keep and parse_keep(str(keep)).get("keep-all") != 1:
        task.log(f"INFO: prune older backups with retention: {keep}")
        gone = [v for v, mark in marks(backups(state, storage, node, vmid=vmid), str(keep)) if mark == "remove"]
        for old in gone:
            task.log(f"INFO: removing backup '{old.volid}'")
            state.volumes.take((storage.at(node), old.volid))
        task.log(f"INFO: pruned {len(gone)} backup(s) not covered by keep-retention policy")
    took = int(state.clock.now() - began)
    task.log(f"INFO: Finished Backup of VM {vmid} ({took // 3600:02}:{took // 60 % 60:02}:{took % 60:02})")
    task.log(f"INFO: Backup finished at {dt.datetime.fromtimestamp(state.clock.now(), dt.UTC):%Y-%m-%d %H:%M:%S}")


def archive_volid(storage: StorageState, guest: GuestState, start: dt.datetime, compress: str) -> str:
    """The volid of a backup that began then."""
    if storage.type == "pbs":
        return (
            f"{storage.storage}:backup/{'vm' if guest.kind == 'qemu' else 'ct'}/{guest.vmid}/{start:%Y-%m-%dT%H:%M:%SZ}"
        )
    extension = ".vma" if guest.kind == "qemu" else ".tar"
    name = f"vzdump-{guest.kind}-{guest.vmid}-{start:%Y_%m_%d-%H_%M_%S}{extension}{SUFFIX[compress]}"
    return f"{storage.storage}:backup/{name}"


def archive_format(volid: str) -> str:
    """The format listings give a backup: its extension without the dot."""
    match = re.search(r"\.((?:vma|tar)(?:\.\w+)?)$", volid)
    return match[1] if match else "pbs-vm"


def filled(template: str, state: PveState, guest: GuestState) -> str:
    """A notes template with its variables filled in."""
    known = {
        "cluster": state.cluster_name or "standalone node",
        "guestname": guest.name,
        "node": guest.node,
        "vmid": str(guest.vmid),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: known.get(m[1], m[0]), template).replace("\\n", "\n")


def contents(state: PveState, guest: GuestState) -> bytes:
    """What an archive keeps of a guest: its configuration and the sizes of its disks."""
    disks = {}
    for row in included(guest):
        volume = find_volume(state, guest.node, row["name"])
        if row["included"] and volume is not None:
            disks[row["id"]] = {"size": volume.size, "used": volume.used, "format": volume.format}
    config = {key: value for key, value in guest.config.items() if key not in ("lock", "parent")}
    return json.dumps({"kind": guest.kind, "config": config, "disks": disks}).encode()


def unpacked(state: PveState, volume: VolumeState) -> dict[str, Any]:
    """What an archive holds; of one a scenario only names, what its guest is like now."""
    if volume.data is not None:
        found: dict[str, Any] = json.loads(volume.data)
        return found
    guest = state.guests.get(volume.vmid or 0)
    if guest is not None:
        now: dict[str, Any] = json.loads(contents(state, guest))
        return now
    kind = "lxc" if "vzdump-lxc" in volume.volid else "qemu"
    return {"kind": kind, "config": {"name": f"restored-{volume.vmid}", "memory": "2048"}, "disks": {}}


@endpoint("GET /nodes/{node}/vzdump/extractconfig")
def extract_config(call: Call) -> str:
    """The configuration an archive holds, as the text of its file."""
    volid = call.params["volume"]
    storage = require_storage(call.state, volid.partition(":")[0])
    if not re.match(r"[^:]+:backup/", volid):
        raise PveError(500, f"unable to parse volume filename '{volid.rpartition('/')[2]}'")
    volume = find_volume(call.state, call.node, volid)
    if volume is None:
        raise PveError(500, f"ERROR: Backup file '{volume_path(storage, volid)}' does not exist")
    check_volume_access(call, volume)
    config = unpacked(call.state, volume)["config"]
    return "".join(f"{key}: {value}\n" for key, value in sorted(config.items()))


# --- pruning --------------------------------------------------------------------------------------


def backups(
    state: PveState, storage: StorageState, node: str, *, vmid: int | None = None, kind: str | None = None
) -> list[VolumeState]:
    """The backups on a storage, newest first."""
    found = [v for v in volumes_on(state, storage, node) if v.content == "backup"]
    found = [v for v in found if vmid in (None, v.vmid) and kind in (None, guest_kind(v))]
    return sorted(found, key=lambda v: v.ctime, reverse=True)


def guest_kind(volume: VolumeState) -> str:
    """The kind of guest a backup is of."""
    return "lxc" if re.search(r"vzdump-lxc|backup/ct/", volume.volid) else "qemu"


def marks(volumes: Iterable[VolumeState], keep: str) -> list[tuple[VolumeState, str]]:
    """Each backup with what a retention does to it: keep, remove, or leave it as it is protected or renamed."""
    counts = parse_keep(keep)
    groups: dict[tuple[str, int | None], list[VolumeState]] = {}
    found: list[tuple[VolumeState, str]] = []
    for volume in volumes:
        if volume.protected:
            found.append((volume, "protected"))
        elif not re.search(r"-\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d\.|T\d\d:\d\d:\d\dZ$", volume.volid):
            found.append((volume, "renamed"))
        else:
            groups.setdefault((guest_kind(volume), volume.vmid), []).append(volume)
    for group in groups.values():
        kept = kept_of(group, counts)
        found += [(volume, "keep" if volume.volid in kept else "remove") for volume in group]
    return found


def kept_of(group: list[VolumeState], counts: Mapping[str, int]) -> set[str]:
    """The volids of one guest's backups, newest first, that a retention keeps."""
    if counts.get("keep-all") or not any(counts.values()):
        return {volume.volid for volume in group}
    kept = {volume.volid for volume in group[: counts.get("keep-last", 0)]}
    for key, pattern in PERIODS.items():
        periods: dict[str, None] = {}
        covered = {f"{dt.datetime.fromtimestamp(v.ctime, dt.UTC):{pattern}}" for v in group if v.volid in kept}
        for volume in group:
            period = f"{dt.datetime.fromtimestamp(volume.ctime, dt.UTC):{pattern}}"
            if period in covered or period in periods:
                continue
            if len(periods) >= counts.get(key, 0):
                break
            periods[period] = None
            kept.add(volume.volid)
    return kept


def selected(call: Call, storage: StorageState) -> list[tuple[VolumeState, str]]:
    """The backups a prune request is about, marked."""
    keep = call.params.get("prune-backups") or str(storage.options.get("prune-backups", "keep-all=1"))
    chosen = backups(call.state, storage, call.node, vmid=call.params.get("vmid"), kind=call.params.get("type"))
    return marks(chosen, keep)


@endpoint("GET /nodes/{node}/storage/{storage}/prunebackups")
def dry_prune(call: Call) -> list[dict[str, Any]]:
    """What a retention would do to each backup."""
    storage = require_active(call.state, call.params["storage"], call.node)
    return [
        {"volid": v.volid, "ctime": v.ctime, "type": guest_kind(v), "vmid": v.vmid, "mark": mark}
        for v, mark in selected(call, storage)
        if call.allowed(f"/storage/{storage.storage}", "Datastore.Allocate")
        or call.allowed(f"/vms/{v.vmid}", "VM.Backup")
    ]


@endpoint("DELETE /nodes/{node}/storage/{storage}/prunebackups")
def prune(call: Call) -> str:
    """The UPID of the removal of the backups a retention does not keep."""
    state, node, name, vmid = call.state, call.node, call.params["storage"], call.params.get("vmid")
    if not call.allowed(f"/storage/{name}", "Datastore.Allocate"):
        call.check(f"/storage/{name}", "Datastore.AllocateSpace")
        if vmid is None:
            raise PveError(403, f"Permission check failed (/storage/{name}, Datastore.Allocate)")
        call.check(f"/vms/{vmid}", "VM.Backup")
    storage = require_active(state, name, node)

    async def work(task: TaskContext) -> None:
        for volume, mark in selected(call, storage):
            task.log(f"{mark:10} {guest_kind(volume):6} {volume.volid}")
            if mark == "remove":
                await task.sleep(0.5)
                state.volumes.take((storage.at(node), volume.volid))

    return call.task("prunebackups", f"{vmid}@{name}" if vmid else name, work)


# --- restore --------------------------------------------------------------------------------------


def restore_vm(call: Call, options: Mapping[str, Any]) -> str:
    """The UPID of a VM's restore from the archive a creation names; `options` override what the archive holds."""
    state, node, vmid, params = call.state, call.node, call.params["vmid"], call.params
    volid, refused = params["archive"], f"unable to restore VM {vmid} -"
    storage = require_active(state, volid.partition(":")[0], node)
    volume = find_volume(state, node, volid)
    if volume is None or volume.content != "backup":
        raise PveError(500, f"{refused} volume '{volid}' does not exist" if volume is None else
                       f"unable to parse volume filename '{volid.rpartition('/')[2]}'")  # fmt: skip
    check_volume_access(call, volume)
    archive = unpacked(state, volume)
    if archive["kind"] != "qemu":
        raise PveError(500, f"{refused} archive '{volid}' is no VM backup")
    if params.get("storage"):
        call.check(f"/storage/{params['storage']}", "Datastore.AllocateSpace")
        if "images" not in require_storage(state, params["storage"]).content:
            raise param_error({"storage": f"storage '{params['storage']}' does not support vm images"})
    old = state.guests.get(vmid)
    if old is not None and not params.get("force"):
        raise PveError(500, f"{refused} VM {vmid} already exists on node '{old.node}'")
    if old is not None and (old.running or old.node != node or old.lock):
        why = (
            "vm is running" if old.running else f"VM is locked ({old.lock})" if old.lock else f"exists on '{old.node}'"
        )
        raise PveError(500, f"{refused} {why}")
    guest = old or newborn(state, vmid, node, lock="create")
    guest.config = {**guest.config, "lock": "create"}
    state.guests[vmid] = guest

    async def work(task: TaskContext) -> None:
        made: list[str] = []
        path = volume_path(storage, volid)
        task.log(f"restore vma archive: zstd -q -d -c {path} | vma extract -v -r /var/tmp/vzdumptmp.fifo - /var/tmp")
        try:
            config = await restored_config(state, guest, archive, task, made, params.get("storage"))
        except (PveError, TaskError) as error:
            free_volumes(state, node, made)
            if old is None:
                del state.guests[vmid]
            else:
                guest.config.pop("lock", None)
            raise TaskError(f"{refused} {error}") from error
        if old is not None:
            free_volumes(state, node, [v for v in owned_disks(guest) if v not in made])
            guest.snapshots, guest.parent = {}, None
        config |= {key: stored(key, value) for key, value in options.items()}
        if params.get("unique"):
            config |= identity(state, vmid)
            for key in [key for key in config if re.fullmatch(r"net\d+", key)]:
                net = {k: v for k, v in parse_net(str(config[key])).items() if k != "macaddr"}
                config[key] = with_mac(state, guest, key, print_net(net))
        guest.config, guest.bootable = config, volume.bootable
        guest.pending, guest.pending_delete = {}, []
        join_pool(state, vmid, params.get("pool"))
        if params.get("start"):
            from .qemu.power import boot  # power imports the configuration, which imports this on demand

            await boot(state, guest, task)

    return call.task("qmrestore", vmid, work)


def owned_disks(guest: GuestState) -> list[str]:
    """The volumes of a guest that a restore replaces."""
    return [
        options["file"]
        for _, options in drives(guest.config)
        if ":" in options.get("file", "") and not is_cdrom(options)
    ]


async def restored_config(
    state: PveState,
    guest: GuestState,
    archive: Mapping[str, Any],
    task: TaskContext,
    made: list[str],
    target: str | None,
) -> dict[str, Any]:
    """The archive's configuration, with its disks made anew."""
    config = dict(archive["config"])
    for key, options in list(drives(config)):
        if key not in archive["disks"]:
            if not is_cdrom(options):
                config.pop(key)
            continue
        disk = archive["disks"][key]
        name = target or options["file"].partition(":")[0]
        storage = require_active(state, name, guest.node)
        fmt = disk["format"] if storage.file_based else "raw"
        size = int(disk["size"])
        disk_name = next_disk_name(state, storage, guest.node, guest.vmid, fmt)
        if is_cloud_init(options):
            disk_name = f"vm-{guest.vmid}-cloudinit" + (f".{fmt}" if storage.file_based else "")
        volume = allocate(state, guest.node, storage, guest.vmid, size, fmt=fmt, name=disk_name, used=int(disk["used"]))
        made.append(volume.volid)
        task.log(f"new volume ID is '{volume.volid}'")
        task.log(f"map 'drive-{key}' to '{volume_path(storage, volume.volid)}' (write zeros = 1)")
        config[key] = print_options({**options, "file": volume.volid, "size": format_size(size)})
        for part in (50, 100):
            await task.sleep(int(disk["used"]) / COPY_RATE / 2)
            task.log(f"progress {part}% (read {size * part // 100} bytes, duration {part // 10} sec)")
    for key in [key for key in config if key.startswith("unused")]:
        del config[key]
    return config
