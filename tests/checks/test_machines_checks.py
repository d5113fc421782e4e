"""Machines judged by both sides: every way they part is a finding, and every word of CAPMOX has a cause and a step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_evidence import claim, machine, node, own, scene, task, vm

from runbook_lib.checks import machines as checks
from runbook_lib.evidence import Scene
from runbook_lib.facts import (
    Accepted,
    AddressPool,
    Condition,
    Guest,
    Interface,
    MachineApis,
    NetworkRange,
    Node,
    ProxmoxHome,
    Storage,
    Template,
    Volume,
)
from runbook_lib.model import Finding, Measurement, Status

GIB = 1024**3
PASS, WARN, SKIP, FAIL = Status.PASS, Status.WARN, Status.SKIP, Status.FAIL


def statuses(findings: list[Finding]) -> list[Status]:
    """The verdicts in their order."""
    return [entry.status for entry in findings]


def only(findings: list[Finding]) -> Finding:
    """The one finding there is."""
    assert len(findings) == 1, findings
    return findings[0]


# --- before anything is made -------------------------------------------------------------------------


def served(**more: tuple[str, ...]) -> MachineApis:
    """Everything a machine of the old generation is made of."""
    core = ("Cluster", "Machine", "MachineDeployment", "MachineHealthCheck", "KubeadmConfigTemplate", "IPAddressClaim")
    kinds = dict.fromkeys(core, ("v1beta1",))
    kinds |= dict.fromkeys(("ProxmoxCluster", "ProxmoxMachine", "ProxmoxMachineTemplate"), ("v1alpha1",))
    return MachineApis({**kinds, "InClusterIPPool": ("v1alpha2",), "KamajiControlPlane": ("v1alpha1",), **more})


def test_missing_kind_is_named():
    """An IPAM provider that is not installed is the commonest reason for a machine that never comes."""
    found = {entry.subject: entry.status for entry in checks.apis_are_served(served(InClusterIPPool=()))}
    assert [kind for kind, status in found.items() if status is not PASS] == ["InClusterIPPool"]
    assert found["InClusterIPPool"] is FAIL


def test_without_a_provider_there_is_nothing_to_prove():
    """That none is installed is the finding of the step that installs it."""
    assert only(checks.apis_are_served(MachineApis({}))).status is SKIP


@pytest.mark.parametrize(
    ("own_version", "core", "status"),
    [("v1alpha1", ("v1beta1",), PASS), ("v1alpha2", ("v1beta2", "v1beta1"), PASS), ("v1alpha2", ("v1beta1",), FAIL)],
)
def test_generations_that_do_not_fit(own_version: str, core: tuple[str, ...], status: Status):
    """CAPMOX 0.8 and later cannot work with a core that serves v1beta1 alone."""
    apis = served(ProxmoxMachine=(own_version,), Machine=core)
    assert only(checks.generations_fit(apis)).status is status


def template(vmid: int = 9000, *tags: str, **more: Any) -> Template:
    """A template that can be cloned."""
    given: dict[str, Any] = {"boot": "order=scsi0", "disks": ("scsi0",), "networks": ("net0",)} | more
    return Template(vmid, "debian", "pve1", True, "ide2", "virtio-scsi-single", serial=True, os_type="l26", tags=tags,
                    **given)  # fmt: skip


@pytest.mark.parametrize(
    ("templates", "asked", "status", "words"),
    [
        ([template()], {"vmid": 9000}, PASS, "disk scsi0, order=scsi0"),
        ([template()], {"vmid": 124}, FAIL, "0 templates answer to VMID 124"),
        ([template(1, "a"), template(2, "a")], {"tags": ["A"]}, FAIL, "2 templates answer to tags A"),
        ([template(1, "a", "b")], {"tags": ["a"]}, FAIL, "0 templates answer"),
        ([template(boot="cdn")], {"vmid": 9000}, FAIL, "no `boot: order=…`"),
    ],
)
def test_template_must_be_there_once_and_bootable(
    templates: list[Template], asked: dict[str, Any], status: Status, words: str
):
    """By tags exactly one must have them all and no others; by number it must be there."""
    found = only(checks.template_is_chosen(templates, **asked))
    assert found.status is status and words in found.message


def guest(vmid: int, node_name: str = "pve1", gib: int = 4, **more: Any) -> Guest:
    """A VM of the cluster's list."""
    given: dict[str, Any] = {"name": f"vm-{vmid}", "status": "running", "template": False} | more
    return Guest(vmid, given["name"], node_name, "qemu", given["status"], given["template"], 1, gib * GIB, 1)


def test_ids_of_another_cluster_must_not_meet_ours():
    """A range that meets ours fails, a cluster without one warns: it takes whatever is next."""
    others = [own(vmid_range=(9150, 9250), cluster="other"), own(cluster="wild")]
    found = {entry.subject: entry.status for entry in checks.vmids_are_free([guest(9100)], others, vmids=(9100, 9189))}
    assert found == {"9100-9189": PASS, "ns/other": FAIL, "ns/wild": WARN}


def test_too_few_free_ids_fail():
    """Every id of the range that somebody has is one machine less."""
    found = only(checks.vmids_are_free([guest(9100), guest(9101)], [], vmids=(9100, 9102), count=3))
    assert found.status is FAIL and "1 of 3 ids are free, 3 are wanted" in found.message


def interface(cidr: str) -> Interface:
    """A bridge with an address."""
    return Interface("pve1", "vmbr0", "bridge", True, True, cidr=cidr)


@pytest.mark.parametrize(
    ("around", "words"),
    [
        ({"interfaces": [interface("10.0.0.155/24")]}, "10.0.0.155 is pve1/vmbr0"),
        ({"pools": [AddressPool("a", "b-v4-icip", ("10.0.0.160-10.0.0.170",))]}, "pool a/b-v4-icip has 10.0.0.160"),
        ({"vms": [vm(7, "gitlab", agent_addresses=("10.0.0.150",))]}, "10.0.0.150 is VM 7 (gitlab)"),
        ({"ranges": [NetworkRange("pods", "10.0.0.0/16", "Package", "pods")]}, "pods (Package) has 10.0.0.0/16"),
        ({"api_vip": "10.0.0.151"}, "10.0.0.151 is the API's address"),
        ({"gateway": "10.0.0.180"}, "10.0.0.180 is the gateway"),
    ],
)
def test_neighbours_in_the_address_pool_are_named(around: dict[str, Any], words: str):
    """Nobody else notices two owners of one address."""
    found = only(checks.address_pool_is_free(["10.0.0.150-10.0.0.180"], **around))
    assert found.status is FAIL and words in found.message


def test_lan_around_the_pool_is_as_it_should_be():
    """The pool lies in the LAN on purpose."""
    lan = [NetworkRange("Proxmox LAN", "10.0.0.0/24", "vmbr0", "lan")]
    assert only(checks.address_pool_is_free(["10.0.0.150-10.0.0.180"], ranges=lan)).status is PASS


@pytest.mark.parametrize(("pool", "words"), [([], "no addresses"), (["10.0.0.5"], "1 addresses for 4 machines")])
def test_pool_that_is_too_small_fails(pool: list[str], words: str):
    """An empty pool leaves machines waiting for ever."""
    found = checks.address_pool_is_free(pool, count=4)
    assert found[-1].status is FAIL and words in found[-1].message


def test_memory_is_counted_as_capmox_counts_it():
    """What stopped VMs were promised is gone too; templates are not counted."""
    nodes = [Node("pve1", True, memory_bytes=16 * GIB)]
    guests = [guest(1, gib=8, status="stopped"), guest(2, gib=64, template=True)]
    found = checks.scheduler_finds_memory(nodes, guests, memory_mib=4096, count=3)
    assert statuses(found) == [PASS, FAIL] and "room for 2" in found[0].message
    assert statuses(checks.scheduler_finds_memory(nodes, guests, count=3, memory_adjustment=0)) == [PASS]
    assert statuses(checks.scheduler_finds_memory(nodes, guests, count=3, memory_adjustment=150)) == [PASS]


def test_node_without_a_place_for_the_image_fails():
    """The image must lie where the VM is."""
    rows = [
        Storage("pve1", "local", "dir", ("iso",), True, True, False),
        Storage("pve2", "local", "dir", ("images",), True, True, False),
    ]
    found = {entry.subject: entry.status for entry in checks.isos_have_a_place(rows)}
    assert found == {"pve1": PASS, "pve2": FAIL}


def test_refusal_repeats_the_servers_words():
    """A webhook's message is the diagnosis; what was not tried is no pass."""
    given = [Accepted("a"), Accepted("b", refusal='unknown field "spec.server"'), Accepted("c", untried="no such kind")]
    found = checks.manifests_are_accepted(given)
    assert statuses(found) == [PASS, FAIL, SKIP] and "spec.server" in found[1].message


# --- the chain ---------------------------------------------------------------------------------------

WHOLE = (
    checks.owners_are_set,
    checks.every_machine_has_a_vm,
    checks.every_vm_has_a_machine,
    checks.one_vm_a_machine,
    checks.provisioned_machines_run,
    checks.vmid_is_its_own,
    checks.vmids_do_not_collide,
    checks.addresses_are_used,
    checks.no_iso_is_left,
    checks.machines_are_nodes,
    checks.no_machine_is_stuck,
)


@pytest.mark.parametrize("judge", WHOLE, ids=lambda judge: judge.__name__)
def test_whole_machine_passes(judge: Any):
    """A machine that both sides show whole is nobody's finding."""
    assert statuses(judge(scene())) == [PASS]


@pytest.mark.parametrize("judge", WHOLE, ids=lambda judge: judge.__name__)
def test_without_machines_there_is_nothing_to_look_at(judge: Any):
    """Looking at nothing is a skip, never a pass."""
    assert statuses(judge(Scene())) == [SKIP]


def test_bare_proxmox_machine_is_diagnosed():
    """The first attempt's mistake: the controller waits for an owner without a word."""
    bare = scene(machines=(), proxmox_machines=(own(machine="", ready=False, vmid=None),), vms=())
    assert only(checks.owners_are_set(bare)).status is FAIL
    stuck = only(checks.no_machine_is_stuck(bare))
    assert stuck.status is FAIL and "MachineDeployment" in stuck.remedy


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ({"vms": ()}, FAIL, "which Proxmox VE does not list"),
        ({"proxmox_machines": ()}, FAIL, "Machine without a ProxmoxMachine"),
        ({"vms": (), "proxmox_machines": (own(ready=False, vmid=None, reason="Cloning"),)}, SKIP, "no VM yet: Cloning"),
    ],
)
def test_machine_without_its_vm(parts: dict[str, Any], status: Status, words: str):
    """One that is on its way is no failure; one that names a VM which is not there is."""
    found = checks.every_machine_has_a_vm(scene(**parts))[0]
    assert found.status is status and words in found.message


def test_vm_without_a_machine_is_an_orphan():
    """It costs memory, holds an address, and nobody will ever delete it."""
    found = only(checks.every_vm_has_a_machine(scene(vms=(vm(), vm(101, "demo-md-zzzzz-zzzzz", status="stopped")))))
    assert found.status is FAIL and found.subject == "pve1/101"


def test_two_vms_of_one_machine_are_found_by_their_name():
    """Clones that were tried again after a refused status."""
    found = only(checks.one_vm_a_machine(scene(vms=(vm(), vm(101)))))
    assert found.status is FAIL and found.evidence["vmids"] == [100, 101]


def test_namesakes_without_a_machine_only_warn():
    """Somebody may call two VMs alike; whether they were a machine's cannot be told any more."""
    guests = [guest(150, name="demo-x"), guest(151, name="demo-x")]
    assert only(checks.one_vm_a_machine(Scene(), guests)).status is WARN


def test_provisioned_but_stopped_is_a_false_claim():
    """Where the template already equals the wish, later steps are passed over."""
    stopped = scene(vms=(vm(status="stopped", agent_addresses=None),),
                    proxmox_machines=(own(bootstrap_provided=False),))  # fmt: skip
    found = only(checks.provisioned_machines_run(stopped))
    assert found.status is FAIL and "was never started" in found.message


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"vms": (vm(name="gitlab"),)}, "which is gitlab and not its own"),
        ({"vms": (vm(uuid="0" * 8 + "-0000-0000-0000-" + "0" * 12),)}, "the machine believes in"),
        ({"vms": (), "tasks": (task("qmclone", "can't lock file"),)}, "whose clone failed (can't lock file)"),
    ],
)
def test_stale_number_is_found(parts: dict[str, Any], words: str):
    """Deleting such a Machine destroys somebody else's VM, so the remedy warns of it."""
    found = only(checks.vmid_is_its_own(scene(**parts)))
    assert found.status is FAIL and words in found.message
    assert "would destroy" in found.remedy


def test_one_number_for_two_machines_is_a_collision():
    """Two clusters that asked for the next id at once."""
    found = only(checks.vmids_do_not_collide(scene(proxmox_machines=(own(), own("other-md-a-b", cluster="other")))))
    assert found.status is FAIL and found.subject == "100"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"claims": (claim("gone"),)}, "is claimed for gone, which is not there"),
        ({"vms": (vm(agent_addresses=("10.0.0.9",)),)}, "10.0.0.150 was given, the guest has 10.0.0.9"),
        ({"vms": (vm(), vm(7, "gitlab", agent_addresses=("10.0.0.150",)))}, "is on gitlab too"),
    ],
)
def test_address_that_is_not_where_it_belongs(parts: dict[str, Any], words: str):
    """A claim nobody uses, a guest with another address, a stranger with ours."""
    found = checks.addresses_are_used(scene(**parts))
    assert found[0].status is FAIL and words in found[0].message


def test_address_given_twice_fails_for_both():
    """Each of the two claims names the other."""
    twice = scene(claims=(claim(), claim("demo-md-b-c")))
    assert statuses(checks.addresses_are_used(twice)) == [FAIL, FAIL]


@pytest.mark.parametrize(("vmid", "ready", "status"), [(100, False, PASS), (100, True, WARN), (555, True, FAIL)])
def test_bootstrap_image_goes_with_its_need(vmid: int, ready: bool, status: Status):
    """It holds a join token: needed while the machine comes, a leftover when it has joined, an orphan's otherwise."""
    iso = Volume("pve1", "local", f"local:iso/user-data-{vmid}.iso", "iso", "iso", 1)
    assert only(checks.no_iso_is_left(scene(isos=(iso,), proxmox_machines=(own(ready=ready),)))).status is status


def test_provisioned_machine_without_a_node_fails():
    """Without a providerID on the kubelet no Node is ever found; the Node of its name is pointed at."""
    found = only(checks.machines_are_nodes(scene(machines=(machine(node=""),), nodes=(node(provider_id=""),))))
    assert found.status is FAIL and "the Node of that name has none" in found.message


def test_node_without_a_network_warns():
    """The machine is well; the cluster it joins has no network yet."""
    waiting = node(ready="False", reason="KubeletNotReady", message="cni plugin not initialized")
    found = only(checks.machines_are_nodes(scene(nodes=(waiting,))))
    assert found.status is WARN and "CNI" in found.remedy and "cni plugin" in found.message


# --- why it does not go on ---------------------------------------------------------------------------

OLD = (
    "WaitingForClusterInfrastructure", "WaitingForBootstrapData", "Cloning", "CloningFailed",
    "WaitingForStaticIPAllocation", "PoweringOn", "PoweringOnFailed", "WaitingForNetworkAddresses",
    "VMProvisionFailed", "TaskFailure", "NotFound", "Unknown",
)  # fmt: skip
NEW = (
    "WaitingForClusterInfrastructureReady", "WaitingForBootstrapData", "Cloning", "CloningFailed",
    "WaitingForDiskReconciliation", "WaitingForStaticIPAllocation", "WaitingForBootstrapDataReconciliation",
    "WaitingForVMPowerUp", "PoweringOnFailed", "WaitingForClusterAPIMachineAddresses", "WaitingForCloudInit",
    "WaitingForBootstrapReady", "TaskFailed", "VMProvisionFailed", "Deleting", "DeletionFailed",
)  # fmt: skip


def stuck(reason: str, **more: Any) -> Scene:
    """A machine that has stood still at this reason since the epoch."""
    given: dict[str, Any] = {"ready": False, "reason": reason, "since": 1} | more.pop("own", {})
    return scene(proxmox_machines=(own(**given),), **more)


@pytest.mark.parametrize("reason", sorted({*OLD, *NEW}))
def test_every_reason_has_a_cause_and_a_first_step(reason: str):
    """Of both generations; after an hour none of them is only on its way."""
    found = only(checks.no_machine_is_stuck(stuck(reason), at=3601))
    assert found.status in {WARN, FAIL} and reason in found.message
    assert len(found.remedy) > 10 and checks.SILENT.why not in found.message


def test_young_wait_is_on_its_way():
    """A clone takes its time."""
    found = only(checks.no_machine_is_stuck(stuck("Cloning"), at=60))
    assert found.status is SKIP and "on its way" in found.message


@pytest.mark.parametrize(
    ("reason", "told", "cause"),
    [
        ("CloningFailed", 'VM template not found: found 0 VM templates with tags "a"', "no template has the tags"),
        ("CloningFailed", 'VM template not found: found 2 VM templates with tags "a"', "several templates have"),
        ("CloningFailed", "cannot reserve 4294967296B of memory on node pve1: 0B available", "stopped VMs"),
        ("CloningFailed", "No free vmid found in vmIDRange", "used up"),
        ("CloningFailed", "unable to create new vm: not authorized to access endpoint", "may not do it"),
        ("WaitingForStaticIPAllocation", "unable to find inclusterpool for cluster demo", "pool is not there"),
        ("WaitingForBootstrapDataReconciliation", "unable to find the item you are looking for", "takes ISO images"),
        ("WaitingForCloudInit", "500 QEMU guest agent is not running", "agent does not answer"),
        ("VMProvisionFailed", "cloud-init failed execution", "cloud-init ended with an error"),
    ],
)
def test_words_tell_more_than_the_reason(reason: str, told: str, cause: str):
    """The message decides which of the likely causes it is."""
    found = only(checks.no_machine_is_stuck(stuck(reason, own={"message": told}), at=3601))
    assert cause in found.message and told in found.message


def test_running_machine_without_an_agent_is_told_apart_from_one_to_be_started():
    """The older generation has one reason for both."""
    mute = stuck("PoweringOn", vms=(vm(agent_addresses=None),))
    off = stuck("PoweringOn", vms=(vm(status="stopped", agent_addresses=None),))
    messages = [only(checks.no_machine_is_stuck(row, at=3601)).message for row in (mute, off)]
    assert "agent does not answer" in messages[0] and "to be started" in messages[1]


def test_failed_task_is_told_with_the_end_of_its_log():
    """Nobody has to look for the UPID."""
    failed = task("qmclone", "clone failed", lines=("create full clone", "can't lock file '/run/lock' - got timeout"))
    found = only(checks.no_machine_is_stuck(stuck("TaskFailed", tasks=(failed,)), at=3601))
    assert found.status is FAIL and "got timeout" in found.message and "too many clones" in found.message


def test_cluster_that_is_not_ready_explains_its_machines():
    """The machine's reason names the cluster; the cluster's own reason names the cause."""
    home = ProxmoxHome("ns", "demo", "demo", reason="MissingControlPlaneEndpoint", message="waiting for host")
    found = only(checks.no_machine_is_stuck(stuck("WaitingForClusterInfrastructure", homes=(home,)), at=3601))
    assert "MissingControlPlaneEndpoint" in found.message and "Kamaji" in found.remedy


def test_machine_without_bootstrap_config_is_told_so():
    """spec.bootstrap cannot be empty, and nothing says so later."""
    empty = stuck("WaitingForBootstrapData", machines=(machine(bootstrap="", data_secret=""),))
    assert "names no bootstrap config" in only(checks.no_machine_is_stuck(empty, at=3601)).message


def test_given_up_machine_fails_at_once():
    """0.7 says it in failureReason; it is never tried again."""
    found = only(checks.no_machine_is_stuck(stuck("Cloning", own={"failure": "InsufficientResources: x"}), at=2))
    assert found.status is FAIL and "InsufficientResources" in found.message


# --- what was done -----------------------------------------------------------------------------------


def test_machines_that_came_are_counted():
    """Exactly so many, each whole; where nothing was sent that is a skip."""
    assert only(checks.machines_came_up(scene(), count=1)).status is PASS
    assert only(checks.machines_came_up(scene(), count=3)).status is FAIL
    assert only(checks.machines_came_up(scene(vms=(vm(status="stopped"),)), count=1)).status is FAIL
    assert only(checks.machines_came_up(Scene(), count=1, refused="forbidden")).status is SKIP


def test_roll_is_proved_by_the_vms_config():
    """A new name alone is not enough, and a machine from before is none of the roll."""
    fresh = scene(machines=(machine("demo-md-new-x"),), proxmox_machines=(own("demo-md-new-x"),),
                  vms=(vm(name="demo-md-new-x", memory_mib=4608),))  # fmt: skip
    assert only(checks.roll_reached_the_vms(scene(), fresh, memory_mib=4608)).status is PASS
    assert only(checks.roll_reached_the_vms(scene(), fresh, memory_mib=8192)).status is FAIL
    assert only(checks.roll_reached_the_vms(scene(), scene(), memory_mib=4096)).status is FAIL


def test_replacement_needs_another_machine():
    """That the old one is gone proves no remediation."""
    fresh = scene(machines=(machine("demo-md-new-x"),), proxmox_machines=(own("demo-md-new-x"),),
                  vms=(vm(name="demo-md-new-x"),))  # fmt: skip
    assert only(checks.lost_machine_was_replaced(scene(), fresh, count=1)).status is PASS
    assert only(checks.lost_machine_was_replaced(scene(), scene(), count=1)).status is FAIL


def test_leftovers_are_named_one_by_one():
    """A VM, an image, a claim: each is a finding of its own."""
    iso = Volume("pve1", "local", "local:iso/user-data-100.iso", "iso", "iso", 1)
    left = Scene(vms=(vm(),), isos=(iso,), claims=(claim(),))
    assert statuses(checks.nothing_is_left(left)) == [FAIL, FAIL, FAIL]
    assert only(checks.nothing_is_left(Scene())).status is PASS


def test_slowest_sample_counts():
    """Five minutes are the plan's figure; no sample is no pass."""
    rows = [Measurement("a", "s", (10.0, 400.0), threshold=300), Measurement("b", "s", (), threshold=300)]
    assert statuses(checks.machines_are_quick(rows)) == [FAIL, SKIP]


def test_lock_of_a_clone_storm_is_seen():
    """CAPMOX tries again, so it only warns."""
    locked = task("qmclone", "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout")
    assert only(checks.clone_storm_is_survived(scene(tasks=(locked,)))).status is WARN
    assert only(checks.clone_storm_is_survived(scene(tasks=(task("qmclone"),)))).status is PASS


def test_machine_whose_tenant_says_nothing_is_told_by_its_conditions():
    """Where the tenant cannot be asked, the Machine's own NodeHealthy decides."""
    told = machine(conditions=(Condition("NodeHealthy", "False"),))
    found = only(checks.machines_are_nodes(scene(machines=(told,), nodes=(), untold={"ns/demo": "no route"})))
    assert found.status is WARN
