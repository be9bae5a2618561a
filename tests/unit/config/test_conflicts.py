"""A command without `bind` and without `job` runs for ever, keyed by its name; what needs an address needs `bind`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig, ServerConfig
from poolctl.config.rules.conflicts import longest_stop_seconds
from tests.config_files import SERVER, load_text, told

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


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ('command = ["x", "--port={port}"]', "{port} needs an address"),
        ('command = ["x", "{host}", "{bind}"]', "{host} and {bind} need an address"),
        ('command = ["x", "--fd", "{fd}"]', "{fd} needs an address"),
        ('command = ["x"]\nenv = { AT = "{host}:{port}" }', "{port} and {host} need an address"),
        ('command = ["x"]\nsocket = "program"', "socket needs an address"),
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "scale = { min = 0 }",
            "scale.min: a program without 'bind' is not woken by a request; write workers = 1",
        ),
        ("kill_timeout = 5", 'write stop_timeout = "10s"'),
        ('stopsignal = "SIGINT"', "did you mean 'stop_signal'?"),
        ('stop_signal = "INT"', 'stop_signal: \'INT\' is not allowed here; allowed is "SIGTERM", "SIGINT"'),
        ('bind = "process:queue"', "'process:queue' is not an address; take out 'bind'"),
    ],
)
def test_key_that_cannot_work_without_an_address_is_a_problem(
    tmp_path: Path, line: str, message: str
) -> None:
    assert message in told(tmp_path, QUEUE + line + "\n")


def test_server_with_an_app_still_needs_bind(tmp_path: Path) -> None:
    assert "'bind' is missing; add bind" in told(tmp_path, '[[server]]\nname = "web"\napp = "a:b"\n')


def test_two_of_one_name_are_one_problem(tmp_path: Path) -> None:
    assert told(tmp_path, QUEUE + QUEUE).count("\n") == 0
    assert "the name 'queue' is taken" in told(tmp_path, QUEUE + QUEUE)


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
    assert longest_stop_seconds([queue(stop_timeout=7, drain_timeout=100)]) == 7
