"""A gateway before real servers: requests find their server, and no death or change of a process is noticed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from poolctl.config import Tables
from poolctl.errors import ServerError
from poolctl.exit_codes import NO_SUPERVISOR
from poolctl.features.gateway.process.settings import GatewaySettings, ListenerSettings
from poolctl.features.gateway.supervision import gateway_manager
from poolctl.features.gateway.supervision.computed_routes import RouteSet
from poolctl.features.gateway.supervision.gateway_adoption import GatewaySearch
from poolctl.features.gateway.supervision.gateway_manager import GatewayManager
from poolctl.features.gateway.supervision.gateway_plan import Certificate, GatewayPlan
from poolctl.features.gateway.supervision.gateway_process import GatewayProcess
from poolctl.features.gateway.supervision.gateway_reports import canary_name
from poolctl.features.gateway.supervision.outside_targets import Activity
from poolctl.features.gateway.table import GatewayConfig
from poolctl.json_form import Table, to_json
from poolctl.routing.route import StreamRoute, Target
from poolctl.routing.route_report import BackendReport
from poolctl.runners.helper_process import Helpers
from poolctl.runners.process_link import LinkLost
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.takeover.state_store import StateStore
from tests.deadline import wait_until
from tests.features.gateway.conftest import ROUTES, GatewayPool
from tests.http_get import get
from tests.integration.processes.test_keeper_killed import kill_keeper, whole_again
from tests.load.load import Load
from tests.needs import needs
from tests.ports import claim_port
from tests.real_pool import RealPool, pool_in
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk
from tests.virtual_loop import VirtualLoop


def load(gateway: GatewayPool, mode: str = "keep_alive", **options: object) -> Load:
    """Requests for both servers in turn, over the gateway."""
    return Load(
        [gateway.port], mode, **{"paths": ["/one", "/two"], "connections": 8, "pause": 0.002, **options}
    )


@contextmanager
def backend(text: bytes) -> Iterator[int]:
    """The port of a server of another machine, which answers every request with this text."""
    ready, over = threading.Event(), threading.Event()
    port = claim_port()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(text) + text)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        ready.set()
        await asyncio.to_thread(over.wait)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield port
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayPool]:
    with pool_in(tmp_path_factory.mktemp("pool")) as pool:
        yield GatewayPool(pool, wait_until)


@pytest.fixture
def shared(shared_pool: GatewayPool) -> GatewayPool:
    """A gateway that serves, with the file as it was: one pool for all tests that leave it running."""
    shared_pool.write()
    if shared_pool.pool.run("reload").code == NO_SUPERVISOR:
        shared_pool.pool.ok("start")
    shared_pool.until(shared_pool.process)
    return shared_pool


@pytest.mark.integration
@pytest.mark.capability
def test_requests_find_their_server_by_path_and_host_and_others_are_not_found(gateway: GatewayPool) -> None:
    with backend(b"elsewhere") as port:
        routes = f'{ROUTES}[[route]]\nhost = "out.example.com"\nto = "http://127.0.0.1:{port}"\n'
        gateway.start(routes, "access_log = true")
        assert gateway.get("/one?n=000000000001").body == b"n=000000000001"
        assert gateway.get("/two/x?n=000000000002").status == 200
        assert gateway.get("/", Host="out.example.com").body == b"elsewhere"
        assert gateway.get("/onetwo").status == 404

        def shown() -> list[tuple[object, ...]]:
            items = gateway.pool.ok("routes", "-o", "json").json["items"]
            names = "alias", "way", "state", "requests", "passed", "proxied"
            return [tuple(each[name] for name in names) for each in items]

        # A worker counts a request a moment after its client has the response.
        expected = [
            ("one", "pass", "healthy", 1, 1, 0),
            ("two", "pass", "healthy", 1, 1, 0),
            (f"127.0.0.1:{port}", "proxy", "healthy", 1, 0, 1),
        ]
        gateway.until(lambda: shown() == expected, what=lambda: str(shown()))
        document = gateway.pool.ok("status", "-o", "json").json
        status = document["gateway"]
        assert (status["state"], status["pid"], status["routes"]) == ("running", gateway.process(), 3)
        assert status["addresses"] == [f"http://127.0.0.1:{gateway.port}"]
        assert (status["stats"]["passed_total"], status["stats"]["proxied_total"]) == (2, 1)
        assert "gateway" not in gateway.pool.ok("list", "one", "-o", "json").json, "nothing selects it"
        assert (
            f"[gateway] running, http://127.0.0.1:{gateway.port}, 3 routes"
            in gateway.pool.ok("status").stdout
        )
        explained = gateway.pool.ok(
            "routes", "explain", f"http://127.0.0.1:{gateway.port}/one/x", "-o", "json"
        ).json
        assert explained["route"] == "one"
        assert "  routes     one: http://*/one\n" in gateway.pool.ok("show", "one").stdout
        (event,) = [
            each for each in gateway.pool.ok("events", "-o", "json").stdout.splitlines() if "gateway" in each
        ]
        assert f"the gateway serves 127.0.0.1:{gateway.port}" in event
    # Passed requests are logged by workers.
    (log,) = gateway.until(lambda: list(gateway.pool.runtime.rglob("gateway-access.log")))
    gateway.until(lambda: log.read_text().count("\n") == 2)
    assert re.findall(r'"(.*)" (\d+)', log.read_text()) == [
        ("GET / HTTP/1.1", "200"),
        ("GET /onetwo HTTP/1.1", "404"),
    ]


@pytest.mark.integration
def test_pool_without_servers_serves_routes_to_other_machines(gateway: GatewayPool) -> None:
    pool = gateway.pool
    with backend(b"elsewhere") as port:
        head = f'[gateway]\nbind = "127.0.0.1:{gateway.port}"\n[[route]]\nto = "http://127.0.0.1:{port}"\n'
        pool.write("pool.toml", head)
        assert pool.ok("start").stdout == "the gateway serves; the pool has no server\n"
        assert gateway.get("/").body == b"elsewhere"
        supervisor = pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        gateway.until(lambda: pool.info()["supervisor_pid"] != supervisor)
        pool.write("pool.toml", head + 'path = "/other"\n')
        pool.ok("reload")
        assert gateway.get("/").status == 404
        assert gateway.get("/other").body == b"elsewhere"
        assert pool.ok("status", "-o", "json").json["summary"]["servers"] == 0
    pool.ok("stop")
    assert not answers(gateway.port)


@pytest.mark.integration
def test_stop_of_the_pool_finishes_requests_to_other_machines(gateway: GatewayPool) -> None:
    pool = gateway.pool
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        pool.write("pool.toml", f'[gateway]\nbind = "127.0.0.1:{gateway.port}"\n[[route]]\nto = "{url}"\n')
        pool.ok("start")
        with socket.create_connection(("127.0.0.1", gateway.port), 60) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            backend, _ = other.accept()
            stop = pool.spawn("stop")
            with backend:
                gateway.until(lambda: not accepts(gateway.port))
                assert stop.poll() is None
                backend.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
                assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"\r\n\r\ndone")
            assert stop.wait(60) == 0


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.integration
@pytest.mark.parametrize("mode", [pytest.param("keep_alive", marks=pytest.mark.capability), "new_connection"])
def test_restart_of_servers_fails_no_request_and_closes_no_connection(shared: GatewayPool, mode: str) -> None:
    with load(shared, mode) as running:
        for _ in range(2):
            shared.pool.ok("restart")
        before = running.look().complete
        shared.until(lambda: running.look().complete > before + 100)
    report = running.report
    # A connection for each request counts as closed when its client has received the response.
    closed = report.closed + report.idle_reset if mode == "keep_alive" else 0
    assert (report.failed, closed) == (0, 0), report


@pytest.mark.integration
def test_killed_gateway_is_replaced_while_connections_wait(shared: GatewayPool) -> None:
    pid = shared.until(shared.process)
    with load(shared, "new_connection", connections=2) as running:
        shared.kill(pid)
        before = running.look().complete
        shared.until(lambda: running.look().complete > before + 20)
        assert shared.process() not in (None, pid)
    lines = [json.loads(line) for line in shared.pool.ok("events", "-o", "json").stdout.splitlines()]
    ended = [each for each in lines if each["event"] == "gateway ended"]
    assert [(each["pid"], each["severity"]) for each in ended] == [(pid, "warning")]
    # Of new connections only those that it had accepted, and not passed on yet, are lost.
    assert running.report.failed <= 2, running.report


@pytest.mark.integration
def test_reload_adds_and_removes_routes_without_a_pause(shared: GatewayPool) -> None:
    with load(shared) as running:
        shared.write(ROUTES + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
        shared.pool.ok("reload")
        assert shared.get("/three?n=000000000001").status == 200
        shared.write(gateway='keep_alive = "60s"')
        shared.pool.ok("reload")
        assert shared.get("/three").status == 404
    assert running.report.failed == 0, running.report


@pytest.mark.integration
def test_gateway_moves_to_another_address_and_ends_with_its_table(gateway: GatewayPool) -> None:
    gateway.write()
    gateway.pool.ok("start")
    before, gateway.port = gateway.port, claim_port()
    gateway.write()
    gateway.pool.ok("reload")
    assert answers(gateway.port)
    assert not answers(before)
    assert served(gateway) == [f"the gateway serves 127.0.0.1:{port}" for port in (before, gateway.port)]
    text = (gateway.pool.directory / "pool.toml").read_text()
    gateway.pool.write("pool.toml", text[text.index("[[server]]") :])
    gateway.pool.ok("reload")
    assert not answers(gateway.port)
    gateway.until(lambda: gateway.process() is None)
    assert get(gateway.ports["one"]).status == 200


def served(gateway: GatewayPool) -> list[str]:
    """What the events say of its addresses."""
    lines = [json.loads(line) for line in gateway.pool.ok("events", "-o", "json").stdout.splitlines()]
    return [each["message"] for each in lines if each.get("message", "").startswith("the gateway serves")]


def answers(port: int) -> bool:
    try:
        return get(port, "/one").status == 200
    except OSError:
        return False


@pytest.mark.integration
def test_killed_supervisor_is_not_noticed_and_the_next_one_adopts_the_gateway(gateway: GatewayPool) -> None:
    gateway.start()
    pid = gateway.until(gateway.process)
    with ExitStack() as clients, load(gateway) as running:
        supervisor = gateway.pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        gateway.until(lambda: gateway.pool.info()["supervisor_pid"] != supervisor)
        gateway.pool.ok("restart", "one")
        client = clients.enter_context(socket.create_connection(("127.0.0.1", gateway.port), 60))
        ask(client, "/two")
        gateway.write(ROUTES + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
        gateway.pool.ok("reload")
        gateway.until(lambda: gateway.get("/three").status == 200)
        assert running.look().failed == 0, running.look()
        assert gateway.process() == pid
        gateway.kill(pid)
        # It was passed, not proxied.
        ask(client, "/two")


def ask(client: socket.socket, path: str) -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.heavy
@pytest.mark.integration
@pytest.mark.slow
def test_killed_keeper_is_not_noticed_and_the_gateway_lives_on(gateway: GatewayPool) -> None:
    gateway.start()
    pid = gateway.until(gateway.process)
    with load(gateway) as running:
        whole_again(gateway.pool, gateway.until, kill_keeper(gateway.pool))
        gateway.pool.ok("restart", "two")
    assert running.report.failed == 0, running.report
    assert gateway.process() == pid
    gateway.kill(pid)
    gateway.until(lambda: gateway.process() not in (None, pid))
    gateway.until(lambda: answers(gateway.port))


@pytest.mark.integration
def test_stopped_pool_refuses_and_leaves_nothing_behind(gateway: GatewayPool, real_pool: RealPool) -> None:
    gateway.start()
    with socket.create_connection(("127.0.0.1", gateway.port)) as idle:
        idle.sendall(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        real_pool.ok("stop")
        idle.settimeout(60)
        assert idle.recv(65536) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", gateway.port))
    gateway.until(lambda: not real_pool.processes())


@pytest.mark.heavy
@pytest.mark.integration
def test_taken_address_fails_the_start_and_is_tried_again(gateway: GatewayPool) -> None:
    with socket.create_server(("127.0.0.1", gateway.port)):
        gateway.write()
        done = gateway.pool.run("start", "-o", "json")
        assert done.code == 1, done
        (error,) = done.json["errors"]
        assert (error["name"], error["bind"]) == ("[gateway]", f"127.0.0.1:{gateway.port}")
        assert f"port {gateway.port} is in use" in error["message"]
        assert [each["ready"] for each in done.json["items"]] == [True, True]
        # Of a selection of servers it is no part.
        assert "[gateway]" in gateway.pool.ok("start", "one").stderr
        status = gateway.pool.ok("status", "-o", "json").json
        assert status["warnings"] == status["summary"]["not_served"]
        assert [each.partition(":")[0] for each in status["warnings"]] == ["[gateway]"]
    gateway.pool.ok("start")
    assert answers(gateway.port)


@pytest.mark.integration
def test_reload_to_a_taken_address_fails_and_the_gateway_stays_where_it_is(gateway: GatewayPool) -> None:
    gateway.start()
    before, gateway.port = gateway.port, claim_port()
    with socket.create_server(("127.0.0.1", gateway.port)):
        gateway.write(ROUTES + '[[route]]\nalias = "three"\npath = "/three"\nto = "one"\n')
        done = gateway.pool.run("reload")
        assert done.code == 1, done
        assert f"error: [gateway]: port {gateway.port} is in use" in done.stderr, done
        assert get(before, "/three").status == 200
    gateway.until(lambda: answers(gateway.port))
    gateway.until(lambda: not answers(before))


@pytest.mark.integration
def test_reload_warns_when_the_gateway_does_not_confirm_it_in_time(shared: GatewayPool) -> None:
    pid = shared.until(shared.process)
    os.kill(pid, signal.SIGSTOP)
    try:
        done = shared.pool.ok("reload", "--timeout", "0.5s")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "[gateway]: not everything is in force yet: its process does not answer" in done.stderr


@pytest.mark.integration
def test_stopped_server_is_unavailable_and_comes_back(shared: GatewayPool) -> None:
    assert shared.get("/one").status == 200
    shared.pool.ok("stop", "one")
    reply = shared.get("/one")
    assert reply.status == 503, reply
    assert "retry-after" in reply.headers
    shared.pool.ok("start", "one")
    shared.until(lambda: shared.get("/one").status == 200)


@pytest.mark.integration
def test_stop_and_start_of_a_server_reset_and_refuse_no_connection(shared: GatewayPool) -> None:
    """Clients get an answer or 503; the gateway lets go of the pair before it is closed."""
    with load(shared, "new_connection", echo=False, statuses=[200, 503]) as running:
        for _ in range(3):
            shared.pool.ok("stop", "one")
            shared.pool.ok("start", "one")
            before = running.look().complete
            shared.until(lambda before=before: running.look().complete > before + 50)
    assert running.report.failed == 0, running.report


@pytest.mark.heavy
@pytest.mark.integration
def test_disabled_host_stays_disabled_over_the_death_of_gateway_and_supervisor(gateway: GatewayPool) -> None:
    gateway.start()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        # Passed to the worker, which counts it.
        gateway.until(lambda: connections(gateway, "one") == 1)
    gateway.until(lambda: connections(gateway, "one") == 0)
    gateway.pool.ok("backends", "disable", "one", "--for", "0")
    assert "host disabled: one (disabled by request)" in gateway.pool.ok("events", "--kind", "pool").stdout
    assert gateway.get("/one").status == 503
    pid = gateway.until(gateway.process)
    gateway.kill(pid)
    gateway.until(lambda: gateway.process() not in (None, pid))
    assert gateway.until(lambda: status_of(gateway, "/one")) == 503
    supervisor = gateway.pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    gateway.until(lambda: gateway.pool.info()["supervisor_pid"] != supervisor)
    # The next one has the states of hosts once the gateway's process answers it.
    gateway.until(lambda: host(gateway, "one").get("state") == "disabled")
    gateway.pool.ok("backends", "enable", "one")
    assert gateway.get("/one").status == 200


def host(gateway: GatewayPool, name: str) -> dict[str, Any]:
    """Its row of `poolctl backends`; empty if there is none."""
    items = gateway.pool.ok("backends", "-o", "json").json["items"]
    return next((each for each in items if each["host"] == name), {})


def connections(gateway: GatewayPool, name: str) -> int:
    return int(host(gateway, name)["connections"])


def status_of(gateway: GatewayPool, path: str) -> int | None:
    try:
        return gateway.get(path).status
    except OSError:
        return None


class Gateway:
    """The gateway's process, to which a test gives the answers."""

    def __init__(self, report: Table | Exception | None = None) -> None:
        self.known_report = report
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent: list[tuple[str, Any]] = []

    async def fetch_report(self) -> Table:
        if isinstance(self.known_report, Exception):
            raise self.known_report
        assert self.known_report is not None
        return self.known_report

    def report_machines(self, states: Any) -> None:
        self.sent.append(("machines", states))

    def report_server(self, facts: Any, give: Any) -> None:
        self.sent.append((facts.name, give))

    def forget_server(self, server: str) -> None:
        self.sent.append(("forget", server))

    async def withdraw_passing_socket(self, server: str, give: Any) -> None:
        self.sent.append((f"withdraw {server}", give))


class Routing:
    """Takes the routes for workers, and has no workers."""

    def publish(self, *routes: Any) -> None: ...

    def set_releasing_servers(self, servers: Any) -> None: ...

    def return_queued_connections(self, servers: Any) -> None: ...


class Manager(GatewayManager):
    """The manager of a pool, without a keeper; its process is the one that a test makes."""

    made: Any = None

    def __init__(self) -> None:
        self.desk = Desk(web("one"), web("two"))
        keeper: Any = SimpleNamespace(send=lambda *message: None)
        environment = SupervisorContext(self.desk.files, keeper, "/run", "/state", Helpers(keeper, "/run"))
        routing: Any = Routing()
        super().__init__(environment, self.desk.core, routing, self.desk.events, StateStore(keeper, ""))

    @property
    def gateway(self) -> Any:
        return self.made

    def settles(self) -> None:
        """Have every configuration applied at once from now on."""

        async def reconcile() -> None:
            self._succeeded()

        self._reconcile = reconcile  # type: ignore[method-assign]


def with_manager(scene: Callable[[Manager], Coroutine[Any, Any, None]]) -> None:
    async def work() -> None:
        manager = Manager()
        try:
            await scene(manager)
        finally:
            manager.probes.close()
            manager.routes.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_activities_of_hosts_are_unknown_while_the_process_does_not_answer() -> None:
    async def scene(manager: Manager) -> None:
        assert await manager.fetch_activity_by_host() is None
        rows = [to_json(BackendReport(host="http://a:80", requests=7, in_flight=2, waiting=1))]
        manager.made = Gateway({"hosts": rows})
        assert await manager.fetch_activity_by_host() == {"http://a:80": Activity(7, 3)}
        for error in (LinkLost("gone"), TimeoutError()):
            manager.made = Gateway(error)
            assert await manager.fetch_activity_by_host() is None

    with_manager(scene)


def test_states_of_machines_are_sent_if_there_are_any() -> None:
    async def scene(manager: Manager) -> None:
        manager.report_machines()
        manager.made = Gateway()
        manager.report_machines()
        assert manager.made.sent == []
        followed: list[object] = []
        machines: Any = SimpleNamespace(states={"a": 1}, start_machine=print, set_routes=followed.append)
        manager.use_machine_source(machines)
        assert len(followed) == 1
        assert manager.reports.on_machine_needed is print
        manager.report_machines()
        assert manager.made.sent == [("machines", {"a": 1})]

    with_manager(scene)


def test_reason_why_the_process_is_away_is_its_problem_or_its_start() -> None:
    async def scene(manager: Manager) -> None:
        assert manager.why_unavailable == "its process is starting"
        manager.problem = "port 80 is in use"
        assert manager.why_unavailable == "port 80 is in use"
        assert manager.listeners == ()

    with_manager(scene)


def test_share_of_a_canary_is_exact_for_servers_with_routes_only() -> None:
    async def scene(manager: Manager) -> None:
        assert manager.why_unsplittable_if_routed("one") is None, "there is no gateway"
        manager.tables = Tables(gateway=GatewayConfig())
        assert manager.why_unsplittable_if_routed("one") is None
        manager.routes.routes = RouteSet(servers=frozenset({"one"}))
        assert (manager.why_unsplittable_if_routed("one"), manager.why_unsplittable_if_routed("two")) == (
            "",
            None,
        )

    with_manager(scene)


def test_pair_that_was_replaced_is_not_forgotten_with_the_one_before() -> None:
    async def scene(manager: Manager) -> None:
        old, new = socket.socketpair()
        manager.use_passing_socket("one", old)
        assert manager.passes_to("one")
        manager.use_passing_socket("one", new)
        manager.made = Gateway()
        await manager.withdraw_passing_socket("one", old)
        assert manager.passes_to("one")
        await manager.withdraw_passing_socket("one", new)
        assert not manager.passes_to("one")
        orders = [name for name, _ in manager.made.sent if name.startswith("withdraw")]
        assert orders == ["withdraw one", "withdraw one"]
        old.close()
        new.close()

    with_manager(scene)


def test_socket_of_a_server_that_loses_its_route_is_not_used_for_one_of_its_name_again() -> None:
    async def scene(manager: Manager) -> None:
        for name in ("one", "two", canary_name("two")):
            give, take = socket.socketpair()
            manager.use_passing_socket(name, give)
            give.close()
            take.close()
        manager.routes.routes = RouteSet(servers=frozenset({"two"}))
        manager._on_routes_computed()
        assert [manager.passes_to(name) for name in ("one", "two", canary_name("two"))] == [False, True, True]

    with_manager(scene)


def test_gateway_that_has_failed_is_not_waited_for() -> None:
    async def scene(manager: Manager) -> None:
        assert await manager.wait_briefly_until_serving() is None, "there is no table"
        manager.tables = Tables(gateway=GatewayConfig())
        manager.problem = "port 80 is in use"
        assert await manager.wait_briefly_until_serving() is None
        manager.problem = ""
        waiting = asyncio.ensure_future(manager.wait_briefly_until_serving())
        await asyncio.sleep(0)
        assert not waiting.done()
        manager.problem = "port 80 is in use"
        manager._notify_changed()
        assert await waiting is None

    with_manager(scene)


def test_changes_of_addresses_are_recorded_once() -> None:
    async def scene(manager: Manager) -> None:
        messages: list[str] = []
        manager.desk.events.subscribe(lambda event: messages.append(f"{event.event}: {event.message}"))
        for addresses in ((), ("a:80",), ("a:80",), ("a:80", "b:81"), ()):
            plan: Any = SimpleNamespace(listeners=dict.fromkeys(addresses))
            manager._record_event_if_addresses_changed(plan)
        manager.desk.events.flush()
        assert messages == [
            "gateway started: the gateway serves a:80", "gateway moved: the gateway serves a:80, b:81",
        ]  # fmt: skip

    with_manager(scene)


def test_closed_manager_ends_its_probes_and_computes_no_routes() -> None:
    async def work() -> None:
        manager = Manager()
        closed: list[str] = []
        for part in ("probes", "routes"):
            of_part, close = getattr(manager, part), getattr(manager, part).close
            of_part.close = lambda part=part, close=close: (close(), closed.append(part))
        loop = asyncio.get_running_loop()
        manager._renewal, manager._zygote_timer = loop.call_later(1000, print), loop.call_later(1000, print)
        await manager.aclose()
        assert closed == ["probes", "routes"]
        assert manager._renewal.cancelled()
        assert manager._zygote_timer.cancelled()

    asyncio.run(asyncio.wait_for(work(), 60))


class Orders(Gateway):
    """Keeps each order in `sent`; `wait_until_performed` waits as long as the test says."""

    mark = "m"

    def __init__(self, report: Table | Exception | None = None) -> None:
        super().__init__(report)
        self.listeners = {"gone:1"}
        self.servers: set[str] = set()
        self.performs: Callable[[], Coroutine[Any, Any, None]] | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given, **more: self.sent.append((name, (*given, *more.items())))

    async def wait_until_performed(self) -> None:
        self.sent.append(("performed", ()))
        if self.performs is not None:
            await self.performs()

    async def wait_briefly_until_unused(self, server: str) -> None:
        self.sent.append(("unused", server))

    async def finish(self, seconds: float) -> None:
        self.sent.append(("finish", seconds))

    @property
    def names(self) -> list[str]:
        """The names of the orders since the last time."""
        found = [name for name, _ in self.sent]
        self.sent.clear()
        return found


@pytest.mark.parametrize(
    ("server", "engine", "orders", "seconds"),
    [
        ("one", "poolctl", [], 0.0),
        pytest.param("one", "haproxy", ["forget", "forget", "unused"], 0.05, marks=needs("haproxy")),
        ("canary", "poolctl", ["forget", "forget", "unused"], 0.05),
    ],
)
def test_gateway_knows_of_workers_that_leave_where_it_sends_them_requests_itself(
    server: str, engine: str, orders: list[str], seconds: float
) -> None:
    async def scene() -> None:
        manager = Manager()
        name = canary_name("one") if server == "canary" else server
        await manager.announce_workers_exit(name)
        assert loop.time() == 0.0, "there is no process"
        manager.tables = Tables(gateway=GatewayConfig(engine=engine))
        manager.made = manager._process = Orders()
        await manager.announce_workers_exit(name)
        assert (manager.made.names, loop.time()) == (orders, seconds)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()


def test_process_gets_the_whole_state_in_an_order_in_which_it_can_use_it() -> None:
    async def scene(manager: Manager) -> None:
        orders = manager.made = Orders()
        manager._sync(orders)
        assert orders.sent == [], "nothing is planned yet"
        own: Any = ("give", "take")
        manager._own = own
        manager._sync(orders)
        assert orders.sent == []
        settings = GatewaySettings(directory="/run")
        certificate = Certificate("a:1", ("a.example",), {"ciphers": None}, (b"cert", b"key"), "digest")
        route = StreamRoute(alias="db", bind="127.0.0.1:2", to=(Target(url="127.0.0.1:9"),))
        web_listener = ListenerSettings(bind="127.0.0.1:1")
        db = ListenerSettings(bind="127.0.0.1:2", protocol="tcp", alias="db")
        closed = ListenerSettings(bind="127.0.0.1:3")
        listeners = {each.key: each for each in (web_listener, db, closed)}
        manager._current = GatewayPlan(settings, listeners, {db.key: route}, (certificate,))
        orders.listeners = {"gone:1", db.key}
        manager.reports.hosts = {"hosts": []}
        manager.routes.routes = RouteSet(servers=frozenset({"one"}))
        manager.routes.generation = 7
        table: Any = object()
        manager.routes.table = table
        machines: Any = SimpleNamespace(states={"a": 1}, start_machine=print, set_routes=print)
        manager.machines = machines
        orders.servers = {"one", "former"}
        sockets = [socket.socket() for _ in range(2)]
        manager._listeners._open = {web_listener.key: sockets[:1], db.key: sockets[1:]}
        contents: list[bytes] = []

        def use_certificate(bind: str, names: Any, tls: Any, mark: object, fds: list[int]) -> None:
            contents.extend(os.pread(fd, 100, 0) for fd in fds)
            orders.sent.append(("use_certificate", (bind, names, tls, mark)))

        orders.use_certificate = use_certificate
        manager._sync(orders)
        marks = [(os.fstat(each.fileno()).st_ino,) for each in sockets]
        facts = ("one", None)
        assert orders.sent == [
            ("configure", (settings,)), ("set_return_socket_pair", own),
            ("restore_hosts", ({"hosts": []},)), facts,
            ("forget", canary_name("one")), ("report_probes", ({},)),
            ("use_certificate", ("a:1", ("a.example",), {"ciphers": None}, "digest")),
            ("keep_certificates", ({"a:1": [("a.example",)]},)), ("machines", {"a": 1}),
            ("publish", (7, table, ("workers_may_keep", False))), ("forget", "former"),
            ("listen", (web_listener, None, marks[0], sockets[:1])), ("listen", (db, route, marks[1], sockets[1:])),
            ("close_listener", ("gone:1",)),
        ]  # fmt: skip
        assert contents == [b"cert", b"key"]
        manager._own = None
        manager.routes.table = None
        for each in sockets:
            each.close()

    with_manager(scene)


def test_pair_for_passed_connections_is_kept_for_the_next_supervisor_and_dropped_at_the_end() -> None:
    async def scene(manager: Manager) -> None:
        kept: list[tuple[dict[str, Any], list[int]]] = []

        def send(message: dict[str, Any], fds: Iterable[socket.socket] = ()) -> None:
            kept.append((message, [each.fileno() for each in fds]))

        async def call(message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
            assert message == {"op": "get", "name": "gateway pair"}
            return {}, [os.dup(fd) for fd in kept[0][1]] if kept else []

        keeper: Any = manager._keeper
        keeper.send, keeper.call = send, call
        await manager._adopt_pair_if_stored()
        assert manager._own is None
        manager._create_and_store_pair()
        assert manager._own is not None
        give, take = manager._own
        assert [give.getblocking(), take.getblocking()] == [False, False]
        assert kept == [({"op": "put", "name": "gateway pair"}, [give.fileno(), take.fileno()])]
        await manager._adopt_pair_if_stored()
        adopted = manager._own
        assert [os.fstat(each.fileno()).st_ino for each in adopted] == [
            os.fstat(each.fileno()).st_ino for each in (give, take)
        ]
        give.close()
        take.close()
        manager._served = ("a",)
        await manager._shut_down()
        assert (manager._own, manager._current, manager._served) == (None, None, ())
        assert [each.fileno() for each in adopted] == [-1, -1]
        assert kept[1:] == [({"op": "drop", "name": "gateway pair"}, [])]
        await manager._shut_down()
        assert len(kept) == 2

    with_manager(scene)


def test_gateway_finishes_its_connections_within_the_drain_timeout() -> None:
    async def scene(manager: Manager) -> None:
        messages: list[dict[str, Any]] = []
        keeper: Any = manager._keeper
        keeper.send = messages.append
        await manager.finish()
        assert (manager._over, messages) == (True, [])
        orders = manager.made = manager._process = Orders()
        await manager.finish()
        assert orders.sent == [], "it has no plan to drain by"
        manager._current = GatewayPlan(GatewaySettings(directory="/run", drain_seconds=7.5), {}, {}, ())
        ended: list[str] = []
        zygote: Any = SimpleNamespace(end=lambda: ended.append("zygote"))
        manager._zygote = zygote
        await manager.finish()
        assert orders.sent == [("finish", 7.5)]
        assert manager._process is None
        assert (ended, manager._zygote) == (["zygote"], None)
        assert messages == [
            {"op": "drop", "name": "gateway zygote"}, {"op": "drop", "name": GatewayManager.entry},
        ]  # fmt: skip

    with_manager(scene)


@pytest.mark.parametrize(
    ("has_process", "ending", "why"),
    [
        (False, "", "its process is still starting"),
        (True, "", "its process does not answer"),
        (True, "one", "connections that workers of one have are ended first"),
    ],
)
def test_configuration_that_is_not_in_force_in_time_is_a_warning(
    has_process: bool, ending: str, why: str
) -> None:
    async def scene(manager: Manager) -> None:
        manager.settles()
        assert await manager.await_applied_or_warning(60.0) == "", "there is nothing to wait for"
        manager.tables = Tables(gateway=GatewayConfig())
        if has_process:
            manager.made = manager._process = Orders()
            assert await manager.await_applied_or_warning(60.0) == ""
            assert manager.made.names == ["performed"]
            manager.made.performs = asyncio.Event().wait
        manager._ending_kept = ending
        assert (
            await manager.await_applied_or_warning(0.01)
            == f"[gateway]: not everything is in force yet: {why}"
        )
        manager._process = None

    with_manager(scene)


def test_process_that_ends_while_it_is_waited_for_is_waited_for_again() -> None:
    async def scene(manager: Manager) -> None:
        manager.settles()
        assert await manager.await_applied_or_warning(60.0) == ""
        manager.tables = Tables(gateway=GatewayConfig())
        orders = manager.made = manager._process = Orders()

        async def end() -> None:
            manager.made = manager._process = None
            orders.exited.set_result(None)
            raise LinkLost("it has ended")

        orders.performs = end
        waiting = asyncio.ensure_future(manager.await_applied_or_warning(60.0))
        await orders.exited
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        manager.made = manager._process = Orders()
        manager._notify_changed()
        assert await waiting == ""
        assert manager.made.names == ["performed"]
        manager._process = None

    with_manager(scene)


def test_passed_connections_of_a_server_end_with_its_workers() -> None:
    async def scene(manager: Manager) -> None:
        manager.settles()
        recorded: list[tuple[str, str]] = []
        manager.desk.events.subscribe(
            lambda event: recorded.append((event.event, event.message)) if event.kind == "pool" else None
        )
        await manager.desk.ask("start")
        one = manager.desk.core.entries["one"]
        await manager._replace_workers_to_end_connections(frozenset({"one", "unknown"}), only_adopted=True)
        manager.desk.events.flush()
        assert (recorded, one.desired.generation) == ([], 1), "its worker is this supervisor's own"
        orders = manager.made = Orders()
        lost = asyncio.get_running_loop().create_future()

        async def end() -> None:
            if orders.exited.done():
                return
            orders.exited.set_result(None)
            lost.set_result(manager._ending_kept)
            raise LinkLost("it has ended")

        orders.performs = end
        await manager._replace_workers_to_end_connections(frozenset({"one", "unknown"}), only_adopted=False)
        assert (await lost, orders.names, manager._ending_kept) == ("", ["performed"] * 2, "")
        manager.desk.events.flush()
        message = "one: connections that the gateway has passed are ended, as servers of other users follow"
        assert recorded == [("passed connections ended", message)]
        assert one.desired.generation == 2
        assert {each.generation for each in one.observed.workers.values()} == {2}
        assert manager.desk.core.entries["two"].desired.generation == 1

    with_manager(scene)


class Zygote:
    """A zygote whose forks are lost as often as `lost` says."""

    lost = 0
    made: ClassVar[list[Zygote]] = []

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_up = False
        self.kept: list[str] = []
        self.ended = False
        Zygote.made.append(self)

    output = "zygote.log"

    @staticmethod
    def mark_for(mark: str) -> str:
        return f"zygote {mark}"

    @classmethod
    async def spawn(cls, keeper: object, directory: str, mark: str) -> Zygote:
        assert directory == "/run"
        return cls(mark)

    @classmethod
    async def adopt(cls, keeper: object, entry: str) -> None:
        """The previous supervisor has left none."""

    def save_to_keeper(self, keeper: object, name: str) -> None:
        self.kept.append(name)

    async def fork(self, mark: str) -> str:
        if Zygote.lost:
            Zygote.lost -= 1
            raise LinkLost("it was killed")
        return f"process {mark}"

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def zygotes(monkeypatch: pytest.MonkeyPatch) -> list[Zygote]:
    monkeypatch.setattr(gateway_manager, "GatewayZygote", Zygote)
    monkeypatch.setattr(Zygote, "made", [])
    monkeypatch.setattr(Zygote, "lost", 0)
    return Zygote.made


def test_zygote_that_is_lost_is_replaced_once(zygotes: list[Zygote]) -> None:
    async def scene(manager: Manager) -> None:
        settings = GatewaySettings(directory="/run")
        plan = GatewayPlan(settings, {}, {}, ())
        mark = settings.mark
        found: Any = await manager._launch_process(plan)
        assert (found, [each.mark for each in zygotes]) == (f"process {mark}", [f"zygote {mark}"])
        assert zygotes[0].kept == ["gateway zygote"]
        Zygote.lost = 1
        found = await manager._launch_process(plan)
        assert (found, [each.ended for each in zygotes]) == (f"process {mark}", [True, False])
        Zygote.lost = 2
        with pytest.raises(LinkLost, match=r"its process ended at its start; see /run/zygote\.log"):
            await manager._launch_process(plan)
        assert [each.ended for each in zygotes] == [True] * 3
        assert manager._zygote is None

    with_manager(scene)


def test_zygote_is_replaced_when_it_has_ended_or_is_for_other_settings(zygotes: list[Zygote]) -> None:
    async def scene(manager: Manager) -> None:
        for mark in ("a", "a", "b", "b"):
            await manager._ensure_zygote(mark)
        assert [each.mark for each in zygotes] == ["zygote a", "zygote b"]
        zygotes[1].exited.set_result(None)
        await manager._ensure_zygote("b")
        assert [(each.mark, each.ended) for each in zygotes] == [
            ("zygote a", True), ("zygote b", True), ("zygote b", False),
        ]  # fmt: skip

    with_manager(scene)


@needs("haproxy")
@pytest.mark.parametrize(("is_up", "seconds"), [(True, 1.0), (False, 60.0)])
def test_zygote_that_has_ended_is_replaced_soon_or_later_if_it_never_came_up(
    zygotes: list[Zygote], is_up: bool, seconds: float
) -> None:
    async def scene() -> None:
        manager = Manager()
        await manager._ensure_zygote(GatewaySettings(directory="/run").mark)
        zygotes[0].is_up = is_up
        zygotes[0].exited.set_result(None)
        await asyncio.sleep(seconds - 0.01)
        assert len(zygotes) == 1
        await asyncio.sleep(0.02)
        assert len(zygotes) == 1, "nothing is planned"
        manager._schedule_zygote(0.5)
        manager._schedule_zygote()
        manager._current = GatewayPlan(GatewaySettings(directory="/run"), {}, {}, ())
        await asyncio.sleep(0.9)
        assert len(zygotes) == 1, "the later time counts"
        await asyncio.sleep(0.2)
        assert len(zygotes) == 2
        for changes in ({"engine": "haproxy"}, {}):
            manager._over = not changes
            manager._current = GatewayPlan(GatewaySettings(directory="/run", **changes), {}, {}, ())
            zygotes[1].mark = "outdated"
            manager._schedule_zygote()
            await asyncio.sleep(2.0)
            assert len(zygotes) == 2

    loop = VirtualLoop()
    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()


@needs("haproxy")
def test_other_engine_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def spawn(keeper: object, directory: str, mark: str, part: str) -> tuple[str, str, str]:
        return directory, mark, part

    monkeypatch.setattr(GatewayProcess, "spawn", spawn)

    async def scene(manager: Manager) -> None:
        settings = GatewaySettings(directory="/run", engine="haproxy", program="/bin/true")
        found: Any = await manager._launch_process(GatewayPlan(settings, {}, {}, ()))
        assert found == ("/run", settings.mark, "features.haproxy")

    with_manager(scene)


@needs("haproxy")
def test_program_that_is_missing_is_a_problem_before_listeners_are_opened() -> None:
    async def scene(manager: Manager) -> None:
        plan = GatewayPlan(
            GatewaySettings(directory="/run", engine="haproxy", program="/no/haproxy"), {}, {}, ()
        )
        with pytest.raises(ServerError, match="/no/haproxy is not installed; ") as refused:
            await manager._check_engine(plan)
        assert "write where it is" in str(refused.value)
        manager.made = Orders()
        with pytest.raises(ServerError):
            await manager._check_engine(plan)
        manager.made.mark = plan.settings.mark
        await manager._check_engine(plan)
        manager.made = None
        await manager._check_engine(GatewayPlan(GatewaySettings(directory="/run"), {}, {}, ()))

    with_manager(scene)


def test_adopted_process_is_sent_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(manager: Manager) -> None:
        orders = Orders()

        async def adopt(keeper: object, entry: str) -> Orders:
            assert entry == GatewayManager.entry
            return orders

        async def call(message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
            return {"entries": []}, []

        monkeypatch.setattr(GatewayProcess, "adopt", adopt)
        keeper: Any = manager._keeper
        keeper.call = call
        await manager._adopt()
        assert orders.names == ["begin_resync", "begin_serving"], "nothing is planned"
        process: Any = manager._process
        assert process is orders
        assert (manager._current, manager._served) == (None, ())
        manager._process = None

    with_manager(scene)


def test_addresses_of_an_adopted_process_are_not_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GatewaySettings(directory="/run")
    opened, planned = ListenerSettings(bind="127.0.0.1:1"), ListenerSettings(bind="127.0.0.1:2", alias="db")

    async def plan() -> GatewayPlan:
        route = StreamRoute(alias="db", bind=planned.bind, to=(Target(url="127.0.0.1:9"),))
        return GatewayPlan(settings, {each.key: each for each in (opened, planned)}, {planned.key: route}, ())

    async def scene(manager: Manager) -> None:
        without_predecessor(manager, monkeypatch)

        async def adopt(keeper: object, entry: str) -> Orders:
            return Orders()

        monkeypatch.setattr(GatewayProcess, "adopt", adopt)
        monkeypatch.setattr(manager, "_plan", plan)
        manager._listeners.settings = {opened.key: opened}
        recorded: list[str] = []
        manager.desk.events.subscribe(lambda event: recorded.append(event.event))
        await manager._adopt()
        assert manager._current is not None
        assert [*manager._current.listeners] == [opened.key], "the other is not open yet"
        manager._record_event_if_addresses_changed(manager._current)
        manager._record_event_if_addresses_changed(await plan())
        manager.desk.events.flush()
        assert recorded == ["gateway moved"]
        manager._process = None

    with_manager(scene)


@pytest.mark.parametrize("is_of_keeper", [True, False])
def test_zygote_of_the_previous_supervisor_is_used_unless_another_keeper_has_started_it(
    monkeypatch: pytest.MonkeyPatch, zygotes: list[Zygote], is_of_keeper: bool
) -> None:
    async def scene(manager: Manager) -> None:
        without_predecessor(manager, monkeypatch)
        found: Any = Zygote(Zygote.mark_for("m"))
        found.is_of_keeper = is_of_keeper

        async def adopt(keeper: object, entry: str) -> Any:
            assert entry == "gateway zygote"
            return found

        monkeypatch.setattr(Zygote, "adopt", adopt)
        delays: list[float] = []
        monkeypatch.setattr(manager, "_schedule_zygote", delays.append)
        await manager._adopt()
        assert (manager._zygote, found.ended) == ((found, False) if is_of_keeper else (None, True))
        found.exited.set_result(None)
        await asyncio.sleep(0)
        assert delays == [1.0], "it had come up"
        await manager._ensure_zygote("m")
        assert len(zygotes) == 2

    with_manager(scene)


def without_predecessor(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the keeper hold nothing of a previous supervisor."""

    async def adopt(keeper: object, entry: str) -> None:
        return None

    async def call(message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        return {"entries": []}, []

    monkeypatch.setattr(GatewayProcess, "adopt", adopt)
    keeper: Any = manager._keeper
    keeper.call = call


def test_no_gateway_is_started_while_one_that_outlived_its_pool_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def search(self: GatewaySearch) -> None:
        self.silent = True

    monkeypatch.setattr(GatewaySearch, "find_orphan_and_drain_others", search)

    async def scene(manager: Manager) -> None:
        without_predecessor(manager, monkeypatch)
        with pytest.raises(TimeoutError, match="outlived keeper and supervisor does not answer yet"):
            await manager._reconcile()

    with_manager(scene)


@pytest.mark.parametrize(
    ("certificates", "times"),
    [((), [0.0, 0.0]), ((Certificate("a:1", (), {}, (), "digest"),), [0.0, 0.0, 30.0, 60.0])],
)
@pytest.mark.usefixtures("zygotes")
def test_certificates_are_read_again_every_half_minute_if_there_are_any(
    monkeypatch: pytest.MonkeyPatch, certificates: tuple[Certificate, ...], times: list[float]
) -> None:
    read: list[float] = []
    settings = GatewaySettings(directory="/run")

    async def plan() -> GatewayPlan:
        read.append(loop.time())
        return GatewayPlan(settings, {}, {}, certificates)

    async def scene() -> None:
        manager = Manager()
        without_predecessor(manager, monkeypatch)
        monkeypatch.setattr(manager, "_plan", plan)
        manager.made = manager._process = Orders()
        manager.made.mark = settings.mark
        for _ in range(2):
            await manager._reconcile()
        await asyncio.sleep(75.0)
        assert read == times
        for each in manager._own or ():
            each.close()

    loop = VirtualLoop()
    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()


def test_problem_of_a_gateway_ends_with_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(manager: Manager) -> None:
        without_predecessor(manager, monkeypatch)
        manager._report_problem(ServerError("port 80 is in use"))
        assert manager.problem == "port 80 is in use"
        await manager._reconcile()
        assert (manager.failures, manager.problem) == ((), "")

    with_manager(scene)
