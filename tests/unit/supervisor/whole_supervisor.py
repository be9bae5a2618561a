"""A whole supervisor in a loop whose time passes at once, with its keeper, its reader and its runner as told."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest

from poolctl import ServerConfig
from poolctl.config import Configuration, Tables
from poolctl.control.answers import Result
from poolctl.control.client import messages_async
from poolctl.control.pool_lock import PoolLocks
from poolctl.feature import Feature, features
from poolctl.keeper import fd_store, wire
from poolctl.keeper.keeper import Keeper
from poolctl.monitor.journal import JournalEvent, newest_first
from poolctl.runners.local.forking import RunnerContext
from poolctl.runners.process_link import Link, LinkHandler
from poolctl.supervisor.configuration_reader import Reading
from poolctl.supervisor.feature_parts import FeaturePart, PartContext
from poolctl.supervisor.launch import listen
from poolctl.supervisor.supervisor import Supervisor, SupervisorProcess
from poolctl.supervisor.takeover.state_store import StoredConfiguration, encoded
from poolctl.supervisor.verbs.verb import Call, Verb
from tests.manual_clock import ManualClock
from tests.virtual_loop import VirtualLoop

from .new_keeper import NewKeepers

KEEPER_PID = 2**22 + 1  # larger than any pid, so that nothing is ever signalled


_MAX_SECONDS = 60.0


class InTheSameThread(ThreadPoolExecutor):
    """Runs each function at once, because the loop's time would pass while another thread works."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*arguments, **named))
        except Exception as error:
            done.set_exception(error)
        return done


class Reader:
    """Reads what the test has written, once it `may_read`."""

    def __init__(self, *servers: ServerConfig, tables: Tables | None = None, **more: Any) -> None:
        self.reading = Reading(servers=list(servers), tables=tables or Tables(), marks={}, **more)
        self.may_read: asyncio.Event | None = None
        self.asked: list[Any] = []

    async def read(self, files: Sequence[str], env: Mapping[str, str] | None, *, access_log: bool) -> Reading:
        self.asked.append((list(files), env, access_log))
        if self.may_read is not None:
            await self.may_read.wait()
        return self.reading

    async def check_external(self, configuration: Configuration, names: Collection[str]) -> Any:
        return [], []

    async def origins(self, *arguments: Any) -> dict[str, Any]:
        return {}


class KeeperEnd(LinkHandler):
    """The keeper's end of the link, over a real keeper's store; `orders` are the messages that it got."""

    def __init__(self, directory: str) -> None:
        self.keeper = Keeper(directory, [], (0, 0))
        self.orders: list[wire.Message] = []
        self._is_silent = False
        self._unsent: list[tuple[wire.Message, list[int]]] = []

    def begin(self, sock: socket.socket) -> None:
        self.link = Link(sock, self)

    def send(self, event: str, **more: Any) -> None:
        self.link.send({"event": event, **more})

    def received(self, message: wire.Message, fds: list[int]) -> None:
        self.orders.append({key: value for key, value in message.items() if key != "id"})
        reply, reply_fds = self.keeper.answer(message, fds)
        if message.get("id") is not None and self._is_silent:
            self._unsent.append((reply, reply_fds))
        elif message.get("id") is not None:
            self.link.send(reply, reply_fds)

    def hang(self) -> None:
        """Answer nothing until `go_on`."""
        self._is_silent = True

    def go_on(self) -> None:
        """Send the answers that are due."""
        self._is_silent = False
        for reply, reply_fds in self._unsent:
            self.link.send(reply, reply_fds)
        self._unsent.clear()

    def did(self, *operations: str) -> list[wire.Message]:
        """The orders with these operations, in the order in which they arrived."""
        return [order for order in self.orders if order["op"] in operations]

    def end(self) -> None:
        if hasattr(self, "link"):
            self.link.close()
        self.keeper.store.clear()
        self.keeper.reaper.close()


class RecordingPart(FeaturePart):
    """A feature's part that notes each call; the attributes are its answers."""

    wrong: tuple[str, ...] = ()
    alone = False

    def __init__(self, site: PartContext, note: Callable[[str], None]) -> None:
        super().__init__(site)
        self.note = note
        site.events.subscribe(lambda event: note(event.event) if event.event == "supervisor ended" else None)

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {"scale-web": self.scale_web}

    def take_over_process(self) -> None:
        self.note("take over process")

    async def scale_web(self, call: Call) -> Result:
        """A verb that changes a server at once."""
        entry = self.site.core.entries["web"]
        self.site.core.replace_overrides(entry, replace(entry.desired.overrides, workers=2))
        return Result()

    def apply_tables(self, tables: Tables) -> None:
        self.note(f"apply tables {sorted(tables.by_name())}")

    async def wait_for_effect(self, verb: str, call: Call, result: Result) -> Result:
        self.note(f"conclude {verb}")
        return await super().wait_for_effect(verb, call, result)

    async def extend(self, verb: str, call: Call, result: Result) -> Result:
        self.note(f"extend {verb}")
        return replace(result, warnings=(*result.warnings, f"extended {verb}"))

    @property
    def problems(self) -> tuple[str, ...]:
        return self.wrong

    @property
    def serves_without_servers(self) -> bool:
        return self.alone

    def flush(self) -> None:
        self.note("flush")

    async def finish(self) -> None:
        self.note("finish")

    async def stop_serving(self) -> None:
        self.note(f"stop serving {self.site.over.is_set()}")

    async def aclose(self) -> None:
        self.note("close part")


@dataclass(frozen=True, kw_only=True)
class RecordingFeature(Feature):
    """The feature of that part, whose process has outlived an earlier supervisor."""

    package: str = "recording"
    supervisor: str = "part"
    sections: Mapping[str, str] = field(default_factory=lambda: {"section": "model"})
    verbs: tuple[str, ...] = ("scale-web",)
    entry: str = "recording"
    create: Callable[[PartContext], RecordingPart]

    def load(self, reference: str) -> Any:
        return self.create


class WholeSupervisor:
    """The supervisor of a pool with a scripted runner. `late` says what happened when, in seconds since its start."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, runner: Any) -> None:
        self.runner = runner
        self.reader = Reader()
        self.directory = root / "r" / "0123abcd"
        self.directory.mkdir(parents=True)
        self.state = root / "s" / "0123abcd"
        self.path = self.directory / "control.sock"
        self.late: list[tuple[str, float]] = []
        self.parts: list[str] = []
        self.part_class = RecordingPart
        self.sites: list[RunnerContext] = []
        self.new_keepers = NewKeepers(root / "new-keepers", "adopted")
        self.hangs: list[tuple[int, Callable[[FrameType | None], None]]] = []
        self.loop = VirtualLoop()
        self.loop.set_default_executor(InTheSameThread())
        self.keeper = KeeperEnd(str(self.directory))
        listener = listen(str(self.path))
        self.keeper.keeper.store.put(fd_store.CONTROL, None, [listener.detach()])
        self.locks = PoolLocks([str(root / "locks")])
        self.keeper.keeper.store.put(fd_store.LOCK, None, [self.locks.acquire(str(self.directory))])
        self.clock = ManualClock()
        self.keeper.keeper.store.put("recording", "meta", [])
        monkeypatch.setenv("POOLCTL_STATE_DIR", str(self.state.parent))
        monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(self.directory.parent))
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.problems.append(context))

    def _create_part(self, site: PartContext) -> RecordingPart:
        self.part = self.part_class(site, self.parts.append)
        return self.part

    def _create_runner(self, site: RunnerContext) -> Any:
        self.sites.append(site)
        return self.runner

    def _exit(self, status: int) -> NoReturn:
        self.late.append((f"exit {status}", round(self.loop.time(), 3)))
        raise SystemExit(status)

    def took_over(self, *servers: ServerConfig, name: str = "shop", tables: Tables | None = None) -> None:
        """Let the keeper hold the configuration of an earlier supervisor."""
        fd = os.memfd_create("configuration")
        os.write(fd, encoded(StoredConfiguration(name, list(servers), tables=tables or Tables())))
        self.keeper.keeper.store.put(fd_store.CONFIGURATION, None, [fd])

    def begin(self, *, calm: bool = False, hello: bool = True) -> None:
        """Start the supervisor; with `hello` the keeper says its first word."""
        ours, theirs = wire.pair()

        async def start() -> None:
            self.keeper.begin(theirs)

        self.loop.run_until_complete(start())
        process = SupervisorProcess(
            keeper=ours,
            exit=self._exit,
            clock=self.clock,
            reader=self.reader,
            locks=self.locks,
            features=[*features(), RecordingFeature(create=self._create_part)],
            create_runner=self._create_runner,
            watch_keeper_exit=lambda *arguments: self.hangs.append(arguments),
            keeper_command=self.new_keepers.command,
        )
        self.supervisor = Supervisor(str(self.directory), ["/srv/pool.toml"], process, calm=calm)
        self.running = self.loop.create_task(self.supervisor.run())
        if hello:
            self.keeper.send("hello", pid=KEEPER_PID, open_files=[100, 200])
        self.pass_time()

    def pass_time(self, seconds: float = 0.0) -> None:
        for _ in range(10):
            self.loop.pass_time()
        self.loop.pass_time(seconds)

    def ask(self, verb: str, *targets: str, **options: Any) -> dict[str, Any]:
        """The result of a verb."""
        return self.messages(verb, {"selector": {"targets": list(targets)}, "options": options})[-1]["result"]

    def messages(self, verb: str, body: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return self.loop.run_until_complete(asyncio.wait_for(self.asking(verb, body), _MAX_SECONDS))

    async def asking(self, verb: str, body: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return [message async for message in messages_async(str(self.path), verb, body)]

    def events(self, kind: str = "pool") -> list[tuple[str, str, str]]:
        """Event, severity and message of each recorded event of a kind, oldest first."""
        events = [event for event in self.recorded() if event.kind == kind]
        return [(event.event, event.severity, event.message) for event in events]

    def recorded(self, event: str = "") -> list[JournalEvent]:
        """The recorded events of this name, or all, oldest first."""
        if not self.running.done():
            self.supervisor.events.flush()
        path = self.state / "events.jsonl"
        newest = [*newest_first(str(path))] if path.exists() else []
        return [line for line in reversed(newest) if event in ("", line.event)]

    def lose_keeper(self) -> int | str | None:
        """Let the keeper end; the status with which the supervisor then exits."""
        self.keeper.link.close()
        return self.exits(1)

    def exits(self, seconds: float) -> int | str | None:
        """The status with which the supervisor exits within this time."""
        with pytest.raises(SystemExit) as ended:
            self.pass_time(seconds)
        self.keeper.link.dispatch_arrived_messages()
        return ended.value.code

    def stored(self, name: str) -> Any:
        """The content of an entry of the keeper, which is JSON."""
        entry = self.keeper.keeper.store.get(name)
        assert entry is not None
        return json.loads(os.pread(entry[1][0], 1_000_000, 0))

    def end(self) -> int:
        """Stop the pool, if it runs; the status of its supervisor."""
        if not self.running.done():
            self.ask("stop")
        self.pass_time(1)
        return self.running.result()

    def close(self) -> None:
        control = vars(self.supervisor).get("control") if hasattr(self, "supervisor") else None
        if control is not None and not (self.running.done() and self.running.exception() is None):
            self.loop.run_until_complete(control.close())  # what the end of the process does otherwise
        for site in self.sites:
            site.keeper.close()  # so that its supervisor does not replace the keeper
        self.keeper.end()
        self.pass_time()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.pass_time()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@contextmanager
def own_limits() -> Iterator[None]:
    """Restore the limit of open files, which a supervisor lowers."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
