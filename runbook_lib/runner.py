"""Runs the notebooks of a site in the order of their needs, each through papermill, and keeps the run's folder true.

`discover` reads the notebooks' metadata; `run` executes them. The folder `outputs/<site>/<run>/` holds `run.json`
(rewritten whole after every step), `events.jsonl`, the executed notebooks and the journal of changes.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import os
import re
import secrets as random_tokens
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from runbook_lib.errors import UsageError
from runbook_lib.events import EventLog, OnEvent, make_private, site_lock
from runbook_lib.model import Run, Status, StepRecord, now, to_dict
from runbook_lib.results import (
    NO_RESULT,
    WAITS_FOR_APPROVAL,
    read_notebook_result,
    read_run,
    run_status,
    write_atomically,
)

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_SECONDS = 1800.0
KILL_AFTER_SECONDS = 10.0
"""A step that does not react to the interrupt at its timeout is killed after this."""
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
STEP_NAME = re.compile(r"(\d\d)_[a-z0-9_]+")


@dataclass(frozen=True)
class StepSpec:
    """One notebook as the runner sees it."""

    step: str  # "11"
    title: str
    path: Path
    task: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # wait for these where they run too, whatever becomes of them
    changes: bool = False
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    critical: bool = False
    always: bool = False  # runs last, whatever became of its needs
    parameters: Mapping[str, str] = field(default_factory=dict)  # declared name → annotation

    @property
    def notebook(self) -> str:
        """The file's name."""
        return self.path.name


def discover(root: Path | None = None) -> list[StepSpec]:
    """Every step of the project, by number. A notebook without `runbook` metadata is no step.

    Raises UsageError for a notebook that is no JSON, a number used twice, an unknown need, or needs in a circle.
    """
    folder = _root(root) / "notebooks"
    specs = [spec for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if (spec := _read_spec(path))]
    _verify(specs)
    return specs


def _root(root: Path | None) -> Path:
    if root is not None:
        return Path(root)
    from runbook_lib.parameters import project_root

    return project_root()


def _read_spec(path: Path) -> StepSpec | None:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        meta = notebook.get("metadata", {}).get("runbook")
    except (ValueError, AttributeError) as problem:
        raise UsageError(f"notebooks/{path.name} is not a notebook", str(problem)) from problem
    if meta is None:
        return None
    step = str(meta.get("step") or path.name[:2])
    return StepSpec(
        step=step,
        title=str(meta.get("title") or path.stem),
        path=path,
        task=str(meta.get("task") or ""),
        needs=tuple(str(need) for need in meta.get("needs") or ()),
        after=tuple(str(other) for other in meta.get("after") or ()),
        changes=bool(meta.get("changes", False)),
        timeout=float(meta.get("timeout") or DEFAULT_TIMEOUT_SECONDS),
        critical=bool(meta.get("critical", False)),
        always=bool(meta.get("always", False)),
        parameters=declared_parameters(notebook),
    )


def declared_parameters(notebook: Mapping[str, Any]) -> dict[str, str]:
    """Names assigned in the cell tagged `parameters`, with their annotations ("" where there is none)."""
    for cell in notebook.get("cells", ()):
        if "parameters" in cell.get("metadata", {}).get("tags", ()):
            source = cell["source"]
            return _assigned("".join(source) if isinstance(source, list) else source)
    return {}


def _assigned(source: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign):
            names.update({target.id: "" for target in node.targets if isinstance(target, ast.Name)})
    return names


def _verify(specs: Sequence[StepSpec]) -> None:
    by_step: dict[str, StepSpec] = {}
    for spec in specs:
        if spec.step in by_step:
            raise UsageError(f"step {spec.step} is both {by_step[spec.step].notebook} and {spec.notebook}")
        by_step[spec.step] = spec
    for spec in specs:
        for need in (*spec.needs, *spec.after):
            if need not in by_step:
                known = ", ".join(by_step)
                raise UsageError(f"{spec.notebook} needs step {need}", "there is none", f"steps are {known}")
    _find_circle(by_step)


def _find_circle(by_step: Mapping[str, StepSpec]) -> None:
    done: set[str] = set()

    def visit(step: str, path: tuple[str, ...]) -> None:
        if step in path:
            circle = " → ".join((*path[path.index(step) :], step))
            raise UsageError(f"steps need each other in a circle: {circle}")
        if step in done:
            return
        for need in (*by_step[step].needs, *by_step[step].after):
            visit(need, (*path, step))
        done.add(step)

    for step in by_step:
        visit(step, ())


def select(specs: Sequence[StepSpec], steps: Iterable[str] | None) -> list[StepSpec]:
    """The steps named: by number ("11"), by file stem, or by phase ("1x"); all of them when nothing is named.

    One text may name several: "11,12".
    """
    wanted = [name.strip() for step in steps or () for name in step.split(",") if name.strip()]
    if not wanted:
        return list(specs)
    chosen: set[str] = set()
    for name in wanted:
        found = {spec.step for spec in specs if _matches(spec, name)}
        if not found:
            known = ", ".join(spec.step for spec in specs) or "none"
            raise UsageError(f"there is no step {name!r}", "", f"steps are {known}; a phase is written 1x")
        chosen |= found
    return [spec for spec in specs if spec.step in chosen]


def _matches(spec: StepSpec, name: str) -> bool:
    if name.endswith("x") and name[:-1].isdigit():
        return spec.step.startswith(name[:-1])
    return name in {spec.step, spec.path.stem, spec.notebook}


def new_run_id() -> str:
    """A name for a run that sorts by time: `20261123T190312Z-4f2a`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{random_tokens.token_hex(2)}"


# ---------------------------------------------------------------- a run


class Interrupted:
    """How often the run was told to stop, and the kernels to tell: once is gracefully, twice at once."""

    def __init__(self) -> None:
        self.count = 0
        self._holds: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __bool__(self) -> bool:
        return self.count > 0

    @contextlib.contextmanager
    def holding(self, step: str, hold: Any) -> Iterator[None]:
        """While inside, this step's kernel hears of a stop."""
        with self._lock:
            self._holds[step] = hold
        try:
            yield
        finally:
            with self._lock:
                del self._holds[step]

    def stop(self, *_: Any) -> None:
        """One more request to stop; also the signal handler."""
        self.count += 1
        with self._lock:
            holds = list(self._holds.values())
        for hold in holds:
            hold.interrupt() if self.count == 1 else hold.kill()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while inside; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class _Pass:
    """What the threads of one run share."""

    root: Path
    folder: Path
    site: str  # as the user gave it
    parameters: Mapping[str, Any]
    events: EventLog
    kernels: Any
    env: Mapping[str, str]
    interrupted: Interrupted
    start_timeout: int = 60


def run(
    site: str | Path,
    *,
    steps: Iterable[str] | None = None,
    run: str | None = None,
    parallel: int = 2,
    isolation: str = "fork",
    parameters: Mapping[str, Any] | None = None,
    root: Path | None = None,
    on_event: OnEvent | None = None,
    load_site: Callable[..., Any] | None = None,
) -> Run:
    """One pass over a site, or with `run` the rest of an earlier one; the steps' results and how it ended.

    Everything the user gave is judged before anything is written. Raises UsageError, ParameterError, Locked.
    A notebook that breaks ends its step (`error`), never the run.
    """
    root = _root(root).resolve()
    loader = load_site or _load_site
    if parallel < 1:
        raise UsageError(f"parallel is {parallel}", "", "at least one step runs at a time")
    if isolation not in {"fork", "spawn"}:
        raise UsageError(f"isolation is {isolation!r}", "", "it is fork or spawn")
    everything = discover(root)
    description = loader(site, root=root, start_lab=False)
    _check_references(description)
    specs = _chosen(everything, steps, parameters or {})
    site_folder = make_private(make_private(root / "outputs") / description.name)
    with site_lock(site_folder, description.name), contextlib.ExitStack() as stack:
        interrupted = Interrupted()
        stack.enter_context(interrupted.listening())
        earlier = _earlier(site_folder, run, everything) if run else None
        if earlier and not steps:
            specs = [spec for spec in everything if spec.step in {record.step for record in earlier.steps}]
        state = earlier or _new_run(description)
        folder = make_private(site_folder / state.id)
        events = EventLog(folder / "events.jsonl", on_event)
        stack.callback(events.close)
        named = _as_parameter(site, root)
        events.emit(
            "run-resumed" if earlier else "run-started",
            run=state.id,
            site=state.site,
            named=named,
            parameters=dict(parameters or {}),
            emulated=state.emulated,
            steps=[{"step": spec.step, "title": spec.title, "needs": spec.needs} for spec in specs],
        )
        keeper = _Keeper(folder, state, specs)
        if keeper.unfinished():
            env = _kernel_environment(description, root)
            kernels = _fork_server(isolation, env, stack)
            # starts the lab where the site is one, while the fork server loads its libraries
            reached = loader(site, root=root)
            _register_secrets(reached, root)
            shared = _Pass(root, folder, named, parameters or {}, events, kernels, env, interrupted)
            if earlier:
                _sweep(reached, shared)
            _run_steps(specs, shared, keeper, parallel)
            if interrupted.count == 1:  # a second interrupt leaves that to `runbook sweep`
                _sweep(reached, shared)
        return keeper.finish(events, complete=not interrupted)


def _chosen(everything: Sequence[StepSpec], steps: Iterable[str] | None, given: Mapping[str, Any]) -> list[StepSpec]:
    from runbook_lib.parameters import check_notebook_parameters

    specs = select(everything, steps)
    if not specs:
        raise UsageError("there is nothing to run", "", "notebooks/ holds no steps")
    declared = {name: kind for spec in specs for name, kind in spec.parameters.items()}
    check_notebook_parameters(given, declared)
    return specs


def _load_site(name: str | Path, **options: Any) -> Any:
    from runbook_lib.parameters import load_site

    return load_site(name, **options)


def _as_parameter(site: str | Path, root: Path) -> str:
    """The site as notebooks are told it: a name, or a path from the project's root (no machine's paths in outputs)."""
    path = Path(site)
    if path.suffix not in {".yaml", ".yml"}:
        return str(site)
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(root))
    return str(path.resolve())


def _check_references(site: Any) -> None:
    from runbook_lib.parameters import check_references

    if not site.emulated:  # the lab makes its own secrets when it starts
        check_references(site)


def _new_run(site: Any) -> Run:
    return Run(
        id=new_run_id(),
        site=site.name,
        started=now(),
        emulated=bool(site.emulated),
        parameters_digest=_digest(site),
        versions=versions(),
    )


def _digest(site: Any) -> str:
    plain = site.model_dump(mode="json")
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The versions a run depends on, by package."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("proxmox-cozystack-runbook", "papermill", "nbclient", "proxmoxer", "kubernetes", "scrapbook"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _earlier(site_folder: Path, run: str, everything: Sequence[StepSpec]) -> Run:
    if not RUN_ID.fullmatch(run):
        raise UsageError(f"{run!r} is not a run", "", "a run is named like 20261123T190312Z-4f2a; see runbook history")
    if not (site_folder / run).is_dir():
        raise UsageError(f"there is no run {run} of site {site_folder.name}", "", "see runbook history")
    earlier = read_run(site_folder / run)
    known = {spec.step for spec in everything}
    gone = [record.step for record in earlier.steps if record.step not in known]
    if gone:
        raise UsageError(f"run {run} has step {gone[0]}, which is no more among the notebooks")
    return earlier


def _kernel_environment(site: Any, root: Path) -> dict[str, str]:
    from runbook_lib.engine import kernel_environment

    references = _references(site)
    names = [text.removeprefix("env:") for text in references if text.startswith("env:")]
    if any(text.startswith("keyring:") for text in references):
        names += ["DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME"]
    return kernel_environment((*names, "KUBECONFIG"), RUNBOOK_HOME=str(root))


def _references(site: Any) -> list[str]:
    from runbook_lib.secrets import is_reference

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for entry in value.values():
                yield from texts(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                yield from texts(entry)

    return [text for text in texts(site.model_dump(mode="json")) if is_reference(text)]


def _register_secrets(site: Any, root: Path) -> None:
    """Let this process's redactor know every secret of the site, since a cell may print what only it has resolved."""
    from runbook_lib.errors import RunbookError
    from runbook_lib.secrets import register_folder, register_kubeconfig, resolve

    kubeconfig = getattr(getattr(site, "kubernetes", None), "kubeconfig", None)
    if kubeconfig:
        register_kubeconfig(Path(kubeconfig).expanduser())
    register_folder(root / ".secrets" / site.name)
    for reference in _references(site):
        try:
            resolve(reference, base=root)
        except RunbookError as problem:
            log.debug("not resolved here: %s", problem)


def _fork_server(isolation: str, env: Mapping[str, str], stack: contextlib.ExitStack) -> Any:
    from runbook_lib import forkserver

    forkserver.skip_slow_schema_formats()
    if isolation != "fork" or not forkserver.available():
        return None
    server = forkserver.ForkServer(env)
    stack.callback(server.close)
    return server


class _Keeper:
    """run.json, always as true as the last finished step."""

    def __init__(self, folder: Path, state: Run, specs: Sequence[StepSpec]) -> None:
        self.folder = folder
        known = {record.step: record for record in state.steps}
        self.state = state
        self.records: dict[str, StepRecord] = {spec.step: known.get(spec.step) or _blank(spec) for spec in specs} | {
            step: record for step, record in known.items() if step not in {spec.step for spec in specs}
        }
        self.specs = specs
        self.save()

    def unfinished(self) -> list[StepSpec]:
        """Steps without a result of their own; the summary again whenever another one runs."""
        todo = [spec for spec in self.specs if not _finished(self.records[spec.step])]
        if todo:
            todo += [spec for spec in self.specs if spec.always and spec not in todo]
        return sorted(todo, key=lambda spec: spec.step)

    def put(self, record: StepRecord) -> None:
        """Replace a step's record and write the file."""
        self.records[record.step] = record
        self.save()

    def save(self, **changes: Any) -> None:
        """Write run.json whole, or not at all."""
        records = tuple(self.records[step] for step in sorted(self.records))
        self.state = replace(self.state, steps=records, status=run_status(records), **changes)
        path = f"{self.state.site}/{self.state.id}"
        self.state = replace(self.state, path=path)
        write_atomically(self.folder / "run.json", json.dumps(to_dict(self.state), ensure_ascii=False, indent=1))

    def finish(self, events: EventLog, *, complete: bool) -> Run:
        """Close the run and tell it."""
        self.save(finished=now())
        events.emit(
            "run-finished", run=self.state.id, site=self.state.site, status=self.state.status, interrupted=not complete
        )
        return self.state


def _blank(spec: StepSpec, status: Status = Status.NOT_RUN, reason: str = "") -> StepRecord:
    return StepRecord(
        step=spec.step,
        title=spec.title,
        notebook=spec.notebook,
        status=status,
        needs=spec.needs,
        task=spec.task,
        reason=reason,
    )


def _finished(record: StepRecord) -> bool:
    return record.result is not None and record.status not in {Status.ERROR, Status.NOT_RUN}


def _run_steps(specs: Sequence[StepSpec], shared: _Pass, keeper: _Keeper, parallel: int) -> None:
    pending = keeper.unfinished()
    for spec in pending:
        keeper.put(_blank(spec))
    by_step = {spec.step: spec for spec in specs}
    running: dict[Future[StepRecord], StepSpec] = {}
    with ThreadPoolExecutor(parallel, thread_name_prefix="step") as pool:
        while pending or running:
            for spec in list(pending):
                if shared.interrupted:
                    break
                settled = {s.step for s in specs} - {p.step for p in pending} - {s.step for s in running.values()}
                if not _is_ready(spec, specs, settled):
                    continue
                pending.remove(spec)
                obstacle = None if spec.always else _obstacle(spec, by_step, keeper.records)
                if obstacle:
                    _settle(_blank(spec, Status.SKIP, obstacle), shared, keeper)
                    continue
                running[pool.submit(execute, spec, shared, keeper.state.id)] = spec
                if len(running) >= parallel:
                    break
            if not running:
                if shared.interrupted:
                    break
                continue
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                _settle(future.result(), shared, keeper)
    for spec in pending:
        keeper.put(_blank(spec, Status.NOT_RUN, "the run was interrupted before it"))


def _is_ready(spec: StepSpec, specs: Sequence[StepSpec], settled: Collection[str]) -> bool:
    chosen = {other.step for other in specs}
    needs = {*spec.needs, *spec.after} & chosen
    if spec.always:
        needs = {other.step for other in specs if not other.always} | needs
    return needs <= set(settled)


def _obstacle(spec: StepSpec, by_step: Mapping[str, StepSpec], records: Mapping[str, StepRecord]) -> str | None:
    """Why this step cannot be run, None when it can. Steps left out of the selection stand in nobody's way."""
    for need in spec.needs:
        record = records.get(need)
        if need not in by_step or record is None:
            continue
        if record.status in {Status.ERROR, Status.NOT_RUN}:
            return f"needs step {need}, which could not tell ({record.status})"
        if record.status is Status.FAIL and by_step[need].critical:
            return f"needs step {need}, which failed"
        if record.result is None:
            return f"needs step {need}, which was skipped"
    return None


def _settle(record: StepRecord, shared: _Pass, keeper: _Keeper) -> None:
    keeper.put(record)
    findings = record.result.findings if record.result else ()
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.status] = counts.get(finding.status, 0) + 1
    shared.events.emit(
        "step-finished",
        step=record.step,
        title=record.title,
        status=record.status,
        reason=record.reason,
        seconds=record.seconds,
        findings=counts,
        changes=len(record.result.changes) if record.result else 0,
    )
    for change in record.result.changes if record.result else ():
        shared.events.emit("change", step=record.step, id=change.id, kind=change.kind, summary=change.summary)


def execute(spec: StepSpec, shared: _Pass, run_id: str) -> StepRecord:
    """One notebook's record; whatever breaks in it becomes the record's reason."""
    from runbook_lib.engine import KernelHold

    hold = KernelHold()
    started, clock = now(), monotonic()
    shared.events.emit("step-started", step=spec.step, title=spec.title, notebook=spec.notebook)
    with shared.interrupted.holding(spec.step, hold), _deadline(spec.timeout, hold) as late:
        try:
            reason = _through_papermill(spec, shared, hold)
        except Exception as problem:
            log.debug("step %s broke", spec.step, exc_info=True)
            reason = f"{type(problem).__name__}: {problem}"
    result, told = read_notebook_result(shared.folder / spec.notebook)
    status, reason = _judge(result, reason or told, late.is_set(), spec.timeout, bool(shared.interrupted))
    from runbook_lib.secrets import redact

    return replace(
        _blank(spec, status, redact(reason)),
        started=started,
        finished=now(),
        seconds=round(monotonic() - clock, 3),
        result=replace(result, run=run_id) if result and not result.run else result,
    )


def _judge(result: Any, reason: str, late: bool, timeout: float, interrupted: bool) -> tuple[Status, str]:
    if late:
        return Status.ERROR, f"took longer than {timeout:g} s and was stopped"
    if interrupted and (reason or result is None):
        return Status.NOT_RUN, "interrupted"
    if reason.startswith("ApprovalNeeded"):
        return Status.NOT_RUN, f"{WAITS_FOR_APPROVAL}: {reason.partition(': ')[2]}"
    if reason:
        return Status.ERROR, reason
    if result is None:
        return Status.ERROR, NO_RESULT
    return result.status, ""


@contextlib.contextmanager
def _deadline(seconds: float, hold: Any) -> Iterator[threading.Event]:
    """Interrupt the kernel when its time is over, and kill it a little later; the event tells that it was late."""
    late = threading.Event()
    timers: list[threading.Timer] = []

    def interrupt() -> None:
        late.set()
        hold.interrupt()
        start(KILL_AFTER_SECONDS, hold.kill)

    def start(delay: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(delay, action)
        timer.daemon = True
        timers.append(timer)
        timer.start()

    start(seconds, interrupt)
    try:
        yield late
    finally:
        for timer in timers:
            timer.cancel()


def _through_papermill(spec: StepSpec, shared: _Pass, hold: Any) -> str:
    """Execute the notebook into the run's folder; the reason it broke, "" when every cell ran.

    papermill writes beside the final name, which is given only to a whole file.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from runbook_lib.engine import Options

    partial = shared.folder / f".{spec.path.stem}.partial.ipynb"
    final = shared.folder / spec.notebook
    final.unlink(missing_ok=True)  # of an earlier attempt: its result must not be taken for this one's
    own = {"site": shared.site, "run_dir": _relative(shared.folder, shared.root)}
    given = {name: value for name, value in {**shared.parameters, **own}.items() if name in spec.parameters}
    options = Options(
        kernels=shared.kernels,
        cwd=str(shared.root),
        env=shared.env,
        hold=hold,
        recorded_input=f"notebooks/{spec.notebook}",
        recorded_output=spec.notebook,
        partial=str(partial),
        on_cell=lambda index, total: shared.events.emit("cell", step=spec.step, cell=index, cells=total),
        on_finding=lambda payload: _tell_findings(spec, shared, payload),
    )
    try:
        papermill.execute_notebook(
            spec.path,
            partial,
            given,
            engine_name="runbook",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            request_save_on_cell_execute=False,
            start_timeout=shared.start_timeout,
            runbook=options,
        )
    except PapermillExecutionError as problem:
        return f"{problem.ename}: {problem.evalue} (cell {problem.exec_count})"
    finally:
        if partial.exists():
            _publish(partial, final)
    return ""


def _publish(partial: Path, final: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.chmod(0o600)
    partial.replace(final)


def _relative(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)


def _tell_findings(spec: StepSpec, shared: _Pass, payload: Any) -> None:
    entries = payload.get("findings", [payload]) if isinstance(payload, Mapping) else payload
    for entry in entries:
        if isinstance(entry, Mapping):
            told = {key: entry.get(key, "") for key in ("check", "status", "subject", "message", "remedy")}
            shared.events.emit("finding", step=spec.step, **told)


def _sweep(site: Any, shared: _Pass) -> None:
    """Take back what interrupted or dead steps of this run had borrowed, and tell what became of it."""
    from runbook_lib.errors import RunbookError
    from runbook_lib.journal import Journal

    journal = shared.folder / "changes.jsonl"
    if not journal.exists() or not Journal(journal).open_entries():
        return
    from runbook_lib.sweep import sweep

    try:
        done = sweep(site, shared.folder.name, root=shared.root)
    except RunbookError as problem:
        message = f"{problem}; nothing was taken back, run `runbook sweep {shared.site}`"
        shared.events.emit("sweep", run=shared.folder.name, clean=False, message=message)
        return
    ending = "nothing remains" if done.clean else f"not clean; run `runbook sweep {shared.site}`"
    message = f"{len(done.undone)} borrowed thing(s) taken back, {ending}"
    shared.events.emit("sweep", run=shared.folder.name, clean=done.clean, message=message)
