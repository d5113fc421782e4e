"""Containers through proxmoxer: made, changed, copied, moved, saved and restored, and every refusal on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import finished, login, refusal, start  # lies beside this file

TEMPLATE = "local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst"
NET = "name=eth0,bridge=vmbr0,ip=dhcp"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab."""
    folder = start(tmp_path_factory.mktemp("containers"))
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


@pytest.fixture
def made(pve: Any) -> Iterator[Any]:
    """A container of one's own on pve1, gone afterwards."""
    vmid, node = pve.cluster.nextid.get(), pve.nodes("pve1")
    upid = node.lxc.post(vmid=vmid, ostemplate=TEMPLATE, rootfs="local-lvm:8", hostname="own", net0=NET, memory=256)
    assert finished(pve, upid) == "OK"
    yield node.lxc(vmid)
    left = [row for row in pve.cluster.resources.get(type="vm") if str(row["vmid"]) == str(vmid)]
    for row in left:
        finished(pve, pve.nodes(row["node"]).lxc(vmid).delete(force=1, purge=1))


def test_a_container_is_made_from_a_template(pve: Any, made: Any) -> None:
    """Its root file system takes room, its network device has an address, its system is known."""
    config = made.config.get()
    vmid = config["rootfs"].partition("vm-")[2].partition("-")[0]
    assert config["rootfs"] == f"local-lvm:vm-{vmid}-disk-0,size=8G"
    assert (config["ostype"], config["hostname"], config["arch"], config["swap"]) == ("debian", "own", "amd64", 512)
    assert "hwaddr=BC:24:11" in config["net0"] and "type=veth" in config["net0"]
    (volume,) = pve.nodes("pve1").storage("local-lvm").content.get(vmid=vmid)
    assert (volume["content"], volume["size"]) == ("rootdir", 8 * 2**30)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"vmid": 101, "rootfs": "local-lvm:1"}, "VM 101 already exists on node 'pve1'"),
        ({"rootfs": "nas:1"}, "storage 'nas' does not support container directories"),
        ({"mp0": "local-lvm:1,mp=/srv"}, "mount points configured, but 'rootfs' not set - aborting"),
        ({"rootfs": "nowhere:1"}, "storage 'nowhere' does not exist"),
        ({"rootfs": "local-lvm:1", "pool": "none"}, "pool 'none' does not exist"),
        ({"rootfs": "local-lvm:1", "net0": "bridge=vmbr0"}, "property is missing and it is not optional"),
    ],
)
def test_a_container_that_cannot_be_is_refused(pve: Any, given: dict[str, Any], says: str) -> None:
    """The refusal names what is in the way, and nothing is left behind."""
    node = pve.nodes("pve1").lxc
    refused = refusal(lambda: node.post(**{"vmid": 940, "ostemplate": TEMPLATE, **given}))
    assert says in str(refused) + str(refused.errors)
    assert "940" not in [str(row["vmid"]) for row in node.get()]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"ostemplate": "local:vztmpl/none.tar.zst", "rootfs": "local-lvm:4"},
            "volume 'local:vztmpl/none.tar.zst' does",
        ),
        ({"ostemplate": TEMPLATE, "rootfs": "local-lvm:0.1"}, "No space left on device"),
    ],
)
def test_a_creation_that_fails_leaves_nothing(pve: Any, given: dict[str, Any], says: str) -> None:
    """The task says why; id and disk are free again."""
    node = pve.nodes("pve1")
    status = finished(pve, node.lxc.post(vmid=941, **given))
    assert status.startswith("unable to create CT 941 - ") and says in status
    assert not node.storage("local-lvm").content.get(vmid=941)
    assert "does not exist" in str(refusal(node.lxc(941).config.get))


def test_a_container_starts_and_stops(pve: Any, made: Any) -> None:
    """Twice is refused; a running one is not destroyed."""
    assert "not running" in str(refusal(made.status.stop.post))
    assert finished(pve, made.status.start.post()) == "OK"
    assert "already running" in str(refusal(made.status.start.post))
    assert "container is running" in str(refusal(made.delete))
    assert finished(pve, made.status.reboot.post()) == "OK"
    assert finished(pve, made.status.shutdown.post()) == "OK"
    assert made.status.current.get()["status"] == "stopped"


def test_some_changes_wait_for_a_restart(pve: Any, made: Any) -> None:
    """Memory changes at once, the kind of console with the next start."""
    finished(pve, made.status.start.post())
    made.config.put(memory=512, cmode="shell")
    rows = {row["key"]: row for row in made.pending.get()}
    assert rows["memory"]["value"] == 512 and rows["cmode"]["pending"] == "shell"
    assert "cmode" not in made.config.get(current=1) and made.config.get()["cmode"] == "shell"
    finished(pve, made.status.reboot.post())
    assert made.config.get(current=1)["cmode"] == "shell"


def test_a_mount_point_comes_grows_moves_and_goes(pve: Any, made: Any) -> None:
    """Taken out of the config a volume stays as unused; taken from there it is gone."""
    made.config.put(mp0="local-lvm:2,mp=/srv")
    assert finished(pve, made.resize.put(disk="mp0", size="+1G")) == "OK"
    assert made.config.get()["mp0"].endswith(",size=3G")
    assert "unable to shrink disk size" in str(refusal(lambda: made.resize.put(disk="mp0", size="1G")))
    assert "you can't move to the same storage" in str(
        refusal(lambda: made.move_volume.post(volume="mp0", storage="local-lvm"))
    )
    made.config.put(delete="mp0")
    assert made.config.get()["unused0"].startswith("local-lvm:vm-")
    made.config.put(delete="unused0")
    config = made.config.get()
    assert "unused0" not in config and "mp0" not in config
    assert "unable to delete required option 'rootfs'" in str(refusal(lambda: made.config.put(delete="rootfs")).errors)


def test_an_old_digest_and_a_read_only_option_are_refused(made: Any) -> None:
    """Whoever edits what somebody else changed is told; privileges of a container never change."""
    old = made.config.get()["digest"]
    made.config.put(tags="b;a")
    assert made.config.get()["tags"] == "a;b"
    assert "detected modified configuration" in str(refusal(lambda: made.config.put(cores=2, digest=old)))
    assert "read-only option: 'unprivileged'" in str(refusal(lambda: made.config.put(unprivileged=1)))


def test_a_container_returns_to_its_snapshot(pve: Any, made: Any) -> None:
    """The config is as it was; the tree knows where one is."""
    assert finished(pve, made.snapshot.post(snapname="before", description="clean")) == "OK"
    made.config.put(cores=4)
    assert finished(pve, made.snapshot.post(snapname="before")) == "snapshot name 'before' already used"
    assert finished(pve, made.snapshot("before").rollback.post(start=1)) == "OK"
    assert "cores" not in made.config.get() and made.status.current.get()["status"] == "running"
    assert [(row["name"], row.get("parent")) for row in made.snapshot.get()] == [
        ("before", None),
        ("current", "before"),
    ]
    made.snapshot("before").config.put(description="kept")
    assert made.snapshot("before").config.get()["description"] == "kept"
    finished(pve, made.snapshot("before").delete())
    assert "snapshot 'before' does not exist" in str(refusal(made.snapshot("before").config.get))


def test_a_template_gives_linked_clones_and_stays_while_they_do(pve: Any, made: Any) -> None:
    """A clone of a template stands on its base, which cannot go before it."""
    node, vmid = pve.nodes("pve1"), int(made.status.current.get()["vmid"])
    assert "Linked clone feature is not available" in str(refusal(lambda: made.clone.post(newid=961, full=0)))
    made.template.post()
    pve.cluster.tasks.get()
    assert "you can't convert a template to a template" in str(refusal(made.template.post))
    assert "you can't start a CT if it's a template" in finished(pve, made.status.start.post())
    assert finished(pve, made.clone.post(newid=961, hostname="copy")) == "OK"
    copied = node.lxc(961).config.get()
    assert (
        copied["hostname"] == "copy" and f"base-{vmid}-disk-0" not in copied["rootfs"].partition(",")[0].split("/")[-1]
    )
    assert copied["net0"] != made.config.get()["net0"]
    assert "is still in use by linked cloned" in finished(pve, made.delete())
    finished(pve, node.lxc(961).delete())


def test_a_running_container_moves_by_a_restart(pve: Any, made: Any) -> None:
    """Online is refused, with `restart` it runs on the other node, its disk with it."""
    vmid = int(made.status.current.get()["vmid"])
    finished(pve, made.status.start.post())
    assert "target is local node." in str(refusal(lambda: made.migrate.post(target="pve1")).errors)
    assert "without --online or --restart" in str(refusal(lambda: made.migrate.post(target="pve2")))
    assert "pve2" in made.migrate.get()["allowed-nodes"]
    assert finished(pve, made.migrate.post(target="pve2", restart=1)) == "OK"
    assert pve.nodes("pve2").lxc(vmid).status.current.get()["status"] == "running"
    assert not pve.nodes("pve1").storage("local-lvm").content.get(vmid=vmid)
    assert pve.nodes("pve2").storage("local-lvm").content.get(vmid=vmid)


def test_a_container_is_saved_and_restored(pve: Any, made: Any) -> None:
    """As another one beside it, and over itself only with `force` while it is stopped."""
    node, vmid = pve.nodes("pve1"), int(made.status.current.get()["vmid"])
    finished(pve, node.vzdump.post(vmid=vmid, storage="local", compress="zstd"))
    (archive,) = node.storage("local").content.get(content="backup", vmid=vmid)
    restored = {"ostemplate": archive["volid"], "restore": 1}
    upid = node.lxc.post(vmid=962, storage="local-lvm", hostname="second", unique=1, **restored)
    assert ":vzrestore:962:" in upid and finished(pve, upid) == "OK"
    first, second = made.config.get(), node.lxc(962).config.get()
    assert (second["hostname"], second["memory"]) == ("second", first["memory"])
    assert second["rootfs"] == "local-lvm:vm-962-disk-0,size=8G" and second["net0"] != first["net0"]
    finished(pve, node.lxc(962).delete())

    over = {"vmid": vmid, "storage": "local-lvm", **restored}
    assert "already exists on node 'pve1'" in str(refusal(lambda: node.lxc.post(**over)))
    finished(pve, made.status.start.post())
    assert "can't overwrite running container" in str(refusal(lambda: node.lxc.post(force=1, **over)))
    finished(pve, made.status.stop.post())
    assert finished(pve, node.lxc.post(force=1, **over)) == "OK"
    assert len(node.storage("local-lvm").content.get(vmid=vmid)) == 1


def test_a_protected_container_stays(made: Any) -> None:
    """Neither removed nor restored over while it is protected."""
    made.config.put(protection=1)
    assert "protection mode enabled" in str(refusal(made.delete))
    made.config.put(protection=0)
    assert made.config.get()["protection"] == 0
