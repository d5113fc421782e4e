"""High availability: resources, groups (8) and rules (9), and the manager that keeps guests where they should be.

The manager is one function, `manage`, that looks at everything and does what is due; `live` calls it again and
again in the lab's time. A node that goes silent is fenced after a minute, and two minutes after it was last heard
its guests start elsewhere, as with the vendor's software watchdog.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .declared import declared
from .declared.ha import TABLE
from .qemu.guest import GuestState
from .quorum import quorate, require_quorum
from .routing import ROUTER, AuthId, Call, PveError, split_list
from .schema import format_check
from .sections import Section, Sections, check_digest, digest_of, edit, shown, stored
from .worker import TaskContext

if TYPE_CHECKING:
    from .state import PveState

endpoint = declared(TABLE)

TICK_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""How long a node may be silent before it is fenced."""
FENCED_SECONDS = 120.0
"""How long after its last word a node is surely off, so that its guests may start elsewhere."""
RESOURCE_OPTIONS = ("state", "group", "max_restart", "max_relocate", "failback", "comment")
MIGRATED = "ha groups have been migrated to rules"


def load(state: PveState, section: Mapping[str, Any]) -> None:
    """Fill HA from a scenario's `ha:` — resources by sid, groups and rules by name."""
    given = section.get("ha") or {}
    area = ha(state)
    for sid, entry in (given.get("resources") or {}).items():
        area["resources"][sid] = {"type": sid.partition(":")[0], **(entry or {})}
    area["groups"] = {name: {"type": "group", **entry} for name, entry in (given.get("groups") or {}).items()}
    area["rules"] = {name: dict(entry) for name, entry in (given.get("rules") or {}).items()}
    for sid in area["resources"]:
        if guest := guest_of(state, sid):
            state_word = "started" if guest.running else "stopped"
            area["services"][sid] = {"node": guest.node, "state": state_word, "failed": 0, "tried": []}


def ha(state: PveState) -> dict[str, Any]:
    """Everything HA knows: what is configured, and what the manager thinks of services and nodes."""
    area: dict[str, Any] = state.areas.setdefault("ha", {})
    for key in ("resources", "groups", "rules", "services", "nodes", "silent"):
        area.setdefault(key, {})
    area.setdefault("commands", [])
    area.setdefault("armed", True)
    return area


def resources(state: PveState) -> Sections:
    """The configured resources, by sid."""
    found: Sections = ha(state)["resources"]
    return found


@format_check("pve-ha-resource-or-vm-id")
def _sid_or_vmid(value: str) -> None:
    if not re.fullmatch(r"[a-z]+:\S+|\d+", value):
        raise ValueError("value does not look like a valid ha resource id\n")


@format_check("pve-ha-resource-id")
def _sid(value: str) -> None:
    if not re.fullmatch(r"[a-z]+:\S+", value):
        raise ValueError("value does not look like a valid ha resource id\n")


def _node_check(name: str) -> None:
    @format_check(name)
    def check(value: str) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9\-]*[a-zA-Z0-9])?(:\d+)?", value):
            raise ValueError(f"value does not look like a valid {name[4:].replace('-', ' ')}\n")


for _name in ("pve-ha-group-node", "pve-ha-node"):
    _node_check(_name)


def full_sid(state: PveState, text: str) -> str:
    """`vm:100` of "vm:100" or "100". Raises 500 for a number no guest has."""
    if not text.isdigit():
        return text
    guest = state.guests.get(int(text))
    if guest is None:
        raise PveError(500, f"unable do add resource - VM/CT {text} does not exist")
    return f"{'vm' if guest.kind == 'qemu' else 'ct'}:{text}"


def guest_of(state: PveState, sid: str) -> GuestState | None:
    """The guest of a resource, None when it is gone."""
    name = sid.partition(":")[2]
    return state.guests.get(int(name)) if name.isdigit() else None


def managed(state: PveState, sid: str) -> bool:
    """Whether HA looks after it; an ignored resource is as good as none."""
    return sid in resources(state) and resources(state)[sid].get("state") != "ignored"


def require_managed(state: PveState, sid: str) -> None:
    """Nothing, or the 500 of a resource HA does not know."""
    if not managed(state, sid):
        raise PveError(500, f"resource '{sid}' is not HA managed")


def check_error_state(state: PveState, sid: str, wanted: str | None = None) -> None:
    """Nothing, or the 500 of a service in error state, which wants to be disabled first."""
    if ha(state)["services"].get(sid, {}).get("state") == "error" and wanted != "disabled":
        raise PveError(500, f"service '{sid}' in error state, must be disabled and fixed first")


# --- resources ------------------------------------------------------------------------------------


@endpoint("GET /cluster/ha")
def index(call: Call) -> list[dict[str, str]]:
    """The names below ha."""
    return [{"id": n} for n in ["status", "resources", "groups", *([] if call.flavour == "8.4" else ["rules"])]]


@endpoint("GET /cluster/ha/resources")
def list_resources(call: Call) -> list[Section]:
    """The configured resources."""
    wanted, rows = call.params.get("type"), []
    for sid in resources(call.state):
        row = shown(resources(call.state), "sid", sid)
        if wanted in (None, row["type"]):
            rows.append(row)
    return rows


@endpoint("GET /cluster/ha/resources/{sid}")
def get_resource(call: Call) -> Section:
    """One configured resource."""
    sid = full_sid(call.state, call.params["sid"])
    if sid not in resources(call.state):
        raise PveError(500, f"no such resource '{sid}'")
    return shown(resources(call.state), "sid", sid)


def check_group(call: Call) -> None:
    """Nothing, or the refusal of a group that is not there, or not any more."""
    group = call.params.get("group")
    if group and groups_migrated(call.state):
        raise PveError(500, f"invalid parameter 'group': {MIGRATED}")
    if group and group not in ha(call.state)["groups"]:
        raise PveError(500, f"HA group '{group}' does not exist")


@endpoint("POST /cluster/ha/resources")
def create_resource(call: Call) -> None:
    """Nothing; the guest is under HA."""
    state, params = call.state, call.params
    require_quorum(state, "cluster not ready - no quorum?")
    sid = full_sid(state, params["sid"])
    kind, _, name = sid.partition(":")
    if params.get("type") not in (None, kind):
        raise PveError(500, "types does not match")
    if kind not in ("vm", "ct"):
        raise PveError(500, f"unknown resource type '{kind}'")
    if not re.fullmatch(r"[1-9][0-9]+", name):
        raise PveError(500, "invalid VMID" if kind == "vm" else "invalid CTID")
    guest = guest_of(state, sid)
    if guest is None or (guest.kind == "qemu") != (kind == "vm"):
        raise PveError(500, f"resource '{sid}' does not exist in cluster")
    check_group(call)
    if sid in resources(state):
        raise PveError(500, f"create resource failed: resource ID '{sid}' already defined")
    resources(state)[sid] = {"type": kind, **stored(params, without=("sid", "type"))}


@endpoint("PUT /cluster/ha/resources/{sid}")
def update_resource(call: Call) -> None:
    """Nothing; the resource is as asked, and the manager will see to it."""
    state, params = call.state, call.params
    sid = full_sid(state, params["sid"])
    check_group(call)
    check_error_state(state, sid, params.get("state"))
    require_quorum(state, "update resource failed: cfs-lock 'domain-ha' error: no quorum!")
    check_digest(params.get("digest"), resources(state))
    if sid not in resources(state):
        raise PveError(500, f"update resource failed: no such resource '{sid}'")
    edit(resources(state)[sid], params, options=RESOURCE_OPTIONS, without=("sid",), failed="update resource failed")


@endpoint("DELETE /cluster/ha/resources/{sid}")
def delete_resource(call: Call) -> None:
    """Nothing; HA lets go of the guest, which goes on running."""
    state = call.state
    sid = full_sid(state, call.params["sid"])
    require_managed(state, sid)
    require_quorum(state, "delete resource failed: cfs-lock 'domain-ha' error: no quorum!")
    del resources(state)[sid]
    ha(state)["services"].pop(sid, None)
    if call.params.get("purge", True):
        rules: Sections = ha(state)["rules"]
        for name in list(rules):
            left = [each for each in split_list(rules[name]["resources"]) if each != sid]
            rules[name]["resources"] = ",".join(left)
            if not left or (len(left) < 2 and rules[name]["type"] == "resource-affinity"):
                del rules[name]


def _move(call: Call, how: str) -> dict[str, Any] | None:
    state, target = call.state, call.params["node"]
    sid = full_sid(state, call.params["sid"])
    require_managed(state, sid)
    check_error_state(state, sid)
    require_quorum(state, "cfs-lock 'domain-ha' error: no quorum!")
    if call.flavour == "8.4":
        ha(state)["commands"].append((how, sid, target))
        return None
    others = companions(state, sid)
    for each in [sid, *others]:
        ha(state)["commands"].append((how, each, target))
    row: dict[str, Any] = {"sid": sid, "requested-node": target}
    if others:
        row["comigrated-resources"] = others
    return row


@endpoint("POST /cluster/ha/resources/{sid}/migrate")
def migrate(call: Call) -> dict[str, Any] | None:
    """Nothing on 8, what was asked on 9: the manager will migrate the guest, running if it runs."""
    return _move(call, "migrate")


@endpoint("POST /cluster/ha/resources/{sid}/relocate")
def relocate(call: Call) -> dict[str, Any] | None:
    """Nothing on 8, what was asked on 9: the manager will stop the guest and start it there."""
    return _move(call, "relocate")


# --- groups of 8 ----------------------------------------------------------------------------------


def groups_migrated(state: PveState) -> bool:
    """Whether groups have become rules, as on every cluster of 9."""
    return state.flavour != "8.4" and state.cluster_name is not None


def refuse_migrated(state: PveState, doing: str) -> None:
    """Nothing, or the 500 of a group endpoint where there are rules."""
    if groups_migrated(state):
        raise PveError(500, f"cannot {doing}: {MIGRATED}")


@endpoint("GET /cluster/ha/groups")
def list_groups(call: Call) -> list[Section]:
    """The HA groups of 8."""
    refuse_migrated(call.state, "index groups")
    return [shown(ha(call.state)["groups"], "group", name) for name in ha(call.state)["groups"]]


@endpoint("GET /cluster/ha/groups/{group}")
def get_group(call: Call) -> Section:
    """One HA group."""
    refuse_migrated(call.state, "get group")
    if call.params["group"] not in ha(call.state)["groups"]:
        raise PveError(500, f"no such ha group '{call.params['group']}'")
    return shown(ha(call.state)["groups"], "group", call.params["group"])


@endpoint("POST /cluster/ha/groups")
def create_group(call: Call) -> None:
    """Nothing; the group is there."""
    refuse_migrated(call.state, "create group")
    require_quorum(call.state, "cluster not ready - no quorum?")
    name, groups = call.params["group"], ha(call.state)["groups"]
    if name in groups:
        raise PveError(500, f"create ha group failed: ha group ID '{name}' already defined")
    groups[name] = {"type": "group", **stored(call.params, without=("group", "type"))}


@endpoint("PUT /cluster/ha/groups/{group}")
def update_group(call: Call) -> None:
    """Nothing; the group is as asked."""
    refuse_migrated(call.state, "update group")
    name, groups = call.params["group"], ha(call.state)["groups"]
    check_digest(call.params.get("digest"), groups)
    if name not in groups:
        raise PveError(500, f"update ha group failed: no such ha group '{name}'")
    edit(
        groups[name],
        call.params,
        options=("nodes", "restricted", "nofailback", "comment"),
        required=("nodes",),
        without=("group",),
        failed="update ha group failed",
    )


@endpoint("DELETE /cluster/ha/groups/{group}")
def delete_group(call: Call) -> None:
    """Nothing; the group, which no resource may be in, is gone."""
    refuse_migrated(call.state, "delete group")
    name = call.params["group"]
    for sid, resource in resources(call.state).items():
        if resource.get("group") == name:
            raise PveError(500, f"delete ha group failed: ha group is used by service '{sid}'")
    ha(call.state)["groups"].pop(name, None)


# --- rules of 9 -----------------------------------------------------------------------------------


def rule_row(state: PveState, name: str) -> Section:
    """One rule as answers hold it."""
    rules = ha(state)["rules"]
    row = shown(rules, "rule", name) | {"order": list(rules).index(name) + 1}
    if row["type"] == "node-affinity":
        row.setdefault("strict", 0)
    return row


@endpoint("GET /cluster/ha/rules")
def list_rules(call: Call) -> list[Section]:
    """The rules, in order."""
    kind, sid = call.params.get("type"), call.params.get("resource")
    rows = [rule_row(call.state, name) for name in ha(call.state)["rules"]]
    return [r for r in rows if kind in (None, r["type"]) and (sid is None or sid in split_list(r["resources"]))]


@endpoint("GET /cluster/ha/rules/{rule}")
def get_rule(call: Call) -> Section:
    """One rule."""
    if call.params["rule"] not in ha(call.state)["rules"]:
        raise PveError(500, f"no such ha rule '{call.params['rule']}'")
    return rule_row(call.state, call.params["rule"])


def check_rule(state: PveState, rule: Section, *, failed: str) -> None:
    """Nothing, or the refusal of a rule about guests or nodes that are not there."""
    unknown = [sid for sid in sorted(split_list(rule.get("resources", ""))) if sid not in resources(state)]
    if unknown:
        raise PveError(500, f"{failed}: cannot use unmanaged resource(s) {', '.join(unknown)}.")
    nodes = sorted(part.partition(":")[0] for part in split_list(rule.get("nodes", "")))
    missing = [name for name in nodes if name not in state.nodes]
    if missing:
        raise PveError(500, f"{failed}: cannot use non-existant node(s) {', '.join(missing)}.")


def check_feasible(state: PveState, name: str, rule: Section) -> None:
    """Nothing, or the 400 of a rule that cannot hold beside the others."""
    others = {key: each for key, each in ha(state)["rules"].items() if key != name and not each.get("disable")}
    members = set(split_list(rule["resources"]))
    if rule["type"] == "resource-affinity":
        if len(members) < 2:
            raise invalid(name, {"resources": "rule is ineffective as there are less than two resources"})
        for each in others.values():
            shared = members & set(split_list(each["resources"]))
            if each["type"] == rule["type"] and len(shared) > 1 and each.get("affinity") != rule.get("affinity"):
                raise invalid(name, {"resources": "rule shares two or more resources with an opposite rule"})
    elif any(each["type"] == rule["type"] and members & set(split_list(each["resources"])) for each in others.values()):
        raise invalid(name, {"resources": "resources are already used in another node affinity rule"})


def invalid(name: str, errors: Mapping[str, str]) -> PveError:
    """The 400 of an unfeasible rule."""
    return PveError(400, f"Rule '{name}' is invalid.", errors)


@endpoint("POST /cluster/ha/rules")
def create_rule(call: Call) -> None:
    """Nothing; the rule is in force."""
    state, params = call.state, call.params
    require_quorum(state, "cluster not ready - no quorum?")
    name, kind = params["rule"], params["type"]
    for key in ("nodes",) if kind == "node-affinity" else ("affinity",):
        if key not in params:
            raise PveError(400, "Parameter verification failed.", {key: "property is missing and it is not optional"})
    if name in ha(state)["rules"]:
        raise PveError(500, f"create ha rule failed: HA rule '{name}' already defined")
    rule = stored(params, without=("rule",))
    check_rule(state, rule, failed="create ha rule failed")
    check_feasible(state, name, rule)
    ha(state)["rules"][name] = rule


@endpoint("PUT /cluster/ha/rules/{rule}")
def update_rule(call: Call) -> None:
    """Nothing; the rule is as asked."""
    state, name, failed = call.state, call.params["rule"], "update HA rules failed"
    rules: Sections = ha(state)["rules"]
    check_digest(call.params.get("digest"), rules)
    if name not in rules:
        raise PveError(500, f"{failed}: HA rule '{name}' does not exist")
    rule = dict(rules[name])
    own = ("nodes", "strict") if rule["type"] == "node-affinity" else ("affinity",)
    required = ("resources", own[0])
    given = {key: value for key, value in call.params.items() if key != "type"}
    edit(rule, given, options=("resources", "disable", "comment", *own), required=required, without=("rule",),
         failed=failed)  # fmt: skip
    check_rule(state, rule, failed=failed)
    check_feasible(state, name, rule)
    rules[name] = rule


@endpoint("DELETE /cluster/ha/rules/{rule}")
def delete_rule(call: Call) -> None:
    """Nothing; the rule is gone, if there was one."""
    require_quorum(call.state, "delete ha rule failed: cfs-lock 'domain-ha' error: no quorum!")
    ha(call.state)["rules"].pop(call.params["rule"], None)


# --- status ---------------------------------------------------------------------------------------


@endpoint("GET /cluster/ha/status")
def status_index(call: Call) -> list[dict[str, str]]:
    """The names below status."""
    more = [] if call.flavour == "8.4" else ["disarm-ha", "arm-ha"]
    return [{"name": name} for name in ["current", "manager_status", *more]]


def verbose_state(state: PveState, sid: str) -> str:
    """What people read of a service: queued, starting, started, stopping, stopped, fence, recovery, error …"""
    resource, service = resources(state)[sid], ha(state)["services"].get(sid)
    wanted = request_state(resource)
    if wanted == "ignored":
        return "ignored"
    if service is None:
        return "queued"
    now, guest = str(service["state"]), guest_of(state, sid)
    if now == "stopped":
        return {"started": "starting", "disabled": "disabled"}.get(wanted, now)
    if now == "started" and wanted in ("stopped", "disabled"):
        return "stopping"
    if now == "started" and guest is not None and not guest.running:
        return "starting"
    return "clearing error flag" if now == "error" and wanted == "disabled" else now


def request_state(resource: Mapping[str, Any]) -> str:
    """The state asked for: "started" unless something else is; "enabled" is its old name."""
    word = str(resource.get("state", "started"))
    return "started" if word == "enabled" else word


def stamp(moment: float) -> str:
    """A time as Perl's localtime writes it."""
    return f"{dt.datetime.fromtimestamp(moment, dt.UTC):%a %b %e %H:%M:%S %Y}"


def active_on(state: PveState, node: str) -> bool:
    """Whether the node has guests HA looks after."""
    return any(each["node"] == node for each in ha(state)["services"].values())


@endpoint("GET /cluster/ha/status/current")
def current(call: Call) -> list[dict[str, Any]]:
    """Quorum, fencing (9), the master, each node's local manager, each service."""
    state, local, now = call.state, call.state.local_node, call.clock.now()
    has_quorum, known = quorate(state), resources(state)
    rows: list[dict[str, Any]] = [
        {
            "id": "quorum",
            "type": "quorum",
            "node": local,
            "quorate": int(has_quorum),
            "status": "OK" if has_quorum else f"No quorum on node '{local}'!",
        }
    ]
    if call.flavour != "8.4":
        word = ("armed" if known else "standby") if ha(state)["armed"] else "disarmed"
        text = word if word != "standby" else "standby (CRM watchdog standby)"
        rows.append({"id": "fencing", "type": "fencing", "node": local, "status": text, "armed-state": word})
    if not known:
        return rows
    head, told = master(state), int(now - now % TICK_SECONDS)
    text = f"{head} ({'active' if has_quorum else 'old timestamp - dead?'}, {stamp(told)})"
    rows.append({"id": "master", "type": "master", "node": head, "status": text, "timestamp": told})
    for node in sorted(state.nodes.values(), key=lambda each: each.name):
        heard = told if node.online else int(node.lost_at or now - 600)
        word = "active" if active_on(state, node.name) else "idle"
        if not node.online and now - heard > 30:
            word = "old timestamp - dead?"
        text = f"{node.name} ({word}, {stamp(heard)})"
        rows.append({"id": f"lrm:{node.name}", "type": "lrm", "node": node.name, "status": text, "timestamp": heard})
    rows += [service_row(state, sid) for sid in sorted(known)]
    return rows


def service_row(state: PveState, sid: str) -> dict[str, Any]:
    """One service of the status."""
    resource, service, guest = resources(state)[sid], ha(state)["services"].get(sid), guest_of(state, sid)
    row: dict[str, Any] = {"id": f"service:{sid}", "type": "service", "sid": sid}
    if service:
        row |= {"node": service["node"], "crm_state": service["state"]}
    elif guest:
        row["node"] = guest.node
    row["state"] = verbose_state(state, sid) if guest else "not found"
    row["status"] = f"{sid} ({row.get('node', '---')}, {row['state']})"
    row |= {"request_state": request_state(resource), "max_restart": 1, "max_relocate": 1}
    row |= {key: resource[key] for key in ("group", "max_restart", "max_relocate", "comment") if key in resource}
    if state.flavour != "8.4":
        row["failback"] = resource.get("failback", 1)
    return row


def master(state: PveState) -> str:
    """The node whose manager leads: the first that is online."""
    return next((node.name for node in state.nodes.values() if node.online), state.local_node)


@endpoint("GET /cluster/ha/status/manager_status")
def manager_status(call: Call) -> dict[str, Any]:
    """The manager's own view, and what each local manager last said."""
    state, area, now = call.state, ha(call.state), int(call.clock.now())
    view: dict[str, Any] = {"node_status": node_words(state) if resources(state) else {}}
    answer: dict[str, Any] = {
        "manager_status": view,
        "quorum": {"node": state.local_node, "quorate": str(int(quorate(state)))},
    }
    if resources(state):
        told = int(now - now % TICK_SECONDS)
        view |= {"master_node": master(state), "timestamp": told, "service_status": {}}
        for sid, service in area["services"].items():
            running = guest_of(state, sid)
            row = {"node": service["node"], "state": service["state"], "uid": digest_of([sid])[:22]}
            if running is not None and running.running:
                row["running"] = 1
            view["service_status"][sid] = row
        answer["lrm_status"] = {
            node.name: {
                "mode": "active",
                "results": {},
                "state": "active" if active_on(state, node.name) else "wait_for_agent_lock",
                "timestamp": told if node.online else int(node.lost_at or now - 600),
            }
            for node in state.nodes.values()
        }
    return answer


def node_words(state: PveState) -> dict[str, str]:
    """What the manager thinks of each node: online, unknown, fence."""
    thought = ha(state)["nodes"]
    return {n.name: thought.get(n.name, "online" if n.online else "unknown") for n in state.nodes.values()}


@endpoint("POST /cluster/ha/status/arm-ha")
def arm(call: Call) -> None:
    """Nothing; the manager acts again."""
    ha(call.state)["armed"] = True


@endpoint("POST /cluster/ha/status/disarm-ha")
def disarm(call: Call) -> None:
    """Nothing; the manager leaves everything as it is."""
    ha(call.state)["armed"] = False


# --- placement ------------------------------------------------------------------------------------


def rules_of(state: PveState, sid: str, kind: str) -> Iterator[Section]:
    """The rules of one kind that are in force for a service."""
    for rule in ha(state)["rules"].values():
        if rule["type"] == kind and not rule.get("disable") and sid in split_list(rule["resources"]):
            yield rule


def companions(state: PveState, sid: str) -> list[str]:
    """The services that must be on the same node."""
    found = {
        each
        for rule in rules_of(state, sid, "resource-affinity")
        if rule.get("affinity") == "positive"
        for each in split_list(rule["resources"])
    }
    return sorted(found - {sid})


def priorities(state: PveState, sid: str) -> tuple[dict[str, int], bool]:
    """Preferred nodes with their priorities, and whether only those may be used."""
    group = ha(state)["groups"].get(resources(state)[sid].get("group", ""))
    chosen = [(group, "restricted")] if group else [(r, "strict") for r in rules_of(state, sid, "node-affinity")]
    for section, word in chosen:
        weights = {}
        for part in split_list(section.get("nodes", "")):
            name, _, weight = part.partition(":")
            weights[name] = int(weight or 0)
        return weights, bool(section.get(word))
    return {}, False


def candidates(state: PveState, sid: str) -> list[str]:
    """The nodes a service may run on now, best first."""
    services: dict[str, Any] = ha(state)["services"]
    weights, strict = priorities(state, sid)
    online = [node.name for node in state.nodes.values() if node.online]
    preferred = [name for name in online if name in weights]
    allowed = preferred or ([] if strict and weights else online)
    top = max((weights.get(name, 0) for name in preferred), default=0)
    allowed = [name for name in allowed if not preferred or weights[name] == top]
    for rule in rules_of(state, sid, "resource-affinity"):
        where = {services[each]["node"] for each in split_list(rule["resources"]) if each != sid and each in services}
        if rule.get("affinity") == "negative":
            allowed = [name for name in allowed if name not in where]
        elif here := [name for name in allowed if name in where]:
            allowed = here
    load = {name: sum(1 for each in services.values() if each["node"] == name) for name in online}
    return sorted(allowed, key=lambda name: (load[name], name))


# --- the manager ----------------------------------------------------------------------------------


async def live(state: PveState) -> None:
    """Let the manager look again and again, for as long as the lab answers."""
    while True:
        manage(state)
        scale = state.clock.scale
        if math.isinf(scale):
            await asyncio.sleep(0.02)
        else:
            # never more than fifty looks a real second, however fast the lab's time runs
            await state.clock.sleep(max(TICK_SECONDS, 0.02 * scale))


def manage(state: PveState) -> None:
    """Do what is due: note silent nodes, fence them, recover their guests, start, stop and move the others."""
    area = ha(state)
    if not resources(state) or not area["armed"] or not quorate(state):
        return
    watch_nodes(state)
    for sid in list(resources(state)):
        guest = guest_of(state, sid)
        if guest is None or not managed(state, sid):
            area["services"].pop(sid, None)
            continue
        service = area["services"].setdefault(
            sid,
            {"node": guest.node, "state": "started" if guest.running else "stopped", "failed": 0, "tried": []},
        )
        attend(state, sid, guest, service)
    take_commands(state)


def watch_nodes(state: PveState) -> None:
    """Note which nodes are silent and for how long."""
    area, moment = ha(state), state.clock.elapsed()
    for node in state.nodes.values():
        if node.online:
            area["nodes"][node.name] = "online"
            area["silent"].pop(node.name, None)
            continue
        since = area["silent"].setdefault(node.name, moment)
        fenced = active_on(state, node.name) and moment - since >= SILENT_SECONDS
        area["nodes"][node.name] = "fence" if fenced else "unknown"


def attend(state: PveState, sid: str, guest: GuestState, service: dict[str, Any]) -> None:
    """Bring one service a step nearer to what is asked of it."""
    area = ha(state)
    node = state.nodes[service["node"]]
    if not node.online:
        silent = state.clock.elapsed() - area["silent"].get(node.name, state.clock.elapsed())
        if silent >= SILENT_SECONDS:
            service["state"] = "fence"
        if silent >= FENCED_SECONDS:
            recover(state, sid, guest, service)
        return
    if service["state"] in ("fence", "recovery"):
        service["state"] = "started"
    if guest.node != service["node"] and not busy(state, guest):
        service["node"] = guest.node
    if busy(state, guest):
        return
    settle(state, sid, guest, service)


def busy(state: PveState, guest: GuestState) -> bool:
    """Whether a task works on the guest, or a lock holds it."""
    return bool(guest.lock) or any(task.running and task.id == str(guest.vmid) for task in state.tasks)


def settle(state: PveState, sid: str, guest: GuestState, service: dict[str, Any]) -> None:
    """Start or stop the guest as asked; give up after the configured number of tries."""
    resource = resources(state)[sid]
    wanted = request_state(resource)
    if service["state"] == "migrate" or service["state"] == "relocate":
        service["state"] = "started" if guest.running or wanted == "started" else "stopped"
    if wanted == "disabled":
        service |= {"failed": 0, "tried": []}
    if wanted == "started" and guest.running:
        service |= {"state": "started", "failed": 0, "tried": []}
        fail_back(state, sid, guest, resource)
    elif wanted == "started" and service["state"] != "error":
        if service["failed"] > resource.get("max_restart", 1):
            if len(service["tried"]) >= resource.get("max_relocate", 1):
                service["state"] = "error"
                return
            service["tried"].append(guest.node)
            service["failed"] = 0
            others = [name for name in candidates(state, sid) if name not in service["tried"]]
            if others:
                ha(state)["commands"].append(("relocate", sid, others[0]))
                return
        service["failed"] += 1
        service["state"] = "started"
        act(state, guest, "status/start")
    elif wanted in ("stopped", "disabled") and guest.running:
        act(state, guest, "status/shutdown", forceStop=True, timeout=60)
    elif wanted in ("stopped", "disabled"):
        service["state"] = "stopped"


def fail_back(state: PveState, sid: str, guest: GuestState, resource: Section) -> None:
    """Send a guest home when a node it prefers is back."""
    group = ha(state)["groups"].get(resource.get("group", ""), {})
    weights, _ = priorities(state, sid)
    if not weights or group.get("nofailback") or not resource.get("failback", 1):
        return
    best = candidates(state, sid)
    if best and guest.node not in best and not any(command[1] == sid for command in ha(state)["commands"]):
        ha(state)["commands"].append(("migrate", sid, best[0]))


def recover(state: PveState, sid: str, guest: GuestState, service: dict[str, Any]) -> None:
    """Give the guest of a fenced node to another one and start it there."""
    service["state"] = "recovery"
    better = [name for name in candidates(state, sid) if name != service["node"]]
    if not better:
        return
    guest.running, guest.paused, guest.pid = False, False, None
    guest.was_running, guest.changed = False, state.clock.now()
    guest.config.pop("lock", None)
    guest.node = service["node"] = better[0]
    service |= {"state": "started" if request_state(resources(state)[sid]) == "started" else "stopped", "failed": 0}


def take_commands(state: PveState) -> None:
    """Carry out the moves that were asked for, once their guests are free."""
    area, left = ha(state), []
    for how, sid, target in area["commands"]:
        guest, service = guest_of(state, sid), area["services"].get(sid)
        if guest is None or service is None or target not in state.nodes or guest.node == target:
            continue
        if busy(state, guest) or not state.nodes[guest.node].online:
            left.append((how, sid, target))
            continue
        if how == "relocate" and guest.running:
            service["state"] = "relocate"
            act(state, guest, "status/stop")
            left.append((how, sid, target))
            continue
        service["state"] = how
        online = {"online": True, "with-local-disks": True} if guest.running else {}
        act(state, guest, "migrate", target=target, **online)
    area["commands"] = left


def act(state: PveState, guest: GuestState, word: str, **params: Any) -> None:
    """Do to the guest what its own endpoint does, as the local manager would; a refusal counts as a failed try."""
    path = f"/nodes/{guest.node}/{guest.kind}/{guest.vmid}/{word}"
    found = ROUTER.find("POST", path)
    if found is None:
        return
    raw = {"node": guest.node, "vmid": guest.vmid, **params}
    call = Call(state, "POST", path, raw, AuthId("root@pam"), params=dict(raw), extra={"by": "ha"})
    try:
        found[0].handler(call)
    except PveError as refusal:
        task = state.tasks.new("hamanage", str(guest.vmid), node=guest.node, user="root@pam")
        state.tasks.finish(task, refusal.message.strip())


def request(call: Call, wanted: str) -> str | None:
    """The UPID of the task that asks HA for a start or stop; None when HA does not look after the guest.

    A managed guest is never started or stopped directly: the API only changes what is asked of the manager.
    """
    state, guest = call.state, call.state.guests.get(call.params["vmid"])
    if guest is None or call.extra.get("by") == "ha":
        return None
    sid = f"{'vm' if guest.kind == 'qemu' else 'ct'}:{guest.vmid}"
    if not managed(state, sid):
        return None

    def work(task: TaskContext) -> None:
        verb = "start" if wanted == "started" else "stop"
        task.log(f"Requesting HA {verb} for {sid.replace(':', ' ').upper()}")
        resources(state)[sid]["state"] = wanted

    return call.task("hastart" if wanted == "started" else "hastop", guest.vmid, work)


def request_move(call: Call, target: str) -> str | None:
    """The UPID of the task that asks HA to migrate the guest; None when HA does not look after it."""
    state, guest = call.state, call.state.guests.get(call.params["vmid"])
    if guest is None or call.extra.get("by") == "ha":
        return None
    sid = f"{'vm' if guest.kind == 'qemu' else 'ct'}:{guest.vmid}"
    if not managed(state, sid):
        return None

    def work(task: TaskContext) -> None:
        task.log(f"Requesting HA migration for {sid.replace(':', ' ').upper()} to node {target}")
        ha(state)["commands"].append(("migrate", sid, target))

    return call.task("hamigrate", guest.vmid, work)
