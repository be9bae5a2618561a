"""`python -m tests.chaos.gateway --requests 1000000`: the gateway's lifecycle under load; every request counts.

Four servers behind one gateway, one of them a program on private ports and one that sleeps, and clients of every kind
all the time, two of which only ask for a page with an error. A sequence of events: restarts, reloads of every kind,
changes of scale, upgrades to another version, each kind of process killed, frozen, and frozen just before the keeper
is killed. With `--deaths` a worker is killed every second as well. Invariants:

- No request ever fails, except one on a connection that a killed HAProxy had: at most one per connection.
- A killed or frozen worker fails the requests that it had: at most one per connection.
- Nothing stays frozen.
- Only a change of HAProxy's process closes a kept connection, not even the restart of its server.
- A WebSocket is closed by its server with 1012, or with a killed HAProxy.
- No POST is executed twice.
- A connection that is made when HAProxy was killed is answered by the next one. How long that takes is printed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import poolctl
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.http_get import get
from tests.load import Load, Report
from tests.ports import claim_port
from tests.processes import is_alive, is_frozen, process_name
from tests.real_pool import RealPool

from .room import KINDS, SETTLED_SECONDS, Room, options_of
from .stage import Fault

ROOT = Path(__file__).parents[2]
STOPPED_SECONDS = 1.0
DEATHS_SECONDS = 1.0
ANSWERS = 20  # requests of each kind of client between two events
FILE = """
[gateway]
bind = [
    "127.0.0.1:{plain}",{listener}
    {{ bind = "127.0.0.1:{tls}", tls = {{ cert = "localhost.pem", key = "localhost.key" }} }},
]
drain_timeout = "2s"
{keys}
[dashboard]
bind = "127.0.0.1:{page}"
[defaults]
env = {{ EXECUTED = "{executed}", CHANGE = "{change}" }}
drain_timeout = "2s"
restart = {{ limit = 100000, window = "1s", backoff = {{ initial = "10ms", max = "50ms" }} }}
recovery = {{ limit = 100000, window = "1s", backoff = {{ initial = "10ms", max = "50ms" }} }}
[[server]]
name = "sleepy"
app = "tests.load.apps:app"
app_dir = "{root}"
bind = "127.0.0.1:auto"
scale = {{ min = 0, idle = "500ms" }}
[[server]]
name = "one"
app = "tests.load.apps:app"
app_dir = "{root}"
bind = "127.0.0.1:auto"
[[server]]
name = "{second}"
app = "tests.load.apps:app"
app_dir = "{root}"
bind = "127.0.0.1:{port}"
[[server]]
name = "pair"
command = [
    "{python}", "-m", "uvicorn", "tests.load.apps:app",
    "--app-dir", "{root}", "--log-level", "critical", "--port", "{{port}}",
]
socket = "proxied"
bind = "127.0.0.1:auto"
workers = 2
[[route]]
path = "/pair"
to = "pair"
[[route]]
path = "/sleepy"
to = "sleepy"
[[route]]
path = "/one"
to = "one"
[[route]]
path = "/two"
to = "{second}"
[[route]]
alias = "ws"
path = "/ws"
to = "one"
[[route]]
alias = "sse"
path = "/events"
to = "one"
[[route]]
alias = "both"
path = "/both"
to = ["one", "{second}"]
[[stream]]
bind = "127.0.0.1:{tcp}"
to = "one"
"""
LISTENER = '\n    "127.0.0.1:{spare}",'
ROUTE = '[[route]]\nalias = "extra"\npath = "/extra"\nto = "one"\n'


class Client(NamedTuple):
    """A kind of clients: the options of their load, and the name of the port that they ask."""

    mode: str
    connections: int
    port: str = "plain"
    paths: tuple[str, ...] = ()
    pause: float = 0.0
    body_bytes: int = 262_144
    status: int = 200
    chunks: int = 20

    @property
    def is_idle(self) -> bool:
        """Whether its requests are so far apart or so long that no change waits for its next answer."""
        return self.pause >= 1 or self.chunks > 20

    @property
    def keeps(self) -> bool:
        return self.mode in ("keep_alive", "bodies") and not self.is_idle


CLIENTS = {
    "kept": Client("keep_alive", 4, paths=("/one",)),
    "kept over two routes": Client("keep_alive", 4, paths=("/one", "/two")),
    "kept with pauses": Client("keep_alive", 4, paths=("/both",), pause=0.05),
    "kept to processes": Client("keep_alive", 2, paths=("/pair",)),
    "short bodies to processes": Client("bodies", 2, paths=("/pair/short",), body_bytes=100),
    "error pages": Client("keep_alive", 2, paths=("/one/broken", "/both/broken", "/pair/broken"), status=500),
    "new": Client("new_connection", 4, paths=("/one", "/two")),
    "WebSockets": Client("websocket", 4),
    "event streams": Client("sse", 2, paths=("/one",)),
    "bodies": Client("bodies", 2, paths=("/both/bodies",), pause=0.01),
    "short bodies": Client("bodies", 2, paths=("/both/short",), body_bytes=100),
    "chunked": Client("chunked", 2, paths=("/both/chunked",), pause=0.01),
    "TLS": Client("keep_alive", 2, "tls", paths=("/one", "/two")),
    "new TLS": Client("new_connection", 2, "tls", paths=("/both",)),
    "HTTP/2": Client("http2", 2, "tls", paths=("/both",), pause=0.01),
    "WebSockets in TLS": Client("websocket", 2, "tls"),
    "waking": Client("keep_alive", 1, paths=("/sleepy",), pause=1.0),
    "TCP streams": Client("keep_alive", 2, "tcp", pause=0.01),
}


@dataclass
class Outcome:
    """The effects of all events of one kind on the clients."""

    times: int = 0
    seconds: float = 0.0
    complete: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # failed or closed, by kind of client
    pauses: list[float] = field(default_factory=list)  # seconds until the answer after HAProxy was killed

    def __str__(self) -> str:
        lost = ", ".join(f"{count} {what}" for what, count in sorted(self.lost.items()))
        text = (
            f"{self.times} times in {self.seconds:.0f} s, {self.complete} requests, {lost or 'nothing lost'}"
        )
        return f"{text}, next answer after {max(self.pauses):.2f} s at most" if self.pauses else text


class Deaths(threading.Thread):
    """While entered, kills a worker every second: one of a server's only worker, or one of two processes."""

    def __init__(self, pool: RealPool, seed: int) -> None:
        super().__init__(daemon=True)
        self._pool, self._chance = pool, random.Random(seed)
        self._over = threading.Event()
        self._times = self._seen = 0

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(SETTLED_SECONDS)

    def new(self) -> int:
        """The number of workers killed since the last call."""
        times = self._times
        new, self._seen = times - self._seen, times
        return new

    def run(self) -> None:
        while not self._over.wait(DEATHS_SECONDS):
            listed = self._pool.run("list", "-o", "json", timeout_seconds=SETTLED_SECONDS)
            servers = listed.json["items"] if listed.code == 0 else []
            ready = [item for item in servers if item["ready"] and len(item["pids"]) >= item["workers"]]
            if not ready:
                continue
            pid = self._chance.choice(self._chance.choice(ready)["pids"])
            self._times += 1  # before a client notices
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class GatewayChaos(Room):
    """The pool, its clients and the events, which are methods without arguments, by name."""

    def __init__(
        self,
        seed: int,
        say: Callable[[str], None],
        *,
        deaths: bool = False,
        clients: Mapping[str, Client] = CLIENTS,
        program: str = "",
    ) -> None:
        super().__init__(seed, say)
        self.clients = clients
        self.gateway_keys = f'program = "{program}"' if program else ""
        self.pool.env = {name: value for name, value in self.pool.env.items() if not name.startswith("COV")}
        self.ports = {name: claim_port() for name in ("plain", "tls", "tcp", "spare", "page")}
        self.second, self.port, self.changes = "two", claim_port(), 0
        self.executed = self.room / "executed"
        self.executed.touch()
        self.posts: set[bytes] = set()
        self.read_bytes = 0
        self.versions = 0
        shutil.copytree(Path(poolctl.__file__).parent, self.room / "package")
        self.has_route = self.has_listener = False
        self.keeps_going = False  # whether to continue after a fault
        self.faults: list[str] = []
        self.outcomes: dict[str, Outcome] = {}
        self.deaths = Deaths(self.pool, seed) if deaths else None
        self.loads = {
            name: Load(
                [self.ports[each.port]], each.mode, connections=each.connections, tls=each.port == "tls",
                paths=list(each.paths), path=each.paths[0] if each.paths else "/", body_bytes=each.body_bytes,
                pause=each.pause, patience=60.0, statuses=[each.status], echo=each.status == 200, chunks=each.chunks,
            )
            for name, each in clients.items()
        }  # fmt: skip

    # Events.

    def restart_of_a_server(self) -> None:
        self._command("restart", self.chance.choice(("one", self.second)))

    def restart_of_all(self) -> None:
        self._command("restart")

    def change_of_scale(self) -> None:
        self._command("scale", self.chance.choice(("one", self.second)), str(self.chance.randint(1, 3)))

    def reload_of_routes(self) -> None:
        self.has_route = not self.has_route
        self._reload()

    def reload_of_listeners(self) -> None:
        self.has_listener = not self.has_listener
        self._reload()

    def reload_of_certificates(self) -> None:
        certificate(self.directory)
        self._reload()

    def reload_of_servers(self) -> None:
        """Have the workers replaced."""
        self.changes += 1
        self._reload()

    def reload_of_an_address(self) -> None:
        self.port = claim_port()
        self._reload()

    def reload_with_another_server(self) -> None:
        self.second, self.port = "three" if self.second == "two" else "two", claim_port()
        self._reload()

    def reload_that_fails(self) -> None:
        """Reload a change with which no server but the one that sleeps can start: that would fail its next request."""
        path = self.directory / "pool.toml"
        sleepy, one, others = path.read_text().partition('name = "one"')
        path.write_text(sleepy + one + others.replace("tests.load.apps:app", "tests.load.apps:missing"))
        if self.pool.run("reload", timeout_seconds=SETTLED_SECONDS).code == 0:
            raise Fault("a reload to an application that does not exist succeeded")
        self._reload()

    def upgrade(self) -> None:
        """Upgrade to another version, whose forwarder replaces this one. HAProxy has no code of poolctl, and stays."""
        gateway, forwarder = self._gateway(), self._pid("forwarder")
        self._install_and_list_changed_files()
        self._command("upgrade")
        wait_until(lambda: not is_alive(forwarder), timeout_seconds=SETTLED_SECONDS)
        if (found := self._gateway()) != gateway and self.deaths is None:
            raise Fault(f"the upgrade has replaced HAProxy: {gateway}, {found}")

    def death_of_the_gateway_and_the_forwarder(self) -> None:
        self._kill("forwarder", "gateway")

    def death_of_the_gateway_and_the_supervisor(self) -> None:
        self._kill("supervisor", "gateway")

    def death_of_the_gateway_and_the_keeper(self) -> None:
        self._kill("keeper", "gateway")

    def death_of_the_forwarder_and_the_supervisor(self) -> None:
        self._kill("forwarder", "supervisor")

    def death_of_the_forwarder_and_the_keeper(self) -> None:
        self._kill("forwarder", "keeper")

    def pause_of_the_supervisor(self) -> None:
        self._pause(self.pool.info()["supervisor_pid"])

    def pause_of_the_gateway(self) -> None:
        self._pause(self._gateway())

    # Running and judging events.

    def run(self, requests: int, events: tuple[str, ...] = ()) -> dict[str, Outcome]:
        """Run all events in rounds, in varying order, until the number of requests is complete. Raises Fault."""
        self.begin()
        names = list(events or EVENTS)
        with contextlib.ExitStack() as stack:
            for load in self.loads.values():
                stack.enter_context(load)
            if self.deaths is not None:
                stack.enter_context(self.deaths)
            before = self._settle(self._look())
            while True:
                self.chance.shuffle(names)
                for name in names:
                    before = self._event(name, before)
                if sum(report.complete for report in before.values()) >= requests:
                    break
        reports = {name: load.report for name, load in self.loads.items()}
        self._judge("end of the load", before, reports, Outcome())
        return self.outcomes

    def begin(self) -> None:
        """Start the pool."""
        certificate(self.directory)
        self._install_and_list_changed_files()
        self._write()
        self._command("start")
        self._settle({})

    def _event(self, name: str, before: dict[str, Report]) -> dict[str, Report]:
        outcome = self.outcomes.setdefault(name, Outcome())
        self.pauses = outcome.pauses
        began = time.monotonic()
        if name in DEATHS:
            self._kill(DEATHS[name])
        elif name in FREEZES:
            self._freeze(FREEZES[name])
        elif name in FREEZES_BEFORE_A_DEATH:
            self._freeze(FREEZES_BEFORE_A_DEATH[name])
            os.kill(self.pool.info()["keeper_pid"], signal.SIGKILL)
        else:
            getattr(self, name)()
        after = self._settle(before)
        outcome.times += 1
        outcome.seconds += (seconds := time.monotonic() - began)
        self._judge(name, before, after, outcome)
        complete = sum(report.complete for report in after.values())
        self.say(f"{complete:9} requests: {name.replace('_', ' ')}, {seconds:.1f} s")
        return after

    def _judge(
        self, name: str, before: dict[str, Report], after: dict[str, Report], outcome: Outcome
    ) -> None:
        wrong = [f"{each.decode()} was executed twice" for each in self._repeated()]
        deaths = self.deaths.new() if self.deaths is not None else 0
        for kind, client in self.clients.items():
            earlier, now = before[kind], after[kind]
            outcome.complete += now.complete - earlier.complete
            failed = now.failed - earlier.failed
            closed = now.closed + now.idle_reset - earlier.closed - earlier.idle_reset
            outcome.lost += Counter({f"{kind} failed": failed, f"{kind} closed": closed})
            failures = now.failures[len(earlier.failures) :]
            excused = self._excused(client, deaths, failures)
            if name in (*KILL_GATEWAY, *KILL_WORKER):
                excused += client.connections
            # A successor that meets other processes than it has read of replaces HAProxy, which closes connections.
            leaves = name in CHANGE_GATEWAY or name in KILL_WORKER or deaths > 0
            if failed > excused or (closed and client.keeps and not leaves):
                counts = str(now).partition("\n")[0]
                wrong.append(f"{kind}: {failed} failed, {closed} closed, {excused} excused: {counts}")
                wrong += failures
        if wrong:
            self.faults.append(f"{name}: " + "\n".join(wrong))
            if not self.keeps_going:
                raise Fault(self.faults[-1])
            self.say(self.faults[-1])

    def _excused(self, client: Client, deaths: int, failures: list[str]) -> int:
        """How many of these failures the deaths of workers excuse."""
        return deaths * client.connections

    def report(self, work: Callable[[], object]) -> int:
        """Do the work, print what became of the requests, and return the exit status."""
        began = time.monotonic()
        try:
            work()
        except Fault as fault:
            print(fault, file=sys.stderr)
            return 1
        finally:
            for name, outcome in sorted(self.outcomes.items()):
                print(f"{name.replace('_', ' ')}: {outcome}")
        requests = sum(load.report.complete for load in self.loads.values())
        print(f"{requests} requests complete in {time.monotonic() - began:.0f} s")
        for name, load in self.loads.items():
            print(f"{name}: {str(load.report).partition(chr(10))[0]}")
        for fault in self.faults:
            print(fault, file=sys.stderr)
        return 1 if self.faults else 0

    def _repeated(self) -> list[bytes]:
        """The POSTs that have been executed once more since the last call."""
        with open(self.executed, "rb") as file:
            file.seek(self.read_bytes)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self.read_bytes += len(lines)
        found = Counter(lines.splitlines())
        repeated = [each for each, times in found.items() if times > 1 or each in self.posts]
        self.posts |= found.keys()
        return repeated

    def _settle(self, before: dict[str, Report]) -> dict[str, Report]:
        """Wait until everything runs again and every kind of client has been answered; returns the counts."""
        wait_until(
            lambda: not self._missing(), timeout_seconds=SETTLED_SECONDS,
            what=lambda: f"the pool is whole again, but for {self._missing()}",
        )  # fmt: skip
        start = self._look() if before else {}
        deadline = time.monotonic() + SETTLED_SECONDS
        while True:
            now = self._look() if before else {}
            waiting = [
                kind
                for kind in now
                if not self.clients[kind].is_idle and _answers(now[kind]) < _answers(start[kind]) + ANSWERS
            ]
            if not waiting:
                return now
            if time.monotonic() > deadline:
                raise Fault(f"no answers for {waiting}: {now}")
            time.sleep(0.02)

    def _missing(self) -> str:
        """What does not run as it should; "" if all does."""
        done = self.pool.run("list", "-o", "json")
        if done.code:
            return str(done)
        if (gateway := done.json["gateway"])["state"] != "running":
            return str(gateway)
        if resting := [
            item
            for item in done.json["items"]
            if not item["ready"] and item["state"] not in ("sleeping", "stopped", "disabled")
        ]:
            return str(resting)
        info = self.pool.info()
        if dead := [name for name in ("keeper_pid", "supervisor_pid") if not is_alive(info[name])]:
            return str(dead)
        if frozen := [pid for pid in self.pool.processes() if is_frozen(pid)]:
            return f"frozen processes {[f'{pid} {process_name(pid)}' for pid in frozen]}"
        return "" if len(found := self.pids_of("forwarder")) == 1 else f"the forwarders {found}"

    def _look(self) -> dict[str, Report]:
        return {name: load.look() for name, load in self.loads.items()}

    def _install_and_list_changed_files(self) -> None:
        """Use a copy of this package for commands, as the next version; the checkout may change meanwhile."""
        self.versions += 1
        place = self.room / f"version{self.versions}"
        shutil.copytree(self.room / "package", place / "poolctl")
        init = place / "poolctl/__init__.py"
        version = f'__version__ = "{poolctl.__version__}"'
        init.write_text(init.read_text().replace(version, f'__version__ = "99.0.{self.versions}"'))
        self.pool.env["PYTHONPATH"] = str(place)

    def _pid(self, kind: str) -> int:
        """A process of this kind, which runs now."""
        if kind == "gateway":
            return self._gateway()
        if kind == "worker":
            return int(
                self.chance.choice(self.pool.items()[self.chance.choice(("one", self.second))]["pids"])
            )
        if kind == "zygote":
            self._command("restart", "one")
        pids = wait_until(
            lambda: self.pids_of(kind), timeout_seconds=SETTLED_SECONDS, what=f"there is a {kind}"
        )
        return int(self.chance.choice(pids))

    def _gateway(self) -> int:
        """The HAProxy that accepts; others may still have streams."""
        pid: int = wait_until(
            lambda: self.pool.run("list", "-o", "json").json["gateway"]["pid"],
            timeout_seconds=SETTLED_SECONDS,
        )
        return pid

    def _kill(self, *names: str) -> None:
        """Kill these processes at once, and have them replaced; HAProxy's successor has to answer a waiting client."""
        pids = {name: self._pid(name) for name in names}
        killed = time.monotonic()
        for name in names:
            os.kill(pids[name], signal.SIGKILL)
        if "gateway" in names:
            wait_until(lambda: not is_alive(pids["gateway"]))
            if (status := get(self.ports["plain"], "/one").status) != 200:
                raise Fault(f"the first answer after HAProxy's death is {status}")
            self.pauses.append(time.monotonic() - killed)

    def _freeze(self, kind: str) -> None:
        """Stop a process; only the pool continues or replaces it."""
        pid = self._pid(kind)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not is_alive(pid) or is_frozen(pid))

    @staticmethod
    def _pause(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _command(self, *words: str) -> None:
        done = self.pool.run(*words, timeout_seconds=SETTLED_SECONDS)
        # The replacement of a worker may have been killed.
        while done.code == 1 and self.deaths is not None and "SIGKILL" in done.stderr:
            done = self.pool.run(*words, timeout_seconds=SETTLED_SECONDS)
        if done.code or "Traceback" in done.stderr:
            raise Fault(str(done))

    def _write(self) -> None:
        text = FILE.format(
            **self.ports, listener=LISTENER.format(**self.ports) * self.has_listener, second=self.second,
            port=self.port, keys=self.gateway_keys, root=ROOT, python=sys.executable, executed=self.executed,
            change=self.changes,
        )  # fmt: skip
        (self.directory / "pool.toml").write_text(text + ROUTE * self.has_route)

    def _reload(self) -> None:
        self._write()
        self._command("reload")

    def close(self) -> None:
        """Stop the clients and the pool, even after a fault."""
        for load in self.loads.values():
            with contextlib.suppress(Exception):
                load.stop()
        super().close()


def _answers(report: Report) -> int:
    return report.complete + report.messages


DEATHS = {f"death_of_the_{kind}": kind for kind in KINDS}
FREEZES = {f"stopped_{kind}": kind for kind in KINDS}
FREEZES_BEFORE_A_DEATH = {f"stopped_{kind}_without_a_keeper": kind for kind in KINDS if kind != "keeper"}
# Requests may fail, and connections end.
KILL_GATEWAY = (
    "death_of_the_gateway", "stopped_gateway", "stopped_gateway_without_a_keeper",
    "death_of_the_gateway_and_the_forwarder", "death_of_the_gateway_and_the_supervisor",
    "death_of_the_gateway_and_the_keeper",
)  # fmt: skip
KILL_WORKER = ("death_of_the_worker", "stopped_worker", "stopped_worker_without_a_keeper")
# Kept connections end after a response.
CHANGE_GATEWAY = (
    *KILL_GATEWAY, "reload_of_routes", "reload_of_listeners", "reload_of_certificates", "reload_with_another_server",
    "reload_of_an_address",
)  # fmt: skip
EVENTS = tuple(dict.fromkeys((
    *DEATHS, *FREEZES, *FREEZES_BEFORE_A_DEATH,
    "restart_of_a_server", "restart_of_all", "change_of_scale", "reload_of_servers", "reload_that_fails",
    "death_of_the_forwarder_and_the_supervisor", "death_of_the_forwarder_and_the_keeper",
    "pause_of_the_supervisor", "pause_of_the_gateway", "upgrade",
    *CHANGE_GATEWAY,
)))  # fmt: skip


@contextlib.contextmanager
def gateway_chaos(
    seed: int, say: Callable[[str], None] = print, *, deaths: bool = False
) -> Iterator[GatewayChaos]:
    chaos = GatewayChaos(seed, say, deaths=deaths)
    try:
        yield chaos
    finally:
        chaos.close()


def main() -> int:
    options = options_of(
        "gateway", __doc__,
        requests={"type": int, "default": 1_000_000, "help": "how many at least (1000000)"},
        only={"action": "append", "choices": EVENTS, "help": "nothing but this event (repeatable)"},
        deaths={"action": "store_true", "help": "kill a worker every second as well"},
        keep_going={"action": "store_true", "help": "after a fault"},
    )  # fmt: skip
    with gateway_chaos(options.seed, lambda text: print(text, flush=True), deaths=options.deaths) as chaos:
        chaos.keeps_going = options.keep_going
        return chaos.report(lambda: chaos.run(options.requests, tuple(options.only or ())))


if __name__ == "__main__":
    sys.exit(main())
