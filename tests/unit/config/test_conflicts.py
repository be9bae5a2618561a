"""What is in conflict among servers: names, addresses, dependencies, references; and programs without an address."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig, ServerConfig
from poolctl.address import parse
from poolctl.config import Tables, with_resolved_references
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.config.rules.conflicts import (
    conflicts,
    dependency_findings,
    maximum_pool_stop_seconds,
    named_addresses,
    os_users_by_server,
    scalar_bind_addresses,
    table_conflicts,
)
from poolctl.config.values.toml_text import escaped, table_text
from tests.config_files import SERVER, load_text, told
from tests.sandbox import run_as

QUEUE = '[[server]]\nname = "queue"\ncommand = ["celery", "worker"]\n'


def queue(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "queue", "command": ["celery", "worker"]} | keys)


def test_command_without_bind_is_keyed_by_its_name(tmp_path: Path) -> None:
    (server,) = load_text(tmp_path, QUEUE)
    assert (server.bind, server.key, server.expose) == ("process:queue", "process:queue", "")
    assert not server.listens
    assert not {"bind", "expose"} & server.to_dict().keys()
    assert repr(server) == "<ServerConfig queue process:queue command=celery worker>"
    assert [*PoolConfig([server.to_dict()]).pool()] == ["process:queue"]


def test_program_with_a_port_of_its_own_needs_bind_and_the_fix_works(tmp_path: Path) -> None:
    for socket in ("program", "proxied"):
        text = f'[[server]]\nname = "queue"\ncommand = ["x"]\nsocket = "{socket}"\n'
        found = told(tmp_path, text)
        assert f"'bind' is missing, and socket = \"{socket}\" needs an address" in found
        fix = found.rpartition("; add ")[2]
        assert fix == 'bind = "127.0.0.1:8080"'
        load_text(tmp_path, f"{text}{fix}\n")


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ('command = ["x", "--port={port}"]', "{port} needs an address"),
        ('command = ["x", "{host}", "{bind}"]', "{host} and {bind} need an address"),
        ('command = ["x", "--fd", "{fd}"]', "{fd} needs an address"),
        ('command = ["x"]\nenv = { AT = "{host}:{port}" }', "{port} and {host} need an address"),
        ('command = ["x"]\nexpose = "http://a"', "expose needs an address"),
        ('command = ["x"]\ntls = true', "tls needs an address"),
        ('command = ["x"]\nscale = { min = 0, idle = 5 }', "scale.idle needs an address"),
        ('command = ["x"]\nhealth = "/ready"', "health.readiness (http) needs an address"),
        ('command = ["x"]\nhealth.liveness = { tcp = true }', "health.liveness (tcp) needs an address"),
        (
            'command = ["x", "{fd}"]\nexpose = "x"\nhealth = "/"',
            "{fd}, expose and health.readiness (http) need",
        ),
    ],
)
def test_what_needs_an_address_needs_bind(tmp_path: Path, line: str, needs: str) -> None:
    found = told(tmp_path, f'[[server]]\nname = "queue"\n{line}\n')
    assert f"pool.toml:1:1: server[0].bind: 'bind' is missing, and {needs}" in found
    assert 'add bind = "127.0.0.1:8080", or take ' in found
    assert "out: a program without a port needs no bind" in found


def test_server_with_an_app_still_needs_bind(tmp_path: Path) -> None:
    assert "'bind' is missing; add bind" in told(tmp_path, '[[server]]\nname = "web"\napp = "a:b"\n')


def test_defaults_that_need_an_address_are_not_for_it(tmp_path: Path) -> None:
    defaults = (
        '[defaults]\nhealth = { readiness = { http = "/ready" }, liveness = { exec = ["test", "-e", "x"] } }\n'
        'scale = { min = 0, idle = "5m" }\ntls = { cert = "c" }\n'
        'env = { PORT = "{port}", LEVEL = "info" }\n'
    )
    job = '[[server]]\nname = "migrate"\njob = true\ncommand = ["true"]\n'
    probe = 'health.readiness = { exec = ["true"] }\n'
    servers = load_text(tmp_path, defaults + SERVER + QUEUE + job + QUEUE.replace("queue", "other") + probe)
    assert not servers.problems
    web, program, migrate, other = servers
    assert web.health.readiness.http == "/ready"
    assert (web.scale.min, program.scale.min, program.scale.idle) == (0, 1, 0)
    assert program.health.readiness is None is migrate.health.readiness
    assert program.env == migrate.env == {"LEVEL": "info"}
    assert program.health.liveness.exec == ("test", "-e", "x")
    assert other.health.readiness.exec == ("true",)


def test_several_or_a_notifying_one_may_overlap_with_its_replacement() -> None:
    assert not queue().may_overlap, "it may be a scheduler"
    assert queue(workers=2).may_overlap
    assert queue(notify=True).may_overlap
    assert not queue(workers=2, overlap=False).may_overlap


def test_it_may_get_another_name_and_an_address() -> None:
    other = queue().replace(name="other", tags=["a"])
    assert (other.bind, other.address.key) == ("process:other", "process:other")
    assert queue().replace(bind="127.0.0.1:1").expose == "http://127.0.0.1:1"


def test_it_does_not_drain() -> None:
    assert maximum_pool_stop_seconds([queue(stop_timeout=7, drain_timeout=100)]) == 7
    # What it has left running is ended after the last server.
    assert maximum_pool_stop_seconds([queue(stop_timeout=7, stop_group="leader")]) == 14


POOL = """
[[server]]
name = "users.v1"
bind = ":8081"
app = "a:b"
[[server]]
name = "chosen"
bind = "127.0.0.1:auto"
app = "a:b"
[[server]]
name = "six"
bind = "[::1]:8082"
app = "a:b"
tls = { cert = "c.pem", key = "k.pem" }
[[server]]
name = "sock"
bind = "unix:/run/a.sock"
app = "a:b"
[[server]]
name = "given"
bind = "fd:3"
expose = "https://shop.example"
app = "a:b"
[[server]]
name = "inherited"
bind = "fd:4"
app = "a:b"
[[server]]
name = "queue"
command = ["q"]
"""


def front(env: str) -> str:
    return f"{POOL}[[server]]\nname = 'front'\nbind = '127.0.0.1:80'\napp = 'a:b'\nenv = {{ X = '{env}' }}\n"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${server.users.v1.url}", "http://localhost:8081"),
        ("${server.users.v1.host}:${server.users.v1.port}", "127.0.0.1:8081"),
        ("${server.six.url} ${server.six.host} ${server.six.port}", "https://[::1]:8082 ::1 8082"),
        ("${server.sock.url}", "unix:/run/a.sock"),
        ("${server.given.url}", "https://shop.example"),
        ("${server.front.port}", "80"),
        ("$${server.users.v1.url}", "${server.users.v1.url}"),
        ("$$${server.users.v1.port}", "$${server.users.v1.port}"),
        ("${HELD}", "${server.users.v1.url} $${server.a}"),
        ("a $${B} ${server.sock.url}", "a ${B} unix:/run/a.sock"),
    ],
)
def test_reference_becomes_the_address_of_the_server(tmp_path: Path, written: str, value: str) -> None:
    env = {"HELD": "${server.users.v1.url} $${server.a}"}
    config = load_text(tmp_path, front(written), env=env)
    assert config.problems == []
    assert with_resolved_references(config)[-1].env["X"] == value


def test_reference_waits_for_a_port_that_is_not_chosen(tmp_path: Path) -> None:
    config = load_text(tmp_path, front("${server.chosen.url}"))
    assert with_resolved_references(config)[-1].env["X"] == "${server.chosen.url}"
    chosen = config[1].at(config[1].address.with_port(8100))
    assert with_resolved_references([config[-1]], [chosen])[0].env["X"] == "http://127.0.0.1:8100"


def test_reference_works_in_a_command_and_in_defaults(tmp_path: Path) -> None:
    text = '[defaults]\nenv = { USERS = "${server.users.v1.url}" }\n' + POOL
    text += (
        '[[server]]\nname = "c"\nbind = ":90"\ncommand = ["c", "--to=${server.users.v1.port}", "{port}"]\n'
    )
    config = load_text(tmp_path, text)
    assert config.problems == []
    found = with_resolved_references(config)
    assert found[-1].command == ("c", "--to=8081", "{port}")
    assert {each.env["USERS"] for each in found} == {"http://localhost:8081"}
    assert found[-1].model_fields_set == config[-1].model_fields_set | {"env"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("${server.user.v1.url}", "there is no server 'user.v1'; did you mean 'users.v1'?"),
        ("${server.zzzzz.url}", "there is no server 'zzzzz'; name a server of this pool"),
        (
            "${server.sock.uri}",
            "${server.sock.uri} is no reference; write ${server.sock.url} or ${server.sock.host} or",
        ),
        ("${server.sock}", "${server.sock} is no reference; write ${server.sock.url}"),
        ("${server.sock.port}", "'sock' has a Unix socket and no port; write ${server.sock.url}"),
        ("${server.queue.url}", "'queue' has no address; refer to a server with 'bind'"),
        ("${server.inherited.url}", "the address of 'inherited' is that of the socket it inherits"),
        ("${server.given.port}", "the address of 'given' is that of the socket it inherits"),
    ],
)
def test_wrong_reference_is_reported_with_its_place(tmp_path: Path, written: str, said: str) -> None:
    text = told(tmp_path, front(written))
    assert said in text
    assert text.startswith(f"{tmp_path}/pool.toml:35:9: server[7].env.X: ")
    assert len(text.splitlines()) == 1


def test_reference_in_a_server_with_other_problems_is_reported_too(tmp_path: Path) -> None:
    text = told(tmp_path, front("${server.nope.url}") + "workers = 'x'\n")
    assert "there is no server 'nope'" in text
    assert len(text.splitlines()) == 2


def test_reference_to_a_server_with_problems_is_no_second_problem(tmp_path: Path) -> None:
    assert len(told(tmp_path, front("${server.bad.url}") + "[[server]]\nname = 'bad'\n").splitlines()) == 1


def test_reference_elsewhere_is_reported(tmp_path: Path) -> None:
    text = told(tmp_path, front("x") + 'tags = ["${server.sock.url}"]\n')
    assert "server[7].tags[0]: the address of a server can be used in 'env' and 'command' only" in text


def test_configuration_with_references_can_be_written_and_read_again(tmp_path: Path) -> None:
    config = load_text(tmp_path, front("${server.sock.url} $${server.a} $${B}"))
    written = "\n".join(table_text("[[server]]", escaped(each.to_dict())) for each in config)
    again = load_text(tmp_path, written)
    assert again.problems == []
    assert with_resolved_references(again)[-1].env == {"X": "unix:/run/a.sock ${server.a} ${B}"}


def test_python_pool_of_a_file_has_the_addresses(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        '[[server]]\nname = "a"\nbind = "127.0.0.1:auto"\napp = "a:b"\n'
        '[[server]]\nname = "b"\nbind = "127.0.0.1:auto"\napp = "a:b"\nenv = { A = "${server.a.url}" }\n'
    )
    first, second = PoolConfig.load(file).pool().values()
    assert second.config.env["A"] == first.expose
    assert "auto" not in first.expose


def test_unknown_dependency_of_a_server_with_another_problem_is_reported_too(tmp_path: Path) -> None:
    other = SERVER.replace("web", "other").replace("8080", "8081")
    text = told(
        tmp_path, other + "workers = 'x'\n" + SERVER + "workers = 'x'\ndepends_on = ['nobody', 'other']\n"
    )
    assert "there is no server 'nobody'" in text
    assert "'other'" not in text
    text = told(tmp_path, SERVER + "workers = 'x'\ndepends_on = [{ name = 'wab' }]\n")
    assert "did you mean 'web'?" in text


def test_a_name_is_taken_also_by_a_server_with_problems(tmp_path: Path) -> None:
    text = told(tmp_path, SERVER + "bogus = 1\n" + SERVER + "bogus = 1\n")
    assert "the name 'web' is taken" in text
    assert "the address 127.0.0.1:8080 is taken" in text
    assert text.count("unknown key 'bogus'") == 2


def test_each_circle_of_dependencies_is_reported_once(tmp_path: Path) -> None:
    server = "[[server]]\nname = '{0}'\napp = 'a:b'\nbind = ':{1}'\ndepends_on = [{2}]\n"
    text = told(
        tmp_path,
        server.format("a", 1, "'b'")
        + server.format("b", 2, "'c'")
        + server.format("c", 3, "'a'")
        + server.format("d", 4, "'a', 'e'")
        + server.format("e", 5, "'d'"),
    )
    assert len(text.splitlines()) == 2
    assert "a → b → c → a" in text
    assert "d → e → d" in text


@pytest.mark.slow
def test_a_long_chain_of_dependencies_is_no_circle(tmp_path: Path) -> None:
    server = "[[server]]\nname = 's{0}'\napp = 'a:b'\nbind = ':{1}'\ndepends_on = [{2}]\n"
    chain = "".join(server.format(n, n + 1, f"'s{n + 1}'" if n < 4999 else "") for n in range(5000))
    assert told(tmp_path, chain) == ""


def test_completed_is_for_jobs(tmp_path: Path) -> None:
    job = '[[server]]\nname = "job"\njob = true\ncommand = ["x"]\n'
    line = 'depends_on = [{ name = "job", condition = "completed" }]\n'
    assert told(tmp_path, SERVER + line + job) == ""
    assert "no job" in told(tmp_path, SERVER + line + SERVER.replace("web", "job").replace("8080", "1"))


def test_depending_on_a_server_with_problems_is_no_second_problem(tmp_path: Path) -> None:
    bad = '[[server]]\nname = "bad"\nbind = ":x y"\napp = "a:b"\n'
    assert len(told(tmp_path, SERVER + 'depends_on = ["bad"]\n' + bad).splitlines()) == 1


def server(name: str, **keys: Any) -> ServerConfig:
    return ServerConfig(
        **{"name": name, "bind": f"127.0.0.1:{sum(map(ord, name))}", "command": ["x"], **keys}
    )


def test_users_are_accounts_whatever_their_spelling() -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    found = os_users_by_server(
        [server("a"), server("b", user="nobody:www"), server("c", user="no-such"), server("d", user=me)]
    )
    assert found == {"a": me, "b": "nobody", "c": "no-such", "d": me}


def test_user_without_an_account_is_its_number() -> None:
    assert run_as(4_000_000, lambda: os_users_by_server([server("a")])) == {"a": "4000000"}


def test_stop_takes_as_long_as_the_longest_chain() -> None:
    limits = {"stop_timeout": 5, "drain_timeout": 2}
    db = server("db", **limits)
    api = server("api", **limits, depends_on=["db", "gone"])
    other = server("other", **limits, hooks={"after_stop": ["x"]})
    queue = ServerConfig(name="queue", command=["x"], stop_timeout=5, drain_timeout=2)
    assert maximum_pool_stop_seconds([]) == 0.0
    assert maximum_pool_stop_seconds([], 3.0) == 3.0
    assert maximum_pool_stop_seconds([db]) == 7.0
    assert maximum_pool_stop_seconds([db, api], 1.0) == 15.0
    assert maximum_pool_stop_seconds([db, other]) == 12.0
    assert maximum_pool_stop_seconds([queue]) == 5.0
    assert maximum_pool_stop_seconds([server("quick", **limits, hooks={"before_start": ["x"]})]) == 7.0


def test_addresses_of_tables_are_in_conflict_with_servers_and_each_other() -> None:
    tables = Tables(metrics=MetricsTable(bind="127.0.0.1:9464"))
    assert [(name, address.key) for name, address in scalar_bind_addresses(tables)] == [
        ("metrics", "127.0.0.1:9464")
    ]
    assert [(name, address.key) for name, address in named_addresses(tables) if address] == [
        ("[metrics]", "127.0.0.1:9464")
    ]
    servers = [("a", parse("127.0.0.1:1")), ("b", parse(":9464"))]
    ((path, other, finding),) = table_conflicts(tables, servers)
    assert (path, other) == (("metrics", "bind"), "b")
    assert "overlaps" in finding.message
    assert [*table_conflicts(tables, servers[:1])] == []
    assert [*table_conflicts(Tables(), [*servers, *servers])] == [], "conflicts of servers are their own"


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", "the address 127.0.0.1:80 is taken by 'a'"),
        (":80", ":80", "the address 0.0.0.0:80 is taken by 'a'"),
        (":80", "127.0.0.1:80", "127.0.0.1:80 overlaps :80 (all addresses) of 'a'"),
        ("127.0.0.1:80", ":80", ":80 (all addresses) overlaps 127.0.0.1:80 of 'a'"),
        ("[::]:80", "0.0.0.0:80", "0.0.0.0:80 overlaps [::]:80 (IPv4 too) of 'a'"),
        ("localhost:80", "[::1]:80", "[::1]:80 overlaps localhost:80 of 'a'"),
        ("127.0.0.1:80", "127.0.0.1:81", ""),
        ("127.0.0.1:80", "127.0.0.2:80", ""),
        ("127.0.0.1:auto", "127.0.0.1:auto", ""),
    ],
)
def test_overlapping_addresses_are_spelt_out(one: str, other: str, message: str) -> None:
    found = [*conflicts([("a", parse(one)), ("b", parse(other))])]
    assert [(later, first, finding.message) for later, first, finding in found] == (
        [(1, 0, message)] if message else []
    )


def test_third_server_of_an_address_conflicts_with_the_first() -> None:
    there = [(name, parse("127.0.0.1:80")) for name in ("a", "b", "c")]
    assert [(later, first) for later, first, _ in conflicts(there)] == [(1, 0), (2, 0)]


def test_names_that_differ_in_case_are_one_name() -> None:
    found = [
        *conflicts(
            [("Web", None), ("", None), ("web", None), ("", None), ("Web", parse(":1")), ("x", parse(":1"))]
        )
    ]
    assert [(later, first, finding.message) for later, first, finding in found] == [
        (2, 0, "the name 'web' is taken by 'Web' (selecting ignores case)"),
        (4, 0, "the name 'Web' is taken"),
        (5, 4, "the address 0.0.0.0:1 is taken by 'Web'"),
    ]


def test_dependency_on_a_job_with_times_cannot_be_waited_for() -> None:
    nightly = ServerConfig(name="nightly", job=True, command=["x"], every="0 3 * * *")
    ((depending, finding),) = dependency_findings([nightly, server("a", depends_on=["nightly"])])
    assert (depending.name, finding.path) == ("a", ("depends_on", 0))
    assert "runs at certain times" in finding.message
    assert [*dependency_findings([server("a", depends_on=["bad"])], ["bad"])] == []
    ((_, finding),) = dependency_findings([server("a", depends_on=["a"])])
    assert finding.message == "depends on itself"


SOON_SECONDS = 5.0


@pytest.mark.slow
def test_ten_thousand_addresses_of_one_port_are_compared_soon(tmp_path: Path) -> None:
    servers = "".join(
        f'[[server]]\nname = "s{n}"\nbind = "127.{n // 250}.{n % 250}.1:80"\napp = "a:b"\n'
        for n in range(10_000)
    )
    last = '[[server]]\nname = "all"\nbind = ":80"\napp = "a:b"\n'
    began = time.process_time()
    (problem,) = told(tmp_path, servers + last).splitlines()
    assert "overlaps" in problem
    assert time.process_time() - began < SOON_SECONDS
