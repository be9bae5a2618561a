"""A real web server that takes notifications as ntfy, gotify, Slack and a webhook do, and refuses what they refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.asyncio_server import hang_up, start_server

TOKEN = "t0ken"


class Taken(NamedTuple):
    """One notification that was understood."""

    kind: str
    title: str
    text: str
    body: dict[str, Any]
    headers: dict[str, str]


class Receiver:
    """Runs in an event loop. `taken` is what has arrived, `requests` has the loop's time of each request.

    The answers of `refusals` (status, headers) are given first, one a request, and nothing before `may_answer`.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.taken: list[Taken] = []
        self.requests: list[float] = []
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate, certificate.with_suffix(".key"))

    async def start(self) -> None:
        self._server = await start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)

    async def aclose(self) -> None:
        await hang_up(self._server)

    def url(self, path: str = "") -> str:
        origin = "https://localhost" if self._tls is not None else "http://127.0.0.1"
        return f"{origin}:{self._server.sockets[0].getsockname()[1]}{path}"

    def texts(self) -> list[str]:
        return [taken.text for taken in self.taken]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that hangs up, such as one that does not trust us, is no news.
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.requests.append(asyncio.get_running_loop().time())
            await self.may_answer.wait()
            status, more = (
                self.refusals.pop(0) if self.refusals else (self._take(request.split()[1], headers, body), {})
            )
            lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in more.items())]
            writer.write("\r\n".join([*lines, "content-length: 0", "", ""]).encode())
            await writer.drain()

    def _take(self, path: str, head: dict[str, str], raw: bytes) -> int:
        if head["content-type"] != "application/json":
            return 415
        body = json.loads(raw)
        if path == "/gotify/message":
            # https://gotify.net/api-docs: token, message, title, a whole number as priority
            if head.get("x-gotify-key") != TOKEN:
                return 401
            ok = isinstance(body["priority"], int) and 0 <= body["priority"] <= 10
            found = Taken("gotify", body["title"], body["message"], body, head)
        elif path == "/slack/hook":
            # https://api.slack.com/messaging/webhooks: text; attachments with colour, text and fallback
            ok = all(isinstance(each["text"], str) and each["color"] for each in body["attachments"])
            ok = ok and not ({"text", "attachments"} ^ body.keys())
            found = Taken("slack", body["text"], body["attachments"][0]["text"], body, head)
        elif path == "/ntfy/":
            # https://docs.ntfy.sh/publish/#publish-as-json: to the root, topic, priority 1 to 5, a list of tags
            ok = bool(body["topic"]) and body["priority"] in range(1, 6) and isinstance(body["tags"], list)
            found = Taken("ntfy", body["title"], body["message"], body, head)
        elif path == "/hook?a=b":
            ok = body["schema"] == 1 and isinstance(body["events"], list)
            found = Taken("webhook", body["title"], body["text"], body, head)
        else:
            return 404
        if not ok:
            return 400
        self.taken.append(found)
        return 200


@contextmanager
def receiver(certificate: Path | None = None) -> Iterator[Receiver]:
    """A receiver in a thread of its own, that listens until the end of the block."""
    loop = asyncio.new_event_loop()
    server = Receiver(certificate)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.aclose(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
