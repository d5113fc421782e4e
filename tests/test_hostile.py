"""Names, comments and messages that mean harm: they are shown, and nothing in them is obeyed."""

from __future__ import annotations

import json
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import homes
import pytest
import yaml

from runbook_lib.lab import scenario

pytestmark = pytest.mark.xdist_group("hostile")

MARK = "evilmark"
HARM = (
    f'{MARK}<script>alert("{MARK}")</script><img src=x onerror=alert(1)>"\' onmouseover="alert(2)" ]]>&lt;b&gt; '
    "[click](javascript:alert(3)) ![x](https://evil.example/p.png) | `code` [bold red]markup[/] {{ 7*7 }} "
    "\x1b[31mred\x1b]0;title\x07\x1b]8;;https://evil.example\x07link\x9b1m\x08\r\u202egnp.exe\u2066\u2028end"
)
"""What an object's free text may hold; a HelmRelease's message, a comment, the end of a task."""


def scenario_of(harm: str) -> dict[str, Any]:
    """A site whose every free text is hostile."""
    task = {"type": "qmclone", "id": "9000", "node": "pve2", "ago": 700, "took": 6, "status": harm, "log": [harm]}
    update = {"package": harm, "title": harm, "old": "1", "version": harm, "origin": "Debian"}
    dns = {"namespace": "kube-system", "name": "coredns-*"}
    guests = {number: {"config": {"name": harm, "description": harm, "tags": harm}} for number in (120, 121)}
    guests[9000] = {"config": {"name": harm, "description": harm}}
    return {
        "extends": str(scenario.FOLDER / "healthy.yaml"),
        "title": harm,
        "proxmox": {
            "guests": guests,
            "pools": {"infra": {"comment": harm}},
            "datacenter": {"description": harm},
            "tasks": [task],
            "nodes": {"pve1": {"updates": [update]}},
        },
        "kubernetes": {
            "edits": [
                {"release": "cozy-kubeovn/kubeovn", "reason": "UpgradeFailed", "message": harm},
                {
                    "objects": {"kind": "Node", "name": "worker-1"},
                    "merge": {
                        "metadata": {"annotations": {"example.org/note": harm}, "labels": {"example.org/note": harm}},
                        "spec": {"taints": [{"key": harm, "value": harm, "effect": "NoSchedule"}]},
                        "status": {"nodeInfo": {"osImage": harm, "kernelVersion": harm}},
                    },
                    "conditions": [{"type": "DiskPressure", "status": "True", "reason": harm, "message": harm}],
                },
                {"pods": dns, "state": "image-pull", "message": harm},
                {"event": {"kind": "Pod", **dns}, "reason": "Failed", "message": harm},
                {
                    "add": [
                        {
                            "apiVersion": "storage.k8s.io/v1",
                            "kind": "StorageClass",
                            "metadata": {"name": harm, "annotations": {"note": harm}},
                            "provisioner": harm,
                        }
                    ]
                },
            ]
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Aftermath:
    """The project after its run, and what the commands printed."""

    home: homes.Home
    exit_code: int
    printed: str

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.home.folders()[-1]


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """A run of everything against the hostile site, its pages, and each command that shows a run."""
    root = tmp_path_factory.mktemp("hostile")
    file = root / "hostile.yaml"
    file.write_text(yaml.safe_dump(scenario_of(HARM), allow_unicode=False), encoding="utf-8")
    home = homes.make(root / "home", scenario=str(file), scale=600, title=f"{MARK}<script>alert(1)</script>")
    try:
        told = home.runbook("run", "--pages")
        more = [home.runbook(*words) for words in (["report"], ["history"], ["steps"], ["sweep"], ["sites", "check"])]
        more += [home.runbook("report", "--format", name) for name in ("markdown", "junit", "json")]
        yield Aftermath(home, told.returncode, "".join(each.stdout + each.stderr for each in (told, *more)))
    finally:
        home.down()


def test_hostile_names_do_not_stop_the_run(aftermath: Aftermath):
    """Every step has its result; what is broken on the site is found, and the harm is in the findings."""
    run = aftermath.home.runs()[-1]
    assert aftermath.exit_code == 1, aftermath.printed[-3000:]
    told = {record.step: record.reason for record in run.steps if record.result is None}
    assert {record.step for record in run.steps if record.status == "error"} == set(), told
    carriers = {found.check for found in run.findings if MARK in found.message + found.subject}
    assert {"kubernetes.releases_are_ready", "proxmox.no_task_failed", "kubernetes.taints_are_ordinary"} <= carriers


def test_nothing_printed_can_steer_a_terminal(aftermath: Aftermath):
    """No escape, bell, backspace, carriage return or C1 code of the data reaches stdout or stderr."""
    assert MARK in aftermath.printed
    assert steering(aftermath.printed) == set()


def steering(text: str) -> set[str]:
    """Control and direction characters in a text, but for the end of a line and a tab."""
    return {
        f"U+{ord(each):04X}"
        for each in text
        if each not in "\n\t" and (unicodedata.category(each) == "Cc" or each in "\u202e\u202d\u2066\u2067\u2068\u061c")
    }


def test_reports_stay_readable_for_machines(aftermath: Aftermath):
    """JUnit parses, JSON parses, and the Markdown holds neither a live tag nor an escape."""
    root = ElementTree.parse(aftermath.folder / "report.junit.xml").getroot()
    assert MARK in "".join(root.itertext()) + " ".join(case.get("name", "") for case in root.iter("testcase"))
    json.loads((aftermath.folder / "report.json").read_text(encoding="utf-8"))
    markdown = (aftermath.folder / "report.md").read_text(encoding="utf-8")
    assert MARK in markdown and steering(markdown) == set()
    assert not re.search(r"(?<!\\)<(script|img|b)\b", markdown)
    assert "](javascript:" not in markdown and "](https://evil" not in markdown


def test_events_are_one_line_each(aftermath: Aftermath):
    """A message with line ends does not become two events."""
    lines = (aftermath.folder / "events.jsonl").read_bytes().split(b"\n")
    assert all(isinstance(json.loads(line), dict) for line in lines if line)
    assert not any(b"\x1b" in line for line in lines)


class Elements(HTMLParser):
    """What a browser would make of a page: its elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One more element."""
        self.found.append((tag, dict(attrs)))


def live(text: str) -> list[str]:
    """What in a page or fragment would run, load from elsewhere, or lead somewhere bad."""
    bad = []
    for tag, attributes in Elements(text).found:
        source = attributes.get("src") or ""
        if tag == "script" and ("//" in source or not source.endswith(".js")):
            bad.append(f"<{tag} {attributes}>")
        bad += [f"{tag} {name}" for name in attributes if name.startswith("on")]
        links = [attributes.get(name) or "" for name in ("href", "src", "action", "formaction", "srcset", "data")]
        bad += [f"{tag} → {link}" for link in links if re.match(r"\s*(javascript|vbscript|data:text)|.*evil\.ex", link)]
    return bad


def test_no_page_runs_what_the_site_calls_itself(aftermath: Aftermath):
    """The harm is text on the pages; no element, handler or link was made of it."""
    pages = [path for path in homes.files(aftermath.home.root / "outputs" / "public") if path.suffix == ".html"]
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages}
    assert sum(MARK in text for text in texts.values()) >= 3
    assert {name: live(text) for name, text in texts.items() if live(text)} == {}
    assert {name: steering(text) for name, text in texts.items() if steering(text)} == {}


def test_no_notebook_output_runs_what_the_site_calls_itself(aftermath: Aftermath):
    """Opened in JupyterLab the tables are tables: neither HTML nor Markdown outputs hold anything live."""
    seen = 0
    for path in aftermath.folder.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", ())):
            data = output.get("data", {})
            for kind in ("text/html", "text/markdown", "image/svg+xml"):
                text = "".join(data.get(kind, ""))
                seen += MARK in text
                assert live(text) == [], f"{path.name}: {kind}"
            for text in ("".join(output.get("text", "")), "".join(data.get("text/plain", ""))):
                assert "\x1b" not in text or output.get("output_type") == "error", path.name
    assert seen >= 3


@pytest.mark.parametrize(
    "text", ["<script>x</script>", '<p onclick="x">', '<a href="javascript:x">', '<img src="https://evil.example/x">']
)
def test_the_watch_sees_harm(text: str):
    """What the other tests look for is found when it is there."""
    assert live(f"<table>{text}</table>")
