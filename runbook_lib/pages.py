"""The published pages: runs of one or more sites as one static folder that works from `file://` and asks nobody."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from runbook_lib import checks, criteria, pages_notebook, pages_svg, results
from runbook_lib.model import Finding, Run, Status, StepRecord, now, to_dict

HERE = Path(__file__).resolve().parent
LOCALES = ("en", "uk")
KEPT_RUNS = 20
"""Runs older than these are counted in the history and have no page of their own."""

ORDER = (Status.ERROR, Status.FAIL, Status.WARN, Status.SKIP, Status.NOT_RUN, Status.PASS)

NAVIGATION = (
    ("index.html", "Overview"),
    ("steps.html", "Steps"),
    ("findings.html", "Findings"),
    ("changes.html", "Changes"),
    ("benchmarks.html", "Benchmarks"),
    ("history.html", "History"),
    ("compare.html", "Comparison"),
    ("checks.html", "Checks"),
    ("documents.html", "Documents"),
)

DOCUMENTS = (
    ("installation.html", "Installation runbook"),
    ("support.html", "Support runbook"),
    ("troubleshooting.html", "Troubleshooting guide"),
    ("performance.html", "Performance tuning guide"),
    ("security.html", "Security checklist"),
)


@dataclass(frozen=True)
class _Book:
    """One site in one language: where its pages lie and what they are made of."""

    site: str
    locale: str
    runs: Sequence[Run]
    folder: Path
    up: str  # from the folder to the root of the publication

    @property
    def last(self) -> Run:
        return self.runs[0]


def build(root: Path, out: Path, *, locale: str = "en", sites: Iterable[str] | None = None) -> Path:
    """The path of `index.html`: every site that has runs under `root`/outputs, in every language, `locale` first.

    The folder is made aside and put in its place whole, so a reader never sees half of it.
    Raises FileNotFoundError when no site has a run yet.
    """
    named = list(sites) if sites is not None else results.sites(root)
    books = {site: found for site in named if (found := results.runs(site, root))}
    if not books:
        raise FileNotFoundError("nothing to publish: no site has a run yet; start with `runbook run`")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pages-") as aside:
        made = Path(aside) / "public"
        made.mkdir()
        for asset in ("style.css", "script.js"):
            shutil.copyfile(HERE / "templates" / asset, made / asset)
        for language in LOCALES:
            for site, found in books.items():
                folder = made / site if language == locale else made / language / site
                folder.mkdir(parents=True)
                _site(
                    _Book(site, language, found, folder, "../" if language == locale else "../../"), root, list(books)
                )
        _entrance(made, next(iter(books)))
        _replace(made, out)
    return out / "index.html"


def _entrance(made: Path, site: str) -> None:
    """The first page sends the reader to the first site's overview, by a link too."""
    (made / "index.html").write_text(
        _environment("en").get_template("entrance.html").render(target=f"{site}/index.html", site=site),
        encoding="utf-8",
    )


def _replace(made: Path, out: Path) -> None:
    if out.exists():
        old = made.parent / "old"
        out.rename(old)
    made.rename(out)


def _site(book: _Book, root: Path, sites: Sequence[str]) -> None:
    run = book.last
    before = book.runs[1] if len(book.runs) > 1 else None
    links = {record.step: f"steps/{_page(record)}" for record in run.steps}
    history = results.history(book.runs)
    readings = criteria.read(book.runs)
    common: dict[str, Any] = {
        "book": book,
        "run": run,
        "sites": sites,
        "links": links,
        "made": now(),
        "site": book.site,
    }
    comparison = results.compare(before, run) if before else None
    _write(
        book,
        "index.html",
        common,
        readings=readings,
        ready=criteria.is_ready(readings),
        tally=_tally(run.findings),
        comparison=comparison,
        actions=criteria.next_actions(run),
        watch=criteria.watch(run),
        history=history,
        dag=pages_svg.dag(run.steps, links),
        trend=pages_svg.sparkline(
            [entry.share_passed for entry in reversed(history.runs)], label="share of checks passed, run by run"
        ),
    )
    _write(book, "steps.html", common, dag=pages_svg.dag(run.steps, links))
    _write(book, "findings.html", common, findings=_by_gravity(run))
    _write(book, "changes.html", common)
    _write(book, "benchmarks.html", common, rows=_benchmarks(book.runs))
    _write(book, "history.html", common, history=history)
    _write(book, "compare.html", common, comparison=comparison)
    _write(book, "checks.html", common, catalogue=checks.catalogue())
    _write(book, "documents.html", common, documents=DOCUMENTS)
    for name, title in DOCUMENTS:
        _write(
            book,
            f"documents/{name}",
            common,
            title=title,
            catalogue=checks.catalogue(),
            findings=_by_gravity(run),
            rows=_benchmarks(book.runs),
        )
    _steps(book, common, root)
    for older in book.runs[1:KEPT_RUNS]:
        _write(book, f"runs/{older.id}.html", common, template="run.html", older=older, findings=_by_gravity(older))
    (book.folder / "run.json").write_text(json.dumps(to_dict(run), ensure_ascii=False, indent=1), encoding="utf-8")


def _steps(book: _Book, common: Mapping[str, Any], root: Path) -> None:
    run = book.last
    names = {record.notebook: _page(record) for record in run.steps}
    for index, record in enumerate(run.steps):
        path = root / "outputs" / run.path / record.notebook if run.path else _missing(root, book, run, record)
        notebook = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": []}
        cells = pages_notebook.cells(
            notebook,
            assets=book.folder / "figures",
            assets_url="../figures/",
            link=lambda target: names.get(Path(target).name, target),
        )
        _write(
            book,
            f"steps/{_page(record)}",
            common,
            template="step.html",
            record=record,
            cells=cells,
            previous=run.steps[index - 1] if index else None,
            following=run.steps[index + 1] if index + 1 < len(run.steps) else None,
            pages=names,
        )


def _missing(root: Path, book: _Book, run: Run, record: StepRecord) -> Path:
    return root / "outputs" / book.site / run.id / record.notebook


def _write(book: _Book, name: str, common: Mapping[str, Any], *, template: str = "", **given: Any) -> None:
    path = book.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = name.count("/")
    page = _environment(book.locale).get_template(template or name)
    text = page.render(
        **common,
        **given,
        here=name,
        base="../" * depth,  # to the site's folder
        root="../" * depth + book.up,  # to the publication's folder
        navigation=NAVIGATION,
        languages=_languages(book, name, depth),
    )
    path.write_text(text, encoding="utf-8")


def _languages(book: _Book, name: str, depth: int) -> list[tuple[str, str, bool]]:
    """(code, link, is this one) for each language; the main one lies at the root, the others below their code."""
    to_root = "../" * depth + book.up
    main = book.up == "../"
    rows = []
    for code in LOCALES:
        inside = f"{book.site}/{name}" if (code == book.locale) == main else f"{code}/{book.site}/{name}"
        rows.append((code, to_root + inside, code == book.locale))
    return rows


def _page(record: StepRecord) -> str:
    return Path(record.notebook).stem + ".html"


def _tally(findings: Iterable[Finding]) -> list[tuple[Status, int]]:
    counted = [finding.status for finding in findings]
    return [(status, counted.count(status)) for status in ORDER if counted.count(status)]


def _by_gravity(run: Run) -> list[tuple[StepRecord, Finding]]:
    rows = [(record, finding) for record in run.steps if record.result for finding in record.result.findings]
    return sorted(rows, key=lambda row: (ORDER.index(row[1].status), row[0].step, row[1].check, row[1].subject))


def _benchmarks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per measurement of the newest run, with its histogram and its median over the runs."""
    rows = []
    medians: dict[tuple[str, str], list[float | None]] = {}
    for run in reversed(runs):
        for record in run.steps:
            for measured in record.result.measurements if record.result else ():
                medians.setdefault((record.step, measured.name), []).append(measured.percentile(50))
    for record in runs[0].steps:
        for measured in record.result.measurements if record.result else ():
            rows.append(
                {
                    "record": record,
                    "measurement": measured,
                    "histogram": pages_svg.histogram(measured),
                    "trend": pages_svg.sparkline(
                        medians[(record.step, measured.name)], label=f"{measured.name}: median, run by run"
                    ),
                }
            )
    return rows


# --- words and templates ---------------------------------------------------------------------------


@cache
def _words(locale: str) -> Mapping[str, str]:
    path = HERE / "locale" / f"{locale}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@cache
def _environment(locale: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    words = _words(locale)
    environment.globals.update(t=lambda text: words.get(text, text), locale=locale, Status=Status)
    environment.filters.update(
        css=lambda status: str(status).replace(" ", "-"),
        clean=lambda text: pages_notebook.CONTROL.sub("", pages_notebook.ANSI.sub("", str(text))),
        moment=_moment,
        share=lambda value: "–" if value is None else f"{value:.0%}",
        took=_took,
        figure=lambda value: "–" if value is None else f"{value:,.2f}".replace(",", " "),
    )
    environment.finalize = _finalize
    return environment


def _finalize(value: Any) -> Any:
    """Control characters and terminal escapes never reach a page, whoever put them into a name."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return pages_notebook.CONTROL.sub("", pages_notebook.ANSI.sub("", value))
    return value


def _moment(text: str | None) -> str:
    if not text:
        return "–"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _took(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
