"""`runbook …`: each command is its options, one call, one print. Results on stdout, progress and errors on stderr.

Heavy things are imported inside the commands: `runbook --help` answers within 0.3 s.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runbook_lib.cli_lab import emit_json, lab_app, parse_values, shown_path
from runbook_lib.errors import RunbookError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runbook_lib.model import Run

app = typer.Typer(
    name="runbook",
    help="Joins Proxmox VE and CozyStack, step by step, and proves it. Without hardware it rehearses in the lab.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
sites_app = typer.Typer(help="The sites of parameters/: list them, check one, show one.", no_args_is_help=True)
app.add_typer(sites_app, name="sites")
app.add_typer(lab_app, name="lab")

SiteArgument = Annotated[str, typer.Argument(help="A name from parameters/, or a YAML file.")]
SiteOption = Annotated[str | None, typer.Option("--site", help="Only this site.")]
FormatOption = Annotated[str, typer.Option("--format", help="json, junit or markdown; a table for people without it.")]


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    try:
        code = app(standalone_mode=False, prog_name="runbook")
    except RunbookError as problem:
        code = _complain(problem)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away; nothing to tell
        code = 0
    except Exception as problem:  # noqa: BLE001 - only to tell click's own usage errors from bugs
        code = _usage(problem)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(problem: RunbookError) -> int:
    from runbook_lib.report import plain
    from runbook_lib.secrets import redact

    typer.echo(f"runbook: {plain(redact(str(problem)))}", err=True)
    return problem.exit_code


def _usage(problem: Exception) -> int:
    message = getattr(problem, "format_message", None)
    if message is None:
        if type(problem).__name__ == "Abort":
            return 130
        raise problem
    context = getattr(problem, "ctx", None)
    where = context.command_path if context else "runbook"
    typer.echo(f"runbook: {' '.join(message().split())}; see `{where} --help`", err=True)
    return 2


def _root() -> Path:
    from runbook_lib.parameters import project_root

    return project_root()


def _outputs() -> Path:
    return _root() / "outputs"


def _print(renderable: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False).print(renderable)


def _table(rows: list[Mapping[str, Any]], columns: list[str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from runbook_lib.report import plain

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(row[column] if row[column] is not None else "")) for column in columns))
    return table


def _want_format(given: str, *known: str) -> str:
    if given and given not in known:
        raise UsageError(f"format is {given!r}", "", f"it is one of {', '.join(known)}")
    return given


# ---------------------------------------------------------------- run


def _finish(run: Run, *, format: str, pages: bool) -> None:
    """Write the reports and, if wanted, the pages; print the result, and where to look."""
    from runbook_lib import report

    folder = _outputs() / run.path
    report.write_reports(run, folder)
    if format:
        typer.echo(report.WRITERS[format](run), nl=False)
    else:
        _print(report.terminal(run))
    typer.echo(f"\nReport   {shown_path(folder / 'report.md')}", err=True)
    typer.echo(f"Events   {shown_path(folder / 'events.jsonl')}", err=True)
    if pages:
        typer.echo(f"Pages    {shown_path(_build_pages(_outputs() / 'public', 'en', None))}", err=True)
    waiting = [record.reason for record in run.steps if report.waits_for_approval(record)]
    for reason in waiting:
        typer.echo(f"Waiting  {report.plain(reason)}", err=True)
    if waiting or any(record.status == "not run" for record in run.steps):
        typer.echo(f"Go on    runbook resume {run.id}", err=True)
    raise typer.Exit(report.exit_code(run))


def _build_pages(out: Path, locale: str, sites: list[str] | None) -> Path:
    from runbook_lib import pages as pages_module

    return Path(pages_module.build(_root(), out, locale=locale, sites=sites))


StepOption = Annotated[
    list[str] | None, typer.Option("--step", "-s", help="Only this step (11) or phase (1x); repeat.")
]
ParallelOption = Annotated[int, typer.Option("--parallel", "-j", help="Steps at a time.")]
IsolationOption = Annotated[str, typer.Option(help="fork (prepared kernels) or spawn (fresh ones).")]
ProgressOption = Annotated[str, typer.Option(help="tree, plain, json or none; by default what fits the terminal.")]
PagesOption = Annotated[bool, typer.Option("--pages/--no-pages", help="Publish the pages afterwards.")]


@app.command()
def run(
    site: SiteArgument = "lab",
    step: StepOption = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="A notebook parameter, name=value; repeat.")
    ] = None,
    parallel: ParallelOption = 2,
    isolation: IsolationOption = "fork",
    progress: ProgressOption = "auto",
    format: FormatOption = "",
    pages: PagesOption = False,
) -> None:
    """Run the notebooks of a site in the order of their needs, and report.

    Exit code: 0 pass or warn, 1 a finding failed, 2 parameters, 3 could not tell, 4 waiting for approval, 5 locked.

    Examples: `runbook run` · `runbook run mysite --step 11` · `runbook run --format junit > report.xml`
    """
    _run(site, step, parse_values(parameter or []), None, parallel, isolation, progress, format, pages)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="A run's id or the end of it, or `last`.")] = "last",
    site: SiteOption = None,
    parallel: ParallelOption = 2,
    isolation: IsolationOption = "fork",
    progress: ProgressOption = "auto",
    format: FormatOption = "",
    pages: PagesOption = False,
) -> None:
    """Go on with a run at its first unfinished step.

    Examples: `runbook resume` · `runbook resume 20261123T190312Z-4f2a`
    """
    from runbook_lib import events, results

    folder = results.find_run(run, _root(), site=site)
    begun = events.first_event(folder)
    named, parameters = begun.get("named", folder.parent.name), begun.get("parameters", {})
    _run(named, None, parameters, folder.name, parallel, isolation, progress, format, pages)


def _run(
    site: str,
    steps: list[str] | None,
    parameters: dict[str, Any],
    resumed: str | None,
    parallel: int,
    isolation: str,
    style: str,
    format: str,
    pages: bool,
) -> None:
    from runbook_lib import progress as shown
    from runbook_lib import report, runner

    _want_format(format, *report.FORMATS)
    with shown.progress(style) as listener:
        done = runner.run(
            site,
            steps=steps,
            run=resumed,
            parallel=parallel,
            isolation=isolation,
            parameters=parameters,
            root=_root(),
            on_event=listener,
        )
    _finish(done, format=format, pages=pages)


# ---------------------------------------------------------------- results


@app.command()
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

    _want_format(format, *reports.FORMATS)
    shown = results.read_run(results.find_run(run, _root(), site=site))
    if format:
        typer.echo(reports.WRITERS[format](shown), nl=False)
    else:
        _print(reports.terminal(shown, verbose=verbose))
    raise typer.Exit(reports.exit_code(shown))


@app.command()
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

    _want_format(format, "json")
    root = _root()
    difference = results.compare(
        results.read_run(results.find_run(before, root)), results.read_run(results.find_run(after, root))
    )
    if format:
        data = to_dict(difference)
        emit_json({**data, "before": difference.before.id, "after": difference.after.id})
    else:
        _print(reports.comparison(difference))


@app.command()
def history(site: SiteArgument = "lab", format: FormatOption = "") -> None:
    """The runs of a site, and its daily and weekly figures.

    Examples: `runbook history` · `runbook history mysite --format json`
    """
    from runbook_lib import report as reports
    from runbook_lib import results
    from runbook_lib.model import to_dict

    _want_format(format, "json")
    found = results.history(results.runs(site, _root()))
    if format:
        emit_json(to_dict(found))
    elif not found.runs:
        raise UsageError(f"site {site} has no runs yet", "", f"begin with `runbook run {site}`")
    else:
        _print(reports.timeline(found))


@app.command()
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
    typer.echo(shown_path(_build_pages(out or _outputs() / "public", locale, site)))


@app.command()
def checks(
    format: FormatOption = "",
    search: Annotated[str, typer.Argument(help="Only those with this word.", show_default=False)] = "",
) -> None:
    """The catalogue of checks: what is judged, by which source, and what to do when it fails.

    Examples: `runbook checks` · `runbook checks storage` · `runbook checks --format json`
    """
    from runbook_lib import checks as catalogue_module
    from runbook_lib.model import to_dict

    _want_format(format, "json")
    found = [to_dict(entry) for entry in catalogue_module.catalogue()]
    found = [entry for entry in found if search.lower() in json.dumps(entry, ensure_ascii=False).lower()]
    if format:
        emit_json(found)
    else:
        _print(_table(found, ["id", "title", "remedy"]))


@app.command()
def steps(format: FormatOption = "") -> None:
    """The notebooks, what they need, and whether they change anything.

    Examples: `runbook steps` · `runbook steps --format json`
    """
    from runbook_lib import runner

    _want_format(format, "json")
    rows: list[Mapping[str, Any]] = [
        {
            "step": spec.step,
            "title": spec.title,
            "task": spec.task,
            "needs": " ".join(spec.needs),
            "changes": "changes" if spec.changes else "reads",
            "notebook": f"notebooks/{spec.notebook}",
        }
        for spec in runner.discover(_root())
    ]
    if format:
        emit_json(rows)
    else:
        _print(_table(rows, ["step", "title", "task", "needs", "changes", "notebook"]))


@app.command()
def new(name: Annotated[str, typer.Argument(help="Number and words, like 23_install_capi_provider.")]) -> None:
    """Write the notebook of a new step that already runs, in the project's form.

    Examples: `runbook new 45_check_backups`
    """
    from runbook_lib import scaffold

    typer.echo(shown_path(scaffold.new_step(name, _root())))


# ---------------------------------------------------------------- changes


@app.command()
def approve(
    digest: Annotated[
        str, typer.Argument(help="The plan's digest, as the waiting run names it.", show_default=False)
    ] = "",
    site: SiteOption = None,
) -> None:
    """Approve a plan that a run waits with, for 30 minutes; without a digest, show the waiting plans.

    Examples: `runbook approve` · `runbook approve 3f9c2ab41d07`
    """
    from runbook_lib import plan

    folders = sorted(_outputs().glob(f"{site or '*'}/approvals"))
    waiting = [(folder, entry) for folder in folders for entry in plan.pending(folder)]
    if not digest:
        for _, entry in waiting:
            typer.echo(f"{entry.digest[:12]}  {entry.site}")
            typer.echo(_harmless(entry.text()))
        if not waiting:
            typer.echo("no plan waits for approval", err=True)
        return
    found = {folder for folder, entry in waiting if len(digest) >= 12 and entry.digest.startswith(digest)}
    if len(found) != 1:
        known = ", ".join(entry.digest[:12] for _, entry in waiting) or "none"
        raise UsageError(f"approve {digest}", "no waiting plan has this digest", f"waiting: {known}")
    given = plan.grant(found.pop(), digest)
    typer.echo(f"approved {given.digest[:12]} for 30 minutes")


def _harmless(text: str) -> str:
    from runbook_lib.report import plain

    return plain(text, lines=True)


@app.command()
def sweep(
    site: SiteArgument = "lab",
    run: Annotated[str | None, typer.Option("--run", help="Only what this run left; all runs without it.")] = None,
) -> None:
    """Take back what dead runs had borrowed, and prove in both systems that nothing of it remains.

    Examples: `runbook sweep` · `runbook sweep mysite --run 20261123T190312Z-4f2a`
    """
    from runbook_lib import events, parameters, results
    from runbook_lib import sweep as sweeper

    loaded = parameters.load_site(site, root=_root())
    name = results.find_run(run, _root(), site=loaded.name).name if run else None
    folder = events.make_private(events.make_private(_outputs()) / loaded.name)
    with events.site_lock(folder, loaded.name):  # no run of the site may be alive
        done = sweeper.sweep(loaded, name, root=_root())
    _print_sweep(done)
    raise typer.Exit(0 if done.clean else 1)


def _print_sweep(done: Any) -> None:
    for entry in done.undone:
        typer.echo(_harmless(f"taken back  {entry.system} {entry.target} ({entry.proof})"))
    for entry in done.failed:
        typer.echo(_harmless(f"NOT undone  {entry.system} {entry.target}: {entry.reason}"))
    for entry in done.remaining:
        typer.echo(_harmless(f"REMAINS     {entry.system} {entry.target}"))
    for text in done.unseen:
        typer.echo(_harmless(f"NOT SEEN    {text}"))
    for text in done.unfinished:
        typer.echo(_harmless(f"unfinished  {text}"))
    typer.echo("clean: nothing borrowed remains" if done.clean else "not clean")


# ---------------------------------------------------------------- sites


@sites_app.command("list")
def sites_list(format: FormatOption = "") -> None:
    """The sites of parameters/, and whether each one is readable.

    Examples: `runbook sites list`
    """
    from runbook_lib import parameters

    _want_format(format, "json")
    rows: list[Mapping[str, Any]] = [_site_row(name, parameters) for name in parameters.site_names(_root())]
    if format:
        emit_json(rows)
    else:
        _print(_table(rows, ["site", "title", "changes", "state"]))


def _site_row(name: str, parameters: Any) -> dict[str, Any]:
    try:
        loaded = parameters.load_site(name, root=_root(), start_lab=False)
    except RunbookError as problem:
        return {"site": name, "title": "", "changes": "", "state": str(problem)}
    return {"site": loaded.name, "title": loaded.title, "changes": loaded.changes, "state": "ok"}


@sites_app.command("check")
def sites_check(site: SiteArgument = "lab") -> None:
    """Judge a parameters file without touching the site. Exit 2 names file, key and what was expected.

    Examples: `runbook sites check mysite`
    """
    from runbook_lib import parameters

    loaded = parameters.load_site(site, root=_root(), start_lab=False)
    typer.echo(f"{loaded.name}: ok")


@sites_app.command("show")
def sites_show(site: SiteArgument = "lab") -> None:
    """A site's parameters with every default, as JSON. Secrets stay references.

    Examples: `runbook sites show mysite`
    """
    from runbook_lib import parameters
    from runbook_lib.secrets import redact_json

    loaded = parameters.load_site(site, root=_root(), start_lab=False)
    emit_json(redact_json(loaded.model_dump(mode="json")))


@sites_app.command("schema")
def sites_schema() -> None:
    """The JSON schema of a parameters file, for editors.

    Examples: `runbook sites schema > parameters/schema.json`
    """
    from runbook_lib import parameters

    emit_json(parameters.schema())


if __name__ == "__main__":
    main()
