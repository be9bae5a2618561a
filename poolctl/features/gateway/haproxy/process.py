"""HAProxy's processes: the keeper starts them on the pool's sockets, and they outlive supervisors.

A replaced process keeps its connections, and ends with the last of them:

- `disable frontend`, then `shutdown frontend` on its runtime socket: it accepts no more, and closes each connection
  with its next response (HTTP/2: GOAWAY).
- After the time for that, SIGUSR1: connections that were idle all the time are closed within `close-spread-time`.
  Closing them at once would lose requests in transit: up to 3 of 100 busy connections.
- Long responses, WebSockets and streams remain until they end.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import re
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from poolctl.config import ids_of
from poolctl.config.model.section import Log
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.keeper import fd_store, pool_files
from poolctl.platform import process_start, processes, replace_file
from poolctl.private_directory import create_private_directory
from poolctl.routing.context import without_keys
from poolctl.runners.helper_process import HelperChild, HelperKind, HelperLog
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.runners.local.output_pipes import OutputPipes
from poolctl.runners.process_link import (
    HasDescriptor,
    Link,
    LinkLost,
    Refused,
    identity,
)

from .configuration import CLOSE_SPREAD_SECONDS, RefusableServer
from .setup import RUNTIME_FD, HaproxySetup, joined_commands
from .sleeping import WAKING
from .syntax import alerts_in

GATEWAY = HelperKind(
    name="gateway",
    label="the gateway",
    argv=(),  # see HaproxyProcesses
    entry=fd_store.GATEWAY_LINK,
    ready_seconds=60.0,  # with ten thousand routes it needs ten
    end_seconds=30.0,
    stop_signal=signal.SIGUSR1,
    drain_seconds=30.0,
    # Restarted at once: meanwhile connections wait in the backlog.
    first_pause_seconds=0.0,
    calm_seconds=1.0,
    # It has no code of poolctl. Increased if an upgrade has to replace it although its configuration is the same.
    version="1",
)
MAIN_FILE = "haproxy.cfg"
_DIRECTORY = "haproxy"  # of its files, in the pool's directory
_PROCESS_FILE = "process.cfg"
_ANSWER_SECONDS = 20.0
_EXIT_SECONDS = 5.0
_POLL_SECONDS = 0.1
# How long a connection to a replaced process must be unused to count as idle.
_ANNOUNCES_SECONDS = 1.0
# A process that is replaced because it hangs must not hold up its successor.
_STOPS_SECONDS = 2.0
# A closed listener that other processes have, too, stays in HAProxy's epoll(7) set: each connection to the next process
# would wake the replaced one, which costs as much as serving it. A disabled one leaves the set at its next connection.
_FORGETS_SECONDS = 0.1
_MOST_REPLACED = 8
_MOST_ALERTS = 3
_MOST_OUTPUT_BYTES = 256 * 1024
# Kinds of proxies in "show stat".
FRONTENDS, BACKENDS = 1, 2
# What ends a response in a session.
_PROMPT = b"\n> "
_MOST_ANSWERED_BYTES = 2**30
_ORPHAN_SECONDS = 2.0


class HaproxyRefusal(ServerError):
    """HAProxy does not accept a configuration or a command, or does not start; the message says why."""


class HaproxyProcess(HelperChild):
    """A HAProxy process, which answers commands on the runtime socket at `path`.

    It may also be a process that has a parent other than the keeper. Raises ProcessLookupError if it has ended before.
    `accepts` is whether it may have listeners.
    """

    def __init__(self, kind: HelperKind, known: dict[str, Any], mark: str = "", path: str = "") -> None:
        super().__init__(kind, known, mark)
        self.path = path
        self.accepts = bool(path)
        self._fd = os.pidfd_open(self.pid)
        if process_start(self.pid) != known["start"]:
            os.close(self._fd)
            raise ProcessLookupError(self.pid)
        asyncio.get_running_loop().add_reader(self._fd, self._on_exit)
        self._pinging: asyncio.Task[None] | None = None

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        if self.path:
            pool_files.unlink_quietly(self.path)
        self.mark_exited()

    def ping(self) -> None:
        self._pinging = asyncio.ensure_future(self._ping())

    async def _ping(self) -> None:
        # Any answer shows that it does not hang; its exit is noticed by its descriptor.
        with contextlib.suppress(HaproxyRefusal):
            await self.ask("show info")
            self.up.set()
        self.answered()

    def save_to_keeper(self, keeper: Link) -> None:
        # Not as "mark", which an upgrade removes from entries: processes with poolctl's code are replaced.
        meta = {
            **self.known, "settings": self.mark, "path": self.path, "stop_signal": int(signal.SIGUSR1),
        }  # fmt: skip
        keeper.send({"op": "put", "name": self.kind.entry, "meta": meta})

    def signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        if not self.exited.done():
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._fd, number)

    def end(self) -> None:
        super().end()
        self.signal(signal.SIGUSR1)

    async def ask(self, command: str) -> str:
        """Send a command to the runtime socket and return the response. Raises HaproxyRefusal if there is none."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self.path)
                try:
                    writer.write(command.encode() + b"\n")
                    return (await reader.read()).decode("utf-8", "replace")
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise HaproxyRefusal(
                f"its runtime socket does not answer: {error or 'no answer in time'}"
            ) from None

    async def statistics(self, kind: int) -> list[dict[str, str]]:
        """A row of figures for each proxy that is one of FRONTENDS or BACKENDS. Raises HaproxyRefusal."""
        text = await self.ask(f"show stat -1 {kind} -1")
        return await in_daemon_thread(lambda: [*csv.DictReader(text.lstrip("# ").splitlines())])

    async def sections_to_wake(self) -> list[str]:
        """The sections whose waiting page was requested since the last call. Raises HaproxyRefusal."""
        lines = (await self.ask(f"show map {WAKING}")).splitlines()
        found = [line.split()[1] for line in lines if len(line.split()) == 3]
        if found:
            await self.ask(f"clear map {WAKING}")
        return found

    async def stop_accepting(self) -> bool:
        """Accept no more connections; returns whether clients are connected. Raises HaproxyRefusal."""
        frontends = [row["pxname"] for row in await self.statistics(FRONTENDS)]
        for each in frontends:
            await self.ask(f"disable frontend {each}")
        await asyncio.sleep(_FORGETS_SECONDS)
        for each in frontends:
            await self.ask(f"shutdown frontend {each}")
        self.accepts = False
        return any(int(row["scur"] or 0) for row in await self.statistics(FRONTENDS))


class RuntimeSession:
    """A connection to the runtime socket of a process, which is usable even while the process finishes its requests.

    The process does not end before the session is closed.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, process: HaproxyProcess) -> RuntimeSession:
        """Open a session. Raises HaproxyRefusal."""
        try:
            made = cls(*await asyncio.open_unix_connection(process.path, limit=_MOST_ANSWERED_BYTES))
        except OSError as error:
            raise HaproxyRefusal(f"its runtime socket does not answer: {error}") from None
        await made.ask("prompt")
        return made

    async def ask(self, command: str) -> str:
        """Send a command and return the response. Raises HaproxyRefusal if there is none."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._writer.write(command.encode() + b"\n")
                answer = await self._reader.readuntil(_PROMPT)
        except (OSError, TimeoutError, EOFError) as error:
            self.close()
            raise HaproxyRefusal(f"it does not answer: {error or 'no answer in time'}") from None
        return answer.removesuffix(_PROMPT).decode("utf-8", "replace")

    async def has_connections(self) -> bool:
        """Whether the process has any job besides this session. Raises HaproxyRefusal."""
        found = re.search(r"^Jobs: (\d+)", await self.ask("show info"), re.MULTILINE)
        return found is not None and int(found[1]) > 1

    def close(self) -> None:
        """Close the session."""
        self._writer.close()


class HaproxyProcesses:
    """Starts the pool's HAProxy with the setup `wanted`, and has replaced processes end with their last connection.

    The files of HAProxy are below `directory`, that of the pool. The logger, to which `output` leads, writes its lines
    about requests to the file `access_log`. `on_too_many` is called with the pid of a replaced
    process that is ended although it has connections, because there are too many of them. `on_refused_server` is called
    with a target, and the reason why HAProxy does not accept it; the others are served.
    """

    def __init__(self, directory: str, output: OutputPipes, access_log: str) -> None:
        self.directory = directory
        self._output = output
        self._access_log = access_log
        self.wanted: HaproxySetup | None = None
        # Started if HAProxy refuses `wanted`: what the last process had, set as long as there is none.
        self.fallback: HaproxySetup | None = None
        # That of the latest process, without the servers that it refuses.
        self.started: HaproxySetup | None = None
        # The servers that the process in use does not have, and why.
        self.refused: dict[RefusableServer, str] = {}
        self.on_too_many: Callable[[int], None] = lambda pid: None
        self.on_refused_server: Callable[[str, str], None] = lambda target, why: None
        self._running: set[HaproxyProcess] = set()  # all, also those that are not ready
        # With the task that is done when no idle client is connected to it. The oldest first.
        self._replaced: dict[HaproxyProcess, asyncio.Task[None]] = {}

    @property
    def replaced_accept(self) -> bool:
        """Whether a replaced process may have listeners."""
        return any(each.accepts for each in self._replaced)

    @property
    def replaced_pids(self) -> list[int]:
        """The pids of the replaced processes that still have connections."""
        return [each.pid for each in self._replaced]

    async def spawn(self, keeper: Link, log: HelperLog, kind: HelperKind, mark: str) -> HaproxyProcess:
        """Start a process that serves in addition to the previous one; returns when it serves.

        Servers that HAProxy does not accept are left out. Raises HaproxyRefusal, LinkLost, OSError.
        """
        assert self.wanted is not None
        try:
            return await self._start_without_refused(keeper, log, kind, mark, self.wanted)
        except HaproxyRefusal as refusal:
            if (fallback := self.fallback) is None:
                raise
            with contextlib.suppress(HaproxyRefusal):
                # Without a mark: the helper tries to replace it at once, and then knows why it cannot.
                setup = fallback.with_states_of(self.wanted)
                return await self._start_without_refused(keeper, log, kind, "", setup)
            raise refusal from None

    async def _start_without_refused(
        self, keeper: Link, log: HelperLog, kind: HelperKind, mark: str, wanted: HaproxySetup
    ) -> HaproxyProcess:
        refused = dict[RefusableServer, str]()
        while True:
            setup = wanted.without(refused)
            await in_daemon_thread(lambda setup=setup: self._write_files(setup))  # type: ignore[misc]
            process = await self._start(keeper, log, kind, mark, setup)
            try:
                await process.wait_until_ready(log)
                for command in joined_commands(setup.start_commands()):
                    await process.ask(command)
                break
            except (LinkLost, TimeoutError) as error:
                alerts = _alerts(log.path, process.pid)
                found = dict(_refused_servers(setup, alerts))
                if not found:
                    raise HaproxyRefusal("; ".join(alerts[:_MOST_ALERTS]) or str(error)) from None
                refused |= found
            except BaseException:
                process.end()
                raise
        known, self.refused, self.started = self.refused, refused, setup
        for server, why in refused.items():
            if server not in known:
                self.on_refused_server(server[1].key, why)
        return process

    async def adopt(self, keeper: Link, kind: HelperKind) -> HaproxyProcess | None:
        """The process in the keeper's store, if there is one. All others of this pool count as replaced."""
        reply, _ = await keeper.call({"op": "get", "name": kind.entry})
        meta, found = reply.get("meta"), None
        if meta is not None and "path" in meta:
            known = {name: meta[name] for name in ("pid", "start")}
            with contextlib.suppress(OSError):
                found = self._add(
                    HaproxyProcess(kind, known, str(meta.get("settings", "")), str(meta["path"]))
                )
                found.watch()
        arguments = self._arguments
        for pid in await in_daemon_thread(lambda: _with_arguments(arguments)):
            if found is None or pid != found.pid:
                with contextlib.suppress(OSError):
                    left = self._add(HaproxyProcess(kind, identity(pid)))
                    self._add_replaced(left, self._close_idle(left))
        return found

    async def retire(self, process: HaproxyProcess) -> None:
        """Have a replaced process accept no more; it then closes idle connections, and ends with its last one.

        Until its listeners are closed, both processes accept connections, each with its own routes.
        """
        stopping = asyncio.ensure_future(process.stop_accepting())
        self._add_replaced(process, self._stop_and_close_idle(process, stopping))
        await asyncio.wait({stopping}, timeout=_STOPS_SECONDS)

    async def wait_until_idle_closed(self) -> None:
        """Wait until no replaced process begins further requests of its clients: at most two seconds."""
        if closing := [each for each in self._replaced.values() if not each.done()]:
            await asyncio.wait(closing)

    async def finish_requests(
        self, process: HaproxyProcess | None, seconds: float, streams: Sequence[str]
    ) -> None:
        """Wait until no requests are in progress, at most `seconds`.

        Connections of the backends `streams` and idle connections do not count. A replaced process cannot be asked for
        its requests: it has the same time to end.
        """
        with contextlib.suppress(HaproxyRefusal, TimeoutError):
            async with asyncio.timeout(seconds):
                # HAProxy reports no event when its last request ends.
                while process is not None and await _has_requests(process, streams):
                    await asyncio.sleep(_POLL_SECONDS)
                if self._replaced:
                    await asyncio.wait([each.exited for each in self._replaced])

    async def end_all(self, log: HelperLog) -> None:
        """End all processes immediately, and remove their files and their log; returns when they have ended."""
        running = [*self._running]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for each in running:
                each.signal(number)
            if left := [each.exited for each in running if not each.exited.done()]:
                await asyncio.wait(left, timeout=_EXIT_SECONDS)
        await in_daemon_thread(
            lambda: shutil.rmtree(os.path.join(self.directory, _DIRECTORY), ignore_errors=True)
        )
        # Of a pool that ends as ordered, HAProxy has logged little but that its servers stopped.
        await log.wait_until_stored()
        pool_files.unlink_quietly(log.path)

    @property
    def _arguments(self) -> list[str]:
        main, process = (
            os.path.join(self.directory, _DIRECTORY, name) for name in (MAIN_FILE, _PROCESS_FILE)
        )
        return ["-db", "-f", main, "-f", process]

    def _write_files(self, setup: HaproxySetup) -> None:
        directory = os.path.join(self.directory, _DIRECTORY)
        create_private_directory(directory)
        process = "".join(f"{line}\n" for line in _process_section(setup))
        files = {MAIN_FILE: setup.text.encode(errors="surrogateescape"), _PROCESS_FILE: process.encode()}
        for name, content in {**files, **setup.files}.items():
            replace_file(os.path.join(directory, name), content)

    async def _start(
        self, keeper: Link, log: HelperLog, kind: HelperKind, mark: str, setup: HaproxySetup
    ) -> HaproxyProcess:
        path = os.path.join(self.directory, f"{pool_files.GATEWAY}{secrets.token_hex(4)}")
        with socket.socket(socket.AF_UNIX) as runtime:
            runtime.bind(path)
            os.chmod(path, 0o600)
            runtime.listen()
            runtime.setblocking(False)
            requests, write = "", -1
            if setup.access_log:
                form = "raw" if setup.access_log == "json" else "text"
                requests, write = self._output.create_log_pipe(
                    "[gateway]", self._access_log, form, Log.with_defaults()
                )
            try:
                fds: list[int | HasDescriptor] = [runtime, *setup.sockets, *([write] if requests else [])]
                starting = log.spawn(keeper, [setup.program, *self._arguments], fds)
                process = await self._spawn(starting, kind, mark, path)
            except (Refused, OSError) as error:
                pool_files.unlink_quietly(path)
                self._output.discard(requests)
                raise HaproxyRefusal(f"{setup.program} cannot be started: {error}") from None
            finally:
                if requests:
                    os.close(write)
        self._output.register_pipe(requests, process.pid)
        process.watch()
        return process

    async def _spawn(
        self, starting: Coroutine[Any, Any, Table], kind: HelperKind, mark: str, path: str
    ) -> HaproxyProcess:
        """The process whose identity `starting` returns; it is known to `end_all` even after a cancellation."""

        def process_of(known: Table) -> HaproxyProcess:
            return self._add(HaproxyProcess(kind, known, mark, path))

        spawning = asyncio.ensure_future(starting)
        try:
            return process_of(await asyncio.shield(spawning))
        except asyncio.CancelledError:
            with contextlib.suppress(LinkLost, OSError):
                process_of(await spawning)
            raise

    def _add(self, process: HaproxyProcess) -> HaproxyProcess:
        self._running.add(process)
        process.exited.add_done_callback(lambda _: self._running.discard(process))
        return process

    def _add_replaced(self, process: HaproxyProcess, closing: Coroutine[Any, Any, None]) -> None:
        self._replaced[process] = asyncio.ensure_future(closing)
        process.exited.add_done_callback(lambda _: self._replaced.pop(process, None))

    async def _stop_and_close_idle(self, process: HaproxyProcess, stopping: asyncio.Task[bool]) -> None:
        try:
            has_clients = await stopping
        except HaproxyRefusal:
            has_clients = False
        await asyncio.wait([process.exited], timeout=_ANNOUNCES_SECONDS * has_clients)
        await self._close_idle(process)

    async def _close_idle(self, process: HaproxyProcess) -> None:
        process.stop_watching()  # its runtime socket does not answer after the signal
        process.signal(signal.SIGUSR1)
        await asyncio.wait([process.exited], timeout=CLOSE_SPREAD_SECONDS)
        if not process.exited.done():
            self._end_oldest_if_too_many()

    def _end_oldest_if_too_many(self) -> None:
        # Those that still close idle connections do not count, because most of them end soon.
        with_streams = [process for process, closing in self._replaced.items() if closing.done()]
        if len(with_streams) >= _MOST_REPLACED:
            with_streams[0].signal(signal.SIGTERM)
            self.on_too_many(with_streams[0].pid)


def _process_section(setup: HaproxySetup) -> Iterator[str]:
    """What HAProxy needs as a child of the keeper. It reads its files, with keys, before it changes to its user."""
    yield "global"
    yield f"    stats socket fd@{RUNTIME_FD} level admin"
    if setup.user:
        uid, gid = ids_of(setup.user)
        yield from (f"    uid {uid}", f"    gid {gid}")


async def _has_requests(process: HaproxyProcess, streams: Sequence[str]) -> bool:
    return any(
        int(row["scur"] or 0) for row in await process.statistics(BACKENDS) if row["pxname"] not in streams
    )


def _with_arguments(arguments: Sequence[str]) -> list[int]:
    """The pids of the processes whose command lines end with these arguments. Blocks."""
    wanted, found = [os.fsencode(each) for each in arguments], []
    for pid in processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().rstrip(b"\0").split(b"\0")[-len(wanted) :] == wanted:
                found.append(pid)
    return found


def _alerts(path: str, pid: int) -> list[str]:
    """The alerts of this process in its log.

    They are shown and sent to others: the secrets in names of servers are left out.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_OUTPUT_BYTES))
            output = without_keys(file.read().decode("utf-8", "replace"))
    except FileNotFoundError:
        return []  # it has printed nothing
    return alerts_in(output, pid)


def _refused_servers(setup: HaproxySetup, alerts: Sequence[str]) -> Iterator[tuple[RefusableServer, str]]:
    """Yield the servers in whose lines of the main file HAProxy has found faults, each with the alert."""
    servers = dict(setup.configuration.servers_by_line_number())
    for alert in alerts:
        place = re.search(rf"\[[^][]*{re.escape(MAIN_FILE)}:(\d+)\]\s*:?\s*(.*)", alert)
        if place is not None and (server := servers.get(int(place[1]))) is not None:
            yield server, place[2]
