"""A HAProxy that prints the counters that a test gives it, with the figures that the gateway takes from them."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from poolctl.features.gateway.haproxy.configuration import NO_ROUTE, HaproxyBackend, HaproxyServer
from poolctl.features.gateway.haproxy.process import HaproxyProcess, HaproxyRefusal
from poolctl.features.gateway.program import MIN_VERSION
from poolctl.features.gateway.settings import GatewaySettings
from poolctl.features.gateway.supervision.counts import TrafficCounts
from poolctl.features.gateway.supervision.figures import GatewayFigures
from poolctl.features.gateway.supervision.gateway import GatewayManager
from poolctl.features.gateway.supervision.hosts import HostStates
from poolctl.features.gateway.supervision.pool_gateway import PoolGateway
from poolctl.features.gateway.supervision.targets import Targets
from poolctl.features.gateway.table import GatewayConfig
from poolctl.features.gateway.target import ServerFacts, Target, TargetState
from poolctl.routing.route import Route, StreamRoute
from poolctl.runners.process_link import identity
from poolctl.supervisor.feature_parts import PartContext
from tests.manual_clock import ManualClock

# As HAProxy names them, up to the last one that is read.
HEAD = (
    "pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status,weight,act,bck,"
    "chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rate,rate_lim,rate_max,"
    "check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,hanafail,req_rate,"
    "req_rate_max,req_tot,cli_abrt,srv_abrt"
)
COLUMNS = HEAD.split(",")


class LogFiles:
    """In place of the pipes to the logger: the files themselves."""

    def create_log_pipe(self, name: str, path: str, form: str, limits: object) -> tuple[str, int]:
        return path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def register_pipe(self, key: str, pid: int) -> None: ...

    def discard(self, key: str) -> None: ...


class ScriptedHaproxy:
    """Its counters are those of `count`; it answers as long as it is not `hung`."""

    def __init__(self) -> None:
        self.identity = identity(os.getpid())
        self.pid = os.getpid()
        self.exited = SimpleNamespace(done=lambda: True)
        self.setup = "known"
        self.hung = False
        self.asked = 0
        self.rows: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.bad: dict[str, int] = {}
        self.unanswered: dict[str, int] = {}  # answered with 502 by HAProxy itself

    def count(self, proxy: str, name: str, **counts: int) -> None:
        for column, count in counts.items():
            self.rows[proxy, name][column] += count

    async def ask(self, *commands: str) -> str:
        self.asked += 1
        if self.hung:
            raise HaproxyRefusal("it does not answer")
        return self.text()

    def text(self) -> str:
        lines = [f"# {HEAD},"]
        for (proxy, name), counts in self.rows.items():
            values = {"pxname": proxy, "svname": name, "status": "UP", **counts}
            lines.append(",".join(str(values.get(each, "")) for each in COLUMNS) + ',"a, b",')
        lines += ["", "# table: failures, type: string, size:102400, used:1"]
        lines += [f"0x7f: key={place} use=0 exp=0 gpc0={count}" for place, count in self.bad.items()]
        lines += ["", *(f"0x7f {place} {count}" for place, count in self.unanswered.items())]
        return "\n".join([*lines, "", ""])


def section_of(route: Route | StreamRoute) -> HaproxyBackend:
    """The backend of the route, whose servers have the names of their targets."""
    is_stream = isinstance(route, StreamRoute)
    keys = [target.key for target in route.to]
    servers = tuple(HaproxyServer(key, key, "127.0.0.1:1", "", 1, "") for key in keys)
    return HaproxyBackend(name_of(route), route.alias, is_stream, (), servers)


def name_of(route: Route | StreamRoute) -> str:
    return f"{'stream' if isinstance(route, StreamRoute) else 'route'}:{route.alias}"


def gateway_settings(
    program: str = "", version: tuple[int, int] = MIN_VERSION, user: str = "", **keys: Any
) -> GatewaySettings:
    """The settings of a gateway whose table has these keys."""
    return GatewaySettings(GatewayConfig(**keys), program, version, user)


def server(state: TargetState = TargetState.READY, reason: str = "", **facts: Any) -> ServerFacts:
    """What the supervisor knows about a server in this state."""
    return ServerFacts(target=Target(state, reason), **facts)


class ScriptedPoolGateway(PoolGateway):
    """The part with the manager of a test."""

    def __init__(self, site: PartContext, manager: Any) -> None:
        super().__init__(site)
        self.manager = manager

    def create_manager(self) -> GatewayManager:
        manager: GatewayManager = self.manager
        return manager


class FiguresStage:
    """The targets of routes and the gateway's figures, from a scripted HAProxy; `servers` are those of the pool."""

    def __init__(self, *routes: Route | StreamRoute) -> None:
        self.clock = ManualClock(100.0)
        self.hosts = HostStates(self.clock.monotonic, lambda *_: None, wall=self.clock.time)
        self.counts = TrafficCounts()
        self.events: list[tuple[str, str, str]] = []
        self.servers: dict[str, ServerFacts] = {}
        self.targets = Targets(self.servers.get, self.hosts, self.counts, self._record, self.clock.monotonic)
        self.haproxy = ScriptedHaproxy()
        self.is_running = True
        self.changes = 0
        self.figures = GatewayFigures(self.targets, self._serving, self._count_change, self.clock.monotonic)
        self.set_routes(*routes)

    def set_routes(self, *routes: Route | StreamRoute) -> None:
        self.targets.set_routes(routes)
        self.sections = [section_of(each) for each in routes]

    def replace_haproxy(self) -> None:
        """Let another HAProxy serve, whose counters begin at 0."""
        self.haproxy = ScriptedHaproxy()

    def count(self, route: Route | StreamRoute, target: str = "", bad: int = 0, **counts: int) -> None:
        """Count at the route, or at its target; `bad` is the number of responses whose status is a failure."""
        name = target or "BACKEND"
        self.haproxy.count(name_of(route), name, **counts)
        if bad:
            place = f"{name_of(route)}/{name}"
            self.haproxy.bad[place] = self.haproxy.bad.get(place, 0) + bad

    def count_unrouted(self, count: int) -> None:
        self.haproxy.count(NO_ROUTE, "BACKEND", stot=count, hrsp_4xx=count)

    def found(self, route: Route | StreamRoute) -> dict[str, Target]:
        """The targets of the route now, by key."""
        return self.targets.now(self.targets.keys).of(route)

    async def read(self) -> bool:
        return await self.figures.read()

    def read_now(self) -> bool:
        """`read`, outside of an event loop."""
        return asyncio.run(self.figures.read())

    def _serving(self) -> HaproxyProcess | None:
        haproxy: Any = self.haproxy
        haproxy.sections = {each.name: each for each in self.sections}
        return haproxy if self.is_running else None

    def _record(self, kind: str, host: str, why: str) -> None:
        self.events.append((kind, host, why))

    def _count_change(self) -> None:
        self.changes += 1
