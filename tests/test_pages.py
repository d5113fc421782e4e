"""The published pages: complete, safe, readable without a server, and never half written."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import published
from published import STEPS, a_run, code, history, printed, prose, shown, with_text, write

from runbook_lib import checks, criteria, pages, pages_notebook, pages_svg, results, secrets
from runbook_lib.errors import UsageError
from runbook_lib.model import ChangeKind, Measurement, Status, StepRecord

PACKAGE = Path(pages.__file__).parent
TEMPLATES = PACKAGE / "templates"
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr", "col"}


class Page(HTMLParser):
    """One page as the tests look at it: tags with their attributes, ids, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.prose: list[str] = []  # targets of links inside prose
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "a" and "prose" in self.open:
            self.prose.append(given.get("href", ""))
        if tag not in VOID:
            self.open.append("prose" if "prose" in given.get("class", "").split() else tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and self.open:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *names: str) -> list[dict[str, str]]:
        """The attributes of every tag of these names."""
        return [attributes for tag, attributes in self.tags if tag in names]

    @property
    def ids(self) -> set[str]:
        """Every anchor."""
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


def every_page(public: Path) -> list[Page]:
    """Every page of a publication."""
    return [Page(path) for path in sorted(public.rglob("*.html"))]


def name(page: Page) -> str:
    """What a failure names."""
    return page.path.as_posix()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An emulated site with four runs and a real one, published."""
    root = tmp_path_factory.mktemp("project")
    history(root)
    history(root, "kyiv-dc1", emulated=False)
    pages.build(root, root / "outputs" / "public")
    return root


@pytest.fixture(scope="module")
def public(project: Path) -> Path:
    """The published folder."""
    return project / "outputs" / "public"


@pytest.fixture(scope="module")
def book(public: Path) -> list[Page]:
    """Its pages."""
    return every_page(public)


# --- what is there -----------------------------------------------------------------------------------


def test_every_kind_of_page_is_published(public):
    """Overview, steps, findings, changes, benchmarks, history, comparison, checks, documents, in both languages."""
    for language in pages.LOCALES:
        folder = public / language / "lab"
        wanted = {*(target for target, _ in pages.NAVIGATION), *(f"documents/{page}" for page, _ in pages.DOCUMENTS)}
        assert {target for target in wanted if not (folder / target).is_file()} == set()
        assert len(list((folder / "steps").glob("*.html"))) == len(STEPS)
        assert len(list((folder / "runs").glob("*.html"))) == 3


def test_links_lead_somewhere(book):
    """Every relative link and its anchor exist; works from `file://`, so no link is a folder."""
    by_path = {page.path.resolve(): page for page in book}
    lost = []
    for page in book:
        for attributes in page.all("a", "link", "script", "img"):
            link = urlsplit(attributes.get("href") or attributes.get("src") or "")
            if link.scheme:
                continue
            target = (page.path.parent / unquote(link.path)).resolve() if link.path else page.path.resolve()
            known = target.is_file() and (not link.fragment or unquote(link.fragment) in by_path[target].ids)
            lost += [] if known else [(name(page), link.geturl())]
    assert lost == []


def test_nothing_is_asked_of_another_host(book):
    """No address with a scheme in src or href, except where prose leads to documentation."""
    for page in book:
        for tag, attributes in page.tags:
            for attribute in ("src", "href", "srcset", "poster", "data", "action"):
                target = attributes.get(attribute, "")
                assert "//" not in target or (tag == "a" and target in page.prose), name(page)
    assert "//" not in re.sub(r"/\*.*?\*/", "", (TEMPLATES / "style.css").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_page_has_the_strict_policy_before_anything_it_loads(book):
    """The policy stands before style, script and title; nothing inline is left for it to refuse."""
    for page in book:
        head = page.source[: page.source.index("</head>")]
        assert head.index("Content-Security-Policy") < head.index("<link"), name(page)
        metas = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
        assert metas == [pages.CSP]
        assert "unsafe" not in pages.CSP
        for tag, attributes in page.tags:
            assert not {key for key in attributes if key.startswith("on") or key == "style"}, name(page)
            assert tag not in {"style", "iframe", "object", "embed", "base"}, name(page)
        assert all(script.get("src", "").endswith("script.js") for script in page.all("script"))


def test_a_rehearsal_is_marked_on_every_page_and_a_real_site_on_none(book):
    """A reader who comes by a deep link sees what the figures are."""
    for page in book:
        marked = "rehearsal" in {attributes.get("class") for attributes in page.all("p")}
        assert marked == ("kyiv-dc1" not in page.path.parts), name(page)


def test_languages_lead_to_each_other(book, public):
    """Each page names the same page in the other language."""
    for page in book:
        if page.path.parent == public:
            continue
        links = {a["hreflang"]: (page.path.parent / a["href"]).resolve() for a in page.all("a") if "hreflang" in a}
        inside = page.path.relative_to(public).parts[1:]
        assert links == {code: public.joinpath(code, *inside).resolve() for code in pages.LOCALES}


def test_the_first_page_leads_on_to_the_only_site(tmp_path):
    """One site: the reader is sent on, also without a script."""
    write(tmp_path, a_run())
    index = Page(pages.build(tmp_path, tmp_path / "public", locale="uk"))
    assert {"http-equiv": "refresh", "content": "0; url=uk/lab/index.html"} in index.all("meta")
    assert index.all("html") == [{"lang": "uk"}]


def test_the_first_page_lists_several_sites(public):
    """Several sites: none is chosen for the reader."""
    index = Page(public / "index.html")
    assert {"en/lab/index.html", "en/kyiv-dc1/index.html"} <= {a["href"] for a in index.all("a")}
    assert not [meta for meta in index.all("meta") if meta.get("http-equiv") == "refresh"]


def test_not_run_is_shown_as_not_run(public):
    """A step that did not run has its own word in the DAG, in the table and on its page, and never a pass."""
    folder = public / "en" / "lab"
    step = Page(folder / "steps" / "99_summary.html")
    assert ("span", {"class": "badge not-run"}) in step.tags
    assert "This step did not run." in step.text
    assert "99 Summary: not run; needs 41, 42, 43" in {
        a.get("aria-label") for a in Page(folder / "steps.html").all("a")
    }
    row = next(line for line in (folder / "index.html").read_text().splitlines() if "Operations are rehearsed" in line)
    assert "not run" in row


def test_a_step_that_did_not_run_shows_what_it_would_do(tmp_path):
    """Its source notebook stands in, and says so."""
    write(tmp_path, a_run())
    record = a_run().steps[-1]
    (tmp_path / "notebooks").mkdir()
    source = {"cells": [prose("# 99 · Summary", "It sums up."), code("step.finish()")]}
    (tmp_path / "notebooks" / record.notebook).write_text(json.dumps(source))
    pages.build(tmp_path, tmp_path / "public")
    page = Page(tmp_path / "public" / "en" / "lab" / "steps" / "99_summary.html")
    assert "Below is what it would do." in page.text
    assert "It sums up." in page.text


def test_ready_is_never_said_of_a_rehearsal(tmp_path, monkeypatch):
    """A lab that meets every criterion is rehearsed, not ready."""
    write(tmp_path, a_run())
    monkeypatch.setattr(criteria, "is_ready", lambda readings: True)
    pages.build(tmp_path, tmp_path / "public")
    text = Page(tmp_path / "public" / "en" / "lab" / "index.html").text
    assert "Rehearsed in full" in text
    assert "Ready for production" not in text


# --- how it is written -------------------------------------------------------------------------------


def test_a_failing_build_leaves_the_old_pages(project, public, monkeypatch):
    """Half a publication is never seen, and nothing of it is left beside."""
    before = {path: path.read_bytes() for path in public.rglob("*") if path.is_file()}

    def breaks(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(pages, "_steps", breaks)
    with pytest.raises(OSError, match="full"):
        pages.build(project, public)
    assert {path: path.read_bytes() for path in public.rglob("*") if path.is_file()} == before
    assert not list(public.parent.glob(".pages-*"))


def test_a_rebuild_replaces_everything(tmp_path):
    """What is no longer published is gone; the pages themselves never count as a site."""
    history(tmp_path)
    out = tmp_path / "outputs" / "public"
    pages.build(tmp_path, out)
    (out / "stale.html").write_text("old")
    pages.build(tmp_path, out)
    assert not (out / "stale.html").exists()
    assert results.sites(tmp_path) == ["lab"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path):
    """`--out` naming a folder with other files costs nobody anything."""
    write(tmp_path, a_run())
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="not ours"):
        pages.build(tmp_path, tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to publish: no site has a run yet; begin with `runbook run`"),
        ({"sites": ["nowhere"]}, "site nowhere has no runs; sites with runs: none"),
        ({"locale": "fr"}, "locale is 'fr'; it is one of en, uk"),
    ],
)
def test_what_cannot_be_published_is_told_in_one_line(tmp_path, given, message):
    """Nothing is written."""
    with pytest.raises(UsageError) as refused:
        pages.build(tmp_path, tmp_path / "public", **given)
    assert str(refused.value) == message
    assert not (tmp_path / "public").exists()


def test_an_unreadable_notebook_costs_one_page_its_cells(tmp_path):
    """The rest is published."""
    run = a_run()
    folder = write(tmp_path, run)
    (folder / run.steps[1].notebook).write_text('{"cells": [')
    pages.build(tmp_path, tmp_path / "public")
    page = Page(tmp_path / "public" / "en" / "lab" / "steps" / "11_assess_proxmox_ve.html")
    assert "Its notebook cannot be read." in page.text


def test_names_in_a_run_cannot_leave_the_folder(tmp_path):
    """A run.json that names ../../ writes its page where pages lie."""
    run = a_run()
    steps = tuple(StepRecord("11", "t", "../../../evil #?.ipynb", Status.NOT_RUN) for _ in "1")
    write(tmp_path, published.replace(run, steps=steps))
    write(tmp_path, published.replace(a_run(ago=timedelta(days=1)), id="../../evil"))
    pages.build(tmp_path, tmp_path / "public")
    assert {path.parent.name for path in tmp_path.rglob("*evil*")} == {"steps"}


def test_importing_pages_is_light():
    """The command line pays for what it uses: no kernel, no data frame, no plot."""
    heavy = "{'nbconvert', 'pandas', 'matplotlib', 'nbformat', 'numpy', 'kubernetes', 'proxmoxer'}"
    code = f"import sys, runbook_lib.pages; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- words -------------------------------------------------------------------------------------------


def spoken() -> Iterator[str]:
    """Every English text that the pages translate."""
    for path in [*TEMPLATES.rglob("*.html"), *PACKAGE.glob("pages*.py")]:
        for found in re.finditer(r"""\bt\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""", path.read_text(encoding="utf-8")):
            yield found[1] or found[2]
    yield from (label for _, label in (*pages.NAVIGATION, *pages.DOCUMENTS))
    yield from map(str, (*Status, *ChangeKind))
    yield from ("New problems", "Fixed", "Problems remain", "No longer looked at", "proved")
    for criterion in criteria.CRITERIA:
        yield from (criterion.group, criterion.title)
    for risk in criteria.RISKS:
        yield from (risk.title, risk.answer)
    for level in criteria.LEVELS:
        yield from (level.name, level.means)
    yield from (entry.title for entry in checks.catalogue())
    for path in (PACKAGE.parent / "notebooks").glob("*.ipynb"):
        yield json.loads(path.read_text(encoding="utf-8"))["metadata"]["runbook"]["title"]


def test_every_word_of_the_pages_is_translated():
    """Add the missing lines to runbook_lib/locale/uk.json."""
    assert sorted(set(spoken()) - set(pages.words("uk"))) == []


def test_nearly_every_remedy_is_translated():
    """A reworded remedy falls back to English and may wait for its translation; a tenth may wait."""
    remedies = {entry.remedy for entry in checks.catalogue()}
    assert len(remedies - set(pages.words("uk"))) <= len(remedies) / 10


def test_translations_keep_their_places():
    """A sentence with {places} has the same ones in Ukrainian."""
    place = re.compile(r"\{\w+\}")
    for english, ukrainian in pages.words("uk").items():
        if any(f'"{english}"' in path.read_text(encoding="utf-8") for path in TEMPLATES.rglob("*.html")):
            assert sorted(place.findall(english)) == sorted(place.findall(ukrainian)), english


def test_reasons_of_the_criteria_are_translated(public):
    """ "62 not run" is made of a number and a word we know."""
    text = Page(public / "uk" / "lab" / "index.html").text
    assert "62 не виконано" in text
    assert "доведено" in text


# --- who can read it ---------------------------------------------------------------------------------


def test_a_page_has_one_first_heading_and_a_language(book, public):
    """Screen readers begin there."""
    for page in book:
        assert len(page.all("h1")) == 1, name(page)
        parts = page.path.relative_to(public).parts
        assert page.all("html")[0]["lang"] == (parts[0] if len(parts) > 1 else "en")
        assert not [nav for nav in page.all("nav") if not nav.get("aria-label")]


def test_tables_say_what_their_headers_head(book):
    """Every header cell has a scope, also those that came out of a notebook."""
    for page in book:
        assert not [cell for cell in page.all("th") if "scope" not in cell], name(page)


def test_pictures_have_words(book):
    """Every image has an alternative text, every drawing a label."""
    for page in book:
        assert not [image for image in page.all("img") if not image.get("alt")]
        assert not [svg for svg in page.all("svg") if not svg.get("aria-label")]


def test_inputs_have_names(book):
    """A filter that nobody can name cannot be used by voice."""
    for page in book:
        assert not [field for field in page.all("input") if field.get("type") == "search" and not field["aria-label"]]


def test_pages_work_without_the_script(book):
    """What the script needs is hidden until it runs; every row and cell is there before."""
    for page in book:
        assert not [form for form in page.all("form") if "hidden" not in form]
        assert not [button for button in page.all("button") if "hidden" not in button]
        assert not [row for row in page.all("tr", "section", "article") if "hidden" in row]


def colours(selector: str) -> dict[str, str]:
    """The custom properties of the first block with this selector."""
    sheet = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    block = sheet[sheet.index(selector) :]
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block[: block.index("}")]))


def contrast(first: str, second: str) -> float:
    """The ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


PAIRS = [
    *((ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "page", "code")),
    *((status, "paper") for status in ("pass", "warn", "fail", "error", "skip", "not-run")),
    *((status, f"{status}-soft") for status in ("pass", "warn", "fail", "error", "skip")),
    *(("ink", f"{status}-soft") for status in ("pass", "warn", "fail", "error", "skip")),
    *((word, "code") for word in ("error", "pass", "warn")),
    ("soft", "skip-soft"),
    ("soft", "warn-soft"),
    ("link", "warn-soft"),
    ("banner-ink", "banner"),
]


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'], ids=["light", "dark"])
@pytest.mark.parametrize("pair", PAIRS, ids="-on-".join)
def test_text_stands_out_from_its_ground(theme, pair):
    """At least 4.5 to 1, in both themes."""
    known = colours(theme)
    assert contrast(known[pair[0]], known[pair[1]]) >= 4.5


def test_dark_is_dark_by_choice_and_by_system():
    """The colours of both ways are the same."""
    assert colours(':root[data-theme="dark"] {') == colours(':root:not([data-theme="light"]) {')


def test_focus_is_seen():
    """The keyboard's place has an outline, on links, fields and boxes of the DAG; nowhere is it only taken away."""
    sheet = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    assert re.search(r":is\(a, button, input, summary.*?\):focus-visible \{ outline: 3px", sheet)
    assert ".dag a:focus-visible .box { stroke" in sheet


# --- what a site may be called -----------------------------------------------------------------------

HOSTILE = "\x1b[31mred\x1b[0m\x1b]0;title\x07\x00\x08\x9b31m\u202egpj.exe\u2066<script>alert(1)</script>&amp;'\""


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> list[Page]:
    """Pages of runs with hostile text wherever a site could have put it."""
    root = tmp_path_factory.mktemp("poisoned")
    cells = (
        prose(f"**{HOSTILE}** [x]({HOSTILE})"),
        code(f"# {HOSTILE}", printed(HOSTILE), printed(HOSTILE, "stderr")),
        code("1", shown({"text/html": f"<b>{HOSTILE}</b>"}), shown({"text/plain": HOSTILE})),
        code("1", shown({"text/markdown": HOSTILE}), shown({"image/png": published.png()}, alt=HOSTILE)),
        code("1", {"output_type": "error", "ename": HOSTILE, "evalue": HOSTILE, "traceback": [HOSTILE]}),
    )
    for ago in (0, 1):
        write(root, with_text(a_run(ago=timedelta(days=ago)), HOSTILE), *cells)
    pages.build(root, root / "public")
    return every_page(root / "public")


def test_control_characters_and_escapes_vanish(poisoned):
    """Neither a terminal's escapes nor direction overrides reach a page; the words around them do."""
    for page in poisoned:
        assert not pages_notebook.CONTROL.search(page.source), name(page)
        assert not re.search(r"(?<!\N{REPLACEMENT CHARACTER})\[31m", page.source), name(page)  # the notebook's own mark
        assert "\x1b" not in page.source
    assert "redgpj.exe" in next(page for page in poisoned if page.path.name == "findings.html").text


def test_markup_in_names_stays_text(poisoned):
    """No element and no attribute comes out of a name."""
    for page in poisoned:
        assert all(script.get("src", "").endswith("script.js") for script in page.all("script")), name(page)
        assert not [tag for tag, attributes in page.tags if {"onerror", "onload", "onclick"} & set(attributes)]


def test_an_unended_escape_hides_only_its_line():
    """A name that opens a title sequence must not swallow what was printed after it."""
    assert pages_notebook.plain("a\x1b]0;never ended\nb") == "a\nb"


def test_outputs_cannot_dress_up_as_the_page():
    """Classes and ids of the page are kept for the page; relative links of an output lead nowhere."""
    made = pages_notebook.safe(
        '<p class="rehearsal rb-note" id="theme">x</p><a href="../../index.html">y</a><h1>big</h1><form><input></form>'
    )
    assert made == '<p class="rb-note">x</p><a rel="noopener noreferrer">y</a><h2>big</h2>'


def test_links_between_notebooks_become_links_between_pages(public):
    """Also with an anchor; a link to what is not published is words."""
    page = Page(public / "en" / "lab" / "steps" / "13_prepare_the_test_environment.html")
    assert "11_assess_proxmox_ve.html" in page.prose
    link = {"a.ipynb": "a.html"}
    made = pages_notebook.markdown("[a](a.ipynb) [b](../b.md) [c](https://x.org)", lambda name: link.get(name, ""))
    assert re.findall(r'href="([^"]*)"', made) == ["a.html", "https://x.org"]


def test_injected_parameters_are_not_shown(book):
    """They name folders of the machine that ran it."""
    assert not [name(page) for page in book if "/srv/somewhere" in page.source]


def test_secrets_never_reach_a_page(tmp_path):
    """The last guard: raw, base64 and escaped, in results, outputs and sources, also in the JSON beside the pages."""
    canary = "canary<&>'secret-7731"
    coded = base64.b64encode(canary.encode()).decode()
    secrets.register(canary)
    try:
        text = f"before {canary} {coded} after"
        cells = (prose(text), code(f"x = '{text}'", printed(text), shown({"text/html": f"<i>{coded}</i>"})))
        write(tmp_path, with_text(a_run(), text), *cells)
        pages.build(tmp_path, tmp_path / "public")
        for path in (tmp_path / "public").rglob("*"):
            held = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            assert "secret-7731" not in held, path
            assert coded not in held, path
    finally:
        secrets.forget([canary])


def test_a_private_key_in_a_name_does_not_blank_the_page(tmp_path):
    """What looks like the start of a key is redacted where it stands, not up to the end of the page."""
    write(tmp_path, with_text(a_run(), "-----BEGIN RSA PRIVATE KEY----- MIIE"))
    pages.build(tmp_path, tmp_path / "public")
    for page in every_page(tmp_path / "public"):
        assert "MIIE" not in page.source
        assert page.source.rstrip().endswith("</html>")


# --- pictures ----------------------------------------------------------------------------------------


def record(step: str, *needs: str) -> StepRecord:
    """A step of a graph."""
    return StepRecord(step, f"Step {step}", f"{step}.ipynb", Status.PASS, needs)


def test_the_graph_draws_no_arrow_that_another_path_tells():
    """a → b → c leaves out a → c, which would run through b."""
    drawn = pages_svg.dag([record("a"), record("b", "a"), record("c", "a", "b")], {})
    assert drawn.count('class="edge"') == 2


def test_a_circle_of_needs_is_drawn_all_the_same():
    """The runner refuses it; old runs may hold it."""
    drawn = pages_svg.dag([record("a", "b"), record("b", "a"), record("c", "nothing")], {})
    assert drawn.count("<rect") == 3


def test_boxes_do_not_meet():
    """Every box of the fourteen steps has its own place inside the picture."""
    drawn = pages_svg.dag([record(step, *needs) for step, _, needs in STEPS], {})
    corners = [(int(x), int(y)) for x, y in re.findall(r'<rect class="box pass" x="(\d+)" y="(\d+)"', drawn)]
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn).groups())
    assert len(corners) == len(STEPS)
    assert all(x + pages_svg.BOX_WIDTH <= width and y + pages_svg.BOX_HEIGHT <= height for x, y in corners)
    for index, (x, y) in enumerate(corners):
        for other_x, other_y in corners[index + 1 :]:
            assert abs(x - other_x) >= pages_svg.BOX_WIDTH or abs(y - other_y) >= pages_svg.BOX_HEIGHT


@pytest.mark.parametrize("values", [(), (1.0,), (0.0, 0.0), (-1.0, -2.0), (5.0,) * 100], ids=str)
def test_a_histogram_of_odd_readings_is_none_or_drawn(values):
    """No reading, one, zeros and negatives do no harm."""
    drawn = pages_svg.histogram(Measurement("m", "ms", values))
    assert drawn == "" or drawn.startswith("<svg")


@pytest.mark.parametrize(("values", "drawn"), [([], False), ([None, 1.0], False), ([1.0, None, 2.0], True)])
def test_a_line_needs_two_readings(values, drawn):
    """One point is no trend."""
    assert bool(pages_svg.sparkline(values, label="x")) is drawn


@pytest.mark.parametrize(
    ("value", "locale", "text"),
    [
        (None, "en", "–"),
        (1234567.0, "en", "1\u202f234\u202f567"),
        (4.159, "en", "4.16"),
        (4.159, "uk", "4,16"),
        (0.0, "en", "0.00"),
    ],
)
def test_figures_are_spelled_for_their_reader(value, locale, text):
    """Thousands apart, the decimal sign of the language, a dash for nothing."""
    assert pages._figure(value, locale) == text
