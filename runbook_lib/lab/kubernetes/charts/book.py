"""The charts of the lab's internet and of the platform: which versions there are, and the objects each renders.

A chart that is not here cannot be rendered; whoever asks for it hears what Helm would say.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from . import cluster_api, tenant, tenant_cluster

Object = dict[str, Any]


class Broken(Exception):
    """A template failed; the text is Helm's."""


@dataclass(frozen=True)
class Given:
    """What a template is given: the release, its values, the version, and the release's namespace as it is."""

    name: str
    namespace: str
    values: Object
    chart: str
    version: str
    app: str
    space: Object = field(default_factory=dict)

    @property
    def full(self) -> str:
        """The name that Helm's starter template gives: the release's, with the chart's where it lacks it."""
        wished = self.values.get("fullnameOverride")
        name = str(self.values.get("nameOverride") or self.chart)
        return str(wished or (self.name if name in self.name else f"{self.name}-{name}"))[:63].rstrip("-")

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the starter template."""
        return {"helm.sh/chart": f"{self.chart}-{self.version}".replace("+", "_"), **self.selector,
                "app.kubernetes.io/version": self.app, "app.kubernetes.io/managed-by": "Helm"}  # fmt: skip

    @property
    def selector(self) -> dict[str, str]:
        """The labels of the starter template's selectors."""
        return {"app.kubernetes.io/name": self.chart, "app.kubernetes.io/instance": self.name}


@dataclass(frozen=True)
class Chart:
    """One chart: where it is published, its versions with their applications', its values, its templates."""

    name: str
    places: tuple[str, ...]
    versions: Mapping[str, str]
    render: Callable[[Given], list[Object]]
    values: Object = field(default_factory=dict)
    title: str = ""  # what Chart.yaml calls it, where the artifact has a longer name


def merged(under: Object, over: Object) -> Object:
    """Values over values, as Helm lays them: maps deep, all else replaced, null takes away."""
    done = dict(under)
    for key, value in over.items():
        if value is None:
            done.pop(key, None)
        elif isinstance(value, dict) and isinstance(done.get(key), dict):
            done[key] = merged(done[key], value)
        else:
            done[key] = value
    return done


def _numbers(version: str) -> tuple[int, int, int]:
    found = re.match(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0), int(found[3] or 0)) if found else (0, 0, 0)


def fits(version: str, constraint: str) -> bool:
    """Whether a version meets a constraint: "1.2.3", "1.2.x", "^1.2", "~1.2.3", ">=1.0 <2.0", "*"."""
    have = _numbers(version)
    for word in re.sub(r"([<>=~^!]+)\s+", r"\1", constraint or "*").replace(",", " ").split():
        sign, rest = re.match(r"([<>=~^!]*)(.*)", word).groups()  # type: ignore[union-attr]
        parts = re.sub(r"[-+].*", "", rest.lstrip("v")).split(".")
        digits = [int(part) for part in parts if part.isdigit()]
        want = _numbers(rest)
        if rest in {"*", "x", "X", ""}:
            continue
        if sign in {"", "="}:
            ok = have[: len(digits)] == tuple(digits) if len(digits) < 3 else have == want
        elif sign == "^":
            ok = have >= want and (have[0] == want[0] if want[0] else have[:2] == want[:2])
        elif sign == "~":
            ok = have >= want and have[: max(min(len(digits), 2), 1)] == want[: max(min(len(digits), 2), 1)]
        else:
            ok = {">=": have >= want, "<=": have <= want, ">": have > want, "<": have < want, "!=": have != want}[sign]
        if not ok:
            return False
    return True


def newest(chart: Chart, constraint: str) -> str:
    """The highest version of the chart that meets the constraint; empty when none does."""
    return max((version for version in chart.versions if fits(version, constraint)), key=_numbers, default="")


def at(url: str, name: str = "") -> Chart | None:
    """The chart of a repository's URL, or of a whole OCI reference, or None."""
    whole = url.rstrip("/") + (f"/{name}" if name else "")
    return next((row for row in CHARTS if whole in {f"{place}/{row.name}" for place in row.places}), None)


def known_place(url: str) -> bool:
    """Whether anything is published at the URL of a repository."""
    return any(url.rstrip("/") in row.places for row in CHARTS)


def of_platform(name: str) -> Chart | None:
    """The chart of that name that CozyStack ships, or None."""
    return next((row for row in PLATFORM if row.name == name), None)


def rendered(chart: Chart, given: Given) -> list[Object]:
    """The objects of a release, as Helm labels them. Raises Broken."""
    items = chart.render(given)
    for item in items:
        meta = item["metadata"]
        meta.setdefault("labels", {})["app.kubernetes.io/managed-by"] = "Helm"
        meta.setdefault("annotations", {}).update(
            {"meta.helm.sh/release-name": given.name, "meta.helm.sh/release-namespace": given.namespace}
        )
    return items


def _thing(api: str, kind: str, name: str, space: str = "", *, labels: Object | None = None, **body: Any) -> Object:
    meta: Object = {"name": name, **({"namespace": space} if space else {})}
    return {"apiVersion": api, "kind": kind, "metadata": meta | ({"labels": dict(labels)} if labels else {}), **body}


def _text(value: Any) -> str:
    return base64.b64encode(yaml.safe_dump(value, sort_keys=False).encode()).decode()


_RBAC = "rbac.authorization.k8s.io"


def _account(given: Given, name: str, rules: list[Object], *, more: list[Object] | None = None) -> list[Object]:
    """A ServiceAccount with a ClusterRole of its own name, and a Role where `more` says what."""
    space, labels = given.namespace, given.labels
    subject = [{"kind": "ServiceAccount", "name": name, "namespace": space}]

    def bound(kind: str) -> Object:
        return {"apiGroup": _RBAC, "kind": kind, "name": name}

    items = [
        _thing("v1", "ServiceAccount", name, space, labels=labels),
        _thing(f"{_RBAC}/v1", "ClusterRole", name, labels=labels, rules=rules),
        _thing(f"{_RBAC}/v1", "ClusterRoleBinding", name, roleRef=bound("ClusterRole"), subjects=subject),
    ]
    if more:
        items += [
            _thing(f"{_RBAC}/v1", "Role", name, space, labels=labels, rules=more),
            _thing(f"{_RBAC}/v1", "RoleBinding", name, space, roleRef=bound("Role"), subjects=subject),
        ]
    return items


def _rule(groups: str, resources: str, verbs: str) -> Object:
    return {"apiGroups": groups.split(","), "resources": resources.split(), "verbs": verbs.split()}


# -- proxmox-csi-plugin -----------------------------------------------------------------------------------------------

DRIVER = "csi.proxmox.sinextra.dev"
_SOCKET = "--csi-address=unix:///csi/csi.sock"


def _config(given: Given) -> tuple[list[Object], str]:
    """The Secret with the Proxmox clusters, unless there is one already; and its name."""
    existing = given.values.get("existingConfigSecret")
    if existing:
        return [], str(existing)
    data = {"config.yaml": _text(given.values.get("config") or {})}
    return [
        _thing("v1", "Secret", given.full, given.namespace, labels=given.labels, type="Opaque", data=data)
    ], given.full


def _side(image: str, *args: str, env: list[Object] | None = None) -> Object:
    name = image.rpartition("/")[2].partition(":")[0]
    row: Object = {
        "name": "liveness-probe" if name == "livenessprobe" else name,
        "image": f"registry.k8s.io/sig-storage/{image}", "imagePullPolicy": "IfNotPresent",
        "args": ["-v=5", _SOCKET, *args], "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "volumeMounts": [{"name": "socket-dir", "mountPath": "/csi"}],
    }  # fmt: skip
    return row | ({"env": env} if env else {})


_SIDES = {
    "0.3": ("csi-attacher:v4.8.0", "csi-provisioner:v5.1.0", "csi-resizer:v1.13.1", "v2.13.0", "v2.14.0"),
    "0.5": ("csi-attacher:v4.10.0", "csi-provisioner:v5.3.0", "csi-resizer:v1.14.0", "v2.15.0", "v2.17.0"),
}
"""The sidecars of a series: attacher, provisioner, resizer, and the tags of registrar and probe."""


def _csi(given: Given) -> list[Object]:
    attacher, provisioner, resizer, registrar, liveness = _SIDES[given.version.rpartition(".")[0]]
    values, full, space = given.values, given.full, given.namespace
    secrets, secret = _config(given)
    labels, selector = given.labels, {**given.selector, "app.kubernetes.io/component": "controller"}
    provisioning = [
        _rule("", "persistentvolumes", "get list watch create patch delete"),
        _rule("", "persistentvolumeclaims", "get list watch update"),
        _rule("", "persistentvolumeclaims/status", "patch"),
        _rule("", "events", "get list watch create update patch"),
        _rule("", "nodes pods", "get list watch"),
        _rule("storage.k8s.io", "storageclasses csinodes volumeattributesclasses", "get list watch"),
        _rule("storage.k8s.io", "volumeattachments", "get list watch patch"),
        _rule("storage.k8s.io", "volumeattachments/status", "patch"),
    ]
    leading = [
        _rule("coordination.k8s.io", "leases", "get watch list delete update create"),
        _rule("storage.k8s.io", "csistoragecapacities", "get list watch create update patch delete"),
        _rule("", "pods", "get"), _rule("apps", "replicasets", "get"),
    ]  # fmt: skip
    own = [{"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}}
           for key, path in (("NAMESPACE", "metadata.namespace"), ("POD_NAME", "metadata.name"))]  # fmt: skip
    plugin = (values.get("controller") or {}).get("plugin") or {}
    node = values.get("node") or {}
    driver = {
        "name": f"{full}-controller", "imagePullPolicy": "IfNotPresent",
        "image": _image(plugin, "ghcr.io/sergelogvinov/proxmox-csi-controller", given.app),
        "args": ["-v=5", _SOCKET, "--cloud-config=/etc/proxmox/config.yaml"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "volumeMounts": [{"name": "socket-dir", "mountPath": "/csi"},
                         {"name": "cloud-config", "mountPath": "/etc/proxmox/"}, *_more(values, "extraVolumeMounts")],
    }  # fmt: skip
    wait = f"--timeout={values.get('timeout', '3m')}"
    snapshotter = (values.get("controller") or {}).get("snapshotter") or {}
    copying = [_side("csi-snapshotter:v8.3.0", wait, "--leader-election")] if snapshotter.get("enabled") else []
    if copying and given.version.startswith("0.5"):
        group = "snapshot.storage.k8s.io"
        provisioning += [
            _rule(group, "volumesnapshots volumesnapshotclasses", "get list watch"),
            _rule(group, "volumesnapshotcontents", "get list watch update patch"),
            _rule(group, "volumesnapshotcontents/status", "update patch"),
        ]
    source: Object = {"secretName": secret}
    if values.get("existingConfigSecret"):
        key = values.get("existingConfigSecretKey") or "config.yaml"
        source["items"] = [{"key": key, "path": "config.yaml"}]
    controller = {
        "enableServiceLinks": False, "serviceAccountName": f"{full}-controller",
        "priorityClassName": values.get("priorityClassName") or "system-cluster-critical",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532},
        "containers": [
            driver,
            _side(attacher, wait, "--leader-election", "--default-fstype=ext4"),
            _side(provisioner, wait, "--leader-election", "--default-fstype=ext4",
                  "--feature-gates=Topology=True", "--enable-capacity", "--capacity-ownerref-level=2", env=own),
            _side(resizer, wait, "--handle-volume-inuse-error=false", "--leader-election"),
            *(copying if given.version.startswith("0.5") else ()),
            _side(f"livenessprobe:{liveness}"),
        ],
        "volumes": [{"name": "socket-dir", "emptyDir": {}}, {"name": "cloud-config", "secret": source},
                    *_more(values, "extraVolumes")],
        **_placed(values),
    }  # fmt: skip
    folder = str(node.get("kubeletDir", "/var/lib/kubelet"))
    on_node = {**given.selector, "app.kubernetes.io/component": "node"}
    agent = {
        "name": f"{full}-node", "imagePullPolicy": "IfNotPresent",
        "image": _image(node.get("plugin") or {}, "ghcr.io/sergelogvinov/proxmox-csi-node", given.app),
        "args": ["-v=5", _SOCKET, "--node-id=$(NODE_NAME)"], "securityContext": {"privileged": True},
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "volumeMounts": [{"name": "socket", "mountPath": "/csi"}, {"name": "dev", "mountPath": "/dev"},
                         {"name": "kubelet", "mountPath": folder, "mountPropagation": "Bidirectional"}],
    }  # fmt: skip
    registration = f"--kubelet-registration-path={folder}/plugins/{DRIVER}/csi.sock"
    sides = [_side(f"csi-node-driver-registrar:{registrar}", registration), _side(f"livenessprobe:{liveness}")]
    for side in sides:
        side["volumeMounts"][0]["name"] = "socket"
    sides[0]["volumeMounts"].append({"name": "registration", "mountPath": "/registration"})
    paths = {
        "socket": (f"{folder}/plugins/{DRIVER}/", "DirectoryOrCreate"), "dev": ("/dev", "Directory"),
        "registration": (f"{folder}/plugins_registry/", "Directory"), "kubelet": (folder, "Directory"),
    }  # fmt: skip
    node_pod = {
        "priorityClassName": "system-node-critical", "enableServiceLinks": False,
        "serviceAccountName": f"{full}-node", "securityContext": {"runAsUser": 0, "runAsGroup": 0},
        "containers": [agent, *sides],
        "volumes": [{"name": name, "hostPath": {"path": path, "type": kind}} for name, (path, kind) in paths.items()],
        "tolerations": node.get("tolerations") or [
            {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoSchedule"}
            for key in ("unschedulable", "disk-pressure")
        ],
        **({"nodeSelector": node["nodeSelector"]} if node.get("nodeSelector") else {}),
    }  # fmt: skip
    return [
        *secrets,
        *_account(given, f"{full}-controller", provisioning, more=leading),
        *_account(given, f"{full}-node", [_rule("", "nodes", "get"), _rule("", "events", "create patch")]),
        _thing("storage.k8s.io/v1", "CSIDriver", DRIVER, labels=labels, spec={
            "attachRequired": True, "podInfoOnMount": True, "storageCapacity": True,
            "volumeLifecycleModes": ["Persistent"],
        }),
        *(_class(row) for row in values.get("storageClass") or ()),
        _thing("apps/v1", "Deployment", f"{full}-controller", space, labels=labels, spec={
            "replicas": values.get("replicaCount", 1), "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": selector}, "spec": controller},
        }),
        _thing("apps/v1", "DaemonSet", f"{full}-node", space, labels=labels, spec={
            "updateStrategy": {"type": "RollingUpdate"}, "selector": {"matchLabels": on_node},
            "template": {"metadata": {"labels": on_node}, "spec": node_pod},
        }),
    ]  # fmt: skip


def _image(given: Object, repository: str, tag: str) -> str:
    image = given.get("image") or {}
    return f"{image.get('repository') or repository}:{image.get('tag') or tag}"


def _placed(values: Object) -> Object:
    return {key: values[key] for key in ("nodeSelector", "tolerations", "affinity", "hostAliases") if values.get(key)}


def _more(values: Object, key: str) -> list[Object]:
    return list(values.get(key) or ())


def _class(row: Object) -> Object:
    """A StorageClass of the chart's list."""
    parameters = {
        "csi.storage.k8s.io/fstype": row.get("fstype") or "ext4", "storage": row.get("storage", ""),
        **{key: str(row[key]) for key in ("cache",) if row.get(key)},
        **({"ssd": "true"} if row.get("ssd") else {}), **(row.get("extraParameters") or {}),
    }  # fmt: skip
    more = {key: row[key] for key in ("mountOptions", "allowedTopologies") if row.get(key)}
    item = _thing("storage.k8s.io/v1", "StorageClass", row["name"], provisioner=DRIVER, allowVolumeExpansion=True,
                  volumeBindingMode="WaitForFirstConsumer", reclaimPolicy=row.get("reclaimPolicy") or "Delete",
                  parameters=parameters, **more)  # fmt: skip
    if row.get("annotations"):
        item["metadata"]["annotations"] = dict(row["annotations"])
    return item


# -- proxmox-cloud-controller-manager ---------------------------------------------------------------------------------


def _ccm(given: Given) -> list[Object]:
    values, full = given.values, given.full
    secrets, secret = _config(given)
    enabled = ",".join(values.get("enabledControllers") or ("cloud-node", "cloud-node-lifecycle"))
    container = {
        "name": given.chart, "imagePullPolicy": "IfNotPresent",
        "image": _image(values, "ghcr.io/sergelogvinov/proxmox-cloud-controller-manager", given.app),
        "args": [
            f"--v={values.get('logVerbosityLevel', 2)}", "--cloud-provider=proxmox",
            "--cloud-config=/etc/proxmox/config.yaml", f"--controllers={enabled}",
            "--leader-elect-resource-name=cloud-controller-manager-proxmox", "--use-service-account-credentials",
            "--secure-port=10258", *(values.get("extraArgs") or ()),
        ],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 10258, "scheme": "HTTPS"},
                          "initialDelaySeconds": 20, "periodSeconds": 30, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "volumeMounts": [{"name": "cloud-config", "mountPath": "/etc/proxmox", "readOnly": True},
                         *_more(values, "extraVolumeMounts")],
    }  # fmt: skip
    checksum = hashlib.sha256(json.dumps(values.get("config") or {}, sort_keys=True).encode()).hexdigest()
    source: Object = {"secretName": secret, "defaultMode": 416}
    if values.get("existingConfigSecret"):
        source["items"] = [{"key": values.get("existingConfigSecretKey") or "config.yaml", "path": "config.yaml"}]
    pod = {
        "enableServiceLinks": False, "priorityClassName": "system-cluster-critical", "serviceAccountName": full,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10258, "runAsGroup": 10258, "fsGroup": 10258},
        "containers": [container],
        "volumes": [{"name": "cloud-config", "secret": source}, *_more(values, "extraVolumes")],
        "tolerations": [
            {"effect": "NoSchedule", "key": "node-role.kubernetes.io/control-plane", "operator": "Exists"},
            {"effect": "NoSchedule", "key": "node.cloudprovider.kubernetes.io/uninitialized", "operator": "Exists"},
        ],
        **_placed(values),
    }  # fmt: skip
    rules = [
        _rule("coordination.k8s.io", "leases", "get create update"), _rule("", "events", "create patch update"),
        _rule("", "nodes", "get list watch create update patch delete"), _rule("", "nodes/status", "patch"),
        _rule("", "serviceaccounts", "create get"), _rule("", "serviceaccounts/token", "create"),
    ]  # fmt: skip
    template = {
        "metadata": {"labels": given.selector, "annotations": {"checksum/config": checksum}},
        "spec": pod,
    }
    return [
        *secrets,
        *_account(given, full, rules),
        _thing("apps/v1", "Deployment", full, given.namespace, labels=given.labels, spec={
            "replicas": values.get("replicaCount", 1), "selector": {"matchLabels": given.selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}, "template": template,
        }),
    ]  # fmt: skip


# -- prometheus-pve-exporter ------------------------------------------------------------------------------------------


def _exporter(given: Given) -> list[Object]:
    values, full = given.values, given.full
    env = {"pveAuthType": "token", "pveUser": "user", "pveVerifySsl": "true", **(values.get("env") or {})}
    secret = str(env.get("pveExistingSecretName") or full)
    token = env["pveAuthType"] == "token"
    keys = {"tokenName": "PVE_TOKEN_NAME", "tokenValue": "PVE_TOKEN_VALUE"} if token else {"password": "PVE_PASSWORD"}
    items: list[Object] = []
    if secret == full:
        written = {key: str(env.get(f"pve{key[0].upper()}{key[1:]}", key)) for key in keys}
        data = {key: base64.b64encode(text.encode()).decode() for key, text in written.items()}
        items.append(_thing("v1", "Secret", full, given.namespace, labels=given.labels, type="Opaque", data=data))
    image = values.get("image") or {}
    repository = (
        f"{image.get('registry') or 'docker.io'}/{image.get('repository') or 'prompve/prometheus-pve-exporter'}"
    )
    container = {
        "name": given.chart, "image": f"{repository}:{image.get('tag') or given.app}",
        "imagePullPolicy": "IfNotPresent", "ports": [{"name": "http", "containerPort": 9221, "protocol": "TCP"}],
        "env": [
            {"name": "PVE_USER", "value": str(env["pveUser"])},
            {"name": "PVE_VERIFY_SSL", "value": str(env["pveVerifySsl"]).lower()},
            *({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
              for key, name in keys.items()),
        ],
        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        **({"args": list(values["args"])} if values.get("args") else {}),
    }  # fmt: skip
    pod = {"serviceAccountName": full, "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}],
           **_placed(values)}  # fmt: skip
    return [
        *items,
        _thing("v1", "ServiceAccount", full, given.namespace, labels=given.labels),
        _thing("v1", "Service", full, given.namespace, labels=given.labels, spec={
            "type": "ClusterIP", "selector": given.selector,
            "ports": [{"port": 9221, "targetPort": "http", "protocol": "TCP", "name": "http"}],
        }),
        _thing("apps/v1", "Deployment", full, given.namespace, labels=given.labels, spec={
            "replicas": values.get("replicaCount", 1), "selector": {"matchLabels": given.selector},
            "template": {"metadata": {"labels": given.selector}, "spec": pod},
        }),
    ]  # fmt: skip


# -- CozyStack's own --------------------------------------------------------------------------------------------------


def _providers(given: Given) -> list[Object]:
    """CAPMOX the way CozyStack feeds its operator: packed components in a ConfigMap, and the provider itself."""
    version = str(given.values.get("version") or "v0.6.2")
    row = cluster_api.project("Infrastructure", "proxmox")
    if row is None or version not in row.versions:
        raise Broken(f"no components of CAPMOX {version}")
    text = yaml.safe_dump_all(cluster_api.release(row, version), sort_keys=False)
    label = {"infraprovider-components": "proxmox"}
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    item = _thing("v1", "ConfigMap", version, given.namespace, labels=label,
                  binaryData={"components": packed},
                  data={"metadata": yaml.safe_dump(cluster_api.metadata(row))})  # fmt: skip
    item["metadata"]["annotations"] = {"provider.cluster.x-k8s.io/compressed": "true"}
    spec: Object = {"version": version, "fetchConfig": {"selector": {"matchLabels": label}}}
    if given.values.get("configSecret"):
        spec["configSecret"] = given.values["configSecret"]
    kind = "InfrastructureProvider"
    return [item, _thing("operator.cluster.x-k8s.io/v1alpha2", kind, "proxmox", given.namespace, spec=spec)]


def tenant_name(release: str, namespace: str) -> str:
    """The namespace of a tenant: tenant-a in tenant-root is tenant-a, tenant-b in tenant-a is tenant-a-b."""
    own = release.removeprefix("tenant-")
    if namespace == tenant.ROOT or not namespace.startswith("tenant-"):
        return f"tenant-{own}"
    return f"{namespace}-{own}"


_SERVICES = ("etcd", "ingress", "monitoring", "seaweedfs")


def _tenant(given: Given) -> list[Object]:
    """packages/apps/tenant of CozyStack: the namespace, its values, its policies, its people, its services."""
    own = given.name.removeprefix("tenant-")
    if "-" in own or not given.name.startswith("tenant-"):
        words = f"execution error at (tenant/templates/tenant.yaml:1:3): tenant name {own} must not contain dashes"
        raise Broken(words)
    name, values = tenant_name(given.name, given.namespace), given.values
    above = (given.space.get("metadata") or {}).get("labels") or {}
    held = {key: str(above.get(f"namespace.cozystack.io/{key}", "")) for key in _SERVICES}
    held |= {key: name for key in _SERVICES if values.get(key)}
    parent_host = str(above.get("namespace.cozystack.io/host", ""))
    host = str(values.get("host") or (f"{own}.{parent_host}" if parent_host else ""))
    ancestors = [part for part in above if part.startswith("tenant.cozystack.io/")]
    labels = {
        f"tenant.cozystack.io/{name}": "", **dict.fromkeys(ancestors, ""), "namespace.cozystack.io/gateway": "",
        **{f"namespace.cozystack.io/{key}": value for key, value in held.items()},
        "namespace.cozystack.io/host": host, "alpha.kubevirt.io/auto-memory-limits-ratio": "1.0",
    }  # fmt: skip
    items = [
        _thing("v1", "Namespace", name, labels=labels),
        _thing("v1", "Secret", "cozystack-values", name, labels={"reconcile.fluxcd.io/watch": "Enabled"},
               type="Opaque", data={"values.yaml": _text({
                   "_cluster": values.get("_cluster") or {}, "_namespace": {**held, "gateway": "", "host": host}})}),
        _thing("v1", "ServiceAccount", name, name),
        *tenant.policies(name, **{key: bool(values.get(key)) for key in ("etcd", "ingress", "monitoring")}),
        *_people(name, given.namespace),
    ]  # fmt: skip
    if uid := (given.space.get("metadata") or {}).get("uid"):
        items[0]["metadata"]["ownerReferences"] = [{
            "apiVersion": "v1", "kind": "Namespace", "name": given.namespace, "uid": uid, "controller": True,
            "blockOwnerDeletion": True,
        }]  # fmt: skip
    quotas = values.get("resourceQuotas") or {}
    if quotas:
        hard = {(key if "." in key or key in {"pods", "services"} else f"limits.{key}"): str(value)
                for key, value in quotas.items()}  # fmt: skip
        items.append(_thing("v1", "ResourceQuota", "tenant-quota", name, spec={"hard": hard}))
    return items + [_module(key, name) for key in _SERVICES if values.get(key)]


def _people(name: str, parent: str) -> list[Object]:
    """Who may do what in a tenant: roles by level, bound to the groups of the tenant and of those above."""
    read = {"apiGroups": ["apps.cozystack.io"], "resources": ["*"], "verbs": ["get", "list", "watch"]}
    write = {**read, "verbs": ["*"]}
    look = {"apiGroups": [""], "resources": ["pods", "pods/log", "services"], "verbs": ["get", "list", "watch"]}
    levels = {"view": [read, look], "use": [read, look], "admin": [write, look], "super-admin": [write, look]}
    items = []
    for level, rules in levels.items():
        role = f"{name}-{level}"
        groups = [f"{space}-{level}" for space in (*tenant.above(name), name)]
        subjects = [{"kind": "Group", "name": group, "apiGroup": _RBAC} for group in groups]
        items += [
            _thing(f"{_RBAC}/v1", "Role", role, name, rules=rules),
            _thing(f"{_RBAC}/v1", "RoleBinding", role, name, subjects=subjects,
                   roleRef={"apiGroup": _RBAC, "kind": "Role", "name": role}),
        ]  # fmt: skip
    return items


def _module(key: str, space: str) -> Object:
    """The release of a service that a tenant runs itself."""
    prefix = "apps.cozystack.io/application"
    kind = {"seaweedfs": "SeaweedFS"}.get(key, key.capitalize())
    labels = {"internal.cozystack.io/tenantmodule": "true", f"{prefix}.group": "apps.cozystack.io",
              f"{prefix}.kind": kind, f"{prefix}.name": key}  # fmt: skip
    return _thing("helm.toolkit.fluxcd.io/v2", "HelmRelease", key, space, labels=labels, spec={
        "chartRef": {"kind": "ExternalArtifact", "name": f"cozystack-{key}-application-default-{key}",
                     "namespace": "cozy-system"},
        "interval": "5m0s", "timeout": "10m0s", "install": {"remediation": {"retries": -1}},
        "upgrade": {"remediation": {"retries": -1}},
        "valuesFrom": [{"kind": "Secret", "name": "cozystack-values"}],
    })  # fmt: skip


PLATFORM = (
    Chart("tenant", (), {"1.0.0": "v1.6.2"}, _tenant),
    Chart("capi-providers-proxmox", (), {"0.0.0": "v0.6.2"}, _providers),
    Chart(
        "kubernetes-cilium",
        (),
        {"0.0.0": "1.19.5"},
        lambda given: tenant_cluster.cilium(given.app, given.values),
        title="cozy-cilium",
    ),
    Chart(
        "kubernetes-coredns",
        (),
        {"0.0.0": "v1.12.4"},
        lambda given: tenant_cluster.coredns(given.app, given.values),
        title="cozy-coredns",
    ),
)
"""What CozyStack's own repository holds, as far as the lab renders it."""

_SERGE = ("oci://ghcr.io/sergelogvinov/charts", "https://sergelogvinov.github.io/helm-charts")
CHARTS = (
    Chart("proxmox-csi-plugin", _SERGE, {"0.3.5": "v0.11.0", "0.5.0": "v0.16.0", "0.5.9": "v0.19.1"}, _csi),
    Chart("proxmox-cloud-controller-manager", _SERGE, {"0.1.3": "v0.1.0", "0.2.13": "v0.8.0"}, _ccm),
    Chart("prometheus-pve-exporter", ("https://charts.christianhuth.de", "oci://ghcr.io/christianhuth/charts"),
          {"2.6.1": "3.8.0"}, _exporter),
    *PLATFORM,
)  # fmt: skip
"""Every chart."""
