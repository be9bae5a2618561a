"""What a client asks a running pool for each of its methods, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poolctl import connect
from poolctl.control.answers import Result
from poolctl.control.client import Client, NoSupervisor
from poolctl.control.pool_client import PoolClient, find_socket
from poolctl.control.pool_paths import pool_key
from poolctl.errors import PoolMonitorError, PoolParamError, PoolRestartError, PoolStartError, PoolStopError
from tests.deadline import wait_until
from tests.stand_in import Send, always, item, stand_in


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "control.sock"


def client(path: Path) -> PoolClient:
    return PoolClient(Client(str(path)))


def test_service_sends_heartbeats_within_its_block_and_unregisters_at_the_end(path: Path) -> None:
    away = threading.Event()

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        failed = away.is_set() and verb == "register"  # another supervisor is starting
        return {"items": [], "errors": [], "exit_code": 1 if failed else 0}

    with stand_in(path, answer) as requests:
        threads = threading.active_count()
        with client(path).register("users", "http://10.0.0.7:9000", ttl=0.003, path="/users"):
            wait_until(lambda: len(requests) > 3)
            away.set()
            seen = len(requests)
            wait_until(lambda: len(requests) > seen + 2)
        assert threading.active_count() == threads
    (first, body), *others, (last, end) = requests
    options = {"name": "users", "to": "http://10.0.0.7:9000", "weight": 1, "ttl": 0.003, "path": "/users"}
    assert (first, body["options"]) == ("register", options)
    assert {verb for verb, _ in others} == {"register"}
    assert (last, end["options"]) == ("unregister", {"name": "users", "to": "http://10.0.0.7:9000"})


def test_service_without_a_time_to_live_has_no_thread(path: Path) -> None:
    url = f"unix:{os.path.abspath('app.sock')}"
    with stand_in(path, always()) as requests:
        threads = threading.active_count()
        with client(path).register("users", "unix:app.sock") as service:
            assert threading.active_count() == threads
            assert repr(service) == f"<RegisteredAs users {url}>"
    assert [(verb, body["options"]) for verb, body in requests] == [
        ("register", {"name": "users", "to": url, "weight": 1}), ("unregister", {"name": "users", "to": url}),
    ]  # fmt: skip


def test_wrong_time_and_a_missing_supervisor_are_errors(path: Path) -> None:
    pool = client(path)
    with pytest.raises(PoolParamError, match="ttl"):
        pool.register("users", "http://10.0.0.7:9000", ttl="soon")
    with pytest.raises(PoolParamError, match="for_seconds"):
        pool.disable_host("users", for_seconds=-1)
    for ask in (lambda: pool.register("users", "http://10.0.0.7:9000"), pool.registry):
        with pytest.raises(NoSupervisor):
            ask()


def test_upgrade_is_forced_only_on_demand_and_its_failure_is_an_error() -> None:
    class Upgrading(Client):
        def __init__(self) -> None:
            super().__init__("/nowhere")
            self.forced: list[bool] = []
            self.exit_code = 0

        def upgrade(self, *, force: bool) -> Result:
            self.forced.append(force)
            return Result(exit_code=self.exit_code)

    client = Upgrading()
    pool = PoolClient(client)
    assert pool.upgrade()["exit_code"] == pool.upgrade(force=True)["exit_code"] == 0
    assert client.forced == [False, True]
    client.exit_code = 1
    with pytest.raises(PoolRestartError, match="upgrade"):
        pool.upgrade()


def test_a_pool_is_connected_to_by_its_file_by_its_name_and_by_the_working_directory(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(short_path / "run"))
    file = short_path / "pool.toml"
    file.write_text("")
    directory = short_path / "run" / pool_key(str(file))
    directory.mkdir(parents=True, mode=0o700)
    (directory / "info.json").write_text('{"name": "shop"}')
    monkeypatch.chdir(short_path)
    with stand_in(directory / "control.sock", always(item("web"), version="1")):
        for which in (file, str(file), "pool.toml", "shop", None):
            pool = connect(which)
            assert pool.list()["items"][0]["name"] == "web"
            assert "control.sock" in repr(pool)
        file.unlink()
        assert connect("pool.toml").list()["items"], "the file may be missing"
    for nothing in ("nobody", file, None):
        with pytest.raises(NoSupervisor):
            connect(nothing)
    assert find_socket(str(file), {"POOLCTL_RUNTIME_DIR": str(short_path / "run")}).startswith(str(directory))


def test_client_in_a_with_statement_stops_nothing(path: Path) -> None:
    async def work() -> None:
        async with client(path) as pool:
            pool.list()

    with stand_in(path, always(item("web"))) as requests:
        with client(path) as pool:
            pool.list()
        asyncio.run(work())
    assert [verb for verb, _ in requests] == ["list", "list"]


def test_url_of_a_server_is_what_its_clients_use(path: Path) -> None:
    items = [item("web", expose="https://example.org/shop"), item("queue", expose=None)]
    with stand_in(path, always(*items)):
        pool = client(path)
        assert pool.url("web", "/me") == "https://example.org/shop/me"
        for name, words in (("wep", "did you mean 'web'"), ("queue", "'queue' has no URL")):
            with pytest.raises(PoolParamError, match=words):
                pool.url(name)


def test_a_pool_that_is_not_as_desired_is_no_error_of_status(path: Path) -> None:
    with stand_in(path, always(item("web", state="failed"), exit_code=3)):
        assert client(path).status()["exit_code"] == 3


def test_a_difference_is_no_error_of_a_dry_run(path: Path) -> None:
    with stand_in(path, always(exit_code=3, changes=[{"name": "web", "change": "add"}])):
        done = client(path).reload(dry_run=True)
    assert (done["exit_code"], done["changes"][0]["name"]) == (3, "web")


def test_a_server_is_added_as_a_mapping_by_keywords_or_as_a_configuration(path: Path) -> None:
    from poolctl import ServerConfig

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with stand_in(path, always(item("new"))) as requests:
        pool = client(path)
        pool.add(name="a", bind=":1", app="m:a")
        pool.add({"name": "b"}, bind=":2", base_dir="/srv")
        pool.add(ServerConfig(name="c", bind="127.0.0.1:3", command=["echo", "${HOME}"]))
        with pytest.raises(PoolParamError, match="object of this process"):
            pool.add(ServerConfig(name="d", bind="127.0.0.1:4", app=app))
    first, second, third = (body["options"]["server"] for _, body in requests)
    assert (first, second) == ({"name": "a", "bind": ":1", "app": "m:a"}, {"name": "b", "bind": ":2"})
    assert requests[1][1]["options"]["base_dir"] == "/srv"
    assert (third["name"], third["bind"], third["command"]) == ("c", "127.0.0.1:3", ["echo", "$${HOME}"])


def test_the_number_of_workers_may_stand_last_as_on_the_command_line(path: Path) -> None:
    with stand_in(path, always(item("web"))) as requests:
        pool = client(path)
        pool.scale("web", 4)
        for wrong in ((), ("web",), (3, 4)):
            with pytest.raises(PoolParamError):
                pool.scale(*wrong)
        with pytest.raises(PoolParamError):
            pool.scale("web", 3, workers=4)
    ((_, body),) = requests
    assert (body["selector"]["targets"], body["options"]["workers"]) == (["web"], 4)


NOTHING: dict[str, Any] = {}
WAITING = {"timeout": None, "wait": True}
ORDERED = {**WAITING, "deps": True}
LIVE = {**WAITING, "all": False}
RELOAD = {"dry_run": False, "env": None, "timeout": None, "wait": True}
ASKED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("list", NOTHING, NOTHING),
    ("show", NOTHING, {"reveal": False}),
    ("show", {"reveal": True}, {"reveal": True}),
    ("status", NOTHING, NOTHING),
    ("stats", NOTHING, NOTHING),
    ("stacks", NOTHING, NOTHING),
    ("start", NOTHING, ORDERED),
    ("start", {"timeout": "1m30s", "deps": False, "wait": False},
     {"timeout": 90.0, "wait": False, "deps": False}),
    ("stop", NOTHING, ORDERED),
    ("stop", {"timeout": timedelta(minutes=1), "wait": False, "deps": False},
     {"timeout": 60.0, "wait": False, "deps": False}),
    ("restart", NOTHING, ORDERED),
    ("scale", {"workers": 2}, {**LIVE, "workers": 2}),
    ("scale", {"auto": True, "all": True}, {**WAITING, "all": True, "auto": True}),
    ("drain", NOTHING, {"all": False}),
    ("undrain", {"all": True}, {"all": True}),
    ("enable", NOTHING, LIVE),
    ("enable", {"wait": False, "all": True}, {**LIVE, "wait": False, "all": True}),
    ("disable", NOTHING, LIVE),
    ("remove", NOTHING, {**LIVE, "deps": True}),
    ("remove", {"deps": False}, {**LIVE, "deps": False}),
    ("wait", NOTHING, {"timeout": None, "for": "ready"}),
    ("wait", {"until": "stopped", "timeout": 1}, {"timeout": 1, "for": "stopped"}),
    ("reload", NOTHING, RELOAD),
    ("reload", {"dry_run": True, "env": {"A": "1"}, "timeout": 2, "wait": False},
     {"dry_run": True, "env": {"A": "1"}, "timeout": 2, "wait": False}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "keys", "options"), ASKED)
def test_each_method_asks_its_verb_with_its_defaults_and_returns_the_document(
    path: Path, method: str, keys: dict[str, Any], options: dict[str, Any]
) -> None:
    with stand_in(path, always(item("web"))) as requests:
        ask = getattr(client(path), method)
        document = ask("web", "a*", selector={"tag": ["api"]}, **keys)
    assert document["items"][0]["name"] == "web"
    assert requests == [
        (method, {"selector": {"targets": ["web", "a*"], "tag": ["api"]}, "options": options})
    ]


WITHOUT_SELECTOR: list[tuple[str, tuple[str, ...], dict[str, Any], str, dict[str, Any]]] = [
    ("routes", (), NOTHING, "routes", NOTHING),
    ("hosts", (), NOTHING, "hosts", NOTHING),
    ("disable_host", ("users", "orders"), {"for_seconds": "1m"},
     "host", {"op": "disable", "hosts": ["users", "orders"], "for": 60.0}),
    ("disable_host", ("users",), NOTHING, "host", {"op": "disable", "hosts": ["users"], "for": None}),
    ("enable_host", ("users",), NOTHING, "host", {"op": "enable", "hosts": ["users"], "for": None}),
    ("drain_host", ("orders",), NOTHING, "host", {"op": "drain", "hosts": ["orders"], "for": None}),
    ("unregister", ("users", "http://10.0.0.7:9000"), NOTHING,
     "unregister", {"name": "users", "to": "http://10.0.0.7:9000"}),
    ("unregister", ("users",), NOTHING, "unregister", {"name": "users", "to": ""}),
    ("notify_test", ("mail",), NOTHING, "notify", {"receivers": ["mail"]}),
]  # fmt: skip


def test_method_without_a_selection_asks_its_verb_and_returns_the_document(path: Path) -> None:
    with stand_in(path, always(item("web"))) as requests:
        for method, words, keys, _, _ in WITHOUT_SELECTOR:
            assert getattr(client(path), method)(*words, **keys)["items"][0]["name"] == "web"
    assert requests == [
        (verb, {"selector": {"targets": []}, "options": options})
        for _, _, _, verb, options in WITHOUT_SELECTOR
    ]


def test_metrics_and_health_are_as_they_are_asked_for(path: Path) -> None:
    users = {"name": "users", "kind": "route", "status": "healthy", "uptime_seconds": 3.0}
    with stand_in(path, always(users, text="up 1\n")) as requests:
        pool = client(path)
        assert pool.metrics("web") == pool.metrics() == "up 1\n"
        for ask in (pool.health_info, pool.health_info_without_detail):
            assert ask() == {"users": {"status": "healthy", "uptime_seconds": 3.0}}
        assert pool.health_info_simple(routes=True) == {"users": "healthy"}
    assert [(verb, body["selector"]["targets"], body["options"]) for verb, body in requests] == [
        ("metrics", ["web"], {}), ("metrics", [], {}),
        ("health", [], {"depth": "full", "routes": False}),
        ("health", [], {"depth": "summary", "routes": False}),
        ("health", [], {"depth": "simple", "routes": True}),
    ]  # fmt: skip


FAILURES: list[tuple[str, type[Exception]]] = [
    ("start", PoolStartError), ("enable", PoolStartError), ("undrain", PoolStartError), ("stop", PoolStopError),
    ("disable", PoolStopError), ("drain", PoolStopError), ("remove", PoolStopError), ("restart", PoolRestartError),
    ("reload", PoolRestartError),
    ("list", PoolParamError), ("show", PoolParamError), ("status", PoolMonitorError), ("stats", PoolMonitorError),
    ("stacks", PoolMonitorError), ("metrics", PoolMonitorError), ("notify_test", PoolMonitorError),
    ("routes", PoolMonitorError), ("hosts", PoolMonitorError),
    ("wait", PoolMonitorError), ("monitor", PoolMonitorError), ("health_info", PoolMonitorError),
]  # fmt: skip


def test_failure_of_each_method_is_of_its_own_kind(path: Path) -> None:
    with stand_in(path, always(exit_code=1, errors=[{"name": "web", "message": "no"}])):
        pool = client(path)
        for method, kind in FAILURES:
            with pytest.raises(kind, match="no"):
                getattr(pool, method)()
        for order in (lambda: pool.scale("web", 2), lambda: pool.add(name="a")):
            with pytest.raises(PoolStartError, match="no"):
                order()


def test_servers_are_filtered_by_a_field_and_visited_until_one_says_false(path: Path) -> None:
    items = item("web", 1), item("api", 2, expose=None), item("website", 3)
    with stand_in(path, always(*items)) as requests:
        pool = client(path)
        found = pool.filter("name", "WEB", selector={"tag": ["x"]})
        assert [each["name"] for each in found["items"]] == ["web"]
        assert [each["name"] for each in pool.filter("name", regex="web")["items"]] == ["web", "website"]
        assert pool.filter("name")["items"] == []
        assert [each["name"] for each in pool.filter("expose", regex=":3")["items"]] == ["website"]
        assert requests[0][1]["selector"] == {"tag": ["x"], "allow_empty": True, "targets": []}
        seen: list[str] = []
        assert pool.walk(lambda each: seen.append(each["name"]), "w*") is True
        assert pool.walk(lambda each: each["name"] != "api" and None) is False
        assert seen == ["web", "api", "website"]
        assert requests[-2][1]["selector"] == {"targets": ["w*"]}


def test_monitor_returns_what_the_pool_in_python_returns(path: Path) -> None:
    seconds = {"uptime_seconds": 7.0, "downtime_seconds": 1.0, "rise_seconds": 0.0, "fall_seconds": 0.0}
    figures = {
        **seconds, "status": "ok", "latency_seconds": 0.25, "sli": 0.5, "message": "", "rises": 1, "falls": 0,
    }  # fmt: skip
    with stand_in(path, always(item("web", monitor=figures))):
        (found,) = client(path).monitor()
    assert (found.name, found.bind, found.uptime, found.rises) == (
        "web", "127.0.0.1:8081", timedelta(seconds=7), 1,
    )  # fmt: skip


def test_events_are_those_before_the_result_and_a_refusal_is_an_error(path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"event": {"event": "started", "server": "web"}})
        send({"event": {"event": "ready", "server": "web"}})
        return {"items": [], "errors": [], "exit_code": 0 if len(requests) == 1 else 4}

    since = datetime(2026, 1, 31, 12, tzinfo=UTC)
    with stand_in(path, answer) as requests:
        pool = client(path)
        assert [each["event"] for each in pool.events("web")] == ["started", "ready"]
        with pytest.raises(PoolParamError):
            [*pool.events(follow=True, lines=5, since=since, kinds=("server",))]
    assert [body["options"] for _, body in requests] == [
        {"follow": False, "lines": 100, "kind": []},
        {"follow": True, "lines": 5, "kind": ["server"], "since": "2026-01-31T12:00:00.000000Z"},
    ]


def test_logs_are_merged_from_the_files_of_the_servers_and_begin_where_they_are_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setenv("POOLCTL_STATE_DIR", str(tmp_path / "state"))
    own = tmp_path / "own.log"
    logs = tmp_path / "state" / path.parent.name / "logs"
    logs.mkdir(parents=True)
    (logs / "web.log").write_text(
        "2026-01-31T12:00:00.000000Z 7 out first\n2026-01-31T12:00:02.000000Z 7 out third\n"
    )
    own.write_text("2026-01-31T12:00:01.000000Z 8 out second\n")
    shown = item("web", config={}), item("api", config={"log": {"path": str(own)}})
    with stand_in(path, always(*shown)):
        pool = client(path)
        found = [(each["name"], each["line"]) for each in pool.logs()]
        assert [name for name, _ in found] == ["web", "api", "web"]
        assert [line.split()[-1] for _, line in found] == ["first", "second", "third"]
        since = datetime(2026, 1, 31, 12, 0, 1, tzinfo=UTC)
        assert [each["name"] for each in pool.logs(since=since)] == ["api", "web"]
        assert [each["name"] for each in pool.logs(lines=1)] == ["api", "web"]
        (first, *_) = pool.logs()
        assert first.keys() == {"time", "name", "pid", "level", "line"}


def test_stop_of_the_pool_returns_when_its_last_process_has_ended(path: Path) -> None:
    with subprocess.Popen(["sleep", "0.2"]) as keeper:
        with stand_in(path, always(ended=True, keeper_pid=keeper.pid)):
            assert client(path).stop()["ended"]
        assert keeper.poll() is not None


def test_orders_report_their_progress(path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"progress": {"name": "web"}})
        return {"items": [], "errors": [], "exit_code": 0}

    seen: list[dict[str, Any]] = []
    with stand_in(path, answer):
        pool = client(path)
        for order in (pool.start, pool.stop, pool.restart, pool.reload):
            order(on_progress=seen.append)
    assert seen == [{"progress": {"name": "web"}}] * 4


def test_unknown_name_is_no_file_and_the_error_says_how_to_start_it(tmp_path: Path) -> None:
    env = {"POOLCTL_RUNTIME_DIR": str(tmp_path)}
    with pytest.raises(NoSupervisor, match="no running pool is named 'shop'") as caught:
        find_socket("shop", env)
    assert caught.value.hint == "start it with poolctl start"
    for file in ("shop.toml", "shop.yaml", "shop.yml", "shop.json", "./shop"):
        assert find_socket(file, env) == f"{tmp_path}/{pool_key(os.path.abspath(file))}/control.sock"
