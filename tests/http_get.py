"""A client that neither retries nor keeps connections: what fails is seen."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.deadline import wait_until


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


def get(
    where: int | str, path: str = "/", *, headers: dict[str, str] | None = None, timeout_seconds: float = 60.0
) -> Reply:
    """One GET on a connection of its own.

    `where` is a port of 127.0.0.1, "HOST:PORT", "https://HOST:PORT" (any certificate) or "unix:/path". Raises
    OSError as sockets do, so that a refused connection can be told from a slow one.
    """
    text = f"127.0.0.1:{where}" if isinstance(where, int) else where
    connection: http.client.HTTPConnection
    if text.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=timeout_seconds)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout_seconds)
        try:
            connection.sock.connect(text.removeprefix("unix:"))
        except OSError:
            connection.sock.close()
            raise
    elif text.startswith("https://"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            text.removeprefix("https://").rstrip("/"), timeout=timeout_seconds, context=context
        )
    else:
        connection = http.client.HTTPConnection(
            text.removeprefix("http://").rstrip("/"), timeout=timeout_seconds
        )
    try:
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def refused(where: int | str) -> bool:
    """Whether a port of 127.0.0.1, or "HOST:PORT", refuses connections."""
    host, _, port = str(where).rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host or "127.0.0.1", int(port))) == errno.ECONNREFUSED


@contextlib.contextmanager
def asked_all_the_time(where: int | str) -> Iterator[list[str]]:
    """What is answered meanwhile, one connection after another; a refused or broken one is in it as its error."""
    answers: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.005):
            try:
                answers.append(get(where).text)
            except (OSError, http.client.HTTPException) as error:
                answers.append(repr(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        wait_until(lambda: answers)
        yield answers
    finally:
        over.set()
        thread.join()
