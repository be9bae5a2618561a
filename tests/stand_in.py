"""A real server on a real control socket that answers what a test tells it to: the protocol without a supervisor."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from poolctl.control.answers import Item
from poolctl.json_form import from_json
from tests.asyncio_server import listening

Send = Callable[[dict[str, Any]], None]
Answer = Callable[[str, dict[str, Any], Send], Awaitable[dict[str, Any] | bytes | None]]


async def respond(
    answer: Answer,
    requests: list[tuple[str, dict[str, Any]]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer the request of one connection, which is added to `requests`; see `stand_in`."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(h.split(":")[1]) for h in head.splitlines() if h.lower().startswith("content-length")
        )
        verb = head.split()[1].removeprefix("/v1/")
        body = json.loads(await reader.readexactly(length))
        requests.append((verb, body))
        started_body = False

        def send(document: dict[str, Any]) -> None:
            nonlocal started_body
            if not started_body:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n")
                started_body = True
            writer.write(json.dumps(document).encode() + b"\n")

        result = await answer(verb, body, send)
        if isinstance(result, bytes):
            writer.write(result)
        elif result is not None:
            send({"result": result})
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@contextmanager
def stand_in(path: Path, answer: Answer) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Serve `path` until the end of the block; the list holds every request (verb, body) so far.

    `answer` returns the result, or bytes that are sent as they are, or None to hang up without an answer.
    """
    requests: list[tuple[str, dict[str, Any]]] = []
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    over = asyncio.Event()
    started = threading.Event()

    async def serve() -> None:
        async with listening(partial(respond, answer, requests), str(path)):
            started.set()
            await over.wait()

    def run() -> None:
        with runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(60)
        yield requests
    finally:
        runner.get_loop().call_soon_threadsafe(over.set)
        thread.join(60)


def item(name: str, port: int = 8081, **changes: Any) -> dict[str, Any]:
    """A server as the protocol has it, running unless the changes say otherwise."""
    return {
        "name": name,
        "bind": f"127.0.0.1:{port}",
        "expose": f"http://127.0.0.1:{port}",
        "state": "running",
        "ready": True,
        "health": "ok",
        "pids": [4242],
        "workers": 1,
        "uptime_seconds": 12.5,
        "restarts": 0,
        "tags": ["api"],
        **changes,
    }


def server(name: str, port: int = 8081, **changes: Any) -> Item:
    """The same as a command has it."""
    return from_json(Item, item(name, port, **changes))


def result(*items: dict[str, Any], exit_code: int = 0, **more: Any) -> dict[str, Any]:
    """What the supervisor answers."""
    return {"schema": 1, "items": list(items), "errors": [], "warnings": [], "exit_code": exit_code, **more}


def always(*items: dict[str, Any], **more: Any) -> Answer:
    """The same answer for every request."""

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        return result(*items, **more)

    return answer
