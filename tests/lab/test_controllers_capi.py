"""Cluster API's core: judgement by object pairs, then clusters that live over HTTP with a tiny infrastructure."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from aiohttp import web

from runbook_lib.lab.clock import Clock
from runbook_lib.lab.kubernetes.cluster import Cluster, User
from runbook_lib.lab.kubernetes.controllers import autoscaler, kamaji, kubeadm_bootstrap, talos_bootstrap
from runbook_lib.lab.kubernetes.controllers.capi import (
    PROGRAMS,
    health_checks,
    machinedeployments,
    machines,
    machinesets,
)
from runbook_lib.lab.kubernetes.controllers.capi.objects import ContractUnknown, matches, resolve, seconds
from runbook_lib.lab.kubernetes.controllers.client import Key, KubeClient
from runbook_lib.lab.kubernetes.controllers.context import Context
from runbook_lib.lab.kubernetes.controllers.network import World
from runbook_lib.lab.kubernetes.controllers.processes import Process
from runbook_lib.lab.kubernetes.controllers.reconcile import reconcile
from runbook_lib.lab.kubernetes.controllers.remote import RemoteClient
from runbook_lib.lab.kubernetes.seeds import crds
from runbook_lib.lab.kubernetes.server import create_app
from runbook_lib.lab.tenants import Tenants

Object = dict[str, Any]
TOKEN, SPACE = "a-token-of-the-test", "tenant-root"
INFRA = "infrastructure.cluster.x-k8s.io"
TENANTS = f"/apis/kamaji.clastix.io/v1alpha1/namespaces/{SPACE}/tenantcontrolplanes"
ROOM = {"cpu": "4", "memory": "8Gi", "pods": "110"}
BOTH = pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])


def lab_kinds(version: str) -> list[Object]:
    """An infrastructure provider without any meaning, for one contract."""
    rows = [("LabCluster", "labclusters"), ("LabMachine", "labmachines"), ("LabMachineTemplate", "labmachinetemplates")]
    return [
        crds.crd(crds.Row(INFRA, kind, plural, ("v1",), contracts={version: "v1"}), born(), {}) for kind, plural in rows
    ]


def born() -> Any:
    """The times that the seeds give to definitions."""
    return type("T", (), {"born": "2026-08-01T08:00:00Z"})()


@dataclass
class Site:
    """An API server with the core manager and the tiny infrastructure at work."""

    client: KubeClient
    context: Context
    version: str
    lines: list[str] = field(default_factory=list)
    nodes_join: bool = True

    def path(self, plural: str, name: str = "") -> str:
        """The path of an object of the core group."""
        return f"/apis/cluster.x-k8s.io/{self.version}/namespaces/{SPACE}/{plural}/{name}".rstrip("/")

    def infra(self, plural: str, name: str = "") -> str:
        """The path of an object of the infrastructure."""
        return f"/apis/{INFRA}/v1/namespaces/{SPACE}/{plural}/{name}".rstrip("/")

    async def until(self, path: str, wanted: Callable[[Object], Any], limit: float = 10.0) -> Object:
        """The object (or list) once it is as wanted."""
        item: Object | None = None
        try:
            async with asyncio.timeout(limit):
                while True:
                    item = await self.client.find(path)
                    if item is not None and wanted(item):
                        return item
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{path} never became so: {item}\n" + "\n".join(self.lines[-15:])) from None

    def reference(self, kind: str, name: str) -> Object:
        """A reference in the shape of the version."""
        if self.version == "v1beta2":
            return {"apiGroup": INFRA, "kind": kind, "name": name}
        return {"apiVersion": f"{INFRA}/v1", "kind": kind, "name": name}

    async def cluster(self, replicas: int = 1, **deployment: Any) -> None:
        """Applies a cluster with one machine deployment."""
        make = self.client.create
        kind = {"apiVersion": f"{INFRA}/v1", "kind": "LabCluster", "metadata": {"name": "c"}}
        await make(
            self.infra("labclusters"), {**kind, "spec": {"controlPlaneEndpoint": {"host": "10.0.0.150", "port": 6443}}}
        )
        await self.template("t1")
        api = {"apiVersion": f"cluster.x-k8s.io/{self.version}"}
        await make(self.path("clusters"), {**api, "kind": "Cluster", "metadata": {"name": "c"},
                   "spec": {"infrastructureRef": self.reference("LabCluster", "c")}})  # fmt: skip
        spec = {
            "clusterName": "c",
            "replicas": replicas,
            "selector": {"matchLabels": {}},
            "template": {
                "metadata": {"labels": {"node-role.kubernetes.io/worker": ""}},
                "spec": {
                    "clusterName": "c",
                    "version": "v1.33.0",
                    "bootstrap": {"dataSecretName": "boot"},
                    "infrastructureRef": self.reference("LabMachineTemplate", "t1"),
                },
            },
            **deployment,
        }
        await make(
            self.path("machinedeployments"),
            {**api, "kind": "MachineDeployment", "metadata": {"name": "md"}, "spec": spec},
        )
        await self.initialize()

    def secret(self, name: str) -> str:
        """The path of a Secret."""
        return f"/api/v1/namespaces/{SPACE}/secrets/{name}"

    async def managed_cluster(self, plane: str) -> None:
        """Applies a cluster whose control plane Kamaji runs, with one worker of kubeadm."""
        make, core = self.client.create, {"apiVersion": f"cluster.x-k8s.io/{self.version}"}
        await make(
            self.infra("labclusters"), {"apiVersion": f"{INFRA}/v1", "kind": "LabCluster", "metadata": {"name": "c"}}
        )
        await self.template("t1")
        boot = f"bootstrap.cluster.x-k8s.io/{self.version}"
        body = {"metadata": {"name": "k1"}, "spec": {"template": {"spec": {"joinConfiguration": {}}}}}
        path = f"/apis/{boot}/namespaces/{SPACE}/kubeadmconfigtemplates"
        await make(path, {"apiVersion": boot, "kind": "KubeadmConfigTemplate", **body})
        managed = f"controlplane.cluster.x-k8s.io/{plane}"
        spec = {"version": "v1.33.0", "replicas": 2, "dataStoreName": "default"}
        path = f"/apis/{managed}/namespaces/{SPACE}/kamajicontrolplanes"
        await make(path, {"apiVersion": managed, "kind": "KamajiControlPlane", "metadata": {"name": "c"}, "spec": spec})

        def refer(api: str, kind: str, name: str) -> Object:
            group = {"apiGroup": api.partition("/")[0]} if self.version == "v1beta2" else {"apiVersion": api}
            return {**group, "kind": kind, "name": name}

        spec = {
            "infrastructureRef": self.reference("LabCluster", "c"),
            "controlPlaneRef": refer(managed, "KamajiControlPlane", "c"),
        }
        await make(self.path("clusters"), {**core, "kind": "Cluster", "metadata": {"name": "c"}, "spec": spec})
        inner = {
            "clusterName": "c",
            "version": "v1.33.0",
            "bootstrap": {"configRef": refer(boot, "KubeadmConfigTemplate", "k1")},
            "infrastructureRef": self.reference("LabMachineTemplate", "t1"),
        }
        spec = {"clusterName": "c", "replicas": 1, "selector": {"matchLabels": {}}, "template": {"spec": inner}}
        await make(
            self.path("machinedeployments"),
            {**core, "kind": "MachineDeployment", "metadata": {"name": "md"}, "spec": spec},
        )

    async def first_machine(self) -> Object:
        """The first machine once there is one with bootstrap data."""

        def wanted(rows: Object) -> bool:
            return any(row["spec"]["bootstrap"].get("dataSecretName") for row in rows["items"])

        return dict((await self.until(self.path("machines"), wanted))["items"][0])

    def secret_of_first_machine(self, machine: Object) -> str:
        """The path of the Secret with a machine's bootstrap data."""
        return self.secret(machine["spec"]["bootstrap"]["dataSecretName"])

    async def initialize(self) -> None:
        """Says, in place of a control plane provider, that the API server can be asked."""
        await self.until(self.path("clusters", "c"), lambda c: (c.get("status") or {}).get("phase") == "Provisioned")
        while True:
            item = await self.client.get(self.path("clusters", "c"))
            body = {"metadata": {"resourceVersion": item["metadata"]["resourceVersion"]}}
            status = item["status"]
            entry = {"type": "ControlPlaneInitialized", "status": "True", "lastTransitionTime": "2026-08-01T08:00:00Z"}
            if self.version == "v1beta2":
                body["status"] = {"initialization": {**status["initialization"], "controlPlaneInitialized": True}}
            else:
                rest = [row for row in status["conditions"] if row["type"] != entry["type"]]
                body["status"] = {"conditions": [*rest, entry]}
            try:
                await self.client.patch(self.path("clusters", "c") + "/status", body)
                return
            except Exception as error:
                if "409" not in str(error):
                    raise

    async def template(self, name: str) -> None:
        """Creates an infrastructure template."""
        body = {"apiVersion": f"{INFRA}/v1", "kind": "LabMachineTemplate", "metadata": {"name": name}}
        await self.client.create(
            self.infra("labmachinetemplates"), {**body, "spec": {"template": {"spec": {"size": name}}}}
        )

    async def running(self, count: int) -> list[Object]:
        """The machines once exactly so many there are and all run."""

        def wanted(rows: Object) -> bool:
            phases = [(row.get("status") or {}).get("phase") for row in rows["items"]]
            return phases == ["Running"] * count

        return list((await self.until(self.path("machines"), wanted))["items"])


async def infrastructure(site: Site) -> None:
    """Marks everything ready, adds a node for each machine, and takes both away again."""
    context = site.context
    clusters = context.cache(f"/apis/{INFRA}/v1/labclusters")
    things = context.cache(f"/apis/{INFRA}/v1/labmachines")
    ready = {"ready": True, "initialization": {"provisioned": True}}

    async def cluster(key: Key, item: Object | None) -> None:
        if item and not item.get("status") and item["metadata"].get("ownerReferences"):
            await context.client.patch(site.infra("labclusters", key[1]) + "/status", {"status": ready})

    async def machine(key: Key, item: Object | None) -> None:
        path = site.infra("labmachines", key[1])
        if item is None:
            return
        if "deletionTimestamp" in item["metadata"]:
            await context.client.patch(path, {"metadata": {"finalizers": None}})
        elif not item.get("status") and any(
            o["kind"] == "Machine" for o in item["metadata"].get("ownerReferences", ())
        ):
            body = {"metadata": {"finalizers": ["lab/machine"]}, "spec": {"providerID": f"lab://{key[1]}"}}
            await context.client.patch(path, body)
            if site.nodes_join:
                await join(context.client, key[1])
            await context.client.patch(path + "/status", {"status": ready})

    await asyncio.gather(reconcile(context, clusters, cluster), reconcile(context, things, machine))


async def join(client: KubeClient, name: str) -> None:
    """A node that is ready."""
    await client.create("/api/v1/nodes", {"metadata": {"name": name}, "spec": {"providerID": f"lab://{name}"}})
    await client.patch(
        f"/api/v1/nodes/{name}/status", {"status": {"conditions": [health("True")], "allocatable": ROOM}}
    )


def health(status: str) -> Object:
    """A Ready condition that has been so for long."""
    return {
        "type": "Ready",
        "status": status,
        "reason": "r",
        "message": "",
        "lastTransitionTime": "2026-08-01T08:00:00Z",
    }


MANAGED = (*kamaji.PROGRAMS, *kubeadm_bootstrap.PROGRAMS)


@asynccontextmanager
async def living(version: str, *, kamaji: bool = False, serves: bool = True) -> AsyncIterator[Site]:
    """The API server, its tenant being itself or one that Kamaji runs, with managers that write this version."""
    cluster = Cluster()
    flavour = "capi-v1beta2" if version == "v1beta2" else "cozystack-1.6"
    kinds = [
        item
        for item in crds.definitions(flavour, born(), {})
        if item["spec"]["group"].endswith(("cluster.x-k8s.io", "kamaji.clastix.io"))
    ]
    for item in kinds:
        item["spec"]["conversion"] = {"strategy": "None"}
    cluster.load([*kinds, *lab_kinds(version)])
    cluster.tokens[TOKEN] = User("lab-controllers", ("system:masters",))
    runner = web.AppRunner(create_app(cluster), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = KubeClient(url, TOKEN)
    tenants = Tenants(Clock(math.inf))
    planes = tenants if serves else None
    context = Context(KubeClient(url, TOKEN), Clock(math.inf), World(), control_planes=planes)
    site = Site(client, context, version)
    tag = "v1.12.10" if version == "v1beta2" else "v1.10.1"
    programs = [*PROGRAMS, *(MANAGED if kamaji else ())]
    for program in programs:
        release = ("v0.20.0" if version == "v1beta2" else "v0.19.0") if "kamaji" in program.image else tag
        pod = {"metadata": {"name": "manager", "namespace": "capi"}}
        process = Process(pod, {"image": f"x/{program.image}:{release}"}, {}, site.lines.append)
        work: Any = program.run(context, process)
        context.spawn(work, name=program.image)
    context.spawn(infrastructure(site), name="infrastructure")
    try:
        await client.create("/api/v1/namespaces", {"metadata": {"name": SPACE}})
        config = {
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {"token": TOKEN}}],
        }  # fmt: skip
        data = {"value": base64.b64encode(yaml.safe_dump(config).encode()).decode()}
        if not kamaji:
            await client.create(
                f"/api/v1/namespaces/{SPACE}/secrets", {"metadata": {"name": "c-kubeconfig"}, "data": data}
            )
        yield site
    finally:
        await client.close()
        await context.stop()
        await tenants.close()
        await context.client.close()
        await runner.cleanup()


@BOTH
def test_machines_of_a_deployment_become_nodes_and_go(version: str) -> None:
    """One machine, then three, then one; each has a node with its labels; nothing is left of what went."""

    async def story() -> None:
        async with living(version) as site:
            await site.cluster()
            first = (await site.running(1))[0]
            assert first["status"]["nodeRef"]["name"] == first["metadata"]["name"]
            await site.client.patch(site.path("machinedeployments", "md"), {"spec": {"replicas": 3}})
            assert len(await site.running(3)) == 3
            await site.client.patch(site.path("machinedeployments", "md"), {"spec": {"replicas": 1}})
            left = (await site.running(1))[0]["metadata"]["name"]
            nodes = await site.until("/api/v1/nodes", lambda rows: len(rows["items"]) == 1)
            assert nodes["items"][0]["metadata"]["name"] == left
            assert "node-role.kubernetes.io/worker" in nodes["items"][0]["metadata"]["labels"]

    asyncio.run(story())


@BOTH
def test_node_that_joined_after_its_machine_was_deleted_goes_too(version: str) -> None:
    """Found by its providerID though the machine never named it, so that no node is left of a VM that is gone."""

    async def story() -> None:
        async with living(version) as site:
            site.nodes_join = False
            await site.cluster()
            path = site.path("machines")
            found = await site.until(path, lambda rows: any(r["spec"].get("providerID") for r in rows["items"]))
            name = found["items"][0]["metadata"]["name"]
            await site.client.patch(
                site.infra("labmachines", name), {"metadata": {"finalizers": ["a/b", "lab/machine"]}}
            )
            hook = {"pre-drain.delete.hook.machine.cluster.x-k8s.io/wait": ""}
            await site.client.patch(site.path("machines", name), {"metadata": {"annotations": hook}})
            await site.client.delete(site.path("machines", name))
            await join(site.client, name)
            await site.client.patch(site.path("machines", name), {"metadata": {"annotations": dict.fromkeys(hook)}})
            await site.until(path, lambda rows: all(r["metadata"]["name"] != name for r in rows["items"]))
            rows = (await site.client.list("/api/v1/nodes"))["items"]
            assert name not in {row["metadata"]["name"] for row in rows}

    asyncio.run(story())


@BOTH
def test_new_template_rolls_every_machine(version: str) -> None:
    """Another template gives another machine set; the old one is emptied only as the new one's machines come."""

    async def story() -> None:
        async with living(version) as site:
            await site.cluster(2)
            before = {item["metadata"]["name"] for item in await site.running(2)}
            await site.template("t2")
            reference = site.reference("LabMachineTemplate", "t2")
            body = {"spec": {"template": {"spec": {"infrastructureRef": reference}}}}
            await site.client.patch(site.path("machinedeployments", "md"), body)

            def rolled(rows: Object) -> bool:
                names = {row["metadata"]["name"] for row in rows["items"]}
                phases = {(row.get("status") or {}).get("phase") for row in rows["items"]}
                return len(names) == 2 and not names & before and phases == {"Running"}

            await site.until(site.path("machines"), rolled)
            item = await site.client.get(site.path("machinedeployments", "md"))
            assert item["metadata"]["annotations"]["machinedeployment.clusters.x-k8s.io/revision"] == "2"

    asyncio.run(story())


@BOTH
def test_unhealthy_machine_is_replaced(version: str) -> None:
    """A node that stays NotReady costs its machine, once a health check looks."""

    async def story() -> None:
        async with living(version) as site:
            await site.cluster(2)
            sick = (await site.running(2))[0]["metadata"]["name"]
            rule = {"type": "Ready", "status": "False"}
            spec: Object = {"clusterName": "c", "selector": {"matchLabels": {"cluster.x-k8s.io/deployment-name": "md"}}}
            if version == "v1beta2":
                spec["checks"] = {"unhealthyNodeConditions": [{**rule, "timeoutSeconds": 300}]}
            else:
                spec |= {"unhealthyConditions": [{**rule, "timeout": "5m"}], "maxUnhealthy": "50%"}
            api = f"cluster.x-k8s.io/{version}"
            check = {"apiVersion": api, "kind": "MachineHealthCheck", "metadata": {"name": "mhc"}, "spec": spec}
            await site.client.create(site.path("machinehealthchecks"), check)
            await site.client.patch(f"/api/v1/nodes/{sick}/status", {"status": {"conditions": [health("False")]}})

            def replaced(rows: Object) -> bool:
                names = [row["metadata"]["name"] for row in rows["items"]]
                return (
                    sick not in names
                    and [(row.get("status") or {}).get("phase") for row in rows["items"]] == ["Running"] * 2
                )

            await site.until(site.path("machines"), replaced)

    asyncio.run(story())


@BOTH
def test_deleted_cluster_leaves_nothing(version: str) -> None:
    """Workers, templates and infrastructure go before the cluster, and no finalizer is stuck."""

    async def story() -> None:
        async with living(version) as site:
            await site.cluster(2)
            await site.running(2)
            await site.client.delete(site.path("clusters", "c"))
            for plural in ("clusters", "machinedeployments", "machinesets", "machines"):
                await site.until(site.path(plural), lambda rows: not rows["items"])
            for plural in ("labclusters", "labmachines"):
                await site.until(site.infra(plural), lambda rows: not rows["items"])

    asyncio.run(story())


@BOTH
def test_settled_cluster_is_left_alone(version: str) -> None:
    """When everything runs nothing is written any more."""

    async def story() -> None:
        async with living(version) as site:
            await site.cluster(2)
            await site.running(2)
            await site.until(site.path("clusters", "c"), lambda c: True)
            await asyncio.sleep(0.3)
            before = (await site.client.list(site.path("machines")))["metadata"]["resourceVersion"]
            await asyncio.sleep(0.3)
            assert (await site.client.list(site.path("machines")))["metadata"]["resourceVersion"] == before

    asyncio.run(story())


# --- judgement ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("10m0s", 600.0), ("1h5m", 3900.0), ("30s", 30.0), (45, 45.0), (None, None)]
)
def test_durations_are_seconds(text: Any, value: float | None) -> None:
    """Go's durations and plain numbers."""
    assert seconds(text) == value


def test_contract_label_chooses_the_version() -> None:
    """The newest version that a contract's label names is the one to be read."""
    definition = {
        "metadata": {"name": "labmachines.x", "labels": {"cluster.x-k8s.io/v1beta1": "v1alpha1_v1beta1_v1alpha2"}},
        "spec": {"group": "x", "names": {"kind": "LabMachine", "plural": "labmachines"}},
    }
    reference = {"apiVersion": "x/v1alpha1", "kind": "LabMachine", "name": "m"}
    assert resolve(reference, [definition], ("v1beta1",)).api_version == "x/v1beta1"
    with pytest.raises(ContractUnknown, match="contract version label"):
        resolve(reference, [definition], ("v1beta2",))


def deployment(count: int, *, surge: Any = 1, short: Any = 0, kind: str = "RollingUpdate") -> Object:
    """A deployment of so many replicas."""
    strategy = {"type": kind, "rollingUpdate": {"maxSurge": surge, "maxUnavailable": short}}
    return {"apiVersion": "cluster.x-k8s.io/v1beta1", "spec": {"replicas": count, "strategy": strategy}}


def machine_set(name: str, wanted: int, available: int | None = None) -> Object:
    """A machine set with as many machines as wished."""
    there = wanted if available is None else available
    status = {"replicas": wanted, "availableReplicas": there}
    return {"metadata": {"name": name, "creationTimestamp": name}, "spec": {"replicas": wanted}, "status": status}


@pytest.mark.parametrize(
    ("item", "new", "old", "wish"),
    [
        (deployment(3), machine_set("n", 0), machine_set("o", 3), {"n": 1, "o": 3}),
        (deployment(3), machine_set("n", 1), machine_set("o", 3), {"n": 1, "o": 2}),
        (deployment(3), machine_set("n", 1, 0), machine_set("o", 3), {"n": 1, "o": 3}),
        (deployment(3, surge=0, short=1), machine_set("n", 0), machine_set("o", 3), {"n": 0, "o": 2}),
        (deployment(4, surge="50%"), machine_set("n", 0), machine_set("o", 4), {"n": 2, "o": 4}),
        (deployment(3, kind="OnDelete"), machine_set("n", 0), machine_set("o", 3), {"n": 0, "o": 3}),
        (deployment(3), machine_set("n", 3), machine_set("o", 0), {"n": 3, "o": 0}),
        (deployment(1), machine_set("n", 3), machine_set("o", 0), {"n": 1, "o": 0}),
    ],
)
def test_rollout_keeps_its_bounds(item: Object, new: Object, old: Object, wish: dict[str, int]) -> None:
    """Never more than the surge allows, never fewer available than the minimum."""
    assert machinedeployments.replicas(item, new, [old, new]) == wish


def one(name: str, *, born_at: str = "2026-08-01T08:00:00Z", marked: bool = False, node: bool = True) -> Object:
    """A healthy machine."""
    annotations = {"cluster.x-k8s.io/delete-machine": "true"} if marked else {}
    status: Object = {"nodeRef": {"name": name}} if node else {}
    return {
        "apiVersion": "cluster.x-k8s.io/v1beta1",
        "metadata": {"name": name, "creationTimestamp": born_at, "annotations": annotations},
        "status": status,
    }


@pytest.mark.parametrize(
    ("policy", "order"),
    [("Random", ["d", "c", "a", "b"]), ("Newest", ["d", "c", "b", "a"]), ("Oldest", ["d", "c", "a", "b"])],
)
def test_marked_and_sick_machines_go_first(policy: str, order: list[str]) -> None:
    """The annotation, then what has no node, then the policy."""
    rows = [one("a"), one("b", born_at="2026-08-02T08:00:00Z"), one("c", node=False), one("d", marked=True)]
    found = machinesets.order_of_deletion({"spec": {"deletePolicy": policy}}, rows)
    assert [item["metadata"]["name"] for item in found] == order


@pytest.mark.parametrize(
    ("spec", "sick", "may", "left"),
    [
        ({"maxUnhealthy": "40%"}, 2, True, 0),
        ({"maxUnhealthy": "40%"}, 3, False, 0),
        ({"maxUnhealthy": 1}, 1, True, 0),
        ({"unhealthyRange": "[1-3]"}, 2, True, 1),
        ({"unhealthyRange": "[1-3]"}, 4, False, 0),
        ({}, 5, True, 0),
    ],
)
def test_too_many_sick_machines_stop_remediation(spec: Object, sick: int, may: bool, left: int) -> None:
    """A health check does not empty a cluster."""
    assert health_checks.allowed({"spec": spec}, 5, sick)[:2] == (may, left)


def test_machine_without_infrastructure_waits_and_says_so() -> None:
    """Phase and conditions of a machine whose infrastructure is not there yet, in both kinds."""
    item = {
        "apiVersion": "cluster.x-k8s.io/v1beta1", "kind": "Machine", "metadata": {"name": "m", "generation": 1},
        "spec": {"clusterName": "c", "bootstrap": {"dataSecretName": "boot"},
                 "infrastructureRef": {"apiVersion": "x/v1", "kind": "LabMachine", "name": "m"}},
    }  # fmt: skip
    cluster = {"apiVersion": "cluster.x-k8s.io/v1beta1", "status": {"infrastructureReady": True}}
    infra: Object = {"apiVersion": "x/v1", "kind": "LabMachine", "metadata": {"name": "m"}}
    status, judged = machines.judge(
        item, cluster, None, None, infra, None, None, now="2026-08-01T08:00:00Z", connected=True
    )
    assert status["phase"] == "Provisioning"
    assert judged.old["InfrastructureReady"]["reason"] == "WaitingForInfrastructure"
    assert judged.new["NodeHealthy"]["message"] == "Waiting for Cluster control plane to be initialized"


def test_empty_selector_chooses_nothing() -> None:
    """As Cluster API has it, unlike a Service."""
    assert not matches({}, {"a": "b"})
    assert matches({"matchLabels": {"a": "b"}}, {"a": "b"})


# --- Kamaji and kubeadm -------------------------------------------------------------------------------------------

SHAPES = pytest.mark.parametrize(("version", "plane"), [("v1beta1", "v1alpha1"), ("v1beta2", "v1alpha2")])


@SHAPES
def test_tenant_control_plane_is_served_and_its_machines_get_join_documents(version: str, plane: str) -> None:
    """A Cluster with Kamaji answers on its own port, and a worker's document leads there with a token it knows."""

    async def story() -> None:
        async with living(version, kamaji=True) as site:
            await site.managed_cluster(plane)
            config = await site.until(site.secret("c-kubeconfig"), lambda s: s["data"].get("value"))
            data = await site.until(site.secret_of_first_machine(await site.first_machine()), lambda s: s["data"])
            document = yaml.safe_load(base64.b64decode(data["data"]["value"]))
            files = {row["path"]: row["content"] for row in document["write_files"]}
            join_file = yaml.safe_load(files["/run/kubeadm/kubeadm-join-config.yaml"])
            found = join_file["discovery"]["bootstrapToken"]
            tenant = RemoteClient(base64.b64decode(config["data"]["value"]).decode())
            try:
                info = await tenant.get("/api/v1/namespaces/kube-public/configmaps/cluster-info")
                published = yaml.safe_load(info["data"]["kubeconfig"])["clusters"][0]["cluster"]
                assert published["server"] == f"https://{found['apiServerEndpoint']}"
                pem = base64.b64decode(published["certificate-authority-data"])
                assert found["caCertHashes"] == [kubeadm_bootstrap.hash_of(pem)]
                tokens = await tenant.list("/api/v1/namespaces/kube-system/secrets")
                assert f"bootstrap-token-{found['token'][:6]}" in {row["metadata"]["name"] for row in tokens["items"]}
            finally:
                await tenant.close()

    asyncio.run(story())


@SHAPES
def test_deleted_tenant_answers_no_more(version: str, plane: str) -> None:
    """With the Cluster the control plane, its Secrets' owner and its port go."""

    async def story() -> None:
        async with living(version, kamaji=True) as site:
            await site.managed_cluster(plane)
            config = await site.until(site.secret("c-kubeconfig"), lambda s: s["data"].get("value"))
            await site.client.delete(site.path("clusters", "c"))
            await site.until(site.path("clusters"), lambda rows: not rows["items"])
            await site.until(TENANTS, lambda rows: not rows["items"])
            tenant = RemoteClient(base64.b64decode(config["data"]["value"]).decode())
            try:
                with pytest.raises(OSError):
                    for _ in range(200):
                        await tenant.get("/version")
                        await asyncio.sleep(0.01)
            finally:
                await tenant.close()

    asyncio.run(story())


def test_where_nobody_serves_kamaji_says_so() -> None:
    """On a real API server there is no one to ask, and the log and an event tell."""

    async def story() -> None:
        async with living("v1beta1", kamaji=True, serves=False) as site:
            await site.managed_cluster("v1alpha1")

            def told(rows: Object) -> bool:
                return any(row["reason"] == "FailedToServe" for row in rows["items"])

            await site.until(f"/api/v1/namespaces/{SPACE}/events", told)
            assert any(kamaji.NOBODY_SERVES in line for line in site.lines)

    asyncio.run(story())


@pytest.mark.parametrize(("version", "api", "kind"), [("v1.30.4", "v1beta3", dict), ("v1.33.0", "v1beta4", list)])
def test_join_configuration_follows_kubernetes(version: str, api: str, kind: type) -> None:
    """kubeadm's API and the shape of its arguments change with 1.31."""
    spec = {"joinConfiguration": {"nodeRegistration": {"kubeletExtraArgs": {"provider-id": "proxmox://x"}}}}
    found = kubeadm_bootstrap.join_configuration(spec, {"token": "t"}, version)
    assert found["apiVersion"] == f"kubeadm.k8s.io/{api}"
    assert isinstance(found["nodeRegistration"]["kubeletExtraArgs"], kind)


def test_control_plane_that_slept_knows_what_it_knew() -> None:
    """What a control plane held is there again when it is started anew, under the same authority and port."""

    async def story() -> None:
        tenants = Tenants(Clock(math.inf))
        first = await tenants.start("ns", "c", "v1.33.0")
        client = RemoteClient(first.admin_kubeconfig)
        await client.create("/api/v1/namespaces", {"metadata": {"name": "mine"}})
        await client.close()
        await tenants.stop("ns", "c", forget=False)
        second = await tenants.start("ns", "c", "v1.33.0", authority=(first.ca_pem, first.ca_key))
        client = RemoteClient(first.admin_kubeconfig)
        try:
            assert (await client.get("/api/v1/namespaces/mine"))["metadata"]["name"] == "mine"
            assert second.port == first.port
        finally:
            await client.close()
            await tenants.close()

    asyncio.run(story())


# --- Talos --------------------------------------------------------------------------------------------------------


def test_talos_config_takes_its_patches() -> None:
    """Strategic patches merge, JSON patches set one place, and one that fits nowhere says so."""
    machine = {"metadata": {"name": "m"}, "spec": {"version": "v1.33.0"}}
    cluster = {"metadata": {"name": "c"}, "spec": {"controlPlaneEndpoint": {"host": "10.0.0.150", "port": 6443}}}
    config = talos_bootstrap.machine_config(machine, cluster, "join", "abcdef.0123456789abcdef", "")
    steps = [{"op": "replace", "path": "/machine/install/disk", "value": "/dev/vda"}]
    found = talos_bootstrap.patched(config, ["machine:\n  nodeLabels:\n    zone: a\n"], steps)
    assert found["machine"]["type"] == "worker"
    assert (found["machine"]["install"]["disk"], found["machine"]["nodeLabels"]) == ("/dev/vda", {"zone": "a"})
    with pytest.raises(ValueError, match="missing path: /machine/none/x"):
        talos_bootstrap.patched(config, [], [{"op": "add", "path": "/machine/none/x", "value": 1}])


# --- the autoscaler -----------------------------------------------------------------------------------------------


def stuck(name: str, cpu: str) -> Object:
    """A pod that the scheduler found no node for."""
    entry = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "lastTransitionTime": "2026-08-01T08:00:00Z",
    }
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "nginx", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {"phase": "Pending", "conditions": [entry]},
    }


NODE = {"metadata": {"name": "template", "labels": {}}, "spec": {}, "status": {"allocatable": ROOM}}


@pytest.mark.parametrize(
    ("requests", "upcoming", "count"),
    [(["2", "2"], 0, 1), (["3", "3"], 0, 2), (["3", "3"], 1, 1), (["8"], 0, 0), (["2"], 1, 0)],
)
def test_autoscaler_packs_pods_into_new_nodes(requests: list[str], upcoming: int, count: int) -> None:
    """As many nodes as the pods need beyond those that come already; a pod too large for any does not count."""
    pods = [stuck(f"p{number}", cpu) for number, cpu in enumerate(requests)]
    assert autoscaler.needed(pods, NODE, upcoming)[0] == count


def test_empty_group_is_known_by_its_capacity_annotations() -> None:
    """From zero there is no node to look at, so the annotations describe one."""
    start = "capacity.cluster-autoscaler.kubernetes.io/"
    annotations = {
        f"{start}cpu": "8",
        f"{start}memory": "16Gi",
        f"{start}labels": "gpu=yes",
        f"{start}taints": "gpu=yes:NoSchedule",
    }
    group = autoscaler.Group({"metadata": {"annotations": annotations}, "spec": {}}, (), 0, 3)
    found = autoscaler.template_node(group)
    assert found is not None
    assert found["metadata"]["labels"] == {"gpu": "yes"}
    assert found["spec"]["taints"] == [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]
    assert autoscaler.template_node(autoscaler.Group({"metadata": {}, "spec": {}}, (), 0, 3)) is None


@BOTH
def test_pods_without_room_bring_a_machine_that_goes_when_idle(version: str) -> None:
    """A pending pod grows the deployment and hears of it; when it is gone the idle node is taken away again."""

    async def story() -> None:
        async with living(version) as site:
            await site.cluster(1)
            await site.running(1)
            start = "cluster.x-k8s.io/cluster-api-autoscaler-node-group-"
            limits = {"metadata": {"annotations": {f"{start}min-size": "1", f"{start}max-size": "3"}}}
            await site.client.patch(site.path("machinedeployments", "md"), limits)
            found = f"--node-group-auto-discovery=clusterapi:namespace={SPACE},clusterName=c"
            quick = ["--scale-down-unneeded-time=20s", "--scale-down-delay-after-add=20s"]
            words = ["--cloud-provider=clusterapi", found, *quick]
            container = {"image": "x/cluster-autoscaler:v1.33.0", "args": words}
            process = Process({"metadata": {"name": "a", "namespace": SPACE}}, container, {}, site.lines.append)
            for pod in (stuck("p1", "3"), stuck("p2", "3")):
                made = await site.client.create("/api/v1/namespaces/default/pods", pod)
                await site.client.patch(
                    f"/api/v1/namespaces/default/pods/{made['metadata']['name']}/status", {"status": pod["status"]}
                )
            site.context.spawn(autoscaler.run(site.context, process), name="autoscaler")
            await site.running(3)
            events = await site.client.list("/api/v1/namespaces/default/events")
            said = {row["message"] for row in events["items"] if row["reason"] == "TriggeredScaleUp"}
            assert said == {f"pod triggered scale-up: [{{MachineDeployment/{SPACE}/md 1->3 (max: 3)}}]"}
            for name in ("p1", "p2"):
                await site.client.delete(f"/api/v1/namespaces/default/pods/{name}")
            await site.running(1)
            told = await site.client.get("/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status")
            assert yaml.safe_load(told["data"]["status"])["autoscalerStatus"] == "Running"

    asyncio.run(story())
