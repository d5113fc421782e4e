"""The firewall at every level through proxmoxer: options, ordered rules, groups, aliases, IP sets, references."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ProxmoxAPI

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import login, refusal, start  # lies beside this file

LEVELS: dict[str, Callable[[Any], Any]] = {
    "cluster": lambda pve: pve.cluster.firewall,
    "node": lambda pve: pve.nodes("pve1").firewall,
    "vm": lambda pve: pve.nodes("pve3").qemu(120).firewall,
    "ct": lambda pve: pve.nodes("pve1").lxc(130).firewall,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick lab."""
    folder = start(tmp_path_factory.mktemp("firewall"))
    yield folder
    control.down(folder)


@pytest.fixture
def pve(lab: Path) -> Any:
    """root@pam on that lab."""
    return login(lab)


@pytest.mark.parametrize("level", LEVELS)
def test_rules_are_kept_in_order_at_every_level(pve: Any, level: str) -> None:
    """A new one is the first; they move, change and go by position, guarded by the list's digest."""
    rules = LEVELS[level](pve).rules
    for port in ("22", "80", "443"):
        rules.post(type="in", action="accept", proto="tcp", dport=port, enable=1)
    rows = rules.get()
    assert [(row["pos"], row["dport"], row["action"]) for row in rows] == [
        (0, "443", "ACCEPT"),
        (1, "80", "ACCEPT"),
        (2, "22", "ACCEPT"),
    ]
    rules(2).put(moveto=0)
    assert [row["dport"] for row in rules.get()] == ["22", "443", "80"]
    rules(0).put(source="10.0.0.0/8", comment="admins")
    assert {"source": "10.0.0.0/8", "ipversion": 4, "comment": "admins"}.items() <= rules(0).get().items()
    stale = refusal(lambda: rules(0).delete(digest=rows[0]["digest"]))
    assert "detected modified configuration" in str(stale)
    for _ in range(3):
        rules(0).delete()
    assert "no rule at position 0" in str(refusal(rules(0).get))


@pytest.mark.parametrize(
    ("rule", "key", "says"),
    [
        ({"type": "in", "action": "MAYBE"}, "action", "unknown action 'MAYBE'"),
        ({"type": "in", "action": "ACCEPT", "macro": "Nonsense"}, "macro", "unknown macro 'Nonsense'"),
        (
            {"type": "in", "action": "ACCEPT", "dport": "22"},
            "proto",
            "missing property - 'dport' requires this property",
        ),
        ({"type": "in", "action": "ACCEPT", "dport": "22", "proto": "icmp"}, "dport", "does not support ports"),
        ({"type": "group", "action": "nobody"}, "action", "no such security group"),
        ({"type": "in", "action": "ACCEPT", "source": "10.0.0.300"}, "source", "invalid format"),
        ({"type": "in", "action": "ACCEPT", "source": "+unknown"}, "source", "no such ipset 'unknown'"),
        ({"type": "sideways", "action": "ACCEPT"}, "type", "does not have a value in the enumeration"),
        ({"type": "in"}, "action", "property is missing and it is not optional"),
    ],
)
def test_a_bad_rule_is_refused_by_name(pve: Any, rule: dict[str, str], key: str, says: str) -> None:
    """400 with the parameter and the server's complaint."""
    refused = refusal(lambda: pve.cluster.firewall.rules.post(**rule))
    assert refused.status_code == 400
    assert says in refused.errors[key]


@pytest.mark.parametrize("level", LEVELS)
def test_options_are_set_and_deleted(pve: Any, level: str) -> None:
    """A digest guards them too."""
    options = LEVELS[level](pve).options
    options.put(enable=1)
    row = options.get()
    assert row["enable"] == 1
    assert "detected modified" in str(refusal(lambda: options.put(enable=0, digest="0" * 40)))
    options.put(delete="enable", digest=row["digest"])
    assert "enable" not in options.get()


def test_security_groups_hold_rules_of_their_own(pve: Any) -> None:
    """A group is made, filled, used, renamed; only an empty one goes."""
    groups = pve.cluster.firewall.groups
    groups.post(group="webservers", comment="the web")
    assert "already exists" in str(refusal(lambda: groups.post(group="webservers")))
    groups("webservers").post(type="in", action="ACCEPT", macro="HTTPS")
    pve.nodes("pve1").firewall.rules.post(type="group", action="webservers", enable=1)
    assert "is not empty" in str(refusal(groups("webservers").delete))
    groups.post(group="web", rename="webservers")
    assert groups.get()[0]["comment"] == "the web"
    groups("web")(0).delete()
    groups("web").delete()
    assert "no such security group 'web'" in str(refusal(groups("web").get))
    pve.nodes("pve1").firewall.rules(0).delete()


@pytest.mark.parametrize("level", ["cluster", "vm", "ct"])
def test_aliases_and_ip_sets_can_be_referred_to(pve: Any, level: str) -> None:
    """With networks whose slash stands in the path."""
    firewall = LEVELS[level](pve)
    firewall.aliases.post(name="Office", cidr="192.0.2.0/24", comment="us")
    assert "already exists" in str(refusal(lambda: firewall.aliases.post(name="office", cidr="192.0.2.1")))
    assert firewall.aliases("office").get()["ipversion"] == 4
    firewall.ipset.post(name="blocked")
    firewall.ipset("blocked").post(cidr="198.51.100.0/24", nomatch=1)
    assert firewall.ipset("blocked")("198.51.100.0/24").get()["nomatch"] == 1
    assert "is not empty" in str(refusal(firewall.ipset("blocked").delete))
    scope = "dc" if level == "cluster" else "guest"
    refs = {row["ref"] for row in firewall.refs.get()}
    assert {f"{scope}/Office", f"+{scope}/blocked"} <= refs
    firewall.ipset("blocked").delete(force=1)
    firewall.aliases("office").delete()
    assert refusal(firewall.aliases("office").get).errors == {"name": "no such alias"}


def test_a_vnet_filters_what_it_forwards(pve: Any) -> None:
    """Its rules go by `forward` alone; a vnet that is not there has none."""
    assert "sdn vnet 'fwnet' does not exist" in str(refusal(pve.cluster.sdn.vnets("fwnet").firewall.rules.get))
    pve.cluster.sdn.zones.post(type="simple", zone="fwzone")
    pve.cluster.sdn.vnets.post(vnet="fwnet", zone="fwzone")
    firewall = pve.cluster.sdn.vnets("fwnet").firewall
    assert "type" in refusal(lambda: firewall.rules.post(type="in", action="DROP")).errors
    firewall.rules.post(type="forward", action="DROP", enable=1)
    assert firewall.rules.get()[0]["type"] == "forward"


def test_whoever_may_not_modify_is_told_so(pve: Any, lab: Path) -> None:
    """An auditor reads the datacenter's rules and cannot add one."""
    pve.access.users.post(userid="watch@pve", password="watching-1")
    pve.access.acl.put(path="/", users="watch@pve", roles="PVEAuditor")
    where = control.connection(lab).proxmox
    host = where.url.removeprefix("https://")
    other = ProxmoxAPI(host, user="watch@pve", password="watching-1", verify_ssl=where.ca_file)
    other._store["session"].trust_env = False
    assert isinstance(other.cluster.firewall.rules.get(), list)
    refused = refusal(lambda: other.cluster.firewall.rules.post(type="in", action="DROP"))
    assert refused.status_code == 403
    assert "Permission check failed (/, Sys.Modify)" in str(refused)
