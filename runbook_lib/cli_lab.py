"""`runbook lab …`, and the few lines its sister commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from runbook_lib.errors import UsageError

lab_app = typer.Typer(help="The emulated site on this machine: start, look, change, stop.", no_args_is_help=True)

DirOption = Annotated[Path | None, typer.Option("--dir", help="Where the lab keeps its state.", show_default=".lab")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]


def emit_json(data: Any) -> None:
    """Print data on stdout as JSON."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=1))


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


def _lab_folder(folder: Path | None) -> Path:
    from runbook_lib.parameters import project_root

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
    json_: JsonOption = False,
) -> None:
    """Start the lab, or go on with the one that is up, and tell how to reach it.

    Examples: `runbook lab up` · `runbook lab up --scenario fresh-node --dir /tmp/one --json`
    """
    from runbook_lib.lab import control

    up = control.up(
        _lab_folder(dir),
        scenario=scenario,
        scale=scale,
        proxmox_port=proxmox_port,
        kubernetes_port=kubernetes_port,
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
def lab_down(dir: DirOption = None) -> None:
    """Stop the lab.

    Examples: `runbook lab down`
    """
    from runbook_lib.lab import control

    typer.echo("the lab is down" if control.down(_lab_folder(dir)) else "the lab was not up", err=True)


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
    name: Annotated[str, typer.Argument(help="A name or a YAML file.")],
    dir: DirOption = None,
) -> None:
    """Begin anew with another scenario.

    Examples: `runbook lab scenario fresh-node`
    """
    from runbook_lib.lab import control

    told = control.scenario(name, _lab_folder(dir))
    typer.echo(f"scenario {told.get('scenario', name)}", err=True)


@lab_app.command("fault")
def lab_fault(
    rule: Annotated[
        list[str] | None, typer.Argument(help="Fields as name=value: system, method, path, status, times …")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all faults away.")] = False,
    dir: DirOption = None,
) -> None:
    """Make the lab's APIs misbehave, until told otherwise.

    Examples: `runbook lab fault system=proxmox path=/nodes status=503 times=2` · `runbook lab fault --clear`
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
