"""Contract §5 and §6: reload, scale, drain, undrain, enable, disable, add, remove, pools, --save, connect()."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl import Field, PoolParamError
from poolctl.exit_codes import NO_SUPERVISOR
from tests.configuration import app_table, server, sleeper
from tests.deadline import wait_until
from tests.http_get import refused
from tests.processes import is_alive
from tests.real_pool import HELLO_APP, Done, RealPool, pool_in

SIGNS = {"+": "add", "-": "remove", "~": "restart"}


def pids(pool: RealPool) -> dict[str, list[int]]:
    return {name: item["pids"] for name, item in pool.items().items()}


def changes(done: Done) -> dict[str, tuple[str, list[str]]]:
    return {each["name"]: (each["change"], each["keys"]) for each in done.json["changes"]}


@pytest.fixture(scope="module")
def shared_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    with pool_in(tmp_path_factory.mktemp("pool")) as pool:
        pool.write_hello("a", "b")
        yield pool


@pytest.fixture
def pool(shared_pool: RealPool) -> RealPool:
    """Servers a and b, ready: one pool for all tests, which undoes the previous test's changes."""
    shared_pool.write("hello.py", HELLO_APP)
    shared_pool.write("pool.toml", "".join(app_table(name, port) for name, port in shared_pool.ports.items()))
    if shared_pool.run("reload").code == NO_SUPERVISOR:
        shared_pool.ok("start")
    assert {name: item["ready"] for name, item in shared_pool.items().items()} == {"a": True, "b": True}
    return shared_pool


def test_reload_starts_new_servers_stops_removed_ones_and_restarts_changed_ones_only(
    pool: RealPool, free_port: Callable[[], int], http_get: Callable[..., Any]
) -> None:
    a, b, c, d = pool.ports["a"], pool.ports["b"], free_port(), free_port()
    pool.write("pool.toml", app_table("a", a) + app_table("b", b) + app_table("c", c))
    pool.ok("reload")
    before = pids(pool)
    pool.write(
        "pool.toml",
        app_table("a", a) + app_table("c", c, 'env = { A = "1" }') + app_table("d", d, 'tags = ["x"]'),
    )
    said = "pool.toml has changed since the pool read it; `poolctl reload` applies it"
    assert said in pool.ok("list").stderr
    assert f"{said} (+1 ~1 -1)\n" in pool.ok("show").stderr
    dry = pool.run("reload", "--dry-run", "-o", "json")
    assert dry.code == 3, str(dry)
    assert changes(dry) == {"b": ("remove", []), "c": ("restart", ["env.A"]), "d": ("add", [])}
    assert pids(pool) == before, "a dry run changes nothing"
    done = pool.ok("reload", "-o", "json")
    assert changes(done) == changes(dry)
    after = pids(pool)
    assert after.keys() == {"a", "c", "d"}
    assert after["a"] == before["a"]
    assert after["c"] != before["c"]
    assert http_get(d).status == 200
    assert refused(b)
    assert pool.ok("list").stderr == ""
    again = pool.ok("reload", "--dry-run")
    assert "nothing to do" in again.stdout
    assert pool.ok("reload", "-o", "json").json["changes"] == []
    assert pids(pool) == after


def test_program_that_becomes_a_job_is_ended_and_the_job_runs(pool: RealPool) -> None:
    as_before = (pool.directory / "pool.toml").read_text()
    programs = ("once", "nightly", "no-more")
    tables = {name: server(name, command=["sleep", "600"]) for name in programs}
    pool.write("pool.toml", as_before + "".join(map(sleeper, programs)))
    pool.ok("reload")
    before = pids(pool)
    tables["once"] = tables["once"].replace("600", "0.1") + "job = true\n"
    tables["nightly"] += 'job = true\nevery = "0 0 1 1 *"\n'
    tables["no-more"] = tables["no-more"].replace('["sleep", "600"]', '["false"]') + "job = true\n"
    pool.write("pool.toml", as_before + "".join(tables.values()))
    failed = pool.run("reload")
    assert (failed.code, "no-more: exited with status 1" in failed.stderr) == (1, True)
    items = pool.items()
    assert [items[name]["state"] for name in programs] == ["completed", "sleeping", "failed"]
    assert not any(is_alive(pid) for name in programs for pid in before[name])


def test_job_that_fails_is_not_run_again_and_never_as_it_was_before(real_pool: RealPool) -> None:
    command = ["sh", "-c", "echo $DB >> ran; ! test -e broken"]
    text = sleeper("work") + server("migrate", job=True, command=command, env={"DB": "old"})
    real_pool.write("pool.toml", text)
    real_pool.ok("start")
    real_pool.write("pool.toml", text.replace("old", "new"))
    real_pool.write("broken", "")
    real_pool.ok("reload")
    assert real_pool.run("restart", "migrate").code == 1
    (real_pool.directory / "broken").unlink()
    real_pool.ok("restart", "migrate")
    assert (real_pool.directory / "ran").read_text().split() == ["old", "new", "new"]


def test_the_plan_is_shown_to_people_line_by_line(pool: RealPool, free_port: Callable[[], int]) -> None:
    pool.write(
        "pool.toml", app_table("a", pool.ports["a"], 'env = { A = "1" }') + app_table("c", free_port())
    )
    done = pool.run("reload", "--dry-run")
    assert done.code == 3
    lines = {line.split()[1].rstrip(":"): SIGNS[line[0]] for line in done.stdout.splitlines()[:-1]}
    assert lines == {"a": "restart", "b": "remove", "c": "add"}
    assert done.stderr == ""


def test_a_file_with_any_error_changes_nothing(pool: RealPool) -> None:
    before = pids(pool)
    for text in (
        "broken [", app_table("a", pool.ports["a"]) + app_table("x", 1, "wrokers = 2"), "",
        app_table("a", pool.ports["a"], 'env_file = "nowhere.env"'),
    ):  # fmt: skip
        pool.write("pool.toml", text)
        for command in (["reload"], ["reload", "--dry-run"]):
            done = pool.run(*command, "-o", "json")
            assert done.code == 5, str(done)
            assert done.json["errors"]
    (pool.directory / "pool.toml").unlink()
    assert pool.run("reload", "-c", "pool.toml").code == 5
    assert pids(pool) == before


def test_live_changes_are_overrides_that_reload_names_and_undoes(
    pool: RealPool, free_port: Callable[[], int], http_get: Callable[..., Any]
) -> None:
    new = free_port()
    text = (pool.directory / "pool.toml").read_text()
    pool.ok("scale", "a", "2")
    assert pool.items()["a"]["workers"] == len(pool.items()["a"]["pids"]) == 2
    pool.ok("disable", "b")
    assert pool.items()["b"]["state"] == "disabled"
    assert refused(pool.ports["b"])
    added = pool.ok(
        "add", "new", "--bind", f"127.0.0.1:{new}", "--app", "hello:app", "--set", 'tags=["x"]', "-o", "json"
    )
    assert [(item["name"], item["ready"], item["tags"]) for item in added.json["items"]] == [
        ("new", True, ["x"])
    ]
    assert http_get(new).status == 200
    dry = pool.run("reload", "--dry-run", "-o", "json")
    assert dry.code == 3
    assert {name: change for name, (change, _) in changes(dry).items()} == {
        "a": "override", "b": "override", "new": "override",
    }  # fmt: skip
    pool.ok("reload")
    items = pool.items()
    assert items.keys() == {"a", "b"}
    assert (items["a"]["workers"], items["b"]["state"]) == (1, "running")
    assert refused(new)
    assert (pool.directory / "pool.toml").read_text() == text


def test_a_drained_server_answers_and_is_not_ready(pool: RealPool, http_get: Callable[..., Any]) -> None:
    before = pids(pool)
    pool.ok("drain", "a")
    item = pool.items()["a"]
    assert (item["state"], item["ready"]) == ("draining", False)
    assert http_get(pool.ports["a"]).status == 200
    assert pool.run("status").code == 3
    pool.ok("wait", "a", "--for", "draining", "--timeout", "40")
    pool.ok("undrain", "a")
    pool.ok("wait", "a", "--timeout", "40")
    assert pids(pool) == before


def test_enable_starts_disabled_servers_and_remove_prints_removed_ones(pool: RealPool) -> None:
    pool.write(
        "pool.toml", app_table("a", pool.ports["a"]) + app_table("b", pool.ports["b"], "disabled = true")
    )
    pool.ok("reload")
    assert refused(pool.ports["b"])
    pool.ok("enable", "b")
    assert pool.items()["b"]["ready"]
    done = pool.ok("remove", "b")
    assert "b" in done.stdout
    assert str(pool.ports["b"]) in done.stdout
    assert pool.items().keys() == {"a"}
    assert refused(pool.ports["b"])
    gone = pool.ok("remove", "a", "-o", "json")
    assert [item["name"] for item in gone.json["items"]] == ["a"]


def test_a_taken_name_or_address_exits_8_and_an_invalid_one_5(pool: RealPool) -> None:
    taken = f"127.0.0.1:{pool.ports['a']}"
    for save in ([], ["--save"]):
        assert pool.run("add", "a", "--bind", "127.0.0.1:1", "--app", "hello:app", *save).code == 8
        assert pool.run("add", "c", "--bind", taken, "--app", "hello:app", *save).code == 8
        assert (
            pool.run("add", "c", "--bind", f"0.0.0.0:{pool.ports['a']}", "--app", "hello:app", *save).code
            == 8
        )
        assert pool.run("add", "c", "--bind", "nowhere", "--app", "hello:app", *save).code == 5
        assert pool.run("add", "no good", "--bind", "127.0.0.1:1", "--app", "hello:app", *save).code == 5
        assert pool.run("add", "c", "--bind", "127.0.0.1:1", "--set", "wrokers=1", *save).code == 5
    assert pool.items().keys() == {"a", "b"}


def test_selection_without_a_match_is_4_before_anything_is_done(pool: RealPool) -> None:
    before = pids(pool)
    for command in ("scale {} 2", "drain {}", "undrain {}", "enable {}", "disable {}", "remove {}"):
        assert pool.run(*command.format("a nobody").split()).code == 4, command
    assert pool.run("remove", "--tag", "none").code == 4
    assert pool.run("disable", "--name", "(").code == 2
    assert pids(pool) == before


def test_save_without_a_supervisor_changes_the_file_and_scale_is_6(real_pool: RealPool) -> None:
    real_pool.write_hello("a", "b")
    text = (real_pool.directory / "pool.toml").read_text()
    assert real_pool.run("scale", "a", "2", "--save").code == 6
    assert (real_pool.directory / "pool.toml").read_text() == text
    real_pool.ok("disable", "a", "--save")
    real_pool.ok("remove", "b", "--save")
    real_pool.ok("add", "c", "--bind", "127.0.0.1:1", "--app", "hello:app", "--save")
    items = real_pool.items()
    assert {name: item["state"] for name, item in items.items()} == {"a": "disabled", "c": "stopped"}
    assert real_pool.processes() == {}


def test_save_writes_changes_back_and_keeps_comments(
    pool: RealPool, free_port: Callable[[], int], http_get: Callable[..., Any]
) -> None:
    new = free_port()
    text = f"""\
# The pool.
{app_table("a", pool.ports["a"], "workers = 1   # for now")}
# About b.
{app_table("b", pool.ports["b"])}"""
    pool.write("pool.toml", text)
    pool.ok("reload")
    pool.ok("scale", "a", "2", "--save")
    pool.ok("add", "new", "--bind", f"127.0.0.1:{new}", "--app", "hello:app", "--set", "env.A=1", "--save")
    pool.ok("disable", "b", "--save")
    before = pids(pool)
    assert "nothing to do" in pool.ok("reload", "--dry-run").stdout
    pool.ok("reload")
    assert pids(pool) == before
    assert http_get(new).status == 200
    saved = (pool.directory / "pool.toml").read_text()
    assert saved.startswith(text.replace("workers = 1   #", "workers = 2   #").rstrip())
    pool.ok("remove", "b", "--save")
    left = (pool.directory / "pool.toml").read_text()
    assert "About b" not in left
    assert left.startswith("# The pool.\n")
    assert "# for now" in left
    pool.ok("validate")


@pytest.mark.slow
def test_of_several_files_the_last_that_has_the_key_is_written(real_pool: RealPool) -> None:
    port = real_pool.write_hello()["web"]
    base = (real_pool.directory / "pool.toml").read_text()
    real_pool.write("local.toml", '# mine\n[[server]]\nname = "web"\nworkers = 1  # enough\n')
    real_pool.ok("-c", "pool.toml", "-c", "local.toml", "start")
    real_pool.ok("scale", "web", "2", "--save")
    assert (real_pool.directory / "pool.toml").read_text() == base
    assert (real_pool.directory / "local.toml").read_text() == (
        '# mine\n[[server]]\nname = "web"\nworkers = 2  # enough\n'
    )
    real_pool.ok("remove", "web", "--save", "--allow-empty")
    assert str(port) not in (real_pool.directory / "pool.toml").read_text()


YAML = """\
server:
  - name: a
    bind: 127.0.0.1:{a}
    app: hello:app
  # about b
  - name: b
    bind: 127.0.0.1:{b}
    app: hello:app
"""
JSON = """\
{{"server": [
  {{
    "name": "a", "bind": "127.0.0.1:{a}", "app": "hello:app"
  }},
  {{
    "name": "b", "bind": "127.0.0.1:{b}", "app": "hello:app"
  }}
]}}
"""


@pytest.mark.heavy_variants
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "lines", "workers"),
    [("pool.yaml", YAML, (2, 6), "    workers: 2\n"), ("pool.json", JSON, (2, 5), '    "workers": 2\n')],
)
def test_save_to_yaml_and_json_exits_2_and_prints_the_lines_to_write(
    real_pool: RealPool,
    free_port: Callable[[], int],
    name: str,
    text: str,
    lines: tuple[int, int],
    workers: str,
) -> None:
    ports = real_pool.write_hello("a", "b")
    (real_pool.directory / "pool.toml").unlink()
    text = text.format(**ports)
    file = real_pool.write(name, text)
    real_pool.ok("start")
    before = real_pool.items()
    added = f"add new --bind 127.0.0.1:{free_port()} --app hello:app"
    for command, line in (
        ("scale a 2", lines[0]), ("disable b", lines[1]), ("remove b", lines[1]), (added, lines[1]),
    ):  # fmt: skip
        done = real_pool.run(*command.split(), "--save")
        assert (done.code, done.stdout) == (2, ""), str(done)
        assert f"\n{name}:{line}:" in done.stderr, str(done)
    after = real_pool.items()
    assert {key: each["pids"] for key, each in after.items()} == {
        key: each["pids"] for key, each in before.items()
    }
    assert {each["state"] for each in after.values()} == {"running"}
    assert file.read_text() == text
    assert real_pool.run("scale", "a", "2", "--save").stderr.endswith(workers)
    written = text.splitlines(keepends=True)
    written.insert(lines[0], workers.rstrip() + ("," if name == "pool.json" else "") + "\n")
    file.write_text("".join(written))
    real_pool.ok("reload")
    assert real_pool.items()["a"]["workers"] == 2
    assert "already" in real_pool.ok("scale", "a", "2", "--save").stdout


def test_the_commands_own_timeout_is_124_and_a_servers_is_its_failure(
    pool: RealPool, free_port: Callable[[], int]
) -> None:
    pool.write("slow.py", "import time\ntime.sleep(600)\n")
    new = ["--bind", f"127.0.0.1:{free_port()}", "--app", "slow:app"]
    for seconds in ("0.5", "5", "20"):  # long enough for the supervisor of a busy machine
        late = pool.run("add", "slow", *new, "--timeout", seconds, "-o", "json")
        assert late.code == 124, str(late)
        if late.json["items"]:
            break
        pool.run("remove", "slow")
    assert [error["name"] for error in late.json["errors"]] == ["slow"]
    pool.ok("remove", "slow")
    failed = pool.run(
        "add", "slow", *new, "--set", "start_timeout=500ms", "--set", "restart=no", "-o", "json"
    )
    assert failed.code == 1, str(failed)
    assert [error["code"] for error in failed.json["errors"]] == [1323]


def test_reload_takes_the_callers_environment_only_with_env(pool: RealPool) -> None:
    pool.write("pool.toml", app_table("a", pool.ports["a"], 'env = { A = "${COLOUR:-none}" }'))
    pool.ok("reload")
    red = {"COLOUR": "red"}
    assert pool.run("reload", "--dry-run", env=red).code == 0
    assert changes(pool.ok("reload", "--env", "-o", "json", env=red))["a"] == ("restart", ["env.A"])


def test_pools_lists_this_users_pools(pool: RealPool, tmp_path: Path) -> None:
    (found,) = pool.ok("pools", "-o", "json").json["items"]
    info = pool.info()
    assert (found["name"], found["files"], found["pid"]) == (
        info["name"],
        info["files"],
        info["supervisor_pid"],
    )
    assert (found["servers"], found["ready"]) == (2, 2)
    assert "2/2" in pool.ok("pools", cwd=tmp_path.parent).stdout
    pool.ok("stop")
    assert pool.ok("pools").stdout == ""


@pytest.mark.slow
def test_connect_has_the_same_verbs_with_the_same_effects(
    pool: RealPool, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = free_port()
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(pool.runtime))
    client = poolctl.connect(pool.directory / "pool.toml")
    assert client.scale("a", workers=2)["items"][0]["workers"] == 2
    assert client.drain("a")["items"][0]["state"] == "draining"
    client.undrain("a")
    assert client.disable("b")["items"][0]["state"] == "disabled"
    assert client.enable("b")["items"][0]["ready"]
    assert client.scale("a", 1)["items"][0]["workers"] == 1
    table = {"name": "new", "bind": f"127.0.0.1:{new}", "app": "hello:app"}
    assert client.add(table, base_dir=pool.directory)["items"][0]["ready"]
    with pytest.raises(poolctl.ControlError) as taken:
        client.add(table, base_dir=pool.directory)
    assert taken.value.exit_code == 8
    with pytest.raises(poolctl.PoolValidateError):
        client.add({"name": "x", "bind": "nowhere"})
    with pytest.raises(poolctl.PoolParamError):
        client.remove("nobody")
    with pytest.raises(poolctl.PoolParamError, match="invalid regular expression"):
        client.list(selector={"name": ["("]})
    with pytest.raises(poolctl.PoolParamError, match="nothing can be 'redy'"):
        client.wait("a", until="redy")
    with pytest.raises(poolctl.PoolParamError, match="not a number"):
        client.scale("a", 0)
    for change in (client.drain, client.undrain, client.enable, client.disable, client.remove):
        with pytest.raises(poolctl.PoolParamError, match="without a selection would change"):
            change()
        with pytest.raises(poolctl.PoolParamError, match="is empty"):
            change("")
        with pytest.raises(poolctl.PoolParamError, match="name is empty"):
            change(selector={"name": [""]})
    for timeout in (50, "50s", timedelta(seconds=50)):
        assert client.start("a", timeout=timeout)["items"][0]["ready"]
    with pytest.raises(poolctl.PoolParamError, match="not a duration"):
        client.start("a", timeout="soon")
    with pytest.raises(poolctl.PoolMonitorError, match=r"^a: is running, not stopped$"):
        client.wait("a", until="stopped", timeout=0.1)
    dry = client.reload(dry_run=True)
    assert dry["exit_code"] == 3
    assert {each["name"] for each in dry["changes"]} == {"new"}
    assert [item["name"] for item in client.remove("new")["items"]] == ["new"]
    config = poolctl.ServerConfig(**table, app_dir=str(pool.directory))
    assert client.add(config)["items"][0]["name"] == "new"
    assert {each["name"] for each in client.reload()["changes"]} == {"new"}
    pool.write("pool.toml", "broken [")
    with pytest.raises(poolctl.PoolValidateError):
        client.reload()


def test_connect_filters_walks_and_reads_logs_as_the_commands_do(
    pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(pool.runtime))
    client = poolctl.connect(pool.directory / "pool.toml")
    bind = client.list("b")["items"][0]["bind"]
    assert [item["name"] for item in client.filter("name", "A")["items"]] == ["a"]
    assert [item["name"] for item in client.filter(poolctl.Field.BIND, f"http://{bind}")["items"]] == ["b"]
    assert [item["name"] for item in client.filter("expose", regex=".")["items"]] == ["a", "b"]
    assert client.filter("name")["items"] == []
    with pytest.raises(poolctl.PoolParamError):
        client.filter("colour", "red")
    with pytest.raises(poolctl.PoolParamError):
        client.filter("name", regex="(")
    seen: list[str] = []
    assert client.walk(lambda item: seen.append(item["name"]))
    assert not client.walk(lambda item: False)
    assert seen == ["a", "b"]

    def read() -> list[tuple[str, str]]:
        return [(line["name"], line["line"]) for line in client.logs("a", lines=None)]

    def printed() -> list[tuple[str, str]]:
        lines = map(json.loads, pool.ok("logs", "a", "-n", "all", "-o", "json").stdout.splitlines())
        return [(line["name"], line["line"]) for line in lines]

    # A worker's last line may come between the two.
    wait_until(lambda: (found := read()) and printed() == found)
    assert {name for name, _ in read()} == {"a"}
    with pytest.raises(poolctl.PoolParamError):
        list(client.logs("nobody"))


LIST_ARGUMENTS: list[tuple[tuple[str, ...], dict[str, str]]] = [
    ((Field.NAME, Field.BIND, "WEB"), {}),
    ((Field.NAME, Field.EXPOSE), {"regex": "^w"}),
    ((Field.NAME, "expose", "", "."), {}),
    (("name", "bind"), {"regex": "."}),
    (("bind", "name", "http://127.0.0.1:1"), {"regex": "unix"}),
    (("expose", "name"), {"pattern": "shop.test"}),
    (("expose", Field.NAME), {"regex": "."}),
    (("name", "bind"), {"pattern": "web", "regex": "x"}),
    ((Field.NAME, Field.BIND), {}),
    (("name", "bind"), {"pattern": "", "regex": ""}),
    ((Field.NAME, "colour", "web"), {}),
    (("colour", "name"), {"pattern": "red"}),
    ((Field.NAME, Field.NAME), {"regex": "("}),
]


def test_client_and_pool_list_the_same_fields_or_raise_the_same_errors(
    pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(pool.runtime))
    resting = "on_demand = true"
    program = f'[[server]]\nname = "queue"\ncommand = ["sleep", "9"]\n{resting}\n'
    more = app_table("web", 1, f'{resting}\nexpose = "https://user:secret@shop.test"') + program
    socket_file = app_table("files", 2, resting).replace("127.0.0.1:2", "unix:files.sock")
    pool.append(more + socket_file)
    pool.ok("reload")
    local = poolctl.PoolConfig.load(pool.directory / "pool.toml").pool()
    client = poolctl.connect(pool.directory / "pool.toml")

    def answer(pool: Any, places: tuple[str, ...], match: dict[str, str]) -> object:
        try:
            return pool.list(*places, **match)
        except PoolParamError as error:
            return error.code, str(error)

    answers = [answer(local, *arguments) for arguments in LIST_ARGUMENTS]
    assert [answer(client, *arguments) for arguments in LIST_ARGUMENTS] == answers
    assert answers[3] == [*local]
    assert answers[-5:-3] == [[], []]
    assert [each[0] for each in answers[-3:] if isinstance(each, tuple)] == [1320] * 3
    assert [item["name"] for item in client.list("web", "queue")["items"]] == ["web", "queue"]


def replace_file(pool: RealPool, text: str) -> None:
    """Replace pool.toml atomically, so that no process reads half of it."""
    pool.write("pool.toml.new", text).rename(pool.directory / "pool.toml")


@pytest.mark.slow
def test_watch_applies_the_changed_file_and_reports_a_broken_one(
    pool: RealPool, http_get: Callable[..., Any]
) -> None:
    text = (pool.directory / "pool.toml").read_text()
    watching = pool.spawn("reload", "--watch", "-o", "json")
    assert watching.stdout is not None
    # Servers whose code was saved after their start are restarted as well.
    documents = (json.loads(line) for line in watching.stdout)
    reloads = (each for each in documents if "changes" in each or each["errors"])
    assert next(reloads)["changes"] == []
    before = pids(pool)
    replace_file(pool, text.replace('name = "b"', 'name = "b"\nenv = { A = "1" }'))
    (change,) = next(reloads)["changes"]
    assert (change["name"], change["change"]) == ("b", "restart")
    replace_file(pool, "broken [")
    assert next(reloads)["errors"]
    assert pids(pool)["a"] == before["a"]
    replace_file(pool, text)
    assert next(reloads)["changes"]
    pool.write("hello.py", HELLO_APP.replace("hello", "welcome"))
    wait_until(lambda: http_get(pool.ports["a"]).text.startswith("welcome"))
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=60)
    assert watching.returncode == 130
