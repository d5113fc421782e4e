"""The published pages: runs of one or more sites as one static folder that works from `file://` and asks nobody."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
from markupsafe import Markup, escape

from runbook_lib import checks, criteria, pages_notebook, pages_svg, results
from runbook_lib.errors import UsageError
from runbook_lib.model import Finding, Measurement, Run, Status, StepRecord, now, to_dict
from runbook_lib.secrets import redact, redact_json

HERE = Path(__file__).resolve().parent
LOCALES = ("en", "uk")
KEPT_RUNS = 20
"""Runs older than these are counted in the history and have no page of their own."""

MARK = ".runbook-pages"
"""A folder with this file in it was made here, and may be replaced."""

CSP = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"

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
    ("guide.html", "Complete integration guide"),
    ("plan.html", "Integration plan: final state"),
)


@dataclass(frozen=True)
class _Book:
    """One site in one language: where its pages lie and what they are made of."""

    site: str
    locale: str
    runs: Sequence[Run]
    folder: Path
    root: Path  # of the project

    @cached_property
    def state(self) -> Run:
        """The newest run, with what older ones know of the steps it left out."""
        state = results.state_of_site(self.runs)
        assert state is not None  # a site without runs has no book
        return state


def build(root: Path, out: Path, *, locale: str = "en", sites: Iterable[str] | None = None) -> Path:
    """The path of `index.html`, which leads to every site that has runs under `root`/outputs, in `locale` first.

    The folder is made aside and put in its place whole, so a reader never sees half of it.
    Raises UsageError when there is nothing to publish, and when `out` holds something that is not ours.
    """
    if locale not in LOCALES:
        raise UsageError(f"locale is {locale!r}", "", f"it is one of {', '.join(LOCALES)}")
    books = _found(root, sites)
    out = Path(out)
    _refuse_to_replace(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pages-") as aside:
        made = Path(aside) / "public"
        made.mkdir()
        for asset in ("style.css", "script.js"):
            shutil.copyfile(HERE / "templates" / asset, made / asset)
        (made / MARK).write_text("made by runbook pages; replaced whole\n", encoding="utf-8")
        for language in LOCALES:
            for site, found in books.items():
                _site(_Book(site, language, found, made / language / site, Path(root)), list(books))
        for site, found in books.items():
            data = json.dumps(redact_json(to_dict(found[0])), ensure_ascii=False, indent=1)
            (made / f"{site}.json").write_text(data, encoding="utf-8")
        _entrance(made, books, locale)
        _replace(made, out)
    return out / "index.html"


def _found(root: Path, sites: Iterable[str] | None) -> dict[str, list[Run]]:
    named = list(sites) if sites else results.sites(root)
    books = {site: found for site in named if (found := results.runs(site, root))}
    lost = sorted(set(named) - set(books))
    if lost and sites:
        known = ", ".join(results.sites(root)) or "none"
        raise UsageError(f"site {lost[0]} has no runs", "", f"sites with runs: {known}")
    if not books:
        raise UsageError("nothing to publish", "no site has a run yet", "begin with `runbook run`")
    return books


def _refuse_to_replace(out: Path) -> None:
    """A folder is replaced only where these pages made it: `--out ~/Documents` must cost nobody anything."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"pages cannot be written to {out.name}", "it is not a folder", "choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UsageError(
            f"pages cannot be written to {out.name}", "it holds files that are not ours", "choose an empty --out"
        )


def _entrance(made: Path, books: Mapping[str, Sequence[Run]], locale: str) -> None:
    """The first page: it leads on to the only site, or lists them all with their state."""
    rows = [
        {"site": site, "run": runs[0], "ready": criteria.is_ready(criteria.read(runs)), "link": f"{locale}/{site}/"}
        for site, runs in books.items()
    ]
    text = _environment(locale).get_template("entrance.html").render(rows=rows, languages=LOCALES, csp=CSP)
    (made / "index.html").write_text(_guarded(text), encoding="utf-8")


def _replace(made: Path, out: Path) -> None:
    """The new folder in the place of the old one, or the old one where it was."""
    old = made.parent / "old"
    if out.exists():
        out.rename(old)
    try:
        made.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise


def _site(book: _Book, sites: Sequence[str]) -> None:
    run = book.state
    t = _translator(book.locale)
    before = results.state_of_site(book.runs[1:])
    links = {record.step: f"steps/{_page(record)}" for record in run.steps}
    history = replace(results.history(book.runs), phases=results.phase_progress(run))
    readings = criteria.read(book.runs)
    level = criteria.level(book.runs)
    catalogue = checks.catalogue()
    common: dict[str, Any] = {
        "run": run,
        "emulated": run.emulated,
        "sites": sites,
        "links": links,
        "made": now(),
        "site": book.site,
        "known": {entry.id for entry in catalogue},
    }
    comparison = results.compare(before, run) if before else None
    dag = pages_svg.dag(run.steps, links, t=t)
    _write(
        book,
        "index.html",
        common,
        readings=readings,
        ready=criteria.is_ready(readings),
        level=level,
        comparison=comparison,
        actions=criteria.next_actions(run),
        watch=criteria.watch(run),
        history=history,
        dag=dag,
        trend=pages_svg.sparkline(
            [entry.share_passed for entry in reversed(history.runs)], label=t("Checks passed, run by run"), share=True
        ),
    )
    _write(book, "steps.html", common, dag=dag)
    _write(book, "findings.html", common, findings=_by_gravity(run))
    _write(book, "changes.html", common)
    rows = _benchmarks(book.runs, run)
    _write(book, "benchmarks.html", common, rows=rows)
    kept = {Path(older.path).name for older in book.runs[1:KEPT_RUNS]}
    _write(book, "history.html", common, history=history, kept=kept, problems=results.problems(book.runs))
    _write(book, "compare.html", common, comparison=comparison)
    _write(book, "checks.html", common, catalogue=catalogue)
    _write(book, "documents.html", common, documents=DOCUMENTS)
    for name, title in DOCUMENTS:
        _write(
            book,
            f"documents/{name}",
            common,
            title=title,
            catalogue=catalogue,
            findings=_by_gravity(run),
            rows=rows,
            before=before,
            history=history,
            readings=readings,
            level=level,
            titles={entry.id: entry.title for entry in catalogue},
        )
    _steps(book, common)
    for older in book.runs[1:KEPT_RUNS]:
        about = {**common, "emulated": older.emulated}
        name = f"runs/{Path(older.path).name}.html"
        _write(book, name, about, template="run.html", older=older, findings=_by_gravity(older))


def _steps(book: _Book, common: Mapping[str, Any]) -> None:
    run = book.state
    names = {record.notebook: _page(record) for record in run.steps}

    def page_of(target: str) -> str:
        name, hash_, anchor = target.partition("#")
        page = names.get(Path(unquote(name)).name)
        return f"{page}{hash_}{anchor}" if page else ""

    for index, record in enumerate(run.steps):
        notebook, state = _notebook(book, record)
        cells = pages_notebook.cells(notebook, assets=book.folder / "figures", assets_url="../figures/", link=page_of)
        _write(
            book,
            f"steps/{_page(record)}",
            common,
            template="step.html",
            record=record,
            cells=cells,
            state=state,
            previous=run.steps[index - 1] if index else None,
            following=run.steps[index + 1] if index + 1 < len(run.steps) else None,
        )


def _notebook(book: _Book, record: StepRecord) -> tuple[Mapping[str, Any], str]:
    """The executed notebook and "ran"; its source and "source" where it did not run; nothing and "lost"."""
    name = Path(record.notebook).name
    executed = book.root / "outputs" / Path(book.state.path).parent / record.run / name
    state = "ran" if executed.is_file() else "source"
    path = executed if executed.is_file() else book.root / "notebooks" / name
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, "lost"
    return (notebook, state) if isinstance(notebook, Mapping) else ({}, "lost")


def _write(book: _Book, name: str, common: Mapping[str, Any], *, template: str = "", **given: Any) -> None:
    path = book.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    base = "../" * name.count("/")  # to the site's folder
    text = (
        _environment(book.locale)
        .get_template(template or name)
        .render(
            **common,
            **given,
            here=name,
            base=base,
            root=f"{base}../../",  # to the publication's folder
            navigation=NAVIGATION,
            languages=LOCALES,
            csp=CSP,
        )
    )
    path.write_text(_guarded(text), encoding="utf-8")


def _guarded(text: str) -> str:
    """The last guard over every page: what was redacted and cleaned where it came from is so again as a whole."""
    return redact(pages_notebook.CONTROL.sub("", text))


def _page(record: StepRecord) -> str:
    """The name of a step's page; its notebook's name comes from a file, so only plain characters pass."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(record.notebook).stem or record.step) + ".html"


def _by_gravity(run: Run) -> list[tuple[StepRecord, Finding]]:
    rows = [(record, finding) for record in run.steps if record.result for finding in record.result.findings]
    return sorted(rows, key=lambda row: (ORDER.index(row[1].status), row[0].step, row[1].check, row[1].subject))


def _benchmarks(runs: Sequence[Run], state: Run) -> list[dict[str, Any]]:
    """One row per measurement of the site's state, with its histogram and its median over the runs."""
    medians: dict[tuple[str, str, str], list[float | None]] = {}
    for run in reversed(runs):
        for record, measured in _measurements(run):
            medians.setdefault((record.step, measured.name, measured.subject), []).append(measured.percentile(50))
    return [
        {
            "record": record,
            "measurement": measured,
            "late": measured.threshold is not None and (measured.percentile(95) or 0) > measured.threshold,
            "histogram": pages_svg.histogram(measured),
            "trend": pages_svg.sparkline(
                medians[(record.step, measured.name, measured.subject)], label=f"{measured.name}: p50"
            ),
        }
        for record, measured in _measurements(state)
    ]


def _measurements(run: Run) -> list[tuple[StepRecord, Measurement]]:
    return [(record, measured) for record in run.steps if record.result for measured in record.result.measurements]


# --- words and templates ---------------------------------------------------------------------------


@cache
def words(locale: str) -> Mapping[str, str]:
    """English sentence → sentence of the locale; of English, nothing."""
    path = HERE / "locale" / f"{locale}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _translator(locale: str) -> Callable[[str], str]:
    known = words(locale)
    return lambda text: known.get(text, text)


@cache
def _environment(locale: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
    )
    t = _translator(locale)
    environment.globals.update(t=t, locale=locale, Status=Status)
    environment.filters.update(
        css=lambda status: str(status).replace(" ", "-"),
        moment=_moment,
        share=lambda value: "–" if value is None else f"{value * 100:.0f} %",
        took=lambda seconds: _took(seconds, locale, t),
        figure=lambda value: _figure(value, locale),
        why=lambda text: _why(text, t),
        ticks=_ticks,
        breaks=lambda text: Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(_finalize(text))))),
    )
    return environment


def _finalize(value: Any) -> Any:
    """Control characters, terminal escapes and secrets never reach a page, whoever put them into a name."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return pages_notebook.bare(value)
    return value


def _moment(text: str | None) -> str:
    if not text:
        return "–"
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _ticks(text: str) -> Markup:
    """A sentence of a check, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(_finalize(text)))))


def _took(seconds: float | None, locale: str, t: Callable[[str], str]) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes:
        return f"{minutes} {t('min')} {rest} {t('s')}"
    return f"{_decimal(f'{seconds:.1f}', locale)} {t('s')}"


def _decimal(text: str, locale: str) -> str:
    return text.replace(".", ",") if locale == "uk" else text


def _figure(value: float | None, locale: str) -> str:
    if value is None:
        return "–"
    text = f"{value:,.0f}" if value == int(value) and value >= 100 else f"{value:,.2f}"
    return _decimal(text.replace(",", "\N{NARROW NO-BREAK SPACE}"), locale)


_WHY = re.compile(
    r"(?P<step>\w+) (?:last ran on (?P<day>[\d-]+): too old"
    r"|(?P<state>not run|warn|fail|skip|error)(?:: (?P<of>[\w.]+))?)"
    r"|(?P<check>[\w.]+) judged nothing"
    r"|(?P<mute>\w+): (?P<count>\d+) problems without a remedy"
)


def _why(text: str, t: Callable[[str], str]) -> str:
    """A criterion's reasons in the reader's language: they are made of few words."""

    def part(one: str) -> str:
        found = _WHY.fullmatch(one)
        if found is None:
            return t(one)
        if found["day"]:
            return t("{step} last ran on {day}: too old").format(step=found["step"], day=found["day"])
        if found["check"]:
            return t("{check} judged nothing").format(check=found["check"])
        if found["mute"]:
            told = t("{step}: {count} problems without a remedy")
            return told.format(step=found["mute"], count=found["count"])
        of = f": {found['of']}" if found["of"] else ""
        return f"{found['step']} {t(found['state'])}{of}"

    return "; ".join(map(part, text.split("; ")))
