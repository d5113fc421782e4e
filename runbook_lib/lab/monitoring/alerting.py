"""Alert rules at work: what vmalert evaluates and remembers, and what the alert manager holds."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .evaluation import Key, instant, key_of, written
from .promql import BadQuery, parse, quoted
from .targets import GROUP, seconds

if TYPE_CHECKING:
    from .hub import Hub

Object = dict[str, Any]
LARGEST_LAB_SECONDS = 15.0


def rfc3339(at: float) -> str:
    """A time as Go writes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if at else "0001-01-01T00:00:00Z"


def number(text: str) -> str:
    """An id of 64 bits from a text."""
    return str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


@dataclass
class Alert:
    """One series of a rule that holds. `since` is in lab seconds, `active` and `fired` are times of day."""

    labels: dict[str, str]
    annotations: dict[str, str]
    value: float
    since: float
    active: float
    firing: bool = False
    fired: float = 0.0
    seen: float = 0.0


@dataclass
class Rule:
    """One rule of a group."""

    space: str
    owner: str
    group: str
    spec: Mapping[str, Any]
    interval: float
    alerts: dict[Key, Alert] = field(default_factory=dict)
    error: str = ""
    at: float = 0.0
    took: float = 0.0
    samples: int = 0
    told: list[Mapping[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The alert's or the record's name."""
        return str(self.spec.get("alert") or self.spec.get("record") or "")

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes it this rule and no other."""
        return self.space, self.owner, self.group, self.name, f"{sorted(self.spec.items(), key=str)}"

    @property
    def group_id(self) -> str:
        """The group's id."""
        return number(f"{self.space}/{self.owner}/{self.group}")

    @property
    def id(self) -> str:
        """The rule's id."""
        return number(f"{self.key}")

    @property
    def state(self) -> str:
        """inactive, pending or firing."""
        if any(alert.firing for alert in self.alerts.values()):
            return "firing"
        return "pending" if self.alerts else "inactive"


class Rules:
    """The rules of a cluster, evaluated as time goes by."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.rules: dict[Any, Rule] = {}
        self.sent: dict[Key, Object] = {}
        self._version = -1

    def alerter(self) -> Object | None:
        """The first VMAlert."""
        return next(iter(self.hub.cluster.each(f"{GROUP}/vmalerts")), None)

    def refresh(self) -> None:
        """Nothing; the rules are those of the objects now, and those that stayed keep their state."""
        if self._version == self.hub.cluster.store.rv:
            return
        self._version = self.hub.cluster.store.rv
        alerter = self.alerter()
        interval = seconds(((alerter or {}).get("spec") or {}).get("evaluationInterval"), 15.0)
        known, self.rules = self.rules, {}
        for rule in self._read(interval) if alerter else ():
            self.rules[rule.key] = known.pop(rule.key, rule)
        for gone in known.values():
            self._forget(gone)

    def _read(self, interval: float) -> Iterator[Rule]:
        for item in self.hub.cluster.each(f"{GROUP}/vmrules"):
            if (item.get("status") or {}).get("updateStatus") == "failed":
                continue
            meta = item["metadata"]
            for group in item["spec"].get("groups") or ():
                own = seconds(group.get("interval"), interval)
                for spec in group.get("rules") or ():
                    yield Rule(meta["namespace"], meta["name"], str(group["name"]), spec, own)

    async def run(self) -> None:
        """Evaluates until cancelled."""
        from .hub import pause

        while True:
            self.evaluate()
            await asyncio.sleep(pause(self.hub.clock, LARGEST_LAB_SECONDS))

    def evaluate(self) -> None:
        """Nothing; every rule has been looked at."""
        self.refresh()
        for rule in self.rules.values():
            self._evaluate(rule)

    def _evaluate(self, rule: Rule) -> None:
        now, clock = self.hub.clock.now(), self.hub.clock
        begun = asyncio.get_running_loop().time()
        try:
            rows = instant(parse(str(rule.spec.get("expr", ""))), self.hub, now, 300.0)
            rule.error = ""
        except BadQuery as error:
            rule.error = f"failed to execute query {quoted(str(rule.spec.get('expr', '')))}: {error}"
            rows = []
        rule.at, rule.took = now, asyncio.get_running_loop().time() - begun
        rule.samples = len(rows)
        if "record" in rule.spec:
            told = []
            for row in rows:
                labels = {**row.labels, **(rule.spec.get("labels") or {}), "__name__": rule.name}
                self.hub.store.append(labels, row.value, now)
                told.append(labels)
            self._tell(rule, told, now)
            return
        waits = seconds(rule.spec.get("for"), 0.0)
        held: set[Key] = set()
        for row in rows:
            plain = {key: value for key, value in row.labels.items() if key != "__name__"}
            place = (plain, row.value, str(rule.spec.get("expr", "")))
            labels = plain | {"alertname": rule.name, "alertgroup": rule.group}
            labels |= {key: filled(str(text), *place) for key, text in (rule.spec.get("labels") or {}).items()}
            key = key_of(labels)
            held.add(key)
            alert = rule.alerts.setdefault(key, Alert(labels, {}, row.value, clock.elapsed(), now))
            alert.value, alert.seen = row.value, now
            alert.annotations = {
                name: filled(str(text), *place) for name, text in (rule.spec.get("annotations") or {}).items()
            }
            if not alert.firing and clock.elapsed() - alert.since >= waits:
                alert.firing, alert.fired = True, now
        keep = seconds(rule.spec.get("keep_firing_for"), 0.0)
        for key in [key for key in rule.alerts if key not in held]:
            alert = rule.alerts[key]
            if not (alert.firing and keep and now - alert.seen < keep):
                self._resolve(rule.alerts.pop(key), now)
        self._show(rule, now)

    def _show(self, rule: Rule, now: float) -> None:
        told = []
        for key, alert in rule.alerts.items():
            state = "firing" if alert.firing else "pending"
            labels = {**alert.labels, "__name__": "ALERTS", "alertstate": state}
            since = {**alert.labels, "__name__": "ALERTS_FOR_STATE"}
            self.hub.store.append(labels, 1.0, now)
            self.hub.store.append(since, float(int(alert.active)), now)
            told += [labels, since]
            if alert.firing:
                self.sent[key] = self._sent(rule, alert, now)
        self._tell(rule, told, now)

    def _tell(self, rule: Rule, told: list[dict[str, str]], now: float) -> None:
        present = {key_of(labels) for labels in told}
        for labels in rule.told:
            if key_of(labels) not in present:
                self.hub.store.end(labels, now)
        rule.told = list(told)

    def _forget(self, rule: Rule) -> None:
        now = self.hub.clock.now()
        for alert in rule.alerts.values():
            self._resolve(alert, now)
        self._tell(rule, [], now)

    def _resolve(self, alert: Alert, now: float) -> None:
        if found := self.sent.get(key_of(alert.labels)):
            found["endsAt"] = found["updatedAt"] = rfc3339(now)

    def _sent(self, rule: Rule, alert: Alert, now: float) -> Object:
        return {
            "annotations": alert.annotations,
            "endsAt": rfc3339(now + max(4 * rule.interval, 60.0)),
            "fingerprint": f"{zlib.crc32(str(key_of(alert.labels)).encode()):08x}{zlib.crc32(rule.name.encode()):08x}",
            "receivers": [{"name": "blackhole"}],
            "startsAt": rfc3339(alert.fired),
            "status": {"inhibitedBy": [], "mutedBy": [], "silencedBy": [], "state": "active"},
            "updatedAt": rfc3339(now),
            "generatorURL": f"http://vmalert-vmalert-shortterm:8080/vmalert/alert?group_id={rule.group_id}"
            f"&alert_id={number(str(key_of(alert.labels)))}",
            "labels": alert.labels,
        }

    # -- what the APIs show -----------------------------------------------------------------------

    def groups(self) -> list[Object]:
        """`/api/v1/rules`."""
        found: dict[str, Object] = {}
        for rule in self.rules.values():
            group = found.setdefault(
                rule.group_id,
                {
                    "name": rule.group,
                    "type": "prometheus",
                    "id": rule.group_id,
                    "rules": [],
                    "interval": rule.interval,
                    "lastEvaluation": rfc3339(rule.at),
                    "file": f"/etc/vmalert/config/{rule.space}-{rule.owner}.yaml",
                    "concurrency": 1,
                },
            )
            group["rules"].append(self._rule(rule))
        return list(found.values())

    def _rule(self, rule: Rule) -> Object:
        alerting = "alert" in rule.spec
        return {
            "state": rule.state if alerting else ("ok" if not rule.error else "error"),
            "name": rule.name,
            "query": rule.spec.get("expr", ""),
            "duration": seconds(rule.spec.get("for"), 0.0) if alerting else 0,
            "labels": rule.spec.get("labels") or {},
            "annotations": rule.spec.get("annotations") or {},
            "lastError": rule.error,
            "evaluationTime": rule.took,
            "lastEvaluation": rfc3339(rule.at),
            "health": "err" if rule.error else "ok",
            "type": "alerting" if alerting else "recording",
            "datasourceType": "prometheus",
            "lastSamples": rule.samples,
            "id": rule.id,
            "group_id": rule.group_id,
            "group_name": rule.group,
            **({"alerts": [self._alert(rule, alert) for alert in rule.alerts.values()]} if alerting else {}),
        }

    def _alert(self, rule: Rule, alert: Alert) -> Object:
        identity = number(str(key_of(alert.labels)))
        return {
            "state": "firing" if alert.firing else "pending",
            "name": rule.name,
            "value": written(alert.value),
            "labels": alert.labels,
            "annotations": alert.annotations,
            "activeAt": rfc3339(alert.active),
            "id": identity,
            "rule_id": rule.id,
            "group_id": rule.group_id,
            "expression": rule.spec.get("expr", ""),
            "source": f"/vmalert/alert?group_id={rule.group_id}&alert_id={identity}",
            "restored": False,
        }

    def alerts(self) -> list[Object]:
        """`/api/v1/alerts`."""
        return [self._alert(rule, alert) for rule in self.rules.values() for alert in rule.alerts.values()]


# -- templates -------------------------------------------------------------------------------------

_SCALES = ("", "k", "M", "G", "T", "P")


def _scaled(value: float, base: float, marks: tuple[str, ...]) -> str:
    place = 0
    while abs(value) >= base and place < len(marks) - 1:
        value, place = value / base, place + 1
    return f"{value:.4g}{marks[place]}"


def _lasting(value: float) -> str:
    days, rest = divmod(int(abs(value)), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (left, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return ("-" if value < 0 else "") + " ".join(f"{count}{unit}" for count, unit in parts)


_FILTERS = {
    "humanize": lambda v: _scaled(v, 1000.0, _SCALES),
    "humanize1024": lambda v: _scaled(v, 1024.0, ("", "ki", "Mi", "Gi", "Ti", "Pi")),
    "humanizePercentage": lambda v: f"{v * 100:.4g}%",
    "humanizeDuration": _lasting,
    "humanizeTimestamp": lambda v: datetime.fromtimestamp(v, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
}
_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.S)


class BadTemplate(Exception):
    """A text that is no template."""


def check(text: str) -> None:
    """Nothing for a template. Raises BadTemplate in the words of Go."""
    rest = _ACTION.sub("", text)
    if "{{" in rest:
        raise BadTemplate("unclosed action")
    for body in _ACTION.findall(text):
        _told(body, {}, 0.0, "", strict=True)


def filled(text: str, labels: Mapping[str, str], value: float, expr: str) -> str:
    """A template with an alert's labels and value put in."""

    def put(match: re.Match[str]) -> str:
        try:
            return _told(match[1], labels, value, expr)
        except BadTemplate as error:
            return f"error: {error}"

    return _ACTION.sub(put, text)


def _told(body: str, labels: Mapping[str, str], value: float, expr: str, *, strict: bool = False) -> str:
    head, *filters = (part.strip() for part in body.split("|"))
    found: Any = _word(head, labels, value, expr, strict=strict)
    for name in filters:
        words = name.split(None, 1)
        if words[0] in _FILTERS:
            found = _FILTERS[words[0]](_float(found))
        elif words[0] == "printf" and len(words) == 2:
            found = _formatted(words[1].strip('"'), found)
        elif words[0] not in {"toUpper", "toLower", "title", "quotesEscape", "htmlEscape", "pathEscape", "crlfEscape"}:
            raise BadTemplate(f'function "{words[0]}" not defined')
    return written(found) if isinstance(found, float) else str(found)


def _float(found: Any) -> float:
    try:
        return float(found)
    except ValueError:
        return math.nan


def _formatted(template: str, value: Any) -> str:
    try:
        return template % (float(value) if re.search(r"%[-+ 0-9.]*[feEgd]", template) else value)
    except (TypeError, ValueError):
        return template


def _word(head: str, labels: Mapping[str, str], value: float, expr: str, *, strict: bool) -> Any:
    if head in {"$value", ".Value"}:
        return value
    if head in {"$expr", ".Expr"}:
        return expr
    if match := re.fullmatch(r"(?:\$labels|\.Labels)\.(\w+)", head):
        return labels.get(match[1], "")
    if match := re.fullmatch(r'index\s+(?:\$labels|\.Labels)\s+"([^"]*)"', head):
        return labels.get(match[1], "")
    if match := re.fullmatch(r'printf\s+"([^"]*)"\s+(\S+)', head):
        return _formatted(match[1], _word(match[2], labels, value, expr, strict=strict))
    words = head.split()
    if len(words) == 2 and words[0] in _FILTERS:
        return _FILTERS[words[0]](_float(_word(words[1], labels, value, expr, strict=strict)))
    if head in {"$labels", ".Labels", "$activeAt", "$externalURL", "$externalLabels", "$for", "end", "else"}:
        return ""
    if words and words[0] in {"if", "range", "with", "query", "first", "not", "and", "or", "eq", "ne", "gt", "lt"}:
        return ""
    if head.startswith("$"):
        raise BadTemplate(f'undefined variable "{words[0].partition(".")[0]}"')
    if re.fullmatch(r'"[^"]*"|[\d.]+', head):
        return head.strip('"')
    raise BadTemplate(f'function "{words[0] if words else ""}" not defined')


def problem(item: Object) -> str:
    """Why the operator refuses a VMRule; empty for a good one."""
    meta = item["metadata"]
    place = f"validation failed for VMRule: {meta.get('namespace', '')}/{meta.get('name', '')}"
    seen: set[str] = set()
    for group in (item.get("spec") or {}).get("groups") or ():
        name = group.get("name", "")
        if name in seen:
            return f"{place} group: {name} err: duplicate group name"
        seen.add(name)
        for rule in group.get("rules") or ():
            if words := _rule_problem(rule):
                return f"{place} group: {name} err: {words}"
    return ""


def _rule_problem(rule: Mapping[str, Any]) -> str:
    name, expr = rule.get("alert") or rule.get("record") or "", str(rule.get("expr", ""))
    if bool(rule.get("alert")) == bool(rule.get("record")):
        return "invalid rule : either `record` or `alert` must be set"
    if not expr:
        return f'invalid rule "{name}": expression can\'t be empty'
    try:
        parse(expr)
    except BadQuery as error:
        return f'invalid expression for rule "{name}": bad MetricsQL expr: {quoted(expr)}, err: {error}'
    for kind in ("annotations", "labels"):
        for key, text in (rule.get(kind) or {}).items():
            try:
                check(str(text))
            except BadTemplate as error:
                return f'invalid {kind} for rule "{name}": errors(1): key {quoted(key)}, template {quoted(str(text))}: error parsing template: {error}'  # noqa: E501
    return ""
