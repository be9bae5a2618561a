"""What servers refer to: interpreters, programs, users, directories, and apps that import or do not."""

from __future__ import annotations

import grp
import os
import pwd
import sys
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig, ServerConfig
from poolctl.config import Problem
from poolctl.config.checks import external_checks
from poolctl.config.checks.external_checks import (
    ExternalChecks,
    ImportJob,
    check_imports,
    check_interpreters,
    runs_python_as_root,
    unwritable_file_findings,
)
from tests.config_files import SERVER, load_text
from tests.descriptors import no_descriptor_left
from tests.environments import with_old_uvicorn
from tests.needs import needs
from tests.other_user import python_for_others
from tests.sandbox import run_as
from tests.unit.config.importable_apps import outside, servers


@pytest.mark.slow
def test_all_apps_are_imported_in_one_go_and_none_hides_another(apps: Path) -> None:
    lines = [f'app = "{name}:app"' for name in ("ends", "good", "killed", "boom", "syntax")]
    found = outside(apps, *lines, import_apps=True)
    assert [text.split("server[")[1][0] for text in found] == ["0", "2", "3", "4"]


def test_an_app_that_does_not_end_its_import_is_given_up(apps: Path) -> None:
    (apps / "slow.py").write_text("import time\ntime.sleep(300)\n")
    began = time.monotonic()
    (text,) = outside(apps, 'app = "slow:app"\nstart_timeout = "300ms"', import_apps=True)
    assert "was not imported within 0.3 s" in text
    assert time.monotonic() - began < 100


def test_handlers_are_imported_too(apps: Path) -> None:
    config = load_text(apps, '[pool]\nhandlers = "good:handlers"\n' + servers("", 'handler_key = "b"'))
    assert config.problems == []
    found = {str(problem).partition(": ")[2] for problem in config.check_external(import_apps=True)}
    assert any("[pool] handlers: good has no 'handlers'" in text for text in found)
    config = load_text(apps, '[pool]\nhandlers = "good:make"\n' + servers(""))
    assert config.check_external(import_apps=True) == []


def test_app_is_imported_in_the_environment_without_the_withheld_variables(apps: Path) -> None:
    (apps / "shows.py").write_text(
        "import os\nraise RuntimeError([os.environ.get(name) for name in ('SEEN', 'HIDDEN', 'OWN')])\n"
    )
    (server,) = load_text(apps, servers('app = "shows:app"\nenv = { OWN = "3" }'))
    checks = ExternalChecks({**os.environ, "SEEN": "1", "HIDDEN": "2"}, withheld=["HIDDEN"])
    checks.check([server], import_apps=True)
    ((concerned, finding),) = checks.problems
    assert concerned is server
    assert "['1', None, '3']" in finding.message


def test_command_is_not_imported(apps: Path) -> None:
    (text,) = outside(apps, f'command = ["{sys.executable}"]', 'app = "gone:app"', import_apps=True)
    assert "server[1]" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="root runs nothing")
def test_root_runs_the_interpreter_of_an_app_of_its_own_only(tmp_path: Path) -> None:
    config = load_text(
        tmp_path, servers("", 'user = "root"', 'user = "nobody"', 'user = "no-such-user-here"')
    )
    assert [runs_python_as_root(each) for each in config] == [True, True, False, False]
    (program,) = load_text(tmp_path, servers('command = ["sleep", "60"]'))
    assert not runs_python_as_root(program)


def test_nothing_of_the_apps_runs_in_this_process(apps: Path) -> None:
    outside(apps, 'app = "good:app"', import_apps=True)
    assert "good" not in sys.modules


def test_interpreter_without_uvicorn_names_the_fix(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    (text,) = outside(tmp_path, 'app = "good:app"\npython = "bare"')
    python = tmp_path / "bare" / "bin" / "python"
    assert f"{python} has no uvicorn; install it there: {python} -m pip install uvicorn" in text
    assert "server[0].python" in text


def test_an_interpreter_with_an_old_uvicorn_names_the_oldest_that_works(tmp_path: Path) -> None:
    python = with_old_uvicorn(tmp_path / "old")
    (text,) = outside(tmp_path, 'app = "good:app"\npython = "old"')
    assert f"{python} has uvicorn 0.34.0, and workers need 0.53 or newer" in text
    assert f"upgrade it there: {python} -m pip install --upgrade uvicorn" in text


@pytest.mark.parametrize(
    ("python", "told"),
    [("gone", "is not there"), ("plain.txt", "is not executable"), ("script", "is no Python interpreter")],
)
def test_file_that_is_no_interpreter_is_reported(tmp_path: Path, python: str, told: str) -> None:
    (tmp_path / "plain.txt").touch()
    (tmp_path / "script").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "script").chmod(0o755)
    (text,) = outside(tmp_path, f'app = "good:app"\npython = "{python}"')
    assert told in text


def test_old_interpreter_is_reported(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\necho poolctl 3 8 None\n")
    old.chmod(0o755)
    ((_, finding),) = check_interpreters({str(old): None})
    assert "Python 3.8" in finding.message
    (tmp_path / "empty").write_bytes(b"\x7fELF")
    (tmp_path / "empty").chmod(0o755)
    ((_, finding),) = check_interpreters({str(tmp_path / "empty"): None})
    assert "cannot be run" in finding.message


@pytest.mark.parametrize(
    ("line", "source", "told"),
    [
        ("limits.open_files = 1073741824", "", "is above the kernel's limit of "),
        ("limits.open_files = 1024", "", ""),
        (
            "",
            "from gevent import monkey; monkey.patch_all()\n",
            "a.py patches the standard library for gevent",
        ),
        ("", "import gevent.monkey\n", 'run it as a program: command = ["gunicorn", "-k", "gevent", "a:…"]'),
        ("", "# from gevent import monkey\nimport monkey\n", ""),
    ],
)
def test_what_the_kernel_or_asyncio_refuses_is_a_warning(
    tmp_path: Path, line: str, source: str, told: str
) -> None:
    (tmp_path / "a.py").write_text(source)
    config = load_text(tmp_path, f'[[server]]\nname = "a"\nbind = ":1"\napp = "a:b"\n{line}\n')
    assert config.check_external() == []
    assert [told in str(each) for each in config.warnings] == [True] * bool(told)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('command = ["./gone"]', "'./gone' is not there"),
        ('command = ["./plain.txt"]', "chmod +x"),
        ('command = ["no-such-program-anywhere"]', "is not there"),
        ('app = "a:b"\nhealth.liveness = { exec = ["no-such-program"] }', "health.liveness.exec"),
        ('app = "a:b"\ncwd = "gone"\napp_dir = "src"', "create it, or fix cwd"),
        ('app = "a:b"\napp_dir = "plain.txt"', "is not a directory"),
        ('app = "a:b"\nenv_file = "gone.env"', "no such file"),
        ('app = "a:b"\nenv_file = "plain.txt"', "plain.txt:1:"),
        ('app = "a:b"\nuser = "no-such-user-here"', "no user"),
        ('app = "a:b"\nuser = "root:no-such-group-here"', "no group"),
        ('app = "a:b"\nlog = { path = "src" }', "src is a directory; name a file in it"),
        ('app = "a:b"\nlog = { path = "plain.txt/a/b" }', "plain.txt is not a directory; name another file"),
        ('app = "a:b"\ntls = { cert = "gone.pem" }', "gone.pem: there is no such file"),
    ],
)
def test_named_file_that_does_not_exist_is_reported(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "plain.txt").write_text("hello\n")
    (tmp_path / "src").mkdir()
    (text,) = outside(tmp_path, line)
    assert told in text
    assert "pool.toml:" in text


@pytest.mark.parametrize(
    ("app_dir", "problem"),
    [
        ("app.zip", ""), ("app.pyz/lib", ""), ("app.pyz", "there is no module 'shop'"),
        ("app.pyz/gone", "app.pyz/gone is not there"), ("plain.zip", "plain.zip is not a directory"),
    ],
)  # fmt: skip
def test_archive_is_a_directory_of_an_app_if_modules_can_be_imported_from_it(
    tmp_path: Path, app_dir: str, problem: str
) -> None:
    (tmp_path / "plain.zip").write_text("no archive")
    for name, module in (("app.zip", "shop.py"), ("app.pyz", "lib/shop.py")):
        with open(tmp_path / name, "wb") as file:
            file.write(b"#!/usr/bin/env python3\n" if name.endswith(".pyz") else b"")
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(module, "async def app(scope, receive, send): ...\n")
    found = outside(tmp_path, f'app = "shop:app"\napp_dir = "{app_dir}"', import_apps=True)
    assert [problem in each for each in found] == [True] * bool(problem)


@needs("dashboard")
def test_a_variable_of_an_env_file_that_is_not_set_is_a_warning_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the pool")
    monkeypatch.setenv("KNOWN", "x")
    (tmp_path / "a.env").write_text("A=${KNOWN}${OWN}${PORT}\n\nB=${GONE}\nC=${SECRET}\n")
    (tmp_path / "pool.toml").write_text(
        '[dashboard]\ntoken_env = "SECRET"\n[[server]]\nname = "a"\nbind = "127.0.0.1:1"\n'
        'command = ["true", "{fd}"]\nenv.OWN = "y"\nenv_file = "a.env"\n'
    )
    config = PoolConfig.load(tmp_path / "pool.toml")
    assert config.check_external() == []
    of_file = [str(each) for each in config.warnings if "a.env" in str(each)]
    assert [each.partition("a.env:")[2][:12] for each in of_file] == ["3: GONE is n", "4: SECRET is"]
    assert "pool.toml:8" in of_file[0]


def test_a_journal_that_cannot_be_written_is_a_problem_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").touch()
    path = tmp_path / "plain.txt" / "events.jsonl"
    config = load_text(tmp_path, '[events]\nkeep = 3\npath = "plain.txt/events.jsonl"\n' + SERVER)
    (problem,) = config.check_external()
    text = f"{path} cannot be written: {tmp_path}/plain.txt is not a directory; name another file"
    assert str(problem) == f"{tmp_path}/pool.toml:3:1: events.path: {text}"
    assert config.check_external(names=["web"]) == [], "its servers run without"
    assert [str(each) for each in config.warnings] == [str(problem)]


def test_programs_are_found_on_the_servers_own_path(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "my-program"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert outside(tmp_path, f'command = ["my-program"]\nenv = {{ PATH = "{program.parent}" }}') == []
    (tmp_path / "path.env").write_text(f"PATH={program.parent}\n")
    assert outside(tmp_path, 'command = ["my-program"]\nenv_file = "path.env"') == []
    assert outside(tmp_path, 'command = ["bin/my-program"]', 'command = ["{fd}"]') == []


def test_another_user_needs_root(tmp_path: Path) -> None:
    config = load_text(tmp_path, SERVER + 'user = "daemon"\n')
    assert config.check_external() == []
    assert bool(config.warnings) == (os.geteuid() != 0)


@pytest.mark.parametrize(
    ("owner", "missing"),
    [("no-such-user-here", "no user"), ("root:no-such-group", "no group 'no-such-group'")],
)
def test_owner_of_a_socket_that_does_not_exist_is_reported(tmp_path: Path, owner: str, missing: str) -> None:
    text = (
        f'[[server]]\nname = "a"\nbind = "unix:a"\ncommand = ["true", "{{fd}}"]\nsocket_owner = "{owner}"\n'
    )
    (problem,) = load_text(tmp_path, text).check_external()
    assert f"pool.toml:5:1: server[0].socket_owner: there is {missing}" in str(problem)
    assert "; create it, or name another" in str(problem)


@pytest.mark.parametrize(
    ("owner", "works"),
    [("nobody", False), ("daemon", True), ("daemon:mail", True), ("daemon:www-data", False)],
)
def test_socket_for_another_user_or_a_foreign_group_needs_root(
    open_directory: Path, owner: str, works: bool
) -> None:
    text = (
        f'[[server]]\nname = "a"\nbind = "unix:a"\ncommand = ["true", "{{fd}}"]\nsocket_owner = "{owner}"\n'
    )
    config, daemon = load_text(open_directory, text), pwd.getpwnam("daemon")
    groups = [daemon.pw_gid, grp.getgrnam("mail").gr_gid]
    assert run_as(daemon.pw_uid, config.check_external, groups) == []
    expected = f"socket_owner: only root can give the socket to '{owner}'; start the pool as root"
    assert [expected in str(each) for each in config.warnings] == [True] * (not works)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_app_is_imported_with_no_more_rights_than_its_server(open_directory: Path) -> None:
    (open_directory / "who.py").write_text("import os\nassert os.getuid() != 0, 'root'\napp = print\n")
    text = servers(f'app = "who:app"\nuser = "nobody"\npython = "{python_for_others()}"')
    assert [str(p) for p in load_text(open_directory, text).check_external(import_apps=True)] == []


def test_the_outside_of_a_list_made_in_python_has_no_places() -> None:
    config = PoolConfig([ServerConfig(name="a", bind=":1", command=["no-such-program-anywhere"])])
    (problem,) = config.check_external()
    assert isinstance(problem, Problem)
    assert (problem.file, problem.name, problem.key) == ("", "a", "command[0]")
    assert str(problem).startswith("a: command[0]: ")


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        ('bind = "127.0.0.1:1"', "the address 127.0.0.1:1 is taken by 'one'"),
        ('bind = "127.0.0.1:2"\ndepends_on = ["two"]', "depends on itself"),
        ('bind = "127.0.0.1:2"\ndepends_on = ["nine"]', "there is no server 'nine'"),
    ],
)
def test_problem_between_servers_hides_none_of_what_they_refer_to(
    tmp_path: Path, lines: str, first: str
) -> None:
    text = '[[server]]\nname = "one"\nbind = "127.0.0.1:1"\napp = "a:b"\n'
    text += f'[[server]]\nname = "two"\n{lines}\ncommand = ["./gone"]\n'
    text += '[[server]]\nname = "own"\nbind = "127.0.0.1:3"\ntls = true\ndepends_on = ["own"]\n'
    config = load_text(tmp_path, text)
    assert [server.name for server in config] == ["one"]
    problems = [str(problem) for problem in config.problems]
    assert len(problems) == 4
    assert first in problems[0]
    assert any("nothing to serve" in problem for problem in problems)
    assert any("no default certificate" in problem for problem in problems)
    (outside,) = config.check_external()
    assert "server[1].command[0]: './gone' is not there" in str(outside)
    assert config.check_external(names=["one"]) == []


def job(directory: Path, target: str, **more: Any) -> ImportJob:
    keys = {
        "python": sys.executable, "target": target, "app_dir": str(directory), "cwd": str(directory), "env": (),
        "user": None, "timeout_seconds": 60.0, "factory": False, "interface": "auto",
    }  # fmt: skip
    return ImportJob(**{**keys, **more})


def messages(*jobs: ImportJob) -> list[str]:
    return [finding.message for _, finding, _ in check_imports(jobs, dict(os.environ)) if finding]


def test_answers_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("app = print\n")
    (tmp_path / "two.py").write_text("import os; os._exit(2)\n")
    (tmp_path / "late.py").write_text("import time; time.sleep(300)\n")
    late, two, typo = messages(
        job(tmp_path, "late:app", timeout_seconds=0.2),
        job(tmp_path, "two:app"),
        job(tmp_path, "one:app"),
        job(tmp_path, "one:ap", env=(("PYTHONHASHSEED", "1"),)),
    )
    assert late == "late was not imported within 0.2 s"
    assert two == "the process ended while it imported two: exited with status 2"
    assert typo == "one has no 'ap'"


def test_a_process_that_an_import_starts_ends_with_it(tmp_path: Path, until: Any) -> None:
    (tmp_path / "starts.py").write_text(
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        "pathlib.Path('pid').write_text(str(child.pid))\napp = print\n"
    )
    assert messages(job(tmp_path, "starts:app")) == []
    pid = int((tmp_path / "pid").read_text())

    def gone() -> bool:
        try:
            return "Z" in Path(f"/proc/{pid}/stat").read_text().split(") ")[1][:1]
        except OSError:
            return True

    until(gone)


@pytest.mark.slow
def test_nothing_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("app = print\n")
    with no_descriptor_left():
        assert messages(*[job(tmp_path, "one:app")] * 5) == []


def test_a_program_that_is_no_interpreter_has_a_message(tmp_path: Path) -> None:
    assert "exited with status 0" in messages(job(tmp_path, "a:b", python="/bin/true"))[0]
    assert "cannot be run: No such file" in messages(job(tmp_path, "a:b", python=str(tmp_path / "gone")))[0]


def test_variables_of_a_server_are_in_no_argument(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(
        "import os, pathlib\nassert os.environ['KEY'] == 'hidden'\n"
        "assert 'hidden' not in pathlib.Path('/proc/self/cmdline').read_text()\napp = print\n"
    )
    env = (("KEY", "hidden"), ("PYTHONHASHSEED", "1"))
    assert messages(job(tmp_path, "looks:app", env=env)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_code_that_a_servers_environment_names_runs_as_its_user(open_directory: Path) -> None:
    # Such as sitecustomize, which an interpreter imports from PYTHONPATH when it starts.
    (open_directory / "sitecustomize.py").write_text(
        f"import os\nif os.getuid() == 0: os.mkdir('{open_directory}/ran_as_root')\n"
    )
    (open_directory / "one.py").write_text("import os\nassert os.getuid() == 65534\napp = print\n")
    env = (("PYTHONPATH", str(open_directory)),)
    assert messages(job(open_directory, "one:app", env=env, user="nobody", python=python_for_others())) == []
    assert not (open_directory / "ran_as_root").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a directory of another user")
def test_file_that_cannot_be_appended_to_has_its_reason_and_fix(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, -1)
    link, fifo = theirs / "link", theirs / "fifo"
    assert unwritable_file_findings(("log", "path"), str(link)) == []
    link.symlink_to("a.log")
    os.mkfifo(fifo)
    found = run_as(65534, lambda: unwritable_file_findings(("log", "path"), "/etc/a.log"))
    for path in (link, fifo):
        found += unwritable_file_findings(("log", "path"), str(path))
    assert [(each.message, each.hint) for each in found] == [
        ("/etc/a.log cannot be written: Permission denied",
         "let the pool's user (uid 65534) write there, or name another file"),
        (f"{link} cannot be written: link on its path is a link that another user can make",
         "write the path that it leads to"),
        (f"{fifo} cannot be written: {fifo} is not a regular file, in a directory that another user can write",
         "name another file"),
    ]  # fmt: skip
    assert {(each.path, each.found) for each in found} == {
        (("log", "path"), str(path)) for path in ("/etc/a.log", link, fifo)
    }


def test_file_above_a_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = f"{tmp_path}/file/more/a.log"
    (found,) = unwritable_file_findings(("x",), path)
    assert found.message == f"{path} cannot be written: {tmp_path}/file is not a directory"
    (found,) = unwritable_file_findings(("x",), str(tmp_path))
    assert (found.message, found.hint) == (f"{tmp_path} is a directory", "name a file in it")


@pytest.mark.parametrize(
    ("target", "answer", "message", "fix"),
    [
        ("shop.app:a", {"kind": "no module", "missing": "shop"},
         "there is no module 'shop.app' in /app", "check app and app_dir"),
        ("shop.app:a", {"kind": "no module", "missing": "shop.models", "where": "app.py:3"},
         "there is no module 'shop.models' in /app (app.py:3)", "check app and app_dir"),
        ("shop.app:a", {"kind": "no module", "missing": "yaml", "where": "app.py:3"},
         "shop.app imports 'yaml', which is not installed (app.py:3)",
         "install it there: /bin/python -m pip install PyYAML"),
        ("shop:ap", {"kind": "no attribute", "near": "app"}, "shop has no 'ap'", "did you mean 'app'?"),
        ("shop:ap", {"kind": "no attribute"}, "shop has no 'ap'", "check app"),
        ("shop:a", {"kind": "not callable", "message": "an int"}, "shop:a is an int, not an ASGI or WSGI application",
         "name the application, or set factory = true"),
        ("shop:a", {"kind": "timeout"}, "shop was not imported within 60 s",
         "start nothing at import, or raise start_timeout"),
        ("shop:a", {"kind": "ended", "message": "killed by SIGSEGV"},
         "the process ended while it imported shop: killed by SIGSEGV", "a module must not end its process"),
        ("shop:a", {"kind": "raised", "message": "a  b\nc", "where": "shop.py:1"},
         "shop cannot be imported: a b c (shop.py:1)", "fix it: /bin/python -c 'import shop'"),
        ("shop:a", {"kind": "raised", "message": "x" * 301}, f"shop cannot be imported: {'x' * 300}…",
         "fix it: /bin/python -c 'import shop'"),
        ("shop:a", {"kind": "raised", "message": "x" * 300}, f"shop cannot be imported: {'x' * 300}",
         "fix it: /bin/python -c 'import shop'"),
    ],
)  # fmt: skip
def test_application_that_cannot_be_imported_has_its_reason_and_fix(
    target: str, answer: dict[str, object], message: str, fix: str
) -> None:
    of = job(Path("/app"), target, python="/bin/python")
    assert external_checks.message_and_fix(of, answer) == (message, fix)
