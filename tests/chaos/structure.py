"""`python -m tests.chaos.structure --changes 300`: changes of the gateway's structure, none of which loses a request.

After each change a program with two processes is restarted, and one of the two is killed: a request that this process
had may fail, at most one per connection. Half of the kept clients pause for 1 to 60 s between requests. At the end an
address that is no longer there refuses connections, and HAProxy has the memory that it had at the start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import Callable

from poolctl.platform import memory_bytes
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.programs import program

from .gateway import CLIENTS, SETTLED_SECONDS, Client, GatewayChaos
from .stage import Fault

IDLE = {
    f"kept, idle for {pause} s, {path}": Client("keep_alive", 4, paths=(path,), pause=pause)
    for pause in (1, 7, 20, 60)
    for path in ("/pair", "/both")
}
STREAMS_SECONDS = 100.0
MAX_GROWTH_BYTES = 20 << 20


class Kills:
    """How many processes were killed since the last call of `new`."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def new(self) -> int:
        count, self.count = self.count, 0
        return count


class StructureChaos(GatewayChaos):
    """The pool, its clients and the changes, which are methods without arguments."""

    def __init__(self, seed: int, say: Callable[[str], None], executable: str) -> None:
        self.copies = 0
        super().__init__(seed, say, clients={**CLIENTS, **IDLE})
        self.executable = executable
        self.kills = Kills()
        self.deaths = self.kills  # type: ignore[assignment]
        self.limit = 1000
        self._use_another_program()

    def may_lose(self, client: Client) -> bool:
        return any(path.startswith("/pair") for path in client.paths)

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

    def route(self) -> None:
        self.reload_of_routes()
        self._restart_and_kill()

    def listener(self) -> None:
        self.reload_of_listeners()
        if self._refuses(self.ports["spare"]) is self.has_listener:
            raise Fault(
                f"the listener is {'refused' if self.has_listener else 'still open'} after the reload"
            )
        self._restart_and_kill()

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
        self.kills.count += 1  # before a client notices
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self.chance.choice(listed["pids"]), signal.SIGKILL)

    @staticmethod
    def _refuses(port: int) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0

    def memory(self) -> tuple[int, int]:
        """How many processes HAProxy has, and their memory."""
        pids = [pid for pid, command in self.pool.processes().items() if command.endswith("haproxy.cfg")]
        sizes = [size for pid in pids if (size := memory_bytes(pid))]
        return len(sizes), sum(sizes)

    def run_changes(self, changes: int, names: tuple[str, ...]) -> None:
        """Make so many changes. Raises Fault."""
        certificate(self.directory)
        self._install_and_list_changed_files()
        self._write()
        self._command("start")
        self._settle({})
        started = self.memory()
        order = [names[number % len(names)] for number in range(changes)]
        self.chance.shuffle(order)
        with contextlib.ExitStack() as stack:
            for load in self.loads.values():
                stack.enter_context(load)
            before = self._settle(self._look())
            for name in order:
                before = self._event(name, before)
            self.say(f"processes of HAProxy and their memory before the last stream ends: {self.memory()}")
        wait_until(lambda: self.memory()[0] == 1, timeout_seconds=STREAMS_SECONDS)
        self.say(f"at the start {started}, at the end {self.memory()}")
        if self.memory()[1] - started[1] > MAX_GROWTH_BYTES:
            self.faults.append(f"HAProxy has grown from {started} to {self.memory()}")
        if not self.has_listener and not self._refuses(self.ports["spare"]):
            self.faults.append("a removed listener accepts connections")


CHANGES = ("route", "listener", "renewed_certificate", "limits", "members", "upgrade_of_haproxy")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.structure", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--changes", type=int, default=300, help="how many (300)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the order (a random one)")
    parser.add_argument("--program", default=program("haproxy"), help="HAProxy's executable")
    parser.add_argument("--only", action="append", choices=CHANGES, help="nothing but this (repeatable)")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    chaos = StructureChaos(options.seed, lambda text: print(text, flush=True), options.program)
    chaos.keeps_going = True
    with contextlib.closing(chaos):
        return chaos.report(lambda: chaos.run_changes(options.changes, tuple(options.only or CHANGES)))


if __name__ == "__main__":
    sys.exit(main())
