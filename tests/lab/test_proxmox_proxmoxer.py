"""Each row of the endpoint table, as proxmoxer asks it over real TLS, on both flavours.

`ROWS` names every row once with the test that exercises it, so that a row without a test is seen.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ProxmoxAPI, ResourceException
from proxmoxer.tools import Tasks

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))

from proxmox_site import eventually, finished, login, refusal, start  # lies beside this file

PASSWORD = "correct-horse-9"
Check = Callable[[Any, "Site"], None]
ROWS: dict[str, Check] = {}
"""What each row of the table asks, by the row's first column."""


class Site:
    """A lab of one flavour and what the rows share."""

    def __init__(self, folder: Path, flavour: str) -> None:
        self.folder, self.flavour, self.nine = folder, flavour, flavour != "8.4"
        self.where = control.connection(folder).proxmox
        self.spare = 500

    def vmid(self) -> int:
        """An id that no other row takes."""
        self.spare += 1
        return self.spare

    def vm(self, pve: Any, node: str = "pve1", **options: Any) -> Any:
        """A new stopped VM."""
        vmid = self.vmid()
        assert finished(pve, pve.nodes(node).qemu.post(vmid=vmid, memory=256, **options)) == "OK"
        return pve.nodes(node).qemu(vmid)


def row(*names: str) -> Callable[[Check], Check]:
    """A decorator: the function exercises these rows."""

    def keep(check: Check) -> Check:
        for name in names:
            assert name not in ROWS, name
            ROWS[name] = check
        return check

    return keep


@pytest.fixture(scope="module", params=["8.4", "9.2"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The healthy cluster of each flavour."""
    given: dict[str, Any] = {"flavour": request.param}
    lab = start(tmp_path_factory.mktemp(f"rows-{request.param}"), given)
    yield Site(lab, request.param)
    control.down(lab)


def ids(rows: Any, key: str) -> set[Any]:
    """The values of one key in a list."""
    return {row.get(key) for row in rows}


# ---------------------------------------------------------------------------------------------- access


@row("GET /version")
def version(pve: Any, site: Site) -> None:
    told = pve.version.get()
    assert told["release"] == site.flavour
    assert {"version", "repoid"} <= told.keys()


@row("POST /access/ticket")
def ticket(pve: Any, site: Site) -> None:
    told = pve.access.ticket.post(username="root@pam", password=site.where.password)
    assert told["ticket"].startswith("PVE:root@pam:")
    assert {"CSRFPreventionToken", "cap", "clustername", "username"} <= told.keys()


@row("GET /access/permissions")
def permissions(pve: Any, site: Site) -> None:
    held = pve.access.permissions.get(path="/vms/101")["/vms/101"]
    assert ("VM.Monitor" in held) is not site.nine
    assert held["VM.Audit"] == 1


@row("GET /access/users · POST · PUT/DELETE /{id}", "GET/POST/PUT/DELETE /access/users/{u}/token/{t}")
def users(pve: Any, site: Site) -> None:
    pve.access.users.post(userid="row@pve", password=PASSWORD)
    assert "row@pve" in ids(pve.access.users.get(), "userid")
    pve.access.users("row@pve").put(comment="x", enable=0)
    assert (pve.access.users("row@pve").get()["comment"], pve.access.users("row@pve").get()["enable"]) == ("x", 0)
    token = pve.access.users("row@pve").token("t1")
    made = token.post(privsep=1)
    assert (made["full-tokenid"], len(made["value"])) == ("row@pve!t1", 36)
    assert refusal(token.post).status_code in (400, 500)
    token.put(comment="y")
    assert token.get()["comment"] == "y"
    token.delete()
    pve.access.users("row@pve").delete()
    assert "row@pve" not in ids(pve.access.users.get(), "userid")


@row("GET /access/roles, POST {roleid,privs}, PUT {append}")
def roles(pve: Any, site: Site) -> None:
    lost = "VM.Monitor" if site.nine else "VM.GuestAgent.Audit"
    assert refusal(lambda: pve.access.roles.post(roleid="Row", privs=lost)).status_code == 400
    pve.access.roles.post(roleid="Row", privs="VM.Audit")
    pve.access.roles("Row").put(privs="VM.PowerMgmt", append=1)
    assert pve.access.roles("Row").get() == {"VM.Audit": 1, "VM.PowerMgmt": 1}
    pve.access.roles("Row").delete()


@row("GET /access/acl, PUT {path,roles,users\\|tokens\\|groups,propagate,delete}")
def acl(pve: Any, site: Site) -> None:
    pve.access.users.post(userid="acl@pve")
    pve.access.acl.put(path="/vms/101", users="acl@pve", roles="PVEAuditor", propagate=0)
    (entry,) = [each for each in pve.access.acl.get() if each["ugid"] == "acl@pve"]
    assert entry == {
        "path": "/vms/101", "type": "user", "ugid": "acl@pve", "roleid": "PVEAuditor", "propagate": 0,
    }  # fmt: skip
    pve.access.acl.put(path="/vms/101", users="acl@pve", roles="PVEAuditor", delete=1)
    assert "acl@pve" not in ids(pve.access.acl.get(), "ugid")


# ---------------------------------------------------------------------------------------------- nodes


@row("GET /nodes")
def nodes(pve: Any, site: Site) -> None:
    for each in pve.nodes.get():
        assert (each["type"], each["id"], each["status"]) == ("node", f"node/{each['node']}", "online")
        assert {
            "cpu",
            "maxcpu",
            "mem",
            "maxmem",
            "disk",
            "maxdisk",
            "uptime",
            "level",
            "ssl_fingerprint",
        } <= each.keys()


@row("GET /nodes/{n}/status")
def node_status(pve: Any, site: Site) -> None:
    told = pve.nodes("pve2").status.get()
    assert all(isinstance(load, str) for load in told["loadavg"])
    assert {"cpu", "cpuinfo", "memory", "swap", "rootfs", "kversion", "pveversion", "uptime", "ksm", "wait",
            "boot-info", "current-kernel"} <= told.keys()  # fmt: skip


@row("GET /nodes/{n}/{subscription,version,time,dns,report,services}")
def node_facts(pve: Any, site: Site) -> None:
    node = pve.nodes("pve2")
    assert node.subscription.get()["status"] == "notfound"
    assert node.version.get()["release"] == site.flavour
    assert node.time.get()["timezone"]
    assert node.dns.get()["search"]
    assert "pve2" in node.report.get()
    assert "pveproxy" in ids(node.services.get(), "service")


@row("GET /nodes/{n}/certificates/info")
def certificates(pve: Any, site: Site) -> None:
    for each in pve.nodes("pve1").certificates.info.get():
        assert isinstance(each["notafter"], int)
        assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", each["fingerprint"])


@row("GET /nodes/{n}/rrddata")
def rrddata(pve: Any, site: Site) -> None:
    series = pve.nodes("pve1").rrddata.get(timeframe="hour", cf="AVERAGE")
    assert len(series) > 50
    assert all(isinstance(each["time"], int) for each in series)
    assert pve.nodes("pve1").storage("local").rrddata.get(timeframe="day")
    assert pve.nodes("pve1").qemu(101).rrddata.get(timeframe="hour")


@row("GET /nodes/{n}/network?type=", "POST /network; PUT/DELETE /network/{iface}", "PUT /nodes/{n}/network · DELETE")
def network(pve: Any, site: Site) -> None:
    net = pve.nodes("pve2").network
    assert {each["type"] for each in net.get(type="bridge")} == {"bridge"}
    net.post(iface="vmbr5", type="bridge", autostart=1, cidr="10.5.0.1/24")
    net("vmbr5").put(type="bridge", autostart=1, mtu=9000)
    assert net("vmbr5").get()["mtu"] == "9000"
    net.delete()
    assert refusal(net("vmbr5").get).status_code in (400, 500)
    net.post(iface="vmbr6", type="bridge", autostart=1)
    upid = net.put()
    assert upid.split(":")[5] == "srvreload"
    assert finished(pve, upid) == "OK"
    net("vmbr6").delete()
    assert finished(pve, net.put()) == "OK"


# ---------------------------------------------------------------------------------------------- storage


@row("GET /storage · POST · GET/PUT/DELETE /storage/{id}")
def storage_config(pve: Any, site: Site) -> None:
    assert pve.storage.post(storage="rows", type="dir", path="/rows", content="iso") == {
        "storage": "rows",
        "type": "dir",
    }
    entry = pve.storage("rows").get()
    pve.storage("rows").put(content="iso,images", digest=entry["digest"])
    assert (
        "modified configuration"
        in refusal(lambda: pve.storage("rows").put(content="iso", digest=entry["digest"])).content
    )
    assert "rows" in ids(pve.storage.get(), "storage")
    assert pve.storage("rows").delete() is None


@row("GET /nodes/{n}/storage?content=&enabled=", "GET …/storage/{s}/status", "GET …/storage/{s}/content?content=&vmid=")
def storage_rows(pve: Any, site: Site) -> None:
    for each in pve.nodes("pve1").storage.get(content="iso", enabled=1):
        assert "iso" in each["content"].split(",")
        assert (each["enabled"], each["active"], 0 <= each["used_fraction"] <= 1) == (1, 1, True)
    told = pve.nodes("pve1").storage("local-lvm").status.get()
    assert (told["type"], told["active"], told["used"] + told["avail"]) == ("lvmthin", 1, told["total"])
    (disk,) = pve.nodes("pve1").storage("local-lvm").content.get(content="images", vmid=101)
    assert (disk["volid"], disk["format"], disk["vmid"]) == ("local-lvm:vm-101-disk-0", "raw", 101)


@row("POST …/content", "GET / DELETE …/content/{vol}", "POST …/content/{vol}")
def volumes(pve: Any, site: Site) -> None:
    content = pve.nodes("pve1").storage("local-lvm").content
    volid = content.post(vmid=9999, filename="vm-9999-row", size="1048576")
    assert volid == "local-lvm:vm-9999-row"
    assert content(volid).get()["size"] == 2**30
    assert "illegal name" in refusal(lambda: content.post(vmid=9999, filename="other", size="1G")).content
    assert finished(pve, content(volid).post(target="vm-9999-copy")) == "OK"
    upid = content(volid).delete()
    assert upid.split(":")[5] == "imgdel"
    assert finished(pve, upid) == "OK"
    assert content("local-lvm:vm-9999-copy").delete(delay=30) is None


@row("POST …/storage/{s}/upload", "POST …/storage/{s}/download-url")
def uploads(pve: Any, site: Site) -> None:
    store = pve.nodes("pve1").storage("local")
    file = io.BytesIO(b"x" * 2048)
    file.name = "row.iso"
    upid = store.upload.post(content="iso", filename=file)
    assert upid.split(":")[5] == "imgcopy"
    assert finished(pve, upid) == "OK"
    assert store.content("local:iso/row.iso").get()["size"] == 2048
    fetch = store("download-url").post(content="iso", filename="net.iso", url="https://x.example/net.iso")
    assert (fetch.split(":")[5], finished(pve, fetch)) == ("download", "OK")


# ---------------------------------------------------------------------------------------------- VMs


@row("GET /nodes/{n}/qemu?full=", "GET …/status/current")
def vm_lists(pve: Any, site: Site) -> None:
    listed = pve.nodes("pve1").qemu.get(full=1)
    assert all(isinstance(each["vmid"], int) for each in listed)
    assert {each["vmid"] for each in listed if each.get("template") == 1} == {9000}
    told = pve.nodes("pve1").qemu(101).status.current.get()
    assert (told["status"], told["qmpstatus"], told["ha"]["managed"], told["agent"]) == ("running", "running", 0, 1)
    assert {"pid", "cpus", "maxmem", "mem", "uptime"} <= told.keys()


@row("POST /nodes/{n}/qemu", "DELETE …/qemu/{id}")
def vm_life(pve: Any, site: Site) -> None:
    machine = site.vm(pve, name="row", scsi0="local-lvm:1", net0="virtio,bridge=vmbr0")
    vmid = site.spare
    text = f"unable to create VM {vmid} - VM {vmid} already exists on node 'pve1'"
    assert refusal(lambda: pve.nodes("pve1").qemu.post(vmid=vmid)).content == text
    assert finished(pve, machine.status.start.post()) == "OK"
    assert refusal(machine.delete).content == f"VM {vmid} is running - destroy failed"
    assert finished(pve, machine.status.stop.post()) == "OK"
    assert finished(pve, machine.delete(purge=1, **{"destroy-unreferenced-disks": 1})) == "OK"
    assert refusal(machine.config.get).content.endswith(f"'nodes/pve1/qemu-server/{vmid}.conf' does not exist")


@row("GET …/qemu/{id}/config?current=&snapshot=", "POST …/config", "PUT …/config", "GET …/pending")
def vm_config(pve: Any, site: Site) -> None:
    machine = pve.nodes("pve1").qemu(101)
    assert {"digest", "smbios1", "net0", "scsi0"} <= machine.config.get().keys()
    upid = machine.config.post(description="row")
    assert (upid.split(":")[5], finished(pve, upid)) == ("qmconfig", "OK")
    assert machine.config.put(memory=1024) is None
    waiting = {each["key"]: each for each in machine.pending.get()}
    assert (waiting["memory"]["value"], waiting["memory"]["pending"]) == (
        machine.config.get(current=1)["memory"],
        "1024",
    )
    assert machine.config.put(revert="memory") is None


@row("POST …/clone", "POST …/template")
def vm_copies(pve: Any, site: Site) -> None:
    newid = site.vmid()
    upid = pve.nodes("pve1").qemu(9000).clone.post(newid=newid, full=1, name="copy", storage="nas", format="qcow2")
    assert pve.nodes("pve1").qemu(newid).config.get()["lock"] == "clone"
    assert finished(pve, upid) == "OK"
    local = refusal(lambda: pve.nodes("pve1").qemu(101).clone.post(newid=site.vmid(), full=1, target="pve2"))
    assert local.content == "can't clone VM to node 'pve2' (VM uses local storage)"
    assert finished(pve, pve.nodes("pve1").qemu(newid).template.post()) == "OK"
    assert refusal(pve.nodes("pve1").qemu(101).template.post).status_code == 500


@row("PUT …/resize", "PUT …/unlink", "POST …/move_disk")
def vm_disks(pve: Any, site: Site) -> None:
    machine = site.vm(pve, scsi0="local-lvm:1", scsi1="local-lvm:1")
    assert finished(pve, machine.resize.put(disk="scsi0", size="+1G")) == "OK"
    assert finished(pve, machine.resize.put(disk="scsi0", size="1G")) == "shrinking disks is not supported"
    assert finished(pve, machine.resize.put(disk="scsi9", size="1G")) == "disk 'scsi9' does not exist"
    assert finished(pve, machine.move_disk.post(disk="scsi0", storage="nas", delete=1, format="qcow2")) == "OK"
    assert "size=2G" in machine.config.get()["scsi0"]
    assert machine.unlink.put(idlist="scsi1") is None
    assert machine.config.get()["unused0"].startswith("local-lvm:")


@row("POST …/status/{start,stop,shutdown,reboot,reset,suspend,resume}")
def vm_power(pve: Any, site: Site) -> None:
    machine = pve.nodes("pve3").qemu(121)
    assert finished(pve, machine.status.stop.post()) == "OK"  # of a stopped one
    assert finished(pve, machine.status.start.post()) == "OK"
    assert finished(pve, machine.status.start.post()) == "VM 121 already running"
    for verb in ("suspend", "resume", "reset", "reboot", "shutdown"):
        assert finished(pve, machine.status(verb).post()) == "OK", verb
    assert machine.status.current.get()["status"] == "stopped"


@row("GET/POST …/migrate")
def vm_migration(pve: Any, site: Site) -> None:
    machine = site.vm(pve, scsi0="nas:1")
    assert sorted(machine.migrate.get()["allowed_nodes"]) == ["pve2", "pve3"]
    upid = machine.migrate.post(target="pve2")
    assert (upid.split(":")[5], finished(pve, upid)) == ("qmigrate", "OK")
    assert pve.nodes("pve2").qemu(site.spare).config.get()["scsi0"].startswith("nas:")


@row("GET/POST …/snapshot; DELETE /{snap}; POST /{snap}/rollback", "GET …/feature?feature=clone\\|snapshot\\|copy")
def vm_snapshots(pve: Any, site: Site) -> None:
    machine = site.vm(pve, scsi0="local-lvm:1")
    assert machine.feature.get(feature="snapshot") == {"hasFeature": 1, "nodes": ["pve1"]}
    assert finished(pve, machine.snapshot.post(snapname="row", description="d")) == "OK"
    assert [each["name"] for each in machine.snapshot.get()] == ["row", "current"]
    assert finished(pve, machine.snapshot("row").rollback.post()) == "OK"
    assert finished(pve, machine.snapshot("row").delete()) == "OK"


@row("GET/PUT …/cloudinit; GET …/cloudinit/dump?type=")
def vm_cloud_init(pve: Any, site: Site) -> None:
    machine = site.vm(pve, scsi0="local-lvm:1", ide2="local-lvm:cloudinit", ciuser="ops", ipconfig0="ip=dhcp")
    assert "ciuser" in ids(machine.cloudinit.get(), "key")
    assert machine.cloudinit.put() is None
    assert "#cloud-config" in machine.cloudinit.dump.get(type="user")


@row("GET …/agent/{get-osinfo,network-get-interfaces,get-fsinfo,…}", "POST …/agent/exec · GET …/exec-status?pid=",
     "POST …/agent/ping, file-write; GET file-read")  # fmt: skip
def vm_agent(pve: Any, site: Site) -> None:
    agent = pve.nodes("pve1").qemu(101).agent
    eventually(lambda: agent("get-osinfo").get()["result"]["id"])
    assert agent("network-get-interfaces").get()["result"][0]["name"] == "lo"
    assert isinstance(agent("get-fsinfo").get()["result"], list)
    pid = agent.exec.post(command=["hostname"])["pid"]
    told = agent("exec-status").get(pid=pid)
    assert (told["exited"], told["exitcode"], bool(told["out-data"])) == (1, 0, True)
    assert agent.ping.post() == {"result": {}}
    agent("file-write").post(file="/tmp/row", content="text")
    assert agent("file-read").get(file="/tmp/row")["content"] == "text"
    assert refusal(pve.nodes("pve3").qemu(121).agent.ping.post).content == "VM 121 is not running"


@row("GET /nodes/{n}/lxc, …/{id}/config")
def containers(pve: Any, site: Site) -> None:
    (node,) = {each["node"] for each in pve.cluster.resources.get(type="vm") if each["type"] == "lxc"}
    assert 130 in ids(pve.nodes(node).lxc.get(), "vmid")
    assert "rootfs" in pve.nodes(node).lxc(130).config.get()


# ---------------------------------------------------------------------------------------------- tasks, cluster


@row(
    "GET /nodes/{n}/tasks?vmid=&typefilter=&statusfilter=&limit=",
    "GET …/tasks/{upid}/status · /log?start=&limit= · DELETE",
)
def tasks(pve: Any, site: Site) -> None:
    upid = pve.nodes("pve3").qemu(121).status.stop.post()
    assert finished(pve, upid) == "OK"
    assert Tasks.decode_upid(upid)["type"] == "qmstop"
    node = pve.nodes("pve3")
    (newest,) = node.tasks.get(vmid=121, typefilter="qmstop", limit=1)
    assert (newest["upid"], newest["status"]) == (upid, "OK")
    told = node.tasks(upid).status.get()
    assert {"upid", "node", "pid", "pstart", "starttime", "type", "id", "user", "status", "exitstatus"} <= told.keys()
    assert node.tasks(upid).log.get(start=0, limit=5)[-1]["t"] == "TASK OK"
    assert node.tasks(upid).delete() is None
    assert refusal(node.tasks("UPID:pve3:00000001:00000001:00000001:x::root@pam:").status.get).status_code == 400


@row("GET /cluster/resources?type=vm\\|storage\\|node\\|sdn", "GET /cluster/status", "GET /cluster/nextid?vmid=",
     "GET /cluster/tasks, /cluster/log, /cluster/options")  # fmt: skip
def cluster(pve: Any, site: Site) -> None:
    shapes = {
        "vm": r"(qemu|lxc)/\d+",
        "storage": r"storage/pve\d/.+",
        "node": r"node/pve\d",
        "sdn": r"(sdn|network)/.+",
    }
    for kind, shape in shapes.items():
        assert all(re.fullmatch(shape, each["id"]) for each in pve.cluster.resources.get(type=kind)), kind
    head, *rest = pve.cluster.status.get()
    assert (head["type"], head["name"], head["nodes"], head["quorate"]) == ("cluster", "lab", 3, 1)
    assert all({"id", "name", "ip", "nodeid", "online", "local", "level"} <= each.keys() for each in rest)
    assert isinstance(pve.cluster.nextid.get(), str)
    assert refusal(lambda: pve.cluster.nextid.get(vmid=101)).errors == {"vmid": "VM 101 already exists"}
    assert all("upid" in each for each in pve.cluster.tasks.get())
    assert pve.cluster.log.get(max=3)
    assert pve.cluster.options.get()["keyboard"] == "en-us"


@row("GET/POST /pools, PUT /pools {poolid,vms,storage,delete}, DELETE")
def pools(pve: Any, site: Site) -> None:
    pve.pools.post(poolid="rows")
    pve.pools.put(poolid="rows", storage="nas")
    assert refusal(lambda: pve.pools.delete(poolid="rows")).status_code == 500
    pve.pools.put(poolid="rows", storage="nas", delete=1)
    pve.pools.delete(poolid="rows")
    assert "rows" not in ids(pve.pools.get(), "poolid")


@row("GET/POST/PUT/DELETE /cluster/sdn/{zones,vnets,controllers,ipams,dns}; /vnets/{v}/subnets")
def sdn(pve: Any, site: Site) -> None:
    pve.cluster.sdn.zones.post(zone="zrow", type="simple")
    pve.cluster.sdn.vnets.post(vnet="vrow", zone="zrow")
    pve.cluster.sdn.vnets("vrow").subnets.post(subnet="10.77.0.0/24", type="subnet")
    assert pve.cluster.sdn.zones.get(pending=1)[-1]["state"] == "new"
    assert finished(pve, pve.cluster.sdn.put()) == "OK"
    assert "vrow" in ids(pve.cluster.sdn.vnets.get(), "vnet")
    assert isinstance(pve.cluster.sdn.controllers.get(), list)
    assert "pve" in ids(pve.cluster.sdn.ipams.get(), "ipam")
    assert pve.cluster.sdn.dns.get() == []


@row("/cluster/firewall/{options,rules,groups,aliases,ipset}; /nodes/{n}/firewall/…; …/qemu/{id}/firewall/…")
def firewall(pve: Any, site: Site) -> None:
    for level in (pve.cluster.firewall, pve.nodes("pve1").firewall, pve.nodes("pve1").qemu(101).firewall):
        level.rules.post(type="in", action="ACCEPT", dport="22", proto="tcp", enable=1)
        assert level.rules.get()[0]["pos"] == 0
        level.options.put(enable=0)
        assert level.options.get()["enable"] == 0
        level.rules(0).delete()
    pve.cluster.firewall.groups.post(group="rows")
    pve.cluster.firewall.aliases.post(name="rowhost", cidr="10.0.0.9")
    pve.cluster.firewall.ipset.post(name="rowset")
    pve.cluster.firewall.ipset("rowset").post(cidr="10.0.0.0/24")
    assert ids(pve.cluster.firewall.ipset("rowset").get(), "cidr") == {"10.0.0.0/24"}


@row("/cluster/ha/resources, /rules (9), /groups (≤8), /status/current")
def high_availability(pve: Any, site: Site) -> None:
    pve.cluster.ha.resources.post(sid="vm:121", state="stopped")
    assert "vm:121" in ids(pve.cluster.ha.resources.get(), "sid")
    assert "quorum" in ids(pve.cluster.ha.status.current.get(), "type")
    if site.nine:
        pve.cluster.ha.rules.post(rule="row", type="node-affinity", resources="vm:121", nodes="pve3")
        assert "row" in ids(pve.cluster.ha.rules.get(), "rule")
        assert refusal(pve.cluster.ha.groups.get).status_code == 500
        pve.cluster.ha.rules("row").delete()
    else:
        pve.cluster.ha.groups.post(group="row", nodes="pve3")
        assert "row" in ids(pve.cluster.ha.groups.get(), "group")
    pve.cluster.ha.resources("vm:121").delete()


@row("/cluster/backup CRUD; GET /cluster/backup-info/not-backed-up", "POST /nodes/{n}/vzdump")
def backups(pve: Any, site: Site) -> None:
    pve.cluster.backup.post(id="rows", schedule="03:00", storage="nas", vmid="121", mode="snapshot")
    assert pve.cluster.backup("rows").get()["schedule"] == "03:00"
    pve.cluster.backup("rows").put(schedule="04:00")
    assert 121 not in ids(pve.cluster("backup-info")("not-backed-up").get(), "vmid")
    pve.cluster.backup("rows").delete()
    upid = pve.nodes("pve3").vzdump.post(vmid=121, storage="nas", mode="stop", compress="zstd")
    assert (upid.split(":")[5], finished(pve, upid)) == ("vzdump", "OK")


@row("/cluster/replication CRUD; /nodes/{n}/replication[/{id}/status]")
def replication(pve: Any, site: Site) -> None:
    # the guest's disks lie where nothing can be replicated: the job is refused or has nothing to do
    with contextlib.suppress(ResourceException):
        pve.cluster.replication.post(id="111-0", type="local", target="pve2", schedule="*/15")
    listed = ids(pve.cluster.replication.get(), "id")
    assert listed == ids(pve.nodes("pve1").replication.get(), "id")
    for name in listed:
        assert "next_sync" in pve.nodes("pve1").replication(name).status.get()


@row("/cluster/metrics/server/{id} POST/PUT/DELETE; GET /cluster/metrics/export")
def metrics(pve: Any, site: Site) -> None:
    server = pve.cluster.metrics.server("rows")
    server.post(type="graphite", server="10.0.0.9", port=2003)
    server.put(server="10.0.0.10", port=2003)
    assert server.get()["server"] == "10.0.0.10"
    server.delete()
    newer = {"type": "opentelemetry", "server": "10.0.0.9", "port": 4318}
    if site.nine:
        server.post(**newer)
        server.delete()
    else:
        assert refusal(lambda: server.post(**newer)).status_code == 400
    control.advance(30, site.folder)  # a node that just started has measured nothing yet
    assert {"id", "metric", "timestamp", "type", "value"} == set(pve.cluster.metrics.export.get()["data"][0])


@row("GET /cluster/config/qdevice, /cluster/config/nodes")
def cluster_config(pve: Any, site: Site) -> None:
    assert isinstance(pve.cluster.config.qdevice.get(), dict)
    assert ids(pve.cluster.config.nodes.get(), "name") == {"pve1", "pve2", "pve3"}


# ---------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_answered_as_the_table_says(site: Site, name: str, record_property: Callable[..., None]) -> None:
    """What the row promises holds for a client that nobody here wrote; a check of several rows runs for the first."""
    record_property("row", name)
    check = ROWS[name]
    if next(first for first, other in ROWS.items() if other is check) == name:
        check(login(site.folder), site)
    assert check.__name__ in globals()


TABLE = re.compile(r"^\| ((?:GET|POST|PUT|DELETE|/)\S*.*?) (?<!\\)\| ")


def test_no_row_of_the_table_is_without_a_test() -> None:
    """The table of the facts, where it is at hand, has no row that is not named here, and the other way round."""
    facts = Path(__file__).parents[3] / "shared/facts/providers-and-proxmox-api.md"
    if not facts.exists():
        pytest.skip("the table of endpoints is not here")
    text = facts.read_text(encoding="utf-8")
    part = text[text.index("### 6.2 Endpoint table") : text.index("### 6.3 ")]
    listed = [found[1].replace("**", "") for line in part.splitlines() if (found := TABLE.match(line))]
    assert sorted(listed) == sorted(ROWS)


def test_proxmoxer_logs_in_by_ticket_and_by_token(site: Site) -> None:
    """Both ways read the same cluster."""
    user, _, name = site.where.token_id.partition("!")
    host = site.where.url.removeprefix("https://")
    api = ProxmoxAPI(
        host, user=user, token_name=name, token_value=site.where.token_secret, verify_ssl=site.where.ca_file
    )
    api._store["session"].trust_env = False
    assert ids(api.nodes.get(), "node") == ids(login(site.folder).nodes.get(), "node") == {"pve1", "pve2", "pve3"}
