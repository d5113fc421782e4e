"""Addresses of the lab's world: a controller told of a Proxmox VE node's own address never leaves the lab."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from runbook_lib.lab.kubernetes.controllers.proxmox import Dropped, ProxmoxClient


def test_a_nodes_own_address_is_answered_by_the_lab() -> None:
    """The URL of the credentials names 10.0.0.1; the request goes where the lab says that this answers."""

    async def story() -> None:
        async def version(request: web.Request) -> web.Response:
            return web.json_response({"data": request.path})

        app = web.Application()
        app.router.add_get("/api2/json/version", version)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        there = runner.addresses[0][:2]
        asked: list[str] = []

        def outside(address: str) -> tuple[str, int]:
            asked.append(address)
            return there

        client = ProxmoxClient("http://10.0.0.1:8006", "u@pve!t", "s", outside=outside)
        try:
            assert json.dumps(await client.get("/version")) == '"/api2/json/version"'
            assert asked == ["10.0.0.1:8006"]
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(story())


def test_nobody_answers_for_a_node_that_is_off() -> None:
    """No packet comes back, as from any host without power."""

    async def story() -> None:
        client = ProxmoxClient("https://10.0.0.2:8006", "u@pve!t", "s", outside=lambda _address: None)
        try:
            with pytest.raises(Dropped):
                await client.get("/version")
        finally:
            await client.close()

    asyncio.run(story())
