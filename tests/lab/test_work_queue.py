"""The work queue under every controller: what it remembers of a failure, and for how long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runbook_lib.lab.kubernetes.controllers import reconcile
from runbook_lib.lab.kubernetes.controllers.client import Refused

KEY = ("tenant-root", "db-0")


def item(uid: str) -> dict[str, Any]:
    """An object of that name."""
    return {"metadata": {"namespace": KEY[0], "name": KEY[1], "uid": uid}}


@pytest.mark.parametrize("kind", ["DELETED", "MODIFIED"])
def test_object_made_anew_does_not_pay_for_the_one_before(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its first failure pauses as briefly as any first one, though nobody saw the name unused in between."""
    cache = SimpleNamespace(path="/things", items={KEY: item("a")}, handlers=[])
    pauses: list[float] = []
    real, enough = asyncio.sleep, asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            for told in cache.handlers:
                told(kind, item("a"))
            cache.items[KEY] = item("b")
        if len(pauses) == 8:
            enough.set()
        await real(0)

    async def work(_key: tuple[str, str], _item: object) -> None:
        raise Refused(500, "InternalError", "no")

    async def synced(*_: object) -> None:
        return None

    async def story() -> None:
        context: Any = SimpleNamespace(synced=synced, clock=None)
        task = asyncio.get_running_loop().create_task(reconcile.reconcile(context, cache, work, workers=1))  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await enough.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    monkeypatch.setattr(reconcile.asyncio, "sleep", sleep)
    asyncio.run(story())
    assert pauses[0] == 2 * reconcile.FIRST_PAUSE
    assert (pauses[6] == pauses[0]) is (kind == "DELETED")
