"""Contract §5: walk, add, dependencies and every form of output, each on one real pool."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

import poolctl
from poolctl import PoolParamError, PoolRestartError, PoolStartError
from poolctl.errors import ControlError
from tests.configuration import app_table
from tests.real_pool import RealPool

FORMS = (
    "list",
    "status",
    "wait",
    "start",
    "restart",
    "show",
    "walk",
    "scale --all 1",
    "enable --all",
    "undrain --all",
    "reload",
    "stop",
)


def states(pool: RealPool) -> dict[str, str]:
    return {name: item["state"] for name, item in pool.items().items()}


@pytest.mark.slow
def test_every_command_that_prints_servers_knows_every_form(real_pool: RealPool) -> None:
    ports = real_pool.write_hello("b", "a", extra='tags = ["x", "y"]')
    real_pool.ok("start")
    head, *lines = real_pool.ok("list", "-o", "wide").stdout.splitlines()
    assert {"CPU", "MEMORY"} <= set(head.split())
    assert all(re.search(r" \d+\.\d%  +[\d.]+MiB  ", line) for line in lines)
    for at, command in enumerate(FORMS):
        form = ("name", "jsonl", "bind,name,tags")[at % 3]
        lines = real_pool.ok(*command.split(), "-o", form).stdout.splitlines()
        if form == "jsonl":
            assert [json.loads(line)["name"] for line in lines] == ["b", "a"], command
            assert all(json.loads(line)["schema"] == 1 for line in lines)
        elif form == "name":
            assert lines == ["b", "a"], command
        else:
            assert lines == [f"127.0.0.1:{ports[name]}\t{name}\tx,y" for name in ("b", "a")], command
    table = real_pool.ok("list", "-o", "table").stdout.splitlines()
    wide = real_pool.ok("list", "-o", "wide").stdout.splitlines()
    assert [len(table), len(wide)] == [3, 3]
    assert set(table[0].split()) < set(wide[0].split())
    assert {"EXPOSE", "TAGS", "WORKERS"} <= set(wide[0].split())
    assert real_pool.ok("list", "-o", "table").stdout == real_pool.ok("list").stdout
    assert real_pool.ok("list", "-o", "ready", "a").stdout == "false\n"


def test_walk_replaces_placeholders_and_names_the_server_of_each_line(real_pool: RealPool) -> None:
    port = real_pool.write_hello("web")["web"]
    text = app_table("web", port, 'tags = ["x", "y"]') + app_table("sock", f"unix:{real_pool.runtime}/s.sock")
    real_pool.write("pool.toml", text + app_table("six", "[::1]:9000", 'expose = "http://six.local"'))
    words = "{name} {bind} {host} {port} {expose} {state} {pid} {pids} {tags} {other} ${name}"
    lines = real_pool.ok("walk", "-q", "--", "echo", words).stdout.splitlines()
    assert lines == [
        f"web 127.0.0.1:{port} 127.0.0.1 {port} http://127.0.0.1:{port} stopped   x,y {{other}} $web",
        f"sock unix:{real_pool.runtime}/s.sock   unix:{real_pool.runtime}/s.sock stopped    {{other}} $sock",
        "six [::1]:9000 ::1 9000 http://six.local stopped    {other} $six",
    ]
    meet = "while [ $(ls *.here | wc -l) -lt 3 ]; do sleep 0.01; done; echo two >&2"
    meet = f"echo one; touch $POOLCTL_NAME.here; {meet}"
    together = real_pool.ok("walk", "--jobs", "3", "--", "sh", "-c", meet)
    assert sorted(together.stdout.splitlines()) == ["six  | one", "sock | one", "web  | one"]
    assert sorted(together.stderr.splitlines()) == ["six  | two", "sock | two", "web  | two"]
    assert real_pool.run("walk", "--", "sh", "-c", "kill {pid}").code == 2, "a shell would read the value"
    failing = 'echo "$POOLCTL_NAME"; test "$POOLCTL_NAME" != sock || kill -9 $$'
    done = real_pool.run("walk", "-o", "json", "--", "sh", "-c", failing)
    assert done.code == 1
    assert [(item["name"], item["exit_code"], item["stdout"]) for item in done.json["items"]] == [
        ("web", 0, "web\n"), ("sock", 137, "sock\n"), ("six", 0, "six\n"),
    ]  # fmt: skip
    assert [error["name"] for error in done.json["errors"]] == ["sock"]
    fast = real_pool.run("walk", "--fail-fast", "--jobs", "1", "--", "sh", "-c", "echo $POOLCTL_NAME; false")
    assert (fast.code, "web" in fast.stdout, "six" in fast.stdout) == (1, True, False)
    assert real_pool.run("walk", "--", "no-such-command-here").code == 1
    lines = real_pool.ok("walk", "w*", "-o", "jsonl", "--", "true").stdout.splitlines()
    assert [(json.loads(line)["name"], json.loads(line)["exit_code"]) for line in lines] == [("web", 0)]
    assert [line.split()[0] for line in real_pool.ok("walk").stdout.splitlines()] == ["web", "sock", "six"]


def test_dependents_are_started_after_and_stopped_before_unless_left_out(
    real_pool: RealPool, free_port: Callable[[], int]
) -> None:
    real_pool.write_hello()
    late = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
    real_pool.write("late.py", late + (real_pool.directory / "hello.py").read_text())
    needs = 'depends_on = [{ name = "db", condition = "started" }, "cache"]'
    text = app_table("web", free_port(), needs) + app_table(
        "db", free_port(), 'start_timeout = "2m"', app="late:app"
    )
    real_pool.write(
        "pool.toml",
        text + app_table("cache", free_port(), 'depends_on = ["store"]') + app_table("store", free_port()),
    )
    real_pool.ok("start", "web", "--no-wait")
    real_pool.ok("wait", "web", "--timeout", "40")
    assert states(real_pool) == {"web": "running", "db": "starting", "cache": "running", "store": "running"}
    (real_pool.directory / "go").touch()
    real_pool.ok("wait", "--timeout", "40")
    stopped = real_pool.ok("stop", "store", "-o", "json")
    assert [item["name"] for item in stopped.json["items"]] == ["store"]
    assert "web" in stopped.stderr
    assert "cache" in stopped.stderr
    assert states(real_pool) == {"web": "stopped", "db": "running", "cache": "stopped", "store": "stopped"}
    real_pool.ok("start", "cache", "--no-deps")
    assert states(real_pool)["store"] == "stopped"
    real_pool.ok("start", "web")
    assert set(states(real_pool).values()) == {"running"}
    real_pool.ok("stop", "store", "db", "--no-deps")
    assert states(real_pool) == {"web": "running", "db": "stopped", "cache": "running", "store": "stopped"}
    real_pool.ok("status")


def test_add_takes_keys_and_files(real_pool: RealPool, free_port: Callable[[], int]) -> None:
    real_pool.write_hello("a")
    real_pool.ok("start")
    real_pool.write(
        "more/more.toml",
        app_table("m1", free_port(), 'app_dir = ".."') + app_table("m2", "unix:./m.sock", 'app_dir = ".."'),
    )
    added = real_pool.ok("add", "-f", "more/more.toml", "-o", "json").json
    assert [(item["name"], item["ready"]) for item in added["items"]] == [("m1", True), ("m2", True)]
    assert real_pool.items()["m2"]["bind"] == f"unix:{real_pool.directory}/more/m.sock"
    again = real_pool.run("add", "-f", "more/more.toml", "-o", "json")
    assert again.code == 8
    assert {error["name"] for error in again.json["errors"]} == {"m1", "m2"}
    keys = ["--set", "env.A=1", "--set", "workers=2", "--set", 'tags=["x"]', "--set", "restart.limit=3"]
    real_pool.ok("add", "z", "--bind", f"127.0.0.1:{free_port()}", "--app", "hello:app", *keys)
    (shown,) = real_pool.ok("show", "z", "-o", "json").json["items"]
    assert (shown["workers"], len(shown["pids"]), shown["tags"]) == (2, 2, ["x"])
    assert (shown["config"]["env"], shown["config"]["restart"]["limit"]) == ({"A": "1"}, 3)
    for wrong, code in [(["-f", "none.toml"], 5), (["z2", "-f", "more/more.toml"], 2), ([], 2)]:
        assert real_pool.run("add", *wrong).code == code, wrong
    removed = real_pool.ok("remove", "m*", "z").stdout
    assert [line.split()[1] for line in removed.splitlines()] == ["m1", "m2", "z"]


@pytest.mark.slow
def test_scale_takes_a_selector_and_a_number(real_pool: RealPool) -> None:
    real_pool.write_hello("web-1", "web-2", "db")
    real_pool.ok("start")
    scaled = real_pool.ok("scale", "web-*", "2", "-o", "json").json["items"]
    assert [(item["name"], item["workers"], len(item["pids"])) for item in scaled] == [
        ("web-1", 2, 2),
        ("web-2", 2, 2),
    ]
    real_pool.ok("scale", "--name", "^web", "--not", "3")
    assert {name: item["workers"] for name, item in real_pool.items().items()} == {
        "web-1": 2,
        "web-2": 2,
        "db": 3,
    }
    real_pool.ok("scale", "--all", "1")
    assert {len(item["pids"]) for item in real_pool.items().values()} == {1}


def test_a_job_is_keyed_by_its_name_and_done_when_it_has_ended(real_pool: RealPool) -> None:
    real_pool.write(
        "pool.toml",
        f'[[server]]\nname = "good"\njob = true\ncommand = ["{sys.executable}", "-c", "print(1)"]\n'
        f'[[server]]\nname = "bad"\njob = true\nrestart = "no"\ncommand = ["{sys.executable}", "-c", "exit(3)"]\n',
    )
    done = real_pool.run("start", "-o", "json")
    assert done.code == 1
    assert [(item["bind"], item["state"], item["ready"]) for item in done.json["items"]] == [
        ("job:good", "completed", True), ("job:bad", "failed", False),
    ]  # fmt: skip
    assert real_pool.run("status").code == 3
    assert real_pool.ok("list", "job:good", "-o", "name").stdout == "good\n"
    assert real_pool.ok("walk", "-q", "good", "--", "echo", "{bind},{host},{port}").stdout == "job:good,,\n"
    real_pool.ok("start", "good")
    real_pool.ok("wait", "good", "--timeout", "30")
    real_pool.ok("wait", "good", "--for", "completed", "--timeout", "30")
    assert real_pool.ok("list", "--state", "completed", "-o", "name").stdout == "good\n"
    real_pool.ok("stop", "bad")
    assert "1 server ready" in real_pool.ok("status").stdout


@pytest.mark.slow
def test_an_interrupted_command_is_130_and_the_pool_goes_on(
    real_pool: RealPool, until: Any, free_port: Any
) -> None:
    real_pool.write("hello.py", "import time\ntime.sleep(600)\n")
    real_pool.write("pool.toml", app_table("web", free_port(), 'start_timeout = "10m"'))
    starting = real_pool.spawn("start", "-o", "json")
    until(lambda: real_pool.run("list", "-o", "state").stdout == "starting\n")
    starting.send_signal(signal.SIGINT)
    stdout, _ = starting.communicate(timeout=60)
    assert starting.returncode == 130
    (told,) = json.loads(stdout)["errors"]
    assert (told["code"], told["error"]) == (130, "ErrorInterrupted")
    assert "the start continues in the background" in told["hint"]
    assert states(real_pool) == {"web": "starting"}


@pytest.mark.slow
def test_client_of_a_running_pool_has_the_effects_of_the_commands(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch, free_port: Any
) -> None:
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(real_pool.runtime))
    ports = real_pool.write_hello("a", "b")
    bad = app_table("bad", free_port(), 'restart = "no"\ndisabled = true', app="none:app")
    text = (
        '[pool]\nname = "shop"\n'
        + app_table("a", ports["a"], 'tags = ["x"]')
        + app_table("b", ports["b"])
        + bad
    )
    real_pool.write("pool.toml", text)
    with pytest.raises(ControlError) as nobody:
        poolctl.connect("shop")
    assert nobody.value.exit_code == 6
    real_pool.ok("start")
    monkeypatch.chdir(real_pool.directory)
    for client in (
        poolctl.connect("shop"),
        poolctl.connect("pool.toml"),
        poolctl.connect(real_pool.directory / "pool.toml"),
    ):
        assert [item["name"] for item in client.list()["items"]] == ["a", "b", "bad"]
    assert [item["name"] for item in client.list("A", "127.0.0.1:*", selector={"tag": ["x"]})["items"]] == [
        "a"
    ]
    assert [item["name"] for item in client.list(selector={"state": ["disabled"]})["items"]] == ["bad"]
    assert [item["name"] for item in client.status("b")["items"]] == ["b"]
    assert client.status()["summary"]["ready"] == 2
    assert client.show("a")["items"][0]["config"]["tags"] == ["x"]
    (pid,) = real_pool.items()["a"]["pids"]
    assert client.restart("a", timeout=50)["items"][0]["pids"] != [pid]
    client.stop("a", wait=True)
    assert states(real_pool)["a"] == "stopped"
    client.start("a")
    assert client.wait("a", until="ready", timeout=50)["items"][0]["ready"]
    with pytest.raises(PoolStartError) as failed:
        client.enable("bad")
    assert [(child.name, child.code) for child in failed.value.exceptions] == [("bad", 1323)]
    assert failed.value.exceptions[0].hint
    (real_pool.directory / "hello.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(PoolRestartError) as kept:
        client.restart("a")
    assert "broken" in kept.value.exceptions[0].message
    with pytest.raises(PoolParamError):
        client.list(selector={"tag": ["none"]})
    client.stop()
    assert real_pool.processes() == {}
    with pytest.raises(ControlError) as ended:
        client.list()
    assert ended.value.exit_code == 6
