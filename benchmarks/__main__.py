"""`python -m benchmarks`: measure, print the tables, write docs/benchmarks.md and outputs/benchmarks/*.json."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime

from benchmarks import kubernetes_lab, living_lab, page, proxmox_lab, publish, reads, redaction, small, whole_run
from benchmarks.homes import ROOT
from benchmarks.measure import Broken, Case, take_turns

CASES = {
    "run": whole_run.case,
    "help": small.help_case,
    "reads": reads.case,
    "lab": small.lab_case,
    "finding": small.finding_case,
    "pages": publish.case,
    "redaction": redaction.case,
    "proxmox_lab": proxmox_lab.case,
    "kubernetes_lab": kubernetes_lab.case,
    "living_lab": living_lab.case,
}


def main() -> int:
    """0; 1 when a contender did not do its work."""
    options = _options()
    chosen = [CASES[name]() for name in options.only or CASES]
    chosen = [each.complete(each) if each.complete else each for each in chosen]
    try:
        results = [(case, take_turns(case, _repeats(case, options), _tell)) for case in chosen]
    except Broken as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 1
    for case, samples in results:
        print("\n\n".join(page.section(case, samples)), end="\n\n")
        _keep(case, samples)
    if not options.only and not options.quick:
        page.replace_between(ROOT / "docs" / "benchmarks.md", page.markdown(results))
        print("written: docs/benchmarks.md")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the runbook side by side with its peers. Needs a quarter of an hour in quiet.",
    )
    parser.add_argument("--only", metavar="NAME", action="append", choices=CASES, help=f"one of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="one turn of each; docs/benchmarks.md stays as it is")
    parser.add_argument("--repeats", type=int, default=0, help="turns of each, instead of the case's own number")
    return parser.parse_args()


def _repeats(case: Case, options: argparse.Namespace) -> int:
    return options.repeats or (1 if options.quick else case.repeats)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _keep(case: Case, samples: page.Samples) -> None:
    folder = ROOT / "outputs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "case": case.name,
        "title": case.title,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": page.machine(),
        "samples": {name: [asdict(sample) for sample in taken] for name, taken in samples.items()},
    }
    (folder / f"{case.name}.json").write_text(json.dumps(told, indent=1).replace("NaN", "null"), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
