"""CAPMOX on the lab's CozyStack: installing it as the operator wants it, and clusters of machines for it to make."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from benchmarks.measure import Broken
from runbook_lib.lab import control

Object = dict[str, Any]
SPACE, NAME, VERSION = "tenant-root", "demo", "v1.34.3"
PROVIDERS = "/apis/operator.cluster.x-k8s.io/v1alpha2/namespaces"
INFRA = "infrastructure.cluster.x-k8s.io"
RELEASES = "/apis/helm.toolkit.fluxcd.io/v2/namespaces"
USER, TOKEN, ROLE = "capmox@pve", "lab", "Capmox"
PRIVILEGES = (
    "Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.AllocateTemplate", "Datastore.Audit", "SDN.Use",
    "Sys.Audit", "VM.Allocate", "VM.Audit", "VM.Clone", "VM.Config.CDROM", "VM.Config.CPU", "VM.Config.Cloudinit",
    "VM.Config.Disk", "VM.Config.HWType", "VM.Config.Memory", "VM.Config.Network", "VM.Config.Options",
    "VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted", "VM.PowerMgmt",
)  # fmt: skip


AGENT: Object = {
    "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "cilium"},
    "spec": {"selector": {"matchLabels": {"k8s-app": "cilium"}}, "template": {
        "metadata": {"labels": {"k8s-app": "cilium"}},
        "spec": {
            "hostNetwork": True, "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "cilium-agent", "image": "quay.io/cilium/cilium:v1.19.5"}],
        },
    }},
}  # fmt: skip
"""A DaemonSet of Cilium's agent alone: the least that makes nodes Ready."""


@dataclass(frozen=True)
class Era:
    """The versions of one generation: what is installed, and which versions its objects have."""

    capmox: str
    ipam: str
    contract: str
    own: str
    plane: str


OLD = Era("v0.7.7", "v1.0.3", "v1beta1", "v1alpha1", "v1alpha1")
NEW = Era("v0.9.0", "v1.1.0", "v1beta2", "v1alpha2", "v1alpha2")


@dataclass
class Site:
    """Both APIs of a running lab, asked by their administrators."""

    folder: Path
    era: Era = OLD
    patience: float = 60.0
    kubernetes: requests.Session = field(default_factory=requests.Session)
    proxmox: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.where = control.connection(self.folder)
        there, pve = self.where.kubernetes, self.where.proxmox
        for session, ca_file, words in (
            (self.kubernetes, there.ca_file, f"Bearer {there.token}"),
            (self.proxmox, pve.ca_file, f"PVEAPIToken={pve.token_id}={pve.token_secret}"),
        ):
            session.trust_env = False  # a bundle named there would win over the lab's authority
            session.verify = ca_file
            session.headers["Authorization"] = words

    # -- asking

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Kubernetes' decoded answer; raises Broken for a refusal."""
        form = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        url = self.where.kubernetes.url + path
        answer = self.kubernetes.request(method, url, json=body, headers=form, timeout=30)
        if answer.status_code >= 400:
            raise Broken(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def find(self, path: str) -> Object | None:
        """The object, or None."""
        answer = self.kubernetes.get(self.where.kubernetes.url + path, timeout=30)
        return dict(answer.json()) if answer.status_code == 200 else None

    def items(self, path: str) -> list[Object]:
        """The items of a list; none of a kind that is not served."""
        return list((self.find(path) or {}).get("items") or ())

    def pve(self, method: str, path: str, /, **given: Any) -> Any:
        """Proxmox' data; raises Broken for a refusal."""
        url, reads = f"{self.where.proxmox.url}/api2/json{path}", method == "GET"
        answer = self.proxmox.request(
            method, url, params=given if reads else None, data=None if reads else given, timeout=30
        )
        if answer.status_code >= 400:
            raise Broken(f"{method} {path}: {answer.status_code} {answer.reason} {answer.text[:300]}")
        return answer.json()["data"]

    def until(self, what: str, done: Callable[[], Any], *, said: Callable[[], Any] = lambda: "") -> Any:
        """What `done` gives once it gives something; raises Broken when it never does."""
        end = time.perf_counter() + self.patience
        while not (found := done()):
            if time.perf_counter() > end:
                raise Broken(f"{what}: not within {self.patience:g} s {said()}")
            time.sleep(0.05)
        return found

    # -- where things are

    def core(self, plural: str, name: str = "") -> str:
        """The path of an object of Cluster API."""
        return f"/apis/cluster.x-k8s.io/{self.era.contract}/namespaces/{SPACE}/{plural}/{name}".rstrip("/")

    def own(self, plural: str, name: str = "") -> str:
        """The path of an object of CAPMOX."""
        return f"/apis/{INFRA}/{self.era.own}/namespaces/{SPACE}/{plural}/{name}".rstrip("/")

    def ipam(self, plural: str) -> str:
        """The path of claims or addresses."""
        return f"/apis/ipam.cluster.x-k8s.io/{self.era.contract}/namespaces/{SPACE}/{plural}"

    def vms(self) -> list[Object]:
        """The VMs that CAPMOX made."""
        rows = self.pve("GET", "/cluster/resources", type="vm")
        return [row for row in rows if row.get("name", "").startswith(f"{NAME}-")]

    def machines(self) -> list[Object]:
        """The Machines there are."""
        return self.items(self.core("machines"))

    # -- installing

    def credentials(self) -> str:
        """The secret of a fresh token of CAPMOX' own user in Proxmox."""
        known = {row["userid"] for row in self.pve("GET", "/access/users")}
        if USER not in known:
            self.pve("POST", "/access/users", userid=USER)
            self.pve("POST", "/access/roles", roleid=ROLE, privs=",".join(PRIVILEGES))
            self.pve("PUT", "/access/acl", path="/", users=USER, roles=ROLE)
        made = self.pve("POST", f"/access/users/{USER}/token/{TOKEN}", privsep=0)
        return str(made["value"])

    def revoke(self) -> None:
        """Nothing; the token is gone."""
        self.pve("DELETE", f"/access/users/{USER}/token/{TOKEN}")

    def give(self, secret: str) -> None:
        """Nothing; the credentials Secret holds this token."""
        data = {"url": self.where.proxmox.url, "token": f"{USER}!{TOKEN}", "secret": secret}
        path = f"/api/v1/namespaces/{SPACE}/secrets"
        body = {"metadata": {"name": "proxmox-credentials"}, "data": _packed(data)}
        if self.find(f"{path}/proxmox-credentials"):
            self.ask("PATCH", f"{path}/proxmox-credentials", {"data": body["data"]})
        else:
            self.ask("POST", path, body)

    def install(self) -> None:
        """Nothing; the operator has installed CAPMOX and the IPAM provider, and their managers run."""
        rows = [
            ("IPAMProvider", "ipamproviders", "in-cluster", "capi-ipam-in-cluster-system", self.era.ipam),
            ("InfrastructureProvider", "infrastructureproviders", "proxmox", "capmox-system", self.era.capmox),
        ]
        for kind, plural, name, space, version in rows:
            self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": space}})
            self.ask("POST", f"{PROVIDERS}/{space}/{plural}", {
                "apiVersion": "operator.cluster.x-k8s.io/v1alpha2", "kind": kind,
                "metadata": {"name": name, "namespace": space}, "spec": {"version": version},
            })  # fmt: skip
        for _, plural, name, space, _ in rows:
            path = f"{PROVIDERS}/{space}/{plural}/{name}"
            self.until(name, lambda path=path: _true(self.ask("GET", path), "Ready"),  # type: ignore[misc]
                       said=lambda path=path: self.ask("GET", path).get("status"))  # type: ignore[misc]  # fmt: skip
        self.until(
            "the pools", lambda: self.find(f"/apis/ipam.cluster.x-k8s.io/v1alpha2/namespaces/{SPACE}/inclusterippools")
        )
        self.until("the clusters", lambda: self.find(self.own("proxmoxclusters")))
        self.give(self.credentials())

    # -- a cluster

    def refer(self, api: str, kind: str, name: str) -> Object:
        """A reference in the shape of the era."""
        group = {"apiVersion": api} if self.era is OLD else {"apiGroup": api.partition("/")[0]}
        return {**group, "kind": kind, "name": name}

    def create(self, path: str, kind: str, name: str, spec: Object) -> None:
        """Nothing; the custom object is there."""
        api = "/".join(path.split("/")[2:4])
        self.ask("POST", path, {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec})

    def cluster(
        self,
        replicas: int,
        *,
        addresses: str = "10.0.0.150-10.0.0.180",
        by_hand: bool = False,
        talos: Object | None = None,
        **machine: Any,
    ) -> None:
        """Nothing; a cluster is asked for, with a control plane of Kamaji's and so many machines.

        With `talos`, the spec of a TalosConfig, they are machines of Talos, else kubeadm's.
        Cilium comes from Flux as CozyStack does it; `by_hand` its bare agent is put there once the tenant answers.
        """
        infra, boot = f"{INFRA}/{self.era.own}", f"bootstrap.cluster.x-k8s.io/{self.era.contract}"
        plane = f"controlplane.cluster.x-k8s.io/{self.era.plane}"
        self.create(self.own("proxmoxclusters"), "ProxmoxCluster", NAME, {
            "externalManagedControlPlane": True, "dnsServers": ["10.0.0.254"],
            "ipv4Config": {"addresses": [addresses], "prefix": 16, "gateway": "10.0.0.254"},
            "credentialsRef": {"name": "proxmox-credentials"},
        })  # fmt: skip
        self.create(f"/apis/{plane}/namespaces/{SPACE}/kamajicontrolplanes", "KamajiControlPlane", NAME, {
            "version": VERSION, "replicas": 2, "dataStoreName": "default", "addons": {"coreDNS": {}, "kubeProxy": {}},
            "kubelet": {"cgroupfs": "systemd"}, "network": {"serviceType": "LoadBalancer"},
        })  # fmt: skip
        self.create(self.core("clusters"), "Cluster", NAME, {
            "clusterNetwork": {"pods": {"cidrBlocks": ["10.243.0.0/16"]}, "services": {"cidrBlocks": ["10.95.0.0/16"]}},
            "infrastructureRef": self.refer(infra, "ProxmoxCluster", NAME),
            "controlPlaneRef": self.refer(plane, "KamajiControlPlane", NAME),
        })  # fmt: skip
        if not by_hand:
            self.network()
        network: Object = {"default": {"bridge": "vmbr0", "model": "virtio"}}
        if self.era is NEW:
            network = {"networkDevices": [{"name": "net0", "bridge": "vmbr0", "defaultIPv4": True}]}
        self.create(self.own("proxmoxmachinetemplates"), "ProxmoxMachineTemplate", NAME, {"template": {"spec": {
            "sourceNode": "pve1", "templateID": 9000, "numCores": 4, "memoryMiB": 8192, "network": network,
            "disks": {"bootVolume": {"disk": "scsi0", "sizeGb": 40}}, "tags": [NAME], **machine,
        }}})  # fmt: skip
        provider = "proxmox://{{ ds.meta_data.instance_id }}"
        extra: Any = {"provider-id": provider} if self.era is OLD else [{"name": "provider-id", "value": provider}]
        registration = {"kubeletExtraArgs": extra, "name": "{{ ds.meta_data.local_hostname }}"}
        kind, config = "KubeadmConfigTemplate", {"joinConfiguration": {"nodeRegistration": registration}}
        if talos is not None:
            boot, kind, config = "bootstrap.cluster.x-k8s.io/v1alpha3", "TalosConfigTemplate", talos
        path = f"/apis/{boot}/namespaces/{SPACE}/{kind.lower()}s"
        self.create(path, kind, NAME, {"template": {"spec": config}})
        inner = {
            "clusterName": NAME, "version": VERSION,
            "bootstrap": {"configRef": self.refer(boot, kind, NAME)},
            "infrastructureRef": self.refer(infra, "ProxmoxMachineTemplate", NAME),
        }  # fmt: skip
        self.create(self.core("machinedeployments"), "MachineDeployment", f"{NAME}-md", {
            "clusterName": NAME, "replicas": replicas, "selector": {"matchLabels": {}}, "template": {"spec": inner},
        })  # fmt: skip
        if by_hand:
            held = f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-kubeconfig"
            self.until("the tenant", lambda: self.find(held), said=self.told)
            self.tenant().ask("POST", "/apis/apps/v1/namespaces/kube-system/daemonsets", AGENT)

    def network(self) -> None:
        """Nothing; Cilium is to be installed in the tenant as CozyStack does, or its nodes stay NotReady."""
        self.release("cilium", "cozy-cilium", install={"createNamespace": True, "disableWait": True})

    def release(self, chart: str, space: str, **spec: Any) -> None:
        """Nothing; Flux is to install that chart of CozyStack's application Kubernetes in the tenant."""
        artifact = f"cozystack-kubernetes-application-kubevirt-kubernetes-{chart}"
        self.create(f"{RELEASES}/{SPACE}/helmreleases", "HelmRelease", f"{NAME}-{chart}", {
            "releaseName": chart, "targetNamespace": space, "storageNamespace": space, "interval": "5m",
            "timeout": "10m", "upgrade": {"remediation": {"retries": -1}},
            "chartRef": {"kind": "ExternalArtifact", "name": artifact, "namespace": "cozy-system"},
            "kubeConfig": {"secretRef": {"name": f"{NAME}-admin-kubeconfig", "key": "super-admin.svc"}}, **spec,
        })  # fmt: skip

    def scale(self, replicas: int) -> None:
        """Nothing; so many machines are asked for."""
        self.ask("PATCH", self.core("machinedeployments", f"{NAME}-md"), {"spec": {"replicas": replicas}})

    def running(self, count: int) -> list[Object]:
        """The Machines once exactly so many there are, and all run with a Ready Node."""

        def look() -> list[Object]:
            rows = self.machines()
            fit = [row for row in rows if phase(row) == "Running" and _true(row, "NodeHealthy")]
            return rows if len(fit) == len(rows) == count else []

        return list(self.until(f"{count} machines", look, said=self.told))

    def told(self) -> str:
        """What the machines say, for whoever wonders why they are not there."""
        rows = [(row["metadata"]["name"], phase(row)) for row in self.machines()]
        mine = [
            [(entry.get("reason"), entry.get("message")) for entry in (row.get("status") or {}).get("conditions") or ()]
            for row in self.items(self.own("proxmoxmachines"))
        ]
        cluster = (self.find(self.core("clusters", NAME)) or {}).get("status")
        return f"machines {rows} proxmox {mine[:3]} cluster {cluster}"

    def remove(self) -> None:
        """Nothing; the cluster and what it was made of are gone."""
        for row in self.items(f"{RELEASES}/{SPACE}/helmreleases"):
            if (row["spec"].get("kubeConfig") or {}).get("secretRef", {}).get("name") == f"{NAME}-admin-kubeconfig":
                path = f"{RELEASES}/{SPACE}/helmreleases/{row['metadata']['name']}"
                self.ask("DELETE", path)
                self.until("a release's end", lambda path=path: not self.find(path))  # type: ignore[misc]
        self.ask("DELETE", self.core("clusters", NAME))
        self.until("the cluster's end", lambda: not self.find(self.core("clusters", NAME)), said=self.told)

    def check_health(self) -> None:
        """Nothing; machines whose nodes are unwell are replaced from now on."""
        kinds = ("Unknown", "False")
        if self.era is OLD:
            rows = [{"type": "Ready", "status": status, "timeout": "300s"} for status in kinds]
            spec: Object = {"maxUnhealthy": "100%", "nodeStartupTimeout": "10m", "unhealthyConditions": rows}
        else:
            later = [{"type": "Ready", "status": status, "timeoutSeconds": 300} for status in kinds]
            limit = {"triggerIf": {"unhealthyLessThanOrEqualTo": "100%"}}
            spec = {
                "checks": {"nodeStartupTimeoutSeconds": 600, "unhealthyNodeConditions": later},
                "remediation": limit,
            }
        chosen = {"matchLabels": {"cluster.x-k8s.io/deployment-name": f"{NAME}-md"}}
        path = self.core("machinehealthchecks")
        self.create(path, "MachineHealthCheck", NAME, {"clusterName": NAME, "selector": chosen, **spec})

    def lose(self, vm: Mapping[str, Any]) -> None:
        """Nothing; the VM is gone, and whoever made it was not asked. It may be started again in between."""
        path = f"/nodes/{vm['node']}/qemu/{vm['vmid']}"

        def gone() -> bool:
            if vm["vmid"] not in {row["vmid"] for row in self.vms()}:
                return True
            with contextlib.suppress(Broken):
                self.pve("POST", f"{path}/status/stop")
                self.pve("DELETE", path)
            return False

        self.until("a lost VM", gone)

    def done(self, node: str, upid: str) -> None:
        """Nothing; the task has ended well."""
        path = f"/nodes/{node}/tasks/{upid}/status"
        self.until(upid, lambda: self.pve("GET", path).get("exitstatus") == "OK")

    def log(self, space: str = "capmox-system") -> str:
        """What the managers of a namespace wrote."""
        pods = self.ask("GET", f"/api/v1/namespaces/{space}/pods")["items"]
        urls = [
            f"{self.where.kubernetes.url}/api/v1/namespaces/{space}/pods/{pod['metadata']['name']}/log" for pod in pods
        ]
        return "".join(self.kubernetes.get(url, timeout=30).text for url in urls)

    # -- the tenant

    def tenant(self) -> Tenant:
        """The cluster that the machines are nodes of."""
        import yaml

        held = self.ask("GET", f"/api/v1/namespaces/{SPACE}/secrets/{NAME}-kubeconfig")
        return Tenant(yaml.safe_load(base64.b64decode(held["data"]["value"])), self.folder)


@dataclass
class Tenant:
    """A tenant cluster's API by its kubeconfig."""

    config: Mapping[str, Any]
    folder: Path

    def __post_init__(self) -> None:
        cluster, user = self.config["clusters"][0]["cluster"], self.config["users"][0]["user"]
        names = {}
        rows = {"ca": cluster["certificate-authority-data"], "cert": user["client-certificate-data"],
                "key": user["client-key-data"]}  # fmt: skip
        for name, data in rows.items():
            names[name] = self.folder / f"tenant-{name}.pem"
            names[name].touch(mode=0o600)
            names[name].write_bytes(base64.b64decode(data))
        self.url = cluster["server"]
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(names["ca"])
        self.session.cert = (str(names["cert"]), str(names["key"]))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer; raises Broken for a refusal."""
        form = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        answer = self.session.request(method, self.url + path, json=body, headers=form, timeout=30)
        if answer.status_code >= 400:
            raise Broken(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def nodes(self) -> list[Object]:
        """The nodes there are."""
        return list(self.ask("GET", "/api/v1/nodes")["items"])


def phase(item: Object) -> str:
    """The phase of a Machine."""
    return str((item.get("status") or {}).get("phase", ""))


def condition(item: Object, kind: str) -> Object:
    """The condition of that type, of either generation; an empty one when there is none."""
    status = item.get("status") or {}
    rows = [*(status.get("conditions") or ())]
    for older in (status.get("v1beta2") or {}, (status.get("deprecated") or {}).get("v1beta1") or {}):
        rows += older.get("conditions") or ()
    return next((dict(row) for row in rows if row["type"] == kind), {})


def _true(item: Object, kind: str) -> bool:
    return condition(item, kind).get("status") == "True"


def _packed(data: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
