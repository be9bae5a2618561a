"""The registry of a running pool: it follows each change of the routes, over supervisors, from any thread and fork."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from poolctl.control.client import Client, NoSupervisor
from poolctl.control.pool_client import PoolClient
from poolctl.feature import FEATURES
from poolctl.gateway.routes import ExcludedRoute, StreamRoute
from tests.features.gateway.conftest import GatewayPool
from tests.http_get import get
from tests.ports import claim_port

pytestmark = pytest.mark.integration

ROUTES = """
[[route]]
alias = "one"
host = "one.example.com"
to = "one"
add_headers = { Authorization = "Bearer ${TOKEN}" }
[[route]]
alias = "users"
path = "/users"
register = true
[[route]]
alias = "none"
path = "/none"
to = "off"
[[server]]
name = "off"
bind = "127.0.0.1:%d"
app = "hello:app"
disabled = true
[[stream]]
alias = "db"
bind = "127.0.0.1:%d"
to = ["127.0.0.1:1"]
"""


def client_of(gateway: GatewayPool) -> PoolClient:
    (found,) = gateway.pool.runtime.rglob("control.sock")
    return PoolClient(Client(str(found)))


@pytest.mark.skipif("registration" not in FEATURES, reason="there is no registration")
def test_registry_is_live_read_only_and_without_secrets(gateway: GatewayPool) -> None:
    gateway.pool.env["TOKEN"] = "a-bearer-token"
    gateway.pool.write("hello.py", "")
    gateway.start(ROUTES % (claim_port(), claim_port()))
    client = client_of(gateway)
    with client.registry() as registry:
        one = registry.http.get("one")
        assert one is not None
        assert [(each.name, each.value) for each in one.add_headers] == [("authorization", "********")]
        assert registry.get_http_route_or_exact("unknown", "one.example.com") == one
        assert isinstance(registry.get("db"), StreamRoute)
        assert (registry.num_active, registry.num_all, registry.connected) == (3, 4, True)
        assert [each.alias for each in registry.iter_all()] == ["one", "users", "db", "none"]
        (none,) = registry.excluded
        assert isinstance(none, ExcludedRoute)
        assert none.reason
        assert {name: len(its) for name, its in registry.by_provider().items()} == {"file": 4}
        # What a command has changed is there when it returns, and in every thread.
        for number in range(5):
            url = f"http://127.0.0.1:{number + 1}"
            client.register("users", url)
            users = registry.http.get("users")
            assert users is not None
            assert url in [target.url for target in users.to]
        client.register("own", "http://127.0.0.1:9", path="/own")
        seen: list[object] = []
        threads = [threading.Thread(target=lambda: seen.append(registry.get("own"))) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert seen == [registry.get("own")] * 4
        assert seen[0] is not None
        # A fork has a connection of its own.
        child = os.fork()
        if child == 0:
            code = 1
            try:
                client.register("forked", "http://127.0.0.1:9", path="/forked")
                code = 0 if registry.get("forked") is not None and registry.connected else 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert registry.get("forked") is not None
        # The next supervisor goes on with it.
        before = registry.snapshot()
        supervisor = gateway.pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        assert registry.get("own") is not None
        gateway.until(lambda: gateway.pool.info()["supervisor_pid"] != supervisor)
        client.unregister("own")
        gateway.until(lambda: registry.get("own") is None)
        gateway.until(lambda: registry.connected)
        assert before.get("own") is not None
        gateway.pool.ok("stop")
        assert registry.get("one") is not None  # the last ones that are known
        gateway.until(lambda: not registry.connected)
    with pytest.raises(NoSupervisor):
        client.registry()


@pytest.mark.heavy
def test_registry_is_empty_without_a_gateway_and_follows_one_that_a_reload_adds(gateway: GatewayPool) -> None:
    gateway.write()
    text = (gateway.pool.directory / "pool.toml").read_text()
    gateway.pool.write("pool.toml", text[text.index("[[server]]") :])
    gateway.pool.ok("start")
    with client_of(gateway).registry() as registry:
        assert (registry.num_all, registry.get("one"), registry.generation) == (0, None, 0)
        gateway.pool.write("pool.toml", text)
        gateway.pool.ok("reload")
        gateway.until(lambda: registry.num_active == 2)
        gateway.pool.write("pool.toml", text[text.index("[[server]]") :])
        gateway.pool.ok("reload")
        gateway.until(lambda: registry.num_all == 0)


@pytest.mark.heavy
@pytest.mark.skipif("registration" not in FEATURES, reason="there is no registration")
def test_closed_registry_keeps_its_routes(gateway: GatewayPool) -> None:
    gateway.start()
    client = client_of(gateway)
    registry = client.registry()
    registry.close()
    client.register("own", "http://127.0.0.1:9", path="/own")
    assert (registry.get("own"), registry.connected, registry.num_all) == (None, False, 2)


APP = """
import json
from poolctl.gateway.routes import registry_of

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    registry = registry_of(scope)
    found = [[route.alias, route.host, route.path] for route in registry.http]
    body = json.dumps([registry.num_active, found, repr(registry.get("two"))]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


def test_application_has_the_routes_of_its_workers_table(gateway: GatewayPool) -> None:
    (gateway.pool.directory / "seen.py").write_text(APP)
    gateway.write()
    text = (gateway.pool.directory / "pool.toml").read_text().replace("tests.load.apps:app", "seen:app")
    gateway.pool.write("pool.toml", text)
    gateway.pool.ok("start")
    gateway.until(gateway.process)
    # Workers may serve before they have the table.
    count, found, _ = gateway.until(lambda: (its := json.loads(gateway.get("/one").body))[0] and its)
    assert (count, found) == (2, [["one", "", "/one"], ["two", "", "/two"]])
    past = json.loads(get(gateway.ports["one"], "/one").body)
    assert past == [0, [], "None"]
    three = '[[route]]\nalias = "three"\nto = "two"\npath = "/three"\n'
    own = '[[route]]\nto = "http://127.0.0.1:9"\npath = "/own"\n'
    gateway.pool.write("pool.toml", text + three + own)
    gateway.pool.ok("reload")
    # Those to other machines are none of its user's servers.
    gateway.until(lambda: json.loads(gateway.get("/one").body)[0] == 3)
