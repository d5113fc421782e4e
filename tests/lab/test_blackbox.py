"""The lab's blackbox exporter: until when a certificate holds, whoever signed it."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from runbook_lib.lab.kubernetes.controllers.blackbox import knocked, modules, page
from runbook_lib.lab.kubernetes.controllers.processes import Exit


def test_a_certificate_that_nobody_trusts_is_told_of_too() -> None:
    """The handshake is not verified, so that an ended certificate has its date."""
    ends = datetime(2020, 1, 1, tzinfo=UTC)
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf = trustme.CA().issue_cert("127.0.0.1", not_before=ends - timedelta(days=1), not_after=ends)
    leaf.configure_cert(own)

    async def story() -> dict[str, float]:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=own) as server:
            return await knocked("127.0.0.1", server.sockets[0].getsockname()[1], 5.0)

    told = asyncio.run(story())
    assert (told["probe_success"], told["probe_ssl_earliest_cert_expiry"]) == (1.0, ends.timestamp())
    assert f"probe_ssl_earliest_cert_expiry {ends.timestamp():.0f}" in page(told)


def test_where_nobody_listens_there_is_no_certificate() -> None:
    """No date is told, rather than 1970."""

    async def story() -> dict[str, float]:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        return await knocked("127.0.0.1", port, 5.0)

    told = asyncio.run(story())
    assert told["probe_success"] == 0.0 and "probe_ssl_earliest_cert_expiry" not in told


@pytest.mark.parametrize("text", ["", "modules: {a: {}}", "modules: [", "other: 1"])
def test_without_a_good_configuration_it_ends(text: str) -> None:
    """As the real one does, before it listens."""
    with pytest.raises(Exit):
        modules(text)
