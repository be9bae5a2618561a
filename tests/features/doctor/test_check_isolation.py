"""What `doctor` checks of users and files: each with files that others can really change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolctl.cli.pool_ref import PoolRef
from poolctl.features.doctor._check import CheckContext, CheckResult
from poolctl.features.doctor._check_isolation import files_others_may_change, shared_users
from tests.features.doctor.test_check_machine import examined, only
from tests.real_pool import RealPool

DAEMON = 1  # of Debian and others, with a group of its own
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
APP = ('app = "shop.web:app"', 'app_dir = "code"', 'bind = "127.0.0.1:8000"')
Check = Callable[[CheckContext], Iterator[CheckResult]]


def server(name: str, *lines: str) -> str:
    return "\n".join(["[[server]]", f'name = "{name}"', *(lines or ['command = ["true"]']), ""])


def said(check: Check, directory: Path, *servers: str) -> list[tuple[str, str, str]]:
    """What the check finds in a pool of these servers, with paths relative to its directory."""
    (directory / "pool.toml").write_text("".join(servers))
    context = CheckContext(PoolRef([f"{directory}/pool.toml"], f"{directory}/run"), os.environ)
    return [
        (each.status, *(text.replace(f"{directory}/", "") for text in (each.message, each.fix)))
        for each in check(context)
    ]


@pytest.mark.integration
@needs_root
@pytest.mark.capability
def test_servers_that_share_a_user_and_files_that_others_can_change_are_named(real_pool: RealPool) -> None:
    real_pool.open_to_all()
    real_pool.write_hello("web", "api", extra='user = "nobody"\napp_dir = "code"')
    real_pool.write("code/hello.py", (real_pool.directory / "hello.py").read_text()).chmod(0o666)
    code, found = examined(real_pool)
    assert code == 0
    assert only(found, "users", "ok")["message"].startswith("web, api share the user 'nobody'")
    path = real_pool.directory / "code/hello.py"
    assert only(found, "files", "warning") == {
        "name": "files", "check": "files", "status": "warning", "fix": f"chmod o-w {path}",
        "message": f"any user can change {path}, and so what web, api runs",
    }  # fmt: skip


@needs_root
def test_a_shared_user_is_a_warning_where_another_server_has_another_user(tmp_path: Path) -> None:
    nobody, other = 'user = "nobody"', 'user = "nobody:nogroup"'
    program = 'command = ["true"]'
    one, two = server("one", program, nobody), server("two", program, other)
    shared = "one, two share the user 'nobody': they are not isolated from each other"
    assert said(shared_users, tmp_path, one, two) == [("ok", shared, "")]
    assert said(shared_users, tmp_path, one, two, server("own")) == [
        ("warning", shared, "give each its own user if they must be isolated")
    ]
    assert said(shared_users, tmp_path, one, server("own")) == [("ok", "no servers share a user: nobody", "")]
    assert said(shared_users, tmp_path, server("own"), server("another")) == []


@pytest.mark.parametrize(
    ("opened", "lines"),
    [
        ("pool.toml", ()),
        ("code", APP),
        ("code/shop/web.py", APP),
        ("code/shop/parts", APP),
        ("code/settings.py", APP),
        ("bin/program", ('command = ["bin/program"]',)),
        ("bin/script.sh", ('command = ["sh", "-e", "bin/script.sh"]',)),
        ("bin", ('command = ["true"]', 'hooks = { before_start = ["sh", "bin/script.sh"] }')),
        ("web.env", ('command = ["true"]', 'env_file = "web.env"')),
    ],
)
def test_what_anyone_can_change_is_named_with_the_servers_that_run_it(
    tmp_path: Path, opened: str, lines: tuple[str, ...]
) -> None:
    for name in (
        "code/shop/__init__.py",
        "code/shop/web.py",
        "code/shop/parts/a.py",
        "code/settings.py",
        "web.env",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(0o640)
    for name in ("bin/program", "bin/script.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)  # nothing runs what is there
    two = [server("one", *lines), server("two")]
    assert said(files_others_may_change, tmp_path, *two) == [("ok", "pool.toml", "")]
    (tmp_path / opened).chmod((tmp_path / opened).stat().st_mode | 0o002)
    whose = "the pool" if opened == "pool.toml" else "one"
    assert said(files_others_may_change, tmp_path, *two) == [
        ("warning", f"any user can change {opened}, and so what {whose} runs", f"chmod o-w {opened}")
    ]


def test_env_file_that_anyone_can_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "web.env").touch(0o644)
    two = [server(name, 'command = ["true"]', 'env_file = "web.env"') for name in ("one", "two")]
    readable = ("warning", "any user can read web.env, and what is secret in it", "chmod o-r web.env")
    assert said(files_others_may_change, tmp_path, *two)[:-1] == [readable]
    (tmp_path / "web.env").chmod(0o640)
    assert said(files_others_may_change, tmp_path, *two) == [("ok", "pool.toml", "")]


def test_a_directory_with_the_sticky_bit_may_hold_files_but_no_modules(tmp_path: Path) -> None:
    program = tmp_path / "shared/program"
    program.parent.mkdir()
    program.touch(0o755)
    program.parent.chmod(0o1777)
    assert said(files_others_may_change, tmp_path, server("one", 'command = ["shared/program"]')) == [
        ("ok", "pool.toml", "")
    ]
    app = server("one", 'app = "app:app"', 'app_dir = "shared"', 'bind = "127.0.0.1:1"')
    found = ("warning", "any user can change shared, and so what one runs", "chmod o-w shared")
    assert found in said(files_others_may_change, tmp_path, app)


@needs_root
def test_the_servers_own_user_and_its_own_group_may_change_what_it_runs(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch()
    program.chmod(0o775)
    words = 'command = ["./program"]'
    os.chown(program, DAEMON, DAEMON)
    assert said(files_others_may_change, tmp_path, server("one", words, 'user = "daemon"')) == [
        ("ok", "pool.toml", "")
    ]
    assert said(files_others_may_change, tmp_path, server("one", words)) == [
        ("warning", "user daemon can change program, and so what one runs", "chown -h root program")
    ]
    os.chown(program, DAEMON, 4711)
    assert said(files_others_may_change, tmp_path, server("one", words, 'user = "daemon"')) == [
        ("warning", "group 4711 can change program, and so what one runs", "chmod g-w program")
    ]


def test_a_file_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    context = CheckContext(PoolRef([f"{tmp_path}/pool.toml"], f"{tmp_path}/run"), os.environ)
    (missing,) = files_others_may_change(context)
    assert (missing.status, missing.message, missing.fix) == (
        "problem", f"{tmp_path}/pool.toml: No such file or directory",
        "write one with poolctl init, or name another with -c",
    )  # fmt: skip
    assert [*files_others_may_change(CheckContext(None, os.environ))] == []
