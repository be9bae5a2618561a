"""Keys of a server as files have them, and a server with other values: what follows from them, and what stays."""

from __future__ import annotations

import copy
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from poolctl import ServerConfig
from poolctl.address import parse
from poolctl.errors import PoolValidateError
from tests.config_files import SERVER, load_text, told


def test_replaced_bind_takes_its_address_and_the_exposed_url_along() -> None:
    before = ServerConfig(name="a", bind="127.0.0.1:8080", app="a:b")
    after = before.replace(bind="127.0.0.1:9090")
    assert (after.bind, after.expose) == ("127.0.0.1:9090", "http://127.0.0.1:9090")
    assert after.address == parse("127.0.0.1:9090")
    assert (before.bind, before.expose) == ("127.0.0.1:8080", "http://127.0.0.1:8080")


def test_replaced_bind_keeps_a_url_that_was_given() -> None:
    before = ServerConfig(name="a", bind="127.0.0.1:8080", app="a:b", expose="https://a.example.com")
    assert before.replace(bind="127.0.0.1:9090").expose == "https://a.example.com"


def test_replaced_bind_of_the_same_key_has_the_address_as_it_is_written_now() -> None:
    # Of both versions of the protocol, and of one: they have the same key.
    before = ServerConfig(name="a", bind=":8080", app="a:b")
    assert before.address.dual
    assert before.replace(tags=["x"]).address.dual
    after = before.replace(bind="0.0.0.0:8080")
    assert (after.bind, after.address.dual) == (before.bind, False)


def test_patterns_of_watch_are_absolute_and_a_name_means_every_directory(tmp_path: Path) -> None:
    patterns = '{ include = ["*.html", "static/*.css", "/etc/app.conf", "local/"], exclude = ["tests"] }'
    (server,) = load_text(tmp_path, f"{SERVER}watch = {patterns}\n")
    here = str(tmp_path)
    assert server.to_dict()["watch"] == {
        "include": [f"{here}/**/*.html", f"{here}/static/*.css", "/etc/app.conf", f"{here}/**/local"],
        "exclude": [f"{here}/**/tests"],
    }
    again = server.replace(tags=["x"])
    assert again.watch == server.watch


def test_server_without_watch_names_none(tmp_path: Path) -> None:
    (server,) = load_text(tmp_path, SERVER)
    assert "watch" not in server.to_dict()


def test_watch_that_is_no_table_of_lists_is_a_problem(tmp_path: Path) -> None:
    for value, key in (("true", "server[0].watch"), ("{ include = '*.html' }", "server[0].watch.include")):
        assert key in told(tmp_path, f"{SERVER}watch = {value}\n")


def test_hooks_are_lists_of_words_and_merge_with_the_defaults(tmp_path: Path) -> None:
    defaults = '[defaults.hooks]\nbefore_start = ["a"]\nafter_stop = ["b", "c"]\n'
    (server,) = load_text(tmp_path, f'{defaults}{SERVER}hooks = {{ before_start = ["migrate", "--all"] }}\n')
    hooks = {"before_start": ["migrate", "--all"], "after_stop": ["b", "c"]}
    assert server.to_dict()["hooks"] == hooks
    assert server.replace(tags=["x"]).to_dict()["hooks"] == hooks
    (plain,) = load_text(tmp_path, SERVER)
    assert "hooks" not in plain.to_dict()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            '{ before_start = "migrate --all" }',
            "hooks.before_start: a command is a list of words, not a line for",
        ),
        ('{ before_start = "migrate --all" }', 'write ["migrate", "--all"]'),
        ('{ after_stop = [""] }', "hooks.after_stop: the program's name is empty"),
        ("{ after_stop = [] }", "hooks.after_stop: "),
        ('{ before_strat = ["a"] }', "did you mean 'before_start'?"),
        ('{ pre_start = ["a"] }', "another tool; write before_start = "),
        ('["a"]', "hooks: a list is not allowed here"),
    ],
)
def test_hook_that_is_no_list_of_words_is_a_problem(tmp_path: Path, value: str, problem: str) -> None:
    assert problem in told(tmp_path, f"{SERVER}hooks = {value}\n")


def test_stop_signal_of_the_defaults_is_for_commands(tmp_path: Path) -> None:
    command = '[[server]]\nname = "queue"\ncommand = ["true"]\n'
    text = f'[defaults]\nstop_signal = "SIGINT"\n{SERVER}{command}'
    web, queue = load_text(tmp_path, text)
    assert (web.stop_signal, web.stop_signal_number) == (None, signal.SIGTERM)
    assert (queue.stop_signal, queue.stop_signal_number) == ("SIGINT", signal.SIGINT)
    assert "stop_signal" not in web.to_dict()
    assert "stop_signal is for a command" in told(tmp_path, f'{SERVER}stop_signal = "SIGINT"\n')


@pytest.mark.parametrize(("key", "default"), [("stop_group", "after"), ("stdin", "null")])
def test_key_of_a_command_is_written_with_its_default_and_an_app_has_none(
    tmp_path: Path, key: str, default: str
) -> None:
    web, queue = load_text(tmp_path, f'{SERVER}[[server]]\nname = "queue"\ncommand = ["true"]\n')
    assert (queue.to_dict()[key], key in web.to_dict()) == (default, False)


@pytest.mark.parametrize(
    ("keys", "policy"),
    [
        ({"bind": ":1", "app": "a:b"}, "always"),
        ({"bind": ":1", "command": ["serve"]}, "always"),
        ({"bind": ":1", "app": "a:b", "restart": {"limit": 3}}, "always"),
        ({"bind": ":1", "app": "a:b", "restart": "no"}, "no"),
        ({"command": ["work"]}, "on-failure"),
        ({"command": ["migrate"], "job": True}, "on-failure"),
        ({"command": ["work"], "restart": "always"}, "always"),
    ],
)
def test_server_with_an_address_is_always_restarted_unless_its_policy_says_otherwise(
    keys: dict[str, Any], policy: str
) -> None:
    server = ServerConfig(name="a", **keys)
    assert (server.restart_policy, server.to_dict()["restart"]["policy"]) == (policy, policy)


def test_ready_after_of_the_defaults_is_for_programs_that_show_in_no_other_way_that_they_are_ready(
    tmp_path: Path,
) -> None:
    queue = '[[server]]\nname = "queue"\ncommand = ["true"]\nhealth.liveness = { exec = ["true"] }\n'
    says = '[[server]]\nname = "says"\ncommand = ["true"]\nnotify = true\n'
    servers = load_text(tmp_path, f'[defaults]\nready_after = "20s"\n{SERVER}{queue}{says}')
    assert [each.to_dict().get("ready_after") for each in servers] == [None, 20.0, None]
    assert [each.is_ready_by_running for each in servers] == [False, True, False]


def test_ready_line_of_the_defaults_is_for_programs_that_do_not_say_it_otherwise(tmp_path: Path) -> None:
    programs = (
        '[[server]]\nname = "queue"\ncommand = ["true"]\n[[server]]\nname = "own"\ncommand = ["true"]\n'
    )
    others = '[[server]]\nname = "job"\ncommand = ["true"]\njob = true\n'
    others += '[[server]]\nname = "says"\ncommand = ["true"]\nnotify = true\n'
    text = f'[defaults]\nready_line = "ready"\nready_after = "20s"\n{SERVER}{programs}ready_line = "go"\n{others}'
    servers = load_text(tmp_path, text)
    assert [each.ready_line for each in servers] == [None, "ready", "go", None, None]
    assert not any(each.is_ready_by_running for each in servers)


def test_socket_mode_of_the_defaults_is_for_unix_sockets(tmp_path: Path) -> None:
    text = f'[defaults]\nsocket_mode = "660"\nsocket_owner = "daemon"\n{SERVER}'
    inside = '[[server]]\nname = "inside"\nbind = "unix:a.sock"\napp = "a:b"\n'
    web, unix = load_text(tmp_path, text + inside)
    assert (unix.socket_mode, unix.socket_owner) == ("0660", "daemon")
    assert (web.socket_owner, "socket_mode" in web.to_dict()) == (None, False)
    assert unix.to_dict()["socket_mode"] == "0660"
    (unix,) = load_text(tmp_path, inside)
    assert (unix.socket_mode, unix.socket_owner) == ("0666", None)
    assert "defaults.socket_mode: 'rw' is not allowed" in told(
        tmp_path, f'[defaults]\nsocket_mode = "rw"\n{SERVER}'
    )


def test_umask_is_octal_digits_in_quotes(tmp_path: Path) -> None:
    (server,) = load_text(tmp_path, f'{SERVER}umask = "027"\n')
    assert server.to_dict()["umask"] == "027"
    assert 'octal digits in quotes: "0022"' in told(tmp_path, f"{SERVER}umask = 22\n")
    assert 'octal digits: "0022"' in told(tmp_path, f'{SERVER}umask = "088"\n')


def test_env_file_left_out_is_the_one_next_to_the_file(tmp_path: Path) -> None:
    text = f'{SERVER}[[server]]\nname = "b"\nbind = ":81"\napp = "a:b"\nenv_file = []\n'
    assert [server.env_file for server in load_text(tmp_path, text)] == [(), ()]
    (tmp_path / ".env").mkdir()
    assert [server.env_file for server in load_text(tmp_path, text)] == [(), ()]
    (tmp_path / ".env").rmdir()
    (tmp_path / ".env").write_text("A=1\nB=2\n")
    first, second = load_text(tmp_path, text.replace('app = "hello:app"', 'app = "a:b"\nenv.B = "3"'))
    assert (first.env_file, second.env_file) == ((f"{tmp_path}/.env",), ())
    assert first.replace(tags=["x"]).env_file == first.env_file
    (defaults, _) = load_text(tmp_path, "[defaults]\nenv_file = []\n" + text)
    assert defaults.env_file == ()


def test_invalid_default_env_file_is_a_problem_that_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A\n")
    config = load_text(tmp_path, SERVER)
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    (problem,) = [str(each) for each in caught.value.exceptions if ".env" in str(each)]
    assert "env_file = [] is none" in problem


async def app(scope: Any, receive: Any, send: Any) -> None: ...


def test_an_own_expose_stays() -> None:
    server = ServerConfig(name="a", bind=":1", app=app, expose="https://shop.example/")
    assert server.expose == "https://shop.example/"
    assert server.at(parse(":2")).expose == "https://shop.example/"


def test_server_config_refuses_assignments() -> None:
    server = ServerConfig(name="a", bind=":1", app=app, env={"A": "1"}, tags=["x"])
    with pytest.raises(ValidationError, match="frozen"):
        server.name = "b"
    with pytest.raises(ValidationError, match="frozen"):
        del server.name
    with pytest.raises(ValidationError, match="frozen"):
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


@pytest.mark.parametrize(
    ("keys", "overlaps"),
    [
        ({"app": "a:b"}, True), ({"app": "a:b", "overlap": False}, False),
        ({"command": ["x"]}, True), ({"command": ["x"], "notify": True}, True),
        ({"command": ["x", "{port}"], "notify": True}, False), ({"command": ["x"], "socket": "program"}, False),
        ({"command": ["x"], "overlap": False}, False),
        ({"command": ["x"], "notify": True, "overlap": False}, False),
    ],
)  # fmt: skip
def test_old_and_new_workers_overlap_where_both_can_have_the_address(
    keys: dict[str, Any], overlaps: bool
) -> None:
    assert ServerConfig(**{"name": "a", "bind": ":1", **keys}).may_overlap is overlaps


def test_programs_without_a_port_overlap_if_there_are_several() -> None:
    assert not ServerConfig(name="a", command=["x"]).may_overlap
    assert ServerConfig(name="a", command=["x"], workers=2).may_overlap


def test_sleep_is_for_servers_without_a_minimum_of_workers() -> None:
    sleepy = ServerConfig(name="a", bind=":1", app="a:b", scale={"min": 0, "idle": 60})
    assert (sleepy.idle_seconds, sleepy.workers) == (60.0, 1)
    awake = ServerConfig(name="a", bind=":1", app="a:b", scale={"min": 3, "max": 3})
    assert (awake.idle_seconds, awake.workers) == (0.0, 3)


def test_server_is_written_with_its_app_and_without_an_address_that_it_lacks() -> None:
    app = ServerConfig(name="a", bind=":1", app=len).to_dict()
    assert (app["app"], app["name"], app["bind"]) == (repr(len), "a", "0.0.0.0:1")
    assert not {"bind", "expose"} & ServerConfig(name="q", command=["x"]).to_dict().keys()
    assert "app" not in ServerConfig(name="q", command=["x"]).to_dict()


@pytest.mark.parametrize(
    ("given", "head", "name", "bind"),
    [
        ({"name": "a", "bind": ":x"}, "a has 1 problem", "a", ":x"),
        ({"name": "a", "listen": ":x"}, "a has 1 problem", "a", ":x"),
        ({"name": "a" * 80, "bind": ":x"}, "a" * 60 + " has 1 problem", "a" * 80, ":x"),
        ({"bind": ":1", "app": "a:b"}, "the server has 1 problem", "", ":1"),
        ({"name": "a", "bind": 3, "app": "a:b"}, "a has 1 problem", "a", ""),
        ({"name": "", "bind": ":1", "app": "a:b"}, "the server has 1 problem", "", ":1"),
    ],
)
def test_refused_server_is_named(given: dict[str, Any], head: str, name: str, bind: str) -> None:
    with pytest.raises(PoolValidateError) as refused:
        ServerConfig(**given)
    assert refused.value.message == head
    assert {(each.name, each.bind) for each in refused.value.exceptions} == {(name, bind)}


def test_keys_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b", app_dir="/app", cwd="/app")
    tables = {"http", "health", "restart", "recovery", "limits", "log", "scale"}
    assert {key: value for key, value in server.to_dict().items() if key not in tables} == {
        "name": "web", "app": "a:b", "bind": "127.0.0.1:1", "expose": "http://127.0.0.1:1", "factory": False,
        "interface": "auto",
        "app_dir": "/app", "socket": "pool", "notify": False, "job": False, "overlap": True, "handler_key": "",
        "env": {}, "env_file": [], "cwd": "/app", "preload": False, "tags": [], "labels": {}, "disabled": False,
        "on_demand": False, "mandatory": False, "depends_on": [], "tls": False, "start_timeout": 30.0,
        "stop_timeout": 10.0, "drain_timeout": 30.0,
    }  # fmt: skip


def test_keys_of_a_file_include_short_forms_next_to_the_keys_they_stand_for() -> None:
    keys = ServerConfig.keys_in_files()
    assert keys[keys.index("bind") + 1] == "listen"
    assert keys[keys.index("scale") - 1] == "workers"
