"""Contract §2: several files form one configuration, and relative paths refer to the file that contains them."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from tests.configuration import app_table, sleeper
from tests.real_pool import RealPool


def shown(pool: RealPool, *options: str, **more: Any) -> dict[str, dict[str, Any]]:
    """The effective configuration of each server, by name, in order."""
    return {
        each["name"]: each["config"] for each in pool.ok(*options, "show", "-o", "json", **more).json["items"]
    }


def test_lists_are_overridden_as_a_whole_tables_deeply_and_new_servers_come_after(
    real_pool: RealPool,
) -> None:
    http = 'http = { keep_alive = "6s", trusted_proxies = ["10.0.0.1"] }\nlabels = { a = "1", b = "2" }'
    real_pool.write(
        "a.toml",
        '[pool]\nname = "x"\nport_range = "30000-30010"\n[defaults]\nhttp = { root_path = "/a" }\ntags = ["d", "e"]\n'
        + app_table("s0", "127.0.0.1:8080", http) + app_table("s1", "127.0.0.1:8081", 'tags = ["own"]'),
    )  # fmt: skip
    real_pool.write(
        "b.yaml",
        "pool: {name: y}\ndefaults: {http: {root_path: /b}, tags: [f]}\nserver:\n"
        "- {name: s9, bind: '127.0.0.1:8089', app: 'hello:app'}\n"
        "- {name: s0, listen: ':9999', http: {trusted_proxies: [10.0.0.2]}, labels: {b: '3', c: '4'}}\n",
    )
    real_pool.write("c.json", json.dumps({"server": [{"name": "s0", "labels": {"c": "5"}}]}))
    files = ("-c", "a.toml", "-c", "b.yaml", "-c", "c.json")
    found = shown(real_pool, *files)
    assert [*found] == ["s0", "s1", "s9"]
    s0 = found["s0"]
    assert s0["bind"] == "0.0.0.0:9999"
    assert s0["http"]["keep_alive"] == 6.0
    assert (s0["http"]["root_path"], s0["http"]["trusted_proxies"]) == ("/b", ["10.0.0.2"])
    assert s0["labels"] == {"a": "1", "b": "3", "c": "5"}
    assert [each["tags"] for each in found.values()] == [["f"], ["own"], ["f"]]
    settings = real_pool.ok(*files, "config", "-o", "json").json["pool"]
    assert (settings["name"], settings["port_range"]) == ("y", "30000-30010")


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        ("pool.toml", app_table("a", ":1") + app_table("a", ":2"), "pool.toml:7"),
        ("pool.toml", app_table("a", ":1", 'bind = ":2"'), "pool.toml:5"),
        ("pool.yaml", "server: [{name: a, bind: ':1', app: 'x:y', bind: ':2'}]\n", "pool.yaml:1"),
        ("pool.json", '{"server": [{"name": "a", "bind": ":1", "app": "x:y", "bind": ":2"}]}', "pool.json:1"),
    ],
)
def test_within_one_file_duplicates_are_errors(real_pool: RealPool, file: str, text: str, place: str) -> None:
    real_pool.write(file, text)
    done = real_pool.run("validate")
    assert done.code == 5
    assert place in done.stdout + done.stderr


def test_a_directory_is_read_like_its_files_one_after_the_other(real_pool: RealPool) -> None:
    real_pool.write("conf/2.yaml", "server: [{name: a, workers: 3}]\n")
    real_pool.write("conf/3.json", '{"server": [{"name": "c", "bind": "127.0.0.1:8082", "app": "h:a"}]}')
    real_pool.write("conf/readme.txt", "not a configuration")
    real_pool.write("conf/1.toml", app_table("a", ":8080", "workers = 2"))
    real_pool.write(
        "conf/pyproject.toml", "[tool.poolctl]\n" + app_table("p", ":8081").replace("[[", "[[tool.poolctl.")
    )
    real_pool.write("conf/.hidden.toml", "broken [")
    real_pool.write("over.toml", '[[server]]\nname = "a"\ndrain_timeout = 1\n')
    found = shown(real_pool, "-c", "conf", "-c", "over.toml")
    assert [*found] == ["a", "c", "p"]
    assert (found["a"]["scale"]["max"], found["a"]["drain_timeout"]) == (3, 1.0)
    assert [*shown(real_pool, env={"POOLCTL_CONFIG": "conf"})] == ["a", "c", "p"]
    (real_pool.directory / "empty").mkdir()
    assert real_pool.run("-c", "empty", "list").code == 5


@pytest.mark.slow
def test_a_directory_is_the_pool_of_the_file_that_is_found_in_it(real_pool: RealPool) -> None:
    real_pool.write("shop/pool.toml", sleeper("w"))
    real_pool.write("shop/package.json", '{"name": "shop", "scripts": {}}')
    real_pool.ok("-c", "shop", "start")
    for path in ("shop/pool.toml", "./shop/", str(real_pool.directory / "shop")):
        assert "running" in real_pool.ok("-c", path, "list").stdout, path
    real_pool.write("shop/more.toml", sleeper("more"))
    assert "1 added" in real_pool.ok("-c", "shop", "reload").stdout
    (real_pool.directory / "shop" / "more.toml").unlink()
    real_pool.ok("-c", "shop", "reload")
    (real_pool.directory / "shop" / "pool.toml").unlink()
    stopped = real_pool.ok("-c", "shop", "stop")
    assert "no longer exists" in stopped.stderr
    assert "1 server stopped: w" in stopped.stdout


def test_running_pool_of_a_directory_is_found_when_it_gets_a_pool_file(real_pool: RealPool) -> None:
    real_pool.write("shop/web.toml", sleeper("w"))
    real_pool.ok("-c", "shop", "start")
    real_pool.write("shop/pool.toml", sleeper("more"))
    for path in ("shop", "shop/pool.toml"):
        assert "running" in real_pool.ok("-c", path, "list").stdout, path
    assert "running" not in real_pool.run("-c", "shop/web.toml", "list").stdout
    real_pool.ok("-c", "shop", "reload")
    assert "2 servers stopped: more, w" in real_pool.ok("-c", "shop", "stop").stdout


def test_relative_paths_are_relative_to_the_file_that_holds_them(real_pool: RealPool) -> None:
    for path in ("base/src/x", "base/work/x", "prod/e.env", "base/d.env"):
        real_pool.write(path, "")
    real_pool.write(
        "base/pool.toml",
        '[defaults]\nenv_file = "d.env"\n'
        + app_table("a", "unix:./a.sock", 'app_dir = "src"\ncwd = "work"\nlog = { path = "a.log" }')
        + app_table("b", "unix:b.sock"),
    )
    real_pool.write("prod/over.toml", '[[server]]\nname = "a"\nenv_file = ["e.env"]\nlog = { keep = 1 }\n')
    found = shown(real_pool, "-c", "base/pool.toml", "-c", "prod/over.toml")
    here = real_pool.directory
    a, b = found["a"], found["b"]
    assert (a["bind"], b["bind"]) == (f"unix:{here}/base/a.sock", f"unix:{here}/base/b.sock")
    assert (a["app_dir"], a["cwd"]) == (f"{here}/base/src", f"{here}/base/work")
    assert (b["app_dir"], b["cwd"]) == (f"{here}/base", f"{here}/base")
    assert (a["env_file"], b["env_file"]) == ([f"{here}/prod/e.env"], [f"{here}/base/d.env"])
    assert (a["log"]["path"], a["log"]["keep"]) == (f"{here}/base/a.log", 1)


def test_the_interpreter_is_of_an_environment_below_then_beside_then_active_then_our_own(
    real_pool: RealPool,
) -> None:
    def venv(name: str) -> str:
        python = real_pool.directory / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to("/usr/bin/python3")
        return str(python)

    real_pool.write("pool.toml", app_table("a", ":8080") + app_table("b", ":8081", 'python = "mine"'))
    mine, callers = venv("mine"), venv("callers")
    outside = {"VIRTUAL_ENV": str(real_pool.directory / "callers")}
    own = shown(real_pool)["a"]["python"]
    assert own not in (mine, callers)
    beside = venv(".venv")
    assert [each["python"] for each in shown(real_pool).values()] == [beside, mine]
    assert [each["python"] for each in shown(real_pool, env=outside).values()] == [callers, mine], "below"
    elsewhere = real_pool.directory.parent / "elsewhere"
    (real_pool.directory / "callers").rename(elsewhere)
    outside = {"VIRTUAL_ENV": str(elsewhere)}
    assert [each["python"] for each in shown(real_pool, env=outside).values()] == [beside, mine]
    shutil.rmtree(real_pool.directory / ".venv")
    assert shown(real_pool, env=outside)["a"]["python"] == f"{elsewhere}/bin/python"


def test_the_keys_of_golib_load_from_lists_and_their_apps_come_from_elsewhere(real_pool: RealPool) -> None:
    real_pool.write(
        "pool.yaml", "- {name: a, listen: ':8080', expose: 'http://x', handler_key: k, disabled: true}\n"
    )
    assert real_pool.run("validate").code == 5, "nothing to serve yet"
    real_pool.write("apps.json", json.dumps([{"name": "a", "app": "hello:app"}]))
    (a,) = shown(real_pool, "-c", "pool.yaml", "-c", "apps.json").values()
    assert (a["bind"], a["expose"], a["app"], a["disabled"]) == (
        "0.0.0.0:8080",
        "http://x",
        "hello:app",
        True,
    )
    real_pool.write("handlers.toml", '[pool]\nhandlers = "apps:handlers"\n')
    (a,) = shown(real_pool, "-c", "pool.yaml", "-c", "handlers.toml").values()
    assert a["handler_key"] == "k"
    real_pool.write("both.yaml", "- {name: a, listen: ':8080', bind: ':8081', app: 'x:y'}\n")
    done = real_pool.run("-c", "both.yaml", "validate")
    assert done.code == 5
    assert "listen" in done.stdout


def test_tls_of_the_defaults_is_for_servers_that_ask_for_it(real_pool: RealPool) -> None:
    default = '[defaults.tls]\ncert = "c.pem"\nkey = "k.pem"\n'
    own = 'tls = { cert = "own.pem" }'
    text = (
        app_table("a", ":1")
        + app_table("b", ":2", "tls = true")
        + app_table("c", ":3", own)
        + app_table("d", ":4", "tls = false")
    )
    real_pool.write("pool.toml", default + text)
    here = real_pool.directory
    found = {name: config["tls"] for name, config in shown(real_pool).items()}
    assert (found["a"], found["d"]) == (False, False)
    assert found["b"]["cert"] == f"{here}/c.pem"
    assert (found["c"]["cert"], found["c"].get("key")) == (f"{here}/own.pem", None)
    items = real_pool.items()
    assert [items[name]["expose"].partition(":")[0] for name in "abcd"] == ["http", "https", "https", "http"]


def test_yaml_tables_for_anchors_are_ignored_and_other_tables_are_not(real_pool: RealPool) -> None:
    text = (
        "x-env: &common {COMMON: 'yes', UNUSED: '${NO_PLACE:-}'}\nx-list: [1, '${UNSET}']\nx-word: 1\n"
        "x-worker: &worker\n  command: [sleep, '600']\n  env: *common\n"
        "server:\n- {name: a, <<: *worker}\n- {name: b, <<: *worker, env: {<<: *common, OWN: '2'}}\n"
    )
    real_pool.write("pool.yaml", text)
    assert real_pool.ok("validate").stdout == "2 servers, ok\n"
    found = shown(real_pool)
    assert {name: each["env"]["COMMON"] for name, each in found.items()} == {"a": "yes", "b": "yes"}
    assert found["b"]["env"]["OWN"] == "2"
    for file, other in (
        ("pool.yaml", text.replace("x-list", "y-list")),
        ("pool.yaml", text.replace("- {name: a", "- {x-note: 1, name: a")),
        ("pool.json", '{"x-env": {}, "server": [{"name": "a", "command": ["true"]}]}'),
        ("pool.toml", "[x-env]\n" + app_table("a", ":1")),
    ):
        real_pool.write(file, other)
        done = real_pool.run("-c", file, "validate")
        assert (done.code, "unknown key" in done.stdout) == (5, True), done
