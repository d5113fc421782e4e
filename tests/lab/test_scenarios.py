"""Every scenario's Proxmox VE side, read over TLS by the runbook's own facts and judged by its checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook_lib import prepare, proxmox
from runbook_lib.checks import network, sdn, security, storage
from runbook_lib.checks import proxmox as judge
from runbook_lib.lab import control, scenario
from runbook_lib.model import Finding, Status
from runbook_lib.site import ProxmoxEndpoint, Site

NAMES = [name for name in scenario.names() if not name.startswith("fresh-node")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One lab that goes from scenario to scenario."""
    place = tmp_path_factory.mktemp("scenarios") / "lab"
    control.up(place, scenario="healthy", scale=600)
    yield place
    control.down(place)


def findings(folder: Path) -> list[Finding]:
    """What the Proxmox VE checks of the assessment say of the lab as it is."""
    there = control.connection(folder).proxmox
    secret = f"file:{folder}/secrets.json#proxmox_token_secret"
    endpoint = ProxmoxEndpoint(url=there.url, ca_file=str(there.ca_file), token_id=there.token_id, token_secret=secret)
    pve = proxmox.connect(endpoint)
    nodes, guests = proxmox.nodes(pve), proxmox.guests(pve)
    storages, interfaces = proxmox.storages(pve), proxmox.interfaces(pve)
    disks = prepare.with_storages(Site(name="lab", lab={}, emulated=True), storages).names.disk_storage
    return [
        *judge.version_is_supported(proxmox.version(pve)),
        *judge.cluster_is_quorate(proxmox.cluster(pve)),
        *judge.every_node_is_online(nodes),
        *judge.releases_agree(nodes),
        *judge.cpu_has_headroom(nodes, guests),
        *judge.memory_has_headroom(nodes, guests),
        *judge.room_for_the_plan(nodes),
        *judge.largest_node_may_fail(nodes, guests),
        *judge.clocks_agree(proxmox.clocks(pve)),
        *judge.no_task_failed(proxmox.failed_tasks(pve), nodes),
        *judge.no_security_update_waits(proxmox.updates(pve), nodes),
        *judge.templates_are_fit(proxmox.templates(pve)),
        *storage.storage_is_active(storages),
        *storage.storage_has_room(storages),
        *storage.thin_pool_has_room(proxmox.thin_pools(pve)),
        *storage.content_types_are_served(storages),
        *storage.room_for_volumes(storages),
        *network.bridge_is_on_every_node(interfaces),
        *network.bridges_are_vlan_aware(interfaces),
        *network.mtu_agrees(interfaces),
        *network.no_network_change_waits(proxmox.pending_network(pve)),
        *network.bridges_agree(interfaces),
        *network.bridges_have_their_ports(interfaces),
        *network.mtu_holds_to_the_wire(interfaces),
        *network.addresses_are_unique(interfaces),
        *network.machine_pool_is_clear(interfaces, ["10.0.0.150-10.0.0.180"]),
        *network.gateway_is_right(interfaces),
        *sdn.sdn_is_available(proxmox.sdn_status(pve)),
        *sdn.no_sdn_change_waits(proxmox.sdn_objects(pve)),
        *sdn.overlay_mtu_fits(proxmox.sdn_objects(pve), interfaces),
        *storage.storages_agree(storages),
        *storage.snapshots_are_possible(storages),
        *storage.chosen_storage_has_room(storages, disk_storage=disks),
        *storage.fit_for_csi(storages, disk_storage=disks),
        *storage.fit_for_capmox(storages, disk_storage=disks),
        *security.certificates_are_current(proxmox.certificates(pve)),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_scenario_fails_exactly_the_checks_it_names(folder: Path, name: str) -> None:
    """The Proxmox VE checks a scenario names fail or warn in it, and no others do."""
    control.scenario(name, folder)
    given, found = scenario.load(name), findings(folder)
    judged = {finding.check for finding in found}
    for status, wanted in ((Status.FAIL, given.must_fail), (Status.WARN, given.must_warn), (Status.ERROR, ())):
        told = {finding.check: finding.message for finding in found if finding.status is status}
        assert set(told) == {check for check in wanted if check in judged}, told
