"""ServerConfig: one server, validated and immutable (contract §6)."""

from __future__ import annotations

import copy
import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig, TLSConfig
from poolctl.address import parse
from poolctl.errors import PoolValidateError, ServerError


async def app(scope: Any, receive: Any, send: Any) -> None: ...


def test_server_config_takes_an_app_or_its_name_and_listen_for_bind() -> None:
    server = ServerConfig(name="web", listen="*:8080", app=app)
    assert (server.bind, server.key, server.app) == ("0.0.0.0:8080", "0.0.0.0:8080", app)
    assert ServerConfig(name="web", bind=":1", app="a:b").app == "a:b"
    assert ServerConfig(name="web", bind=":1").app is None


def test_values_become_plain_ones() -> None:
    server = ServerConfig(
        name="web",
        bind="127.0.0.1:80",
        app=app,
        start_timeout=timedelta(minutes=1),
        stop_timeout="500ms",
        drain_timeout=0,
        log={"max_size": "1KiB", "path": "web.log"},
        tags=["a", "b"],
        workers=3,
        restart="always",
        depends_on=["db", {"name": "cache", "condition": "started"}],
        env={"A": "1"},
        tls=TLSConfig(cert="c.pem"),
    )
    assert (server.start_timeout, server.stop_timeout, server.drain_timeout) == (60.0, 0.5, 0.0)
    assert (server.log.max_size, server.log.path) == (1024, os.path.join(os.getcwd(), "web.log"))
    assert (server.tags, server.workers, server.scale.max) == (("a", "b"), 3, 3)
    assert (server.restart.policy, server.restart.backoff.initial) == ("always", 0.2)
    assert [(d.name, d.condition) for d in server.depends_on] == [("db", "ready"), ("cache", "started")]
    assert (server.expose, server.cwd) == ("https://127.0.0.1:80", os.getcwd())
    assert (server.origin, server.binds_itself) == (None, False)


@pytest.mark.parametrize(
    ("scale", "key", "message"),
    [
        ({"min": 0, "awake": ["* 24 * * *"]}, "scale.awake", "'24' is no hour; allowed is 0 to 23"),
        ({"min": 0, "asleep": [5]}, "scale.asleep", "5 is not allowed here"),
        ({"min": 0, "timezone": "Europe/Atlantis"}, "scale.timezone", "is no time zone of this machine"),
        (
            {"min": 2, "asleep": ["* 1 * * *"]},
            "scale.asleep",
            "for a server that can sleep, and scale.min is 2",
        ),
        ({"awake": ["* 1 * * *"]}, "scale.awake", "for a server that can sleep, and scale.min is 1"),
    ],
)
def test_windows_are_for_servers_that_can_sleep(scale: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(PoolValidateError) as caught:
        ServerConfig(name="web", bind=":1", app="a:b", scale=scale)
    (problem,) = caught.value.exceptions
    assert message in str(problem)
    assert key in str(problem)


def test_windows_are_kept_as_they_are_written() -> None:
    scale = {"min": 0, "awake": ["* 8-17 * * MON-FRI"], "asleep": (), "timezone": "UTC"}
    made = ServerConfig(name="web", bind=":1", app="a:b", scale=scale).scale
    assert (made.awake, made.asleep, made.timezone) == (("* 8-17 * * MON-FRI",), (), "UTC")


@pytest.mark.parametrize(
    ("bind", "tls", "expose"),
    [
        ("127.0.0.1:8081", False, "http://127.0.0.1:8081"),
        (":8081", False, "http://localhost:8081"),
        ("[::]:8081", True, "https://localhost:8081"),
        ("[::1]:8081", False, "http://[::1]:8081"),
        ("web.example:443", True, "https://web.example:443"),
        ("127.0.0.1:auto", False, "http://127.0.0.1:auto"),
        ("unix:/run/a.sock", False, "unix:/run/a.sock"),
        ("fd:3", False, "fd:3"),
    ],
)
def test_expose_is_derived_from_bind_and_tls(bind: str, tls: bool, expose: str) -> None:
    assert ServerConfig(name="a", bind=bind, app=app, tls=tls).expose == expose


@pytest.mark.parametrize("expose", ["http://[::g]:80", "http://[bad", "http://:80", "/etc/passwd"])
def test_expose_that_is_no_address_is_refused(expose: str) -> None:
    with pytest.raises(PoolValidateError) as refused:
        ServerConfig(name="a", bind=":1", app=app, expose=expose)
    assert "has no host" in str(refused.value.to_list())


@pytest.mark.parametrize(
    "expose",
    [
        "http://[::1]:80/x?y#z", "https://user:secret@shop.example:8443", "http://bücher.example", "shop_1.example",
        "example.org/path", "http://a?x=:", ":8080", "HTTP://a:auto", "unix:/run/a.sock", "http+unix://%2Frun%2Fa",
        "fd:3",
    ],
)  # fmt: skip
def test_expose_in_any_form_of_an_address_is_taken(expose: str) -> None:
    assert ServerConfig(name="a", bind=":1", app=app, expose=expose).expose == expose


def test_an_own_expose_stays() -> None:
    server = ServerConfig(name="a", bind=":1", app=app, expose="https://shop.example/")
    assert server.expose == "https://shop.example/"
    assert server.at(parse(":2")).expose == "https://shop.example/"


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(PoolValidateError) as caught:
        ServerConfig(name="a b", bind="nowhere", ap=app, workers=0, tags="x", address=3)
    error = caught.value
    assert (error.code, error.error) == (1322, "ErrorPoolValidate")
    text = "\n".join(str(child) for child in error.exceptions)
    for key in ("name", "bind", "ap", "workers", "tags", "address"):
        assert f"{key}: " in text
    assert all(isinstance(child, ServerError) and child.hint for child in error.exceptions)
    assert {child.name for child in error.exceptions if isinstance(child, ServerError)} == {"a b"}


@pytest.mark.parametrize("made", [{}, {"name": "a"}, {"bind": ":1"}, {"name": None, "bind": None}])
def test_missing_keys_are_reported(made: dict[str, Any]) -> None:
    with pytest.raises(PoolValidateError):
        ServerConfig(**made)


@pytest.mark.parametrize("value", [3, object(), [], "no app"])
def test_object_that_is_no_app_is_reported(value: object) -> None:
    with pytest.raises(PoolValidateError, match="problem"):
        ServerConfig(name="a", bind=":1", app=value)


@pytest.mark.parametrize(
    "given", [{"command": ["x\0"]}, {"env": {"A": "x\0"}}, {"cwd": "x\0"}, {"name": "a\0"}]
)
def test_no_text_may_hold_a_nul(given: dict[str, Any]) -> None:
    with pytest.raises(PoolValidateError) as caught:
        ServerConfig(**{"name": "a", "bind": ":1", **given})
    assert "NUL" in str(caught.value)


def test_server_config_refuses_assignments() -> None:
    server = ServerConfig(name="a", bind=":1", app=app, env={"A": "1"}, tags=["x"])
    with pytest.raises(AttributeError):
        server.name = "b"
    with pytest.raises(AttributeError):
        del server.name
    with pytest.raises(AttributeError):
        server.unknown = 1
    for change in (
        lambda: server.env.update(B="2"),
        lambda: server.env.__setitem__("B", "2"),
        lambda: server.labels.clear(),
        lambda: server.env.pop("A"),
    ):
        with pytest.raises(TypeError):
            change()
    given = {"A": "1"}
    made = ServerConfig(name="a", bind=":1", app=app, env=given)
    given["A"] = "2"
    assert made.env == {"A": "1"}


def test_equal_configurations_are_equal_and_hash_alike() -> None:
    def make(**more: Any) -> ServerConfig:
        return ServerConfig(name="a", bind=":1", app="a:b", env={"A": "1"}, **more)

    assert make() == make()
    assert len({make(), make(), make(workers=2)}) == 2
    assert make() != make(workers=2)
    assert make() != "a"


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_server_config_can_be_copied_and_pickled(twin: Any, tmp_path: Path) -> None:
    from tests.config_files import SERVER, load_text

    for server in (
        ServerConfig(name="a", bind=":1", app="a:b", env={"A": "1"}, tls={"cert": "c"}),
        load_text(tmp_path, SERVER)[0],
    ):
        made = twin(server)
        assert (made.name, made.address.dual, made.to_dict()) == (
            server.name,
            server.address.dual,
            server.to_dict(),
        )
        assert hash(made) == hash(server)


def test_replace_makes_another_one() -> None:
    server = ServerConfig(name="a", bind=":1", app="a:b", workers=2)
    other = server.replace(name="b", workers=3)
    assert (other.name, other.workers, other.bind, other.address.dual) == ("b", 3, "0.0.0.0:1", True)
    assert server.replace(bind="127.0.0.1:2").expose == "http://127.0.0.1:2"
    assert server.replace(listen="127.0.0.1:2").bind == "127.0.0.1:2"
    assert server.replace(tls={"cert": "c"}).expose == "https://localhost:1"
    with pytest.raises(PoolValidateError):
        server.replace(workers=0)


def test_an_address_that_was_chosen_takes_the_place_of_auto() -> None:
    server = ServerConfig(name="a", bind="127.0.0.1:auto", app=app)
    chosen = server.at(server.address.with_port(4000))
    assert (chosen.bind, chosen.key, chosen.expose) == (
        "127.0.0.1:4000",
        "127.0.0.1:4000",
        "http://127.0.0.1:4000",
    )
    assert server.bind == "127.0.0.1:auto"


def test_repr_names_server_address_and_app() -> None:
    assert repr(ServerConfig(name="a", bind=":1", app="m:app")) == "<ServerConfig a 0.0.0.0:1 app=m:app>"
    job = ServerConfig(name="j", job=True, command=["x", "y"])
    assert repr(job) == "<ServerConfig j job:j command=x y>"
    assert (
        repr(ServerConfig(name="a", bind=":1", handler_key="k")) == "<ServerConfig a 0.0.0.0:1 handler_key=k>"
    )


def test_own_variables_win_over_those_of_env_files(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("A=1\nB=1\nC=1\n")
    (tmp_path / "b.env").write_text("B=2\nC=2\n")
    files = [str(tmp_path / "a.env"), str(tmp_path / "b.env")]
    server = ServerConfig(name="a", bind=":1", app=app, env_file=files, env={"C": "3"})
    assert server.environment() == {"A": "1", "B": "2", "C": "3"}
    gone = ServerConfig(name="a", bind=":1", app=app, env_file=str(tmp_path / "gone"))
    with pytest.raises(ServerError, match="no such file"):
        gone.environment()


def test_a_program_that_binds_itself_is_known() -> None:
    assert ServerConfig(name="a", bind=":1", command=["x", "--port={port}"]).binds_itself
    assert not ServerConfig(name="a", bind=":1", command=["x", "{fd}"]).binds_itself
    assert ServerConfig(name="a", bind=":1", command=["x"], env={"AT": "{bind}"}).binds_itself
    assert ServerConfig(name="a", bind=":1", command=["x"], socket="program").binds_itself
    assert not ServerConfig(name="a", bind=":1", app="m:app", env={"AT": "{bind}"}).binds_itself


def test_validate_looks_at_the_outside_world(tmp_path: Path) -> None:
    ServerConfig(name="a", bind=":1", app=app).validate()
    ServerConfig(name="a", bind=":1", app="json:loads").validate()
    with pytest.raises(PoolValidateError) as caught:
        ServerConfig(name="a", bind=":1", app="no_such_module:app", app_dir=str(tmp_path)).validate()
    assert "no module 'no_such_module'" in str(caught.value)
    server = ServerConfig(name="a", bind=":1", app=app, cwd=str(tmp_path / "x"), tls={"cert": "no.pem"})
    with pytest.raises(PoolValidateError) as caught:
        server.validate()
    assert len(caught.value.exceptions) == 2


names = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
variables = st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True)


@given(
    name=names,
    port=st.integers(1, 65535),
    tags=st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), max_size=3),
    env=st.dictionaries(variables, texts, max_size=3),
    seconds=st.floats(0.001, 1e6),
    workers=st.integers(1, 100),
)
def test_a_valid_configuration_survives_being_written_down(
    name: str, port: int, tags: list[str], env: dict[str, str], seconds: float, workers: int
) -> None:
    server = ServerConfig(
        name=name,
        bind=f"127.0.0.1:{port}",
        app="a:b",
        tags=tags,
        env=env,
        start_timeout=seconds,
        workers=workers,
    )
    again = ServerConfig(**server.to_dict())
    assert again.to_dict() == server.to_dict()
    assert (again.workers, again.start_timeout, again.env) == (workers, seconds, env)


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(ServerConfig.keys_of)), anything, max_size=6))
def test_any_keywords_give_a_server_or_a_list_of_problems(given: dict[str, Any]) -> None:
    try:
        server = ServerConfig(**given)
    except PoolValidateError as error:
        problems = [str(problem) for problem in error.exceptions]
    else:
        problems = [server.name]
    assert problems
    assert all(problems)
