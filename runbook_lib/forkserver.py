"""A process that has loaded the libraries once and forks a prepared kernel for each notebook.

The server is started as `python -m runbook_lib.forkserver FD` and speaks JSON lines over the socket it inherited:
`{"id", "argv", "env", "cwd", "log"}` → `{"id", "pid"}`, and later `{"exit": pid, "code": n}`.
It holds no thread, no session and no credential: whatever it had open, every kernel would have open too.
Standard library only at import; what kernels need is loaded by `preload`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runbook_lib.errors import RunbookError

log = logging.getLogger(__name__)

PRELOAD = (
    "ipykernel.kernelapp",
    "IPython.core.completer",
    "matplotlib_inline.backend_inline",
    "matplotlib.pyplot",
    "pandas",
    "kubernetes.client",
    "kubernetes.config",
    "requests",
    "proxmoxer",
    "runbook_lib",
    "runbook_lib.checks",
    "runbook_lib.parameters",
    "runbook_lib.proxmox",
    "runbook_lib.kubernetes",
    "runbook_lib.step",
)
GRACE_SECONDS = 1.0
"""What kernels have between SIGTERM and SIGKILL when the runner is gone."""


class ForkServerDied(RunbookError):
    """The fork server is gone; the notebook can be run in `spawn` isolation."""


def available() -> bool:
    """True where forking a prepared kernel is possible: not on Windows."""
    return hasattr(os, "fork") and sys.platform != "win32"


# ---------------------------------------------------------------- the runner's side


class ForkedProcess:
    """A forked kernel as `subprocess.Popen` would show it: `pid`, `poll`, `wait`, `send_signal`, `kill`, `terminate`.

    Its exit status comes from the fork server, which is its parent.
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def finish(self, code: int) -> None:
        """Note the exit status (negative = signal), as the server told it."""
        self.returncode = code
        self.ended.set()

    def poll(self) -> int | None:
        """The exit status, None while the kernel lives."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when it comes. Raises subprocess.TimeoutExpired."""
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired("kernel", timeout or 0)
        return self.returncode or 0

    def send_signal(self, signum: int) -> None:
        """Signal the kernel, unless it has ended (its pid may be another's by then)."""
        if self.returncode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class ForkServer:
    """The runner's hold of one fork server. Starting returns at once; the first `fork` waits for the libraries."""

    def __init__(
        self, env: Mapping[str, str], *, preload: Iterable[str] = PRELOAD, log_path: Path | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._write = threading.Lock()
        self._state = threading.Condition()
        self._processes: dict[int, ForkedProcess] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._next = 0
        self._dead = False
        errors = log_path.open("ab") if log_path else subprocess.DEVNULL
        try:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", "runbook_lib.forkserver", str(theirs.fileno()), *preload],
                pass_fds=[theirs.fileno()],
                env={**env, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # the terminal's Ctrl-C is the runner's to hand on
            )
        finally:
            theirs.close()
            if log_path:
                errors.close()  # type: ignore[union-attr]
        self._reader = threading.Thread(target=self._listen, name="fork-server", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    @property
    def alive(self) -> bool:
        """False once the server is gone."""
        return not self._dead and self._server.poll() is None

    def fork(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, log_path: str, timeout: float = 60.0
    ) -> ForkedProcess:
        """A new kernel with the arguments `argv`. Raises ForkServerDied."""
        with self._state:
            self._next += 1
            identity = self._next
        request = {"id": identity, "argv": list(argv), "env": dict(env), "cwd": cwd, "log": log_path}
        try:
            with self._write:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as problem:
            raise ForkServerDied("the fork server ended", str(problem), "run with --isolation spawn") from problem
        with self._state:
            self._state.wait_for(lambda: identity in self._answers or self._dead, timeout)
            answer = self._answers.pop(identity, None)
            if answer is None or "pid" not in answer:
                raise ForkServerDied(
                    "the fork server gave no kernel", (answer or {}).get("error", ""), "run with --isolation spawn"
                )
            return self._processes[answer["pid"]]

    def close(self) -> None:
        """End the server and every kernel it still has."""
        self._socket.close() if self._dead else self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._server.wait(GRACE_SECONDS + 4)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._reader.join(5)
        self._socket.close()

    def _listen(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except (OSError, ValueError) as problem:
            log.debug("fork server: %s", problem)
        with self._state:
            self._dead = True
            for process in self._processes.values():
                if process.returncode is None:
                    process.finish(-signal.SIGKILL)  # its poller or our signal ends it within a second
            self._state.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        with self._state:
            if "exit" in message:
                process = self._processes.get(message["exit"])
                if process:
                    process.finish(message["code"])
                return
            if "pid" in message:
                self._processes[message["pid"]] = ForkedProcess(message["pid"])
            self._answers[message["id"]] = message
            self._state.notify_all()


# ---------------------------------------------------------------- the server's side


def skip_slow_schema_formats() -> None:
    """Spare this process the 0.7 s that jsonschema spends on compiling IRI grammars no Jupyter schema uses.

    Only for our own processes, never at import of the library; RUNBOOK_FULL_JSONSCHEMA=1 leaves everything alone.
    Source: jsonschema issue 1428.
    """
    if not os.environ.get("RUNBOOK_FULL_JSONSCHEMA"):
        sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def preload(modules: Iterable[str]) -> list[str]:
    """The modules that could be loaded; one that cannot is left to the notebook that needs it."""
    skip_slow_schema_formats()
    loaded = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as problem:
            log.warning("not preloaded: %s (%s)", module, problem)
            continue
        loaded.append(module)
    return loaded


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """None when the runner is gone; in each forked child, the request it is to become."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: set[int] = set()
    buffer = b""
    while True:
        readable, _, _ = select.select([connection.fileno(), wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            _reap(connection, children)
        if connection.fileno() not in readable:
            continue
        chunk = connection.recv(1 << 16)
        if not chunk:
            _end(children)
            return None
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                os.close(wake_read)
                os.close(wake_write)
                connection.close()
                return request
            children.add(pid)
            _say(connection, {"id": request["id"], "pid": pid})


def _say(connection: socket.socket, message: Mapping[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        log.debug("the runner is gone")  # select tells the same in the next round


def _reap(connection: socket.socket, children: set[int]) -> None:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.discard(pid)
            _say(connection, {"exit": pid, "code": os.waitstatus_to_exitcode(status)})


def _end(children: set[int]) -> None:
    """No kernel outlives the runner: SIGTERM lets a step take back what it borrowed, SIGKILL ends the rest."""
    for pid in children:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while children and time.monotonic() < deadline:
        children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
        time.sleep(0.02)
    for pid in children:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        log.debug("kernel %s had ended", pid)


def become_kernel(request: Mapping[str, Any]) -> None:
    """Turn this forked child into the kernel asked for; returns when the kernel has been shut down.

    Undoes everything a child inherits and a fresh process would not: session, signals, environment, working folder,
    output, random state, and the figure backend, which otherwise shows no figure at all.
    """
    server = os.getppid()
    os.setsid()
    for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    _redirect(request["log"])
    _reseed()
    run_kernel(request["argv"], parent=server)


def run_kernel(argv: Sequence[str], *, parent: int) -> None:
    """Be a kernel until it is shut down; the poller ends it when `parent` is gone."""
    sys.argv = ["ipykernel_launcher", *argv]
    from ipykernel.kernelapp import IPKernelApp

    # The trait's default was read from the environment when the module was loaded, in the server.
    app = IPKernelApp.instance(parent_handle=parent)
    app.initialize(list(argv))
    if "matplotlib.pyplot" in sys.modules and app.shell is not None:
        app.shell.enable_matplotlib("inline")
    app.start()
    # The control thread flushes the outputs after a shutdown request; when the output thread ends first, it waits
    # ten seconds for it (ipykernel's flush timeout).
    app.control_thread.join(5)


def _redirect(path: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)


def _reseed() -> None:
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def main(arguments: Sequence[str]) -> None:
    """Serve until the runner closes the socket; with `--kernel` be a single fresh kernel instead."""
    if arguments[0] == "--kernel":
        run_kernel(arguments[1:], parent=os.getppid())
        return
    connection = socket.socket(fileno=int(arguments[0]))
    connection.set_inheritable(False)
    preload(arguments[1:])
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        log.warning("threads before a fork: %s", names)
    import gc

    gc.collect()
    gc.freeze()  # keeps the collector from copying shared pages in every kernel
    request = serve(connection)
    if request is not None:
        become_kernel(request)


if __name__ == "__main__":
    main(sys.argv[1:])
