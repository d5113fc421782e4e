"""The commands that only look: results, pages, the catalogue, sites; and the few lines every command shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runbook_lib.errors import RunbookError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

sites_app = typer.Typer(help="The sites of parameters/: list them, check one, show one.", no_args_is_help=True)

SiteArgument = Annotated[str, typer.Argument(help="A name from parameters/, or a YAML file.")]
SiteOption = Annotated[str | None, typer.Option("--site", help="Only this site.")]
FormatOption = Annotated[str, typer.Option("--format", help="json, junit or markdown; a table for people without it.")]


def project_root() -> Path:
    """The project the command works on."""
    from runbook_lib import parameters

    return parameters.project_root()


def outputs() -> Path:
    """Where its runs lie."""
    return project_root() / "outputs"


def show(renderable: RenderableType) -> None:
    """Print on stdout, as wide as the terminal."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def table(rows: list[Mapping[str, Any]], columns: list[str]) -> RenderableType:
    """The rows as a table; their texts are made harmless."""
    from rich.table import Table
    from rich.text import Text

    from runbook_lib.report import plain

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(row[column] if row[column] is not None else "")) for column in columns))
    return table


def known_format(given: str, *known: str) -> str:
    """The format, if it is one of these. Raises UsageError."""
    if given and given not in known:
        raise UsageError(f"format is {given!r}", "", f"it is one of {', '.join(known)}")
    return given


def emit_json(data: Any) -> None:
    """Print data on stdout as JSON."""
    from runbook_lib.report import json_text

    typer.echo(json_text(data))


def shown_path(path: Path) -> str:
    """The path as a person in this folder would write it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def parse_values(given: list[str]) -> dict[str, Any]:
    """`name=value` texts as a mapping; a value that is JSON is read as such, any other is text."""
    parsed: dict[str, Any] = {}
    for entry in given:
        name, sign, value = entry.partition("=")
        if not sign:
            raise UsageError(f"value {entry!r}", "it has no value", "write it as name=value")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def build_pages(out: Path, locale: str, sites: list[str] | None) -> Path:
    """The first page of the published pages."""
    from runbook_lib import pages as pages_module

    return Path(pages_module.build(project_root(), out, locale=locale, sites=sites))


# ---------------------------------------------------------------- results


def report(
    run: Annotated[str, typer.Argument(help="A run's id or the end of it, a folder, or `last`.")] = "last",
    site: SiteOption = None,
    format: FormatOption = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Passes and skips too.")] = False,
) -> None:
    """Show a run again. The exit code is the run's.

    Examples: `runbook report` · `runbook report last --format markdown` · `runbook report 4f2a -v`
    """
    from runbook_lib import report as reports
    from runbook_lib import results

    known_format(format, *reports.FORMATS)
    shown = results.read_run(results.find_run(run, project_root(), site=site))
    if format:
        typer.echo(reports.WRITERS[format](shown), nl=False)
    else:
        show(reports.terminal(shown, verbose=verbose))
    raise typer.Exit(reports.exit_code(shown))


def compare(
    before: Annotated[str, typer.Argument(help="The earlier run.")],
    after: Annotated[str, typer.Argument(help="The later run.")] = "last",
    format: FormatOption = "",
) -> None:
    """What is different between two runs: problems that appeared, were fixed, remain, or were not looked at again.

    Examples: `runbook compare 4f2a` · `runbook compare 4f2a 77b0 --format json`
    """
    from runbook_lib import report as reports
    from runbook_lib import results
    from runbook_lib.model import to_dict

    known_format(format, "json")
    root = project_root()
    difference = results.compare(
        results.read_run(results.find_run(before, root)), results.read_run(results.find_run(after, root))
    )
    if format:
        data = to_dict(difference)
        emit_json({**data, "before": difference.before.id, "after": difference.after.id})
    else:
        show(reports.comparison(difference))


def history(site: SiteArgument = "lab", format: FormatOption = "") -> None:
    """The runs of a site, and its daily and weekly figures.

    Examples: `runbook history` · `runbook history mysite --format json`
    """
    from runbook_lib import report as reports
    from runbook_lib import results
    from runbook_lib.model import to_dict

    known_format(format, "json")
    found = results.history(results.runs(site, project_root()))
    if format:
        emit_json(to_dict(found))
    elif not found.runs:
        raise UsageError(f"site {site} has no runs yet", "", f"begin with `runbook run {site}`")
    else:
        show(reports.timeline(found))


def pages(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write.", show_default="outputs/public")
    ] = None,
    locale: Annotated[str, typer.Option(help="en or uk.")] = "en",
    site: Annotated[list[str] | None, typer.Option("--site", help="Only this site; repeat.")] = None,
) -> None:
    """Publish the runs as static pages that need no server.

    Examples: `runbook pages` · `runbook pages --locale uk --out public`
    """
    typer.echo(shown_path(build_pages(out or outputs() / "public", locale, site)))


def checks(
    format: FormatOption = "",
    search: Annotated[str, typer.Argument(help="Only those with this word.", show_default=False)] = "",
) -> None:
    """The catalogue of checks: what is judged, by which source, and what to do when it fails.

    Examples: `runbook checks` · `runbook checks storage` · `runbook checks --format json`
    """
    from runbook_lib import checks as catalogue_module
    from runbook_lib.model import to_dict

    known_format(format, "json")
    found = [to_dict(entry) for entry in catalogue_module.catalogue()]
    found = [entry for entry in found if search.lower() in json.dumps(entry, ensure_ascii=False).lower()]
    if format:
        emit_json(found)
    else:
        show(table(found, ["id", "title", "remedy"]))


# ---------------------------------------------------------------- sites


@sites_app.command("list")
def sites_list(format: FormatOption = "") -> None:
    """The sites of parameters/, and whether each one is readable.

    Examples: `runbook sites list`
    """
    from runbook_lib import parameters

    known_format(format, "json")
    rows: list[Mapping[str, Any]] = [_site_row(name, parameters) for name in parameters.site_names(project_root())]
    if format:
        emit_json(rows)
    else:
        show(table(rows, ["site", "title", "changes", "state"]))


def _site_row(name: str, parameters: Any) -> dict[str, Any]:
    try:
        loaded = parameters.load_site(name, root=project_root(), start_lab=False)
    except RunbookError as problem:
        return {"site": name, "title": "", "changes": "", "state": str(problem)}
    return {"site": loaded.name, "title": loaded.title, "changes": loaded.changes, "state": "ok"}


@sites_app.command("check")
def sites_check(site: SiteArgument = "lab") -> None:
    """Judge a parameters file, its files and its secrets without touching the site.

    Exit 2 names file, key and what was expected.

    Examples: `runbook sites check mysite`
    """
    from runbook_lib import parameters

    loaded = parameters.load_site(site, root=project_root(), start_lab=False)
    if not loaded.emulated:  # the lab makes its own secrets when it starts
        parameters.check_references(loaded)
    typer.echo(f"{loaded.name}: ok")


@sites_app.command("show")
def sites_show(site: SiteArgument = "lab") -> None:
    """A site's parameters with every default, as JSON. Secrets stay references.

    Examples: `runbook sites show mysite`
    """
    from runbook_lib import parameters
    from runbook_lib.secrets import redact_json

    loaded = parameters.load_site(site, root=project_root(), start_lab=False)
    emit_json(redact_json(loaded.model_dump(mode="json")))


@sites_app.command("schema")
def sites_schema() -> None:
    """The JSON schema of a parameters file, for editors.

    Examples: `runbook sites schema > parameters/schema.json`
    """
    from runbook_lib import parameters

    emit_json(parameters.schema())
