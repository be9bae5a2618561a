"""`python -m tests.chaos.structure --changes 300`: changes of the gateway's structure, none of which loses a request.

After each change a program with two processes is restarted, and one of the two is killed: of the requests under way at
that moment a POST may be answered with 502, as it is not repeated, and a response that has begun may be cut off.
Nothing else may fail. Half of the kept clients pause for 1 to 60 s between requests. An address that is no longer
there, or whose `proxied` server is stopped, refuses connections, and at the end HAProxy has the memory that it had at
the start.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable

from poolctl.platform import memory_bytes
from tests.deadline import wait_until
from tests.http_get import refused
from tests.ports import claim_port
from tests.programs import program

from .gateway import CLIENTS, ROOT, Client, GatewayChaos
from .room import SETTLED_SECONDS, options_of
from .stage import Fault

IDLE = {
    f"kept, idle for {pause} s, {path}": Client("keep_alive", 4, paths=(path,), pause=pause)
    for pause in (1, 7, 20, 60)
    for path in ("/pair", "/both")
}
LONG = {
    "downloads": Client("stream", 4, chunks=100),
    "slow uploads": Client("uploads", 4, paths=("/both/slow",), chunks=50),
}
STREAMS_SECONDS = 100.0
# Clients that never pause would have the machine to themselves, and a change take as long as all else together.
MIN_PAUSE_SECONDS = 0.1
REFUSES_SECONDS = 5.0
DIES_SECONDS = 30.0
NOTICED_SECONDS = 2.0
MAX_GROWTH_BYTES = 20 << 20
MORE = """
[[route]]
alias = "stream"
path = "/stream"
to = "one"
"""
SERVER = """
[[server]]
name = "extra"
command = [
    "{python}", "-m", "uvicorn", "tests.load.apps:app",
    "--app-dir", "{root}", "--log-level", "critical", "--port", "{{port}}",
]
socket = "proxied"
bind = "127.0.0.1:{extra}"
"""
# How a listener is removed, and added again.
WAYS = {
    "reload": ("reload",), "stop": ("start", "extra"), "disable": ("enable", "extra"), "remove": ("reload",),
}  # fmt: skip


class Kills:
    """When each process was killed, and when it had ended, and how many since the last call of `new`."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self._seen = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def new(self) -> int:
        seen, self._seen = self._seen, len(self.times)
        return self._seen - seen


class StructureChaos(GatewayChaos):
    """The pool, its clients and the changes, which are methods without arguments."""

    def __init__(self, seed: int, say: Callable[[str], None], executable: str) -> None:
        self.copies = 0
        clients = {
            name: each._replace(pause=max(each.pause, MIN_PAUSE_SECONDS))
            for name, each in {**CLIENTS, **IDLE, **LONG}.items()
        }
        super().__init__(seed, say, clients=clients)
        self.executable = executable
        self.kills = Kills()
        self.deaths = self.kills  # type: ignore[assignment]
        self.limit = 1000
        self.ports["extra"] = claim_port()
        self.has_listener = self.has_extra = True
        self.removed = ""  # how the listener that is not there was removed
        self.removals = 0
        self._use_another_program()

    def _excused(self, client: Client, deaths: int, failures: list[str]) -> int:
        """How many of them a killed process had: POSTs, and responses that had begun."""
        return sum(self._had_a_killed_process(client, text) for text in failures)

    def _had_a_killed_process(self, client: Client, text: str) -> bool:
        found = re.match(r"([\d.]+) .*?(truncated|status 502).*, request (\d+) of ([\d.]+) s", text)
        if found is None or not client.paths or not client.paths[0].startswith("/pair"):
            return False
        ended, seconds = float(found[1]), float(found[4])
        sent, killed, died = ended - seconds, 0.0, 0.0
        for times in self.kills.times:
            if times[0] <= ended:
                killed, died = times
        executed = f"{client.paths[0]} {int(found[3]):012}".encode() in self.posts
        self.say(
            f"sent {sent - killed:.3f} s after the kill, {sent - died:.3f} s after the end"
            f"{', executed' if executed else ''}: {text}"
        )
        # A killed process has its connections until it has ended, which takes a while on a busy machine.
        had = sent <= died and ended <= died + NOTICED_SECONDS
        return had and (found[2] == "truncated" or client.mode == "bodies")

    def _write(self) -> None:
        super()._write()
        with (self.directory / "pool.toml").open("a") as file:
            extra = SERVER.format(python=sys.executable, root=ROOT, **self.ports)
            file.write(MORE + extra * self.has_extra)

    def _use_another_program(self) -> None:
        """Use the same program under another name, as after an upgrade of its package."""
        self.copies += 1
        path = self.room / f"haproxy-{self.copies}"
        path.write_text(f'#!/bin/sh\nexec "{self.executable}" "$@"\n')
        path.chmod(0o755)
        self._set_keys()

    def _set_keys(self) -> None:
        path = self.room / f"haproxy-{self.copies}"
        self.gateway_keys = f'program = "{path}"\nmax_connections = {self.limit + 10_000}'

    def route_added(self) -> None:
        self.reload_of_routes()
        self._restart_and_kill()

    route_removed = route_added

    def listener_added(self) -> None:
        self.has_listener = self.has_extra = True
        self._write()
        self._command(*WAYS[self.removed])
        port, self.removed = self._port(), ""
        if refused(port):
            raise Fault("an added listener refuses connections")
        self._restart_and_kill()

    def listener_removed(self) -> None:
        self.removed = list(WAYS)[self.removals % len(WAYS)]
        self.removals += 1
        self.has_listener = self.removed != "reload"
        self.has_extra = self.removed != "remove"
        if self.removed == "reload":
            self._reload()
        else:
            self._command(self.removed, "extra", *(["--save"] if self.removed == "remove" else []))
        # The change of HAProxy that `stop` and `disable` cause follows them.
        wait_until(
            lambda: refused(self._port()),
            timeout_seconds=REFUSES_SECONDS,
            what="it refuses connections",
        )
        self._restart_and_kill()

    def _port(self) -> int:
        return self.ports["spare" if self.removed == "reload" else "extra"]

    def renewed_certificate(self) -> None:
        self.reload_of_certificates()
        self._restart_and_kill()

    def limits(self) -> None:
        self.limit += 1
        self._set_keys()
        self._reload()
        self._restart_and_kill()

    def members(self) -> None:
        for processes in ("3", "2"):
            self._command("scale", "pair", processes)
        self._restart_and_kill()

    def upgrade_of_haproxy(self) -> None:
        self._use_another_program()
        self._reload()
        self._restart_and_kill()

    def _restart_and_kill(self) -> None:
        self._command("restart", "pair")
        listed = self.pool.run("list", "pair", "-o", "json", timeout_seconds=SETTLED_SECONDS).json["items"][0]
        with contextlib.suppress(ProcessLookupError, IndexError):
            pid = self.chance.choice(listed["pids"])
            fd, killed = os.pidfd_open(pid), time.time()
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [], DIES_SECONDS)
            finally:
                os.close(fd)
            self.kills.times.append((killed, time.time()))

    def memory(self) -> tuple[int, int]:
        """How many processes HAProxy has, and their memory."""
        pids = [pid for pid, command in self.pool.processes().items() if command.endswith("haproxy.cfg")]
        sizes = [size for pid in pids if (size := memory_bytes(pid))]
        return len(sizes), sum(sizes)

    def run_changes(self, changes: int, names: tuple[str, ...]) -> None:
        """Make so many changes. Raises Fault."""
        self.begin()
        started = self.memory()
        order = [names[number % len(names)] for number in range(changes)]
        self.chance.shuffle(order)
        with contextlib.ExitStack() as stack:
            for load in self.loads.values():
                stack.enter_context(load)
            before = self._settle(self._look())
            for name in order:
                before = self._event(self._with_direction(name), before)
            self.say(f"processes of HAProxy and their memory before the last stream ends: {self.memory()}")
        wait_until(lambda: self.memory()[0] == 1, timeout_seconds=STREAMS_SECONDS)
        self.say(f"at the start {started}, at the end {self.memory()}")
        if self.memory()[1] - started[1] > MAX_GROWTH_BYTES:
            self.faults.append(f"HAProxy has grown from {started} to {self.memory()}")
        if self.removed and not refused(self._port()):
            self.faults.append(f"at the end a listener removed by {self.removed} accepts connections")

    def _with_direction(self, name: str) -> str:
        """The method for this change: what is there is removed, what is not is added."""
        if name == "route":
            return "route_removed" if self.has_route else "route_added"
        if name == "listener":
            return "listener_added" if self.removed else "listener_removed"
        return name


# A route and a listener are added and removed in turn.
CHANGES = (
    "route", "route", "listener", "listener", "renewed_certificate", "limits", "members", "upgrade_of_haproxy",
)  # fmt: skip


def main() -> int:
    options = options_of(
        "structure", __doc__,
        changes={"type": int, "default": 300, "help": "how many (300)"},
        program={"default": program("haproxy"), "help": "HAProxy's executable"},
        only={"action": "append", "choices": CHANGES, "help": "nothing but this (repeatable)"},
    )  # fmt: skip
    chaos = StructureChaos(options.seed, lambda text: print(text, flush=True), options.program)
    chaos.keeps_going = True
    with contextlib.closing(chaos):
        return chaos.report(lambda: chaos.run_changes(options.changes, tuple(options.only or CHANGES)))


if __name__ == "__main__":
    sys.exit(main())
