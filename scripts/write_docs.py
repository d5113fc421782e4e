"""Write what the code can say of itself into the docs: docs/cli.md, and the tables of docs/lab.md.

Usage: python scripts/write_docs.py            (tests/test_docs_cli.py fails while it is due)
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def cli() -> str:
    """docs/cli.md: every command with its arguments, options and examples."""
    import typer

    from runbook_lib import cli as commands

    app = typer.main.get_command(commands.app)
    found = list(_commands(app, "runbook"))
    index = "\n".join(f"- [`{path}`](#{path.replace(' ', '-')}) — {_first_line(command)}" for path, command in found)
    parts = ["# The command line", _PREFACE, index, *(_section(path, command) for path, command in found)]
    return "\n\n".join(parts) + "\n"


_PREFACE = """\
Written by `scripts/write_docs.py` from the commands themselves; `runbook COMMAND --help` tells the same.
Results go to stdout, progress and errors to stderr.
Exit codes: 0 pass or warn, 1 a finding failed, 2 usage or parameters, 3 could not tell, 4 a plan waits for approval, \
5 the site is locked by another run."""


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, in the order of the help."""
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
    for name, child in (children or {}).items():
        yield from _commands(child, f"{path} {name}")


def _section(path: str, command: Any) -> str:
    usage = " ".join([path, *(_metavar(param) for param in command.params if param.param_type_name == "argument")])
    options = [param for param in command.params if param.name != "help"]
    rows = [f"| {_spelled(param)} | {param.help} | {_default(param)} |" for param in options]
    about, _, examples = inspect.cleandoc(command.help or "").partition("Examples: ")
    parts = [f"## {path}", f"`{usage}{' [OPTIONS]' if len(options) > usage.count('[') else ''}`", about.strip()]
    if rows:
        parts.append("\n".join(["| what | meaning | by default |", "|---|---|---|", *rows]))
    if examples:
        parts.append("\n".join(["```", *(part.strip(" `\n") for part in re.split(r"\s+·\s+", examples)), "```"]))
    return "\n\n".join(parts)


def _first_line(command: Any) -> str:
    return inspect.cleandoc(command.help or "").splitlines()[0]


def _metavar(param: Any) -> str:
    name = param.name.upper()
    return f"[{name}...]" if param.nargs == -1 else name if param.required else f"[{name}]"


def _spelled(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.name.upper()}`"
    words = ", ".join(f"`{word}`" for word in [*param.opts, *param.secondary_opts])
    return words if param.is_flag else f"{words} {_KINDS.get(param.bare_type(), param.bare_type().upper())}"


_KINDS = {"str": "TEXT", "list[str]": "TEXT", "int": "NUMBER", "float": "NUMBER"}


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return f"`{param.show_default}`"
    if param.default in (None, "", False) or param.required:
        return ""
    return "yes" if param.default is True else f"`{param.default}`"


def scenarios() -> str:
    """The table of scenarios, with the checks that must notice."""
    from runbook_lib.lab import scenario

    rows = ["| scenario | what it rehearses | checks that must fail | checks that must warn |", "|---|---|---|---|"]
    for name in scenario.names():
        known = scenario.load(name)
        cells = [f"`{name}`", known.title, _ids(known.must_fail), _ids(known.must_warn)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _ids(checks: tuple[str, ...]) -> str:
    return ", ".join(f"`{check}`" for check in checks)


def between(text: str, name: str, part: str) -> str:
    """`text` with `part` between the comments `name: begin` and `name: end`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"no place for {name}")
    return f"{before}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"


def pages() -> dict[Path, str]:
    """Every generated page, as it should be."""
    lab = ROOT / "docs" / "lab.md"
    return {
        ROOT / "docs" / "cli.md": cli(),
        lab: between(lab.read_text(encoding="utf-8"), "scenarios", scenarios()),
    }


def main() -> None:
    """Write them."""
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
