"""What a server's configuration makes of a worker."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import Any

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from poolctl import ServerConfig
from poolctl.config import load
from poolctl.errors import ServerError
from poolctl.runners import worker_spec as specs
from poolctl.runners.worker_spec import worker_spec
from tests.asgi_apps import hello
from tests.config_files import SERVER

IMPORTS = "shop.web imports {!r}, which is "


def server_of(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": "127.0.0.1:8080", "app": "a:b"} | keys)


def program_of(*words: str, **keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": "127.0.0.1:8080", "command": list(words)} | keys)


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("shop", "there is no module 'shop.web' in /srv; check app and app_dir"),
        ("shop.web", "there is no module 'shop.web' in /srv; check app and app_dir"),
        ("shop.models", "there is no module 'shop.models' in /srv; check app and app_dir"),
        ("yaml", f"{IMPORTS.format('yaml')}not installed; install it there: /env/bin/python -m pip install PyYAML"),
        (
            "yaml.gone",
            (f"{IMPORTS.format('yaml.gone')}not installed; "
            "check its name, or install the package or version that has yaml.gone"),
        ),
        (
            "tkinter",
            (f"{IMPORTS.format('tkinter')}part of Python, but not of /env/bin/python; "
            "check its name, or set python to an interpreter that has it"),
        ),
        ("yaml; rm -r /", "check shop.web:app"),
    ],
)  # fmt: skip
def test_missing_module_is_looked_for_in_the_files_or_the_packages(missing: str, hint: str) -> None:
    server = ServerConfig(
        name="web", bind="127.0.0.1:1", app="shop.web:app", app_dir="/srv", python="/env/bin/python"
    )
    assert specs.missing_module_hint(missing, server) == hint


def test_missing_module_may_be_in_an_environment_that_is_newer_than_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.chdir(tmp_path)
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="shop:app")
    hint = specs.missing_module_hint("yaml", server)
    assert hint.endswith(f"install it there: {sys.executable} -m pip install PyYAML"), (
        "of a program's own server"
    )
    (tmp_path / "pool.toml").write_text(SERVER.replace("hello", "shop"))
    (server,) = load("pool.toml", {})
    new = f"python3 -m venv {tmp_path}/.venv && {tmp_path}/.venv/bin/python -m pip install uvicorn PyYAML"
    assert specs.missing_module_hint("yaml", server).endswith(f"install it beside the file: {new}")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    there = f"; poolctl reload, which uses {python}: it was not there when the pool read its files"
    assert specs.missing_module_hint("yaml", server).endswith(there)
    other = server.replace(python="/env/bin/python")
    assert specs.missing_module_hint("yaml", other).endswith("/env/bin/python -m pip install PyYAML")


def test_placeholders_of_a_command_are_its_name_address_and_descriptor() -> None:
    words = ["x", "--fd={fd}", "{name}", "{bind}", "{host}/{port}"]
    assert specs.argument_vector(program_of(*words)) == [
        "x", "--fd=3", "web", "127.0.0.1:8080", "127.0.0.1/8080",
    ]  # fmt: skip
    assert specs.argument_vector(server_of()) == []


def test_program_finds_its_address_in_its_environment_unless_it_has_its_own() -> None:
    found = specs.added_environment(program_of("x", env={"URL": "http://{host}:{port}", "PORT": "1"}))
    assert (found["URL"], found["HOST"], found["PORT"]) == ("http://127.0.0.1:8080", "127.0.0.1", "1")
    assert specs.added_environment(server_of(env={"A": "{host}"})) == {"A": "{host}"}


def test_hook_runs_as_a_program_of_the_server_that_is_no_job_and_has_no_certificate() -> None:
    server = program_of(
        "x", hooks={"before_start": ["migrate"]}, notify=True, stop_signal="SIGINT", stdin="open"
    )
    hook = specs.hook_config(server, "before_start")
    says = program_of("x", hooks={"before_start": ["migrate"]}, ready_line="up")
    assert specs.hook_config(says, "before_start").ready_line is None
    assert (list(hook.command or ()), hook.app, hook.name) == (["migrate"], None, "web")
    assert (hook.job, hook.notify, hook.preload, hook.stop_signal, hook.tls, hook.stdin) == (
        False,
        False,
        False,
        None,
        False,
        "null",
    )
    assert list(specs.hook_config(server, "after_stop").command or ()) == []
    assert specs.hook_id("web", "before_start") == "web.before_start"


def test_user_that_is_the_pools_own_or_missing_is_no_other_user() -> None:
    assert specs.user_ids(server_of()) is None
    assert specs.user_id(server_of()) == specs.usable_user_id(server_of()) == os.geteuid()
    unknown = server_of(user="nobody-of-this-name")
    with pytest.raises(ServerError, match="there is no user or group 'nobody-of-this-name'"):
        specs.user_ids(unknown)
    assert specs.usable_user_id(unknown) is None


def test_more_open_files_raise_the_hard_limit_and_fewer_keep_it() -> None:
    for limit, expected in ((None, [20, 40]), (30, [30, 40]), (60, [60, 60])):
        server = server_of(limits={} if limit is None else {"open_files": limit})
        assert specs.preload_spec(server, interpreter="", open_files=(20, 40))["open_files"] == expected


@pytest.mark.parametrize(
    ("trusted", "peer", "is_believed"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "::ffff:127.0.0.1", True),
        (["127.0.0.1"], "::ffff:127.0.0.2", False),
        (["10.1.2.3/8"], "10.9.9.9", True),
        (["10.1.2.3/8"], "::ffff:10.9.9.9", True),
        (["10.1.2.3/8"], "::ffff:11.9.9.9", False),
        (["fd00::1/64"], "fd00::2", True),
        (["unix"], "::1", False),
        (["10.0.0.0/8", "*"], "192.0.2.1", True),
        ([], "127.0.0.1", False),
    ],
)
def test_uvicorn_believes_trusted_proxies_in_every_form_of_their_address(
    trusted: list[str], peer: str, is_believed: bool
) -> None:
    found = specs.uvicorn_settings(server_of(http={"trusted_proxies": trusted}))["forwarded_allow_ips"]
    middleware: Any = ProxyHeadersMiddleware
    assert (peer in middleware(hello, found).trusted_hosts) == is_believed


def test_certificate_is_read_with_its_key_and_authorities(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cert", "key", "ca"):
        (tmp_path / name).write_text(name)
    tls = {"cert": str(tmp_path / "cert"), "key": str(tmp_path / "key")}
    monkeypatch.setenv("SECRET", "s")
    assert specs.tls_contents(server_of()) == []
    assert specs.tls_settings(server_of()) is None
    assert specs.tls_contents(server_of(tls=tls)) == [b"cert", b"key"]
    assert specs.tls_contents(server_of(tls={**tls, "ca": str(tmp_path / "ca")})) == [b"cert", b"key", b"ca"]
    settings = [
        specs.tls_settings(server_of(tls={**tls, **more})) for more in ({}, {"password_env": "SECRET"})
    ]
    assert [each and each["password"] for each in settings] == [None, "s"]
    (tmp_path / "key").unlink()
    with pytest.raises(ServerError, match=r"cannot read .*: No such file or directory"):
        specs.tls_contents(server_of(tls=tls))


def test_files_for_a_worker_are_closed_here_at_the_end() -> None:
    with specs.memory_files([b"one", b"two"]) as fds:
        assert [os.pread(fd, 9, 0) for fd in fds] == [b"one", b"two"]
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def whole_spec(server: ServerConfig) -> dict[str, Any]:
    return worker_spec(server, interpreter="python", listeners=1, tls_files=0, open_files=(1, 2))


def test_program_shares_no_adoption_pair_and_an_application_does() -> None:
    found = {
        kind: whole_spec(server) for kind, server in (("app", server_of()), ("command", program_of("x")))
    }
    assert {kind: (spec["kind"], spec["adoption"]) for kind, spec in found.items()} == {
        "app": ("app", True),
        "command": ("command", False),
    }


@pytest.mark.parametrize(
    ("http", "settings"),
    [
        ({"access_log": False}, None),
        ({"access_log": True}, {"log": "json", "answer": False}),
        ({"access_log": "errors"}, {"log": None, "answer": False, "failed": "json"}),
        ({"access_log": False, "request_id": True}, {"log": None, "answer": True}),
    ],
)
def test_worker_logs_the_requests_that_its_server_asks_for(
    http: dict[str, Any], settings: dict[str, Any] | None
) -> None:
    assert whole_spec(server_of(http=http, log={"format": "json"}))["requests"] == settings


def test_pool_without_access_logs_logs_no_requests_of_any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(specs.NO_ACCESS_LOG_VARIABLE, "1")
    for access_log in (True, "errors"):
        assert specs.logged_requests(server_of(http={"access_log": access_log})) is False
    found = whole_spec(server_of(http={"access_log": True, "request_id": True}))
    assert found["requests"] == {"log": None, "answer": True}


def test_requests_in_progress_get_four_fifths_of_the_time_for_a_stop() -> None:
    assert specs.stop_seconds(server_of(stop_timeout=10)) == 8


def test_limits_of_the_http_table_are_those_of_the_workers_server() -> None:
    http = {"head_timeout": 3, "max_head_size": 5000, "max_connections": 7}
    assert specs.connection_limits(server_of(http=http)) == {
        "head_seconds": 3, "head_bytes": 5000, "max_connections": 7,
    }  # fmt: skip


def test_one_file_may_hold_certificate_and_key(tmp_path: Path) -> None:
    (tmp_path / "both").write_text("both")
    assert specs.tls_contents(server_of(tls={"cert": str(tmp_path / "both")})) == [b"both", b"both"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_only_root_runs_a_server_as_another_user() -> None:
    other = next(each for each in pwd.getpwall() if each.pw_uid)
    assert specs.user_ids(server_of(user=other.pw_name)) == (other.pw_uid, other.pw_gid)
    os.seteuid(4_000_000)
    try:
        with pytest.raises(ServerError, match=f"only root can run it as '{other.pw_name}'"):
            specs.user_ids(server_of(user=other.pw_name))
    finally:
        os.seteuid(0)
