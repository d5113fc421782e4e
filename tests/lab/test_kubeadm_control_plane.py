"""A KubeadmControlPlane's judgement by object pairs: what it says, what it waits for, whom it replaces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runbook_lib.lab import joining, planes
from runbook_lib.lab.kubernetes.controllers import kubeadm_bootstrap, kubeadm_documents
from runbook_lib.lab.kubernetes.controllers import kubeadm_control_plane_rules as rules
from runbook_lib.lab.kubernetes.controllers.capi import conditions
from runbook_lib.lab.kubernetes.controllers.capi.conditions import Conditions

Object = dict[str, Any]
NOW = "2026-08-01T08:00:00Z"
CLUSTER: Object = {
    "metadata": {"name": "c", "namespace": "d"},
    "spec": {
        "controlPlaneEndpoint": {"host": "10.0.0.140", "port": 6443},
        "clusterNetwork": {"pods": {"cidrBlocks": ["10.1.0.0/16"]}, "services": {"cidrBlocks": ["10.2.0.0/16"]}},
    },
}


def plane(replicas: int = 3, version: str = "v1.34.3", **config: Any) -> Object:
    """A control plane."""
    reference = {"apiVersion": "infrastructure.cluster.x-k8s.io/v1", "kind": "LabMachineTemplate", "name": "t"}
    return {
        "apiVersion": "controlplane.cluster.x-k8s.io/v1beta1", "kind": "KubeadmControlPlane",
        "metadata": {"name": "k", "namespace": "d", "uid": "u"},
        "spec": {"replicas": replicas, "version": version, "machineTemplate": {"infrastructureRef": reference},
                 "kubeadmConfigSpec": config},
    }  # fmt: skip


def machine(name: str, *, version: str = "v1.34.3", healthy: bool = True, joined: bool = True, **more: Any) -> Object:
    """A Machine of the control plane, with what its conditions say."""
    state = "True" if healthy else "False"
    row = {"status": state, "message": "m", "lastTransitionTime": NOW}
    old = [{"type": kind, "severity": "Error", **row} for kind in (*rules.HEALTH, "Ready")]
    new = [{"type": kind, **row} for kind in (*rules.HEALTH, "Ready", "Available")]
    status: Object = {"nodeRef": {"name": name}, "conditions": old, "v1beta2": {"conditions": new}} if joined else {}
    spec = {"version": version, "infrastructureRef": {"kind": "LabMachine", "name": name}}
    metadata = {"name": name, "creationTimestamp": NOW, **more}
    return {"apiVersion": "cluster.x-k8s.io/v1beta1", "kind": "Machine", "metadata": metadata, "spec": spec,
            "status": status}  # fmt: skip


def workload(*names: str, gone: tuple[str, ...] = (), removed: tuple[str, ...] = ()) -> rules.Workload:
    """A cluster of these nodes, all their pods running but those of the ones that are gone."""
    nodes = {name: {"metadata": {"name": name}, "spec": {}, "status": {}} for name in names}
    running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    pods = {
        f"{part}-{name}": {
            "metadata": {"annotations": {rules.REMOVED: "removed"} if name in removed else {}}, "status": running,
        }
        for name in names if name not in gone for part in rules.COMPONENTS.values()
    }  # fmt: skip
    return rules.Workload(True, True, nodes, pods)


def judged_machine(item: Object, seen: rules.Workload, *why: str) -> Conditions:
    """The machine's conditions anew."""
    judged = conditions.read(item, NOW)
    rules.judge_machine(judged, item, seen, why)
    return judged


def test_a_machine_whose_pods_run_is_healthy() -> None:
    """Each component and the member of etcd, in both kinds of conditions."""
    judged = judged_machine(machine("a", joined=True), workload("a"))
    assert {judged.of(kind)["status"] for kind in rules.HEALTH} == {"True"}
    assert {judged.old[kind]["status"] for kind in rules.HEALTH} == {"True"}
    assert judged.of("UpToDate")["reason"] == "UpToDate"


def test_a_missing_pod_is_told_by_its_name() -> None:
    """In the words of Cluster API, and etcd misses the member."""
    judged = judged_machine(machine("a"), workload("a", "b", gone=("a",)))
    assert judged.old["SchedulerPodHealthy"]["message"] == "Pod kube-scheduler-a is missing"
    assert judged.of("SchedulerPodHealthy")["reason"] == "DoesNotExist"
    assert judged.of("EtcdMemberHealthy")["message"] == (
        "Etcd reports the cluster is composed by b, but the etcd member hosted on this Machine is not included"
    )


def test_a_machine_without_a_node_is_waited_for() -> None:
    """Nothing is known of its pods yet, and why not."""
    judged = judged_machine(machine("a", joined=False), workload())
    assert judged.of("APIServerPodHealthy") | {"lastTransitionTime": ""} == {
        "type": "APIServerPodHealthy", "status": "Unknown", "observedGeneration": 0, "lastTransitionTime": "",
        "reason": "InspectionFailed", "message": "Waiting for LabMachine to report spec.providerID",
    }  # fmt: skip


def test_a_member_that_was_taken_out_counts_no_more() -> None:
    """What is left is what quorum is counted of."""
    assert workload("a", "b", removed=("b",)).members() == ["a"]


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ([], []),
        ([machine("a")], []),
        ([machine("a"), machine("b", deletionTimestamp=NOW)],
         ["* waiting for a control plane Machine to complete deletion"]),
        ([machine("a"), machine("b", joined=False)],
         ["* waiting for control plane components to become healthy", "* waiting for etcd cluster to become healthy"]),
    ],
    ids=["none", "steady", "deleting", "joining"],
)  # fmt: skip
def test_scaling_waits_until_the_control_plane_is_steady(machines: list[Object], said: list[str]) -> None:
    """And says what for."""
    assert rules.preflight_messages(machines) == said


def test_blockers_name_the_machine_and_its_condition() -> None:
    """As the event ControlPlaneUnhealthy does; the machine that is to go blocks nothing."""
    rows = [machine("a", healthy=False), machine("b", joined=False)]
    found = rules.blockers(rows, without="a")
    assert found == ["Machine b does not have a corresponding Node yet (Machine.status.nodeRef not set)"]
    assert "Machine a reports EtcdMemberHealthy condition is false (Error, m)" in rules.blockers(rows)


@pytest.mark.parametrize(
    ("wish", "config", "infra", "why"),
    [
        (plane(), {}, {}, []),
        (plane(version="v1.35.0"), {}, {}, ["* Version v1.34.3, v1.35.0 required"]),
        (plane(files=[{"path": "/a"}]), {}, {}, ["* KubeadmConfig is not up-to-date"]),
        (plane(), {}, {"cluster.x-k8s.io/cloned-from-name": "other"}, ["* LabMachine is not up-to-date"]),
        (plane(files=[{"path": "/a"}]), {"files": [{"path": "/a"}]}, {}, []),
    ],
    ids=["nothing", "version", "config", "template", "same config"],
)
def test_what_differs_makes_a_machine_outdated(wish: Object, config: Object, infra: Object, why: list[str]) -> None:
    """Version, bootstrap config and template, in the words of the condition UpToDate."""
    found = {"kind": "LabMachine", "metadata": {"annotations": infra}}
    assert rules.outdated(wish, machine("a"), {"spec": config}, found) == why


def test_the_outdated_machine_that_ails_goes_first() -> None:
    """Before older ones that are well."""
    old = [machine("a", creationTimestamp="2026-01-01T00:00:00Z"), machine("b", healthy=False)]
    chosen = rules.choose([*old, machine("c")], old)
    assert chosen is not None
    assert chosen["metadata"]["name"] == "b"


def test_a_control_plane_says_how_far_it_is() -> None:
    """One machine of three: initialized, scaling up, not yet all there."""
    item, judged = plane(), Conditions(NOW)
    judged.put("CertificatesAvailable", True, "Available")
    status = rules.judge(item, CLUSTER, [machine("a")], workload("a"), judged)
    assert (status["replicas"], status["initialized"], status["version"]) == (1, True, "v1.34.3")
    assert status["selector"] == "cluster.x-k8s.io/cluster-name=c,cluster.x-k8s.io/control-plane"
    assert judged.of("ScalingUp")["message"] == "Scaling up from 1 to 3 replicas"
    assert judged.old["Resized"]["message"] == "Scaling up control plane to 3 replicas (actual 1)"
    assert (judged.of("Available")["status"], judged.of("EtcdClusterHealthy")["reason"]) == ("True", "Healthy")


def test_a_lost_quorum_makes_a_control_plane_unavailable() -> None:
    """One healthy member of three is too few, and it is told how many it takes."""
    judged = Conditions(NOW)
    judged.put("CertificatesAvailable", True, "Available")
    rows = [machine("a"), machine("b", healthy=False), machine("c", healthy=False)]
    rules.judge(plane(), CLUSTER, rows, workload("a", "b", "c"), judged)
    assert judged.of("Available")["message"] == (
        "* 1 of 3 etcd members is healthy, at least 2 healthy member required for etcd quorum"
    )


# --- documents ------------------------------------------------------------------------------------


def test_the_first_machine_initializes_and_the_others_join() -> None:
    """Each config holds its own part alone; both keep the ClusterConfiguration."""
    wish = plane(clusterConfiguration={"a": 1}, initConfiguration={"b": 2}, joinConfiguration={"c": 3})
    first, later = (rules.config_spec(wish, joins=joins) for joins in (False, True))
    assert first == {"clusterConfiguration": {"a": 1}, "initConfiguration": {"b": 2}}
    assert later == {"clusterConfiguration": {"a": 1}, "joinConfiguration": {"c": 3, "controlPlane": {}}}


@pytest.mark.parametrize(("version", "api"), [("v1.30.1", "v1beta3"), ("v1.34.3", "v1beta4")])
def test_the_cluster_fills_in_what_the_configuration_leaves_open(version: str, api: str) -> None:
    """Name, endpoint, version and networks, in the API version of that kubeadm."""
    given = {"apiServer": {"extraArgs": {"v": "2"}}, "networking": {"podSubnet": "10.9.0.0/16"}}
    found = kubeadm_documents.cluster_configuration(given, CLUSTER, version)
    assert found["apiVersion"] == f"kubeadm.k8s.io/{api}"
    assert found["networking"] == {"podSubnet": "10.9.0.0/16", "serviceSubnet": "10.2.0.0/16"}
    assert (found["clusterName"], found["controlPlaneEndpoint"]) == ("c", "10.0.0.140:6443")
    assert found["apiServer"]["extraArgs"] == ({"v": "2"} if api == "v1beta3" else [{"name": "v", "value": "2"}])


def test_a_machine_reads_what_the_provider_writes() -> None:
    """The document of `kubeadm init` names the cluster's endpoint, its authority and its configuration."""
    pairs = [{"path": f"/etc/kubernetes/pki/ca.{end}", "content": f"the {end}"} for end in ("crt", "key")]
    config = kubeadm_documents.init_file({}, CLUSTER, "v1.34.3")
    text = kubeadm_bootstrap.cloud_config({}, pairs, config, f"kubeadm init --config {config['path']}")
    join = joining.join_of(text, {})
    assert join is not None
    assert (join.endpoint, join.plane, join.authority) == ("10.0.0.140:6443", True, ("the crt", "the key"))
    assert join.initial is not None
    assert join.initial["networking"]["podSubnet"] == "10.1.0.0/16"
    assert [taint["key"] for taint in join.taints] == ["node-role.kubernetes.io/control-plane"]


def test_a_join_of_a_control_plane_needs_its_certificates() -> None:
    """Without them kubeadm's preflight names each that is missing."""
    discovery = {
        "apiServerEndpoint": "10.0.0.140:6443",
        "token": "abcdef.0123456789abcdef",
        "caCertHashes": ["sha256:x"],
    }
    text = kubeadm_bootstrap.document({"joinConfiguration": {"controlPlane": {}}}, discovery, version="v1.34.3")
    with pytest.raises(joining.NotJoined, match="failure loading certificate for CA: couldn't load"):
        joining.join_of(text, {})


@pytest.mark.parametrize(
    ("place", "files", "reached"),
    [
        ("127.0.0.1:6443", {}, True),
        ("10.0.0.7:6443", {}, True),
        ("10.0.0.140:6443", {}, False),
        ("10.0.0.140:6443", {"/etc/kubernetes/manifests/kube-vip.yaml": "value: 10.0.0.140"}, True),
        ("10.0.0.140:6443", {"/root/notes": "10.0.0.140"}, False),
    ],
)
def test_an_endpoint_leads_to_a_machine_that_announces_it(place: str, files: dict[str, str], reached: bool) -> None:
    """Its own address does, another one only with a pod that answers for it."""
    assert planes.is_reached(place, joining.Join(place, files=files), ["10.0.0.7"]) is reached


def test_annotations_keep_the_cluster_configuration_apart() -> None:
    """A machine made with another ClusterConfiguration is outdated, one made with the same is not."""
    notes = {rules.CONFIGURATION: json.dumps({"a": 1})}
    same, other = plane(clusterConfiguration={"a": 1}), plane(clusterConfiguration={"a": 2})
    item = machine("m", annotations=notes)
    assert rules.outdated(same, item, {"spec": {}}, None) == []
    assert rules.outdated(other, item, {"spec": {}}, None) == ["* KubeadmConfig is not up-to-date"]
