"""What runs out, and what ties a VM to its node: each refusal in the words of the tool that refuses."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))

from proxmox_site import finished, login, refusal, start  # lies beside this file

STORAGES: dict[str, Any] = {
    "local": {
        "type": "dir",
        "content": ["iso", "images", "import", "backup"],
        "options": {"path": "/var/lib/vz"},
        "total": "4G",
        "volumes": [
            {"name": "iso/tools.iso", "content": "iso", "size": "1M"},
            {"name": "import/big.qcow2", "content": "import", "size": "2G", "virtual": "3G"},
        ],
    },
    "thin": {"type": "lvmthin", "content": ["images"], "options": {"thinpool": "data", "vgname": "pve"}, "total": "4G"},
    "spare": {"type": "lvmthin", "content": ["images"], "options": {"thinpool": "d", "vgname": "s"}, "total": "90G"},
    "thick": {"type": "lvm", "content": ["images"], "options": {"vgname": "vg"}, "total": "10G"},
    "tank": {"type": "zfspool", "content": ["images"], "options": {"pool": "tank"}, "total": "10G"},
    "loose": {"type": "zfspool", "content": ["images"], "options": {"pool": "loose", "sparse": 1}, "total": "4G"},
    "ceph": {"type": "rbd", "content": ["images"], "options": {"pool": "rbd"}, "total": "4G"},
    "nas": {"type": "nfs", "content": ["images", "backup"], "options": {"server": "n", "export": "/x"}, "total": "4G"},
    "files": {"type": "dir", "content": ["images"], "options": {"path": "/files"}, "total": "90G"},
    "one": {
        "type": "dir",
        "content": ["images", "iso"],
        "options": {"path": "/one"},
        "nodes": ["pve1"],
        "total": "90G",
        "volumes": [{"name": "iso/only.iso", "content": "iso", "size": "1M"}],
    },
    "share": {"type": "nfs", "content": ["images"], "options": {"server": "n", "export": "/y"}, "total": "900G"},
}  # fmt: skip


def vm(vmid: int, disk: str, *, size: str = "3G", used: float = 0.0, running: bool = False, **more: Any) -> Any:
    """A VM of pve1 with one disk."""
    config = {"name": f"vm-{vmid}", "memory": 1024, "scsi0": f"{disk},size={size}", "boot": "order=scsi0", **more}
    return {"node": "pve1", "config": config, "disk_used": used, "running": running}


GUESTS: dict[int, Any] = {
    200: vm(200, "share:200/vm-200-disk-0.raw", size="8G", used=0.75),
    201: vm(201, "share:201/base-201-disk-0.qcow2", size="3G", used=1.0, template=1),
    202: vm(202, "thick:vm-202-disk-0", size="2G"),
    203: vm(203, "tank:vm-203-disk-0", size="2G"),
    301: vm(301, "spare:vm-301-disk-0", used=0.5),
    302: vm(302, "spare:vm-302-disk-0", used=0.5, running=True),
    303: vm(303, "spare:vm-303-disk-0", ide2="local:iso/tools.iso,media=cdrom"),
    304: vm(304, "spare:vm-304-disk-0", ide2="spare:vm-304-cloudinit,media=cdrom"),
    305: vm(305, "spare:vm-305-disk-0", hostpci0="0000:01:00.0"),
    306: vm(306, "spare:vm-306-disk-0"),
    307: vm(307, "files:307/vm-307-disk-0.qcow2"),
    308: vm(308, "one:308/vm-308-disk-0.raw"),
    309: vm(309, "share:309/vm-309-disk-0.raw", running=True, net0="virtio,bridge=vmbr7"),
    310: vm(310, "share:310/vm-310-disk-0.raw"),
    311: vm(311, "share:311/vm-311-disk-0.raw", hostpci0="mapping=gpu"),
    312: vm(312, "share:312/vm-312-disk-0.raw", ide2="cdrom,media=cdrom"),
    313: vm(313, "share:313/vm-313-disk-0.raw", usb0="host=1-2", serial0="socket"),
    314: vm(314, "share:314/vm-314-disk-0.raw"),
    315: vm(315, "spare:vm-315-disk-0", running=True, ide2="spare:vm-315-cloudinit,media=cdrom"),
    317: vm(317, "share:317/vm-317-disk-0.qcow2", running=True, memory=32768, vmstatestorage="thick"),
    316: vm(316, "loose:base-316-disk-0", template=1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab whose storages are small; pve1 alone has the bridge vmbr7, pve1 and pve2 a mapped card."""
    place = tmp_path_factory.mktemp("limits")
    site = {"storages": STORAGES, "guests": GUESTS, "pools": {}, "tasks": [], "ha": {}}
    site["mappings"] = {"pci": {"gpu": {"map": ["node=pve1,path=0000:01:00.0,id=10de:1eb8"]}}}
    lab = start(place, site)
    pve = login(lab)
    pve.nodes("pve1").network.post(iface="vmbr7", type="bridge", autostart=1)
    finished(pve, pve.nodes("pve1").network.put())
    yield lab
    control.down(lab)


@pytest.fixture
def pve(folder: Path) -> Any:
    """A client of it."""
    return login(folder)


def log_of(pve: Any, upid: str) -> list[str]:
    """The lines of a task's log without the time before them."""
    rows = pve.nodes(upid.split(":")[1]).tasks(upid).log.get(limit=500)
    return [row["t"][20:] if row["t"][:2] == "20" else row["t"] for row in rows]


# ---------------------------------------------------------------------------------------------- storages


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (
            "thick",
            "lvcreate 'vg/vm-900-disk-0' error:   Volume group \"vg\" has insufficient free space "
            "(2048 extents): 2304 required.",
        ),
        ("tank", "zfs error: cannot create 'tank/vm-900-disk-0': out of space"),
    ],
)
def test_thick_storage_refuses_what_does_not_fit(pve: Any, storage: str, words: str) -> None:
    """LVM, and ZFS that reserves: a volume takes all its room at once; freed it gives the room back."""
    content = pve.nodes("pve1").storage(storage).content
    ask = {"vmid": 900, "filename": "vm-900-disk-0"}
    assert refusal(lambda: content.post(size="9G", **ask)).content == words
    volid = content.post(size="7G", **ask)
    assert refusal(lambda: content.post(size="2G", vmid=901, filename="vm-901-disk-0")).status_code == 500
    content(volid).delete(delay=20)
    content(content.post(size="8G", **ask)).delete(delay=20)


@pytest.mark.parametrize(
    ("vmid", "words"),
    [
        (
            202,
            "error resizing volume '/dev/vg/vm-202-disk-0':   Insufficient free space: 2304 extents needed, "
            "but only 2048 available",
        ),
        (203, "zfs error: cannot set property for 'tank/vm-203-disk-0': size is greater than available space"),
    ],
)
def test_a_thick_disk_cannot_outgrow_its_storage(pve: Any, vmid: int, words: str) -> None:
    """The task fails, and the disk is as large as it was."""
    machine = pve.nodes("pve1").qemu(vmid)
    assert finished(pve, machine.resize.put(disk="scsi0", size="+9G")) == words
    assert machine.config.get()["scsi0"].endswith("size=2G")


@pytest.mark.parametrize("vmid", [200, 202, 203, 301, 307])
def test_no_disk_shrinks(pve: Any, vmid: int) -> None:
    """On whatever storage it lies."""
    upid = pve.nodes("pve1").qemu(vmid).resize.put(disk="scsi0", size="1G")
    assert finished(pve, upid) == "shrinking disks is not supported"


@pytest.mark.parametrize(
    ("storage", "goal"),
    [
        ("thin", "/dev/pve/vm-910-disk-0"),
        ("loose", "/dev/zvol/loose/vm-910-disk-0"),
        ("ceph", "rbd:rbd/vm-910-disk-0"),
        ("nas", "/mnt/pve/nas/images/910/vm-910-disk-0.raw"),
        ("local", "/var/lib/vz/images/910/vm-910-disk-0.raw"),
    ],
)
def test_a_copy_stops_where_thin_storage_ends(pve: Any, storage: str, goal: str) -> None:
    """Thin storage promises the volume and fails while it is filled; the half copy and the clone are gone again."""
    upid = pve.nodes("pve1").qemu(200).clone.post(newid=910, full=1, storage=storage)
    status = finished(pve, upid)
    source = "/mnt/pve/share/images/200/vm-200-disk-0.raw"
    command = f"/usr/bin/qemu-img convert -p -n -f raw -O raw {source} {goal}"
    assert status == f"clone failed: copy failed: command '{command}' failed: exit code 1"
    assert any(line.startswith("qemu-img: error while writing at byte ") for line in log_of(pve, upid))
    assert pve.nodes("pve1").storage(storage).content.get(vmid=910) == []


def test_of_two_copies_that_do_not_fit_together_the_second_fails(pve: Any) -> None:
    """Room counts from the beginning of a copy, not from its end."""
    clone = pve.nodes("pve1").qemu(201).clone
    upids = [clone.post(newid=vmid, full=1, storage="thin", format="raw") for vmid in (911, 912)]
    ends = [finished(pve, upid) for upid in upids]
    assert ends[0] == "OK"
    assert "copy failed" in ends[1]
    assert finished(pve, pve.nodes("pve1").qemu(911).delete()) == "OK"


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (
            "thin",
            "lvcreate 'pve/vm-920-disk-0' error:   Cannot create new thin volume, free space in thin pool pve/data "
            "reached threshold.",
        ),
        ("loose", "zfs error: cannot create 'loose/vm-920-disk-0': out of space"),
        ("ceph", "rbd create 'vm-920-disk-0' error: rbd: create error: (28) No space left on device"),
        (
            "nas",
            "unable to create image: qemu-img: /mnt/pve/nas/images/920/vm-920-disk-0.raw: No space left on device",
        ),
    ],
)
def test_a_full_thin_storage_makes_no_volume(tmp_path: Path, storage: str, words: str) -> None:
    """When nothing is left, not even the promise is given; as a call and as a task."""
    full = {storage: {**STORAGES[storage], "used": "4G"}}
    lab = start(tmp_path, {"storages": full, "guests": {}, "pools": {}, "tasks": [], "ha": {}})
    try:
        pve = login(lab)
        name = "vm-920-disk-0" + (".raw" if storage == "nas" else "")
        content = pve.nodes("pve1").storage(storage).content
        assert refusal(lambda: content.post(vmid=920, filename=name, size="1G")).content == words
        assert finished(pve, pve.nodes("pve1").qemu.post(vmid=920, scsi0=f"{storage}:1")) == (
            f"unable to create VM 920 - {words}"
        )
    finally:
        control.down(lab)


def test_an_upload_stops_where_the_disk_ends(tmp_path: Path) -> None:
    """The copy to its place fails; nothing of it remains."""
    small = {"local": {**STORAGES["local"], "volumes": [], "used": "4294900000"}}
    lab = start(tmp_path, {"storages": small, "guests": {}, "pools": {}, "tasks": [], "ha": {}})
    try:
        pve = login(lab)
        file = io.BytesIO(b"x" * 100_000)
        file.name = "big.iso"
        storage = pve.nodes("pve1").storage("local")
        status = finished(pve, storage.upload.post(content="iso", filename=file))
        assert status == (
            "import failed: cp: error writing '/var/lib/vz/template/iso/big.iso': No space left on device"
        )
        fetch = storage("download-url").post(content="iso", filename="a.iso", url="https://cloud.example/a.iso")
        assert finished(pve, fetch).endswith("failed: exit code 3")
        assert storage.content.get(content="iso") == []
    finally:
        control.down(lab)


def test_a_snapshot_with_memory_needs_room_for_it(pve: Any) -> None:
    """What the machine holds in memory is written to the storage; without room there is no snapshot."""
    machine = pve.nodes("pve1").qemu(317)
    assert finished(pve, machine.snapshot.post(snapname="warm", vmstate=1)) == (
        "lvcreate 'vg/vm-317-state-warm' error:   Volume group \"vg\" has insufficient free space "
        "(2048 extents): 16509 required."
    )
    assert [row["name"] for row in machine.snapshot.get()] == ["current"]


def test_a_backup_stops_where_the_disk_ends(pve: Any) -> None:
    """The job goes on to its end and says that there were errors; no archive remains."""
    upid = pve.nodes("pve1").vzdump.post(vmid=200, storage="nas", mode="stop", compress="0")
    assert finished(pve, upid) == "job errors"
    assert any("Backup of VM 200 failed - " in line for line in log_of(pve, upid))
    assert pve.nodes("pve1").storage("nas").content.get(content="backup") == []


def test_a_move_that_does_not_fit_leaves_the_disk_where_it_is(pve: Any) -> None:
    """The config still names the old volume, and the new one is gone."""
    machine = pve.nodes("pve1").qemu(200)
    status = finished(pve, machine.move_disk.post(disk="scsi0", storage="thin", delete=1))
    assert status.startswith("storage migration failed: copy failed: ")
    assert machine.config.get()["scsi0"].startswith("share:200/vm-200-disk-0.raw")
    assert pve.nodes("pve1").storage("thin").content.get(vmid=200) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda node: node.qemu.post(vmid=930, scsi0="iso-only:1"), "storage 'iso-only' does not exist"),
        (
            lambda node: node.storage("thin").upload.post(content="iso", filename=_file("x.iso")),
            "can't upload to storage type 'lvmthin', not a file based storage!",
        ),
        (
            lambda node: node.storage("nas").upload.post(content="iso", filename=_file("x.iso")),
            "storage 'nas' does not support 'iso' content",
        ),
        (
            lambda node: node.qemu(316).clone.post(newid=930, full=0, format="qcow2"),
            "parameter 'format' not allowed for linked clones",
        ),
        (
            lambda node: node.qemu(202).clone.post(newid=930, full=0),
            "Linked clone feature is not supported for 'thick:vm-202-disk-0' (scsi0)",
        ),
        (
            lambda node: node.storage("thin").content.post(vmid=930, filename="vm-930-a", size="1G", format="vmdk"),
            "unsupported format 'vmdk'",
        ),
    ],
)  # fmt: skip
def test_each_type_of_storage_refuses_what_it_cannot(pve: Any, call: Any, words: str) -> None:
    """Formats, contents and linked clones."""
    assert refusal(lambda: call(pve.nodes("pve1"))).content == words


def _file(name: str) -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.name = name
    return file


# ---------------------------------------------------------------------------------------------- migration

ABORTED = "migration aborted"


def migrate(pve: Any, vmid: int, **options: Any) -> tuple[str, list[str]]:
    """How a migration from pve1 to pve2 ended, and its log."""
    upid = pve.nodes("pve1").qemu(vmid).migrate.post(**{"target": "pve2", **options})
    return finished(pve, upid), log_of(pve, upid)


def test_a_stopped_vm_takes_its_local_disks_along_unasked(pve: Any) -> None:
    """Offline, with-local-disks is not needed."""
    status, lines = migrate(pve, 301)
    assert status == "OK"
    assert lines[:3] == [
        "starting migration of VM 301 to node 'pve2' (10.0.0.2)",
        "found local disk 'spare:vm-301-disk-0' (attached)",
        "copying local disk images",
    ]
    assert pve.nodes("pve2").qemu(301).config.get()["scsi0"] == "spare:vm-301-disk-0,size=3G"


def test_a_running_vm_takes_its_local_disks_along_when_asked(pve: Any) -> None:
    """Without with-local-disks the log names the disk; with it and a target storage it lies there afterwards."""
    status, lines = migrate(pve, 302, online=1)
    text = "can't live migrate attached local disks without with-local-disks option"
    assert status == ABORTED
    assert f"can't migrate local disk 'spare:vm-302-disk-0': {text}" in lines
    assert lines[-2].startswith("ERROR: migration aborted (duration 00:00:")
    assert migrate(pve, 302, online=1, **{"with-local-disks": 1, "targetstorage": "files"})[0] == "OK"
    machine = pve.nodes("pve2").qemu(302)
    assert machine.config.get()["scsi0"] == "files:302/vm-302-disk-0.raw,size=3G"
    assert machine.status.current.get()["status"] == "running"
    assert pve.nodes("pve1").storage("spare").content.get(vmid=302) == []


def test_a_running_vm_wants_online(pve: Any) -> None:
    """Said at once, not in the task."""
    refused = refusal(lambda: pve.nodes("pve1").qemu(309).migrate.post(target="pve2"))
    assert refused.content == "can't migrate running VM without --online"


def test_a_local_cd_rom_holds_a_vm_back(pve: Any) -> None:
    """An ISO image of a local storage cannot be sent; with the drive emptied the VM goes."""
    status, lines = migrate(pve, 303)
    assert status == ABORTED
    assert "can't migrate local disk 'local:iso/tools.iso': local cdrom image" in lines
    assert "ERROR: Problem found while scanning volumes - can't migrate VM - check log" in lines
    assert "aborting phase 1 - cleanup resources" in lines
    pve.nodes("pve1").qemu(303).config.put(ide2="none,media=cdrom")
    assert migrate(pve, 303)[0] == "OK"


def test_the_host_s_own_cd_drive_holds_a_vm_back(pve: Any) -> None:
    """`cdrom` is the drive in the machine."""
    status, lines = migrate(pve, 312)
    assert (status, "can't migrate local cdrom drive" in lines) == (ABORTED, True)


@pytest.mark.parametrize(("vmid", "options"), [(304, {}), (315, {"online": 1, "with-local-disks": 1})])
def test_a_cloud_init_drive_travels(pve: Any, vmid: int, options: dict[str, Any]) -> None:
    """It is copied like a disk, whether the VM runs or not."""
    status, lines = migrate(pve, vmid, **options)
    assert status == "OK", lines
    assert f"found generated disk 'spare:vm-{vmid}-cloudinit' (in current VM config)" in lines
    assert f"spare:vm-{vmid}-cloudinit" in [v["volid"] for v in pve.nodes("pve2").storage("spare").content.get()]


@pytest.mark.parametrize(("vmid", "devices"), [(305, "hostpci0"), (313, "usb0")])
def test_devices_of_the_host_hold_a_vm_back(pve: Any, vmid: int, devices: str) -> None:
    """Root may force it while the VM is stopped; a serial port that is a socket is no device."""
    assert pve.nodes("pve1").qemu(vmid).migrate.get()["local_resources"] == [devices]
    status, lines = migrate(pve, vmid)
    assert status == ABORTED
    assert lines[-2].endswith(f"can't migrate VM which uses local devices: {devices}")
    assert migrate(pve, vmid, force=1)[0] == "OK"


def test_a_mapped_device_must_be_mapped_on_the_target(pve: Any) -> None:
    """The preconditions name it, and so does the task."""
    told = pve.nodes("pve1").qemu(311).migrate.get()
    assert told["not_allowed_nodes"]["pve2"] == {"unavailable-resources": ["hostpci0"]}
    assert (told["allowed_nodes"], told["mapped-resource-info"]) == ([], {"hostpci0": {"name": "gpu"}})
    status, lines = migrate(pve, 311)
    assert (status, lines[-2].endswith("can't migrate to 'pve2': missing mapped devices hostpci0")) == (ABORTED, True)


def test_snapshots_on_local_lvm_hold_a_vm_back(pve: Any) -> None:
    """A thin snapshot cannot be sent."""
    assert finished(pve, pve.nodes("pve1").qemu(306).snapshot.post(snapname="s1")) == "OK"
    status, lines = migrate(pve, 306)
    assert status == ABORTED
    assert "can't migrate local disk 'spare:vm-306-disk-0': non-migratable snapshot exists" in lines


def test_a_qcow2_file_goes_to_files_alone(pve: Any) -> None:
    """With its snapshots it cannot become a raw volume; to another folder it goes."""
    status, lines = migrate(pve, 307, targetstorage="spare")
    assert status == ABORTED
    assert any("cannot migrate from storage type 'dir' to 'lvmthin'" in line for line in lines)
    assert pve.nodes("pve1").qemu(307).config.get()["scsi0"].startswith("files:307/")
    assert migrate(pve, 307)[0] == "OK"


def test_a_storage_that_the_target_lacks_is_told_at_once(pve: Any) -> None:
    """The request is refused and the preconditions name the storage; another storage there helps."""
    machine = pve.nodes("pve1").qemu(308)
    assert machine.migrate.get()["not_allowed_nodes"]["pve2"] == {"unavailable_storages": ["one"]}
    refused = refusal(lambda: machine.migrate.post(target="pve2"))
    assert refused.content == "storage 'one' is not available on node 'pve2'"
    assert migrate(pve, 308, targetstorage="one:files")[0] == "OK"
    assert pve.nodes("pve2").qemu(308).config.get()["scsi0"] == "files:308/vm-308-disk-0.raw,size=3G"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("1,files", "identity mapping cannot be combined with other mappings"),
        ("files,spare", "default target ID can only be provided once"),
        ("a1:files,a1:spare", "duplicate mapping for source 'a1'"),
    ],
)
def test_a_storage_map_must_not_contradict_itself(pve: Any, given: str, why: str) -> None:
    """The 400 says what is wrong with it."""
    refused = refusal(lambda: pve.nodes("pve1").qemu(310).migrate.post(target="pve2", targetstorage=given))
    assert refused.errors == {"targetstorage": f"failed to parse storage map: {why}\n"}


def test_a_bridge_that_the_target_lacks_stops_a_live_migration(pve: Any) -> None:
    """The VM is not started there and stays where it is."""
    status, lines = migrate(pve, 309, online=1)
    assert status == "migration problems"
    assert "[pve2] bridge 'vmbr7' does not exist" in lines
    assert "ERROR: online migrate failure - remote command failed with exit code 255" in lines
    assert pve.nodes("pve1").qemu(309).status.current.get()["status"] == "running"


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [("pve1", 400, "target is local node."), ("pve9", 500, "no such cluster node 'pve9'")],
)
def test_a_target_must_be_another_node(pve: Any, target: str, status: int, words: str) -> None:
    """The same node and one that is not there are refused at once."""
    refused = refusal(lambda: pve.nodes("pve1").qemu(310).migrate.post(target=target))
    assert (refused.status_code, words in str(refused)) == (status, True)


def test_a_target_that_is_off_aborts_the_task(folder: Path, pve: Any) -> None:
    """Whether a node answers is found out by asking it; the preconditions do not."""
    control.node("pve3", online=False, folder=folder)
    try:
        assert "pve3" in pve.nodes("pve1").qemu(310).migrate.get()["allowed_nodes"]
        status, lines = migrate(pve, 310, target="pve3")
        assert status == ABORTED
        assert lines[-2].endswith("Can't connect to destination address using public key")
        assert "lock" not in pve.nodes("pve1").qemu(310).config.get()
    finally:
        control.node("pve3", online=True, folder=folder)


def test_what_ha_looks_after_ha_moves(pve: Any) -> None:
    """The task only asks the manager; the VM is on the other node some time later."""
    pve.cluster.ha.resources.post(sid="vm:314", state="stopped")
    upid = pve.nodes("pve1").qemu(314).migrate.post(target="pve2")
    assert upid.split(":")[5] == "hamigrate"
    assert finished(pve, upid) == "OK"
    assert log_of(pve, upid)[0] == "Requesting HA migration for VM 314 to node pve2"


def test_only_root_chooses_how_a_migration_travels(pve: Any, folder: Path) -> None:
    """A token of root's is not root."""
    where = control.connection(folder).proxmox
    user, _, name = where.token_id.partition("!")
    token = type(pve)(
        where.url.removeprefix("https://"),
        user=user,
        token_name=name,
        token_value=where.token_secret,
        verify_ssl=where.ca_file,
    )
    token._store["session"].trust_env = False
    refused = refusal(lambda: token.nodes("pve1").qemu(310).migrate.post(target="pve2", migration_type="insecure"))
    assert refused.errors == {"migration_type": "Only root may use this option."}
