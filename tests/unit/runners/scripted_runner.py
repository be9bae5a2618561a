"""A runner without sockets, for tests of the core and of a supervisor: its workers do what a test tells them to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from poolctl import ServerConfig, ServerError
from poolctl.address import overlaps, parse
from poolctl.runners.local.takeover import AdoptionResult
from poolctl.runners.process_usage import USAGE_SECONDS, ProcessUsages, Usage
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEventHandler, WorkerFailed, app_state
from poolctl.runners.stack_report import WorkerStacks


class ScriptedUsages(ProcessUsages):
    """The figures that a test has given to pids; `requested` are the pids of each measurement."""

    def __init__(self, figures: Mapping[int, Usage] | None = None) -> None:
        self.figures = dict(figures or {})
        self.requested: list[list[int]] = []

    def of(self, pid: int | None) -> Usage:
        return self.figures.get(pid or 0, Usage())

    async def measure(
        self, pids: Iterable[int | None], *, memory: bool = True, max_age_seconds: float = USAGE_SECONDS
    ) -> None:
        self.measure_now(pids)

    def measure_now(self, pids: Iterable[int | None]) -> None:
        self.requested.append([pid for pid in pids if pid is not None])


class ScriptedTallies:
    """The counts of ended workers that are still to be saved; `saves` counts how often they were."""

    def __init__(self) -> None:
        self.unsaved_workers: list[str] = []
        self.saves = 0

    def discard_saved_counts(self) -> None:
        self.saves += 1
        self.unsaved_workers = []


READY, NEVER, FAILS, BREAKS = "ready", "never", "fails", "breaks"


class ScriptedRunner:
    """Workers become ready at once unless `script` says otherwise, by id or by server; `log` tells what happened."""

    events = RunnerEventHandler()
    in_this_process = False
    # What only a supervisor uses, if the test does.
    heartbeats: Any = None
    output: Any = None
    routing: Any = None

    def __init__(self, **script: str) -> None:
        self.script = script
        self.usages = ScriptedUsages()
        self.tallies: Any = ScriptedTallies()
        self.log: list[str] = []
        self.values: list[Mapping[str, Any]] = []
        self.opened: set[str] = set()
        self.running: dict[str, asyncio.Future[Exit]] = {}
        self.probed: set[str] = set()
        self.ended: dict[str, Exit] = {}
        self.most_at_once: dict[str, int] = {}
        self.deaf: set[str] = set()  # names of servers whose workers cannot be ended
        self.draining = asyncio.Event()
        self.may_drain: asyncio.Event | None = None
        self.unopenable: set[str] = set()
        self.unplaceable: set[str] = set()
        self.jobs: set[str] = set()
        self.armed: dict[str, Callable[[], None]] = {}
        self.may_place: asyncio.Event | None = None
        self.may_stop: asyncio.Event | None = None
        self.asked: list[tuple[str, str, socket.socket]] = []
        self.replaced: list[str] = []  # workers ordered to end that hand their connections over

    async def open(self, server: ServerConfig, beside: Sequence[str] = ()) -> tuple[str, ...]:
        if server.name in self.unopenable:
            raise ServerError("port is in use by nobody in particular", hint="choose another")
        if server.key not in self.opened:
            self.opened.add(server.key)
            self.log.append(f"open {server.name}")
        return (server.key,)

    def change_socket_access(self, server: ServerConfig) -> None:
        if server.address.kind == "unix":
            self.log.append(f"access {server.name}")

    def close_unneeded(self, server: ServerConfig) -> tuple[str, ...]:
        return (server.key,)

    async def close(self, key: str) -> None:
        if key in self.opened:
            self.opened.discard(key)
            self.log.append(f"close {key}")

    async def check_startable(self, server: ServerConfig) -> None:
        if server.name in self.unplaceable:
            raise WorkerFailed("no worker can be forked", hint="look")

    async def place(
        self, server: ServerConfig, generation: int, index: int, *, resting: bool = False
    ) -> Placement:
        assert server.key in self.opened or server.job
        placement = Placement.of(server.name, generation, index, where="nowhere", pid=1000 + generation)
        assert placement.id not in self.running, "an id is never used twice"
        self.log.append(f"place {placement.id}")
        if server.health.probed:
            self.probed.add(placement.id)
        if self.may_place is not None:
            await self.may_place.wait()
        self.values.append(app_state.get())
        if server.job:
            self.jobs.add(placement.id)
        self.running[placement.id] = asyncio.get_running_loop().create_future()
        alive = sum(each.startswith(f"{server.name}.") for each in self.running)
        self.most_at_once[server.name] = max(alive, self.most_at_once.get(server.name, 0))
        return placement

    async def wait_for_begin_or_exit(self, placement: Placement) -> None:
        return None

    async def wait_until_ready(self, placement: Placement) -> None:
        behaviour = self.script.get(placement.id, self.script.get(placement.server, READY))
        if placement.id in self.jobs and behaviour == READY:
            self.end(placement.id, Exit.from_returncode(0))
        if behaviour == NEVER:
            exit_ = await self.wait_for_exit(placement)
            raise WorkerFailed(f"{exit_.message} before it was ready", exit=exit_)
        if behaviour == FAILS:
            self.end(placement.id, Exit.from_returncode(3))
            raise WorkerFailed("exited with status 3 before it was ready", hint="look", exit=Exit(3))
        if behaviour == BREAKS:
            raise OSError("the wire is cut")

    async def set_in_rotation(self, placement: Placement, in_rotation: bool) -> None:
        self.log.append(f"{'in' if in_rotation else 'out'} {placement.id}")

    async def set_accepting(self, placement: Placement, accepting: bool) -> None:
        self.log.append(f"{'work' if accepting else 'rest'} {placement.id}")

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        if placement.id not in self.running:
            raise ConnectionRefusedError("it has ended")
        ours, theirs = socket.socketpair()
        if placement.id in self.probed:
            self.asked.append((placement.id, kind, theirs))
        else:
            theirs.close()  # the one question to new code and the running code is answered alike
        return ours

    async def reload_tls(self, placement: Placement, server: ServerConfig) -> None:
        self.log.append(f"tls {placement.id}")

    async def begin_drain(self, placement: Placement, *, replaced: bool = True) -> None:
        self._note_replaced("leave", placement, replaced)

    async def drain(self, placement: Placement, *, replaced: bool = True) -> None:
        self._note_replaced("drain", placement, replaced)
        self.log.append(f"drain {placement.id}")
        self.draining.set()
        if self.may_drain is not None:
            await self.may_drain.wait()

    def watch_idleness(self, placement: Placement, seconds: float) -> None:
        self.log.append(f"idle after {seconds:g} {placement.id}")

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        assert server.key in self.opened
        self.log.append(f"arm {server.name}")
        self.armed[server.name] = on_request

    def counts(self, placement: Placement) -> list[int] | None:
        return None

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks | None:
        return None

    async def logs(self, name: str, lines: int, since: float = 0.0, worker: str = "") -> list[str]:
        return []

    async def begin_hook(self, server: ServerConfig, hook: str) -> Placement:
        raise ServerError("no process can be made", hint="look")

    def ring(self, name: str) -> None:
        """Somebody asks for a server that sleeps."""
        self.armed.pop(name)()

    def disarm(self, key: str) -> None:
        self.log.append(f"disarm {key}")

    def close_waiting(self, key: str) -> None:
        self.log.append(f"close_waiting {key}")

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        self._note_replaced("stop", placement, replaced)
        self.log.append(f"stop {placement.id} {timeout_seconds:g}")
        if self.may_stop is not None:
            await self.may_stop.wait()
        if placement.server in self.deaf:
            raise TimeoutError
        self.end(placement.id, Exit.from_returncode(0))
        return Exit.from_returncode(0)

    def _note_replaced(self, order: str, placement: Placement, replaced: bool) -> None:
        if replaced:
            self.replaced.append(f"{order} {placement.id}")

    def end(self, placement_id: str, exit_: Exit) -> None:
        """The worker ends; called on the loop."""
        ended = self.running.pop(placement_id, None)
        if ended is not None:
            ended.set_result(exit_)
            if placement_id in self.jobs:  # a job ends before it can be watched
                self.ended[placement_id] = exit_

    async def wait_for_exit(self, placement: Placement) -> Exit:
        ended = self.running.get(placement.id)
        if ended is not None:
            return await asyncio.shield(ended)
        return self.ended.get(placement.id, Exit(message="has ended before"))

    async def adopt_workers_and_end_others(
        self, servers: Mapping[str, ServerConfig], placed: Mapping[str, ServerConfig] | None = None
    ) -> AdoptionResult:
        return AdoptionResult()

    @property
    def pids(self) -> set[int | None]:
        return set()

    def kill_zygotes(self) -> None:
        pass

    async def end_left_groups(self) -> None:
        self.log.append("end left groups")

    def handle_exit_report(self, report: Any) -> None:
        raise AssertionError("no keeper reports to it")

    async def aclose(self) -> None:
        for placement_id in list(self.running):
            self.end(placement_id, Exit.from_returncode(0))
        self.opened.clear()


class SlowRunner(ScriptedRunner):
    """While `may_end` is clear, a stopping worker goes on until it is killed (a limit of 0 seconds)."""

    def __init__(self, **script: str) -> None:
        super().__init__(**script)
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.may_close = asyncio.Event()
        self.may_close.set()

    async def open(self, server, beside=()):  # type: ignore[no-untyped-def]
        await self.may_open.wait()
        others = [key for key in self.opened if key not in (server.key, *beside) and parse(key).listens]
        if any(overlaps(parse(key), server.address) for key in others):
            raise ServerError("port is in use by ourselves")
        return await super().open(server, beside)

    async def close(self, key: str) -> None:
        await self.may_close.wait()
        await super().close(key)

    async def wait_until_ready(self, placement: Placement) -> None:
        script = self.script.get(placement.id, self.script.get(placement.server))
        if script == NEVER and placement.id in self.running:
            exit_ = await asyncio.shield(self.running[placement.id])
            raise WorkerFailed(exit_.message, exit=exit_)
        await super().wait_until_ready(placement)

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        if timeout_seconds > 0:
            await self.may_end.wait()
        return await super().stop(placement, timeout_seconds, replaced=replaced)


def break_once(runner: ScriptedRunner, method: str) -> None:
    """The next call of this method fails as nobody expects."""
    works = getattr(runner, method)

    async def fail(*_: Any, **__: Any) -> Any:
        setattr(runner, method, works)
        raise RuntimeError("can't start new thread")

    setattr(runner, method, fail)
