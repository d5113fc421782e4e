"""Secrets never leave their files: not in any encoding, not into results, pages, processes or the words of an error."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import homes
import nbformat
import pytest
from homes import Story

pytestmark = pytest.mark.xdist_group("whole")

COMPONENTS = {"capmox", "csi", "ccm", "exporter", "runbook"}


def encodings(value: str) -> dict[str, bytes]:
    """Every spelling in which the value could be written down, by name."""
    raw = value.encode()
    spelled = {
        "raw": raw,
        "URL": urllib.parse.quote(value, safe="").encode(),
        "JSON": json.dumps(value)[1:-1].encode(),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "reversed": raw[::-1],
    }
    for shift in range(3):  # where in a longer text the value begins decides how base64 spells it
        spelled[f"base64 at {shift}"] = _inner_base64(raw, shift, base64.b64encode)
        spelled[f"urlsafe base64 at {shift}"] = _inner_base64(raw, shift, base64.urlsafe_b64encode)
    return spelled


def _inner_base64(raw: bytes, shift: int, encode: object) -> bytes:
    """The part of the base64 text that depends on nothing around the value."""
    text: bytes = encode(b"\0" * shift + raw)  # type: ignore[operator]
    first = -(-shift * 8 // 6)
    return text[first : (shift + len(raw)) * 8 // 6]


def leaks(secrets: dict[str, str], texts: dict[str, bytes]) -> list[str]:
    """Which secret stands in which text, and how it is spelled there."""
    wanted = [(name, how, data) for name, value in secrets.items() for how, data in encodings(value).items()]
    return [
        f"{name} as {how} in {where}" for where, text in texts.items() for name, how, data in wanted if data in text
    ]


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file below the folders, by its path."""
    return {str(path.relative_to(path.parents[2])): path.read_bytes() for path in homes.files(*folders)}


def test_the_canary_sees_every_secret(story: Story):
    """The lab's three secrets, those of the components' tokens, and those borrowed for the refusals were looked for."""
    names = {name.partition("#")[0].removesuffix(".json") for name in story.seen.secrets}
    assert names >= COMPONENTS
    assert {"secrets.json#proxmox_password", "secrets.json#proxmox_token_secret"} <= story.seen.secrets.keys()
    assert "secrets.json#kubernetes_token" in story.seen.secrets
    assert len(names - COMPONENTS - {"secrets"}) >= 2, "the borrowed tokens of 21"
    assert all(len(value) >= 16 for value in story.seen.secrets.values())


@pytest.mark.parametrize("how", sorted(encodings("x" * 20)))
def test_the_canary_would_sing(how: str):
    """Each spelling is found when it is there, between other characters too."""
    value = "7d1e9a/b4+c2ff\"f00d'17"
    shift = int(how[-1]) if how[-1].isdigit() else 0
    longer = b"\0" * shift + value.encode() + b"tail"
    text = {
        "urlsafe": base64.urlsafe_b64encode(longer),
        "base64": base64.b64encode(longer),
    }.get(how.split()[0], encodings(value)[how])
    assert f"it as {how} in there" in leaks({"it": value}, {"there": b"before " + text + b" after"})


def test_no_secret_is_written_into_results_or_pages(story: Story):
    """Notebooks, events, journal, run.json, reports and pages are free of every secret."""
    folders = (story.home.root / "outputs", story.public, story.home.root / "notebooks", story.home.root / "parameters")
    texts = contents(*folders)
    assert {Path(name).suffix for name in texts} >= {".ipynb", ".jsonl", ".json", ".md", ".xml", ".html"}
    assert leaks(story.seen.secrets, texts) == []


def test_no_secret_is_printed(story: Story):
    """Neither stdout nor stderr of the commands, nor the lab's own log."""
    texts = {
        "stdout": story.first.stdout.encode() + story.second.stdout.encode(),
        "stderr": story.first.stderr.encode() + story.second.stderr.encode(),
        "lab.log": (story.home.lab / "lab.log").read_bytes(),
    }
    assert leaks(story.seen.secrets, texts) == []


def test_no_secret_is_seen_among_the_processes(story: Story):
    """Arguments and environments of the runner, its fork server and its kernels, looked at all the while."""
    assert len(story.seen.arguments) >= 2, "the command and the lab at least"
    texts = {"arguments": b"\n".join(story.seen.arguments), "environments": b"\n".join(story.seen.environments)}
    assert leaks(story.seen.secrets, texts) == []


LEAKY = """
import base64, json, pathlib, sys, urllib.parse, warnings
site_, home = step.site, pathlib.Path.cwd()
import logging
from IPython.display import HTML, display
values = [*json.loads((home / ".lab" / "secrets.json").read_text()).values()]
for value in values:
    raw = value.encode()
    print(value, raw, raw.hex(), raw.hex().upper(), urllib.parse.quote(value, safe=""), json.dumps({"password": value}))
    for shift in range(3):
        print(base64.b64encode(b"\\0" * shift + raw).decode(), base64.urlsafe_b64encode(b"x" * shift + raw).decode())
    print(value[:9], end=""); sys.stdout.flush(); print(value[9:])
    print("on stderr", value, file=sys.stderr)
    display(HTML(f"<p title='{value}'>{value}</p>"))
    display({"application/json": {value: [value]}, "text/plain": value}, raw=True)
    logging.getLogger("leak").warning("token %s", value)
    warnings.warn(value)
    step.note(f"noted {value}")
    step.show([{"column": value, value: 1}], title=value)
"""


@pytest.fixture(scope="module")
def leaky(story: Story) -> Iterator[homes.Home]:
    """The same project with a step that tries to tell every secret, and one that breaks with a secret in its error."""
    for number, source in (("97", LEAKY + "\n"), ("98", LEAKY + "\nraise RuntimeError(' and '.join(values))\n")):
        cells = [
            nbformat.v4.new_code_cell('site: str = "lab"\nrun_dir: str = ""', metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(
                f"from runbook_lib import open_step\nstep = open_step({number!r}, site=site, run_dir=run_dir)"
            ),
            nbformat.v4.new_code_cell(source),
            nbformat.v4.new_code_cell("step.finish()"),
        ]
        book = nbformat.v4.new_notebook(cells=cells)
        book.metadata["runbook"] = {"title": "Leak", "step": number, "needs": [], "timeout": 60, "changes": False}
        nbformat.write(book, story.home.root / "notebooks" / f"{number}_leak.ipynb")
    yield story.home
    for path in (story.home.root / "notebooks").glob("9[78]_leak.ipynb"):
        path.unlink()


def test_a_notebook_cannot_tell_a_secret(leaky: homes.Home, story: Story):
    """A step that prints, displays, logs, warns and raises with the secrets leaves none of them anywhere."""
    told = leaky.runbook("run", "--step", "97", "--step", "98", "--pages")
    assert told.returncode == 3, told.stderr[-2000:]
    folder = leaky.folders()[-1]
    records = {record.step: record for record in leaky.runs()[-1].steps}
    assert records["97"].result is not None and records["98"].status == "error"
    texts = contents(folder, leaky.root / "outputs" / "public")
    assert "redacted" in (folder / "97_leak.ipynb").read_text(encoding="utf-8")
    texts |= {"stdout": told.stdout.encode(), "stderr": told.stderr.encode()}
    assert leaks(story.seen.secrets, texts) == []
