"""The pytest plugin, in runs of pytest of its own, with real servers."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.errors import PoolParamError
from poolctl.features.pytest_plugin.pools import PoolFactory, pool_failure
from tests.deadline import wait_until

pytest_plugins = ["pytester"]
# Each starts another pytest, and pools in it: a minute with a load of 20.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(190)]

APP = """
    import asyncio, json, os

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": kind + ".complete"})
                if kind == "lifespan.shutdown":
                    return
        print("asked for", scope["path"], flush=True)
        status = 500 if scope["path"] == "/broken" else 200
        body = json.dumps({"pid": os.getpid(), "level": os.environ.get("LEVEL")}).encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def broken(): raise RuntimeError("no database")
"""
CLIENT = """
    import json, os, urllib.request

    def ask(url):
        with urllib.request.urlopen(url, timeout=60) as response:
            return json.load(response)
"""
POOL = """
    [[server]]
    name = "users"
    bind = ":8081"
    app = "shop:app"
    env = { LEVEL = "${LEVEL:-debug}" }
    expose = "https://users.example.org"
    mandatory = true
    recovery = "replace"
    limits = { memory = "512MiB", open_files = 1000 }
    scale = { min = 1, max = 4 }

    [[server]]
    name = "files"
    bind = "unix:/tmp/poolctl-files.sock"
    app = "shop:app"
    expose = "https://files.example.org"
    env = { LEVEL = "port ${server.users.port}", USERS = "${server.users.url}" }
    depends_on = ["users"]
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with an application, a client and a pool.toml; its pytest has the plugins that are installed."""
    for name in [*os.environ]:
        if name.startswith(("POOLCTL_", "PYTEST_")):
            monkeypatch.delenv(name)
    pytester.makepyfile(shop=APP, client=CLIENT)
    pytester.makefile(".toml", pool=POOL)
    pytester.makeini("[pytest]\nfilterwarnings = error\npythonpath = .\n")
    return pytester


def run(project: pytest.Pytester, *args: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", *args, timeout=180)


def test_pool_of_a_file_runs_as_processes_on_free_ports(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os
        import time
        from client import ask

        def test_processes(poolctl_pool):
            pool = poolctl_pool("pool.toml")
            found = ask(pool.url("users", "/me"))
            assert found["pid"] != os.getpid()
            assert found["level"] == "debug"
            assert ":8081" not in pool.url("users")
            assert poolctl_pool() is pool, "the project's file"
            assert pool.url("files").startswith("unix:")
            servers = {server.name: server for server in pool.pool.values()}
            assert servers["files"].config.env["LEVEL"] in pool.url("users").replace(":", " port ").split("//")[1]
            assert servers["files"].config.env["USERS"] == pool.url("users"), "not the public address"
            deadline = time.monotonic() + 60
            while not any("/me" in line for line in pool.log("users")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        """
    )
    run(project).assert_outcomes(passed=1)


def test_servers_that_are_given_run_in_this_process(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import asyncio
        import os
        import pytest
        from client import ask
        from poolctl import PoolParamError
        from shop import app

        def test_here(poolctl_pool):
            pool = poolctl_pool(users=app, orders="shop:app")
            assert ask(pool.url("users"))["pid"] == ask(pool.url("orders"))["pid"] == os.getpid()
            assert pool.url("users") != pool.url("orders")
            for look in (pool.url, pool.server):
                with pytest.raises(PoolParamError, match="there is no server 'user'; did you mean 'users'"):
                    look("user")

        def test_list(poolctl_pool):
            assert ask(poolctl_pool([{"name": "users", "app": app}]).url("users"))["pid"] == os.getpid()

        def test_processes(poolctl_pool):
            pool = poolctl_pool(
                processes=True,
                users={"app": "shop:app", "env": {"LEVEL": "info"}},
                files={"command": ["python3", "-m", "http.server", "--bind", "{host}", "{port}"]},
                queue={"command": ["sleep", "600"]},
            )
            assert ask(pool.url("users"))["level"] == "info"
            assert pool.url("files").startswith("http://127.0.0.1:")
            with pytest.raises(PoolParamError, match="'queue' has no URL"):
                pool.url("queue", "/x")

        def test_on_demand(poolctl_pool):
            pool = poolctl_pool(users=app, mail={"app": app, "on_demand": True})
            assert [str(pool.server(name).state) for name in ("users", "mail")] == ["running", "stopped"]
            pool.server("mail").start_sync()
            assert ask(pool.url("mail"))["pid"] == os.getpid()

        @pytest.mark.anyio
        async def test_coroutine(poolctl_pool):
            pool = poolctl_pool(users=app)
            found = await asyncio.to_thread(ask, pool.url("users"))
            assert found["pid"] == os.getpid()
            await pool.pool.restart()

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
        """
    )
    run(project).assert_outcomes(passed=5)


@pytest.mark.heavy
def test_session_pool_is_started_once_for_all_tests_of_an_xdist_worker(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os
        from pathlib import Path
        import pytest
        from client import ask

        @pytest.fixture(scope="session")
        def shop(poolctl_session_pool):
            return poolctl_session_pool("pool.toml")

        @pytest.mark.parametrize("number", range(6))
        def test_one(shop, number, worker_id):
            pid = ask(shop.url("users"))["pid"]
            Path(f"{worker_id}-{pid}").touch()
            assert shop.pool.is_running
        """
    )
    run(project, "-n", "2").assert_outcomes(passed=6)
    notes = [path.name.split("-") for path in project.path.glob("gw*-*")]
    workers, pids = {worker for worker, _ in notes}, {pid for _, pid in notes}
    assert len(notes) == len(workers) == len(pids)


@pytest.mark.heavy
def test_two_hundred_servers_of_four_xdist_workers_get_ports_of_their_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from client import ask

        @pytest.mark.parametrize("number", range(40))
        def test_five(poolctl_pool, number):
            server = {"app": "shop:app", "bind": "127.0.0.1:auto"}
            names = [f"web-{index}" for index in range(5)]
            pool = poolctl_pool(processes=number % 2 == 1, **dict.fromkeys(names, server))
            pids = {ask(pool.url(name))["pid"] for name in names}
            assert len(pids) == (5 if number % 2 else 1)
        """
    )
    run(project, "-n", "4").assert_outcomes(passed=40)


def test_output_in_a_report_is_no_command_to_a_ci(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import sys

        def test_ends(poolctl_pool):
            script = "raise SystemExit('##[error]one\\\\n::error::two')"
            command = [sys.executable, "-c", script]
            poolctl_pool(processes=True, a={"command": command, "restart": "no"})
        """
    )
    result = run(project)
    result.assert_outcomes(errors=0, failed=1)
    text = result.stdout.str()
    assert "error::two" in text
    assert [line for line in text.splitlines() if line.strip().startswith("::")] == []
    assert "##[" not in text.replace("'##[error]one", "")


@pytest.mark.heavy
def test_report_of_a_failed_test_has_the_logs_of_its_servers(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import time
        import pytest
        from client import ask

        def await_line(pool, text):
            deadline = time.monotonic() + 60
            while not any(text in line for line in pool.log("users")):
                assert time.monotonic() < deadline
                time.sleep(0.05)

        @pytest.fixture(scope="session")
        def shop(poolctl_session_pool):
            return poolctl_session_pool("pool.toml")

        def test_passes(shop):
            ask(shop.url("users", "/fine"))
            await_line(shop, "/fine")

        def test_fails(shop):
            with pytest.raises(OSError):
                ask(shop.url("users", "/broken"))
            await_line(shop, "/broken")
            assert False

        def test_of_no_server():
            assert False

        def test_own_pool(poolctl_pool):
            pool = poolctl_pool("pool.toml")
            ask(pool.url("users", "/own"))
            await_line(pool, "/own")
            assert False
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1, failed=3)
    text = result.stdout.str()
    session, _, rest = text.partition("test_of_no_server ___")
    alone, _, own = rest.partition("test_own_pool ___")
    for part, path in ((session, "/broken"), (own, "/own")):
        assert "Log of server users" in part
        assert f"asked for {path}" in part
    assert "asked for /fine" not in text, "it was printed before the failed test"
    assert "Log of server" not in alone


DYING = """
    import os, urllib.request
    import pytest

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        if scope["path"] == "/die":
            print("last words", flush=True)
            os._exit(87)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(pool, name, path):
        try:
            urllib.request.urlopen(pool.url(name, path), timeout=60).read()
        except OSError:
            pass

    @pytest.fixture(scope="session")
    def shop(poolctl_session_pool):
        return poolctl_session_pool(processes=True, fragile="test_it:app", sturdy="test_it:app")

    def test_dies(shop):
        ask(shop, "fragile", "/die")

    def test_uses_the_same_pool(shop):
        ask(shop, "sturdy", "/")

    def test_dies_at_its_end(poolctl_pool):
        ask(poolctl_pool(processes=True, brief="test_it:app"), "brief", "/die")

    def test_of_an_ordered_end(request):
        pool = request.getfixturevalue("shop")
        pool.server("fragile").restart_sync()
        pool.server("sturdy").stop_sync()
"""


@pytest.mark.capability
def test_server_that_ended_by_itself_is_named_in_the_report_of_its_test(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=DYING)
    run(project, "--junitxml=all.xml", "-o", "junit_logging=all").assert_outcomes(passed=4)
    cases = {
        each.get("name"): ET.tostring(each, "unicode")
        for each in ET.parse(project.path / "all.xml").getroot().iter("testcase")
    }
    named = {test: re.findall(r"server (\w+) exited with status 87", text) for test, text in cases.items()}
    assert named == {
        "test_dies": ["fragile"], "test_uses_the_same_pool": [], "test_dies_at_its_end": ["brief"],
        "test_of_an_ordered_end": [],
    }  # fmt: skip
    assert all("last words" in cases[test] for test in ("test_dies", "test_dies_at_its_end"))
    assert "Log of server" not in cases["test_uses_the_same_pool"]


def test_server_that_ended_by_itself_fails_its_test_on_demand(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=DYING)
    result = run(project, "-o", "poolctl_fail_on_exit=true", "-k", "not end")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines(["server fragile exited with status 87"])


@pytest.mark.heavy
def test_logs_are_in_junit_xml_as_the_output_that_it_has(project: pytest.Pytester) -> None:
    project.makepyfile(test_it=DYING)
    for logging, tag in (("log", "system-out"), ("system-out", "system-out"), ("system-err", "system-err")):
        run(project, "--junitxml=it.xml", "-o", f"junit_logging={logging}", "-k", "test_dies and not end")
        (written,) = ET.parse(project.path / "it.xml").getroot().iter(tag)
        assert "exited with status 87" in str(written.text)
        assert "last words" in str(written.text)


def test_process_imports_what_the_test_can_import(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\npythonpath = code\n")
    for place in ("code", "other"):
        (project.path / place).mkdir()
        (project.path / place / "inner.py").write_text(f"from shop import app\nplace = {place!r}")
    for module in ("shop", "client"):
        (project.path / f"{module}.py").rename(project.path / "code" / f"{module}.py")
    (project.path / "other" / "mine.py").write_text(
        "import inner\nassert inner.place == 'other'\napp = inner.app"
    )
    project.makefile(".toml", inner='[[server]]\nname = "web"\nbind = ":1"\napp = "inner:app"\n')
    project.makepyfile(
        test_it="""
        import os
        from client import ask

        def test_given(poolctl_pool):
            assert ask(poolctl_pool(processes=True, web="inner:app").url("web"))["pid"] != os.getpid()

        def test_own_directory_is_first(poolctl_pool):
            ask(poolctl_pool(processes=True, web={"app": "mine:app", "app_dir": "other"}).url("web"))

        def test_file(poolctl_pool):
            poolctl_pool("inner.toml")
        """
    )
    result = run(project)
    result.assert_outcomes(passed=2, failed=1)
    assert "No module named 'inner'" in result.stdout.str()
    assert "check app and app_dir" in result.stdout.str()


def test_pool_that_does_not_stop_fails_its_test_and_leaves_no_other(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import contextlib, threading, time
        from pathlib import Path
        from client import ask
        from shop import app

        begun, over = threading.Event(), threading.Event()
        pids = []

        async def blocking(scope, receive, send):
            if scope["type"] == "http":
                begun.set()
                over.wait(60)
            await app(scope, receive, send)

        def test_blocks(poolctl_pool):
            web = poolctl_pool(web={"app": blocking, "stop_timeout": "100ms"})
            other = poolctl_pool(processes=True, other={"app": "shop:app", "stop_timeout": "100ms"})
            pids.extend(other.server("other").pids)
            threading.Thread(target=try_to_ask, args=[web.url("web")], daemon=True).start()
            assert begun.wait(60)

        def try_to_ask(url):
            with contextlib.suppress(Exception):
                ask(url)

        def test_other_pool_ends(poolctl_pool):
            over.set()
            poolctl_pool(web=app)
            deadline = time.monotonic() + 60
            while Path(f"/proc/{pids[0]}").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        """
    )
    result = run(project)
    result.assert_outcomes(passed=2, errors=1)
    text = result.stdout.str()
    assert "\nthe pool did not stop\nweb: still runs after 0.1 s" in text
    assert "\nother: still runs after 0.1 s" in text


@pytest.mark.slow
def test_request_that_a_test_leaves_open_does_not_hold_up_the_next(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import asyncio, http.client, time
        from urllib.parse import urlsplit
        import pytest

        async def app(scope, receive, send):
            if scope["type"] != "http":
                raise NotImplementedError
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(600)

        @pytest.fixture
        def open_request():
            found = {}
            yield found
            found["connection"].close()
            assert time.monotonic() - found["test ended"] < 60

        @pytest.mark.parametrize("processes", [True, False])
        def test_it(open_request, poolctl_pool, processes):
            pool = poolctl_pool(processes=processes, web="test_it:app")
            connection = http.client.HTTPConnection(urlsplit(pool.url("web")).netloc)
            connection.request("GET", "/")
            assert connection.getresponse().read(1) == b"x"
            open_request |= {"connection": connection, "test ended": time.monotonic()}
        """
    )
    run(project).assert_outcomes(passed=2)


@pytest.mark.heavy
@pytest.mark.heavy_variants
@pytest.mark.parametrize("processes", [True, False])
def test_server_that_does_not_start_is_explained(project: pytest.Pytester, processes: bool) -> None:
    project.makepyfile(
        f"""
        def test_it(poolctl_pool):
            poolctl_pool(
                processes={processes}, users="shop:app", orders={{"app": "shop:broken", "factory": True}},
                depends={{"app": "missing:app"}},
            )
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "the pool did not start" in text
    assert "orders: " in text
    assert "no database" in text
    assert "missing" in text
    assert "pools.py" not in text, "no traceback through the plugin"


@pytest.mark.heavy
def test_configuration_that_is_not_valid_is_explained(project: pytest.Pytester) -> None:
    project.makefile(".toml", wrong='[[server]]\nname = "users"\nbinf = ":1"\napp = "shop:app"\n')
    project.makepyfile(
        """
        def test_file(poolctl_pool):
            poolctl_pool("wrong.toml")

        def test_list(poolctl_pool):
            poolctl_pool(users={"app": "shop.py"})

        def test_missing(poolctl_pool):
            poolctl_pool("gone.toml")
        """
    )
    result = run(project)
    result.assert_outcomes(failed=3)
    text = result.stdout.str()
    assert "wrong.toml:3:1: unknown key 'binf'\n  hint: did you mean 'bind'?" in text
    assert "users: 'shop.py' is not module:attribute\n  hint: write the module" in text
    assert "gone.toml: there is no such file" in text
    assert "Traceback" not in text


def test_no_process_is_left(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        def test_one(poolctl_pool):
            poolctl_pool("pool.toml")
        """
    )
    marked = f"LEVEL=left {project.path}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        env={**os.environ, "LEVEL": marked}, cwd=project.path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    # The keeper ends by itself when it has lost the run.
    wait_until(lambda: not [pid for pid in os.listdir("/proc") if pid.isdigit() and _has(pid, marked)])


def _has(pid: str, text: str) -> bool:
    try:
        return text.encode() in Path("/proc", pid, "environ").read_bytes()
    except OSError:
        return False


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[PoolFactory]:
    """Pools of a project in this directory, none of which is started."""
    found = PoolFactory(str(tmp_path))
    yield found
    found.stop()
    found.remove_files()


def test_server_of_a_list_gets_a_port_unless_it_has_one_or_needs_none(pools: PoolFactory) -> None:
    servers: dict[str, tuple[dict[str, Any], str]] = {
        "app": ({"app": "a:b"}, "a port"),
        "bound": ({"app": "a:b", "bind": "127.0.0.1:80"}, "127.0.0.1:80"),
        "listening": ({"app": "a:b", "listen": ":80", "expose": "http://x"}, "0.0.0.0:80"),
        "program": ({"command": ["x"]}, "process:program"),
        "job": ({"command": ["x"], "job": True}, "job:job"),
        "told": ({"command": ["x", "{port}"]}, "a port"),
        "told-in-env": ({"command": ["x"], "env": {"PORT": "{port}"}}, "a port"),
        "given": ({"command": ["x", "--fd={fd}"]}, "a port"),
    }
    for name, (table, bind) in servers.items():
        server = pools(**{name: {**table, "on_demand": True}}).server(name)
        is_free = server.bind.startswith("127.0.0.1:") and server.address.port not in (80, 0)
        assert ("a port" if is_free else server.bind) == bind, name


def test_server_of_a_file_is_at_a_free_address_of_its_kind_until_the_end(
    pools: PoolFactory, tmp_path: Path
) -> None:
    (tmp_path / "pool.toml").write_text(
        """
        defaults = { on_demand = true }
        server = [
            { name = "web", bind = "0.0.0.0:80", app = "a:b" },
            { name = "files", bind = "unix:/run/files.sock", app = "a:b" },
            { name = "job", command = ["x"], job = true },
        ]
        """
    )
    pool = pools()
    assert pool.server("job").bind == "job:job"
    web, files = pool.server("web").address, Path(str(pool.server("files").address.path))
    assert (web.host, web.port not in (80, 0)) == ("127.0.0.1", True)
    assert (files.name, files.parent.is_dir()) == ("0-files.sock", True)
    with socket.socket() as sock, pytest.raises(OSError, match="in use"):
        sock.bind((web.host, web.port))
    pools.stop()
    pools.remove_files()
    assert not files.parent.exists()
    with socket.socket() as sock:
        sock.bind((web.host, web.port))


def test_each_error_of_a_pool_is_a_line_with_its_hint() -> None:
    named = PoolParamError("it is wrong")
    lines = str(pool_failure("the pool did not start", [named, ValueError("and this")])).splitlines()
    assert lines[0] == "the pool did not start"
    assert lines[1].endswith("it is wrong")
    assert lines[-1] == "and this"
