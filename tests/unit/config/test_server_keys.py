"""Keys of a server as files have them, and a server with other values: what follows from them, and what stays."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

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


def test_replaced_bind_is_validated() -> None:
    before = ServerConfig(name="a", bind="127.0.0.1:8080", app="a:b")
    with pytest.raises(PoolValidateError):
        before.replace(bind="127.0.0.1:99999")


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
        ('{ after_stop = [""] }', "hooks.after_stop[0]: the program's name is empty"),
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
    assert first.environment() == {"A": "1", "B": "3"}
    assert first.replace(tags=["x"]).env_file == first.env_file
    (defaults, _) = load_text(tmp_path, "[defaults]\nenv_file = []\n" + text)
    assert defaults.env_file == ()
    assert "the environment variable A is not set" in told(tmp_path, text.replace("hello:app", "${A}:app"))


def test_invalid_default_env_file_is_a_problem_that_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A\n")
    config = load_text(tmp_path, SERVER)
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    (problem,) = [str(each) for each in caught.value.exceptions if ".env" in str(each)]
    assert "env_file = [] is none" in problem
