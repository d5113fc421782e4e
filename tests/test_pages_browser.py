"""The published pages in a real browser, opened from the disk: they look right, and no name runs a script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import published
from published import a_run, code, history, printed, prose, shown, write

from runbook_lib import pages
from runbook_lib.model import Run, Status

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here"),
]

FLAG = "document.documentElement.setAttribute('data-flag','set')"
PAYLOADS = (
    f"<script>{FLAG}</script>",
    f"</script><script>{FLAG}</script>",
    f"<ScRiPt >{FLAG}</sCrIpT>",
    f"<script\n>{FLAG}</script\t>",
    f"<scr<script>ipt>{FLAG}</scr</script>ipt>",
    f'<img src=x onerror="{FLAG}">',
    f"<img/src=x/onerror={FLAG}>",
    f'"><img src=x onerror="{FLAG}">',
    f'\'><img src=x onerror="{FLAG}">',
    f'<svg onload="{FLAG}">',
    f"<svg><script>{FLAG}</script></svg>",
    f"</title><script>{FLAG}</script>",
    f"</style><script>{FLAG}</script>",
    f"</textarea><script>{FLAG}</script>",
    f"</pre></code><script>{FLAG}</script>",
    f"--><script>{FLAG}</script><!--",
    f"<!--><script>{FLAG}</script>-->",
    f"]]><script>{FLAG}</script>",
    f'<iframe srcdoc="<script>top.{FLAG}</script>"></iframe>',
    f'<iframe src="javascript:parent.{FLAG}"></iframe>',
    f'<body onload="{FLAG}">',
    f'<details open ontoggle="{FLAG}"><summary>x</summary></details>',
    f'<input autofocus onfocus="{FLAG}">',
    f'<video><source onerror="{FLAG}"></video>',
    f'<math><mtext><table><mglyph><style><img src=x onerror="{FLAG}"></style></mglyph></table></mtext></math>',
    f'<noscript><p title="</noscript><img src=x onerror={FLAG}>"></noscript>',
    f'<meta http-equiv="refresh" content="0;url=javascript:{FLAG}">',
    f'<object data="javascript:{FLAG}"></object>',
    f'<style>@import "javascript:{FLAG}";</style><script>{FLAG}</script>',
    f'[x](javascript:{FLAG}) ![x](x"onerror="{FLAG}) <javascript:{FLAG}>',
    f'" autofocus onfocus="{FLAG}" x="',
    f"\x1b]0;<script>{FLAG}</script>\x07<script\x00>{FLAG}</script>",
    f"{{{{ cycler.__init__ }}}}{{% raw %}}<script>{FLAG}</script>",
    "W" * 400,
)


def chromium(page: Path, *options: str) -> str:
    """What the browser says after it opened the page: the document as it stands then, or nothing for a picture."""
    profile = page.parent / f".profile-{abs(hash((page, options)))}"
    quiet = "--headless --no-sandbox --disable-gpu --hide-scrollbars --disable-background-networking --no-first-run"
    command = [CHROMIUM, *quiet.split(), "--virtual-time-budget=2000", f"--user-data-dir={profile}", *options]
    try:
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    finally:
        shutil.rmtree(profile, ignore_errors=True)
    return done.stdout


def hostile(run: Run) -> Run:
    """The run with one payload in each finding, measurement and change, and in titles and reasons."""
    steps = []
    for number, record in enumerate(run.steps):
        payload = PAYLOADS[number % len(PAYLOADS)]
        findings = tuple(
            replace(
                published.finding(Status.FAIL, payload, payload, payload), title=payload, remedy=payload, source=payload
            )
            for payload in PAYLOADS
        )
        result = record.result
        if result:
            result = replace(
                result,
                findings=findings if record.step == "11" else result.findings,
                measurements=tuple(
                    published.measurement(payload, subject=payload, seed=3)
                    for payload in PAYLOADS
                    if record.step == "21"
                ),
                changes=tuple(
                    replace(published.CHANGES[0], id=text, target=text, summary=text, action=text, system=text)
                    for text in PAYLOADS
                    if record.step == "13"
                ),
                notes=PAYLOADS,
            )
        steps.append(replace(record, title=payload, reason=payload, task=payload, result=result))
    return replace(run, steps=tuple(steps), versions={payload: payload for payload in PAYLOADS})


def cells() -> list[dict[str, object]]:
    """Every kind of cell and output, with every payload."""
    made = []
    for text in PAYLOADS:
        made.append(
            prose(f"# {text}", "", text, "", f"[{text}]({text})", "", f"`{text}`", f"| {text} |", "|---|", "| x |")
        )
        made.append(
            code(
                f'x = """{text}"""  # {text}',
                printed(text),
                printed(text, "stderr"),
                shown({"text/html": text}),
                shown({"text/html": f"<table><tr><td>{text}</td></tr></table>"}),
                shown({"text/html": f'<a href="{text}" title="{text}">x</a>'}),
                shown({"text/markdown": text}),
                shown({"text/plain": text}),
                shown({"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{text}</svg>", "text/plain": text}),
                shown({"application/javascript": FLAG, "text/plain": text}),
                shown({"application/json": {text: text}, "text/plain": text}),
                shown({"image/png": published.png(8, 8), "text/plain": text}, **{"image/png": {"alt": text}}),
                shown({"image/png": text, "text/plain": text}),
                {"output_type": "error", "ename": text, "evalue": text, "traceback": [text]},
            )
        )
    return made


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of a site where everything is named by an attacker."""
    root = tmp_path_factory.mktemp("poisoned")
    write(root, hostile(a_run()), *cells())
    write(root, a_run(ago=timedelta(days=1)))
    write(root, hostile(a_run(ago=timedelta(days=2))))
    pages.build(root, root / "public")
    return root / "public"


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of an ordinary site."""
    root = tmp_path_factory.mktemp("ordinary")
    history(root)
    pages.build(root, root / "public")
    return root / "public"


def without_policy(source: str) -> str:
    """The page as it would be if the policy were not there to help."""
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)


def survey(public: Path, found: list[Path], *, width: int = 1000) -> dict[str, dict[str, Any]]:
    """Of each page, opened without its policy in a frame: is the flag set, how much is too wide, is it whole.

    One browser opens them all; a payload that reaches for the frame's parent shows in "parent".
    """
    frames = []
    for number, path in enumerate(found):
        copy = path.with_name(f"open-{number}.html")
        copy.write_text(without_policy(path.read_text(encoding="utf-8")), encoding="utf-8")
        frames.append(f'<iframe width="{width}" height="600" src="{copy.relative_to(public)}"></iframe>')
    look = """<script>addEventListener('load', () => setTimeout(() => {
      const seen = [...document.querySelectorAll('iframe')].map(({contentDocument: page}) => ({
        flag: page.documentElement.hasAttribute('data-flag'), whole: !!page.querySelector('footer'),
        wide: page.documentElement.scrollWidth - page.documentElement.clientWidth}));
      document.body.textContent = 'SEEN' + JSON.stringify(seen) + 'NEES';
    }, 500))</script>"""
    launcher = public / f"launcher-{width}.html"
    launcher.write_text(f"<!doctype html><html><body>{''.join(frames)}{look}</body></html>", encoding="utf-8")
    dom = chromium(launcher, "--dump-dom", "--allow-file-access-from-files")
    for path in [launcher, *public.rglob("open-*.html")]:
        path.unlink()
    seen = json.loads(re.search("SEEN(.*)NEES", dom)[1])
    names = [path.relative_to(public).as_posix() for path in found]
    parent = {"flag": "data-flag=" in dom, "wide": 0, "whole": True}
    return {**dict(zip(names, seen, strict=True)), "parent": parent}


def test_the_survey_sees_the_flag(poisoned):
    """A page that holds a payload as it is would be caught by the survey, so that the next test means something."""
    page = poisoned / "naive.html"
    page.write_text(f"<!doctype html><html><body><p>{'W' * 900}</p>{PAYLOADS[5]}</body></html>")
    seen = survey(poisoned, [page])["naive.html"]
    page.unlink()
    assert seen["flag"]
    assert seen["wide"] > 0


def test_no_name_runs_a_script_even_without_the_policy(poisoned):
    """Escaping and sanitising hold alone: every page of the site, its policy taken out, sets no flag."""
    found = sorted((poisoned / "en").rglob("*.html")) + sorted((poisoned / "uk" / "lab" / "steps").glob("1*.html"))
    seen = survey(poisoned, found)
    assert len(seen) > 30
    assert {name for name, page in seen.items() if page["flag"]} == set()
    assert {name for name, page in seen.items() if not page["whole"]} == set()


def test_the_policy_alone_stops_what_slipped_through(poisoned):
    """Were a payload to reach a page as it is, the policy would refuse to run it."""
    page = poisoned / "en" / "lab" / "index.html"
    slipped = page.with_name("slipped.html")
    slipped.write_text(page.read_text(encoding="utf-8").replace("<h1>", f"{PAYLOADS[0]}{PAYLOADS[5]}<h1>"))
    assert "data-flag=" not in chromium(slipped, "--dump-dom")


def test_style_script_and_pictures_load_from_the_disk(public, tmp_path):
    """The policy's 'self' lets a page opened by `file://` have its own files: seen in pixels and in the document."""
    image = pytest.importorskip("PIL.Image")
    page = public / "en" / "lab" / "steps" / "11_assess_proxmox_ve.html"
    chromium(page, "--window-size=1000,2400", f"--screenshot={tmp_path / 'shot.png'}")
    with image.open(tmp_path / "shot.png") as opened:
        pixels = {colour for _, colour in opened.convert("RGB").getcolors(1 << 24)}
        assert opened.convert("RGB").getpixel((5, 5)) == (0xFF, 0xE0, 0x8A)  # the banner of a rehearsal
    assert (60, 60, 60) in pixels  # the bars of the figure
    dom = chromium(page, "--dump-dom")
    assert re.search(r'<button type="button" id="theme">', dom)


def test_the_filter_counts_what_it_shows(public):
    """Findings can be filtered as soon as the script runs."""
    dom = chromium(public / "en" / "lab" / "findings.html", "--dump-dom")
    assert re.search(r'<output id="shown"[^>]*>31 / 31</output>', dom)


@pytest.mark.parametrize("width", [400, 1280])
def test_no_page_is_wider_than_its_window(poisoned, width):
    """A name of 400 characters wraps or scrolls inside its table; the page itself never scrolls sideways."""
    seen = survey(poisoned, sorted((poisoned / "en").rglob("*.html")), width=width)
    assert {name: page["wide"] for name, page in seen.items() if page["wide"] > 0} == {}


def test_a_page_prints(public, tmp_path):
    """A step's page becomes a PDF."""
    chromium(public / "en" / "lab" / "steps" / "21_proxmox_api.html", f"--print-to-pdf={tmp_path / 'step.pdf'}")
    assert (tmp_path / "step.pdf").read_bytes().startswith(b"%PDF")
