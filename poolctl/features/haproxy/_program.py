"""Manages HAProxy processes: checks the program, starts it on the pool's sockets, changes, replaces and stops it.

A replaced process keeps its connections, and ends with the last of them:

- `shutdown frontend` on its runtime socket: it accepts no more, and closes each connection with its next response
  (HTTP/2: GOAWAY), which the client is told.
- After the time for that, SIGUSR1: connections that were idle all the time are closed within `close-spread-time`.
  Closing them at once would lose requests that are on their way: up to 3 of 100 busy connections.
- What is left are long responses, WebSockets and streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

from poolctl.keeper.reap import signal_process
from poolctl.platform import (
    parent_and_start,
    process_name,
    process_start,
    processes,
    read_file,
    replace_file,
)
from poolctl.private_directory import create_private_directory

from . import _launch
from ._configuration import CLOSE_SPREAD_SECONDS, HaproxySetup, RefusableServer, runtime_commands
from ._sleeping import WAKING

MAIN_FILE, RUNTIME_FILE, SOCKET_FILE = "haproxy.cfg", "runtime.cfg", "haproxy.sock"
PROCESS_NAME = "poolctl-haproxy"  # of the process that runs HAProxy
_ANSWER_SECONDS = 20.0
_EXIT_SECONDS = 5.0
_POLL_SECONDS = 0.1
# How long the clients of a replaced process may use a connection before it counts as idle.
_ANNOUNCES_SECONDS = 1.0
_MOST_REPLACED = 8
_MOST_ALERTS = 3
# HAProxy's responses to a performed command; anything else is a refusal.
_PERFORMED = re.compile(
    r"\s*(New server registered|Server deleted|IP changed|port changed|no need to change|nothing changed"
    r"|Transaction created|Committing [^\n]*\n?\.?\s*Success|$)"
)

logger = logging.getLogger("poolctl.gateway")


class HaproxyRefusal(Exception):
    """HAProxy does not accept a configuration or a command, or does not start; the message says why."""


class HaproxyProcess:
    """A HAProxy process; the future `exited` is done when it has ended."""

    def __init__(self, pid: int, exited: asyncio.Future[int], socket_path: str = "") -> None:
        self.pid = pid
        self.socket_path = socket_path
        self.exited = exited
        self._start = process_start(pid) or 0

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        descriptors: Sequence[int],
        *,
        socket_path: str = "",
        stderr: int | None = None,
    ) -> HaproxyProcess:
        """Start HAProxy with these descriptors, under the same numbers. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=descriptors,
            # In its own session, so that it is not killed with our group and finishes its requests.
            start_new_session=True,
        )
        return cls(process.pid, asyncio.ensure_future(process.wait()), socket_path)

    @classmethod
    def of_other_parent(cls, pid: int) -> HaproxyProcess:
        """The running process with this pid, which is no child of this process. Raises OSError."""
        loop = asyncio.get_running_loop()
        exited: asyncio.Future[int] = loop.create_future()
        fd = os.pidfd_open(pid)

        def ended() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            exited.set_result(0)

        loop.add_reader(fd, ended)
        return cls(pid, exited)

    def signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        if not self.exited.done():
            signal_process(self.pid, self._start, number)

    async def ask(self, command: str) -> str:
        """Send a command to the runtime socket and return the response. Raises HaproxyRefusal if there is none."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self.socket_path)
                try:
                    writer.write(command.encode() + b"\n")
                    return (await reader.read()).decode("utf-8", "replace")
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise HaproxyRefusal(
                f"its runtime socket does not answer: {error or 'no answer in time'}"
            ) from None

    async def statistics(self) -> list[dict[str, str]]:
        """A row of figures for each frontend, backend and server of a backend. Raises HaproxyRefusal."""
        return [*csv.DictReader((await self.ask("show stat")).lstrip("# ").splitlines())]

    async def sections_to_wake(self) -> list[str]:
        """The sections whose waiting page was requested since the last call. Raises HaproxyRefusal."""
        lines = (await self.ask(f"show map {WAKING}")).splitlines()
        found = [line.split()[1] for line in lines if len(line.split()) == 3]
        if found:
            await self.ask(f"clear map {WAKING}")
        return found

    async def stop_accepting(self, frontends: Sequence[str]) -> bool:
        """Stop accepting on these frontends; returns whether clients are connected. Raises HaproxyRefusal."""
        for name in frontends:
            await self.ask(f"shutdown frontend {name}")
        rows = await self.statistics()
        return any(int(row["scur"] or 0) for row in rows if row["svname"] == "FRONTEND")


class Replaced(NamedTuple):
    """A replaced process: `targets` are the keys of the servers to which it may send requests of its clients.

    `closing` is done when no idle client is connected to it, so that it begins no further requests.
    """

    targets: frozenset[str]
    closing: asyncio.Task[None]


class HaproxyProcessManager:
    """Keeps one HAProxy process running with the latest setup; replaced processes end with their last connection.

    `directory` is for its files, including private keys: only the pool's user may read it. `on_too_many` is called with
    the pid of a replaced process that is ended although it has connections, because there are too many of them.
    `on_refused_server` is called with a target, and the reason why HAProxy does not accept it; the others are served.
    """

    def __init__(self, program: str, directory: str) -> None:
        self.program = program
        self.directory = directory
        self.process: HaproxyProcess | None = None
        self.setup: HaproxySetup | None = None
        self.on_too_many: Callable[[int], None] = lambda pid: None
        self.on_refused_server: Callable[[str, str], None] = lambda target, why: None
        # The servers that the running process does not have, and why.
        self._refused: dict[RefusableServer, str] = {}
        self._replaced: dict[HaproxyProcess, Replaced] = {}  # the oldest first

    @property
    def replaced_pids(self) -> list[int]:
        """The pids of the replaced processes that still have connections."""
        return [each.pid for each in self._replaced]

    @property
    def socket_path(self) -> str:
        """The path of the process's runtime socket."""
        return os.path.join(self.directory, SOCKET_FILE)

    async def apply(self, setup: HaproxySetup) -> None:
        """Apply this setup: by runtime commands if they suffice, else with a new process. Raises HaproxyRefusal."""
        whole, setup = setup, setup.without(self._refused)
        process, before = self.process, self.setup
        commands = None if process is None or before is None else runtime_commands(before, setup)
        if process is None or commands is None:
            await self._replace(whole)
            return
        try:
            for command in commands:
                answer = await process.ask(command)
                # A server that still has connections is deleted by the next start; until then it gets no new ones.
                if not _PERFORMED.match(answer) and not command.startswith("del server"):
                    raise HaproxyRefusal(f"{command.partition(chr(10))[0]}: {answer.strip()}")
            self.setup = setup
        except HaproxyRefusal as refusal:
            logger.warning("HAProxy is started again: %s", refusal)
            await self._replace(whole)

    async def _replace(self, setup: HaproxySetup) -> None:
        setup = await self._write_and_validate(setup)
        before, setup_before = self.process, self.setup
        self.process, self.setup = await self._start(setup), setup
        if before is not None:
            # Until its listeners are closed, both processes accept connections, each with its own routes.
            await self._retire(before, setup_before)
        os.rename(self.process.socket_path, self.socket_path)
        self.process.socket_path = self.socket_path

    async def _write_and_validate(self, setup: HaproxySetup) -> HaproxySetup:
        """Write the files of this setup, without the servers that HAProxy does not accept, and return that setup."""
        whole, refused = setup, dict[RefusableServer, str]()
        while alerts := await self._write_and_list_alerts(setup):
            found = dict(_refused_servers(setup, alerts))
            if not found:
                raise HaproxyRefusal("; ".join(alerts[:_MOST_ALERTS]) or "it does not say why")
            refused |= found
            setup = whole.without(refused)
        known, self._refused = self._refused, refused
        for server, why in refused.items():
            if server not in known:
                self.on_refused_server(server[1].key, why)
        return setup

    async def _write_and_list_alerts(self, setup: HaproxySetup) -> list[str]:
        create_private_directory(self.directory)
        files = {
            MAIN_FILE: setup.text.encode(errors="surrogateescape"),
            **setup.files,
        }
        for name, content in files.items():
            self._write_file(name, content)
        path, output = os.path.join(self.directory, MAIN_FILE), os.memfd_create("poolctl-haproxy")
        try:
            command = [self.program, "-c", "-f", path]
            checker = await HaproxyProcess.start(command, setup.descriptor_numbers, stderr=output)
            if not await checker.exited:
                return []
            return _alerts(read_file(output).decode("utf-8", "replace")) or [""]
        finally:
            os.close(output)

    def _write_file(self, name: str, content: bytes) -> str:
        path = os.path.join(self.directory, name)
        replace_file(path, content)
        return path

    async def _start(self, setup: HaproxySetup) -> HaproxyProcess:
        """Start a process that serves in addition to the previous one."""
        path = f"{self.socket_path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen()
            listener.setblocking(False)
            # Each process has its own runtime socket, while the listeners are shared.
            self._write_file(
                RUNTIME_FILE, f"global\n    stats socket fd@{listener.fileno()} level admin\n".encode()
            )
            # Quiet: it would log each change of a server for ever.
            argv = [sys.executable, "-IS", _launch.__file__, str(os.getpid())]
            argv += [self.program, *self._arguments]
            descriptors = [*setup.descriptor_numbers, listener.fileno()]
            process = await HaproxyProcess.start(argv, descriptors, socket_path=path)
        try:
            await self._await_serving(process)
            for command in setup.drain_commands():
                await process.ask(command)
        except BaseException:
            process.signal(signal.SIGKILL)
            await asyncio.wait({process.exited}, timeout=_EXIT_SECONDS)
            raise
        return process

    async def _await_serving(self, process: HaproxyProcess) -> None:
        """Wait until the process serves: its runtime socket answers. Raises HaproxyRefusal if it ends first."""
        answer = asyncio.ensure_future(process.ask("show info"))
        either: list[asyncio.Future[Any]] = [answer, process.exited]
        done, _ = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if answer not in done:
            answer.cancel()
            raise HaproxyRefusal(f"it ended at its start with status {await process.exited}")
        await answer

    @property
    def _arguments(self) -> list[str]:
        main, runtime = (os.path.join(self.directory, name) for name in (MAIN_FILE, RUNTIME_FILE))
        return ["-db", "-q", "-f", main, "-f", runtime]

    def adopt_left_processes(self) -> None:
        """Regard the processes as replaced that a killed predecessor of this process has left, with SIGUSR1."""
        for pid in _orphans_with_arguments(self._arguments):
            with contextlib.suppress(OSError):  # it has ended
                left = HaproxyProcess.of_other_parent(pid)
                self._add_replaced(left, frozenset(), self._await_idle_closed(left))

    async def _retire(self, process: HaproxyProcess, setup: HaproxySetup | None) -> None:
        """Have the process accept no more; it then closes idle connections, and ends with its last connection."""
        names, targets = ((), frozenset()) if setup is None else (setup.frontends, setup.used_targets)
        try:
            has_clients = await process.stop_accepting(names)
        except HaproxyRefusal:
            has_clients = False
        self._add_replaced(process, targets, self._close_idle(process, _ANNOUNCES_SECONDS * has_clients))

    def _add_replaced(
        self, process: HaproxyProcess, targets: frozenset[str], closing: Coroutine[Any, Any, None]
    ) -> None:
        self._replaced[process] = Replaced(targets, asyncio.ensure_future(closing))
        process.exited.add_done_callback(lambda _: self._replaced.pop(process, None))

    async def _close_idle(self, process: HaproxyProcess, announces_seconds: float) -> None:
        await asyncio.wait([process.exited], timeout=announces_seconds)
        process.signal(signal.SIGUSR1)
        await self._await_idle_closed(process)

    async def _await_idle_closed(self, process: HaproxyProcess) -> None:
        await asyncio.wait([process.exited], timeout=CLOSE_SPREAD_SECONDS)
        if not process.exited.done():
            self._end_oldest_if_too_many()

    def _end_oldest_if_too_many(self) -> None:
        # Those that still close idle connections do not count: most of them end by that.
        with_streams = [each for each, replaced in self._replaced.items() if replaced.closing.done()]
        if len(with_streams) >= _MOST_REPLACED:
            with_streams[0].signal(signal.SIGTERM)
            self.on_too_many(with_streams[0].pid)

    async def wait_until_unused(self, target: str) -> None:
        """Wait until no replaced process begins a request to this target: at most two seconds."""
        closing = [each.closing for each in self._replaced.values() if target in each.targets]
        if closing:
            await asyncio.wait(closing)

    async def drain(self, seconds: float) -> None:
        """Stop accepting; return when the last requests have ended, or were ended after `seconds`."""
        if self.process is not None:
            process, self.process = self.process, None
            await self._retire(process, self.setup)
        await self._await_replaced(seconds)
        await self.stop_immediately()

    async def _await_replaced(self, seconds: float) -> None:
        if self._replaced:
            await asyncio.wait([each.exited for each in self._replaced], timeout=seconds)

    async def end_after_last_request(self, seconds: float) -> None:
        """End HAProxy once no requests are in progress, or after `seconds`; no other process takes over.

        Streams and idle connections are closed as well. A replaced process cannot be asked for its requests: it has the
        same time to end.
        """
        with contextlib.suppress(HaproxyRefusal, TimeoutError):
            async with asyncio.timeout(seconds):
                # HAProxy reports no event when its last request ends.
                while self.process is not None and await self._has_requests(self.process):
                    await asyncio.sleep(_POLL_SECONDS)
                await self._await_replaced(seconds)
        await self.stop_immediately()

    async def _has_requests(self, process: HaproxyProcess) -> bool:
        """Whether the process has requests in flight to the backends of routes."""
        streams = (
            {each.name for each in self.setup.configuration.backends if each.is_stream or each.passes_tls}
            if self.setup
            else ()
        )
        return any(
            int(row["scur"] or 0)
            for row in await process.statistics()
            if row["svname"] == "BACKEND" and row["pxname"] not in streams
        )

    async def stop_immediately(self) -> None:
        """End all HAProxy processes immediately."""
        running = [*self._replaced, *([self.process] if self.process is not None else [])]
        self.process = None
        for number in (signal.SIGTERM, signal.SIGKILL):
            for each in running:
                each.signal(number)
            left = [each.exited for each in running if not each.exited.done()]
            if left:
                await asyncio.wait(left, timeout=_EXIT_SECONDS)


def _orphans_with_arguments(arguments: Sequence[str]) -> Iterator[int]:
    """Yield the pids of HAProxy processes with these last arguments whose parent is no process that runs HAProxy."""
    wanted = [os.fsencode(each) for each in arguments]
    for pid in processes():
        parent, _ = parent_and_start(pid) or (0, 0)
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            found = file.read().rstrip(b"\0").split(b"\0")[-len(wanted) :]
            if found == wanted and process_name(parent) != PROCESS_NAME:
                yield pid


def _alerts(output: str) -> list[str]:
    """The alerts in HAProxy's output, each as one line. HAProxy 3 continues an alert on lines without a level."""
    messages = re.split(r"^(?=\[[A-Z]+\])", output, flags=re.MULTILINE)
    return [" ".join(each.partition(" : ")[2].split()) for each in messages if each.startswith("[ALERT]")]


def _refused_servers(setup: HaproxySetup, alerts: Sequence[str]) -> Iterator[tuple[RefusableServer, str]]:
    """Yield the servers in whose lines of the main file HAProxy has found faults, each with the alert."""
    servers = dict(setup.configuration.servers_by_line_number())
    for alert in alerts:
        place = re.search(rf"\[[^][]*{re.escape(MAIN_FILE)}:(\d+)\]\s*:?\s*(.*)", alert)
        if place is not None and (server := servers.get(int(place[1]))) is not None:
            yield server, place[2]
