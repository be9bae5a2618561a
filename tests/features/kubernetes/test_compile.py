"""A pool compiled for a cluster: the order of its servers, their digests, and what is refused or left out."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.outcome import Failure
from poolctl.config import load
from poolctl.features.kubernetes._compile import CompiledPool, compile_pool
from tests.configuration import server

from .valid_objects import assert_valid

POOL = '[pool]\nname = "shop"\n[kubernetes]\nimage = "shop:1"\n'
Compile = Callable[..., CompiledPool]
NAMED_BY_DIGEST = ("ConfigMap", "Secret", "Job")


@pytest.fixture
def compiled(directory: Path) -> Compile:
    """`compiled(*tables, pool=POOL)`: the compiled pool."""

    def compile_tables(*tables: str, pool: str = POOL) -> CompiledPool:
        path = directory / "pool.toml"
        path.write_text("\n".join((pool, *tables)))
        config = load([str(path)])
        assert not config.problems
        found = compile_pool(config, [str(path)])
        for each in (*found.routes, *(each for objects in found.objects.values() for each in objects)):
            assert_valid(each)
        return found

    return compile_tables


@pytest.fixture
def refused(compiled: Compile) -> Callable[..., list[str]]:
    """`refused(*tables, pool=POOL)`: the file, key and message of each problem."""

    def compile_tables(*tables: str, pool: str = POOL) -> list[str]:
        with pytest.raises(Failure) as caught:
            compiled(*tables, pool=pool)
        assert caught.value.outcome.exit_code == 5
        return [
            f"{Path(each.file or '').name} {each.key or '-'}: {each.message}"
            for each in caught.value.outcome.errors
        ]

    return compile_tables


def app(name: str, port: int = 8000, **keys: Any) -> str:
    return server(name, bind=f"127.0.0.1:{port}", app=f"{name}:app", **keys)


def names(found: CompiledPool, name: str) -> dict[str, str]:
    """The names of a server's objects by kind."""
    return {each["kind"]: each["metadata"]["name"] for each in found.objects[name]}


def main_object(found: CompiledPool, name: str) -> dict[str, Any]:
    (main,) = (each for each in found.objects[name] if each["kind"] in ("Deployment", "CronJob", "Job"))
    return main


def test_pool_without_a_route_has_none_on_a_cluster(compiled: Compile) -> None:
    found = compiled(app("web"), pool=f'{POOL}gateway = "edge"\n')
    assert (found.routes, found.warnings, [*found.objects]) == ([], [], ["web"])


def test_addresses_are_those_of_the_services(compiled: Compile) -> None:
    found = compiled(app("web", 8000, env={"DB": "${server.db.url}"}), app("db", 8002))
    (secret,) = (each for each in found.objects["web"] if each["kind"] == "Secret")
    assert base64.b64decode(secret["data"]["DB"]) == b"http://db:8002"
    assert names(found, "web")["Service"] == "web"


def test_digests_change_with_their_server_alone(compiled: Compile) -> None:
    def compile_with(**keys: Any) -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
        found = compiled(
            app("web", 8000, env={"WORD": "one"} | keys.pop("env", {}), **keys),
            app("db", 8001, env={"WORD": "one"}),
        )
        return {
            name: (names(found, name), main_object(found, name)["spec"]["template"]) for name in ("web", "db")
        }

    before = compile_with()
    assert compile_with() == before, "the same file makes the same objects"
    changes: list[tuple[dict[str, Any], set[str]]] = [
        ({"env": {"WORD": "two"}}, {"Secret"}),
        ({"env": {"MORE": ""}}, {"Secret"}),
        ({"health": "/check"}, {"ConfigMap"}),
        ({"image": "shop:2"}, set()),
        ({"limits": {"memory": "64M"}}, set()),
    ]
    for keys, changed in changes:
        after = compile_with(**keys)
        assert after["db"] == before["db"], keys
        (kinds, template), (kinds_before, template_before) = after["web"], before["web"]
        assert {kind for kind in kinds if kinds[kind] != kinds_before[kind]} == changed, keys
        assert template != template_before, keys
    assert compile_with(workers=3)["web"] == compile_with(workers=2)["web"], (
        "a number does not replace workers"
    )


def test_names_are_digests_of_what_is_in_the_object(compiled: Compile) -> None:
    found = compiled(app("web", env={"A": "b"}))
    for each in found.objects["web"]:
        is_immutable = each.get("immutable", False)
        assert is_immutable is (each["kind"] in ("ConfigMap", "Secret"))
        assert (each["metadata"]["name"] not in ("web", "shop-web")) is is_immutable
    container = main_object(found, "web")["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": names(found, "web")["Secret"]}}]


def test_all_keys_that_are_refused_are_named_at_once_at_their_places(refused: Any) -> None:
    found = refused(
        app("web", user="www-data"),
        app("Api", 8001),
        server("sleeper", bind="unix:/run/a.sock", app="a:b", scale={"min": 0, "idle": "5m"}),
        server("old", command=["old"], notify=True),
    )
    assert sorted(found) == [
        "pool.toml server[0].user: a pod has the user of its image",
        "pool.toml server[1].name: no Service can be named 'Api'",
        "pool.toml server[2].bind: a pod is reached by a port",
        "pool.toml server[2].scale.min: nothing wakes a server on a cluster",
        "pool.toml server[3].notify: Kubernetes does not know sd_notify",
    ]


@pytest.mark.parametrize(
    ("name", "keys", "kind", "longest"),
    [
        ("a", {"app": "a:b", "bind": ":8000"}, "Deployment", 63),
        ("a", {"command": ["a"], "job": True, "every": "0 3 * * *"}, "CronJob", 52),
        ("a", {"command": ["a"], "job": True}, "Job", 52),
    ],
)
def test_longest_name_is_that_of_the_object(
    name: str, keys: dict[str, Any], kind: str, longest: int, refused: Any, compiled: Compile
) -> None:
    length = longest - len("shop-")
    found = compiled(server(name * length, **keys))
    assert len(names(found, name * length)[kind]) == longest + len("-0123456789") * (kind == "Job")
    (message,) = refused(server(name * (length + 1), **keys))
    assert message == f"pool.toml server[0].name: no {kind} can be named 'shop-{name * (length + 1)}'"


def test_pool_without_a_name_has_that_of_its_directory_or_file(compiled: Compile, directory: Path) -> None:
    path = directory / "mail.toml"
    path.write_text('[kubernetes]\nimage = "a:1"\n' + app("web"))
    config = load([str(path)])
    found = compile_pool(config, [str(path)])
    assert names(found, "web")["Deployment"] == "mail-web"


def test_unreadable_env_files_are_problems_of_their_servers(refused: Any) -> None:
    tables = (app("web", env_file="missing.env"), app("mail", 8001, env_file="gone.env"))
    first, second = sorted(refused(*tables))
    assert re.match(r"pool\.toml server\[0\]\.env_file: .*missing\.env: there is no such file", first)
    assert re.match(r"pool\.toml server\[1\]\.env_file: .*gone\.env: there is no such file", second)


def test_ready_line_is_left_out_with_the_reason(compiled: Compile) -> None:
    found = compiled(server("queue", command=["work"], ready_line="^ready"))
    (warning,) = found.warnings
    assert "server[0].ready_line: Kubernetes does not read what a pod prints" in warning


def test_tables_that_are_left_out_are_named_with_the_reason(compiled: Compile) -> None:
    tables = (
        app("web"),
        '[gateway]\nbind = ":8443"\n',
        '[[route]]\nto = "web"\n',
        '[metrics]\nbind = ":9464"\n',
    )
    assert sorted(compiled(*tables).warnings) == [
        "[gateway] is not exported: it is for a pool on one machine",
        "[metrics] is not exported: it is for a pool on one machine",
        "[route] is not exported: gateway or ingress_class in [kubernetes] says what routes go through",
    ]
    found = compiled(*tables, pool=POOL + 'gateway = "edge"\n')
    assert sorted(found.warnings) == [
        "[gateway] is not exported: addresses, certificates and limits are those of the cluster's gateway",
        "[metrics] is not exported: it is for a pool on one machine",
    ]
    assert [each["kind"] for each in found.routes] == ["HTTPRoute"]
