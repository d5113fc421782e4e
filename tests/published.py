"""Runs as the runner leaves them on the disk, made by hand: what the tests of the pages publish."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from runbook_lib import checks, display
from runbook_lib.model import (
    Change,
    ChangeKind,
    Finding,
    Measurement,
    Run,
    Status,
    StepRecord,
    StepResult,
    to_dict,
    worst,
)

STEPS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("00", "Overview", ()),
    ("11", "Assess Proxmox VE", ()),
    ("12", "Assess CozyStack", ()),
    ("13", "Prepare the test environment", ("11", "12")),
    ("21", "Proxmox API", ("13",)),
    ("22", "Network and storage", ("13",)),
    ("23", "Install the Cluster API provider", ("21", "22")),
    ("24", "VM management", ("23",)),
    ("31", "Worker nodes", ("24",)),
    ("32", "CSI storage", ("23",)),
    ("41", "Network policies", ("31",)),
    ("42", "Monitoring", ("31",)),
    ("43", "End to end", ("31", "32")),
    ("99", "Summary", ("41", "42", "43")),
)

PASSES = (
    ("proxmox.version_is_supported", "", "Proxmox VE 9.2.1 is at or above 7.0"),
    ("proxmox.cluster_is_quorate", "lab", "3 of 3 votes"),
    ("proxmox.every_node_is_online", "pve1", "online and answering"),
    ("proxmox.every_node_is_online", "pve2", "online and answering"),
    ("security.certificates_are_current", "pve1/pveproxy-ssl.pem", "712 days left"),
)
PROBLEMS = (
    (Status.FAIL, "storage.storage_has_room", "pve1/local-lvm", "94 % of 1.8 TiB is used, 112 GiB are free"),
    (Status.WARN, "proxmox.memory_has_headroom", "pve2", "87 % of 256.0 GiB is in use"),
    (Status.WARN, "proxmox.no_security_update_waits", "pve3", "14 updates wait, 3 of them for security"),
    (Status.ERROR, "proxmox.clocks_agree", "pve3", "the judgement itself failed: ValueError: no clock"),
    (Status.SKIP, "storage.thin_pool_has_room", "", "nothing to look at"),
)


def page_of(step: str, title: str) -> str:
    """The notebook's file name."""
    return f"{step}_{title.lower().replace(' ', '_')}.ipynb"


@cache
def _catalogue() -> dict[str, checks.CheckInfo]:
    return {entry.id: entry for entry in checks.catalogue()}


def finding(status: Status, check: str, subject: str = "", message: str = "") -> Finding:
    """A finding dressed as its check dresses it."""
    info = _catalogue().get(check)
    fix = info.remedy if info and status in {Status.WARN, Status.FAIL} else ""
    return Finding(check, status, subject, message, info.title if info else check, fix, info.source if info else "")


def measurement(name: str, *, centre: float = 12.0, seed: int = 1, **given: Any) -> Measurement:
    """A hundred readings with a tail."""
    dice = random.Random(seed)
    values = tuple(round(dice.lognormvariate(0, 0.4) * centre, 3) for _ in range(100))
    return Measurement(name, "ms", values, **{"emulated": True, "threshold": 2000.0, **given})


CHANGES = (
    Change(
        "13-01",
        "proxmox",
        "create",
        "/nodes/pve1/storage/local-lvm/content",
        "Allocate a 1 GiB test volume",
        ChangeKind.BORROW,
        undo={"method": "DELETE"},
    ),
    Change(
        "13-02",
        "kubernetes",
        "create",
        "v1/Namespace/runbook-test",
        "Namespace with Pod Security labels and quota",
        ChangeKind.INSTALL,
        undo={"method": "DELETE"},
    ),
    Change("13-03", "proxmox", "create", "/access/roles/RunbookCapmox", "Role of CAPMOX", ChangeKind.INSTALL),
)


def png(width: int = 320, height: int = 80) -> str:
    """A picture with bars, base64."""
    rows = b"".join(
        b"\0" + bytes(60 if (x // 20 * 37) % height > height - y else 235 for x in range(width)) for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(whole).decode()


# --- notebooks ---------------------------------------------------------------------------------------


def prose(*lines: str) -> dict[str, Any]:
    """A markdown cell."""
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": "\n".join(lines)}


def code(source: str, *outputs: dict[str, Any], tags: Sequence[str] = ()) -> dict[str, Any]:
    """An executed code cell."""
    return {
        "cell_type": "code",
        "id": "c",
        "metadata": {"tags": list(tags)},
        "source": source,
        "execution_count": 1,
        "outputs": list(outputs),
    }


def shown(data: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """The output of a display."""
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def printed(text: str, name: str = "stdout") -> dict[str, Any]:
    """The output of a print."""
    return {"output_type": "stream", "name": name, "text": text}


def scrap(result: StepResult) -> dict[str, Any]:
    """The step's one scrap, as `step.finish()` displays it."""
    payload = {"name": "step", "data": to_dict(result), "encoder": "json", "version": 1}
    about = {"name": "step", "data": True, "display": False}
    return shown({"application/scrapbook.scrap.json+json": payload}, scrapbook=about)


def notebook(record: StepRecord, *more: dict[str, Any]) -> dict[str, Any]:
    """The executed notebook of a step, with `more` cells before its end."""
    result = record.result
    others = "; ".join(f"[{step}]({page_of(step, title)})" for step, title, _ in STEPS[:3])
    cells = [
        prose(
            f"# {record.step} · {record.title}",
            "",
            "**Proves** that this Proxmox VE can carry the integration: release, quorum, headroom, storage.",
            "**Changes** nothing: every request is a read.",
            "**Undo** is not needed.",
            "",
            f"See also {others}.",
        ),
        code('site: str = "lab"\nrun_dir: str = ""', tags=["parameters"]),
        code('site = "lab"\nrun_dir = "/srv/somewhere/outputs/lab"', tags=["injected-parameters"]),
        code(f'from runbook_lib import checks, open_step, proxmox\n\nstep = open_step("{record.step}", site=site)'),
        prose("## Findings", "", "A healthy answer is a row of passes; `pvesm status` tells the rest."),
        *more,
    ]
    if result:
        table = display.findings_table(result.findings)
        cells.append(code("storages = proxmox.storages(step.proxmox)\nstep.show(storages)", printed("3 storages\n")))
        cells.append(code("step.check(checks.storage.storage_has_room, storages)", shown(table)))
        cells.append(prose("### What a full storage means", "", "- free space", "- or *add* a disk"))
        cells.append(
            code(
                "step.figure(figures.headroom(nodes, guests))  # memory by node",
                shown(
                    {"image/png": png(), "text/plain": "figure"}, **{"image/png": {"alt": "Memory by node. pve1: 12"}}
                ),
            )
        )
        if result.measurements:
            cells.append(
                code("step.measure(benchmark.latency(pve))", shown(display.measurements_table(result.measurements)))
            )
        verdict = display.sentence(f"Step {record.step}: {result.status}.", css=f"rb-verdict rb-{result.status}")
        cells.append(code("step.finish();", scrap(result), shown(verdict)))
    elif record.status is Status.ERROR:
        trace = ["\x1b[0;31mConnectionError\x1b[0m  Traceback (most recent call last)", "pve1:8006 refused"]
        failed = {"output_type": "error", "ename": "ConnectionError", "evalue": "refused", "traceback": trace}
        cells.append(code("volumes = proxmox.volumes(step.proxmox)", failed))
    meta = {"runbook": {"step": record.step, "title": record.title, "needs": list(record.needs)}}
    return {"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}


# --- runs --------------------------------------------------------------------------------------------

Shape = Callable[[str], tuple[Status, list[Finding]]]


def healthy(step: str) -> tuple[Status, list[Finding]]:
    """Every finding a pass."""
    return Status.PASS, [finding(Status.PASS, *entry) for entry in PASSES]


def mixed(step: str) -> tuple[Status, list[Finding]]:
    """Every status somewhere: 11 fails, 12 warns, 22 breaks, what needs it is skipped, 99 did not run."""
    given = [finding(Status.PASS, *entry) for entry in PASSES]
    if step == "11":
        given += [finding(*entry) for entry in PROBLEMS]
    elif step == "12":
        given.append(finding(Status.WARN, "kubernetes.restarts_are_few", "cozy-kubeovn/ovs-7f9c", "3,034 restarts"))
    elif step == "22":
        return Status.ERROR, []
    elif step in {"23", "24", "31", "32", "41", "42", "43"}:
        return Status.SKIP, []
    elif step == "99":
        return Status.NOT_RUN, []
    return worst(entry.status for entry in given), given


def a_run(
    site: str = "lab",
    *,
    ago: timedelta = timedelta(0),
    shape: Shape = mixed,
    emulated: bool = True,
    steps: Iterable[tuple[str, str, tuple[str, ...]]] = STEPS,
) -> Run:
    """A run of `steps` that started `ago`."""
    began = datetime.now(UTC).replace(microsecond=0) - ago
    run_id = f"{began:%Y%m%dT%H%M%SZ}-4f2a"
    records = []
    for number, (step, title, needs) in enumerate(steps):
        status, findings = shape(step)
        started = (began + timedelta(seconds=3 * number)).isoformat().replace("+00:00", "Z")
        finished = (began + timedelta(seconds=3 * number + 2)).isoformat().replace("+00:00", "Z")
        result = None
        if findings:
            result = StepResult(
                step=step,
                title=title,
                site=site,
                run=run_id,
                status=status,
                started=started,
                finished=finished,
                seconds=2.4,
                findings=tuple(findings),
                measurements=_measured(step, ago),
                changes=CHANGES if step == "13" else (),
                notes=("One storage is shared.",) if step == "11" else (),
                emulated=emulated,
                requests={"proxmox": 21},
            )
        reason = {
            Status.SKIP: "22 Network and storage ended with error",
            Status.ERROR: "ConnectionError: pve1:8006 refused (cell 7)",
        }.get(status, "")
        ran = status is not Status.NOT_RUN and status is not Status.SKIP
        records.append(
            StepRecord(
                step=step,
                title=title,
                notebook=page_of(step, title),
                status=status,
                needs=needs,
                reason="" if result else reason,
                started=started if ran else None,
                finished=finished if ran else None,
                seconds=2.4 if ran else None,
                result=result,
            )
        )
    return Run(
        id=run_id,
        site=site,
        started=began.isoformat().replace("+00:00", "Z"),
        finished=(began + timedelta(seconds=75)).isoformat().replace("+00:00", "Z"),
        steps=tuple(records),
        emulated=emulated,
        status=worst(record.status for record in records),
        path=f"{site}/{run_id}",
    )


def _measured(step: str, ago: timedelta) -> tuple[Measurement, ...]:
    if step != "21":
        return ()
    seed = int(ago.total_seconds()) % 97
    return (
        measurement("proxmox GET /version", centre=4, seed=seed),
        measurement("proxmox GET /cluster/resources", centre=11, seed=seed + 1, errors=2),
        measurement("kubernetes GET /api/v1/nodes ×16", centre=38, seed=seed + 2),
    )


def write(root: Path, run: Run, *more: dict[str, Any]) -> Path:
    """The run's folder under `root`/outputs, filled as the runner fills it; `more` cells go into every notebook."""
    folder = root / "outputs" / run.path
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(to_dict(run), ensure_ascii=False), encoding="utf-8")
    for record in run.steps:
        if record.status not in {Status.NOT_RUN, Status.SKIP}:
            (folder / record.notebook).write_text(
                json.dumps(notebook(record, *more), ensure_ascii=False), encoding="utf-8"
            )
    return folder


def history(root: Path, site: str = "lab", *, emulated: bool = True) -> list[Run]:
    """Four runs of a site, the oldest nine days old, the newest with every kind of status."""
    days = ((9, healthy), (2, mixed), (1, healthy), (0, mixed))
    made = [a_run(site, ago=timedelta(days=ago), shape=shape, emulated=emulated) for ago, shape in days]
    for run in made:
        write(root, run)
    return made


def with_text(run: Run, text: str) -> Run:
    """The run with `text` wherever a site could have put it: names, messages, reasons, measurements, changes."""

    def poisoned(record: StepRecord) -> StepRecord:
        if record.result is None:
            return replace(record, reason=text)
        result = record.result
        return replace(
            record,
            reason=text,
            result=replace(
                result,
                findings=tuple(
                    replace(entry, subject=text, message=text, title=text, remedy=text, evidence={"name": text})
                    for entry in result.findings
                ),
                measurements=tuple(replace(entry, name=text, subject=text, unit=text) for entry in result.measurements),
                changes=tuple(replace(entry, target=text, summary=text, action=text) for entry in result.changes),
                notes=(text,),
            ),
        )

    return replace(run, steps=tuple(poisoned(record) for record in run.steps))
