"""The public names of the runbook. Each is imported when first used, so that `import runbook_lib` costs nothing."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runbook_lib import (
        alerts,
        audit,
        baseline,
        benchmark,
        checks,
        conduct,
        criteria,
        csi,
        dashboards,
        evidence,
        experiments,
        figures,
        kubernetes,
        kubernetes_audit,
        kubernetes_monitoring,
        kubernetes_policies,
        kubernetes_workload,
        lifecycle,
        load,
        machines,
        monitoring,
        parameters,
        prepare,
        privileges,
        proofs,
        providers,
        proxmox,
        proxmox_audit,
        reachability,
        results,
        runner,
        trials,
        versions,
        volumes,
        waivers,
        workload,
    )
    from runbook_lib.errors import RunbookError
    from runbook_lib.model import Change, ChangeKind, Finding, Measurement, Run, Status, StepResult, worst
    from runbook_lib.parameters import load_site
    from runbook_lib.step import Step, open_step

__all__ = [
    "Change",
    "ChangeKind",
    "Finding",
    "Measurement",
    "Run",
    "RunbookError",
    "Status",
    "Step",
    "StepResult",
    "alerts",
    "audit",
    "baseline",
    "benchmark",
    "checks",
    "conduct",
    "criteria",
    "csi",
    "dashboards",
    "evidence",
    "experiments",
    "figures",
    "kubernetes",
    "kubernetes_audit",
    "kubernetes_monitoring",
    "kubernetes_policies",
    "kubernetes_workload",
    "lifecycle",
    "load",
    "load_site",
    "machines",
    "monitoring",
    "open_step",
    "parameters",
    "prepare",
    "privileges",
    "proofs",
    "providers",
    "proxmox",
    "proxmox_audit",
    "reachability",
    "results",
    "runner",
    "trials",
    "versions",
    "volumes",
    "waivers",
    "workload",
    "worst",
]

_HOME = {
    "Change": "model",
    "ChangeKind": "model",
    "Finding": "model",
    "Measurement": "model",
    "Run": "model",
    "RunbookError": "errors",
    "Status": "model",
    "Step": "step",
    "StepResult": "model",
    "load_site": "parameters",
    "open_step": "step",
    "worst": "model",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME.get(name)
    if home is not None:
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    module = importlib.import_module(f"{__name__}.{name}")
    # `checks.proxmox.…` is written in notebooks, so a package brings its modules along.
    for entry in pkgutil.iter_modules(getattr(module, "__path__", ())):
        importlib.import_module(f"{module.__name__}.{entry.name}")
    return module


def __dir__() -> list[str]:
    return __all__
