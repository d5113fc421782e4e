"""Kernels for the engine: where they come from, when they are ready, and what of theirs may reach the disk."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from jupyter_client.utils import run_sync
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager
from papermill.iorw import write_ipynb

from runbook_lib.engine import Options
from runbook_lib.forkserver import ForkServer, ForkServerDied
from runbook_lib.secrets import redact, redact_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

log = logging.getLogger(__name__)

FINDING_MIMETYPE = "application/x.runbook.finding+json"
SHUTDOWN_SECONDS = 20.0
"""What a kernel has to take back what its step borrowed, before it is killed."""
REPLY_SECONDS = 1.0
"""How long an interrupted cell's reply may come after the kernel said that it is idle."""


class ManagedEngine(Engine):
    """What stands behind `RunbookEngine` once papermill is loaded."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        runbook: Options | None = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **_: Any,
    ) -> None:
        """Run every cell; leaves a redacted notebook in `nb_man.nb`, also when the kernel died."""
        options = runbook or Options()
        _name_paths(nb_man.nb, options)
        with tempfile.TemporaryDirectory(prefix="rb-") as private:  # 0700, short enough for a socket's path
            client = RunbookClient(
                nb_man,
                options=options,
                private=Path(private),
                kernel_name="python3",
                startup_timeout=start_timeout,
                timeout=execution_timeout,
                extra_arguments=["--HistoryManager.enabled=False", "--IPKernelApp.quiet=True"],
                log=log,
            )
            try:
                client.execute(cwd=options.cwd or str(Path.cwd()), env={**options.env, "IPYTHONDIR": private})
            except (DeadKernelError, RuntimeError, TimeoutError):
                scrub(nb_man.nb)
                if options.partial:  # papermill writes nothing then, and what there is tells the most
                    write_ipynb(nb_man.nb, options.partial)
                raise
            finally:
                scrub(nb_man.nb)


def _name_paths(nb: NotebookNode, options: Options) -> None:
    if options.recorded_input:
        nb.metadata.papermill["input_path"] = options.recorded_input
    if options.recorded_output:
        nb.metadata.papermill["output_path"] = options.recorded_output


def scrub(nb: NotebookNode) -> None:
    """Redact a whole notebook in place: outputs, sources and metadata. Pictures stay as they are."""
    for cell in nb.cells:
        cell.source = redact(cell.source)
        for output in cell.get("outputs", ()):
            _scrub_output(output)
    nb.metadata.update(redact_json(dict(nb.metadata)))


def _scrub_output(output: dict[str, Any]) -> None:
    if "text" in output:
        output["text"] = redact(output["text"])
    if "traceback" in output:
        output["traceback"] = [redact(line) for line in output["traceback"]]
        output["ename"], output["evalue"] = redact(output["ename"]), redact(output["evalue"])
    for mimetype, data in output.get("data", {}).items():
        if mimetype.startswith("image/") and mimetype != "image/svg+xml":
            continue
        output["data"][mimetype] = redact(data) if isinstance(data, str) else redact_json(data)
    if output.get("metadata"):
        output["metadata"] = redact_json(dict(output["metadata"]))


def _join_streams(cell: NotebookNode) -> None:
    """Neighbouring pieces of one stream become one, so that a secret split over two prints is seen whole."""
    joined: list[Any] = []
    for output in cell.get("outputs", ()):
        last = joined[-1] if joined else None
        if last and output["output_type"] == "stream" == last["output_type"] and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            joined.append(output)
    if cell.cell_type == "code":
        cell.outputs = joined


class NotebookInterrupted(RuntimeError):
    """The runner was told to stop while no cell was running."""


class ForkedKernels(LocalProvisioner):
    """jupyter_client's local provisioner, but the process comes from the fork server."""

    server: ForkServer
    log_path: str = ""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Ask the server for a kernel; the arguments are those after `--kernel`."""
        arguments = cmd[cmd.index("--kernel") + 1 :]
        process: Any = await asyncio.to_thread(
            self.server.fork, arguments, env=kwargs["env"], cwd=str(kwargs["cwd"]), log_path=self.log_path
        )
        self.process = process
        self.pid = self.pgid = process.pid  # it leads a session of its own
        self.cwd = kwargs["cwd"]
        return self.connection_info


class RunbookClient(PapermillNotebookClient):
    """papermill's client with our kernels, exact readiness and live findings."""

    def __init__(self, nb_man: NotebookExecutionManager, *, options: Options, private: Path, **keywords: Any) -> None:
        super().__init__(nb_man, **keywords)
        self._options = options
        self._private = private

    def create_kernel_manager(self) -> AsyncKernelManager:
        """A manager whose sockets and connection file lie in a folder only we can enter: no port is opened."""
        km = AsyncKernelManager(
            transport="ipc",
            connection_file=str(self._private / "k.json"),
            shutdown_wait_time=SHUTDOWN_SECONDS,
        )
        km._kernel_spec = KernelSpec(
            argv=[sys.executable, "-P", "-m", "runbook_lib.forkserver", "--kernel", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )
        log_path = str(self._private / "kernel.log")
        if self._options.kernels is not None and self._options.kernels.alive:
            provisioner = ForkedKernels(kernel_id="k", kernel_spec=km._kernel_spec, parent=km)
            provisioner.server, provisioner.log_path = self._options.kernels, log_path
            km.provisioner = provisioner
        self.km = km
        return km

    async def async_start_new_kernel(self, **keywords: Any) -> None:
        """Start the kernel; a fork server that died meanwhile is answered by a fresh process."""
        try:
            await super().async_start_new_kernel(**keywords)
        except ForkServerDied as problem:
            log.warning("%s; starting a fresh kernel", problem)
            self._options.kernels = None
            self.create_kernel_manager()
            await super().async_start_new_kernel(**keywords)
        assert self.km is not None
        if self.km.provisioner is not None:
            self._options.hold.take(self.km.provisioner.process)  # type: ignore[attr-defined]

    start_new_kernel = run_sync(async_start_new_kernel)

    async def async_start_new_kernel_client(self) -> Any:
        """Connect as soon as the kernel's sockets exist, and go on as soon as both channels have answered."""
        assert self.km is not None
        try:
            await _sockets_exist(self.km, self.startup_timeout)
            self.kc = self.km.client()
            self.kc.start_channels(stdin=False, hb=False)
            await _channels_answer(self.km, self.kc, self.startup_timeout)
        except (RuntimeError, TimeoutError):
            await self._async_cleanup_kernel()
            raise
        self.kc.allow_stdin = False
        return self.kc

    start_new_kernel_client = run_sync(async_start_new_kernel_client)

    def papermill_execute_cells(self) -> None:
        """As papermill does it, and each cell's beginning is told."""
        total = len(self.nb.cells)
        for index, cell in enumerate(self.nb.cells):
            if self._options.hold.stopping:
                raise NotebookInterrupted("interrupted between cells")
            if cell.cell_type == "code":
                self._options.on_cell(index, total)
            try:
                self.nb_man.cell_start(cell, index)
                self.execute_cell(cell, index)
            except CellExecutionError as problem:
                self.nb_man.cell_exception(self.nb.cells[index], cell_index=index, exception=problem)
                break
            except DeadKernelError:
                self.nb_man.cell_exception(self.nb.cells[index], cell_index=index)
                raise
            finally:
                _join_streams(self.nb.cells[index])
                self.nb_man.cell_complete(self.nb.cells[index], cell_index=index)

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        """papermill's handling; findings are told as they come."""
        if msg["msg_type"] == "execute_input" and self._options.hold.stopping:
            self._options.hold.interrupt()  # a kernel ignores an interrupt that comes between two cells
        if msg["msg_type"] == "status" and msg["content"]["execution_state"] == "idle" and self._options.hold.stopping:
            # An interrupt that hits the kernel's own code before the cell's leaves the request without a reply.
            asyncio.get_running_loop().call_later(REPLY_SECONDS, _give_up, self.task_poll_for_reply)
        if msg["msg_type"] in {"display_data", "execute_result"}:
            payload = msg["content"].get("data", {}).get(FINDING_MIMETYPE)
            if payload is not None:
                self._options.on_finding(redact_json(json.loads(payload) if isinstance(payload, str) else payload))
        return super().process_message(msg, cell, cell_index)


def _give_up(reply: asyncio.Future[Any] | None) -> None:
    if reply is not None and not reply.done():
        reply.cancel()  # nbclient takes this for a dead kernel, and ends the notebook


async def _sockets_exist(km: AsyncKernelManager, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    ports = [getattr(km, f"{channel}_port") for channel in ("shell", "iopub", "control")]
    while not all(os.path.exists(f"{km.ip}-{port}") for port in ports):  # noqa: PTH110 - polled every 5 ms
        if not await km.is_alive():
            raise DeadKernelError("the kernel ended before it was ready")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the kernel was not ready in {timeout:g} s")
        await asyncio.sleep(0.005)


async def _channels_answer(km: AsyncKernelManager, kc: Any, timeout: float) -> None:
    """Ask again every 0.1 s and take any answer: one lost subscription would otherwise cost a second or a dead-lock."""
    deadline = time.monotonic() + timeout
    shell = iopub = False
    while not (shell and iopub):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the kernel did not answer in {timeout:g} s")
        if not await km.is_alive():
            raise DeadKernelError("the kernel ended before it was ready")
        kc.kernel_info()
        again = time.monotonic() + 0.1
        while not (shell and iopub) and (left := again - time.monotonic()) > 0:
            with suppress(Empty):
                await kc.shell_channel.get_msg(timeout=0 if shell else min(left, 0.02))
                shell = True
            with suppress(Empty):
                await kc.iopub_channel.get_msg(timeout=min(left, 0.02))
                iopub = True
