"""Answers that are not stored objects: access and token reviews, tokens, evictions, bindings, scale, version."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from . import auth
from .rbac import Request
from .schema import Decoder, Kind
from .selectors import from_selector
from .status import (
    ApiError,
    bad_request,
    conflict,
    forbidden,
    internal,
    invalid,
    invalid_value,
    not_found,
)

if TYPE_CHECKING:
    from .cluster import Cluster, Options, User

Json = dict[str, Any]
REVIEWS = {
    "SelfSubjectAccessReview", "SelfSubjectRulesReview", "SubjectAccessReview", "LocalSubjectAccessReview",
    "TokenReview", "SelfSubjectReview",
}  # fmt: skip


def create(cluster: Cluster, kind: Kind, namespace: str, body: Json, user: User) -> Json:
    """The answered review."""
    review = Decoder(kind).read({k: v for k, v in body.items() if k not in ("kind", "apiVersion")})
    head: Json = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": review.get("metadata") or {}}
    spec = review.get("spec") or {}
    if kind.kind == "SelfSubjectReview":
        head["metadata"] = head["metadata"] | {"creationTimestamp": cluster.now()}
        return head | {"status": {"userInfo": _info(user)}}
    if kind.kind == "TokenReview":
        return head | {"spec": spec, "status": _token_review(cluster, spec)}
    if kind.kind == "SelfSubjectRulesReview":
        where = spec.get("namespace", "")
        if not where:
            raise bad_request("no namespace on request")
        resource, paths = cluster.rbac.rules_for(user, where)
        status = {"resourceRules": resource, "nonResourceRules": paths, "incomplete": False}
        return head | {"spec": {}, "status": status}
    return head | {"spec": spec, "status": _access(cluster, kind, spec, user, namespace)}


def _info(user: User) -> Json:
    found: Json = {"username": user.name}
    if user.uid:
        found["uid"] = user.uid
    found["groups"] = list(user.groups)
    return found | ({"extra": user.extra} if user.extra else {})


def _token_review(cluster: Cluster, spec: Json) -> Json:
    audiences = spec.get("audiences")
    user, fit, error = auth.verify(cluster, spec.get("token", ""), audiences)
    if user is None:
        return {"user": {}, "error": error}
    return {"authenticated": True, "user": _info(user), "audiences": fit}


def _access(cluster: Cluster, kind: Kind, spec: Json, user: User, namespace: str) -> Json:
    from .cluster import User

    attributes, paths = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if (attributes is None) == (paths is None):
        text = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        group = kind.group
        place = "spec.resourceAttributes"
        error = invalid(group, "", "", [invalid_value(place, attributes, text)])
        raise error
    who = user
    if kind.kind in ("SubjectAccessReview", "LocalSubjectAccessReview"):
        if not spec.get("user") and not spec.get("groups"):
            text = "at least one of user or group must be specified"
            raise invalid(kind.group, "", "", [invalid_value("spec.user", "", text)])
        who = User(spec.get("user", ""), tuple(spec.get("groups") or ()), spec.get("uid", ""))
    if paths is not None:
        wish = Request(paths.get("verb", ""), path=paths.get("path", ""))
    else:
        found = attributes or {}
        wish = Request(
            found.get("verb", ""), found.get("group", ""), found.get("resource", ""), found.get("subresource", ""),
            found.get("namespace", ""), found.get("name", ""),
        )  # fmt: skip
    allowed, reason = cluster.rbac.allowed(who, wish)
    return {"allowed": allowed} | ({"reason": reason} if reason else {})


def token(cluster: Cluster, namespace: str, name: str, body: Json) -> Json:
    """The TokenRequest with its token."""
    stored = cluster.store.get("/serviceaccounts", (namespace, name))
    if stored is None:
        raise not_found("", "serviceaccounts", name)
    spec = body.get("spec") or {}
    seconds = spec.get("expirationSeconds", 3600)
    if seconds < 600:
        text = "may not specify a duration less than 10 minutes"
        place = "spec.expirationSeconds"
        raise invalid("authentication.k8s.io", "TokenRequest", "", [invalid_value(place, seconds, text)])
    bound = spec.get("boundObjectRef")
    if bound:
        place = {"Pod": "/pods", "Secret": "/secrets"}.get(bound.get("kind", ""), "")
        other = cluster.store.get(place, (namespace, bound.get("name", ""))) if place else None
        if other is None:
            raise not_found("", (place or "/objects")[1:], bound.get("name", ""))
        uid = other.obj["metadata"]["uid"]
        if bound.get("uid") and bound["uid"] != uid:
            text = f"the UID in the bound object reference ({bound['uid']}) does not match the UID in record ({uid})"
            raise conflict(
                "", place[1:], bound["name"], text + ". The object might have been deleted and then recreated"
            )
    text, until = auth.issue(
        cluster, namespace, name, stored.obj["metadata"]["uid"], seconds, spec.get("audiences"), bound
    )
    stamp = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": name, "namespace": namespace, "uid": stored.obj["metadata"]["uid"],
            "creationTimestamp": cluster.now(),
        },
        "spec": {
            "audiences": spec.get("audiences") or [auth.ISSUER], "expirationSeconds": seconds, "boundObjectRef": bound,
        },
        "status": {"token": text, "expirationTimestamp": stamp},
    }  # fmt: skip


def bind(cluster: Cluster, namespace: str, name: str, body: Json, options: Options) -> Json:
    """The Status of a pod bound to a node."""
    stored = cluster.store.get("/pods", (namespace, name))
    if stored is None:
        raise not_found("", "pods", name)
    node = (body.get("target") or {}).get("name", "")
    if not node:
        raise internal("target.name: Required value")
    current = stored.obj["spec"].get("nodeName")
    if current:
        raise conflict("", "pods/binding", name, f'pod {name} is already assigned to node "{current}"')
    if stored.obj["metadata"].get("deletionTimestamp"):
        raise conflict("", "pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host")
    if not options.dry_run:
        status = dict(stored.obj.get("status") or {})
        rows = [c for c in status.get("conditions") or [] if c.get("type") != "PodScheduled"]
        row = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": cluster.now()}
        status["conditions"] = [*rows, row]
        obj = stored.obj | {"spec": stored.obj["spec"] | {"nodeName": node}, "status": status}
        cluster.store.put("/pods", (namespace, name), obj)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def evict(cluster: Cluster, kind: Kind, namespace: str, name: str, body: Json, options: Options) -> Json:
    """The Status of an eviction; 429 when a disruption budget forbids it."""
    pod = cluster.stored(kind, namespace, name).obj
    wish = body.get("deleteOptions") or {}
    dry = options.dry_run or "All" in (wish.get("dryRun") or [])
    labels = pod["metadata"].get("labels") or {}
    done = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed", "Pending")
    budgets = [
        b for b in cluster.each("policy/poddisruptionbudgets", namespace)
        if from_selector((b.get("spec") or {}).get("selector"))(labels)
    ]  # fmt: skip
    if len(budgets) > 1 and not done:
        raise ApiError(
            500, "InternalError", "This pod has more than one PodDisruptionBudget, which the eviction subresource does "
            "not support.", {},
        )  # fmt: skip
    for budget in budgets if not done else []:
        status = budget.get("status") or {}
        label = budget["metadata"]["name"]
        if status.get("disruptionsAllowed", 0) <= 0:
            cause = (
                f"The disruption budget {label} needs {status.get('desiredHealthy', 0)} healthy pods and has "
                f"{status.get('currentHealthy', 0)} currently"
            )
            raise ApiError(
                429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.",
                {"causes": [{"reason": "DisruptionBudget", "message": cause}]},
            )  # fmt: skip
        if not dry:
            left = status | {
                "disruptionsAllowed": status["disruptionsAllowed"] - 1,
                "disruptedPods": (status.get("disruptedPods") or {}) | {name: cluster.now()},
            }
            cluster.store.put("policy/poddisruptionbudgets", (namespace, label), budget | {"status": left})
    options.dry_run = dry
    cluster.delete(kind, namespace, name, wish, options)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def rescale(cluster: Cluster, kind: Kind, obj: Json, wanted: Json, options: Options) -> Json:
    """The Scale after a write of it."""
    name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace", "")
    given = wanted.get("metadata") or {}
    if given.get("name", name) != name:
        raise bad_request(f"the name of the object ({given['name']}) does not match the name on the URL ({name})")
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    if kind.custom is not None and isinstance(replicas, int) and replicas < 0:
        place = (((kind.custom.get("subresources") or {}).get("scale")) or {}).get("specReplicasPath", ".spec.replicas")
        cause = invalid_value(place, replicas, "should be a non-negative integer")
        raise invalid(kind.group, kind.kind, name, [cause])
    if not isinstance(replicas, int) or replicas < 0:
        text = "must be greater than or equal to 0"
        raise invalid("autoscaling", "Scale", name, [invalid_value("spec.replicas", replicas, text)])
    version = given.get("resourceVersion")
    meta = obj["metadata"] | ({"resourceVersion": version} if version else {})
    paths = ((kind.custom or {}).get("subresources") or {}).get("scale") or {}
    fields = paths.get("specReplicasPath", ".spec.replicas").strip(".").split(".")
    changed: Json = json.loads(json.dumps(obj)) | {"metadata": meta}
    holder = changed
    for field in fields[:-1]:
        holder = holder.setdefault(field, {})
    holder[fields[-1]] = replicas
    after = cluster.write(kind, cluster.stored(kind, namespace, name), changed, options)
    return cluster.scale(kind, after)


# -- pods -------------------------------------------------------------------------------------------------------------


def choose_container(pod: Json, wanted: str) -> str:
    """The container a log or exec is about; ApiError 400 when it is not clear or not there."""
    spec = pod.get("spec") or {}
    own = [c["name"] for c in spec.get("containers") or []]
    early = [c["name"] for c in spec.get("initContainers") or []]
    name = pod["metadata"]["name"]
    if not wanted:
        if len(own) == 1:
            return str(own[0])
        text = f"a container name must be specified for pod {name}, choose one of: [{' '.join(own)}]"
        raise bad_request(text + (f" or one of the init containers: [{' '.join(early)}]" if early else ""))
    if wanted not in own + early:
        raise bad_request(f"container {wanted} is not valid for pod {name}")
    return wanted


def has_run(pod: Json, container: str) -> bool:
    """True when a container is running or has ended."""
    status = pod.get("status") or {}
    rows = [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]
    state = next((r.get("state") or {} for r in rows if r.get("name") == container), {})
    return bool(state) and "waiting" not in state


def not_started(pod: Json, container: str) -> ApiError:
    """400 for the log of a container that has not run yet."""
    name = pod["metadata"]["name"]
    if not (pod.get("spec") or {}).get("nodeName"):
        return bad_request(f"pod {name} does not have a host assigned")
    rows = (pod.get("status") or {}).get("containerStatuses") or []
    state = next((r.get("state") or {} for r in rows if r.get("name") == container), {})
    reason = (state.get("waiting") or {}).get("reason", "ContainerCreating")
    word = "trying and failing to pull image" if "ImagePull" in reason else reason
    text = f'container "{container}" in pod "{name}" is waiting to start: {word}'
    return bad_request(text)


def exit_status(code: int) -> Json:
    """What the error channel of exec says at the end."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }  # fmt: skip


# -- the server itself ------------------------------------------------------------------------------------------------


def version(cluster: Cluster) -> Json:
    """GET /version."""
    major, minor = cluster.version.lstrip("v").split(".")[:2]
    return {
        "major": major, "minor": minor, "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": str(int(minor) - 1),
        "gitVersion": cluster.version, "gitCommit": "0" * 40, "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "go1.25.1", "compiler": "gc", "platform": "linux/amd64",
    }  # fmt: skip


def metrics(cluster: Cluster) -> str:
    """GET /metrics: the few series a monitoring check looks for."""
    rows = [
        "# HELP apiserver_storage_objects [STABLE] Number of stored objects at the time of last check split by kind.",
        "# TYPE apiserver_storage_objects gauge",
    ]
    for bucket in sorted(cluster.store.buckets):
        group, _, plural = bucket.partition("/")
        label = f"{plural}.{group}" if group else plural
        rows.append(f'apiserver_storage_objects{{resource="{label}"}} {len(cluster.store.buckets[bucket].items)}')
    rows += [
        "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.",
        "# TYPE process_start_time_seconds gauge",
        f"process_start_time_seconds {cluster.started:.2f}",
        "# HELP kubernetes_build_info [ALPHA] A metric with a constant '1' value labelled by version.",
        "# TYPE kubernetes_build_info gauge",
        f'kubernetes_build_info{{git_version="{cluster.version}",platform="linux/amd64"}} 1',
    ]
    return "\n".join(rows) + "\n"


def refuse_name(kind: Kind, name: str, text: str) -> ApiError:
    """403 about one object."""
    return forbidden(kind.group, kind.plural, name, text)
