"""CronJobs: a Job whenever the schedule says so, by the lab's wall clock."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .announce import Announcer
from .client import Cache, Key, Object, Refused, key_of
from .context import Context
from .jobs import PATH as JOBS
from .jobs import is_finished
from .pods_of import controller_of, is_going, owner_keys, owner_reference, seconds_of
from .reconcile import reconcile
from .timers import Timers

PATH = "/apis/batch/v1/cronjobs"
COMPONENT = "cronjob-controller"
SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
LOOK_SECONDS = 0.25  # real: how late a Job may be after time was advanced by hand
_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: at for at, name in enumerate(_NAMES, 1)}
_DAYS = {name: at for at, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}


# --- schedules ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The minutes at which something is due. Either of the days suffices where both are restricted."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    def on(self, day: datetime) -> bool:
        """Whether anything is due on that day."""
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either else of_month and of_week

    def times(self, since: float, until: float, zone: ZoneInfo | None) -> Iterable[float]:
        """The epoch seconds after `since` and up to `until`, in order."""
        day = datetime.fromtimestamp(since, zone or UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = datetime.fromtimestamp(until, zone or UTC)
        while day.date() <= end.date():
            if self.on(day):
                for hour in sorted(self.hours):
                    for minute in sorted(self.minutes):
                        moment = day.replace(hour=hour, minute=minute)
                        at = moment.timestamp()
                        if datetime.fromtimestamp(at, zone or UTC).hour != hour:
                            continue  # an hour that the clocks skip
                        if since < at <= until:
                            yield at
            day = (day + timedelta(days=1)).replace(hour=0)

    def after(self, since: float, zone: ZoneInfo | None) -> float | None:
        """The next time after a moment, within five years."""
        for days in (1, 40, 400, 1900):
            for at in self.times(since, since + days * 86400.0, zone):
                return at
        return None


def parsed(text: str) -> Schedule:
    """The schedule of five fields or a macro. Raises ValueError with the words of the parser."""
    fields = _MACROS.get(text.strip().lower(), text).split()
    if len(fields) != 5:
        raise ValueError(f"expected exactly 5 fields, found {len(fields)}: [{' '.join(fields)}]")
    minutes, hours = _field(fields[0], 0, 59), _field(fields[1], 0, 23)
    days, months = _field(fields[2], 1, 31), _field(fields[3], 1, 12, _MONTHS)
    weekdays = _field(fields[4], 0, 7, _DAYS)
    either = not fields[2].startswith(("*", "?")) and not fields[4].startswith(("*", "?"))
    return Schedule(minutes, hours, days, months, frozenset(number % 7 for number in weekdays), either)


def _field(text: str, low: int, high: int, names: dict[str, int] | None = None) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        if first in {"*", "?"}:
            start, end = low, high if high != 7 else 6
        else:
            start = _number(first, names)
            end = _number(last, names) if dash else high if step else start
        if start < low:
            raise ValueError(f"beginning of range ({start}) below minimum ({low}): {part}")
        if end > high:
            raise ValueError(f"end of range ({end}) above maximum ({high}): {part}")
        if start > end:
            raise ValueError(f"beginning of range ({start}) beyond end of range ({end}): {part}")
        width = _number(step, None) if step else 1
        if not width:
            raise ValueError(f"step of range should be a positive number: {part}")
        found |= set(range(start, end + 1, width))
    return frozenset(found)


def _number(text: str, names: dict[str, int] | None) -> int:
    if names and text.lower() in names:
        return names[text.lower()]
    if not text.isdigit():
        raise ValueError(f'failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def due(item: Object, schedule: Schedule, zone: ZoneInfo | None, now: float) -> tuple[float | None, int]:
    """(the latest time that was not served yet, how many such times there are)."""
    last = (item.get("status") or {}).get("lastScheduleTime") or item["metadata"]["creationTimestamp"]
    since = seconds_of(last)
    if (deadline := item["spec"].get("startingDeadlineSeconds")) is not None:
        since = max(since, now - deadline)
    count, latest = 0, None
    for latest in schedule.times(since, now, zone):  # noqa: B007
        count += 1
    return latest, count


def made_job(item: Object, at: float) -> Object:
    """The Job of that time, as it is created."""
    template = copy.deepcopy(item["spec"]["jobTemplate"])
    metadata = template.get("metadata") or {}
    zone = item["spec"].get("timeZone")
    when = datetime.fromtimestamp(at, ZoneInfo(zone) if zone else UTC).isoformat().replace("+00:00", "Z")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{item['metadata']['name']}-{int(at) // 60}",
            "namespace": item["metadata"]["namespace"],
            "labels": metadata.get("labels") or {},
            "annotations": {**(metadata.get("annotations") or {}), SCHEDULED: when},
            "ownerReferences": [owner_reference(item)],
        },
        "spec": template["spec"],
    }


def stamp_of(at: float) -> str:
    """An epoch second as Kubernetes writes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- work ---------------------------------------------------------------------------------------------------------


async def run(context: Context) -> None:
    """Starts Jobs until cancelled."""
    items, jobs = context.cache(PATH), context.cache(JOBS)
    await context.synced(items, jobs)
    work = _Starter(context, items, jobs, Announcer(context, COMPONENT), Timers(context))
    context.spawn(work.watch_the_clock(), name="lab-cronjobs-clock")
    await reconcile(context, items, work, also=[(jobs, owner_keys("CronJob")), (work.bell, Timers.keys)], workers=2)


@dataclass
class _Starter:
    """One CronJob at a time."""

    context: Context
    items: Cache
    jobs: Cache
    told: Announcer
    bell: Timers
    next: dict[Key, float] = field(default_factory=dict)

    async def watch_the_clock(self) -> None:
        """Calls for each CronJob when it is due. The wall clock alone counts, however fast sleeps are."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = self.context.clock.now()
            for key in [key for key, at in self.next.items() if at <= now]:
                del self.next[key]
                self.bell._tell("MODIFIED", {"metadata": {"namespace": key[0], "name": key[1]}})

    async def __call__(self, key: Key, item: Object | None) -> float | None:
        self.next.pop(key, None)
        if item is None or is_going(item):
            return None
        mine = [job for job in self.jobs.owned_by(item) if (controller_of(job) or {}).get("kind") == "CronJob"]
        item = await self._look_after(item, mine)
        await self._clean_up(item, mine)
        spec = item["spec"]
        try:
            schedule = parsed(spec["schedule"])
        except ValueError as error:
            self.told.say(item, "UnparseableSchedule", f'unparseable schedule: "{spec["schedule"]}" : {error}',
                          kind="Warning")  # fmt: skip
            return None
        try:
            zone = ZoneInfo(spec["timeZone"]) if spec.get("timeZone") else None
        except (ZoneInfoNotFoundError, ValueError):
            said = f'invalid timeZone: "{spec["timeZone"]}": unknown time zone {spec["timeZone"]}'
            self.told.say(item, "UnknownTimeZone", said, kind="Warning")
            return None
        if spec.get("suspend"):
            return None
        await self._start(item, schedule, zone)
        if (at := schedule.after(self.context.clock.now(), zone)) is not None:
            self.next[key] = at
        return None

    async def _look_after(self, item: Object, mine: Iterable[Object]) -> Object:
        """The CronJob whose list of active Jobs has only those that are."""
        status = dict(item.get("status") or {})
        by_uid = {job["metadata"]["uid"]: job for job in mine}
        active = []
        for row in status.get("active") or ():
            job = by_uid.get(row["uid"])
            kind = is_finished(job) if job else ""
            if job is None:
                self.told.say(item, "MissingJob", f"Active job went missing: {row['name']}")
            elif kind:
                said = f"Saw completed job: {row['name']}, condition: {kind}"
                self.told.say(item, "SawCompletedJob", said)
                ended = (job.get("status") or {}).get("completionTime", "")
                if kind == "Complete" and ended > status.get("lastSuccessfulTime", ""):
                    status["lastSuccessfulTime"] = ended
            else:
                active.append(row)
        status.pop("active", None)
        return await self._put(item, status | ({"active": active} if active else {}))

    async def _clean_up(self, item: Object, mine: Iterable[Object]) -> None:
        """Deletes finished Jobs beyond the limits, the oldest first."""
        mine = list(mine)
        for kind, limit in (("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")):
            done = [job for job in mine if is_finished(job) == kind and not is_going(job)]
            done.sort(key=lambda job: (seconds_of((job.get("status") or {}).get("startTime")), job["metadata"]["name"]))
            if (most := item["spec"].get(limit)) is not None:
                for job in done[: max(0, len(done) - most)]:
                    await self._delete(item, job)

    async def _start(self, item: Object, schedule: Schedule, zone: ZoneInfo | None) -> None:
        now, spec = self.context.clock.now(), item["spec"]
        at, count = due(item, schedule, zone, now)
        if at is None:
            return
        if count > 100:
            advice = "Set or decrease .spec.startingDeadlineSeconds or check clock skew"
            said = f"too many missed start times: {count}. {advice}"
            self.told.say(item, "TooManyMissedTimes", said, kind="Warning")
        deadline = spec.get("startingDeadlineSeconds")
        if deadline is not None and at + deadline < now:
            when = datetime.fromtimestamp(at, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
            self.told.say(item, "MissSchedule", f"Missed scheduled time to start a job: {when}", kind="Warning")
            return
        status = dict(item.get("status") or {})
        active = status.get("active") or []
        if spec.get("concurrencyPolicy") == "Forbid" and active:
            said = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self.told.say(item, "JobAlreadyActive", said)
            return
        if spec.get("concurrencyPolicy") == "Replace":
            for row in active:
                job = self.jobs.get(item["metadata"]["namespace"], row["name"])
                if job is not None:
                    await self._delete(item, job)
            active = []
        wish = made_job(item, at)
        path = f"/apis/batch/v1/namespaces/{item['metadata']['namespace']}/jobs"
        try:
            made = await self.context.client.create(path, wish)
        except Refused as refused:
            if refused.code != 409:
                if "because it is being terminated" not in refused.message:
                    self.told.say(item, "FailedCreate", f"Error creating job: {refused.message}", kind="Warning")
                raise
            made = await self.context.client.get(f"{path}/{wish['metadata']['name']}")
            if (controller_of(made) or {}).get("uid") != item["metadata"]["uid"]:
                return
        else:
            self.told.say(item, "SuccessfulCreate", f"Created job {made['metadata']['name']}")
        await self.jobs.caught_up(made)
        metadata = made["metadata"]
        row = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        }
        await self._put(item, status | {"active": [*active, row], "lastScheduleTime": stamp_of(at)})

    async def _delete(self, item: Object, job: Object) -> None:
        namespace, name = key_of(job)
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            await self.context.client.delete(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", body)
        except Refused as refused:
            if refused.code != 404:
                self.told.say(item, "FailedDelete", f"Deleted job: {refused.message}", kind="Warning")
                raise
            return
        self.told.say(item, "SuccessfulDelete", f"Deleted job {name}")

    async def _put(self, item: Object, status: Object) -> Object:
        if status == (item.get("status") or {}):
            return item
        namespace, name = key_of(item)
        path = f"/apis/batch/v1/namespaces/{namespace}/cronjobs/{name}/status"
        answer = await self.context.client.update(path, {**item, "status": status})
        await self.items.caught_up(answer)
        return answer


__all__ = ["Schedule", "due", "made_job", "parsed", "run"]
