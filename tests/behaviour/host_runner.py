"""A third kind of runner: servers are tasks of a host process behind a socket, without pids and files.

A supervisor uses it with `POOLCTL_RUNNER=tests.behaviour.host_runner`; `HOST` names the socket. The host itself is
`python -m tests.behaviour.host_runner SOCKET`; it ends the workers of a supervisor that has exited.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poolctl import ServerConfig
from poolctl.runners.inline_runner import InlineRunner
from poolctl.runners.runner_protocol import Capabilities, Exit, Placement, RunnerEventHandler, app_state
from poolctl.runners.runner_registry import RunnerContext

HOST = "TEST_RUNNER_HOST"
_LENGTH = struct.Struct("!I")


def make(site: RunnerContext) -> HostRunner:
    return HostRunner(os.environ[HOST])


def frame(message: object) -> bytes:
    payload = pickle.dumps(message)
    return _LENGTH.pack(len(payload)) + payload


async def received(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises IncompleteReadError at the end of the stream."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


class HostRunner:
    """The runner in the supervisor: each method is a call to the host."""

    events = RunnerEventHandler()

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._connection: asyncio.Task[asyncio.StreamWriter] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def open(self, server: ServerConfig) -> tuple[str, ...]:
        opened: tuple[str, ...] = await self._call("open", server)
        return opened

    def change_socket_access(self, server: ServerConfig) -> None:
        pass  # the host has opened it as its user may

    async def close(self, key: str) -> None:
        await self._call("close", key)

    async def preload_application(self, server: ServerConfig, since: float) -> str:
        return "its host imports each application once"

    async def check_startable(self, server: ServerConfig) -> None:
        await self._call("check_startable", server)

    async def place(self, server: ServerConfig, generation: int, index: int) -> Placement:
        placement: Placement = await self._call(
            "place", server, generation, index, state=dict(app_state.get())
        )
        return replace(placement, pid=None, where=f"host {self._path}")

    async def wait_for_begin_or_exit(self, placement: Placement) -> None:
        await self._call("wait_for_begin_or_exit", placement)

    async def wait_until_ready(self, placement: Placement) -> None:
        await self._call("wait_until_ready", placement)

    async def begin_drain(self, placement: Placement, *, replaced: bool = True) -> None:
        await self._call("begin_drain", placement)

    async def drain(self, placement: Placement, *, replaced: bool = True) -> None:
        await self._call("drain", placement)

    async def set_in_rotation(self, placement: Placement, in_rotation: bool) -> None:
        await self._call("set_in_rotation", placement, in_rotation)

    async def reload_tls(self, placement: Placement, server: ServerConfig) -> None:
        await self._call("reload_tls", placement, server)

    def force_certificate(self, name: str, generation: int) -> None:
        pass  # the host reads the files itself

    async def set_accepting(self, placement: Placement, accepting: bool) -> None:
        await self._call("set_accepting", placement, accepting)

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, own: bool = False
    ) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, self._path)
            await loop.sock_sendall(sock, frame(("relay", placement, kind, plain)))
            if await loop.sock_recv(sock, 1) != b"+":
                raise ConnectionRefusedError("the worker does not answer")
        except BaseException:
            sock.close()
            raise
        return sock

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        exit_: Exit = await self._call("stop", placement, timeout_seconds)
        return exit_

    async def wait_for_exit(self, placement: Placement) -> Exit:
        try:
            exit_: Exit = await self._call("wait_for_exit", placement)
        except ConnectionError as error:
            return Exit(message=str(error))
        return exit_

    async def aclose(self) -> None:
        await self._call("aclose")
        assert self._connection is not None
        (await self._connection).close()

    async def _call(self, method: str, *args: object, **values: object) -> Any:
        if self._connection is None:
            self._connection = asyncio.ensure_future(self._connect())
        writer = await asyncio.shield(self._connection)
        number = next(self._numbers)
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(frame((number, method, args, values)))
            return await answer
        finally:
            del self._calls[number]

    async def _connect(self) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_unix_connection(self._path)
        writer.write(frame(("calls",)))
        self._reading = asyncio.ensure_future(self._read(reader))
        return writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                number, value, error = await received(reader)
                answer = self._calls.get(number)
                if answer is None or answer.done():
                    continue
                if error is None:
                    answer.set_result(value)
                else:
                    answer.set_exception(error)
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("its host is gone"))


class Host:
    """The process in which the servers of one supervisor at a time are tasks."""

    def __init__(self) -> None:
        self._runner = InlineRunner()
        self._tasks: set[asyncio.Task[None]] = set()
        # By worker id. Started with the worker, which may have ended before the supervisor asks whether it is ready.
        self._ready: dict[str, asyncio.Task[None]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            kind, *rest = await received(reader)
            if kind == "relay":
                await self._relay(reader, writer, *rest)
            else:
                await self._answer(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                number, method, args, values = await received(reader)
                task = asyncio.ensure_future(self._perform(writer, number, method, args, values))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            await self._runner.aclose()

    async def _perform(
        self, writer: asyncio.StreamWriter, number: int, method: str, args: Any, values: Mapping[str, Any]
    ) -> None:
        if "state" in values:
            app_state.set(values["state"])
        try:
            if method == "wait_until_ready":
                value = await self._ready.pop(args[0].id)
            else:
                value = await getattr(self._runner, method)(*args)
            if method == "place":
                self._ready[value.id] = asyncio.ensure_future(self._runner.wait_until_ready(value))
            answer: tuple[int, object, Exception | None] = number, value, None
        except Exception as error:
            answer = number, None, error
        writer.write(frame(answer))

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        placement: Placement,
        kind: str,
        plain: bool,
    ) -> None:
        try:
            sock = await self._runner.connect_for_probe(placement, kind, plain)
        except OSError:
            writer.write(b"-")
            return
        writer.write(b"+")
        from_worker, to_worker = await asyncio.open_connection(sock=sock)
        await asyncio.gather(_copy(reader, to_worker), _copy(from_worker, writer))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


async def main(path: str) -> None:
    server = await asyncio.start_unix_server(Host().serve, path)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
