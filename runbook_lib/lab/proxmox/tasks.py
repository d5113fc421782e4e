"""Endpoints of tasks: /nodes/{node}/tasks. What runs them is `worker`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .quorum import quorate
from .routing import Boolean, Call, Integer, PveError, String, param_error, route, split_list
from .worker import TaskState, parse_upid

if TYPE_CHECKING:
    from .state import PveState


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill the task history from a scenario's `tasks:`, newest last; `ago` and `took` are seconds."""
    now = state.clock.now()
    for entry in section.get("tasks") or ():
        began = now - float(entry.get("ago", 3600))
        task = state.tasks.new(
            entry["type"],
            str(entry.get("id", "")),
            node=entry.get("node", state.local_node),
            user=entry.get("user", "root@pam"),
            starttime=began,
        )
        for line in entry.get("log") or ():
            task.log.append(str(line))
        state.tasks.finish(task, entry.get("status", "OK"), endtime=began + float(entry.get("took", 2)))


async def finished_within(state: PveState, upid: str, seconds: float) -> str | None:
    """The exit status of a task that ends within `seconds` of the lab's time; None when it still runs then."""
    deadline = state.clock.elapsed() + seconds
    while True:
        task = state.tasks.get(upid)
        if task is None or not task.running:
            return task.exitstatus if task else "OK"
        if state.clock.elapsed() >= deadline or state.clock.scale == 0:
            return None
        await state.clock.sleep(0.5)


def task_user(task: TaskState) -> str:
    """The user behind a task: tokens count as their owner."""
    return task.user.partition("!")[0]


def may_see(call: Call, task: TaskState) -> bool:
    """Whether the caller started the task or may audit the node."""
    if call.auth is not None and task_user(task) == call.auth.user:
        return True
    return call.allowed(f"/nodes/{task.node}", "Sys.Audit")


def identity(task: TaskState) -> dict[str, Any]:
    """What every row about a task carries."""
    row: dict[str, Any] = {
        "upid": task.upid,
        "node": task.node,
        "pid": task.pid,
        "pstart": task.pstart,
        "starttime": task.starttime,
        "type": task.type,
        "id": task.id,
        "user": task_user(task),
    }
    if "!" in task.user:
        row["tokenid"] = task.user.partition("!")[2]
    return row


def status_kind(status: str | None) -> str:
    """Which of ok, warning, error, unknown an exit status counts as."""
    if status is None:
        return "unknown"
    if status == "OK":
        return "ok"
    return "warning" if status.startswith("WARNINGS: ") else "error"


@route(
    "GET",
    "/nodes/{node}/tasks",
    params={
        "start": Integer(optional=True, minimum=0),
        "limit": Integer(optional=True, minimum=0),
        "userfilter": String(optional=True),
        "typefilter": String(optional=True),
        "vmid": Integer(optional=True, format="pve-vmid", minimum=100, maximum=999999999),
        "errors": Boolean(optional=True),
        "source": String(optional=True, enum=("archive", "active", "all")),
        "since": Integer(optional=True),
        "until": Integer(optional=True),
        "statusfilter": String(optional=True, format="pve-task-status-type-list"),
    },
    permission="any",
)
def list_tasks(call: Call) -> list[dict[str, Any]]:
    """The node's finished (or active) tasks, newest first; `total` is the number before paging."""
    params = call.params
    source = params.get("source", "archive")
    kinds = {kind.lower() for kind in split_list(params.get("statusfilter", ""))}
    rows = []
    # the archive is written as tasks end
    ended = sorted(call.state.tasks, key=lambda task: task.endtime or 2**40)
    for task in reversed(ended):
        if task.node != call.node or not may_see(call, task):
            continue
        if (task.running and source == "archive") or (not task.running and source == "active"):
            continue
        if "userfilter" in params and params["userfilter"].lower() not in task.user.lower():
            continue
        if "typefilter" in params and task.type != params["typefilter"]:
            continue
        # "101@local" of an imgdel belongs to guest 101
        if "vmid" in params and not re.fullmatch(rf"{params['vmid']}(@.*)?", task.id):
            continue
        if params.get("errors") and (task.running or status_kind(task.exitstatus) == "ok"):
            continue
        if task.starttime < params.get("since", 0) or task.starttime > params.get("until", 2**40):
            continue
        if kinds and status_kind(task.exitstatus) not in kinds:
            continue
        row = identity(task)
        if task.running:
            row["status"] = "RUNNING"
        else:
            row |= {"endtime": task.endtime, "status": task.exitstatus}
        rows.append(row)
    call.extra["total"] = len(rows)
    start, limit = params.get("start", 0), params.get("limit", 50)
    return rows[start : start + limit] if limit else rows[start:]


def find_task(call: Call) -> TaskState:
    """The task a path names. Raises 400 as a real server does for a bad or unknown UPID."""
    upid = call.params["upid"]
    parsed = parse_upid(upid)
    if parsed is None:
        raise param_error({"upid": "unable to parse worker upid"})
    task = call.state.tasks.get(upid)
    if task is None or task.node != call.node:
        raise param_error({"upid": "no such task"})
    return task


def check_reader(call: Call, task: TaskState) -> None:
    """Nothing, or 403 when the task is someone else's."""
    if call.auth is None or task_user(task) != call.auth.user:
        call.check(f"/nodes/{task.node}", "Sys.Audit")


@route("GET", "/nodes/{node}/tasks/{upid}", permission="any")
def task_index(call: Call) -> list[dict[str, str]]:
    """The names below one task."""
    return [{"name": "log"}, {"name": "status"}]


@route("GET", "/nodes/{node}/tasks/{upid}/status", permission="any")
def task_status(call: Call) -> dict[str, Any]:
    """Whether the task runs, and how it ended."""
    task = find_task(call)
    check_reader(call, task)
    row = {**identity(task), "status": "running" if task.running else "stopped"}
    if not task.running:
        row["exitstatus"] = task.exitstatus
    return row


@route(
    "GET",
    "/nodes/{node}/tasks/{upid}/log",
    params={
        "start": Integer(optional=True, minimum=0),
        "limit": Integer(optional=True, minimum=0),
        "download": Boolean(optional=True),
    },
    permission="any",
)
def task_log(call: Call) -> Any:
    """A page of the task's log; `total` is the number of lines."""
    parsed = parse_upid(call.params["upid"])
    if parsed is None:
        raise param_error({"upid": "unable to parse worker upid"})
    task = call.state.tasks.get(call.params["upid"])
    if task is None:
        if call.auth is None or parsed[3].partition("!")[0] != call.auth.user:
            call.check(f"/nodes/{call.node}", "Sys.Audit")
        call.extra["total"] = 1
        return {"n": 1, "t": "unable to open file - No such file or directory"}
    check_reader(call, task)
    lines = task.log or ["no content"]
    call.extra["total"] = len(lines)
    start, limit = call.params.get("start", 0), call.params.get("limit", 50)
    page = lines[start : start + limit] if limit else lines[start:]
    return [{"n": start + number, "t": line} for number, line in enumerate(page, 1)]


@route("DELETE", "/nodes/{node}/tasks/{upid}", permission="any")
def stop_task(call: Call) -> None:
    """Nothing; the task is interrupted."""
    task = find_task(call)
    if call.auth is None or task_user(task) != call.auth.user:
        call.check(f"/nodes/{task.node}", "Sys.Modify")
    call.state.tasks.stop(task.upid)


@route("GET", "/cluster/tasks", permission="any")
def cluster_tasks(call: Call) -> list[dict[str, Any]]:
    """The last tasks of the whole cluster: active ones first, then the newest."""
    rows = []
    for task in reversed(list(call.state.tasks)):
        if not may_see(call, task):
            continue
        # an offline node has nothing new to tell; what it told before stays
        row: dict[str, Any] = {
            "upid": task.upid,
            "node": task.node,
            "starttime": task.starttime,
            "type": task.type,
            "id": task.id,
            "user": task.user,
        }
        if task.running:
            row |= {"saved": "0", "pid": task.pid}
        else:
            row |= {"saved": "1", "endtime": task.endtime, "status": task.exitstatus}
        rows.append(row)
    rows.sort(key=lambda row: ("endtime" in row, -row["starttime"]))
    return rows[:25]


def require_writable(state: PveState) -> None:
    """Nothing, or the 500 of a guest's creation in a cluster that has lost quorum."""
    if not quorate(state):
        raise PveError(500, "cluster not ready - no quorum?")
