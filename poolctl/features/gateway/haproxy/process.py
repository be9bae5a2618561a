"""HAProxy's processes: the keeper adopts each as its child, and they outlive supervisors.

The keeper runs `haproxy -D` on the pool's sockets: the program exits once its daemon serves, or reports why it cannot.
There is no master process (-W): it could not receive new descriptors. Besides, with -W since 3.1, as with -db, each
connection to the new process wakes the replaced one, because its listeners stay in the shared epoll(7) set.

A replaced process gets SIGUSR1, closes its listeners, and ends with its last stream. Further requests on open
connections it passes on to the next process: see `configuration.NEXT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import logging
import os
import re
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from poolctl.config.model.server_tables import Log
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, pool_files
from poolctl.keeper.spawn import MAX_SIZE_BYTES
from poolctl.listeners.open_listener import BACKLOG, listens, refuse_new_connections
from poolctl.platform import memory_bytes, memory_file, process_start, processes, replace_file
from poolctl.private_directory import create_private_directory
from poolctl.routing.context import without_keys
from poolctl.runners.helper_process import HelperChild, HelperKind, HelperLog
from poolctl.runners.left_overs import ProcessNote, end_left_overs
from poolctl.runners.local.output_pipes import OutputPipes
from poolctl.runners.process_link import HasDescriptor, Link, Refused, identity, spawn

from .configuration import NEXT, HaproxyBackend, RefusableServer
from .setup import HaproxySetup
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
    # Restarted at once: meanwhile connections wait in the backlog.
    first_pause_seconds=0.0,
    calm_seconds=1.0,
    # HAProxy has no code of poolctl. Increased if an upgrade has to replace it with the same configuration.
    version="1",
)
MAIN_FILE = "haproxy.cfg"
_DIRECTORY = "haproxy"  # of HAProxy's files, in the pool's directory
_ANSWER_TIMEOUT = 20.0
_POLL_INTERVAL = 0.1
_FIRST_REQUEST_TIMEOUT = 1.0
# A hung process must not hold up its successor.
_CLOSE_TIMEOUT, _CLOSE_POLL_INTERVAL = 2.0, 0.005
_MAX_ALERTS = 3
_MAX_OUTPUT_BYTES = 256 * 1024
_BACKEND_TYPE = 2  # the kind of proxies in "show stat"
_PROMPT = b"\n> "  # ends a response in a session
# HAProxy's responses to a performed command; anything else is a refusal.
_ACCEPTED = re.compile(
    r"\s*(New server registered|IP changed|port changed|no need to change|nothing changed|$)"
)
_MAX_ANSWER_BYTES = 2**30
_LIMITS = Log(max_size=MAX_SIZE_BYTES, keep=1)

logger = logging.getLogger("poolctl.supervisor")


class EndLimits(NamedTuple):
    """The maximum number and memory of replaced processes, and the time that a process has to exit."""

    replaced: int = 50
    replaced_bytes: int = 1 << 30
    exit_timeout: float = 5.0


LIMITS = EndLimits()


class HaproxyRefusal(ServerError):
    """HAProxy does not accept a configuration or a command, or does not start; the message says why."""


class HaproxyProcess(HelperChild):
    """A HAProxy process. It answers commands on the runtime socket at `path`, "" if it was replaced before.

    `setup` excludes the servers in `refused`; None for an adopted process until it is known. The constructor raises
    ProcessLookupError if the process has ended.
    """

    def __init__(self, kind: HelperKind, ids: dict[str, Any], mark: str = "", path: str = "") -> None:
        super().__init__(kind, ids, mark)
        self.path = path
        self._pinging: asyncio.Task[None] | None = None
        self.setup: HaproxySetup | None = None
        self.refused: Set[RefusableServer] = frozenset()
        self._fd = os.pidfd_open(self.pid)
        if process_start(self.pid) != ids["start"]:
            os.close(self._fd)
            raise ProcessLookupError(self.pid)
        asyncio.get_running_loop().add_reader(self._fd, self._on_exit)
        if path:
            self.up.set()
            self.watch()

    @property
    def sections(self) -> Mapping[str, HaproxyBackend]:
        """Its backends, by name."""
        return self.setup.sections if self.setup is not None else {}

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        if self.path:
            pool_files.unlink_quietly(self.path)
        self.mark_exited()

    def ping(self) -> None:
        self._pinging = asyncio.ensure_future(self._ping())

    async def _ping(self) -> None:
        # Any answer shows that it does not hang; an exit is noticed by its pidfd.
        with contextlib.suppress(HaproxyRefusal):
            await self.ask("show info")
        self.answered()

    def save_to_keeper(self, keeper: Link) -> None:
        # Not as "mark", which an upgrade removes from entries, so that processes with poolctl's code are replaced.
        meta = {
            **self.identity, "settings": self.mark, "path": self.path, "stop_signal": int(signal.SIGUSR1),
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

    async def ask(self, *commands: str) -> str:
        """Send commands to the runtime socket and return the responses. Raises HaproxyRefusal without an answer."""
        with contextlib.closing(await RuntimeSession.open(self.path)) as session:
            return "".join(await session.ask(*commands))

    async def perform(self, commands: Sequence[str]) -> None:
        """Send commands that change something. Raises HaproxyRefusal if one is refused."""
        with contextlib.closing(await RuntimeSession.open(self.path)) as session:
            for command, answer in zip(commands, await session.ask(*commands), strict=True):
                if _ACCEPTED.match(answer) is None:
                    raise HaproxyRefusal(f"{command}: {answer.strip()}")

    async def sections_to_wake(self) -> list[str]:
        """The sections with requests for the waiting page since the last call. Raises HaproxyRefusal."""
        rows = [line.split() for line in (await self.ask(f"show map {WAKING}")).splitlines()]
        sections = [row[1] for row in rows if len(row) == 3]
        if sections:
            await self.ask(f"clear map {WAKING}")
        return sections

    async def stop_accepting(self) -> None:
        """Tell the process to end with its last stream; returns when it has closed its listeners, or after 2 s."""
        self.stop_watching()  # its runtime socket does not answer after the signal
        self.signal(signal.SIGUSR1)
        with contextlib.suppress(HaproxyRefusal, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                while not self.exited.done():
                    await self.ask("show version")
                    await asyncio.sleep(_CLOSE_POLL_INTERVAL)


class RuntimeSession:
    """A connection to the runtime socket of a process, usable even while the process finishes its requests.

    The process does not end before the session is closed.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_seconds: float
    ) -> None:
        self._reader, self._writer, self._timeout_seconds = reader, writer, timeout_seconds

    @classmethod
    async def open(cls, path: str, timeout_seconds: float = _ANSWER_TIMEOUT) -> RuntimeSession:
        """Open a session. Raises HaproxyRefusal if there is no answer in time, like all its methods."""
        try:
            streams = await asyncio.open_unix_connection(path, limit=_MAX_ANSWER_BYTES)
        except OSError as error:
            raise HaproxyRefusal(f"its runtime socket does not answer: {error}") from None
        session = cls(*streams, timeout_seconds)
        await session.ask("prompt")
        return session

    async def ask(self, *commands: str) -> list[str]:
        """Send commands, thousands at once, and return the responses."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                self._writer.write("".join(f"{command}\n" for command in commands).encode())
                answers = [await self._reader.readuntil(_PROMPT) for _ in commands]
        except BaseException as error:
            self.close()
            if not isinstance(error, (OSError, TimeoutError, EOFError)):
                raise
            why = error or "no answer in time"
            raise HaproxyRefusal(f"its runtime socket does not answer: {why}") from None
        return [answer.removesuffix(_PROMPT).decode("utf-8", "replace") for answer in answers]

    async def has_connections(self) -> bool:
        """Whether clients are connected to the process."""
        return re.search(r"^CurrConns: 0$", (await self.ask("show info"))[0], re.MULTILINE) is None

    async def has_requests(self, streams: Sequence[str]) -> bool:
        """Whether requests are in progress in other sections than `streams`."""
        (text,) = await self.ask(f"show stat -1 {_BACKEND_TYPE} -1")
        rows = csv.DictReader(text.lstrip("\n# ").splitlines())
        return any(int(row["scur"] or 0) for row in rows if row["pxname"] not in streams)

    def close(self) -> None:
        """Close the session."""
        self._writer.close()


class HaproxyProcesses:
    """Starts the pool's HAProxy with the setup `wanted`; replaced processes end with their last stream.

    `directory` is that of the pool. The logger behind `output` writes HAProxy's lines about requests to the file
    `access_log`. `record(kind, message)` is called with the events "gateway connections ended", if a replaced process
    was ended because there are too many, and "backend refused", if HAProxy does not accept a target.
    """

    def __init__(
        self,
        directory: str,
        output: OutputPipes,
        access_log: str,
        record: Callable[[str, str], object],
        limits: EndLimits = LIMITS,
    ) -> None:
        self.directory = directory
        self._limits = limits
        self._output = output
        self._access_log = access_log
        self._record = record
        self.wanted: HaproxySetup | None = None
        # Started if HAProxy refuses `wanted`: the setup of the last process, set while there is none.
        self.fallback: HaproxySetup | None = None
        self._reported: Set[RefusableServer] = frozenset()  # the refused servers of the latest process
        self._replaced: dict[HaproxyProcess, None] = {}  # oldest first
        self._limiting: asyncio.Task[None] | None = None

    @property
    def replaced_pids(self) -> list[int]:
        """The pids of the replaced processes that still have connections."""
        return [process.pid for process in self._replaced]

    async def spawn(self, keeper: Link, log: HelperLog, kind: HelperKind, mark: str) -> HaproxyProcess:
        """Start a process beside the previous one; returns when it serves.

        Servers that HAProxy does not accept are left out. Raises HaproxyRefusal, LinkLost, OSError.
        """
        assert self.wanted is not None
        unopened = [sock for sock in self.wanted.parts.sockets if not listens(sock)]
        try:
            process = await self._start_without_refused(keeper, log, kind, mark, self.wanted)
            for sock in unopened:
                sock.listen(BACKLOG)  # HAProxy listens with a backlog of `max_connections`
            return process
        except HaproxyRefusal as refusal:
            refuse_new_connections(filter(listens, unopened))
            if (fallback := self.fallback) is None:
                raise
            with contextlib.suppress(HaproxyRefusal):
                # Without a mark: so the helper tries to replace it at once, and learns why it cannot.
                setup = fallback.with_states_of(self.wanted)._replace(left={})
                return await self._start_without_refused(keeper, log, kind, "", setup)
            raise refusal from None

    async def _start_without_refused(
        self, keeper: Link, log: HelperLog, kind: HelperKind, mark: str, wanted: HaproxySetup
    ) -> HaproxyProcess:
        refused = dict[RefusableServer, str]()
        while True:
            setup = wanted.without(refused)
            await in_daemon_thread(lambda setup=setup: self._write_files(setup))  # type: ignore[misc]
            process, alerts = await self._start(keeper, log, kind, mark, setup)
            if process is not None:
                break
            servers = dict(_refused_servers(setup, alerts))
            if not servers:
                raise HaproxyRefusal("; ".join(alerts[:_MAX_ALERTS]))
            refused |= servers
        try:
            await process.perform(setup.start_commands())
        except BaseException:
            process.end()
            raise
        process.setup, process.refused = setup, refused.keys()
        reported, self._reported = self._reported, process.refused
        for server in process.refused - reported:
            message = f"{server[1].key} gets no requests, as HAProxy does not accept it: {refused[server]}"
            logger.error("%s", message)
            self._record("backend refused", message)
        return process

    async def adopt(self, keeper: Link, kind: HelperKind) -> HaproxyProcess | None:
        """Adopt the process in the keeper's store, if any; retire all other HAProxy processes of this pool."""
        reply, _ = await keeper.call({"op": "get", "name": kind.entry})
        meta, process = reply.get("meta"), None
        if meta is not None and "path" in meta:
            ids = {name: meta[name] for name in ("pid", "start")}
            with contextlib.suppress(OSError):
                process = HaproxyProcess(kind, ids, str(meta.get("settings", "")), str(meta["path"]))
                process.answered()  # it already runs, and does not need the long timeout of a first answer
        for pid in await in_daemon_thread(lambda: _pids_of(self.directory)):
            if process is None or pid != process.pid:
                with contextlib.suppress(OSError):
                    if os.getsid(pid) != pid:
                        continue  # the program that has started a daemon, and ends
                    await self.retire(HaproxyProcess(kind, identity(pid)))
        return process

    async def retire(self, process: HaproxyProcess) -> None:
        """Tell a replaced process to end with its last stream; returns when it accepts no more connections."""
        self._replaced[process] = None
        process.exited.add_done_callback(lambda _: self._replaced.pop(process, None))
        if process.path:
            with contextlib.suppress(HaproxyRefusal):
                await process.ask(f"set server {NEXT}/{NEXT} state ready")
        await process.stop_accepting()
        self._limiting = asyncio.ensure_future(self._end_oldest_if_too_many(process))

    async def finish_requests(
        self,
        process: HaproxyProcess | None,
        seconds: float,
        *,
        awaits_first_requests: bool = False,
    ) -> None:
        """Stop accepting, and wait until no requests are in progress, at most `seconds`.

        Connections of streams and idle connections do not count, but with `awaits_first_requests` idle ones do for a
        second: they may be new. Replaced processes, which do not report their requests, have the same time to end.
        """
        with contextlib.suppress(HaproxyRefusal, TimeoutError):
            async with asyncio.timeout(seconds):
                if process is not None:
                    sections = process.sections.values()
                    streams = [
                        section.name for section in sections if section.is_stream or section.passes_tls
                    ]
                    with contextlib.closing(await RuntimeSession.open(process.path)) as session:
                        await process.stop_accepting()
                        loop = asyncio.get_running_loop()
                        first_request_deadline = loop.time() + (
                            _FIRST_REQUEST_TIMEOUT if awaits_first_requests else 0.0
                        )
                        while await session.has_requests(streams) or (
                            loop.time() < first_request_deadline and await session.has_connections()
                        ):
                            await asyncio.sleep(_POLL_INTERVAL)
                if self._replaced:
                    await asyncio.wait([replaced.exited for replaced in self._replaced])

    async def end_all(self, log: HelperLog) -> None:
        """End all processes immediately, and remove their files and log; returns when they have ended."""
        await in_daemon_thread(lambda: _end_processes(self.directory, self._limits.exit_timeout))
        files = os.path.join(self.directory, _DIRECTORY)
        await in_daemon_thread(lambda: shutil.rmtree(files, ignore_errors=True))
        # The log of a regular stop has little more than the end of HAProxy's servers.
        await log.wait_until_stored()
        pool_files.unlink_quietly(log.path)

    def _write_files(self, setup: HaproxySetup) -> None:
        directory = os.path.join(self.directory, _DIRECTORY)
        create_private_directory(directory)
        files = {MAIN_FILE: setup.text.encode(errors="surrogateescape"), **setup.files}
        for name, content in files.items():
            replace_file(os.path.join(directory, name), content)

    async def _start(
        self, keeper: Link, log: HelperLog, kind: HelperKind, mark: str, setup: HaproxySetup
    ) -> tuple[HaproxyProcess | None, list[str]]:
        """Start a process; returns it when it serves, or None and its alerts."""
        path = os.path.join(self.directory, f"{pool_files.GATEWAY}{secrets.token_hex(4)}")
        pipes = [self._output.create_log_pipe("[gateway]", log.path, "raw", _LIMITS)]
        settings = setup.parts.settings
        if access_log := settings.table.access_log:
            form = "raw" if access_log == "json" else "text"
            pipes.append(self._output.create_log_pipe("[gateway]", self._access_log, form, Log()))
        printed = memory_file("haproxy-output", b"")
        process, why = None, ""
        try:
            with socket.socket(socket.AF_UNIX) as runtime:
                runtime.bind(path)
                os.chmod(path, 0o600)
                runtime.listen()
                runtime.setblocking(False)
                # In the order that `SetupParts.build` expects.
                log_pipe, *access_log_pipes = [write for _, write in pipes]
                fds: list[int | HasDescriptor] = [log_pipe, *setup.parts.sockets, runtime, *access_log_pipes]
                # In the keeper's session: otherwise the keeper would kill the daemon with the process group of the
                # exiting program, before the daemon has called setsid(2).
                command = [settings.program, "-D", "-f", _main_file(self.directory)]
                await spawn(keeper, command, printed, fds, session=False)
            process = await self._connect(kind, mark, path)
            log.note(process.identity, drain_seconds=settings.table.drain_timeout)
        except (Refused, HaproxyRefusal, OSError) as error:
            pool_files.unlink_quietly(path)
            why = error.message if isinstance(error, HaproxyRefusal) else f"{settings.program}: {error}"
        finally:
            output = os.pread(printed, _MAX_OUTPUT_BYTES, 0)
            with contextlib.suppress(OSError):
                os.write(pipes[0][1], output)
            os.close(printed)
            for key, write in pipes:
                os.close(write)
                if process is None:
                    self._output.discard(key)
                else:
                    self._output.register_pipe(key, process.pid)
        # Names of servers contain secrets, which are not shown to others.
        alerts = alerts_in(without_keys(output.decode("utf-8", "replace"))) if process is None else []
        return process, alerts or [f"{settings.program} cannot be started: {why}"]

    async def _connect(self, kind: HelperKind, mark: str, path: str) -> HaproxyProcess:
        """The process that answers at `path`. Raises HaproxyRefusal if it has closed its socket."""
        with contextlib.closing(await RuntimeSession.open(path, kind.ready_seconds)) as session:
            (answer,) = await session.ask("show info")
        pid = re.search(r"^Pid: (\d+)$", answer, re.MULTILINE)
        if pid is None:
            raise HaproxyRefusal(f"it does not report its pid: {answer.strip()}")
        return HaproxyProcess(kind, identity(int(pid[1])), mark, path)

    async def _end_oldest_if_too_many(self, replaced: HaproxyProcess) -> None:
        await asyncio.wait([replaced.exited], timeout=self._limits.exit_timeout)
        running = [*self._replaced]
        sizes = await in_daemon_thread(lambda: [memory_bytes(process.pid) or 0 for process in running])
        while len(running) > self._limits.replaced or sum(sizes) > self._limits.replaced_bytes:
            oldest = running.pop(0)
            del sizes[0]
            oldest.signal(signal.SIGTERM)
            name = f"the oldest replaced HAProxy (pid {oldest.pid})"
            message = f"{name} is ended with its connections: there are too many"
            self._record("gateway connections ended", message)


def _main_file(directory: str) -> str:
    return os.path.join(directory, _DIRECTORY, MAIN_FILE)


def _pids_of(directory: str) -> list[int]:
    """The pids of the HAProxy processes of the pool in this directory. Blocks."""
    arguments, pids = [b"-D", b"-f", os.fsencode(_main_file(directory))], []
    for pid in processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().rstrip(b"\0").split(b"\0")[-len(arguments) :] == arguments:
                pids.append(pid)
    return pids


def _end_processes(directory: str, exit_timeout: float) -> None:
    """End the HAProxy processes of the pool in this directory, and kill them after `exit_timeout`. Blocks."""
    for _ in range(2):  # a process that is being started forks another one
        end_left_overs(
            ProcessNote(pid, start, GATEWAY.label, stop_seconds=exit_timeout)
            for pid in _pids_of(directory)
            if (start := process_start(pid)) is not None
        )


def _refused_servers(setup: HaproxySetup, alerts: Sequence[str]) -> Iterator[tuple[RefusableServer, str]]:
    """Yield the servers whose lines of the main file HAProxy refuses, each with the alert."""
    servers = dict(setup.configuration.servers_by_line_number())
    for alert in alerts:
        place = re.search(rf"\[[^][]*{re.escape(MAIN_FILE)}:(\d+)\]\s*:?\s*(.*)", alert)
        if place is not None and (server := servers.get(int(place[1]))) is not None:
            yield server, place[2]
