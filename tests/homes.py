"""A project of one's own in a temporary folder: the real notebooks, a lab, and clients that are not ours.

What is asked of both systems here goes through proxmoxer and the official Kubernetes client as they are, so that the
runbook's word about itself is never its own proof.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runbook_lib.lab import control
from runbook_lib.model import Run
from runbook_lib.results import read_run

ROOT = Path(__file__).resolve().parent.parent
RUNBOOK = [sys.executable, "-c", "from runbook_lib.cli import main; main()"]
LONGEST_SECONDS = 180


@dataclass(frozen=True)
class Home:
    """A folder with notebooks/, parameters/ and the lab of its site `lab`."""

    root: Path

    @property
    def lab(self) -> Path:
        """Where the lab lies."""
        return self.root / ".lab"

    @property
    def environment(self) -> dict[str, str]:
        """What a process of this project is started with."""
        return {**os.environ, "RUNBOOK_HOME": str(self.root), "NO_COLOR": "1", "COLUMNS": "200"}

    def runbook(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A finished `runbook …` of this project."""
        return subprocess.run(
            [*RUNBOOK, *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A `runbook …` that leads a process group of its own and is still running."""
        return subprocess.Popen(
            [*RUNBOOK, *arguments],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def folders(self) -> list[Path]:
        """The folders of the runs, the oldest first."""
        return sorted(path.parent for path in self.root.glob("outputs/lab/*/run.json"))

    def runs(self) -> list[Run]:
        """The runs, the oldest first."""
        return [read_run(folder) for folder in self.folders()]

    def up(self) -> None:
        """Start the lab before the first run does."""
        settings = yaml.safe_load((self.root / "parameters" / "lab.yaml").read_text(encoding="utf-8"))["lab"]
        control.up(self.lab, scenario=settings["scenario"], scale=settings["scale"])

    def down(self) -> None:
        """Stop the lab, if there is one."""
        control.down(self.lab)


def make(root: Path, *, scenario: str = "healthy", scale: float = 60, **parameters: Any) -> Home:
    """A project in the folder: the notebooks of the checkout, and its lab site with these parameters on top."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (root / "parameters").mkdir()
    site = yaml.safe_load((ROOT / "parameters" / "lab.yaml").read_text(encoding="utf-8"))
    site |= {"lab": {"scenario": scenario, "scale": scale}, **parameters}
    (root / "parameters" / "lab.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")
    return Home(root)


# --- clients that are not ours ---------------------------------------------------------------------------


def proxmox(home: Home) -> Any:
    """Plain proxmoxer as root@pam."""
    from proxmoxer import ProxmoxAPI

    where = control.connection(home.lab).proxmox
    api = ProxmoxAPI(
        where.url.removeprefix("https://"), user=where.username, password=where.password, verify_ssl=where.ca_file
    )
    api._store["session"].trust_env = False
    return api


def kubernetes(home: Home) -> Any:
    """The official client's core API as cluster-admin."""
    from kubernetes import client, config

    where = control.connection(home.lab).kubernetes
    return client.CoreV1Api(config.new_client_from_config(where.kubeconfig))


def inventory(home: Home) -> set[str]:
    """Everything on both sides that a run could have made, by name, free of run ids and times."""
    return _on_proxmox(proxmox(home)) | _on_kubernetes(kubernetes(home))


def _on_proxmox(pve: Any) -> set[str]:
    found = {f"pool {row['poolid']}" for row in pve.pools.get()}
    found |= {f"guest {row['vmid']}" for row in pve.cluster.resources.get(type="vm")}
    found |= {f"role {row['roleid']}: {row.get('privs', '')}" for row in pve.access.roles.get()}
    found |= {f"acl {row['path']} {row['type']} {row['ugid']} {row['roleid']}" for row in pve.access.acl.get()}
    for user in pve.access.users.get():
        found.add(f"user {user['userid']}")
        found |= {f"token {user['userid']}!{row['tokenid']}" for row in pve.access.users(user["userid"]).token.get()}
    for node in (row["node"] for row in pve.nodes.get() if row["status"] == "online"):
        found |= {f"interface {node} {row['iface']}" for row in pve.nodes(node).network.get()}
        for storage in pve.nodes(node).storage.get(enabled=1):
            if storage.get("active"):
                volumes = pve.nodes(node).storage(storage["storage"]).content.get()
                found |= {f"volume {node} {row['volid']}" for row in volumes}
    return found


def _on_kubernetes(kube: Any) -> set[str]:
    lists = {
        "pod": kube.list_pod_for_all_namespaces,
        "quota": kube.list_resource_quota_for_all_namespaces,
        "claim": kube.list_persistent_volume_claim_for_all_namespaces,
        "service": kube.list_service_for_all_namespaces,
    }
    found = {f"namespace {thing.metadata.name}" for thing in kube.list_namespace().items}
    for kind, ask in lists.items():
        found |= {f"{kind} {thing.metadata.namespace}/{thing.metadata.name}" for thing in ask().items}
    return found


def explained(entry: str, installed: set[str]) -> bool:
    """Whether one of the installed targets is this thing."""
    kind, name = entry.split(" ", 1)
    if kind == "acl":
        path, _, who, _ = name.split()
        target = f"/access/acl{'' if path == '/' else path}"
        return any(each.split() == [target, each.split()[-1]] and each.split()[-1] in who for each in installed)
    space, _, _ = name.partition("/")
    if kind in {"pod", "service"} and f"v1/Namespace/{space}" in installed:
        return True  # what was installed there made it
    user, _, token = name.partition("!")
    targets = {
        "pool": f"/pools/{name}",
        "role": f"/access/roles/{name.partition(':')[0]}",
        "user": f"/access/users/{name}",
        "token": f"/access/users/{user}/token/{token}",
        "namespace": f"v1/Namespace/{name}",
        "quota": f"v1/ResourceQuota/{name}",
    }
    return targets.get(kind) in installed


# --- what lies on the disk -------------------------------------------------------------------------------


def secrets(home: Home) -> dict[str, str]:
    """Every secret value of the project by where it lies: the lab's own, and those of the tokens made by steps."""
    found: dict[str, str] = {}
    for path in [home.lab / "secrets.json", *sorted((home.root / ".secrets").rglob("*.json"))]:
        data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values = {key: text for key, text in data.items() if key != "token_id"}
        found |= {f"{path.name}#{key}": str(text) for key, text in values.items()}
    return found


def files(*folders: Path) -> list[Path]:
    """Every file below the folders."""
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


# --- one whole run, shared by many tests -----------------------------------------------------------------


@dataclass
class Watch:
    """What could be seen from outside while processes of a project ran."""

    arguments: set[bytes] = field(default_factory=set)
    environments: set[bytes] = field(default_factory=set)
    secrets: dict[str, str] = field(default_factory=dict)


@contextmanager
def watching(home: Home, every: float = 0.05) -> Iterator[Watch]:
    """Look, while inside, at arguments and environment of the project's processes and at the secrets that come by."""
    seen, over = Watch(), threading.Event()

    def look() -> None:
        while not over.wait(every):
            _look_at_processes(home, seen)
            with suppress(OSError, ValueError):  # a file that is just being written, or taken away
                seen.secrets |= secrets(home)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _look_at_processes(home: Home, seen: Watch) -> None:
    mark = str(home.root).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            if mark in arguments + environment:
                seen.arguments.add(arguments)
                seen.environments.add(environment)


@dataclass(frozen=True)
class Story:
    """What was there before, what three runs did, what was there after the first two."""

    home: Home
    before: set[str]
    first: subprocess.CompletedProcess[str]
    seen: Watch
    between: set[str]
    second: subprocess.CompletedProcess[str]
    after: set[str]
    third: subprocess.CompletedProcess[str]

    @property
    def folder(self) -> Path:
        """Of the first run."""
        return self.home.folders()[0]

    @property
    def run(self) -> Run:
        """The first run."""
        return self.home.runs()[0]

    @property
    def again(self) -> Run:
        """The second run: 11 to 13 once more, in spawned kernels."""
        return self.home.runs()[1]

    @property
    def forked(self) -> Run:
        """The third run: the same as the second, in forked kernels."""
        return self.home.runs()[2]

    @property
    def public(self) -> Path:
        """The pages of the first run, put aside: a later run publishes in their place."""
        return self.home.root / "published"


def live(root: Path) -> Iterator[Story]:
    """A whole run with pages, then the first phase again with either isolation, on what the whole run left."""
    home = make(root)
    home.up()
    try:
        before = inventory(home)
        with watching(home) as seen:
            first = home.runbook("run", "--pages")
        shutil.copytree(home.root / "outputs" / "public", home.root / "published")
        seen.secrets |= secrets(home)
        between = inventory(home)
        second = home.runbook("run", "--isolation", "spawn", "--step", "1x", "--format", "json")
        after = inventory(home)
        third = home.runbook("run", "--step", "1x")
        yield Story(home, before, first, seen, between, second, after, third)
    finally:
        home.down()
