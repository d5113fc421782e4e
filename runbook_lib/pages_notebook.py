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

FINDINGS = "application/x.runbook.finding+json"
SCRAP = "application/scrapbook.scrap.json+json"

TAGS = nh3.ALLOWED_TAGS - {"img", "map", "area"}
ATTRIBUTES = {
    **{tag: {"class", "title"} for tag in ("div", "span", "table", "tr", "td", "th", "p", "code", "pre", "caption")},
    "th": {"class", "scope", "title", "colspan", "rowspan"},
    "td": {"class", "title", "colspan", "rowspan"},
    "a": {"href", "title"},
    "ol": {"start"},
}
SCHEMES = {"http", "https", "mailto"}
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
MOST_TEXT = 100_000


def cells(
    notebook: Mapping[str, Any], *, assets: Path, assets_url: str, link: Callable[[str], str] = str
) -> list[dict[str, Any]]:
    """The cells in order as {"kind", "html", "source", "outputs", "tags", "failed"}; pictures are written to `assets`.

    `link` turns the target of a relative link between notebooks into that of their pages. The parameters that a batch
    run injected are left out: they name folders of the machine that ran it.
    """
    shown = []
    for cell in notebook.get("cells", ()):
        tags = cell.get("metadata", {}).get("tags", [])
        source = _text(cell.get("source", ""))
        if "injected-parameters" in tags or "papermill-error-cell-tag" in tags or not source.strip():
            continue
        if cell.get("cell_type") == "markdown":
            shown.append({"kind": "prose", "html": markdown(source, link), "outputs": [], "tags": tags})
        elif cell.get("cell_type") == "code":
            outputs = [_output(entry, assets, assets_url) for entry in cell.get("outputs", ())]
            failed = any(entry.get("output_type") == "error" for entry in cell.get("outputs", ()))
            shown.append(
                {
                    "kind": "code",
                    "source": source,
                    "html": highlighted(source),
                    "outputs": [entry for entry in outputs if entry],
                    "tags": tags,
                    "failed": failed,
                    "ran": cell.get("execution_count") is not None,
                }
            )
    return shown


def markdown(source: str, link: Callable[[str], str] = str) -> str:
    """Markdown as sanitised HTML."""
    made = mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])(source)
    relinked = re.sub(
        r'href="([^":#?]+\.ipynb)"', lambda found: f'href="{html.escape(link(html.unescape(found[1])))}"', str(made)
    )
    return safe(relinked)


def safe(text: str) -> str:
    """HTML with nothing in it that runs, loads or leaves the page's styles."""
    return nh3.clean(
        CONTROL.sub("", text),
        tags=TAGS,
        attributes={tag: set(names) for tag, names in ATTRIBUTES.items()},
        url_schemes=SCHEMES,
        link_rel="noopener noreferrer",
        strip_comments=True,
    )


def plain(text: str) -> str:
    """Text for an element: terminal escapes and control characters gone, the rest escaped, cut at a bound."""
    bare = CONTROL.sub("", ANSI.sub("", text))
    cut = bare[:MOST_TEXT] + ("\n…" if len(bare) > MOST_TEXT else "")
    return html.escape(cut)


def highlighted(source: str) -> str:
    """Python source with classes for its words."""
    from pygments import highlight
    from pygments.formatters.html import HtmlFormatter
    from pygments.lexers.python import PythonLexer

    return highlight(CONTROL.sub("", source), PythonLexer(), HtmlFormatter(nowrap=True))


def _output(output: Mapping[str, Any], assets: Path, assets_url: str) -> str:
    kind = output.get("output_type")
    if kind == "stream":
        name = "stderr" if output.get("name") == "stderr" else "stdout"
        return f'<pre class="out {name}">{plain(_text(output.get("text", "")))}</pre>'
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
    text = plain(alt)
    image = f'<img src="{html.escape(assets_url)}{name}" alt="{text}" loading="lazy">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)
