"""The steps of a program. A step returns when the pool has recovered, or raises Fault."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

from tests.deadline import wait_until
from tests.http_get import get
from tests.processes import is_alive, stat
from tests.real_pool import Done

from .program import SERVERS
from .stage import Fault, Stage
from .watch import Watch

INVALID = 5
FROZEN_SECONDS = 30.0


class Steps:
    """The verbs of a program, by name."""

    def __init__(self, stage: Stage, watch: Watch) -> None:
        self.stage = stage
        self.watch = watch

    # Commands to the pool.

    def restart(self, server: str) -> None:
        self._operate("restart", server=server)
        self.stage.settled()

    def reload(self, change: str, server: str) -> None:
        self._operate("reload", change=change, server=server)
        self.stage.settled()

    def scale(self, workers: int) -> None:
        self._operate("scale", workers=workers)
        self.stage.settled()

    def upgrade(self) -> None:
        """A new supervisor takes over regularly; all workers stay."""
        before = self.stage.settled()
        self._operate("upgrade")
        self._same_workers(before)

    def stop_start(self) -> None:
        """A stopped server refuses, a started one answers."""
        self.stage.ok("stop", "moving")
        self.stage.settled(stopped=("moving",))
        with contextlib.suppress(ConnectionRefusedError):
            self._connect("moving").close()
            raise Fault("a stopped server accepts connections")
        self.stage.ok("start", "moving")
        self._connect("moving").close()
        self.stage.settled()

    def drain(self, server: str) -> None:
        """A drained server is out of rotation, but answers direct requests."""
        self.stage.ok("drain", server)
        self.watch.check()
        self.stage.ok("undrain", server)
        self.stage.settled()

    def disable(self, server: str) -> None:
        self.stage.ok("disable", server)
        self.stage.settled(stopped=(server,))
        self.stage.ok("enable", server)
        self.stage.settled()

    def path_without_omitted_parts(self) -> None:
        """Restore the file from the start of the round, and wait until the pool is quiet."""
        if self.stage.has_extra or self.stage.workers["several"] != 2:
            self._operate("reload", change="remove", server="plain")
        self.stage.ok("restart")  # a killed zygote is restarted on demand
        self.stage.settled(asleep=("sleepy",))

    # Faults.

    def kill(self, role: str, victim: str, index: int) -> None:
        for pid in self._victims(role, victim, index):
            self._kill(role, victim, pid)
        self.stage.settled()

    def kill_during(
        self, operation: str, role: str, victim: str, index: int, after_ms: int, **options: object
    ) -> None:
        """The operation succeeds or fails with a clear error, and can be repeated."""
        victims = self._victims(role, victim, index)
        command = self._command(operation, **options)
        process = self.stage.pool.spawn(*command)
        time.sleep(after_ms / 1000)
        for pid in victims:
            self._kill(role, victim, pid)
        stdout, stderr = process.communicate(timeout=60)
        done = Done(command, process.returncode, stdout, stderr)
        expected = self._code(options)
        if "Traceback" in stderr or (done.code not in (0, expected) and "error" not in stderr):
            raise Fault(f"no clear error: {done}")
        if done.code != expected:
            self._operate(operation, **options)
        self._taken_over(operation, options)
        self.stage.settled()

    def storm(self, roles: tuple[str, ...], server: str) -> None:
        """Several processes are killed at once."""
        victims = [(role, pid) for role in roles for pid in self._victims(role, server, 0)]
        for role, pid in victims:
            self._kill(role, server, pid)
        self.stage.settled()

    def kill_both(self) -> None:
        """Without keeper and supervisor nothing serves; the next start ends what is left, and begins cold."""
        self.stage.settled()
        roles = self.stage.roles()
        with self.watch.without(*SERVERS):
            for pid in (*roles["keeper"], *roles["supervisor"]):
                os.kill(pid, signal.SIGKILL)
            self.stage.ok("start")
        self.stage.settled()

    def vanish(self) -> None:
        """The files by which the pool is found are removed, as by a cleaner of /tmp, and must be restored exactly."""
        before = self.stage.settled()
        for place in (*self.stage.runtime.glob("*/control.sock"), *self.stage.runtime.glob("*/info.json")):
            with contextlib.suppress(FileNotFoundError):  # through the pool's name
                place.unlink()
        wait_until(lambda: [*self.stage.runtime.glob("*/info.json")])
        self._same_workers(before)

    def freeze(self) -> None:
        """A stopped zygote is bypassed, and exits once continued."""
        # A zygote that has forked is up: its startup timeout is longer than its fork timeout.
        self.stage.ok("restart", "moving")
        frozen = self.stage.roles()["zygote"]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            # The first fork may be a pre-forked child; the second one needs the zygote.
            self.stage.ok("restart", "plain")
            self.stage.ok("restart", "plain")
        finally:
            for pid in frozen:
                self._signal(pid, signal.SIGCONT)  # on a busy machine it may have been killed by now
        self.stage.settled()
        wait_until(lambda: not any(map(is_alive, frozen)))

    def freeze_idle(self) -> None:
        """A zygote stopped while idle is detected, so that the next fork does not wait."""
        self.stage.ok("restart", "moving")
        frozen = self.stage.roles()["zygote"]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not any(map(is_alive, frozen)), timeout_seconds=FROZEN_SECONDS)
        self.stage.ok("restart", "plain")
        self.stage.settled()

    def freeze_supervisor(self) -> None:
        """A stopped supervisor continues when its keeper is killed, and replaces it: no other process could."""
        (keeper,), (supervisor,) = self.stage.roles()["keeper"], self.stage.roles()["supervisor"]
        wait_until(self.stage.has_taken_over, timeout_seconds=FROZEN_SECONDS)
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
        self.watch.check()
        self.stage.settled()

    def in_silence(self, deaths: tuple[tuple[str, str, int], ...]) -> None:
        """Several processes die one after another without a command in between: (role, server, pause in ms) each."""
        workers = {name: list(item["pids"]) for name, item in self.stage.settled().items()}
        died: set[str] = set()
        for role, server, pause_ms in deaths:
            if role == "keeper" or (role == "supervisor" and "keeper" in died):
                # Both at once has its own step, `kill_both`.
                wait_until(self.stage.has_taken_over, timeout_seconds=FROZEN_SECONDS)
            # Without asking, only a worker's initial state is known.
            known = workers[server] if role == "worker" else []
            for pid in [known.pop(0)] if known else self.stage.roles().get(role, []):
                self._kill(role, server, pid)
            died.add(role)
            time.sleep(pause_ms / 1000)
            self.watch.check()
        self.stage.settled()

    def freeze_keeper(self, server: str) -> None:
        """A stopped keeper is continued; a worker that dies meanwhile is replaced."""
        (keeper,) = self.stage.roles()["keeper"]
        victims = self._victims("worker", server, 0)
        os.kill(keeper, signal.SIGSTOP)
        for pid in victims:
            self._kill("worker", server, pid)
        # Clients are still answered, and the keeper is pinged.
        self.stage.settled()
        wait_until(lambda: stat(keeper).state != "T", timeout_seconds=FROZEN_SECONDS)
        if self.stage.roles()["keeper"] != [keeper]:
            raise Fault("a keeper that was only stopped was replaced")

    def attack(self, deed: str) -> None:
        """An application can harm only its own server, which recovers."""
        before = self.stage.settled()
        own = self.stage.own()
        with contextlib.suppress(OSError, HTTPException):  # its worker may be killed during the attack
            get(self.stage.ports["hostile"], f"/{deed}")
        self.watch.check()
        self._same_workers({name: item for name, item in before.items() if name != "hostile"})
        self.stage.ok("restart", "hostile")
        if get(self.stage.ports["hostile"]).status != 200:
            raise Fault("the server of the hostile application is not served again")
        if self.stage.own() != own:
            raise Fault(f"replaced after an attack: {own}, now {self.stage.own()}")

    def pause(self, seconds: float) -> None:
        """Everything is paused, as in a paused container; nothing is replaced."""
        before = self.stage.settled()
        own = self.stage.own()
        paused = list(self.stage.pool.processes())
        for pid in paused:
            self._signal(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in reversed(paused):
            self._signal(pid, signal.SIGCONT)
        self.watch.paused(seconds)
        self._same_workers(before)
        if self.stage.own() != own:
            raise Fault(f"replaced after a pause: {own}, now {self.stage.own()}")

    def flood(self, server: str, connections: int) -> None:
        """Connections send nothing, or incomplete requests; complete requests are still answered."""
        with contextlib.ExitStack() as held:
            for number in range(connections):
                sock = held.enter_context(self._connect(server))
                if number % 3:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n"[: number % 30])
            self.watch.check()
        self.stage.settled()

    def full_disk(self, then: str, server: str) -> None:
        """Nothing can be written; servers keep serving, and afterwards everything recovers."""
        with self._no_room():
            time.sleep(0.2)
            self.watch.check()
            if then == "restart":
                done = self.stage.run("restart", server)
                if done.code and "error" not in done.stderr:
                    raise Fault(f"no clear error: {done}")
            elif then != "nothing":
                for pid in self._victims(then, server, 0):
                    self._kill(then, server, pid)
                time.sleep(0.3)
            self.watch.check()
        self.stage.settled()

    def _operate(self, operation: str, **options: object) -> None:
        done = self.stage.run(*self._command(operation, **options))
        if done.code != self._code(options):
            raise Fault(str(done))
        self._taken_over(operation, options)

    def _same_workers(self, before: dict[str, dict[str, Any]]) -> None:
        after = self.stage.settled()
        others = [name for name in before if before[name]["pids"] != after[name]["pids"]]
        if changed := [name for name in others if name != "sleepy"]:
            raise Fault(f"other workers than before: {changed}")

    @staticmethod
    def _code(options: dict[str, object]) -> int:
        return INVALID if options.get("change") == "broken" else 0

    def _command(self, operation: str, **options: object) -> tuple[str, ...]:
        if operation == "restart":
            return ("restart",) if options["server"] == "all" else ("restart", str(options["server"]))
        if operation == "upgrade":
            return ("upgrade", "--allow-same-version")
        if operation == "scale":
            return ("scale", "several", str(options["workers"]))
        change, server = options["change"], str(options["server"])
        if change == "env":
            self.stage.environments[server] += 1
        elif change == "tags":
            self.stage.tags[server] += 1
        elif change in ("add", "remove"):
            self.stage.has_extra = change == "add"
        self.stage.write(broken=change == "broken")
        return ("reload",)

    def _taken_over(self, operation: str, options: dict[str, object]) -> None:
        if operation == "scale":
            self.stage.workers["several"] = int(str(options["workers"]))
        elif operation == "reload" and options["change"] != "broken":
            self.stage.workers["several"] = 2
        elif operation == "reload":
            self.stage.write()

    def _victims(self, role: str, server: str, index: int) -> list[int]:
        if role == "worker":
            pids = self.stage.settled()[server]["pids"]
            return [pids[index % len(pids)]] if pids else []
        return self.stage.roles()[role]

    def _kill(self, role: str, server: str, pid: int) -> None:
        if role == "worker":
            self.watch.died(server)
        self._signal(pid, signal.SIGKILL)

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _connect(self, server: str) -> socket.socket:
        host, _, port = self.stage.address(server).rpartition(":")
        return socket.create_connection((host, int(port)), timeout=10)

    @contextlib.contextmanager
    def _no_room(self) -> Iterator[None]:
        if not self.stage.has_disk:
            # Without permission to mount: the logger may not extend any file.
            for pid in self.stage.roles()["logger"]:
                resource.prlimit(
                    pid, resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
                )
            yield
            for pid in self.stage.roles()["logger"]:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))
            return
        filler = self.stage.runtime / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(65536)):
                    continue
            yield
        finally:
            filler.unlink()
