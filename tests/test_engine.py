"""The engine and its kernels: isolation, equality of both ways, redaction, and what a crash leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbook_lib import engine, secrets
from runbook_lib.forkserver import ForkServer, skip_slow_schema_formats
from runbook_lib.model import Status
from runbook_lib.results import read_notebook_result, read_scraps

skip_slow_schema_formats()


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One fork server for the tests that need no other."""
    forked = ForkServer(engine.kernel_environment())
    yield forked
    forked.close()


def _execute(source: Path, target: Path, kernels: ForkServer | None = None, **options: Any) -> Any:
    import papermill

    return papermill.execute_notebook(
        source,
        target,
        {"site": "unit"},
        engine_name="runbook",
        kernel_name="python3",
        language="python",
        progress_bar=False,
        request_save_on_cell_execute=False,
        runbook=engine.Options(kernels=kernels, cwd=str(target.parent), **options),
    )


def _printed(notebook: Any) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def _mimetypes(notebook: Any) -> list[list[str]]:
    return [sorted(output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", ())]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone(pid: int, seconds: float = 3) -> bool:
    deadline = time.monotonic() + seconds
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _alive(pid)


# ---------------------------------------------------------------- both ways are one way


def test_forked_and_fresh_kernels_give_the_same(project: Any, tmp_path: Path, server: ForkServer) -> None:
    """Scraps, printed text and figures are equal; a figure is there in both."""
    source = project.notebook(
        "11",
        "import pandas as pd\nframe = pd.DataFrame({'a': [1, 2]})\nframe",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4]);",
        "print(sum(frame.a))",
        "finish('pass', finding('a.b', 'pass', 'x'))",
    )
    fresh = _execute(source, tmp_path / "fresh.ipynb")
    forked = _execute(source, tmp_path / "forked.ipynb", server)
    assert _mimetypes(fresh) == _mimetypes(forked)
    assert any("image/png" in kinds for kinds in _mimetypes(forked))
    assert _printed(fresh) == _printed(forked)
    assert read_scraps(fresh) == read_scraps(forked) != {}


def test_forked_kernels_have_their_own_random_numbers(project: Any, tmp_path: Path, server: ForkServer) -> None:
    """A child inherits the generator's state; each is seeded anew."""
    source = project.notebook("11", "import random, numpy\nprint(random.random(), numpy.random.rand())")
    first, second = (_printed(_execute(source, tmp_path / f"{name}.ipynb", server)).split() for name in "ab")
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_the_environment_of_a_kernel_is_a_short_list(
    project: Any, tmp_path: Path, server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the runner's shell holds is not handed on, in either way; what the site refers to is."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-kernels")
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setenv("PVE_TOKEN", "for-kernels")
    source = project.notebook("11", "import os, json\nprint(json.dumps(dict(os.environ)))")
    env = engine.kernel_environment(("PVE_TOKEN",))
    for kernels in (None, server):
        seen = json.loads(_printed(_execute(source, tmp_path / "o.ipynb", kernels, env=env)))
        assert seen["PVE_TOKEN"] == "for-kernels"
        assert not {"AWS_SECRET_ACCESS_KEY", "https_proxy"} & set(seen)


def test_stock_papermill_needs_no_options(project: Any, tmp_path: Path) -> None:
    """`papermill --engine runbook` and plain papermill give the same result."""
    import papermill

    source = project.notebook("11", "finish('pass')")
    results = []
    for name in ("runbook", None):
        target = tmp_path / f"{name}.ipynb"
        papermill.execute_notebook(
            source,
            target,
            {"site": "x"},
            engine_name=name,
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
        results.append(read_notebook_result(target))
    assert results[0] == results[1]
    assert results[0][0] is not None
    assert results[0][0].status is Status.PASS


def test_the_entry_point_is_light() -> None:
    """papermill loads the engine in the middle of loading itself; that brings nothing more with it."""
    heavy = "[m for m in ('papermill', 'nbclient', 'zmq', 'pandas') if m in sys.modules]"
    code = f"import sys, runbook_lib.engine; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- what the server holds


def test_the_fork_server_holds_no_session(project: Any, tmp_path: Path, server: ForkServer) -> None:
    """Its one socket is the runner's; it has no Python thread, and no credential in its environment."""
    source = project.notebook("11", "import os, threading\nprint(os.getppid())")
    assert int(_printed(_execute(source, tmp_path / "o.ipynb", server))) == server.pid
    links = [str(path.readlink()) for path in Path(f"/proc/{server.pid}/fd").iterdir()]
    assert sum(link.startswith("socket:") for link in links) == 1
    names = {Path(path, "comm").read_text().strip() for path in Path(f"/proc/{server.pid}/task").iterdir()}
    assert len([name for name in names if name.startswith("python")]) == 1


def test_a_kernel_inherits_nothing_of_the_server(project: Any, tmp_path: Path, server: ForkServer) -> None:
    """The control socket and wake-up pipe are closed in the child, and it leads a session of its own."""
    source = project.notebook(
        "11",
        "import os, signal\nprint(os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)",
    )
    assert _printed(_execute(source, tmp_path / "o.ipynb", server)) == "True True\n"


def test_kernels_are_reached_through_a_private_folder(project: Any, tmp_path: Path, server: ForkServer) -> None:
    """No TCP port is opened; the connection file is 0600 in a 0700 folder, which is gone afterwards."""
    cell = (
        "import json, pathlib, stat\nfrom ipykernel.connect import get_connection_file\n"
        "path = pathlib.Path(get_connection_file())\nprint(json.dumps([json.loads(path.read_text())['transport'],"
        " oct(stat.S_IMODE(path.stat().st_mode)), oct(stat.S_IMODE(path.parent.stat().st_mode)), str(path.parent)]))"
    )
    source = project.notebook("11", cell)
    for kernels in (None, server):
        transport, file, folder, name = json.loads(_printed(_execute(source, tmp_path / "o.ipynb", kernels)))
        assert (transport, file, folder) == ("ipc", "0o600", "0o1700")  # the sticky bit is jupyter_core's
        assert not Path(name).exists()


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("forked", [False, True])
def test_a_dead_kernel_leaves_what_it_had_said(project: Any, tmp_path: Path, server: ForkServer, forked: bool) -> None:
    """A kernel killed from outside ends the notebook; the outputs so far are kept, and redacted."""
    from nbclient.exceptions import DeadKernelError

    secrets.register("kept-but-secret")
    source = project.notebook(
        "11", "print('before kept-but-secret')", "import os\nos.kill(os.getpid(), 9)", "print('after')"
    )
    partial = tmp_path / "partial.ipynb"
    with pytest.raises(DeadKernelError):
        _execute(source, tmp_path / "o.ipynb", server if forked else None, partial=str(partial))
    text = partial.read_text()
    assert "before" in text
    assert "kept-but-secret" not in json.dumps(json.loads(text)["cells"][2]["outputs"])


def test_a_dead_fork_server_is_answered_by_a_fresh_kernel(project: Any, tmp_path: Path) -> None:
    """The notebook runs all the same; kernels of the dead server end by themselves."""
    forked = ForkServer(engine.kernel_environment(), preload=("ipykernel.kernelapp",))
    kernel = forked.fork(
        ["-f", str(tmp_path / "k.json"), "--transport=ipc"],
        env=engine.kernel_environment(),
        cwd=str(tmp_path),
        log_path=str(tmp_path / "log"),
    )
    os.kill(forked.pid, signal.SIGKILL)
    assert _gone(kernel.pid)
    source = project.notebook("11", "print('ran')")
    assert _printed(_execute(source, tmp_path / "o.ipynb", forked)) == "ran\n"
    forked.close()


def test_no_kernel_outlives_a_killed_runner(tmp_path: Path) -> None:
    """kill -9 of the runner closes the socket; the server ends its kernels and itself."""
    code = (
        "import os, signal, sys\nfrom runbook_lib import engine\nfrom runbook_lib.forkserver import ForkServer\n"
        "s = ForkServer(engine.kernel_environment(), preload=('ipykernel.kernelapp',))\n"
        "k = s.fork(['-f', sys.argv[1] + '/k.json', '--transport=ipc'], env=engine.kernel_environment(),"
        " cwd=sys.argv[1], log_path=sys.argv[1] + '/log')\n"
        "print(s.pid, k.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert [_gone(int(pid)) for pid in done.stdout.split()] == [True, True]


def test_the_server_tells_how_a_kernel_ended(tmp_path: Path, server: ForkServer) -> None:
    """Exit statuses travel as subprocess spells them."""
    kernel = server.fork(["--no-such-flag"], env={**os.environ}, cwd=str(tmp_path), log_path=str(tmp_path / "log"))
    kernel.send_signal(signal.SIGKILL)
    assert kernel.wait(5) in {-signal.SIGKILL, 1}
    kernel.send_signal(signal.SIGKILL)  # its pid may be another's by now: nothing is sent


# ---------------------------------------------------------------- redaction


def test_a_secret_reaches_no_byte_of_the_notebook(project: Any, tmp_path: Path) -> None:
    """Raw, base64, split over two prints, in HTML, JSON, a traceback and a parameter: none of it is on disk."""
    canary = "kanarek/4f9z+Q!x"
    secrets.register(canary)
    source = project.notebook(
        "11",
        "import base64, sys\ns = 'kanarek' + '/4f9z+Q!x'",
        "print(s)\nprint(base64.b64encode(b'user:' + s.encode()).decode(), file=sys.stderr)",
        "print(s[:6], end='')\nsys.stdout.flush()\nprint(s[6:])",
        "from IPython.display import HTML, display\ndisplay(HTML(f'<b>{s}</b>'))",
        "display({'application/json': {s: [s]}}, raw=True)",
        "raise ValueError(s)",
    )
    import papermill
    from papermill.exceptions import PapermillExecutionError

    with pytest.raises(PapermillExecutionError) as broken:
        papermill.execute_notebook(
            source,
            tmp_path / "o.ipynb",
            {"run_dir": canary},
            engine_name="runbook",
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
    written = (tmp_path / "o.ipynb").read_text()
    import base64

    for form in (canary, json.dumps(canary)[1:-1], base64.b64encode(canary.encode()).decode()[:-4], canary[:6]):
        assert form not in written.replace("'kanarek' + '/4f9z+Q!x'", "")
    assert canary not in str(broken.value)


def test_nothing_is_on_disk_before_the_end(project: Any, tmp_path: Path) -> None:
    """papermill's save around every cell is off: a long notebook is written once."""
    target = tmp_path / "o.ipynb"
    source = project.notebook("11", f"import os\nprint(os.path.exists({str(target)!r}))")
    assert _printed(_execute(source, target)) == "False\n"
    assert target.exists()
