"""The page's certificate is used as it is now."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

from poolctl.features.dashboard._web_server import context_of, keep_current
from tests.certificates import certificate


def tls(cert: Path, key: Path) -> dict[str, Any]:
    return {
        "cert": str(cert), "key": str(key), "ca": None, "password": "",
        "client_auth": "none", "min_version": "1.2", "ciphers": None,
    }  # fmt: skip


async def shown(context: ssl.SSLContext) -> bytes | None:
    """The certificate that a client sees."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
    return found


def test_renewed_files_are_used_and_broken_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    cert, key = certificate(tmp_path)
    new_cert, new_key = certificate(tmp_path / "new")

    async def run() -> None:
        context = context_of(tls(cert, key))
        keeping = asyncio.ensure_future(keep_current(context, tls(cert, key), every_seconds=0.01))
        await asyncio.sleep(0)
        first = await shown(context)
        new_cert.replace(cert)  # for a moment it does not fit the key
        for _ in range(5):
            assert await shown(context) == first
        new_key.replace(key)
        async with asyncio.timeout(60):
            while await shown(context) == first:
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(run())
