"""The healthy Proxmox site for contract tests: its half of the scenario alone, so that a reset is quick."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from proxmoxer import ProxmoxAPI, ResourceException
from proxmoxer.tools import Tasks

from runbook_lib.lab import control, scenario


def start(folder: Path, changes: Mapping[str, Any] | None = None, *, scale: float = 1200) -> Path:
    """The folder of a lab that holds the healthy cluster, with some of its top keys replaced."""
    given = scenario.load("healthy").proxmox | dict(changes or {})
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump({"proxmox": given}), encoding="utf-8")
    control.up(folder / "lab", scenario=str(file), scale=scale)
    return folder / "lab"


def login(folder: Path) -> Any:
    """A client that is root@pam; certificates come from the lab alone, whatever the environment says."""
    where = control.connection(folder).proxmox
    host = where.url.removeprefix("https://")
    api = ProxmoxAPI(host, user=where.username, password=where.password, verify_ssl=where.ca_file)
    api._store["session"].trust_env = False
    return api


def finished(pve: Any, upid: str) -> str:
    """The exit status of a task once it has ended."""
    status = Tasks.blocking_status(pve, upid, timeout=10, polling_interval=0.02)
    assert status is not None, f"{upid} does not end"
    return str(status["exitstatus"])


def eventually(check: Callable[[], Any], seconds: float = 5) -> Any:
    """What `check` returns once it returns something; a refusal counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if value := check():
                return value
        except ResourceException:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "never became true"
        time.sleep(0.02)


def refusal(call: Callable[[], Any]) -> ResourceException:
    """The refusal a call gets."""
    with pytest.raises(ResourceException) as refused:
        call()
    return refused.value
