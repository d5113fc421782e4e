"""The kubeadm control plane provider: machines that are a control plane, made one by one, replaced, and taken away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from . import cluster_certificates
from . import kubeadm_control_plane_rules as rules
from .alarms import Alarms
from .capi import conditions
from .capi.conditions import Conditions
from .capi.machines import PRE_TERMINATE
from .capi.manager import Manager, api_of, at_turns, children
from .capi.objects import (
    CLUSTER_NAME,
    CONTROL_PLANE,
    ContractUnknown,
    clone,
    cluster_key,
    is_paused,
    owned,
    owner,
    reference_to,
    suffix,
)
from .client import Cache, Key, Object, Refused, key_of
from .context import Context
from .processes import Process, Program
from .reconcile import reconcile
from .remote import Remote

GROUP = "controlplane.cluster.x-k8s.io"
FINALIZER = f"kubeadm.{GROUP}"
NAME_LABEL = "cluster.x-k8s.io/control-plane-name"
HOOK = f"{PRE_TERMINATE}.cluster.x-k8s.io/kcp-cleanup"
CONFIG = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"
SOURCE = "kubeadm-control-plane-controller"
LOG = "controller"
REQUEUE, DELETE_REQUEUE, PREFLIGHT_REQUEUE = 20.0, 30.0, 15.0


async def run(context: Context, process: Process) -> None:
    """Works until cancelled."""
    version, contracts = api_of(process.version)
    core = Manager(context, process, version, contracts)
    own = Manager(context, process, version, contracts, group=GROUP)
    core.log("main", "Starting manager", version=process.version)
    alarms = Alarms(context)
    plane = Planes(core, own, own.cache("kubeadmcontrolplanes"))

    def of_cluster(item: Object) -> list[Key]:
        space, reference = item["metadata"]["namespace"], (item.get("spec") or {}).get("controlPlaneRef") or {}
        return [(space, reference["name"])] if reference.get("kind") == "KubeadmControlPlane" else []

    def outside(item: Object) -> list[Key]:
        if item["kind"] == "Remote":
            cluster = core.cache("clusters").get(*key_of(item))
            return of_cluster(cluster) if cluster else []
        return []

    async def work(key: Key, item: Object | None) -> None:
        after = await plane.work(key, item)
        if after is None:
            alarms.cancel(key)
        else:
            alarms.set(key, after)

    also = [(alarms, Alarms.keys), (core.cache("clusters"), at_turns(of_cluster)), (core.outside, outside)]
    crowds = [(core.cache("machines"), children("KubeadmControlPlane"))]
    try:
        await reconcile(context, plane.cache, work, also=also, crowds=crowds)
    finally:
        alarms.close()
        await core.remotes.close()


@dataclass
class Pass:
    """One pass over one control plane."""

    item: Object
    cluster: Object
    machines: list[Object]
    judged: Conditions
    workload: rules.Workload = field(default_factory=rules.Workload)
    blocked: list[str] = field(default_factory=list)
    template_missing: bool = False

    @property
    def name(self) -> str:
        """The control plane's name."""
        return str(self.item["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.item["metadata"]["namespace"])

    @property
    def initialized(self) -> bool:
        """Whether its cluster was ever seen to answer."""
        status = self.item.get("status") or {}
        known = (status.get("initialization") or {}).get("controlPlaneInitialized") or status.get("initialized")
        return bool(known) or self.workload.configured


@dataclass
class Planes:
    """The controller. `core` speaks of Clusters and Machines, `own` of control planes."""

    core: Manager
    own: Manager
    cache: Cache

    @property
    def machines(self) -> Cache:
        """The cache of all Machines."""
        return self.core.cache("machines")

    def say(self, message: str, item: Object, **values: object) -> None:
        """Nothing; a line of the manager's log."""
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        self.core.log(LOG, message, KubeadmControlPlane=name, **values)

    async def work(self, key: Key, item: Object | None) -> float | None:
        """One pass. Returns the seconds of the lab after which to be called again."""
        if item is None:
            return None
        names = [row["name"] for row in item["metadata"].get("ownerReferences") or () if row["kind"] == "Cluster"]
        cluster = self.core.cache("clusters").get(key[0], names[0]) if names else None
        if cluster is None:
            self.say("Cluster Controller has not yet set OwnerRef", item)
            return None
        judged = conditions.read(item, self.core.context.stamp())
        if is_paused(item, cluster):
            judged.put("Paused", True, "Paused", "Cluster spec.paused is set to true")
            await self.own.report(self.cache, item, dict(item.get("status") or {}), judged)
            return None
        deleting = "deletionTimestamp" in item["metadata"]
        finalizers = item["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers and not deleting:
            wish = {**item["metadata"], "finalizers": [*finalizers, FINALIZER]}
            item = await self.own.save(self.cache, item, {**item, "metadata": wish})
        made = Pass(item, cluster, self._members(item, cluster), judged)
        after = await (self._delete(made) if deleting else self._normal(made))
        if deleting and not made.machines:
            return None
        made.machines = self._members(item, cluster)
        status = rules.judge(
            made.item, cluster, made.machines, made.workload, judged, blocked=made.blocked,
            template_missing=made.template_missing,
        )  # fmt: skip
        fresh = await self.own.report(self.cache, made.item, status, judged)
        if after is None and not deleting and not self._settled(fresh, judged):
            return REQUEUE
        return after

    @staticmethod
    def _settled(item: Object, judged: Conditions) -> bool:
        """Whether nothing is waited for that no watch would tell of."""
        status = item.get("status") or {}
        healthy = judged.of("ControlPlaneComponentsHealthy").get("status") == "True"
        ready = status.get("ready") or judged.of("Available").get("status") == "True"
        return bool(healthy and ready)

    def _members(self, item: Object, cluster: Object) -> list[Object]:
        at = key_of(cluster)
        rows = [
            machine
            for _, machine in sorted(self.machines.items.items())
            if cluster_key(machine) == at and CONTROL_PLANE in (machine["metadata"].get("labels") or {})
        ]
        uid = item["metadata"]["uid"]
        return [row for row in rows if any(o["uid"] == uid for o in row["metadata"].get("ownerReferences") or ())]

    # -- life -------------------------------------------------------------------------------------

    async def _normal(self, made: Pass) -> float | None:
        item, cluster, judged = made.item, made.cluster, made.judged
        await self._own_template(made)
        state, place = cluster.get("status") or {}, cluster["spec"].get("controlPlaneEndpoint") or {}
        started = state.get("initialization") or {}
        if not (state.get("infrastructureReady") or started.get("infrastructureProvisioned")):
            path = "initialization.infrastructureProvisioned" if "initialization" in state else "infrastructureReady"
            self._wait(made, f"Waiting for Cluster status.{path} to be true")
            self.say("Cluster infrastructure is not ready yet", item)
            return None
        reference = owner(item)
        pairs = await cluster_certificates.complete(
            self.core.context, made.namespace, cluster["metadata"]["name"], reference
        )
        judged.mark("CertificatesAvailable")
        judged.put("CertificatesAvailable", True, "Available")
        if not place.get("host"):
            self._wait(made, "Waiting for Cluster spec.controlPlaneEndpoint to be set")
            self.say("Cluster does not yet have a ControlPlaneEndpoint defined", item)
            return None
        await self._kubeconfig(made, pairs, "{host}:{port}".format(**place))
        made.workload = await self._look(made)
        await self._sync(made)
        if (after := await self._end_members(made)) is not None:
            return after
        if (after := await self._remediate(made)) is not None:
            return after
        old = [row for row in made.machines if conditions.new_of(row).get("UpToDate", {}).get("status") == "False"]
        return await self._scale(made, old)

    def _wait(self, made: Pass, said: str) -> None:
        for kind in ("EtcdClusterHealthy", "ControlPlaneComponentsHealthy"):
            made.judged.put(kind, "Unknown", "InspectionFailed", said)

    async def _own_template(self, made: Pass) -> None:
        """Nothing; the infrastructure template belongs to the cluster, where there is one."""
        try:
            found, target = await self.core.external(rules.template_of(made.item), made.namespace)
        except ContractUnknown as error:
            made.template_missing = True
            self.say("Reconciler error", made.item, err=error)
            return
        made.template_missing = found is None
        if found is not None:
            owners = owned(found, owner(made.cluster, controller=False))
            wish = {**found, "metadata": {**found["metadata"], "ownerReferences": owners}}
            await self.core.save(self.core.context.cache(target.path), found, wish)

    async def _kubeconfig(self, made: Pass, pairs: cluster_certificates.Pairs, place: str) -> None:
        name = made.cluster["metadata"]["name"]
        cache = self.core.context.cache(cluster_certificates.SECRETS)
        if cache.get(made.namespace, f"{name}-kubeconfig") is None:
            text = cluster_certificates.admin_kubeconfig(name, place, pairs["ca"])
            await cluster_certificates.keep(
                self.core.context, made.namespace, f"{name}-kubeconfig", name, owner(made.item), {"value": text}
            )

    async def _look(self, made: Pass) -> rules.Workload:
        """What the cluster that the machines make says of itself; nothing while it does not answer."""
        remote = self.core.remotes.get(key_of(made.cluster))
        if remote is None or not remote.connected:
            return rules.Workload()
        label = "node-role.kubernetes.io/control-plane"
        nodes = {
            name: node for (_, name), node in sorted(remote.nodes.items.items())
            if label in (node["metadata"].get("labels") or {})
        }  # fmt: skip
        try:
            configured = made.initialized or await remote.client.find(CONFIG) is not None
            pods = await _pods(remote, nodes)
        except (Refused, aiohttp.ClientError, TimeoutError, OSError):
            return rules.Workload()
        return rules.Workload(True, configured, nodes, pods)

    async def _sync(self, made: Pass) -> None:
        """Nothing; the machines have what is changed in place, and conditions that tell of their part."""
        template = made.item["spec"]["machineTemplate"].get("metadata") or {}
        for number, machine in enumerate(made.machines):
            labels = {**(machine["metadata"].get("labels") or {}), **(template.get("labels") or {})}
            labels |= {NAME_LABEL: made.name, CONTROL_PLANE: ""}
            notes = {**(machine["metadata"].get("annotations") or {}), **(template.get("annotations") or {})}
            wish = {**machine, "metadata": {**machine["metadata"], "labels": labels, "annotations": notes},
                    "spec": {**machine["spec"], **rules.timeouts_of(made.item)}}  # fmt: skip
            fresh = await self.core.save(self.machines, machine, wish)
            config, infra = await self._parts(fresh, made.namespace)
            judged = conditions.read(fresh, self.core.context.stamp())
            why = rules.outdated(made.item, fresh, config, infra)
            rules.judge_machine(judged, fresh, made.workload if made.initialized else rules.Workload(), why)
            made.machines[number] = await self.core.report(
                self.machines, fresh, dict(fresh.get("status") or {}), judged
            )

    async def _parts(self, machine: Object, space: str) -> tuple[Object | None, Object | None]:
        found: list[Object | None] = []
        for reference in ((machine["spec"].get("bootstrap") or {}).get("configRef"),
                          machine["spec"]["infrastructureRef"]):  # fmt: skip
            try:
                found.append((await self.core.external(reference, space))[0] if reference else None)
            except ContractUnknown:
                found.append(None)
        return found[0], found[1]

    # -- scaling ----------------------------------------------------------------------------------

    async def _scale(self, made: Pass, old: Sequence[Object]) -> float | None:
        wanted, count = int(made.item["spec"].get("replicas", 1)), len(made.machines)
        if old:
            names = [row["metadata"]["name"] for row in old]
            lines = {line for row in old for line in conditions.new_of(row)["UpToDate"]["message"].splitlines()}
            said = f"Rolling out Control Plane machines: {','.join(sorted(line[2:] for line in lines))}"
            self.say(said, made.item, machinesNeedingRollout=names)
            await self._tell_version(made)
            if count < wanted + rules.surge_of(made.item):
                return await self._grow(made, joins=True)
            return await self._shrink(made, old)
        if count < wanted and count == 0:
            self.say("Initializing control plane", made.item, desired=wanted, existing=count)
            made.judged.mark("Available", "WaitingForKubeadmInit", severity="Info")
            return await self._grow(made, joins=False)
        if count < wanted:
            self.say("Scaling up control plane", made.item, desired=wanted, existing=count)
            return await self._grow(made, joins=True)
        if count > wanted:
            self.say("Scaling down control plane", made.item, desired=wanted, existing=count)
            return await self._shrink(made, ())
        return None

    async def _tell_version(self, made: Pass) -> None:
        """Nothing; the cluster's kubeadm-config names the version that new machines are to have."""
        remote = self.core.remotes.get(key_of(made.cluster))
        if remote is None or not remote.connected:
            return
        import yaml  # only an upgrade needs it

        known = await remote.client.find(CONFIG)
        text = ((known or {}).get("data") or {}).get("ClusterConfiguration", "")
        config = yaml.safe_load(text) or {}
        if known is not None and config.get("kubernetesVersion") != made.item["spec"]["version"]:
            config["kubernetesVersion"] = made.item["spec"]["version"]
            await remote.client.patch(CONFIG, {"data": {"ClusterConfiguration": yaml.safe_dump(config)}})

    async def _checked(self, made: Pass, *, without: str = "") -> bool:
        """Whether the control plane is steady enough to be changed; if not, why is told."""
        made.blocked = rules.preflight_messages(made.machines, without=without)
        if not made.blocked:
            return True
        going = rules.deleting(made.machines)
        if going:
            self.say("Waiting for machines to be deleted", made.item, machines=", ".join(going))
            return False
        why = rules.blockers(made.machines, without=without)
        told = why[0] if len(why) == 1 else f"[{', '.join(why)}]"
        self.say("Waiting for control plane to pass preflight checks", made.item, failures=told)
        said = f"Waiting for control plane to pass preflight checks to continue reconciliation: {told}"
        await self.core.event(made.item, "ControlPlaneUnhealthy", said, kind="Warning", source=SOURCE)
        return False

    async def _grow(self, made: Pass, *, joins: bool) -> float | None:
        if joins and not await self._checked(made):
            return DELETE_REQUEUE if rules.deleting(made.machines) else PREFLIGHT_REQUEUE
        trouble = await self._make(made, joins=joins)
        if trouble:
            head = "Failed to create additional" if joins else "Failed to create initial"
            reason = "FailedScaleUp" if joins else "FailedInitialization"
            said = (
                f"{head} control plane Machine for cluster {made.cluster['metadata']['name']} control plane: {trouble}"
            )
            await self.core.event(made.item, reason, said, kind="Warning", source=SOURCE)
            made.judged.mark("MachinesCreated", "InfrastructureTemplateCloningFailed", trouble, severity="Error")
            return REQUEUE
        return None

    async def _make(self, made: Pass, *, joins: bool) -> str:
        """What kept a machine from being made; empty when it was."""
        space, cluster = made.namespace, made.cluster["metadata"]["name"]
        try:
            source, target = await self.core.external(rules.template_of(made.item), space)
            own = self.core.find_target({"kind": target.kind.removesuffix("Template"),
                                         "apiVersion": target.api_version})  # fmt: skip
        except ContractUnknown as error:
            return str(error)
        if source is None:
            kind = f"{target.plural}.{target.api_version.partition('/')[0]}"
            return f'{kind} "{rules.template_of(made.item)["name"]}" not found'
        head, taken = f"{made.name}-", {key[1] for key in self.machines.items if key[0] == space}
        name = head + suffix(self.core.context.seed, space, head, made.item["metadata"]["uid"], len(taken),
                             len(made.machines), taken=taken, head=head)  # fmt: skip
        template = made.item["spec"]["machineTemplate"].get("metadata") or {}
        labels = {**(template.get("labels") or {}), CLUSTER_NAME: cluster, CONTROL_PLANE: "", NAME_LABEL: made.name}
        reference = owner(made.item, controller=False)
        body = clone(source, target, name, space, cluster, labels)
        body["apiVersion"] = own.api_version
        body["metadata"]["ownerReferences"] = [reference]
        infra = await self._create(own.path, body)
        await self.core.external(reference_to(infra, self.core.version_of()), space)
        boot = f"bootstrap.cluster.x-k8s.io/{self.core.version}"
        config = await self._create(f"/apis/{boot}/kubeadmconfigs", {
            "apiVersion": boot, "kind": "KubeadmConfig",
            "metadata": {"name": name, "namespace": space, "labels": labels, "ownerReferences": [reference]},
            "spec": rules.config_spec(made.item, joins=joins),
        })  # fmt: skip
        await self.core.external(reference_to(config, self.core.version_of()), space)
        wanted = (made.item["spec"].get("kubeadmConfigSpec") or {}).get("clusterConfiguration")
        notes = {**(template.get("annotations") or {}), rules.CONFIGURATION: json.dumps(wanted, separators=(",", ":")),
                 HOOK: ""}  # fmt: skip
        spec = {
            "clusterName": cluster, "version": made.item["spec"]["version"],
            "bootstrap": {"configRef": reference_to(config, self.core.version_of())},
            "infrastructureRef": reference_to(infra, self.core.version_of()),
            "readinessGates": [{"conditionType": kind} for kind in rules.HEALTH],
            **rules.timeouts_of(made.item),
        }  # fmt: skip
        machine = await self._create(self.core.path("machines"), {
            "apiVersion": self.core.version_of(), "kind": "Machine",
            "metadata": {"name": name, "namespace": space, "labels": labels, "annotations": notes,
                         "ownerReferences": [owner(made.item)]},
            "spec": spec,
        })  # fmt: skip
        await self.machines.caught_up(machine)
        return ""

    async def _create(self, path: str, body: Object) -> Object:
        base, _, plural = path.rpartition("/")
        made = await self.core.context.client.create(
            f"{base}/namespaces/{body['metadata']['namespace']}/{plural}", body
        )
        return {"apiVersion": body["apiVersion"], "kind": body["kind"], **made}

    async def _shrink(self, made: Pass, old: Sequence[Object]) -> float | None:
        machine = rules.choose(made.machines, old)
        if machine is None:
            return None
        name = machine["metadata"]["name"]
        if not await self._checked(made, without=name):
            return DELETE_REQUEUE if rules.deleting(made.machines) else PREFLIGHT_REQUEUE
        self.say("Deleting control plane Machine", made.item, Machine=name)
        await self.core.delete(self.machines, machine)
        return DELETE_REQUEUE

    # -- machines that go -------------------------------------------------------------------------

    async def _end_members(self, made: Pass) -> float | None:
        """Machines that wait for this hook alone are taken out of etcd, and may go then."""
        after = None
        for machine in made.machines:
            notes = machine["metadata"].get("annotations") or {}
            if "deletionTimestamp" not in machine["metadata"] or HOOK not in notes:
                continue
            if conditions.new_of(machine).get("Deleting", {}).get("reason") != "WaitingForPreTerminateHook":
                after = DELETE_REQUEUE
                continue
            node = ((machine.get("status") or {}).get("nodeRef") or {}).get("name", "")
            if len(made.machines) > 1 and node in made.workload.members():
                await self._remove_member(made, node)
            await self._unhook(machine)
        return after

    async def _remove_member(self, made: Pass, node: str) -> None:
        remote = self.core.remotes.get(key_of(made.cluster))
        if remote is None:
            return
        self.say("Removing etcd member", made.item, member=node)
        path = f"/api/v1/namespaces/kube-system/pods/etcd-{node}"
        await remote.client.patch(path, {"metadata": {"annotations": {rules.REMOVED: "removed"}}})

    async def _unhook(self, machine: Object) -> None:
        notes = {key: value for key, value in (machine["metadata"].get("annotations") or {}).items() if key != HOOK}
        wish = {**machine, "metadata": {**machine["metadata"], "annotations": notes}}
        self.core.log(
            LOG, "Removing pre-terminate hook from control plane Machine", Machine=machine["metadata"]["name"]
        )
        await self.core.save(self.machines, machine, wish)

    async def _remediate(self, made: Pass) -> float | None:
        """A machine that a health check gave up is deleted, where that leaves etcd its quorum."""
        due = [
            row for row in made.machines
            if conditions.old_of(row).get("OwnerRemediated", {}).get("status") == "False"
            and "deletionTimestamp" not in row["metadata"]
        ]  # fmt: skip
        if not due:
            return None
        machine = due[0]
        why = self._cannot_remediate(made, machine)
        judged = conditions.read(machine, self.core.context.stamp())
        if why:
            judged.mark("OwnerRemediated", "RemediationFailed", why, severity="Warning")
            judged.put("OwnerRemediated", False, "CannotBeRemediated", why)
            self.say(f"A control plane machine needs remediation, but {why}", made.item)
            await self.core.report(self.machines, machine, dict(machine.get("status") or {}), judged)
            return None
        judged.mark("OwnerRemediated", "RemediationInProgress", severity="Warning")
        judged.put("OwnerRemediated", False, "RemediationMachineDeleted", "Machine deletionTimestamp set")
        fresh = await self.core.report(self.machines, machine, dict(machine.get("status") or {}), judged)
        self.say("Remediating unhealthy machine", made.item, Machine=machine["metadata"]["name"])
        await self.core.delete(self.machines, fresh)
        return DELETE_REQUEUE

    @staticmethod
    def _cannot_remediate(made: Pass, machine: Object) -> str:
        if not made.initialized:
            return ""
        if len(made.machines) <= 1:
            return "KCP can't remediate if current replicas are less or equal to 1"
        if rules.deleting(made.machines):
            return "KCP waiting for control plane Machine deletion to complete before triggering remediation"
        members = made.workload.members()
        node = ((machine.get("status") or {}).get("nodeRef") or {}).get("name", "")
        healthy = [
            row for row in made.machines
            if row is not machine and conditions.new_of(row).get("EtcdMemberHealthy", {}).get("status") == "True"
        ]  # fmt: skip
        left = [name for name in members if name != node]
        if left and len(healthy) < len(left) // 2 + 1:
            return "KCP can't remediate this machine because this could result in etcd loosing quorum"
        return ""

    # -- the end ----------------------------------------------------------------------------------

    async def _delete(self, made: Pass) -> float | None:
        item = made.item
        self.say("Reconcile KubeadmControlPlane deletion", item)
        if not made.machines:
            if FINALIZER in (item["metadata"].get("finalizers") or ()):
                rest = [name for name in item["metadata"]["finalizers"] if name != FINALIZER]
                await self.own.save(self.cache, item, {**item, "metadata": {**item["metadata"], "finalizers": rest}})
            return None
        at = key_of(made.cluster)
        others = [row for row in self.machines.items.values() if cluster_key(row) == at and row not in made.machines]
        if others:
            said = "Waiting for worker nodes to be deleted first"
            self.say(said, item)
            made.judged.mark("Resized", "Deleting", said, severity="Info")
            names = ", ".join(sorted(row["metadata"]["name"] for row in others)[:3])
            made.judged.put("Deleting", True, "WaitingForWorkersDeletion", f"* Machines: {names}")
            return DELETE_REQUEUE
        for machine in made.machines:
            if HOOK in (machine["metadata"].get("annotations") or {}):
                await self._unhook(machine)
            await self.core.delete(self.machines, self.machines.get(*key_of(machine)) or machine)
        names = ", ".join(sorted(row["metadata"]["name"] for row in made.machines))
        made.judged.mark("Resized", "Deleting", severity="Info")
        made.judged.put("Deleting", True, "WaitingForMachineDeletion", f"* Machines: {names}")
        return DELETE_REQUEUE


async def _pods(remote: Remote, nodes: dict[str, Any]) -> dict[str, Object]:
    """The control plane pods of these nodes by their names, each asked for as Cluster API does."""
    found = {}
    for node in nodes:
        for component in rules.COMPONENTS.values():
            name = f"{component}-{node}"
            pod = await remote.client.find(f"/api/v1/namespaces/kube-system/pods/{name}")
            if pod is not None:
                found[name] = pod
    return found


PROGRAMS = (Program("kubeadm-control-plane-controller", run),)
