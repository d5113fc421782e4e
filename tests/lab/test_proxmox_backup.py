"""Backups through proxmoxer: jobs and what they cover, vzdump, retention, restore; schedules; replication; metrics."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control
from runbook_lib.lab.proxmox import backup
from runbook_lib.lab.proxmox.calendar import next_run, parse_event
from runbook_lib.lab.proxmox.state import Volumes
from runbook_lib.lab.proxmox.storage import VolumeState

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import finished, login, refusal, start  # lies beside this file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab."""
    folder = start(tmp_path_factory.mktemp("backup"))
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


def test_a_job_covers_what_it_names(pve: Any) -> None:
    """All but some, by id or by pool; what none covers is listed."""
    before = {row["vmid"] for row in pve.cluster("backup-info")("not-backed-up").get()}
    jobs = {row["id"] for row in pve.cluster.backup.get()}
    pve.cluster.backup.post(vmid="101,102", storage="nas", schedule="sat 02:00", **{"prune-backups": "keep-last=3"})
    name = next(row["id"] for row in pve.cluster.backup.get() if row["id"] not in jobs)
    job = pve.cluster.backup(name).get()
    assert (job["prune-backups"], job["enabled"], job["type"]) == ({"keep-last": "3"}, 1, "vzdump")
    assert dt.datetime.fromtimestamp(job["next-run"], dt.UTC).strftime("%a %H:%M") == "Sat 02:00"
    tree = pve.cluster.backup(name).included_volumes.get()["children"]
    assert [row["id"] for row in tree] == [101, 102]
    assert tree[0]["children"][0] == {
        "id": "scsi0",
        "name": "local-lvm:vm-101-disk-0",
        "included": 1,
        "reason": "enabled",
    }
    assert {row["vmid"] for row in pve.cluster("backup-info")("not-backed-up").get()} == before - {101, 102}
    pve.cluster.backup(name).put(all=1, exclude="103")
    assert "vmid" not in pve.cluster.backup(name).get()
    pve.cluster.backup(name).delete()
    assert refusal(pve.cluster.backup(name).get).errors == {"id": f"No such job '{name}'"}


@pytest.mark.parametrize(
    ("job", "key", "says"),
    [
        ({"schedule": "daily"}, "vmid", "property is missing"),
        ({"schedule": "daily", "all": 1, "vmid": "101"}, "all", "option conflicts with option 'vmid'"),
        ({"schedule": "whenever", "all": 1}, "schedule", "invalid calendar event 'whenever'"),
        ({"schedule": "daily", "all": 1, "compress": "rar"}, "compress", "does not have a value in the enumeration"),
        ({"schedule": "daily", "all": 1, "notes-template": "x"}, "notes-template", "'storage' requires this property"),
    ],
)
def test_a_bad_job_is_refused_by_name(pve: Any, job: dict[str, Any], key: str, says: str) -> None:
    """400 with the parameter and the server's complaint."""
    refused = refusal(lambda: pve.cluster.backup.post(**job))
    assert refused.status_code == 400 and says in refused.errors[key]


def test_a_vm_is_saved_and_restored_as_another(pve: Any) -> None:
    """The task writes a volume with notes; a creation from it makes disks and, when asked, a MAC address of its own."""
    node = pve.nodes("pve3")
    finished(pve, node.qemu.post(vmid=950, name="saved", memory=256, scsi0="local-lvm:2", net0="virtio,bridge=vmbr0"))
    upid = node.vzdump.post(vmid=950, storage="nas", compress="zstd", **{"notes-template": "{{guestname}} on {{node}}"})
    assert ":vzdump:950:" in upid and finished(pve, upid) == "OK"
    log = [line["t"] for line in node.tasks(upid).log.get(limit=0)]
    assert "INFO: Backup job finished successfully" in log
    (archive,) = node.storage("nas").content.get(content="backup", vmid=950)
    assert (archive["notes"], archive["format"], archive["subtype"]) == ("saved on pve3", "vma.zst", "qemu")
    assert "name: saved\n" in node.vzdump.extractconfig.get(volume=archive["volid"])

    taken = refusal(lambda: node.qemu.post(vmid=950, archive=archive["volid"]))
    assert "unable to restore VM 950 - VM 950 already exists on node 'pve3'" in str(taken)
    upid = pve.nodes("pve1").qemu.post(vmid=951, archive=archive["volid"], storage="local-lvm", unique=1, memory=512)
    assert ":qmrestore:951:" in upid and finished(pve, upid) == "OK"
    old, new = node.qemu(950).config.get(), pve.nodes("pve1").qemu(951).config.get()
    assert (new["name"], str(new["memory"])) == ("saved", "512")
    assert new["scsi0"] == "local-lvm:vm-951-disk-0,size=2G"
    assert new["net0"].partition(",")[0] != old["net0"].partition(",")[0]
    finished(pve, node.qemu.post(vmid=950, archive=archive["volid"], force=1))
    assert [row["volid"] for row in node.storage("local-lvm").content.get(vmid=950)] == [
        node.qemu(950).config.get()["scsi0"].partition(",")[0]
    ]


def test_a_backup_that_cannot_be_written_says_why(pve: Any) -> None:
    """A storage for other things, a locked guest among others, nobody at home."""
    wrong = finished(pve, pve.nodes("pve1").vzdump.post(vmid=101, storage="local-lvm"))
    assert "can't use storage 'local-lvm' for backups - wrong content type" in wrong
    assert pve.nodes("pve1").vzdump.post(vmid=120) == "OK"
    assert "storage 'nowhere' does not exist" in str(
        refusal(lambda: pve.cluster.backup.post(all=1, schedule="daily", storage="nowhere"))
    )


def test_retention_marks_and_removes(pve: Any) -> None:
    """A dry run tells what the real one does."""
    node = pve.nodes("pve1")
    finished(pve, node.qemu.post(vmid=960, memory=64, scsi0="local-lvm:1"))
    for _ in range(2):
        finished(pve, node.vzdump.post(vmid=960, storage="local"))
    pruning = node.storage("local").prunebackups
    rows = pruning.get(vmid=960, **{"prune-backups": "keep-last=1"})
    if len(rows) == 2:  # two backups within one second share a name
        assert sorted(row["mark"] for row in rows) == ["keep", "remove"]
    assert finished(pve, pruning.delete(vmid=960, **{"prune-backups": "keep-last=1"})) == "OK"
    assert len(node.storage("local").content.get(content="backup", vmid=960)) == 1


def test_a_volume_that_is_taken_is_gone_from_its_storage():
    """Pruning by dict.pop left the backup in the storage's list."""
    kept = Volumes()
    kept["pve1", "s:backup/a.vma"] = VolumeState("s:backup/a.vma", "backup", "vma", 1, 1, 0, vmid=100)
    with pytest.raises(TypeError, match=r"take\(\)"):
        kept.pop(("pve1", "s:backup/a.vma"))
    assert kept.take(("pve1", "s:backup/a.vma")) is not None
    assert kept.on("pve1", "s") == []


def volumes(*ages_days: float) -> list[VolumeState]:
    """Backups of one guest, as old as that."""
    now = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
    found = []
    for age in ages_days:
        when = now - dt.timedelta(days=age)
        name = f"s:backup/vzdump-qemu-100-{when:%Y_%m_%d-%H_%M_%S}.vma.zst"
        found.append(VolumeState(name, "backup", "vma.zst", 1, 1, int(when.timestamp()), vmid=100))
    return found


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("keep-all=1", [0, 0.2, 1, 2, 8, 40]),
        ("keep-last=2", [0, 0.2]),
        ("keep-daily=2", [0, 1]),
        ("keep-last=1,keep-weekly=2", [0, 1, 8]),
        ("keep-monthly=2", [0, 40]),
    ],
)
def test_what_a_retention_keeps(keep: str, kept: list[float]) -> None:
    """The newest of each period, counted after what the shorter periods keep already."""
    ages = [0, 0.2, 1, 2, 8, 40]
    marked = backup.marks(volumes(*ages), keep)
    assert [age for age, (_, mark) in zip(ages, marked, strict=True) if mark == "keep"] == kept


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("daily", "2026-11-24 00:00"),
        ("*/15", "2026-11-23 12:15"),
        ("21:00", "2026-11-23 21:00"),
        ("mon..fri 02:30", "2026-11-24 02:30"),
        ("sat,sun 04:00", "2026-11-28 04:00"),
        ("monthly", "2026-12-01 00:00"),
        ("8..17/4:30", "2026-11-23 12:30"),
    ],
)
def test_when_a_schedule_comes_round(schedule: str, expected: str) -> None:
    """After Monday 23 November 2026, noon."""
    noon = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC).timestamp()
    moment = next_run(schedule, noon)
    assert moment and f"{dt.datetime.fromtimestamp(moment, dt.UTC):%Y-%m-%d %H:%M}" == expected


@pytest.mark.parametrize("schedule", ["x", "25:00", "mon..xyz", "", "12:60"])
def test_a_schedule_that_is_none_is_refused(schedule: str) -> None:
    """With the name of what was given."""
    with pytest.raises(ValueError, match="invalid calendar event"):
        parse_event(schedule)


def test_a_replication_job_needs_something_to_replicate(pve: Any) -> None:
    """A guest that is there, another node, a disk on ZFS."""
    jobs = pve.cluster.replication
    assert "Guest '999' does not exist." in str(refusal(lambda: jobs.post(id="999-0", type="local", target="pve2")))
    assert "Source and target must not be identical" in str(
        refusal(lambda: jobs.post(id="101-0", type="local", target="pve1"))
    )
    assert "No replicatable volumes found" in str(refusal(lambda: jobs.post(id="101-0", type="local", target="pve2")))
    assert "invalid replication job id 'x'" in refusal(jobs("x").get).errors["id"]


@pytest.mark.parametrize("kind", ["graphite", "influxdb", "opentelemetry"])
def test_a_metric_server_is_configured(pve: Any, kind: str) -> None:
    """Each type with its own options and none of another's."""
    server = pve.cluster.metrics.server("m1")
    server.post(type=kind, server="192.0.2.9", port=9000)
    assert "Metric server 'm1' already exists" in str(refusal(lambda: server.post(type=kind, server="x", port=1)))
    server.put(server="192.0.2.10", port=9001, disable=1)
    assert pve.cluster.metrics.server.get() == [
        {"id": "m1", "type": kind, "server": "192.0.2.10", "port": 9001, "disable": 1}
    ]
    foreign = {"bucket": "b"} if kind != "influxdb" else {"path": "p"}
    refused = refusal(lambda: server.put(server="192.0.2.10", port=9001, **foreign))
    assert "unexpected property" in str(refused)
    server.delete()
    assert pve.cluster.metrics.server.get() == []


def test_the_export_tells_of_nodes_guests_and_storages(pve: Any) -> None:
    """One moment without history, all of them after a time with it."""
    rows = pve.cluster.metrics.export.get(history=1)["data"]
    assert all(row["type"] in ("gauge", "counter", "derive") for row in rows)
    now = pve.cluster.metrics.export.get()["data"]
    assert len({row["timestamp"] for row in now}) <= 1
