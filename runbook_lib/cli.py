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
from typer._click.exceptions import ClickException  # typer carries its own click and re-exports its leaves only

from runbook_lib import cli_results
from runbook_lib.cli_results import (
    FormatOption,
    SiteArgument,
    SiteOption,
    build_pages,
    emit_json,
    known_format,
    outputs,
    parse_values,
    project_root,
    show,
    shown_path,
    sites_app,
    table,
)
from runbook_lib.errors import RunbookError, UsageError

if TYPE_CHECKING:
    from runbook_lib.model import Run

app = typer.Typer(
    name="runbook",
    help="Joins Proxmox VE and CozyStack, step by step, and proves it. Without hardware it rehearses in the lab.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
lab_app = typer.Typer(help="The emulated site on this machine: start, look, change, stop.", no_args_is_help=True)
app.add_typer(sites_app, name="sites")
app.add_typer(lab_app, name="lab")


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
    except ClickException as problem:
        code = _usage(problem)
    except typer.Abort:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _complain(problem: RunbookError) -> int:
    from runbook_lib.report import plain
    from runbook_lib.secrets import redact

    typer.echo(f"runbook: {plain(redact(str(problem)))}", err=True)
    return problem.exit_code


def _usage(problem: ClickException) -> int:
    from runbook_lib.report import plain

    context = getattr(problem, "ctx", None)
    where = context.command_path if context else "runbook"
    typer.echo(f"runbook: {plain(' '.join(problem.format_message().split()))}; see `{where} --help`", err=True)
    return 2


# ---------------------------------------------------------------- run


def _finish(run: Run, *, format: str, pages: bool) -> None:
    """Write the reports and, if wanted, the pages; print the result, and where to look."""
    from runbook_lib import report

    folder = outputs() / run.path
    report.write_reports(run, folder)
    if format:
        typer.echo(report.WRITERS[format](run), nl=False)
    else:
        show(report.terminal(run))
    typer.echo(f"\nReport   {shown_path(folder / 'report.md')}", err=True)
    typer.echo(f"Events   {shown_path(folder / 'events.jsonl')}", err=True)
    if pages:
        typer.echo(f"Pages    {shown_path(build_pages(outputs() / 'public', 'en', None))}", err=True)
    waiting = [record.reason for record in run.steps if report.waits_for_approval(record)]
    for reason in waiting:
        typer.echo(f"Waiting  {report.plain(reason)}", err=True)
    if waiting or any(record.status == "not run" for record in run.steps):
        typer.echo(f"Go on    runbook resume {run.id}", err=True)
    raise typer.Exit(report.exit_code(run))


StepOption = Annotated[
    list[str] | None, typer.Option("--step", "-s", help="Only these steps (11,12) or phases (1x); may be repeated.")
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

    Examples: `runbook run` · `runbook run mysite --step 11,12` · `runbook run --format junit > report.xml`
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

    folder = results.find_run(run, project_root(), site=site)
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

    known_format(format, *report.FORMATS)
    with shown.progress(style) as listener:
        done = runner.run(
            site,
            steps=steps,
            run=resumed,
            parallel=parallel,
            isolation=isolation,
            parameters=parameters,
            root=project_root(),
            on_event=listener,
        )
    _finish(done, format=format, pages=pages)


@app.command()
def steps(format: FormatOption = "") -> None:
    """The notebooks, what they need, and whether they change anything.

    Examples: `runbook steps` · `runbook steps --format json`
    """
    from runbook_lib import runner

    known_format(format, "json")
    rows: list[Mapping[str, Any]] = [
        {
            "step": spec.step,
            "title": spec.title,
            "task": spec.task,
            "needs": " ".join(spec.needs),
            "changes": "changes" if spec.changes else "reads",
            "notebook": f"notebooks/{spec.notebook}",
        }
        for spec in runner.discover(project_root())
    ]
    if format:
        emit_json(rows)
    else:
        show(table(rows, ["step", "title", "task", "needs", "changes", "notebook"]))


@app.command()
def new(name: Annotated[str, typer.Argument(help="Number and words, like 23_install_capi_provider.")]) -> None:
    """Write the notebook of a new step that already runs, in the project's form.

    Examples: `runbook new 45_check_backups`
    """
    from runbook_lib import scaffold

    typer.echo(shown_path(scaffold.new_step(name, project_root())))


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

    folders = sorted(outputs().glob(f"{site or '*'}/approvals"))
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

    loaded = parameters.load_site(site, root=project_root())
    name = results.find_run(run, project_root(), site=loaded.name).name if run else None
    folder = events.make_private(events.make_private(outputs()) / loaded.name)
    with events.site_lock(folder, loaded.name):  # no run of the site may be alive
        done = sweeper.sweep(loaded, name, root=project_root())
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


for command in (cli_results.report, cli_results.compare, cli_results.history, cli_results.pages, cli_results.checks):
    app.command()(command)


# ---------------------------------------------------------------- lab

DirOption = Annotated[Path | None, typer.Option("--dir", help="Where the lab keeps its state.", show_default=".lab")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]


def _lab_folder(folder: Path | None) -> Path:
    return folder or project_root() / ".lab"


def _print_connection(connection: Any, as_json: bool) -> None:
    """Without --json the secrets stay where they lie: only their file is named."""
    if as_json:
        emit_json(connection.to_dict())
        return
    typer.echo(f"proxmox     {connection.proxmox.url}  as {connection.proxmox.username}")
    kubernetes = connection.kubernetes
    typer.echo(f"kubernetes  {kubernetes.url}  kubeconfig {shown_path(Path(kubernetes.kubeconfig))}")
    typer.echo(f"authority   {shown_path(Path(connection.proxmox.ca_file))}; secrets in secrets.json beside it")


@lab_app.command("up")
def lab_up(
    scenario: Annotated[
        str | None, typer.Option(help="A scenario's name or YAML file.", show_default="healthy")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Lab seconds per second, of tasks and boots.")] = None,
    dir: DirOption = None,
    proxmox_port: Annotated[int, typer.Option(help="0 = any free one.")] = 0,
    kubernetes_port: Annotated[int, typer.Option(help="0 = any free one.")] = 0,
    crds: Annotated[
        Path | None,
        typer.Option(help="A folder of CustomResourceDefinitions to serve as well.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="What looks random follows it: same seed, same run.", show_default="1")
    ] = None,
    apiserver: Annotated[
        str | None,
        typer.Option(
            help="`real`: run the cluster on kube-apiserver and etcd of KUBEBUILDER_ASSETS, or on --kubeconfig.",
            show_default="own",
        ),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="A bare API server to run the cluster on; its current context counts.", show_default=False),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Start the lab, or go on with the one that is up, and tell how to reach it.

    Examples: `runbook lab up --scenario fresh-node --dir /tmp/one --json` · `runbook lab up --crds ../crds` ·
    `KUBEBUILDER_ASSETS=$(setup-envtest use -p path) runbook lab up --apiserver real` ·
    `runbook lab up --apiserver real --kubeconfig bare.kubeconfig --dir /tmp/real`
    """
    from runbook_lib.lab import control

    up = control.up(
        _lab_folder(dir),
        scenario=scenario,
        scale=scale,
        proxmox_port=proxmox_port,
        kubernetes_port=kubernetes_port,
        crds=crds,
        seed=seed,
        apiserver=apiserver,
        kubeconfig=kubeconfig,
    )
    _print_connection(up, json_)


@lab_app.command("status")
def lab_status(dir: DirOption = None, json_: JsonOption = False) -> None:
    """Whether the lab is up, and how to reach it. Exit 3 when it is not.

    Examples: `runbook lab status --json`
    """
    from runbook_lib.lab import control

    if json_:
        emit_json(control.connection(_lab_folder(dir)).to_dict())
        return
    told = control.status(_lab_folder(dir))
    if told is None:
        typer.echo("the lab is not up", err=True)
        raise typer.Exit(3)
    for name, value in told.items():
        typer.echo(f"{name}: {value if isinstance(value, str | int | float) else json.dumps(value)}")


@lab_app.command("down")
def lab_down(
    keep: Annotated[bool, typer.Option("--keep", help="Go on with this state at the next start.")] = False,
    dir: DirOption = None,
) -> None:
    """Stop the lab.

    Examples: `runbook lab down` · `runbook lab down --keep`
    """
    from runbook_lib.lab import control

    typer.echo("the lab is down" if control.down(_lab_folder(dir), keep=keep) else "the lab was not up", err=True)


@lab_app.command("node")
def lab_node(
    name: Annotated[str, typer.Argument(help="A Proxmox node; not the one that answers.", show_default=False)],
    up: Annotated[bool, typer.Option("--up/--down", help="It boots, or it dies.", show_default=False)],
    dir: DirOption = None,
) -> None:
    """Let a Proxmox node die, or return.

    Examples: `runbook lab node pve3 --down` · `runbook lab node pve3 --up`
    """
    from runbook_lib.lab import control

    emit_json(control.node(name, online=up, folder=_lab_folder(dir)))


@lab_app.command("snapshot")
def lab_snapshot(
    file: Annotated[Path, typer.Argument(help="Where the state goes; secrets are in it.", show_default=False)],
    dir: DirOption = None,
) -> None:
    """Write the lab's whole state, both clusters, to one file.

    Examples: `runbook lab snapshot before.json`
    """
    from runbook_lib.lab import control

    told = control.snapshot(file, _lab_folder(dir))
    typer.echo(f"{told['file']}: {told['bytes']} bytes", err=True)


@lab_app.command("restore")
def lab_restore(
    file: Annotated[Path, typer.Argument(help="What `runbook lab snapshot` wrote.", show_default=False)],
    dir: DirOption = None,
) -> None:
    """Put the state of a file in the place of the lab's own.

    Examples: `runbook lab restore before.json`
    """
    from runbook_lib.lab import control

    told = control.restore(file, _lab_folder(dir))
    typer.echo(f"scenario {told.get('scenario', '')} as it was kept", err=True)


@lab_app.command("reset")
def lab_reset(dir: DirOption = None) -> None:
    """Begin anew with the lab's scenario.

    Examples: `runbook lab reset`
    """
    from runbook_lib.lab import control

    told = control.reset(_lab_folder(dir))
    typer.echo(f"scenario {told.get('scenario', '')} from its beginning", err=True)


@lab_app.command("scenario")
def lab_scenario(
    name: Annotated[str, typer.Argument(help="A name or a YAML file.", show_default=False)] = "",
    list_: Annotated[bool, typer.Option("--list", help="The scenarios there are, and what each rehearses.")] = False,
    grow: Annotated[bool, typer.Option("--grow", help="Begin before its incident, and let that happen.")] = False,
    cure: Annotated[bool, typer.Option("--cure", help="Do what cures the incident of the lab's scenario.")] = False,
    dir: DirOption = None,
) -> None:
    """Begin anew with another scenario; without a name, list them.

    Examples: `runbook lab scenario --list` · `runbook lab scenario fresh-node` · `runbook lab scenario
    kube-ovn-cascade --grow` and later `runbook lab scenario --cure`
    """
    from runbook_lib.lab import control, scenario

    if cure:
        told = control.cure(_lab_folder(dir))
        typer.echo(f"scenario {told.get('scenario', '')} is being cured", err=True)
        return
    if list_ or not name:
        rows: list[Mapping[str, Any]] = [
            {"scenario": known, "what it rehearses": scenario.load(known).title} for known in scenario.names()
        ]
        show(table(rows, ["scenario", "what it rehearses"]))
        return
    told = control.scenario(name, _lab_folder(dir), grow=grow)
    typer.echo(f"scenario {told.get('scenario', name)}", err=True)


@lab_app.command("fault")
def lab_fault(
    rule: Annotated[
        list[str] | None,
        typer.Argument(help="Fields as name=value: system, path, status, times, task …"),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all faults away.")] = False,
    dir: DirOption = None,
) -> None:
    """Make the lab's APIs misbehave, until told otherwise.

    Examples: `runbook lab fault system=proxmox path=/nodes status=503 times=2` ·
    `runbook lab fault task=qmclone text="no space left"` · `runbook lab fault certificate=expired` ·
    `runbook lab fault --clear`
    """
    from runbook_lib.lab import control

    if clear == bool(rule):
        raise UsageError("a fault", "nothing to add", "give fields as name=value, or --clear")
    emit_json(control.fault(None if clear else parse_values(rule or []), _lab_folder(dir)))


@lab_app.command("advance")
def lab_advance(
    seconds: Annotated[float, typer.Argument(help="Lab seconds.")],
    dir: DirOption = None,
) -> None:
    """Move the lab's clock forward by hand.

    Examples: `runbook lab advance 3600`
    """
    from runbook_lib.lab import control

    emit_json(control.advance(seconds, _lab_folder(dir)))


if __name__ == "__main__":
    main()
