"""The papermill engine "runbook": prepared kernels, exact readiness, no save per cell, nothing unredacted on disk.

`papermill --engine runbook in.ipynb out.ipynb` works too; the runner hands in `Options` for more.
This module stays light: papermill loads it, by its entry point, in the middle of loading itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from runbook_lib.forkserver import ForkServer

_KEPT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LOGNAME",
    "NO_PROXY",
    "PATH",
    "PYTHONPATH",
    "PYTHONUTF8",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
    "no_proxy",
)


def kernel_environment(names: tuple[str, ...] = (), **extra: str) -> dict[str, str]:
    """The environment handed to kernels: a short list, what the site's parameters refer to (`names`), and `extra`.

    Proxies are left out on purpose: a runbook talks to named endpoints, and a proxy would see their tokens.
    """
    kept = {name: os.environ[name] for name in (*_KEPT, *names) if name in os.environ}
    ours = {name: value for name, value in os.environ.items() if name.startswith("RUNBOOK_")}
    return {
        "PATH": os.defpath,
        **kept,
        **ours,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OPENBLAS_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **extra,
    }


class KernelHold:
    """The handle by which the runner reaches a running kernel from any thread: interrupt, kill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None
        self.pid: int | None = None
        self.stopping = False

    def take(self, process: Any) -> None:
        """Hold this process from now on."""
        with self._lock:
            self._process, self.pid = process, process.pid

    def interrupt(self) -> None:
        """KeyboardInterrupt in the running cell, and no further cell."""
        self.stopping = True
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End the kernel and everything it started."""
        self.stopping = True
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return
            with suppress(ProcessLookupError):
                if signum == signal.SIGKILL and hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signum)  # every kernel leads its own session
                else:
                    os.kill(self._process.pid, signum)


@dataclass
class Options:
    """What the runner tells the engine about one notebook."""

    kernels: ForkServer | None = None  # None = a fresh process for the notebook
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=kernel_environment)
    hold: KernelHold = field(default_factory=KernelHold)
    recorded_input: str = ""  # how the notebook's metadata names its source
    recorded_output: str = ""
    partial: str = ""  # where to keep what there is when the kernel dies
    on_cell: Callable[[int, int], None] = lambda index, total: None
    on_finding: Callable[[Any], None] = lambda payload: None


class RunbookEngine:
    """papermill's engine "runbook"; takes an `Options` as the keyword `runbook`."""

    @classmethod
    def execute_notebook(cls, nb: NotebookNode, kernel_name: str, **keywords: Any) -> NotebookNode:
        """The executed and redacted notebook, as papermill's own engines give it."""
        from runbook_lib.kernels import ManagedEngine

        return ManagedEngine.execute_notebook(nb, kernel_name, **keywords)

    @classmethod
    def nb_kernel_name(cls, nb: NotebookNode, name: str | None = None) -> str:
        """Always this interpreter: a kernel of that name elsewhere on the machine is not the one that was tested."""
        return "python3"

    @classmethod
    def nb_language(cls, nb: NotebookNode, language: str | None = None) -> str:
        """Always Python."""
        return "python"
