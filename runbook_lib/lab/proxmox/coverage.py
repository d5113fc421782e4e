"""The page that lists what is emulated, made from the table of routes.

python -m runbook_lib.lab.proxmox.coverage > docs/lab-coverage.md
"""

from __future__ import annotations

import itertools
import sys

from .routing import ROUTER, Route
from .state import VERSIONS, areas

HEAD = """# What the lab emulates of Proxmox VE

Every path below answers as a real server of the flavours {flavours} does: parameters are verified, permissions
evaluated, tasks run in the lab's time. Any other path answers 501 `Method 'GET /x' not implemented`, which is what
a real server says to a path it does not know.

This page is generated from the table of routes (`python -m runbook_lib.lab.proxmox.coverage`); a test keeps it
current. {paths} paths, {methods} methods.

What the lab never does: fetch anything from a network, run a guest, hold more of an uploaded file than its size and
hash beyond 4 MiB. Figures of CPU, memory and traffic are made up; they drift slowly and are the same for the same
moment.
"""


def page() -> str:
    """The coverage page as Markdown."""
    areas()
    routes = sorted(ROUTER.routes, key=lambda each: (_shown(each), each.method))
    head = HEAD.format(
        flavours=" and ".join(version["version"] for version in VERSIONS.values()),
        paths=len({each.template for each in routes}),
        methods=len(routes),
    )
    parts = [head]
    for title, group in itertools.groupby(routes, key=_area):
        parts.append(f"\n## {title}\n\n| Method | Path | What comes back |\n|---|---|---|\n")
        parts += [f"| {each.method} | `{_shown(each)}` | {_says(each)} |\n" for each in group]
    return "".join(parts)


def _shown(route: Route) -> str:
    return route.template.replace(":rest}", "}")


def _area(route: Route) -> str:
    words = [word for word in _shown(route).split("/") if word]
    if words[:1] == ["nodes"] and len(words) > 2:
        return f"/nodes/{{node}}/{words[2]}"
    return "/" + "/".join(words[:1])


def _says(route: Route) -> str:
    return (route.handler.__doc__ or "").strip().split("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
