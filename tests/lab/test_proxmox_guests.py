"""The life of virtual machines on the emulated cluster, as proxmoxer lives it over real TLS."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
import proxmox_site
from proxmox_site import eventually, refusal  # lies beside this file

Finish = Callable[[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The healthy site, with a minute of it passing in a twentieth of a second."""
    place = proxmox_site.start(tmp_path_factory.mktemp("guests"))
    yield place
    control.down(place)


@pytest.fixture
def pve(folder: Path) -> Iterator[Any]:
    """The cluster as the scenario left it."""
    yield proxmox_site.login(folder)
    control.reset(folder)


@pytest.fixture
def finish(pve: Any) -> Finish:
    """Waits for a task and returns its exit status."""
    return lambda upid: proxmox_site.finished(pve, upid)


def test_a_linked_clone_becomes_a_running_machine_with_an_agent(pve: Any, finish: Finish) -> None:
    """Clone, configure, grow, start, ask the agent, stop, destroy: what a machine provider does."""
    node = pve.nodes("pve1")
    assert finish(node.qemu(9000).clone.post(newid=150, name="m-1", pool="kubernetes")) == "OK"
    vm = node.qemu(150)
    config = vm.config.get()
    assert config["name"] == "m-1"
    assert "template" not in config
    assert config["smbios1"] != node.qemu(9000).config.get()["smbios1"]
    assert config["net0"] != node.qemu(9000).config.get()["net0"]
    assert 150 in [member["vmid"] for member in pve.pools("kubernetes").get()["members"]]
    update = vm.config.post(cores=4, memory=8192, tags="Web;kube;ip_net0_10.0.0.155", description="by a test")
    assert finish(update) == "OK"
    assert finish(vm.resize.put(disk="scsi0", size="+10G")) == "OK"
    config = vm.config.get()
    assert config["tags"] == "ip_net0_10.0.0.155;kube;web"
    assert "size=30G" in config["scsi0"]
    assert finish(vm.status.start.post()) == "OK"
    assert vm.status.current.get()["status"] == "running"
    info = eventually(lambda: vm.agent("get-osinfo").get())
    assert info["result"]["id"]
    told = vm.agent("network-get-interfaces").get()["result"]
    assert {"ip-address": "10.0.0.155", "ip-address-type": "ipv4", "prefix": 24} in told[1]["ip-addresses"]
    eventually(lambda: "done" in run(vm, ["cloud-init", "status"])["out-data"])
    assert refusal(vm.delete).status_code == 500
    assert finish(vm.status.stop.post()) == "OK"
    assert finish(vm.delete(purge=1)) == "OK"
    assert "does not exist" in refusal(vm.config.get).content
    content = node.storage("local-lvm").content.get(vmid=150)
    assert content == []


def run(vm: Any, command: list[str]) -> dict[str, Any]:
    """How a command ended inside the guest."""
    pid = vm.agent.exec.post(command=command)["pid"]
    return vm.agent("exec-status").get(pid=pid)


def test_the_clone_is_locked_until_its_disks_are_copied(pve: Any, finish: Finish) -> None:
    """Its config is there at once with nothing but the lock, and what needs the machine is refused."""
    node = pve.nodes("pve1")
    upid = node.qemu(9000).clone.post(newid=151, name="full", full=1, storage="nas")
    config = node.qemu(151).config.get()
    assert config.keys() == {"lock", "digest"}
    assert config["lock"] == "clone"
    assert node.qemu(151).status.current.get()["name"] == "VM 151"
    assert refusal(lambda: node.qemu(151).config.put(cores=1)).content == "VM is locked (clone)"
    assert refusal(lambda: node.qemu(9000).clone.post(newid=151)).status_code == 500
    assert finish(upid) == "OK"
    assert node.qemu(151).config.get()["scsi0"].startswith("nas:151/vm-151-disk-0.")


def test_what_the_cluster_shows_is_older_than_what_the_node_knows(pve: Any, finish: Finish, folder: Path) -> None:
    """A VM just made has no name in /cluster/resources until the next broadcast."""
    upid = pve.nodes("pve2").qemu.post(vmid=160, name="young", memory=512)
    rows = {row["vmid"]: row for row in pve.cluster.resources.get(type="vm")}
    assert rows[101]["name"] == "cp-1"
    # a broadcast may fall into the creation, when the config holds nothing but its lock
    assert rows[160].get("name") in (None, "VM 160", "young")
    assert rows[160]["status"] == ("stopped" if "name" in rows[160] else "unknown")
    finish(upid)
    eventually(lambda: {r["vmid"]: r for r in pve.cluster.resources.get(type="vm")}[160].get("name") == "young")


def test_a_cloud_image_becomes_a_template(pve: Any, finish: Finish) -> None:
    """import-from makes a disk of the image's size; the template's disk is a base and it cannot be started."""
    vm = pve.nodes("pve2").qemu(9001)
    made = pve.nodes("pve2").qemu.post(
        vmid=9001,
        name="debian-12",
        memory=2048,
        scsihw="virtio-scsi-single",
        scsi0="local-lvm:0,import-from=local:import/debian-12-genericcloud-amd64.qcow2,discard=on",
        ide2="local-lvm:cloudinit",
        net0="virtio,bridge=vmbr0",
        agent="enabled=1",
        serial0="socket",
        boot="order=scsi0",
        ciuser="ops",
        ipconfig0="ip=dhcp",
    )
    assert finish(made) == "OK"
    assert vm.config.get()["scsi0"] == "local-lvm:vm-9001-disk-0,discard=on,size=3G"
    assert vm.cloudinit.dump.get(type="user").startswith("#cloud-config\nhostname: debian-12\n")
    assert finish(vm.template.post()) == "OK"
    config = vm.config.get()
    assert config["template"] == 1
    assert config["scsi0"].startswith("local-lvm:base-9001-disk-0")
    assert finish(vm.status.start.post()) == "you can't start a vm if it's a template"
    assert refusal(vm.template.post).content == "you can't convert a template to a template"


def test_only_images_can_be_imported(pve: Any) -> None:
    """An ISO image is refused by name, before anything is made."""
    source = "nas:iso/debian-12.12.0-amd64-netinst.iso"
    refused = refusal(lambda: pve.nodes("pve1").qemu.post(vmid=170, scsi0=f"local-lvm:0,import-from={source}"))
    assert refused.errors == {"scsi0": f"{source} has wrong type 'iso' - needs to be 'images' or 'import'"}
    assert "170" in pve.cluster.nextid.get(vmid=170)


def test_a_failed_creation_leaves_nothing_behind(pve: Any, finish: Finish) -> None:
    """The task tells what was missing; the id is free again and no disk remains."""
    node = pve.nodes("pve1")
    status = finish(node.qemu.post(vmid=171, scsi0="local-lvm:4", ide2="nas:iso/none.iso,media=cdrom"))
    assert status == "unable to create VM 171 - volume 'nas:iso/none.iso' does not exist"
    assert node.storage("local-lvm").content.get(vmid=171) == []
    assert pve.cluster.nextid.get(vmid=171) == "171"


def test_a_vm_moves_alive_when_its_disks_are_shared(pve: Any, finish: Finish) -> None:
    """Migration keeps it running; local disks are only taken along when asked for."""
    assert pve.nodes("pve3").qemu(120).migrate.get()["local_disks"] == []
    upid = pve.nodes("pve3").qemu(120).migrate.post(target="pve1", online=1)
    assert finish(upid) == "OK"
    assert pve.nodes("pve1").qemu(120).status.current.get()["status"] == "running"
    stuck = pve.nodes("pve1").qemu(101).migrate.post(target="pve2", online=1)
    assert finish(stuck) == "migration aborted"
    along = pve.nodes("pve1").qemu(101).migrate.post(target="pve2", online=1, **{"with-local-disks": 1})
    assert finish(along) == "OK"
    assert [v["volid"] for v in pve.nodes("pve2").storage("local-lvm").content.get(vmid=101)] == [
        "local-lvm:vm-101-disk-0"
    ]
    assert pve.nodes("pve1").storage("local-lvm").content.get(vmid=101) == []


def test_disks_come_and_go(pve: Any, finish: Finish) -> None:
    """A new disk is hot-plugged; taken out it is unused; moved it lies elsewhere; unlinked by force it is gone."""
    vm = pve.nodes("pve3").qemu(121)
    vm.config.put(scsi1="local-lvm:5")
    assert vm.config.get()["scsi1"] == "local-lvm:vm-121-disk-1,size=5G"
    assert finish(vm.move_disk.post(disk="scsi1", storage="nas", delete=1)) == "OK"
    assert vm.config.get()["scsi1"].startswith("nas:121/vm-121-disk-0.raw")
    vm.config.put(delete="scsi1")
    assert vm.config.get()["unused0"] == "nas:121/vm-121-disk-0.raw"
    vm.unlink.put(idlist="unused0", force=1)
    assert "unused0" not in vm.config.get()
    assert pve.nodes("pve3").storage("nas").content.get(vmid=121) == []


def test_a_running_vm_keeps_some_changes_for_its_next_start(pve: Any, finish: Finish) -> None:
    """Memory waits as pending; a tag does not; a stop puts both in force."""
    vm = pve.nodes("pve1").qemu(101)
    vm.config.put(memory=16384, tags="kubernetes;x")
    pending = {row["key"]: row for row in vm.pending.get()}
    assert pending["memory"]["pending"] == "16384"
    assert "pending" not in pending["tags"]
    assert vm.config.get()["memory"] == "16384"
    assert vm.config.get(current=1)["memory"] == 32768
    vm.config.put(revert="memory")
    assert vm.config.get()["memory"] == 32768


def test_a_digest_guards_against_someone_else_s_edit(pve: Any) -> None:
    """A change made with an old digest is refused."""
    vm = pve.nodes("pve3").qemu(121)
    old = vm.config.get()["digest"]
    vm.config.put(description="first")
    assert "detected modified configuration" in refusal(lambda: vm.config.put(cores=1, digest=old)).content


def test_a_snapshot_can_be_returned_to(pve: Any, finish: Finish) -> None:
    """The config of then is the config of now; the list hangs the present below it."""
    vm = pve.nodes("pve3").qemu(121)
    assert finish(vm.snapshot.post(snapname="before")) == "OK"
    vm.config.put(cores=8)
    assert finish(vm.snapshot("before").rollback.post()) == "OK"
    assert vm.config.get()["cores"] == 2
    assert [row["name"] for row in vm.snapshot.get()] == ["before", "current"]
    assert finish(vm.snapshot("before").delete()) == "OK"


def test_a_start_without_its_bridge_fails_like_qemu(pve: Any, finish: Finish) -> None:
    """The task names the missing bridge and ends as QEMU does."""
    vm = pve.nodes("pve3").qemu(121)
    vm.config.put(net0="virtio,bridge=vmbr99")
    upid = vm.status.start.post()
    assert finish(upid) == "start failed: QEMU exited with code 1"
    log = [row["t"] for row in pve.nodes("pve3").tasks(upid).log.get()]
    assert log[0] == "bridge 'vmbr99' does not exist"


def test_the_agent_says_why_it_does_not_answer(pve: Any) -> None:
    """Stopped, and not configured, are two different refusals."""
    assert refusal(pve.nodes("pve3").qemu(121).agent.ping.post).content == "VM 121 is not running"
    pve.nodes("pve1").qemu(101).config.put(agent="0", skiplock=1)
    pve.nodes("pve2").qemu.post(vmid=180, memory=512)
    eventually(lambda: "memory" in pve.nodes("pve2").qemu(180).config.get())
    assert refusal(pve.nodes("pve2").qemu(180).agent.ping.post).content == "No QEMU guest agent configured"


def test_an_uploaded_image_is_listed_with_its_size(pve: Any, finish: Finish) -> None:
    """What was sent lies on the storage, and is gone after its deletion."""
    storage = pve.nodes("pve1").storage("local")
    file = io.BytesIO(b"x" * 70_000)
    file.name = "seed.iso"
    assert finish(storage.upload.post(content="iso", filename=file)) == "OK"
    (row,) = storage.content.get(content="iso")
    assert (row["volid"], row["size"]) == ("local:iso/seed.iso", 70_000)
    assert finish(storage.content("local:iso/seed.iso").delete()) == "OK"
    assert storage.content.get(content="iso") == []


def test_storage_can_be_allocated_and_freed(pve: Any, finish: Finish) -> None:
    """Allocation answers with the volume's name at once; a wrong name and an unknown storage are refused."""
    storage = pve.nodes("pve2").storage("local-lvm")
    volid = storage.content.post(filename="vm-999-runbook", size="1G", vmid=999)
    assert volid == "local-lvm:vm-999-runbook"
    assert [row["size"] for row in storage.content.get(vmid=999)] == [2**30]
    assert "illegal name" in refusal(lambda: storage.content.post(filename="disk-0", size="1G", vmid=999)).content
    assert storage.content(volid).delete(delay=30) is None
    assert storage.content.get(vmid=999) == []


def test_a_download_takes_its_size_and_hash_from_the_site(pve: Any, finish: Finish) -> None:
    """The lab fetches nothing from anywhere; the image is there afterwards and a second one is refused."""
    storage = pve.nodes("pve1").storage("local")
    ask = {"content": "import", "filename": "noble.qcow2", "url": "https://cloud.example/noble.img"}
    assert finish(storage("download-url").post(**ask)) == "OK"
    assert "local:import/noble.qcow2" in [row["volid"] for row in storage.content.get(content="import")]
    assert "refusing to override existing file" in refusal(lambda: storage("download-url").post(**ask)).content
