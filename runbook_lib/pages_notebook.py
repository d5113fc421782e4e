"""An executed notebook as safe HTML: what it holds may come from anyone who can name a VM.

Markdown and rich outputs are sanitised, everything else is escaped; nothing in the result runs or loads.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mistune
import nh3

from runbook_lib.secrets import redact

SCRAP = "application/scrapbook.scrap.json+json"

TAGS = nh3.ALLOWED_TAGS - {"img", "map", "area"}
ATTRIBUTES = {
    "th": {"scope", "colspan", "rowspan"},
    "td": {"colspan", "rowspan"},
    "a": {"href", "title"},
    "ol": {"start"},
}
ANCHORS = {f"h{level}": {"id"} for level in range(1, 7)}
# Only the classes that our own displays and pandas write: no output may dress up as a part of the page.
CLASSES = {
    "table": {"rb-table", "dataframe"},
    "td": {"rb-number"},
    "p": {"rb-note", "rb-verdict", "rb-pass", "rb-warn", "rb-fail", "rb-error", "rb-skip", "rb-not-run"},
    "span": {"rb-status", "rb-pass", "rb-warn", "rb-fail", "rb-error", "rb-skip", "rb-not-run"},
}
SCHEMES = {"http", "https", "mailto"}
# An OSC sequence that nobody ended must not hide the lines after it.
ANSI = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?|\x1b[@-Z\\-_]"
)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
MOST_TEXT = 100_000


def bare(text: str) -> str:
    """Text without terminal escapes, control characters, direction overrides and secrets."""
    return redact(CONTROL.sub("", ANSI.sub("", text)))


def cells(
    notebook: Mapping[str, Any], *, assets: Path, assets_url: str, link: Callable[[str], str] = str
) -> list[dict[str, Any]]:
    """The cells in order as {"kind", "html", "source", "outputs", "tags", "failed"}; pictures are written to `assets`.

    `link` turns the target of a link to another notebook into that of its page, or "" where there is none. The first
    heading is left out, because the page has it, and so are the parameters that a batch run injected: they name folders
    of the machine that ran it.
    """
    shown: list[dict[str, Any]] = []
    titled = False
    for cell in notebook.get("cells", ()):
        tags = cell.get("metadata", {}).get("tags", [])
        source = _text(cell.get("source", ""))
        if "injected-parameters" in tags or "papermill-error-cell-tag" in tags or not source.strip():
            continue
        if cell.get("cell_type") == "markdown":
            if not titled:
                source, titled = _introduction(source), True
            shown.append({"kind": "prose", "html": markdown(source, link), "outputs": [], "tags": tags})
        elif cell.get("cell_type") == "code":
            outputs = [_output(entry, assets, assets_url) for entry in cell.get("outputs", ())]
            failed = any(entry.get("output_type") == "error" for entry in cell.get("outputs", ()))
            shown.append(
                {
                    "kind": "code",
                    "html": highlighted(source),
                    "outputs": [entry for entry in outputs if entry],
                    "tags": tags,
                    "failed": failed,
                }
            )
    return shown


def _introduction(source: str) -> str:
    """The first cell without its heading, and what it proves, changes and undoes as paragraphs of their own."""
    return re.sub(r"\n(?=\*\*)", "\n\n", re.sub(r"\A\s*# .*\n?", "", source))


def markdown(source: str, link: Callable[[str], str] | None = None) -> str:
    """Markdown as sanitised HTML. Prose of ours (`link` given) has relative links, and JupyterLab's anchors."""
    made = str(mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])(bare(source)))
    if link is None:
        return safe(made)
    anchored = re.sub(r"<h([1-6])>(.*?)</h\1>", _anchored, made)
    return safe(re.sub(r'<a href="([^"]*)"', lambda found: _linked(html.unescape(found[1]), link), anchored), ours=True)


def _anchored(found: re.Match[str]) -> str:
    words = html.unescape(re.sub(r"<[^>]*>", "", found[2])).replace(" ", "-")
    return f'<h{found[1]} id="{html.escape(words)}">{found[2]}</h{found[1]}>'


def _linked(target: str, link: Callable[[str], str]) -> str:
    """The beginning of a link. A relative one leads to a page here or nowhere: the tree it was written for is away."""
    if not re.match(r"[a-z]+:|#", target, flags=re.IGNORECASE):
        target = link(target)
    return f'<a href="{html.escape(target)}"' if target else "<a"


def safe(text: str, *, ours: bool = False) -> str:
    """HTML with nothing in it that runs, loads or leaves the page's styles; only `ours` names places of the page."""
    clean = nh3.clean(
        bare(text),
        tags=TAGS,
        attributes={tag: set(names) for tag, names in {**ATTRIBUTES, **(ANCHORS if ours else {})}.items()},
        allowed_classes={tag: set(names) for tag, names in CLASSES.items()},
        url_schemes=SCHEMES,
        url_relative="pass_through" if ours else "deny",
        link_rel="noopener noreferrer",
        strip_comments=True,
    )
    return _scoped(re.sub(r"<(/?)h1(?=[ >])", r"<\1h2", clean))  # the page has its h1


def _scoped(text: str) -> str:
    """Header cells that say what they head."""
    parts = re.split(r"(<thead>.*?</thead>)", text, flags=re.DOTALL)
    return "".join(
        part.replace("<th>", f'<th scope="{"col" if part.startswith("<thead>") else "row"}">') for part in parts
    )


def plain(text: str) -> str:
    """Text for an element: terminal escapes and control characters gone, the rest escaped, cut at a bound."""
    clean = bare(text)
    return html.escape(clean[:MOST_TEXT] + ("\n…" if len(clean) > MOST_TEXT else ""))


def highlighted(source: str) -> str:
    """Python source with classes for its words."""
    from pygments import highlight
    from pygments.formatters.html import HtmlFormatter
    from pygments.lexers.python import PythonLexer

    return highlight(bare(source), PythonLexer(), HtmlFormatter(nowrap=True))


def _output(output: Mapping[str, Any], assets: Path, assets_url: str) -> str:
    kind = output.get("output_type")
    if kind == "stream":
        name = "stderr" if output.get("name") == "stderr" else "stdout"
        return f'<pre class="out {name}" tabindex="0">{plain(_text(output.get("text", "")))}</pre>'
    if kind == "error":
        trace = "\n".join(output.get("traceback", ())) or f"{output.get('ename')}: {output.get('evalue')}"
        return f'<pre class="out failed">{plain(trace)}</pre>'
    return _rich(output.get("data", {}), output.get("metadata", {}), assets, assets_url)


def _rich(data: Mapping[str, Any], metadata: Mapping[str, Any], assets: Path, assets_url: str) -> str:
    if SCRAP in data:
        return ""
    if "image/png" in data:
        about = metadata.get("image/png", {})
        alt = str(about.get("alt") or metadata.get("alt") or _text(data.get("text/plain", "figure")))
        return _picture(_text(data["image/png"]), alt, assets, assets_url)
    if "text/html" in data:
        return f'<div class="out rich">{safe(_text(data["text/html"]))}</div>'
    if "text/markdown" in data:
        return f'<div class="out rich">{markdown(_text(data["text/markdown"]))}</div>'
    text = _text(data.get("text/plain", ""))
    return f'<pre class="out">{plain(text)}</pre>' if text else ""


def _picture(encoded: str, alt: str, assets: Path, assets_url: str) -> str:
    try:
        picture = base64.b64decode(encoded, validate=False)
    except (binascii.Error, ValueError):
        picture = b""
    if not picture.startswith(b"\x89PNG\r\n\x1a\n"):
        return '<pre class="out">(a picture that is not a PNG)</pre>'
    name = hashlib.sha256(picture).hexdigest()[:20] + ".png"
    assets.mkdir(parents=True, exist_ok=True)
    (assets / name).write_bytes(picture)
    text = plain(alt[:2000])
    image = f'<img src="{html.escape(assets_url)}{name}" alt="{text}" loading="lazy">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)
