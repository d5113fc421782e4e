"""Taking back what was borrowed, and the proof that nothing of it remains, by the journal and without it."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runbook_lib.errors import RunbookError, UnfinishedChange
from runbook_lib.journal import Entry, Journal
from runbook_lib.model import Change, ChangeKind
from runbook_lib.plan import Executor, Marked, Search

log = logging.getLogger(__name__)

GRACE_SECONDS = 3.0
"""A request without a known outcome may still be under way; so young a one is let land before it is looked for."""

USUAL = tuple(
    ("kubernetes", f"v1/{kind}/")
    for kind in ("ConfigMap", "Namespace", "PersistentVolumeClaim", "Pod", "ResourceQuota", "Secret", "Service")
)
"""Kinds that are searched at the end of a step beside those it made; a sweep searches every kind there is."""


@dataclass(frozen=True)
class Undone:
    """One borrowed thing that is gone, and how that was seen."""

    change: str
    system: str
    target: str
    proof: str
    run: str = ""


@dataclass(frozen=True)
class NotUndone:
    """One borrowed thing that could not be taken back, and why."""

    change: str
    system: str
    target: str
    reason: str
    run: str = ""


@dataclass(frozen=True)
class SweepReport:
    """What a clean-up did and what it proved. `clean` only when both systems were looked at and hold nothing."""

    site: str
    run: str  # empty: every run of the site
    undone: tuple[Undone, ...] = ()
    failed: tuple[NotUndone, ...] = ()
    remaining: tuple[Marked, ...] = ()
    installed: tuple[Marked, ...] = ()
    unfinished: tuple[str, ...] = ()  # installs of which nobody wrote how they ended, with what is there now
    unseen: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing borrowed remains, and that was seen and not assumed."""
        return not (self.failed or self.remaining or self.unseen)


def clean_up(
    journal: Journal,
    executors: Mapping[str, Executor],
    *,
    site: str = "",
    run: str = "",
    only: Collection[str] | None = None,
) -> SweepReport:
    """What became of the journal's borrowed things, taken back in reverse order, and what bears the run's mark now.

    `only` limits it to these change ids: a step takes back its own things while another step of the run still uses
    its own. A thing that cannot be taken back does not keep the others from it. May be repeated at any time.
    """
    mine = [entry for entry in journal.open_entries() if only is None or entry.change.id in only]
    undone, failed = _undo_all(mine, journal, executors, run)
    theirs = [entry for entry in journal.open_entries() if only is not None and entry.change.id not in only]
    made = [entry.change for entry in journal.entries() if only is None or entry.change.id in only]
    search, looked_at = _look(executors, run, set(executors), [*((c.system, c.target) for c in made), *USUAL])
    borrowed = tuple(thing for thing in search.things if not thing.kept)
    return SweepReport(
        site=site,
        run=run,
        undone=tuple(undone),
        failed=tuple(failed),
        # While other steps of the run hold things of their own, what bears the mark may be theirs.
        remaining=() if theirs else borrowed,
        installed=tuple(thing for thing in search.things if thing.kept),
        unfinished=tuple(_unfinished(journal.entries(), executors, only)),
        unseen=search.unseen,
        looked_at=tuple(looked_at),
    )


def sweep(
    site: Any, run: str | None = None, clients: Mapping[str, Any] | None = None, *, root: Path | None = None
) -> SweepReport:
    """What dead runs left behind, taken away in reverse order and by its marks, and the proof of it on both systems.

    `run` None means every run of the site; the caller holds the site's lock, so none of them is alive. `clients` are
    connected clients or executors by system; without it both are connected when needed. `root` holds outputs/.
    """
    from runbook_lib.parameters import load_site, project_root

    root = root or project_root()
    site = load_site(site, root=root) if isinstance(site, str | Path) else site
    hands = executors_for(clients or _clients(site), root=root)
    undone: list[Undone] = []
    failed: list[NotUndone] = []
    unfinished: list[str] = []
    for journal in journals(root, site.name, run):
        name = journal.path.parent.name
        taken, stuck = _undo_all(journal.open_entries(), journal, hands, name)
        undone, failed = undone + taken, failed + stuck
        unfinished += _unfinished(journal.entries(), hands, None)
    search, looked_at = _look(hands, run, set(hands), ())
    strays = [thing for thing in search.things if not thing.kept]
    taken, stuck = _undo_strays(strays, hands)
    if strays:
        search, looked_at = _look(hands, run, set(hands), ())
    return SweepReport(
        site=site.name,
        run=run or "",
        undone=(*undone, *taken),
        failed=(*failed, *stuck),
        remaining=tuple(thing for thing in search.things if not thing.kept),
        installed=tuple(thing for thing in search.things if thing.kept),
        unfinished=tuple(unfinished),
        unseen=search.unseen,
        looked_at=tuple(looked_at),
    )


def journals(root: Path, site: str, run: str | None = None) -> list[Journal]:
    """The journals of the site's runs, the latest run first."""
    folder = root / "outputs" / site
    names = [run] if run else sorted((path.name for path in folder.glob("*") if path.is_dir()), reverse=True)
    return [Journal(folder / name / "changes.jsonl") for name in names if (folder / name / "changes.jsonl").exists()]


def executors_for(clients: Mapping[str, Any], *, root: Path) -> Mapping[str, Executor]:
    """An executor a system: of a client, of a function that connects one, or the executor that was given."""
    from runbook_lib.executors import KubernetesExecutor, ProxmoxExecutor

    def made(system: str, given: Any) -> Executor:
        if hasattr(given, "undo"):
            return given
        connect: Callable[[], Any] = given if callable(given) else lambda: given
        return ProxmoxExecutor(connect, root=root) if system == "proxmox" else KubernetesExecutor(connect, root=root)

    return {system: made(system, given) for system, given in clients.items()}


def _undo_all(
    entries: Iterable[Entry], journal: Journal, executors: Mapping[str, Executor], run: str
) -> tuple[list[Undone], list[NotUndone]]:
    undone: list[Undone] = []
    failed: list[NotUndone] = []
    for entry in entries:
        change = entry.change
        _let_it_land(entry)
        try:
            proof = _taken_back(change, executors, run)
        except RunbookError as error:
            log.warning("could not take back %s %s: %s", change.id, change.target, error)
            failed.append(NotUndone(change.id, change.system, change.target, str(error), run))
            continue
        journal.undone(entry.key, proof)
        log.info("took back %s %s: %s", change.id, change.target, proof)
        undone.append(Undone(change.id, change.system, change.target, proof, run))
    return undone, failed


def _taken_back(change: Change, executors: Mapping[str, Executor], run: str) -> str:
    """The proof that the change is taken back. Whoever is to destroy its VMs may be stuck, and is then helped.

    CAPMOX deletes a VM's bootstrap image before the VM, and never gets over an image that is gone already; once
    nobody has the VM's number any more, it lets go.
    """
    hands, undo = executors[change.system], change.undo or {}
    try:
        return hands.undo(change)
    except UnfinishedChange:
        if "patience" not in undo or "proxmox" not in executors:
            raise
    guests = [thing for thing in executors["proxmox"].marked(run or None).things if "/qemu/" in thing.target]
    taken, _ = _undo_strays([thing for thing in guests if not thing.kept], executors)
    log.info("%s %s: helped by taking away %d VM(s)", change.id, change.target, len(taken))
    return hands.undo(replace(change, undo={**undo, "seconds": undo["patience"]}))


def _let_it_land(entry: Entry) -> None:
    if entry.result is None:
        age = datetime.now(UTC) - datetime.fromisoformat(entry.time)
        time.sleep(max(0.0, min(GRACE_SECONDS, GRACE_SECONDS - age.total_seconds())))


def _undo_strays(strays: Iterable[Marked], executors: Mapping[str, Executor]) -> tuple[list[Undone], list[NotUndone]]:
    """Marked things that no journal knows: their own undo goes the same way, only without an entry."""
    undone: list[Undone] = []
    failed: list[NotUndone] = []
    # A namespace goes after what is in it, a user after the tokens: the longer path first.
    for thing in sorted(strays, key=_turn):
        change = Change("stray", thing.system, "create", thing.target, "found by its mark", undo=thing.undo)
        try:
            proof = executors[thing.system].undo(change)
        except RunbookError as error:
            failed.append(NotUndone("", thing.system, thing.target, str(error), thing.run))
            continue
        undone.append(Undone("", thing.system, thing.target, proof, thing.run))
    return undone, failed


LEADERS = ("HelmRelease", "MachineHealthCheck", "MachineDeployment", "Machine", "Cluster",
           "StatefulSet", "Pod", "VolumeSnapshot")  # fmt: skip
"""Kinds that go before all others, in this order: what they refer to goes with them, and cannot go before them."""


def _turn(thing: Marked) -> tuple[int, int]:
    parts = thing.target.split("/")
    leader = next((number for number, kind in enumerate(LEADERS) if kind in parts), len(LEADERS))
    late = len(LEADERS) + 1 if thing.system == "proxmox" else leader  # their controllers take their VMs along
    return (late, -len(thing.target))


def _look(
    executors: Mapping[str, Executor], run: str | None, systems: Collection[str], made: Iterable[tuple[str, str]]
) -> tuple[Search, list[str]]:
    total, looked_at = Search(), []
    for system in sorted(systems):
        targets = [target for where, target in made if where == system]
        try:
            found = executors[system].marked(run, targets)
        except RunbookError as error:
            total = replace(total, unseen=(*total.unseen, f"{system}: {error}"))
            continue
        total = Search((*total.things, *found.things), (*total.unseen, *found.unseen))
        looked_at.append(system)
    return total, looked_at


def _unfinished(
    entries: Iterable[Entry], executors: Mapping[str, Executor], only: Collection[str] | None
) -> Iterator[str]:
    """Installs without a known end. They stay: preparing again finds them and goes on."""
    latest = {entry.change.id: entry for entry in entries}
    for entry in latest.values():
        change = entry.change
        if change.kind is ChangeKind.BORROW or entry.result not in (None, "unknown"):
            continue
        if only is not None and change.id not in only:
            continue
        try:
            state = "is there" if executors[change.system].exists(change) else "is not there"
        except RunbookError as error:
            state = f"could not be looked at: {error}"
        yield f"{change.id} {change.action} {change.target}: {state}"


def _clients(site: Any) -> Mapping[str, Callable[[], Any]]:
    """Connected once each, and only when something is asked of them."""
    from runbook_lib import kubernetes, proxmox

    return {
        "proxmox": functools.cache(lambda: proxmox.connect(site)),
        "kubernetes": functools.cache(lambda: kubernetes.connect(site)),
    }
