"""Role-based access: who may do what, why, and which rules hold for a user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .schema import Kind
from .selectors import from_selector
from .status import forbidden
from .store import Store

if TYPE_CHECKING:
    from .cluster import Cluster, User

Json = dict[str, Any]
GROUP = "rbac.authorization.k8s.io"
READ = ["get", "list", "watch"]
WRITE = ["create", "delete", "deletecollection", "patch", "update"]


@dataclass(frozen=True)
class Request:
    """What someone wants to do."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""  # of a non-resource request


def _role(name: str, rules: list[Json] | None, **extra: Any) -> Json:
    meta: Json = {
        "name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"} | extra.pop("labels", {}),
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    }  # fmt: skip
    role = {"apiVersion": f"{GROUP}/v1", "kind": "ClusterRole", "metadata": meta, "rules": rules}
    return role | extra


def _bind(name: str, *subjects: tuple[str, str]) -> Json:
    return {
        "apiVersion": f"{GROUP}/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": kind, "apiGroup": GROUP, "name": who} for kind, who in subjects],
    }  # fmt: skip


def _rules(group: str, resources: str, verbs: list[str]) -> Json:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": verbs}


def bootstrap_objects() -> list[Json]:
    """The cluster roles and bindings every cluster starts with (those a client can notice)."""
    paths = ["/healthz", "/livez", "/readyz", "/version", "/version/"]
    discovery = ["/api", "/api/*", "/apis", "/apis/*", *paths[:3], "/openapi", "/openapi/*", *paths[3:]]
    view = [
        _rules("", "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods "
               "replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status", READ),
        _rules("", "bindings events limitranges namespaces/status pods/log pods/status "
               "replicationcontrollers/status resourcequotas resourcequotas/status", READ),
        _rules("", "namespaces", READ),
        _rules("discovery.k8s.io", "endpointslices", READ),
        _rules("apps", "controllerrevisions daemonsets daemonsets/status deployments deployments/scale "
               "deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale "
               "statefulsets/status", READ),
        _rules("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", READ),
        _rules("batch", "cronjobs cronjobs/status jobs jobs/status", READ),
        _rules("policy", "poddisruptionbudgets poddisruptionbudgets/status", READ),
        _rules("networking.k8s.io", "ingresses ingresses/status networkpolicies", READ),
        _rules("events.k8s.io", "events", READ),
        _rules("extensions", "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses "
               "ingresses/status networkpolicies replicasets replicasets/scale replicasets/status "
               "replicationcontrollers/scale", READ),
        _rules("resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates", READ),
    ]  # fmt: skip
    edit = [
        _rules("", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", READ),
        _rules("", "serviceaccounts", ["impersonate"]),
        _rules("", "pods pods/attach pods/exec pods/portforward pods/proxy", WRITE),
        _rules("", "pods/eviction", ["create"]),
        _rules("", "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale "
               "secrets serviceaccounts services services/proxy", WRITE),
        _rules("", "serviceaccounts/token", ["create"]),
        _rules("apps", "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale "
               "statefulsets statefulsets/scale", WRITE),
        _rules("autoscaling", "horizontalpodautoscalers", WRITE),
        _rules("batch", "cronjobs jobs", WRITE),
        _rules("policy", "poddisruptionbudgets", WRITE),
        _rules("networking.k8s.io", "ingresses networkpolicies", WRITE),
        _rules("coordination.k8s.io", "leases", [*WRITE, *READ]),
    ]  # fmt: skip
    admin = [
        _rules("authorization.k8s.io", "localsubjectaccessreviews", ["create"]),
        _rules(GROUP, "rolebindings roles", [*WRITE, *READ]),
    ]
    label = "rbac.authorization.k8s.io/aggregate-to-"

    def collect(name: str) -> Json:
        return {"clusterRoleSelectors": [{"matchLabels": {f"{label}{name}": "true"}}]}

    everything: list[Json] = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]  # fmt: skip
    return [
        _role("cluster-admin", everything),
        _bind("cluster-admin", ("Group", "system:masters")),
        _role("system:discovery", [{"nonResourceURLs": discovery, "verbs": ["get"]}]),
        _bind("system:discovery", ("Group", "system:authenticated")),
        _role("system:public-info-viewer", [{"nonResourceURLs": paths, "verbs": ["get"]}]),
        _bind("system:public-info-viewer", ("Group", "system:authenticated"), ("Group", "system:unauthenticated")),
        _role("system:basic-user", [
            _rules("authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", ["create"]),
            _rules("authentication.k8s.io", "selfsubjectreviews", ["create"]),
        ]),
        _bind("system:basic-user", ("Group", "system:authenticated")),
        _role("system:service-account-issuer-discovery", [
            {"nonResourceURLs": ["/.well-known/openid-configuration", "/.well-known/openid-configuration/",
                                 "/openid/v1/jwks", "/openid/v1/jwks/"], "verbs": ["get"]},
        ]),
        _bind("system:service-account-issuer-discovery", ("Group", "system:serviceaccounts")),
        _role("system:monitoring", [
            {"nonResourceURLs": ["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis",
                                 "/readyz", "/readyz/*"], "verbs": ["get"]},
        ]),
        _bind("system:monitoring", ("Group", "system:monitoring")),
        _role("system:aggregate-to-view", view, labels={f"{label}view": "true"}),
        _role("system:aggregate-to-edit", edit, labels={f"{label}edit": "true"}),
        _role("system:aggregate-to-admin", admin, labels={f"{label}admin": "true"}),
        _role("view", None, labels={f"{label}edit": "true"}, aggregationRule=collect("view")),
        _role("edit", None, labels={f"{label}admin": "true"}, aggregationRule=collect("edit")),
        _role("admin", None, aggregationRule=collect("admin")),
    ]  # fmt: skip


def aggregate(cluster: Cluster) -> None:
    """Fills the rules of aggregated cluster roles where they changed."""
    bucket = f"{GROUP}/clusterroles"
    for _ in range(4):  # view feeds edit feeds admin
        changed = False
        roles = list(cluster.each(bucket))
        for role in roles:
            rule = role.get("aggregationRule")
            if not rule:
                continue
            tests = [from_selector(selector) for selector in rule.get("clusterRoleSelectors") or []]
            rules: list[Json] = []
            for other in roles:
                labels = other["metadata"].get("labels") or {}
                if other is not role and any(test(labels) for test in tests):
                    rules += [r for r in other.get("rules") or [] if r not in rules]
            if (role.get("rules") or []) != rules:
                cluster.store.put(bucket, ("", role["metadata"]["name"]), role | {"rules": rules})
                changed = True
        if not changed:
            break
    cluster.dirty.discard(("aggregate", ""))


def _rule_allows(rule: Json, request: Request) -> bool:
    verbs = rule.get("verbs") or []
    if request.verb not in verbs and "*" not in verbs:
        return False
    if request.path:
        return any(_path_matches(url, request.path) for url in rule.get("nonResourceURLs") or [])
    groups = rule.get("apiGroups") or []
    if request.group not in groups and "*" not in groups:
        return False
    wanted = request.resource + (f"/{request.subresource}" if request.subresource else "")
    resources = rule.get("resources") or []
    star = f"*/{request.subresource}" if request.subresource else wanted
    if wanted not in resources and "*" not in resources and star not in resources:
        return False
    names = rule.get("resourceNames") or []
    return not names or request.name in names


def _path_matches(pattern: str, path: str) -> bool:
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern[:-1]))


def _subject_is(subject: Json, user: User, namespace: str) -> bool:
    kind, name = subject.get("kind"), subject.get("name")
    if kind == "User":
        return name == user.name
    if kind == "Group":
        return name in user.groups
    where = subject.get("namespace") or namespace
    return user.name == f"system:serviceaccount:{where}:{name}"


class Rules:
    """Answers questions about access from the roles and bindings in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def _objects(self, plural: str, namespace: str = "") -> Iterator[Json]:
        for _, stored in self.store.scan(f"{GROUP}/{plural}", namespace):
            yield stored.obj

    def _role(self, reference: Json, namespace: str) -> list[Json]:
        plural, where = ("clusterroles", "") if reference.get("kind") == "ClusterRole" else ("roles", namespace)
        found = self.store.get(f"{GROUP}/{plural}", (where, reference.get("name", "")))
        return (found.obj.get("rules") or []) if found else []

    def grants(self, user: User, namespace: str) -> Iterator[tuple[Json, str]]:
        """Each rule that holds for a user, with the reason an access review gives."""
        for binding in self._objects("clusterrolebindings"):
            for subject in binding.get("subjects") or []:
                if _subject_is(subject, user, ""):
                    label = f'RBAC: allowed by ClusterRoleBinding "{binding["metadata"]["name"]}"'
                    yield from self._explained(binding, subject, "", label)
        if namespace:
            for binding in self._objects("rolebindings", namespace):
                for subject in binding.get("subjects") or []:
                    if _subject_is(subject, user, namespace):
                        label = f'RBAC: allowed by RoleBinding "{binding["metadata"]["name"]}/{namespace}"'
                        yield from self._explained(binding, subject, namespace, label)

    def _explained(self, binding: Json, subject: Json, namespace: str, label: str) -> Iterator[tuple[Json, str]]:
        role = binding.get("roleRef") or {}
        who = subject["name"]
        if subject["kind"] == "ServiceAccount":
            who = f"{subject['name']}/{subject.get('namespace') or namespace}"
        reason = f'{label} of {role.get("kind")} "{role.get("name")}" to {subject["kind"]} "{who}"'
        for rule in self._role(role, namespace):
            yield rule, reason

    def allowed(self, user: User, request: Request) -> tuple[bool, str]:
        """Whether a user may, and the reason a review shows ("" for members of system:masters and refusals)."""
        if "system:masters" in user.groups:
            return True, ""
        for rule, reason in self.grants(user, request.namespace):
            if _rule_allows(rule, request):
                return True, reason
        return False, ""

    def rules_for(self, user: User, namespace: str) -> tuple[list[Json], list[Json]]:
        """The resource and non-resource rules of a user in a namespace."""
        resource: list[Json] = []
        paths: list[Json] = []
        if "system:masters" in user.groups:
            resource.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
            paths.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
        for rule, _ in self.grants(user, namespace):
            if rule.get("nonResourceURLs"):
                paths.append({"verbs": rule["verbs"], "nonResourceURLs": rule["nonResourceURLs"]})
            else:
                keys = ("verbs", "apiGroups", "resources", "resourceNames")
                resource.append({key: rule[key] for key in keys if rule.get(key)})
        return resource, paths

    def escalation(self, kind: Kind, obj: Json, user: User) -> None:
        """Refuses with 403 a role or binding that grants more than its author holds."""
        if "system:masters" in user.groups or kind.plural not in _GRANTING:
            return
        namespace = obj["metadata"].get("namespace", "")
        name = obj["metadata"].get("name", "")
        if kind.plural.endswith("bindings"):
            role = obj.get("roleRef") or {}
            plural = "clusterroles" if role.get("kind") == "ClusterRole" else "roles"
            bind = Request("bind", GROUP, plural, "", namespace, role.get("name", ""))
            if self.allowed(user, bind)[0]:
                return
            rules = self._role(role, namespace)
        else:
            if self.allowed(user, Request("escalate", GROUP, kind.plural, "", namespace, name))[0]:
                return
            rules = obj.get("rules") or []
        missing = [row for rule in rules for row in self._missing(rule, user, namespace)]
        if missing:
            groups = " ".join(f'"{group}"' for group in user.groups)
            text = (
                f'user "{user.name}" (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:\n'
                + "\n".join(_show_rule(row) for row in _compact(missing))
            )
            raise forbidden(kind.group, kind.plural, name, text)

    def _missing(self, rule: Json, user: User, namespace: str) -> Iterator[tuple[str, str, str]]:
        for group in rule.get("apiGroups") or []:
            for resource in rule.get("resources") or []:
                plural, _, part = resource.partition("/")
                for verb in rule.get("verbs") or []:
                    if not self.allowed(user, Request(verb, group, plural, part, namespace))[0]:
                        yield group, resource, verb


_GRANTING = {"roles", "clusterroles", "rolebindings", "clusterrolebindings"}


def _compact(rows: Iterable[tuple[str, str, str]]) -> list[Json]:
    found: dict[tuple[str, str], list[str]] = {}
    for group, resource, verb in rows:
        verbs = found.setdefault((group, resource), [])
        if verb not in verbs:
            verbs.append(verb)
    return [{"group": g, "resource": r, "verbs": verbs} for (g, r), verbs in sorted(found.items())]


def _show_rule(row: Json) -> str:
    verbs = " ".join(f'"{verb}"' for verb in row["verbs"])
    return f'{{APIGroups:["{row["group"]}"], Resources:["{row["resource"]}"], Verbs:[{verbs}]}}'
