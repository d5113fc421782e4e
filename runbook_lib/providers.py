"""The Cluster API provider for Proxmox VE and its IPAM provider, as changes, and what became of them.

The token reaches the cluster in a Secret that is filled when it is sent; neither plan nor journal holds it.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runbook_lib import kubernetes, prepare, privileges, proxmox, versions
from runbook_lib.errors import Conflict, NotFound, SecretError, WaitTimeout
from runbook_lib.executors import labelled, reference
from runbook_lib.facts import CapiProvider, Crd, ManagerIdentity, ProviderStage, Webhook, Workload
from runbook_lib.model import Change, ChangeKind
from runbook_lib.prepare import Wanted
from runbook_lib.site import Chart, ProviderSource

Object = dict[str, Any]

GROUP = "operator.cluster.x-k8s.io"
CAPMOX, IPAM = "proxmox", "in-cluster"
KINDS = {CAPMOX: "InfrastructureProvider", IPAM: "IPAMProvider"}
LABELS = {CAPMOX: "infrastructure-proxmox", IPAM: "ipam-in-cluster"}
GROUPS = {CAPMOX: "infrastructure.cluster.x-k8s.io", IPAM: "ipam.cluster.x-k8s.io"}
CHART = "cozy-capi-providers-proxmox"
VARIABLES = "capmox-variables"
"""The configSecret. CAPMOX' own Secret, capmox-manager-credentials, is made of it by the operator."""

MANAGERS_OWN = "capmox-manager-credentials"
COMPRESSED = "provider.cluster.x-k8s.io/compressed"
FLAGS = {True: "true", False: "false"}


@dataclass(frozen=True)
class Setting:
    """What is known of the site before anything is planned."""

    way: versions.Way
    namespaces: Mapping[str, str]  # of each provider: where it is, or where it is to be
    found: Mapping[str, CapiProvider]  # the providers that are there
    chart: Chart | None
    workloads: tuple[Workload, ...]
    crds: tuple[Crd, ...]
    webhooks: tuple[Webhook, ...]

    def table(self) -> dict[str, str]:
        """What a reader wants to know of it."""
        have = self.found.get(CAPMOX)
        return {
            "contract": self.way.contract or "unknown",
            "CAPMOX": f"{have.installed_version or 'asked for, not installed'}" if have else "not installed",
            "IPAM": self.found[IPAM].installed_version if IPAM in self.found else "not installed",
            "to install": " → ".join(self.way.steps) or "nothing",
            "by": f"chart {CHART} {self.chart.version}" if self.chart else "the Cluster API operator",
            "because": self.way.why,
        }


def look(pve: Any, k8s: Any, site: Any) -> Setting:
    """The site as it is now."""
    crds, providers, workloads = kubernetes.crds(k8s), kubernetes.providers(k8s), kubernetes.workloads(k8s)
    found = {name: row for name, kind in KINDS.items() for row in providers if (row.kind, row.name) == (kind, name)}
    verdicts = versions.assess(
        pve=proxmox.version(pve),
        kubernetes=kubernetes.version(k8s),
        cozystack=kubernetes.cozystack(k8s),
        crds=crds,
        providers=providers,
        operator_version=versions.operator_version(workloads),
    )
    verdict = next(row for row in verdicts if row.component == "CAPMOX")
    wish = site.capi
    way = versions.way(
        verdict,
        installed=found[CAPMOX].installed_version if CAPMOX in found else "",
        wish=wish.provider.version or "",
        ipam_wish=wish.ipam.version or "",
    )
    homes = {CAPMOX: wish.namespace, IPAM: wish.ipam_namespace}
    homes |= {name: row.namespace for name, row in found.items()}
    hooks = [row for row in kubernetes.webhooks(k8s) if row.service.partition("/")[0] in homes.values()]
    chart = dict(site.charts).get(CHART)
    return Setting(way, homes, found, chart, tuple(workloads), tuple(crds), tuple(hooks))


# --- what is asked for -------------------------------------------------------------------------------


def provider(
    name: str, version: str, what: Setting, source: ProviderSource, api_version: str, *, trusted: bool
) -> Object:
    """A provider object of the operator. CAPMOX gets its variables, and says whether it verifies Proxmox VE."""
    spec: Object = {"version": version}
    fetch: Object = {key: value for key, value in (("url", source.url), ("oci", source.oci)) if value}
    if source.selector:
        fetch = {"selector": {"matchLabels": dict(source.selector)}}
    if fetch:
        spec["fetchConfig"] = fetch
    if name == CAPMOX:
        spec["configSecret"] = {"name": VARIABLES, "namespace": what.namespaces[CAPMOX]}
        verified = [{"name": "PROXMOX_INSECURE", "value": FLAGS[not trusted]}]
        spec["deployment"] = {"containers": [{"name": "manager", "env": verified}]}
    metadata = {"name": name, "namespace": what.namespaces[name]}
    return {"apiVersion": api_version, "kind": KINDS[name], "metadata": metadata, "spec": spec}


def components(name: str, source: ProviderSource, namespace: str, *, root: Path) -> Object:
    """The ConfigMap of a provider's components as CozyStack ships them: packed, named after the version.

    Raises FileNotFoundError when the folder lacks one of its two files.
    """
    folder = root / Path(str(source.folder)).expanduser()
    packed = gzip.compress((folder / "components.yaml").read_bytes(), mtime=0)
    labels = {"provider.cluster.x-k8s.io/name": name, **source.selector}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": str(source.version),
            "namespace": namespace,
            "labels": labels,
            "annotations": {COMPRESSED: "true"},
        },
        "data": {"metadata": (folder / "metadata.yaml").read_text(encoding="utf-8")},
        "binaryData": {"components": base64.b64encode(packed).decode()},
    }


def installation(
    pve: Any, k8s: Any, site: Any, run: str, what: Setting, *, root: Path | None = None, step: str = "23"
) -> Wanted:
    """Everything that is still to be done for both providers to run, up to the next release of the way; it stays.

    The IPAM provider comes first: CAPMOX starts without it, and then every machine waits for its address for ever.
    """
    root = root or prepare.project_folder()
    if problems := tuple(_in_the_way(k8s, site, what)):
        return Wanted(problems=problems)
    spaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
              for name in dict.fromkeys(what.namespaces[part] for part in (IPAM, CAPMOX))]  # fmt: skip
    account = privileges.account(
        "capmox", prepare.with_storages(site, proxmox.storages(pve)), proxmox.version(pve).release
    )
    parts = [prepare.access(pve, site, run, accounts=[account], root=root)]
    parts += [prepare.install_object(k8s, row, run, summary="Namespace of a provider") for row in spaces]
    parts.append(_variables(k8s, site, run, what, root))
    parts += _release(k8s, run, what) if what.chart else _providers(k8s, site, run, what, root)
    problems = tuple(dict.fromkeys(problem for part in parts for problem in part.problems))
    return Wanted(
        () if problems else tuple(change for part in parts for change in part.changes),
        tuple(name for part in parts for name in part.unchanged),
        problems,
    ).numbered(step)


def _in_the_way(k8s: Any, site: Any, what: Setting) -> Iterable[str]:
    if what.way.problem:
        yield f"versions: {what.way.problem}"
    if k8s.group(GROUP) is None and not what.chart:
        yield f"operator: the cluster does not serve {GROUP}; CozyStack brings the operator as cozy-cluster-api"
    if not any(row.name == "certificates.cert-manager.io" for row in what.crds):
        yield "cert-manager: it is not installed, and the providers' webhooks get their certificates from it"
    for name, source in ((CAPMOX, site.capi.provider), (IPAM, site.capi.ipam)):
        for file in ("components.yaml", "metadata.yaml") if source.folder else ():
            if not (prepare.project_folder() / Path(source.folder).expanduser() / file).is_file():
                yield f"components: {source.folder}/{file} of {name} is not there"


def _providers(k8s: Any, site: Any, run: str, what: Setting, root: Path) -> list[Wanted]:
    api_version = k8s.group(GROUP).removeprefix("/apis/")
    release = {CAPMOX: (what.way.steps or (what.way.target,))[0], IPAM: what.way.ipam}
    parts = []
    for name, source in ((IPAM, site.capi.ipam), (CAPMOX, site.capi.provider)):
        if source.folder:
            packed = components(name, source, what.namespaces[name], root=root)
            parts.append(prepare.install_object(k8s, packed, run, summary=f"Components of {name}, packed"))
        version = source.version or release[name]
        if name == IPAM and name in what.found and not what.way.steps:
            version = what.found[name].version
        wanted = provider(name, version, what, source, api_version, trusted=trusts(site))
        try:
            parts.append(prepare.install_object(k8s, wanted, run, summary=f"{KINDS[name]} {name} {version}"))
        except Conflict as error:  # another manager's fields are not overruled
            place = f"{KINDS[name]} {what.namespaces[name]}/{name}"
            parts.append(Wanted(problems=(f"{name}: {place} is somebody else's and asks for other things: {error}",)))
    return parts


def _release(k8s: Any, run: str, what: Setting) -> list[Wanted]:
    """The site's own chart in the place of the operator's objects."""
    from runbook_lib import csi

    assert what.chart
    place = _Place(what.namespaces[CAPMOX])
    flux = [k8s.group(group) for group in ("source.toolkit.fluxcd.io", "helm.toolkit.fluxcd.io")]
    if None in flux:
        return [Wanted(problems=("Flux: the cluster serves no HelmReleases, and the site names a chart",))]
    sources, releases = (str(path).removeprefix("/apis/") for path in flux)
    taken = csi.source(CHART, what.chart, place, sources)
    values = {"credentials": {"existingSecret": VARIABLES}}
    wanted = csi.release(CHART, what.chart, place, values, releases)
    return [
        prepare.install_object(k8s, taken, run, summary=f"Chart {CHART} {what.chart.version}"),
        prepare.install_object(k8s, wanted, run, summary=f"Release of {CHART}; no secret in its values"),
    ]


@dataclass(frozen=True)
class _Place:
    namespace: str


def trusts(site: Any) -> bool:
    """Whether CAPMOX' manager can verify Proxmox VE: only by the authorities in its image.

    Its Secret has no room for a CA; a cluster's own Secret has (`root_ca`, see machines.credentials).
    """
    return bool(site.proxmox.verify and not site.proxmox.fingerprint and not site.proxmox.ca_file)


def _variables(k8s: Any, site: Any, run: str, what: Setting, root: Path) -> Wanted:
    """The operator's variables as a Secret. The token is compared and filled where it is sent."""
    from runbook_lib.secrets import resolve

    kept = prepare.secret_reference(site, "capmox")
    token_id = f"{privileges.user_of('capmox', site)}!capmox"
    plain = {"PROXMOX_URL": str(site.proxmox.url).rstrip("/"), "PROXMOX_TOKEN": token_id}
    home = what.namespaces[CAPMOX]
    manifest = labelled(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": VARIABLES, "namespace": home}, "type": "Opaque"},
        run,
        "install",
    )
    held = (k8s.find(f"/api/v1/namespaces/{home}/secrets/{VARIABLES}") or {}).get("data") or {}
    try:
        wanted = {**plain, "PROXMOX_SECRET": resolve(kept, base=root)}
    except SecretError:  # the token is made by this very plan
        wanted = {}
    if held and {key: base64.b64decode(value).decode() for key, value in held.items()} == wanted:
        return Wanted(unchanged=(f"v1/Secret/{home}/{VARIABLES}",))
    filled = {key: {"text": text, "secret": kept} for key, text in {**plain, "PROXMOX_SECRET": "{secret}"}.items()}
    return Wanted(
        (
            Change(
                "",
                "kubernetes",
                "update" if held else "create",
                f"v1/Secret/{home}/{VARIABLES}",
                "Variables of CAPMOX, filled from a reference when they are sent",
                ChangeKind.INSTALL,
                {"manifest": manifest, "secret_data": filled},
                None,
                {**plain, "PROXMOX_SECRET": f"value of {kept}"},
                None if held else {"delete": reference(manifest)},
            ),
        )
    )


# --- what became of it -------------------------------------------------------------------------------


def settled(k8s: Any, what: Setting, applied: Any, *, timeout_seconds: float = 300.0) -> list[ProviderStage]:
    """Each condition of both providers at the moment it came, until both are Ready or the time is up."""
    stages: list[ProviderStage] = []
    base = k8s.group(GROUP)
    if base is None or applied.refused:
        return stages
    plurals = {row["kind"]: row["name"] for row in k8s.resources(base)}
    for name in (IPAM, CAPMOX):
        path = f"{base}/namespaces/{what.namespaces[name]}/{plurals[KINDS[name]]}/{name}"
        seen: dict[str, tuple[str, str]] = {}

        def note(thing: Mapping[str, Any] | None, name: str = name, seen: dict[str, tuple[str, str]] = seen) -> bool:
            rows = ((thing or {}).get("status") or {}).get("conditions") or ()
            for row in rows:
                state = (str(row["status"]), str(row.get("reason") or ""))
                if seen.get(row["type"]) != state:
                    seen[row["type"]] = state
                    at = str(row.get("lastTransitionTime") or "")
                    stages.append(ProviderStage(name, row["type"], *state, str(row.get("message") or ""), at))
            return _is_installed(thing)

        try:
            k8s.wait(path, note, timeout_seconds)
        except (WaitTimeout, NotFound):
            continue  # the check names what it is like
    return stages


def _is_installed(thing: Mapping[str, Any] | None) -> bool:
    status = (thing or {}).get("status") or {}
    ready = any(row["type"] == "Ready" and row["status"] == "True" for row in status.get("conditions") or ())
    return ready and status.get("installedVersion") == ((thing or {}).get("spec") or {}).get("version")


def manager(k8s: Any, what: Setting) -> ManagerIdentity:
    """Whom CAPMOX' manager is to Proxmox VE, by its Secret and its environment, and the end of its log."""
    home = what.namespaces[CAPMOX]
    data = (k8s.find(f"/api/v1/namespaces/{home}/secrets/{MANAGERS_OWN}") or {}).get("data") or {}
    pods = [row for row in k8s.list(f"/api/v1/namespaces/{home}/pods")
            if (row["metadata"].get("labels") or {}).get("cluster.x-k8s.io/provider") == LABELS[CAPMOX]]  # fmt: skip
    env = {row["name"]: str(row.get("value") or "") for pod in pods for container in pod["spec"]["containers"]
           for row in container.get("env") or ()}  # fmt: skip
    states = [row for pod in pods for row in (pod.get("status") or {}).get("containerStatuses") or ()]
    log: tuple[str, ...] = ()
    if pods:
        try:
            log = tuple(k8s.logs(home, pods[0]["metadata"]["name"], tail=30).splitlines())
        except NotFound:
            log = ()
    return ManagerIdentity(
        pods=len(pods),
        ready=sum(bool(row.get("ready")) for row in states),
        restarts=sum(int(row.get("restartCount") or 0) for row in states),
        url=_plain(data.get("url")),
        token_id=_plain(data.get("token")),
        has_secret=bool(data.get("secret")),
        insecure=env.get("PROXMOX_INSECURE", ""),
        errors=tuple(line for line in log if "error" in line.lower() or line.startswith("E"))[-3:],
    )


def _plain(value: Any) -> str:
    return base64.b64decode(value).decode("utf-8", "replace") if value else ""


def again(what: Setting, pve: Any, k8s: Any, site: Any) -> Setting:
    """The site once more, judged by the way that was begun."""
    return replace(look(pve, k8s, site), way=what.way)


REMOVAL = f"""kubectl delete infrastructureprovider {CAPMOX} -n NAMESPACE
kubectl delete ipamprovider {IPAM} -n NAMESPACE
kubectl delete secret {VARIABLES} -n NAMESPACE"""
"""How both go, once no Cluster uses them. The operator leaves the definitions, so that no object is lost with them."""
