"""What is planned for step 41, what the rules promise, and how logs and packets are judged. No cluster."""

from __future__ import annotations

from typing import Any

import pytest

from runbook_lib import reachability, staging
from runbook_lib.checks import policies
from runbook_lib.errors import WaitTimeout
from runbook_lib.facts import CiliumSettings, Cluster, ClusterMember, Connection, Enforcement, PairReading
from runbook_lib.kubernetes_policies import cilium_settings, ovn_settings
from runbook_lib.kubernetes_reading import Reader
from runbook_lib.model import Status

CLUSTER = Cluster("lab", True, (ClusterMember("pve1", 1, "10.0.0.1", True, True),))


def connection(relation: str, outcome: str, *, phase: str = "as shipped", source: str = "a on w1") -> Connection:
    """One connection with what the rules expect of it."""
    hope = reachability.expected(relation, phase)
    return Connection(phase, relation, source, "w1", "there", "10.0.0.9:1", "TCP", "IPv4", hope, outcome, "why")


def statuses(findings: list[Any]) -> list[Status]:
    """The findings' statuses in their order."""
    return [finding.status for finding in findings]


@pytest.mark.parametrize(
    ("relation", "phase", "marked", "hope"),
    [
        ("same tenant", "as shipped", False, "open"),
        ("same tenant", "plain deny", False, "open"),
        ("same tenant", "deny", True, "closed"),
        ("same tenant", "deny but for a label", False, "closed"),
        ("same tenant", "deny but for a label", True, "open"),
        ("sibling", "as shipped", False, "closed"),
        ("child to parent", "as shipped", False, "closed"),
        ("API server", "as shipped", False, "closed"),
        ("API server, labelled", "as shipped", False, "open"),
        ("Proxmox VE API", "as shipped", False, "open"),
        ("Proxmox VE API", "egress rule", False, "closed"),
        ("DNS", "egress rule", False, "open"),
    ],
)
def test_the_rules_promise(relation: str, phase: str, marked: bool, hope: str) -> None:
    """Each relation is open or closed, before and after the policies of the step."""
    assert reachability.expected(relation, phase, labelled_source=marked) == hope


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ("", "connected"),
        ("TIMEOUT", "timeout"),
        ("TIMEOUT: read udp 10.1.1.1:4->10.1.1.2:8081: i/o timeout", "timeout"),
        ("REFUSED", "refused"),
        ("DNS: lookup a: no such host", "dns"),
        ("OTHER: connect: no route to host", "other"),
        ("sh: /agnhost: not found", "not tried"),
    ],
)
def test_a_line_of_the_log_tells_how_it_ended(told: str, outcome: str) -> None:
    """Nothing means connected; what is no word of agnhost's is no result."""
    assert reachability.outcome_of(told)[0] == outcome


def test_a_sibling_that_answers_fails_and_names_the_node() -> None:
    """The source's node is the one to look at."""
    found = policies.siblings_are_apart(
        [connection("sibling", "timeout"), connection("sibling", "connected", source="a on w2")]
    )
    assert statuses(found) == [Status.PASS, Status.FAIL]
    assert "a on w2" in found[1].subject


def test_a_refusal_means_that_the_way_is_open() -> None:
    """Whoever is refused was let through."""
    assert statuses(policies.siblings_are_apart([connection("sibling", "refused")])) == [Status.FAIL]


def test_what_was_not_tried_is_never_a_pass() -> None:
    """Neither where closed was expected nor where open was, and the reason is told."""
    rows = [connection("sibling", "not tried"), connection("same tenant", "not tried")]
    found = policies.siblings_are_apart(rows) + policies.tenant_is_whole(rows)
    assert statuses(found) == [Status.SKIP, Status.SKIP]
    assert all("why" in finding.message for finding in found)


def test_the_missing_label_of_the_api_server_is_found() -> None:
    """A labelled pod that does not get through fails, and so does one without that does."""
    rows = [connection("API server", "connected"), connection("API server, labelled", "timeout", source="a, labelled")]
    assert statuses(policies.api_server_wants_the_label(rows)) == [Status.FAIL, Status.FAIL]


def test_blocked_dns_is_found() -> None:
    """A name that is not found is a closed way."""
    assert statuses(policies.dns_answers_tenants([connection("DNS", "dns")])) == [Status.FAIL]


@pytest.mark.parametrize(("outcome", "status"), [("connected", Status.WARN), ("timeout", Status.PASS)])
def test_proxmox_in_reach_of_tenants_is_a_warning(outcome: str, status: Status) -> None:
    """It is how the platform comes, and it is told."""
    assert statuses(policies.proxmox_is_closed([connection("Proxmox VE API", outcome)])) == [status]


def test_a_policy_that_closes_nothing_fails() -> None:
    """What a policy denies and packets do nevertheless is not enforced."""
    rows = [connection("same tenant", "connected", phase="deny"), connection("DNS", "connected", phase="deny")]
    assert statuses(policies.policies_are_enforced(rows)) == [Status.FAIL]


@pytest.mark.parametrize(("seconds", "status"), [(0.4, Status.PASS), (30.0, Status.WARN), (None, Status.FAIL)])
def test_enforcement_has_a_time(seconds: float | None, status: Status) -> None:
    """Soon, late, never."""
    assert statuses(policies.policy_is_soon_in_force(Enforcement("deny", seconds))) == [status]


@pytest.mark.parametrize(("full", "status"), [(True, Status.PASS), (False, Status.FAIL), (None, Status.SKIP)])
def test_large_frames_are_judged_apart_from_small_ones(full: bool | None, status: Status) -> None:
    """Lost, passed, or not tried."""
    assert statuses(policies.full_frames_pass([PairReading("w1", "w2", 1400, (0.5,), full)])) == [status]


class Fixed(Reader):
    """A cluster of a few objects."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self.objects = objects

    def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        """The object, as it is written here."""
        from runbook_lib.errors import NotFound

        if path not in self.objects:
            raise NotFound(path, "not here")
        found: dict[str, Any] = self.objects[path]
        return found


CONFIG = "/api/v1/namespaces/cozy-cilium/configmaps/cilium-config"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"enable-policy": "default"}, Status.PASS),
        ({"enable-policy": "never"}, Status.FAIL),
        ({"enable-policy": "default", "policy-audit-mode": "true"}, Status.FAIL),
    ],
)
def test_cilium_that_only_looks_on_is_found(data: dict[str, str], status: Status) -> None:
    """Enforcement off and audit mode both let everything through."""
    assert statuses(policies.cilium_enforces(cilium_settings(Fixed({CONFIG: {"data": data}})))) == [status]


def test_without_cilium_nothing_enforces() -> None:
    """No configuration is no enforcement."""
    assert statuses(policies.cilium_enforces(cilium_settings(Fixed({})))) == [Status.FAIL]


def test_defaults_of_cilium_are_its_own() -> None:
    """A key that is not there is what the agent takes for default."""
    found = cilium_settings(Fixed({CONFIG: {"data": {"enable-wireguard": "true"}}}))
    assert isinstance(found, CiliumSettings)
    assert (found.hubble, found.encryption, found.families) == (False, "wireguard", ("IPv4",))


def test_kube_ovn_that_judges_too_is_a_warning() -> None:
    """--enable-np is on where nobody switches it off."""
    spec = {"template": {"spec": {"containers": [{"args": ["--enable-lb=false"]}]}}}
    objects = {"/apis/apps/v1/deployments": {"items": [{"spec": spec}]}, "/apis/apps/v1/daemonsets": {"items": []}}
    found = policies.kube_ovn_keeps_out(ovn_settings(Fixed(objects)))
    assert statuses(found) == [Status.WARN, Status.PASS]


def test_the_closing_policy_denies_every_member() -> None:
    """Of all tenants without a namespace, of one with it; none where no address is known."""
    wide, own = reachability.closing_policy(CLUSTER), reachability.closing_policy(CLUSTER, "tenant-x")
    assert wide is not None and own is not None
    assert (wide["kind"], own["kind"]) == ("CiliumClusterwideNetworkPolicy", "CiliumNetworkPolicy")
    assert wide["spec"]["egressDeny"][0]["toCIDR"] == ["10.0.0.1/32"]
    assert reachability.closing_policy(Cluster(None, None, ())) is None


class Waiting:
    """A cluster in which one object has an address and another never comes."""

    def wait(self, path: str, predicate: Any, timeout: float) -> None:
        """Never comes to any state."""
        raise WaitTimeout(path, "not yet")

    def get(self, path: str) -> dict[str, Any]:
        """A pod of two families."""
        return {"status": {"podIPs": [{"ip": "10.1.1.1"}, {"ip": "fd00::1"}]}}


def test_placeholders_are_filled_when_a_change_is_sent() -> None:
    """Each with the address of its family."""
    request = {"manifest": {"a": "<x>:1 [<y>]"}, "fill": {"x": ["/pod", "IPv4"], "y": ["/pod", "IPv6"]}}
    assert staging.prepared(Waiting(), request)["manifest"] == {"a": "10.1.1.1:1 [fd00::1]"}


@pytest.mark.parametrize("until", ["ready", "running", "ended"])
def test_a_state_that_never_comes_stops_nothing(until: str) -> None:
    """What is tried then is the finding."""
    request = {"manifest": {}, "after": [{"path": "/x", "until": until, "seconds": 0}]}
    assert staging.prepared(Waiting(), request) is request


def test_a_thing_that_must_be_there_stops_the_plan() -> None:
    """Nothing can be made in a namespace that never came."""
    with pytest.raises(WaitTimeout):
        staging.prepared(Waiting(), {"manifest": {}, "after": [{"path": "/x", "until": "there"}]})
