"""ACME through proxmoxer: accounts and orders, against a directory that answers and one that does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib.lab import control

sys.path.insert(0, str(Path(__file__).parent))
from proxmox_site import finished, login, refusal, start  # lies beside this file


@pytest.fixture(scope="module", params=[True, False], ids=["reached", "cut off"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Whether the directory answers, and root@pam on a lab in which it is so."""
    folder = start(tmp_path_factory.mktemp("acme"), {"acme": {"reachable": request.param}})
    yield request.param, login(folder)
    control.down(folder)


def test_an_account_is_registered_where_a_directory_answers(site: Any) -> None:
    """Elsewhere the task names the host it could not reach, and there is no account."""
    reached, pve = site
    status = finished(pve, pve.cluster.acme.account.post(contact="ops@example.com"))
    if reached:
        assert pve.cluster.acme.account("default").get()["account"]["contact"] == ["mailto:ops@example.com"]
        assert (
            "already exists" in refusal(lambda: pve.cluster.acme.account.post(contact="a@example.com")).errors["name"]
        )
        assert pve.cluster.acme.meta.get()["termsOfService"] == pve.cluster.acme.tos.get()
    else:
        assert "Can't connect to acme-v02.api.letsencrypt.org:443" in status
        assert pve.cluster.acme.account.get() == [] and "Can't connect to" in str(refusal(pve.cluster.acme.tos.get))


def test_an_ordered_certificate_is_served_until_it_is_revoked(site: Any) -> None:
    """It names the node's domains; it is not ordered twice, nor renewed long before its end."""
    reached, pve = site
    if reached and not pve.cluster.acme.account.get():
        finished(pve, pve.cluster.acme.account.post(contact="ops@example.com"))
    node = pve.nodes("pve2")
    node.config.put(acme="domains=pve2.example.com")
    order = node.certificates.acme.certificate
    status = finished(pve, order.post())
    if not reached:
        assert "Can't connect to" in status and "No current (custom) certificate" in str(refusal(order.delete))
        return
    row = next(row for row in node.certificates.info.get() if row["filename"] == "pveproxy-ssl.pem")
    assert row["san"] == ["pve2.example.com"] and 89 * 86400 <= row["notafter"] - row["notbefore"] <= 90 * 86400
    assert "force" in refusal(order.post).errors and "30 days" in refusal(order.put).errors["force"]
    assert finished(pve, order.put(force=1)) == finished(pve, order.delete()) == "OK"
    assert "pveproxy-ssl.pem" not in [row["filename"] for row in node.certificates.info.get()]


def test_an_account_that_is_not_there_is_named(site: Any) -> None:
    """Neither changed nor deactivated."""
    account = site[1].cluster.acme.account("none")
    says = {"name": "ACME account config file 'none' does not exist."}
    assert refusal(account.delete).errors == refusal(lambda: account.put(contact="a@example.com")).errors == says
