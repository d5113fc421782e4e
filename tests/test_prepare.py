"""The test environment as changes: what is wanted, what is as wanted, and what proves it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from two_sides import FakeKube, FakePve, World

from runbook_lib import checks, prepare, privileges, proxmox, sweep
from runbook_lib.errors import SecretError, UsageError
from runbook_lib.executors import KubernetesExecutor, ProxmoxExecutor
from runbook_lib.facts import Storage
from runbook_lib.journal import Journal
from runbook_lib.model import ChangeKind, Status
from runbook_lib.plan import Plan, apply, approve
from runbook_lib.secrets import redact
from runbook_lib.site import Site

RUN = "20261123T190312Z-4f2a"
LATER = "20261124T080000Z-0001"
DIGEST = "sha256:" + "ab" * 32


def site(**names: Any) -> Site:
    """A site with a cloud image and everything else as it comes."""
    image = {"url": "https://images.example.org/noble-server-cloudimg-amd64.img", "checksum": DIGEST}
    return Site(name="lab", lab={}, emulated=True, changes="allow", names={"cloud_image": image, **names})


class Both:
    """Both systems and the folder of the project."""

    def __init__(self, root: Path) -> None:
        self.world, self.root = World(), root
        self.pve, self.kube = FakePve(self.world), FakeKube(self.world)
        self.journal = Journal(root / "changes.jsonl")
        self.executors: dict[str, Any] = {
            "proxmox": ProxmoxExecutor(lambda: self.pve, root=root, sleep=lambda seconds: None),
            "kubernetes": KubernetesExecutor(lambda: self.kube),
        }

    def wanted(self, run: str = RUN, **names: Any) -> prepare.Wanted:
        """What is still to be done."""
        return prepare.environment(self.pve, self.kube, site(**names), run, root=self.root)

    def apply(self, wanted: prepare.Wanted, run: str = RUN) -> None:
        """Nothing; the changes are made."""
        plan = Plan("lab", wanted.changes, run)
        apply(plan, approve(plan, "allow", self.root), self.journal, self.executors)


@pytest.fixture
def both(tmp_path: Path) -> Both:
    """A fresh site."""
    return Both(tmp_path)


def test_preparing_twice_changes_nothing(both: Both) -> None:
    """Another run, later, finds everything as wanted, whatever marks the first one left."""
    both.apply(both.wanted())
    again = both.wanted(LATER)
    assert [change.summary for change in again.changes] == [] and again.problems == ()
    assert len(again.unchanged) == 50


def test_everything_that_is_prepared_stays(both: Both) -> None:
    """Roles, users, tokens, pool, template and namespace are installed, not borrowed."""
    assert {change.kind for change in both.wanted().changes} == {ChangeKind.INSTALL}


def test_the_ids_follow_the_order(both: Both) -> None:
    """13-01 is sent first."""
    ids = [change.id for change in both.wanted().changes]
    assert ids == [f"13-{number:02d}" for number in range(1, len(ids) + 1)]


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [("8.4.21", "VM.Monitor", "VM.GuestAgent"), ("9.2.11", "VM.GuestAgent.Unrestricted", "VM.Monitor")],
)
def test_the_agent_privileges_fit_the_generation(both: Both, version: str, has: str, lacks: str) -> None:
    """A role that names a privilege the server does not know is refused as a whole."""
    both.world.state["version"] = version
    both.apply(both.wanted())
    privs = both.world.state["roles"]["Runbook-capmox-machines"]
    assert has in privs and not any(lacks in entry for entry in both.world.state["roles"].values())


def test_no_role_begins_with_pve(both: Both) -> None:
    """PVE keeps that beginning to itself."""
    roles = [change.target for change in both.wanted().changes if change.target.startswith("/access/roles/")]
    assert roles and not [role for role in roles if role.rpartition("/")[2].lower().startswith("pve")]


def test_a_token_is_granted_what_its_user_is(both: Both) -> None:
    """With privilege separation both need the entry."""
    both.apply(both.wanted())
    acl = both.world.state["acl"]
    users = {(row["path"], row["roleid"]) for row in acl if row["ugid"] == "runbook-csi@pve"}
    tokens = {(row["path"], row["roleid"]) for row in acl if row["ugid"] == "runbook-csi@pve!csi"}
    assert users == tokens == {("/pool/runbook", "Runbook-csi-machines"), ("/storage/local-lvm", "Runbook-csi-disks")}


def test_a_role_with_other_privileges_is_put_right(both: Both) -> None:
    """The diff shows what comes and what goes, and undo writes back what was there."""
    both.apply(both.wanted())
    both.world.state["roles"]["Runbook-exporter-all"] = "Permissions.Modify,Sys.Audit"
    (change,) = both.wanted(LATER).changes
    assert change.action == "update" and change.before == {"privs": "Permissions.Modify,Sys.Audit"}
    assert change.after == {"privs": "Datastore.Audit,Sys.Audit,VM.Audit"}
    assert change.undo and change.undo["params"] == change.before


def test_a_secret_is_kept_by_reference_and_nowhere_else(both: Both) -> None:
    """0600 under .secrets/<site>/, readable by its reference; neither journal nor any text has it."""
    both.apply(both.wanted())
    file = both.root / ".secrets" / "lab" / "csi.json"
    kept = json.loads(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert kept["token_id"] == "runbook-csi@pve!csi"
    assert prepare.kept_token(site(), "csi", root=both.root) == (kept["token_id"], kept["token_secret"])
    assert kept["token_secret"] not in both.journal.path.read_text()
    assert "canary" not in both.journal.path.read_text()
    assert redact(f"x {kept['token_secret']} y") == "x ‹redacted› y"


def test_a_token_without_its_secret_is_made_anew_with_its_grants(both: Both) -> None:
    """The secret is shown once; a kill between the answer and the file leaves a token nobody can use."""
    both.apply(both.wanted())
    (both.root / ".secrets" / "lab" / "ccm.json").unlink()
    again = both.wanted(LATER)
    assert [(change.action, change.target.split("/")[2].split()[0]) for change in again.changes] == [
        ("delete", "users"),
        ("create", "users"),
        ("create", "acl"),
        ("create", "acl"),
    ]
    both.apply(again)
    assert both.wanted(LATER).changes == ()


def test_a_disabled_user_is_enabled_again(both: Both) -> None:
    """A disabled user's token is refused."""
    both.apply(both.wanted())
    both.world.state["users"]["runbook-capmox@pve"]["enable"] = 0
    assert [change.summary for change in both.wanted(LATER).changes] == ["User enabled again"]


def test_the_template_is_imported_as_machines_need_it(both: Both) -> None:
    """Agent, cloud-init drive, virtio-scsi-single, serial console and a modern boot order."""
    both.apply(both.wanted())
    vm = both.world.state["guests"]["9000"]
    assert vm["scsi0"] == "local-lvm:0,import-from=local:import/noble-server-cloudimg-amd64.qcow2,discard=on,iothread=1"
    assert (vm["scsihw"], vm["boot"], vm["ide2"], vm["serial0"], vm["agent"], vm["template"]) == (
        "virtio-scsi-single",
        "order=scsi0",
        "local-lvm:cloudinit",
        "socket",
        "enabled=1",
        1,
    )


def test_the_image_is_verified_by_its_checksum(both: Both) -> None:
    """PVE checks what it downloads."""
    (change,) = [change for change in both.wanted().changes if "download-url" in str(change.request)]
    assert change.request["params"]["checksum"] == "ab" * 32
    assert change.request["params"]["checksum-algorithm"] == "sha256"


def test_a_storage_learns_to_take_images(both: Both) -> None:
    """Storages of before 8.3 do not name the content type."""
    (change,) = [change for change in both.wanted().changes if change.target == "/storage/local"]
    assert change.before == {"content": "backup,iso,vztmpl"} and change.after == {"content": "backup,import,iso,vztmpl"}


def test_a_template_that_is_there_is_left_as_it_is(both: Both) -> None:
    """Whoever made it."""
    both.world.state["guests"]["9000"] = {"name": "golden", "template": 1}
    wanted = prepare.template(both.pve, site(cloud_image=None), RUN)
    assert wanted.changes == () and wanted.unchanged == ("template 9000 golden on pve1",)


@pytest.mark.parametrize(
    ("guest", "actions"),
    [
        ({"tags": f"runbook-{RUN.lower()}", "scsi0": "local-lvm:vm-9000-disk-0"}, ["update"]),
        ({"tags": f"runbook-{RUN.lower()}"}, ["delete", "update", "create", "create", "update"]),
    ],
)
def test_a_half_made_template_is_finished_or_made_anew(both: Both, guest: dict[str, Any], actions: list[str]) -> None:
    """A run that was killed between import and conversion, or in the import."""
    both.world.state["guests"]["9000"] = guest
    assert [change.action for change in prepare.template(both.pve, site(), RUN).changes] == actions


@pytest.mark.parametrize(
    ("guest", "problem"),
    [
        ({"name": "accounting"}, "was not made by the runbook"),
        ({"tags": f"runbook-{RUN.lower()}", "lock": "create"}, "it is locked (create)"),
    ],
)
def test_a_vm_that_is_in_the_way_is_a_problem_and_no_change(both: Both, guest: dict[str, Any], problem: str) -> None:
    """Nothing of somebody else's is touched."""
    both.world.state["guests"]["9000"] = guest
    wanted = prepare.template(both.pve, site(), RUN)
    assert wanted.changes == () and problem in wanted.problems[0]
    assert [finding.status for finding in checks.preparation.nothing_stands_in_the_way(wanted)] == [Status.FAIL]


def test_no_image_and_no_template_is_a_problem(both: Both) -> None:
    """The finding names the key of the parameters."""
    wanted = prepare.template(both.pve, site(cloud_image=None), RUN)
    assert "names.cloud_image" in wanted.problems[0]


def test_the_namespace_is_restricted_and_bounded(both: Both) -> None:
    """Pod Security restricted, and a quota."""
    both.apply(prepare.namespace(both.kube, site(), RUN))
    labels = both.world.state["objects"]["/api/v1/namespaces/runbook-test"]["metadata"]["labels"]
    quota = both.world.state["objects"]["/api/v1/namespaces/runbook-test/resourcequotas/runbook"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert quota["spec"]["hard"]["pods"] == "20"


def test_a_quota_that_was_changed_is_shown_and_put_right(both: Both) -> None:
    """The diff comes from what server-side apply would do."""
    both.apply(prepare.namespace(both.kube, site(), RUN))
    both.world.state["objects"]["/api/v1/namespaces/runbook-test/resourcequotas/runbook"]["spec"]["hard"]["pods"] = "9"
    wanted = prepare.namespace(both.kube, site(), LATER)
    rows = Plan("lab", wanted.changes, LATER).diff()
    assert [(row.field, row.before, row.after) for row in rows] == [("spec.hard.pods", "9", "20")]


def test_test_volumes_are_allocated_listed_and_freed(both: Both) -> None:
    """The proof of Sprint 1.2: they show up in the listing, and are gone after the clean-up."""
    wanted = prepare.test_volumes(both.pve, site(), RUN, storages=proxmox.storages(both.pve))
    assert {change.kind for change in wanted.changes} == {ChangeKind.BORROW}
    both.apply(wanted)
    listed = proxmox.volumes(both.pve, "pve1", "local-lvm")
    assert [row.volid for row in listed] == [f"local-lvm:vm-9199-runbook-{RUN.lower()}"]
    report = sweep.clean_up(both.journal, both.executors, run=RUN)
    assert report.clean and proxmox.volumes(both.pve, "pve1", "local-lvm") == []


def test_volumes_on_file_storages_are_named_like_files(both: Both) -> None:
    """A directory storage wants the format as suffix and keeps them in a folder of their VM."""
    both.world.state["storages"]["local"]["content"] = "images,iso"
    chosen = site(disk_storage="local", iso_storage="local")
    both.apply(prepare.test_volumes(both.pve, chosen, RUN, storages=proxmox.storages(both.pve)))
    volid = both.world.state["volumes"]["local"][0]["volid"]
    assert volid == f"local:9199/vm-9199-runbook-{RUN.lower()}.raw"
    assert sweep.clean_up(both.journal, both.executors, run=RUN).clean
    assert both.world.state["volumes"]["local"] == []


def test_refused_tokens_are_borrowed_with_their_secrets(both: Both) -> None:
    """An expired token and one of a disabled user exist while they are tried, and their files no longer."""
    both.apply(prepare.refused_tokens(both.pve, site(), RUN))
    state = both.world.state["users"]
    assert state["runbook-expired-4f2a@pve"]["tokens"]["refused"]["expire"] == 1
    assert state["runbook-disabled-4f2a@pve"]["enable"] == 0
    assert prepare.kept_token(site(), "refused-expired", root=both.root)[0] == "runbook-expired-4f2a@pve!refused"
    assert sweep.clean_up(both.journal, both.executors, run=RUN).clean
    assert set(both.world.state["users"]) == {"root@pam"}
    with pytest.raises(SecretError):
        prepare.kept_token(site(), "refused-expired", root=both.root)


def storage(name: str, content: str, free: int, node: str = "pve1", **fields: Any) -> Storage:
    """One storage on one node."""
    usual: dict[str, Any] = {"type": "dir", "active": True, "enabled": True, "shared": False}
    return Storage(node, name, content=tuple(content.split(",")), available_bytes=free, **{**usual, **fields})


def test_open_storages_are_chosen_where_every_node_has_them() -> None:
    """The first for ISO images, the largest for disks; one that a node lacks is no choice."""
    rows = [
        storage("big", "images,iso", 900),
        *(
            storage(name, "images,iso", free, node)
            for name, free in (("a", 10), ("b", 50))
            for node in ("pve1", "pve2")
        ),
    ]
    names = prepare.with_storages(site(), rows).names
    assert (names.iso_storage, names.disk_storage) == ("a", "b")


def test_a_node_without_a_storage_for_disks_is_one_problem(both: Both) -> None:
    """As an installer may leave it; said once, with what to do."""
    del both.world.state["storages"]["local-lvm"]
    wanted = both.wanted()
    assert [problem.partition(":")[0] for problem in wanted.problems] == ["names.disk_storage"]
    assert "add `images`" in wanted.problems[0]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (storage("local", "images", 1, active=False), "it is not active"),
        (storage("local", "images", 1, enabled=False), "it is disabled"),
        (storage("local", "vztmpl", 1), "lack iso"),
        (storage("other", "iso", 1), "no such storage"),
    ],
)
def test_a_storage_that_cannot_serve_says_why(row: Storage, problem: str) -> None:
    """One finding per purpose and node."""
    uses = prepare.storage_uses([row], site(iso_storage="local", disk_storage="local"))
    assert problem in uses[0].problem
    assert checks.preparation.every_purpose_has_a_storage(uses)[0].status is Status.FAIL


def test_privileges_want_the_storages_named() -> None:
    """Rights on a storage nobody chose would be rights on all."""
    with pytest.raises(UsageError, match="with_storages"):
        privileges.account("csi", site(), "9.2.11")


def test_roles_that_meet_on_one_path_become_one() -> None:
    """ISO images and disks on one storage."""
    chosen = site(iso_storage="local", disk_storage="local")
    paths = [grant.path for grant in privileges.account("capmox", chosen, "9").grants]
    assert len(paths) == len(set(paths))
    assert set(privileges.needs("capmox", chosen, "9")["/storage/local"]) == {
        "Datastore.Allocate",
        "Datastore.AllocateSpace",
        "Datastore.AllocateTemplate",
        "Datastore.Audit",
    }


def test_pveum_says_the_same_as_the_changes() -> None:
    """One line a role, user, token and entry, quoted for a shell."""
    chosen = site(iso_storage="local", disk_storage="local-lvm")
    lines = privileges.pveum([privileges.account("exporter", chosen, "9.2.11")]).splitlines()
    assert lines == [
        "# Metrics exporter (prometheus-pve-exporter)",
        "pveum role add Runbook-exporter-all --privs Datastore.Audit,Sys.Audit,VM.Audit",
        "pveum user add runbook-exporter@pve",
        "pveum user token add runbook-exporter@pve exporter --privsep 1",
        "pveum acl modify / --roles Runbook-exporter-all --users runbook-exporter@pve "
        "--tokens 'runbook-exporter@pve!exporter' --propagate 1",
    ]


def test_every_privilege_is_known_to_its_generation(oracle: Path) -> None:
    """The real 8.4 and 9.2 know each name that a role would hold (their Administrator role holds all)."""
    chosen = site(iso_storage="local", disk_storage="local-lvm")
    for version, name in (("8.4.21", "sweep-8.4.21.jsonl"), ("9.2.11", "sweep-9.2.11-cluster.jsonl")):
        rows = [json.loads(line) for line in (oracle / "proxmox" / name).read_text().split("\n") if line]
        (roles,) = [row["json"]["data"] for row in rows if row["path"].endswith("/access/roles")]
        known = {name for role in roles for name in role["privs"].split(",")}
        held = {p for entry in privileges.accounts(chosen, version) for grant in entry.grants for p in grant.privileges}
        assert held <= known


def test_the_site_without_leave_lists_what_it_would_do(both: Both) -> None:
    """A plan is made on read-only rights, and sends nothing."""
    both.wanted()
    assert both.world.sent == []


def test_the_names_are_the_sites_own() -> None:
    """A second site on one Proxmox VE keeps apart by its prefix."""
    chosen = site(prefix="blue", roles_prefix="Blue", user="blue@pve", iso_storage="a", disk_storage="b")
    assert privileges.account("capmox", chosen, "9").user == "blue-capmox@pve"
    assert privileges.account("runbook", chosen, "9").token_id == "blue@pve!runbook"
    assert prepare.secret_reference(SimpleNamespace(name="x"), "csi") == "file:.secrets/x/csi.json#token_secret"
