"""Jobs: pods until so many have succeeded, each counted once, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .announce import Announcer
from .client import STRATEGIC, Cache, Key, Object, Refused, key_of
from .context import Context
from .pods_of import (
    Orphans,
    claim,
    condition_of,
    delete_pods,
    is_active,
    is_ended,
    is_going,
    is_ready,
    owner_keys,
    phase_of,
    pod_from,
    pods_path,
    ranked_for_deletion,
    seconds_of,
    seen,
    slow_start,
)
from .reconcile import reconcile
from .timers import Timers

PATH = "/apis/batch/v1/jobs"
COMPONENT = "job-controller"
FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
BURST = 500
BACK_OFF_FIRST, BACK_OFF_MOST = 10.0, 600.0
SHORTEST_DEADLINE = 5.0  # real seconds: requests take real time, however fast the lab's clock runs
REACHED = ("CompletionsReached", "Reached expected number of succeeded pods")


# --- judgement ----------------------------------------------------------------------------------------------------


def is_finished(job: Object) -> str:
    """ "Complete" or "Failed" once the Job is; empty before."""
    for kind in ("Complete", "Failed"):
        row = condition_of(job, kind)
        if row is not None and row["status"] == "True":
            return kind
    return ""


def is_indexed(job: Object) -> bool:
    """Whether each completion has an index of its own."""
    return bool(job["spec"].get("completionMode") == "Indexed")


def indexes_of(text: str | None) -> set[int]:
    """The numbers that "0-2,5" stands for."""
    found: set[int] = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def text_of(indexes: Iterable[int]) -> str:
    """Numbers as a Job's status writes them: runs of three and more, or of two, with a dash."""
    runs: list[list[int]] = []
    for number in sorted(set(indexes)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def index_of(pod: Object) -> int | None:
    """The completion index of a pod."""
    text = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(text) if text.isdigit() else None


def is_tracked(pod: Object) -> bool:
    """Whether the pod's end is still to be counted."""
    return FINALIZER in (pod["metadata"].get("finalizers") or ())


def replaces_late(job: Object) -> bool:
    """Whether a pod is replaced only when it has failed, not when it begins to end."""
    return bool(job["spec"].get("podReplacementPolicy") == "Failed" or job["spec"].get("podFailurePolicy"))


def has_failed(job: Object, pod: Object) -> bool:
    """Whether the pod counts as failed. One that is deleted does, unless the Job waits for its end."""
    if phase_of(pod) == "Failed":
        return True
    return is_going(pod) and phase_of(pod) != "Succeeded" and not replaces_late(job)


def made_pod(job: Object, index: int | None) -> Object:
    """A pod of the Job."""
    name = job["metadata"]["name"]
    pod = pod_from(job["spec"]["template"], job, prefix=f"{name}-" if index is None else f"{name}-{index}-")
    metadata, spec = pod["metadata"], pod["spec"]
    metadata["finalizers"] = [*(metadata.get("finalizers") or ()), FINALIZER]
    if index is not None:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), INDEX: str(index)}
        metadata["labels"] = {**(metadata.get("labels") or {}), INDEX: str(index)}
        spec["hostname"] = f"{name}-{index}"
        own = {
            "name": "JOB_COMPLETION_INDEX",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}},
        }
        for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
            given = container.get("env") or []
            if all(row["name"] != own["name"] for row in given):
                container["env"] = [*given, own]
    return pod


def policy_action(job: Object, pod: Object) -> tuple[str, str]:
    """(the action of the podFailurePolicy's first rule that fits, the words of a FailJob); Count without one."""
    for number, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules") or ()):
        named = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        tail = f"matching {rule['action']} rule at index {number}"
        if wanted := rule.get("onExitCodes"):
            for row in (pod.get("status") or {}).get("containerStatuses") or ():
                ended = (row.get("state") or {}).get("terminated")
                if (
                    ended is None
                    or not ended.get("exitCode")
                    or wanted.get("containerName", row["name"]) != row["name"]
                ):
                    continue
                if (ended["exitCode"] in wanted["values"]) is (wanted["operator"] == "In"):
                    code = ended["exitCode"]
                    said = f"Container {row['name']} for pod {named} failed with exit code {code} {tail}"
                    return rule["action"], said
        for wish in rule.get("onPodConditions") or ():
            row = condition_of(pod, wish["type"])
            if row is not None and row["status"] == wish.get("status", "True"):
                return rule["action"], f"Pod {named} has condition {wish['type']} {tail}"
    return "Count", ""


def failure_of(job: Object, pods: Sequence[Object], failed: int, *, overdue: bool) -> tuple[str, str] | None:
    """(reason, message) by which the Job has failed, or None. `failed` counts pods so far."""
    spec = job["spec"]
    for pod in pods:
        if phase_of(pod) == "Failed" and spec.get("podFailurePolicy"):
            action, said = policy_action(job, pod)
            if action == "FailJob":
                return "PodFailurePolicy", said
    limit = spec.get("backoffLimit", 6)
    if failed > limit or _restarted_too_often(job, pods, limit):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    if overdue:
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    return None


def _restarted_too_often(job: Object, pods: Iterable[Object], limit: int) -> bool:
    if job["spec"]["template"]["spec"].get("restartPolicy") != "OnFailure":
        return False
    count = 0
    for pod in pods:
        if phase_of(pod) in {"Running", "Pending"}:
            status = pod.get("status") or {}
            rows = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
            count += sum(row.get("restartCount", 0) for row in rows)
    return count > 0 if limit == 0 else count >= limit


def is_complete(job: Object, succeeded: int, active: int) -> bool:
    """Whether enough pods have succeeded."""
    completions = job["spec"].get("completions")
    if completions is None:
        return succeeded > 0 and active == 0
    return succeeded >= int(completions)


def wanted_active(job: Object, succeeded: int, active: int) -> int:
    """How many pods should be at work now."""
    spec = job["spec"]
    parallel, completions = int(spec.get("parallelism", 1)), spec.get("completions")
    if completions is None:
        return active if succeeded else parallel
    return max(0, min(int(completions) - succeeded, parallel))


def condition(kind: str, status: bool, reason: str, message: str, *, stamp: str) -> Object:
    """A condition of a Job."""
    return {
        "type": kind,
        "status": str(status),
        "lastProbeTime": stamp,
        "lastTransitionTime": stamp,
        "reason": reason,
        "message": message,
    }


def with_condition(status: Object, row: Object) -> Object:
    """The status with the condition in the place of the one of its type."""
    rows = [entry for entry in status.get("conditions") or () if entry["type"] != row["type"]]
    return status | {"conditions": [*rows, row]}


def pause_after(failures: int) -> float:
    """Lab seconds before the next pod, after so many failures in a row."""
    return float(min(BACK_OFF_FIRST * 2 ** (failures - 1), BACK_OFF_MOST)) if failures else 0.0


# --- work ---------------------------------------------------------------------------------------------------------


async def run(context: Context) -> None:
    """Works every Job until cancelled."""
    jobs, pods = context.cache(PATH), context.pods
    await context.synced(jobs, pods)
    orphans = Orphans(pods)
    work = _Worker(context, jobs, orphans, Announcer(context, COMPONENT), Timers(context))
    also = [(pods, owner_keys("Job")), (pods, orphans.keys_for(jobs)), (work.timers, Timers.keys)]
    await reconcile(context, jobs, work, also=also, workers=5)


@dataclass
class _Worker:
    """One Job at a time, brought nearer to its end."""

    context: Context
    jobs: Cache
    orphans: Orphans
    told: Announcer
    timers: Timers

    async def __call__(self, key: Key, job: Object | None) -> float | None:
        if job is None:
            self.timers.forget(key)
            for pod in self._leftovers(key):
                await self._untrack([pod])
            return None
        if job["spec"].get("managedBy", "kubernetes.io/job-controller") != "kubernetes.io/job-controller":
            return None
        pods = await claim(self.context, job, self.context.pods, self.orphans, "pods")
        if is_finished(job) or is_going(job):
            await self._untrack(pod for pod in pods if is_tracked(pod))
            await self._expire(key, job)
            return None
        job = await self._begin(job)
        job = await self._count(job, pods)
        pods = self.context.pods.owned_by(job)
        await self._go_on(key, job, pods)
        return None

    def _leftovers(self, key: Key) -> list[Object]:
        """Pods that wait for a Job that is gone."""
        keys = owner_keys("Job")
        return [pod for pod in self.context.pods.items.values() if is_tracked(pod) and key in keys(pod)]

    async def _begin(self, job: Object) -> Object:
        """The Job with its start time, or without while it is suspended."""
        status, stamp = dict(job.get("status") or {}), self.context.stamp()
        row = condition_of(job, "Suspended")
        suspended = row is not None and row["status"] == "True"
        if job["spec"].get("suspend"):
            if not suspended and not condition_of(job, "FailureTarget"):
                status = with_condition(
                    status, condition("Suspended", True, "JobSuspended", "Job suspended", stamp=stamp)
                )
                status.pop("startTime", None)
                self.told.say(job, "Suspended", "Job suspended")
                return await self._put(job, status)
            return job
        if suspended:
            status = with_condition(status, condition("Suspended", False, "JobResumed", "Job resumed", stamp=stamp))
            self.told.say(job, "Resumed", "Job resumed")
            return await self._put(job, status | {"startTime": stamp})
        if not status.get("startTime"):
            return await self._put(job, status | {"startTime": stamp})
        return job

    async def _count(self, job: Object, pods: Sequence[Object]) -> Object:
        """The Job after every ended pod was noted, let go and counted, in this order, so that none counts twice."""
        ended = [pod for pod in pods if is_tracked(pod) and (phase_of(pod) == "Succeeded" or has_failed(job, pod))]
        status = dict(job.get("status") or {})
        noted = status.get("uncountedTerminatedPods") or {}
        if not ended and not any(noted.values()):
            return job
        good = {pod["metadata"]["uid"]: pod for pod in ended if phase_of(pod) == "Succeeded"}
        bad = {pod["metadata"]["uid"]: pod for pod in ended if phase_of(pod) != "Succeeded"}
        ignored = {uid for uid, pod in bad.items() if policy_action(job, pod)[0] == "Ignore"}
        done = indexes_of(status.get("completedIndexes"))
        if is_indexed(job):  # a second success of an index counts for nothing
            for uid, pod in list(good.items()):
                index = index_of(pod)
                if index is None or index in done or index >= job["spec"].get("completions", 0):
                    del good[uid]
                else:
                    done.add(index)
        lists = {
            "succeeded": [
                *(noted.get("succeeded") or ()),
                *(u for u in good if u not in (noted.get("succeeded") or ())),
            ],
            "failed": [
                *(noted.get("failed") or ()),
                *(u for u in bad if u not in (noted.get("failed") or ()) and u not in ignored),
            ],
        }
        if is_indexed(job):
            status["completedIndexes"] = text_of(done)
        rows = {name: uids for name, uids in lists.items() if uids}
        failing = failure_of(job, pods, status.get("failed", 0) + len(lists["failed"]), overdue=False)
        if failing and not condition_of(job, "FailureTarget"):
            row = condition("FailureTarget", True, *failing, stamp=self.context.stamp())
            status = with_condition(status, row)
        job = await self._put(job, status | {"uncountedTerminatedPods": rows})
        await self._untrack(ended)
        status = dict(job["status"]) | {"uncountedTerminatedPods": {}}
        for name, uids in lists.items():
            if uids:
                status[name] = status.get(name, 0) + len(uids)
        return await self._put(job, status)

    async def _go_on(self, key: Key, job: Object, pods: Sequence[Object]) -> None:
        """Decides about the Job's end, else makes or deletes what differs; writes the counts."""
        if any(is_tracked(pod) and (phase_of(pod) == "Succeeded" or has_failed(job, pod)) for pod in pods):
            return  # ended since the count: its own change has called for another one
        status, stamp = dict(job.get("status") or {}), self.context.stamp()
        active = [pod for pod in pods if is_active(pod)]
        succeeded, failed = status.get("succeeded", 0), status.get("failed", 0)
        target = condition_of(job, "FailureTarget")
        if target is None and not condition_of(job, "SuccessCriteriaMet"):
            failing = failure_of(job, pods, failed, overdue=self._overdue(key, job))
            if failing:
                target = condition("FailureTarget", True, *failing, stamp=stamp)
                status = with_condition(status, target)
            elif is_complete(job, succeeded, len(active)) and not job["spec"].get("suspend"):
                status = with_condition(status, condition("SuccessCriteriaMet", True, *REACHED, stamp=stamp))
        refused: Refused | None = None
        if target is not None or condition_of({"status": status}, "SuccessCriteriaMet"):
            if active:
                _, refused = await self._delete(job, active)
        elif job["spec"].get("suspend"):
            if active:
                await self._untrack(active)
                _, refused = await self._delete(job, active)
        else:
            refused = await self._manage(key, job, pods, active, succeeded, failed)
        pods = self.context.pods.owned_by(job)
        await self._write(job, status, pods)
        if refused is not None:
            raise refused

    async def _write(self, job: Object, status: Object, pods: Sequence[Object]) -> None:
        active = [pod for pod in pods if is_active(pod)]
        going = [pod for pod in pods if is_going(pod) and not is_ended(pod)]
        target = condition_of({"status": status}, "FailureTarget")
        met = condition_of({"status": status}, "SuccessCriteriaMet")
        counts = {"active": len(active)}
        status = {key: value for key, value in status.items() if key != "active"}
        status |= {key: value for key, value in counts.items() if value}
        status |= {"ready": sum(1 for pod in active if is_ready(pod)), "terminating": len(going)}
        status.setdefault("uncountedTerminatedPods", {})
        stamp = self.context.stamp()
        waiting = active or going or any(is_tracked(pod) for pod in pods)
        if not waiting and target is not None:
            row = condition("Failed", True, target["reason"], target["message"], stamp=stamp)
            status = with_condition(status, row)
            self.told.say(job, target["reason"], target["message"], kind="Warning")
        elif not waiting and met is not None:
            row = condition("Complete", True, met["reason"], met["message"], stamp=stamp)
            status = with_condition(status, row) | {"completionTime": stamp}
            self.told.say(job, "Completed", "Job completed")
        await self._put(job, status)

    async def _manage(
        self, key: Key, job: Object, pods: Sequence[Object], active: Sequence[Object], succeeded: int, failed: int
    ) -> Refused | None:
        wanted = wanted_active(job, succeeded, len(active))
        if len(active) > wanted:
            chosen = ranked_for_deletion(active)[: len(active) - wanted]
            await self._untrack(chosen)
            return (await self._delete(job, chosen))[1]
        going = [pod for pod in pods if is_going(pod) and not is_ended(pod)] if replaces_late(job) else []
        missing = wanted - len(active) - len(going)
        if missing <= 0 or not self._may_try(key, pods, failed):
            return None
        indexes: list[int | None] = [None] * missing
        if is_indexed(job):
            taken = indexes_of((job.get("status") or {}).get("completedIndexes"))
            taken |= {index for pod in [*active, *going] if (index := index_of(pod)) is not None}
            free = [number for number in range(int(job["spec"]["completions"])) if number not in taken]
            indexes = [*free[:missing]]

        async def make(number: int) -> Object:
            try:
                made = await self.context.client.create(pods_path(job), made_pod(job, indexes[number]))
            except Refused as refused:
                self.told.say(job, "FailedCreate", f"Error creating: {refused.message}", kind="Warning")
                raise
            self.told.say(job, "SuccessfulCreate", f"Created pod: {made['metadata']['name']}")
            return made

        made, refused = await slow_start(min(len(indexes), BURST), make)
        await seen(self.context.pods, made)
        if refused is not None and "because it is being terminated" in refused.message:
            return None
        return refused

    def _may_try(self, key: Key, pods: Iterable[Object], failed: int) -> bool:
        """Whether the pause after the last failures is over."""
        if not failed:
            return True
        last = max((_ended_at(pod) for pod in pods if phase_of(pod) == "Failed"), default=0.0)
        good = max((_ended_at(pod) for pod in pods if phase_of(pod) == "Succeeded"), default=0.0)
        if not last or good > last:
            return True
        return self.timers.passed(key, "back-off", last, pause_after(failed), real=0.05)

    def _overdue(self, key: Key, job: Object) -> bool:
        seconds, start = job["spec"].get("activeDeadlineSeconds"), (job.get("status") or {}).get("startTime")
        if seconds is None or not start or job["spec"].get("suspend"):
            return False
        return self.timers.passed(key, "deadline", seconds_of(start), seconds, real=min(seconds, SHORTEST_DEADLINE))

    async def _expire(self, key: Key, job: Object) -> None:
        """Deletes a finished Job whose time is over."""
        seconds, kind = job["spec"].get("ttlSecondsAfterFinished"), is_finished(job)
        row = condition_of(job, kind) if kind else None
        if seconds is None or row is None or is_going(job):
            return
        since = seconds_of(row["lastTransitionTime"])
        if not self.timers.passed(key, "ttl", since, seconds, real=min(seconds, 1.0)):
            return
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": job["metadata"]["uid"]},
        }
        await self.context.client.delete(f"/apis/batch/v1/namespaces/{key[0]}/jobs/{key[1]}", body)

    # -- writing -----------------------------------------------------------------------------------------------

    async def _untrack(self, pods: Iterable[Object]) -> None:
        """Lets pods go whose end needs no counting any more."""

        async def let_go(pod: Object) -> Object | None:
            body = {"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}
            try:
                path = pods_path(pod, pod["metadata"]["name"])
                return await self.context.client.patch(path, body, content_type=STRATEGIC)
            except Refused as refused:
                if refused.code != 404:
                    raise
                return None

        tracked = [pod for pod in pods if is_tracked(pod)]
        answers = await asyncio.gather(*(let_go(pod) for pod in tracked))
        await seen(self.context.pods, (answer for answer in answers if answer is not None))

    async def _delete(self, job: Object, pods: Iterable[Object]) -> tuple[list[Object], Refused | None]:
        gone, refused = await delete_pods(self.context, pods)
        for pod in gone:
            self.told.say(job, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
        return gone, refused

    async def _put(self, job: Object, status: Object) -> Object:
        if status == (job.get("status") or {}):
            return job
        namespace, name = key_of(job)
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}/status"
        answer = await self.context.client.update(path, {**job, "status": status})
        await self.jobs.caught_up(answer)
        return answer


def _ended_at(pod: Object) -> float:
    rows = (pod.get("status") or {}).get("containerStatuses") or ()
    ends = [seconds_of(((row.get("state") or {}).get("terminated") or {}).get("finishedAt")) for row in rows]
    return max(ends, default=0.0) or seconds_of(pod["metadata"].get("creationTimestamp"))
