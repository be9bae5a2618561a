"""What a worker finds around it: environment, directory, import path, interpreter, user, rights."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from typing import Any

import pytest

from tests.certificates import certificate
from tests.configuration import server
from tests.deadline import wait_until
from tests.environments import with_uvicorn_only
from tests.http_get import get
from tests.real_pool import HELLO_APP, RealPool

REPORT = """
import grp, json, os, sys
from pathlib import Path
found = {
    "environment": dict(os.environ), "cwd": os.getcwd(), "path": sys.path, "argv": sys.argv,
    "executable": sys.executable, "prefix": sys.prefix, "flags": list(sys.flags),
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()], "umask": os.umask(0o22),
    "modules": [name for name in sys.modules if name.startswith("poolctl")],
    "oom": Path("/proc/self/oom_score_adj").read_text().strip(), "name": __name__,
}
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})
"""


@pytest.fixture
def report(pool: RealPool, free_port: Any) -> Any:
    """Starts one server with these keys, in an environment that has `of_start`; what it found."""
    port = free_port()

    def start(*, of_start: dict[str, str] | None = None, **keys: Any) -> dict[str, Any]:
        pool.write("report.py", REPORT)
        pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", **{"app": "report:app"} | keys))
        pool.ok("start", env=of_start)
        found: dict[str, Any] = get(port).json()
        return found

    return start


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.heavy
def test_worker_and_program_get_text_of_the_file_as_it_is_without_a_locale_for_it(
    pool: RealPool, free_port: Any
) -> None:
    pool.write("report.py", REPORT.replace("dict(os.environ)", "os.environb[b'TITLE'].decode()"))
    pool.write(
        "prog.py",
        "import os, sys, time; print(ascii([os.fsencode(sys.argv[1]), os.getcwdb()]), flush=True); time.sleep(1000)",
    )
    (pool.directory / "größe").mkdir()
    port, title = free_port(), {"TITLE": "Größe ✓"}
    pool.write(
        "pool.toml",
        server("web", bind=f"127.0.0.1:{port}", app="report:app", env=title)
        + server("program", command=[sys.executable, "../prog.py", "größe ✓"], cwd="größe", env=title),
    )
    pool.ok("start", env=ASCII)
    assert get(port).json()["environment"] == "Größe ✓"
    said = [os.fsencode(each) for each in ("größe ✓", str(pool.directory / "größe"))]
    wait_until(lambda: ascii(said) in pool.ok("logs", "program").stdout)


@pytest.mark.heavy
def test_paths_of_the_file_are_used_as_they_are_without_a_locale_for_them(
    pool: RealPool, free_port: Any
) -> None:
    pool.write("größe/elsewhere.py", REPORT.replace("os.getcwd()", "os.getcwdb().decode()"))
    pool.write("größe/é.env", "FROM_FILE=yes\n")
    port = free_port()
    text = server("web", bind=f"127.0.0.1:{port}", app="elsewhere:app", app_dir="größe", cwd="größe")
    pool.write("pool.toml", text + 'env_file = "größe/é.env"\nlog = { path = "größe/lög.log" }\n')
    pool.ok("validate", env=ASCII)
    pool.ok("start", env=ASCII)
    found = get(port).json()
    assert found["cwd"] == str(pool.directory / "größe")
    assert found["environment"]["FROM_FILE"] == "yes"
    wait_until((pool.directory / "größe" / "lög.log").exists)


@pytest.mark.heavy
def test_sockets_certificates_interpreters_and_journals_are_used_as_they_are_without_a_locale_for_them(
    pool: RealPool, free_port: Any
) -> None:
    pool.write("report.py", REPORT)
    directory = pool.directory / "größe"
    directory.mkdir()
    for path, name in zip(certificate(directory), ("zért", "schlüssel"), strict=True):
        path.rename(directory / name)
    with_uvicorn_only(directory / "ümgebung")
    secure, other = free_port(), free_port()
    tls = {"cert": "größe/zért", "key": "größe/schlüssel"}
    pool.write(
        "pool.toml",
        server("tls", bind=f"127.0.0.1:{secure}", app="report:app", tls=tls)
        + server("python", bind=f"127.0.0.1:{other}", app="report:app", python="größe/ümgebung")
        + server("unix", bind="unix:größe/ü.sock", app="report:app")
        + '[events]\npath = "größe/ereignísse.jsonl"\n',
    )
    pool.ok("validate", env=ASCII)
    pool.ok("start", env=ASCII)
    for _ in range(2):
        assert get(f"https://127.0.0.1:{secure}").status == 200
        assert os.fsencode(get(other).json()["prefix"]) == os.fsencode(directory / "ümgebung")
        assert get(f"unix:{directory}/ü.sock").status == 200
        pool.ok("restart", f"unix:{directory}/ü.sock", "tls", "python", env=ASCII)
    wait_until(lambda: "restart" in (directory / "ereignísse.jsonl").read_text())
    assert "POOLCTL_DEBUG" not in pool.run("doctor", env=ASCII).stdout, "an internal error"
    pool.ok("stop", env=ASCII)


def test_validate_imports_with_text_of_the_file_as_it_is_without_a_locale_for_it(
    pool: RealPool, free_port: Any
) -> None:
    pool.write("größe/careful.py", REPORT + "assert os.environb[b'TITLE'].decode() == 'Größe ✓'\n")
    with_uvicorn_only(pool.directory / "ümgebung")
    text = server(
        "web", bind=f"127.0.0.1:{free_port()}", app="careful:app", app_dir="größe", cwd="größe",
        python="ümgebung", env={"TITLE": "Größe ✓"},
    )  # fmt: skip
    pool.write("pool.toml", text)
    pool.ok("validate", "--import", env=ASCII)


def test_a_worker_has_the_environment_of_the_start(report: Any, pool: RealPool) -> None:
    found = report(of_start={"FROM_THE_START": "yes"})
    assert found["environment"]["FROM_THE_START"] == "yes"
    assert found["environment"]["HOME"] == pool.env["HOME"]
    assert found["cwd"] == str(pool.directory)
    assert found["path"][0] == str(pool.directory)
    assert found["oom"] == "100"
    assert found["name"] == "report"
    assert found["modules"] == [], "poolctl's own modules are not the application's"


@pytest.mark.heavy
@pytest.mark.parametrize("preload", [False, True])
def test_variables_of_the_interpreter_are_honoured(report: Any, pool: RealPool, preload: bool) -> None:
    (pool.directory / "more").mkdir()
    pool.write("fresh.py", REPORT.replace('"umask"', '"hash": hash("x"), "dev": sys.flags.dev_mode, "umask"'))
    env = {"PYTHONHASHSEED": "7", "PYTHONDEVMODE": "1", "PYTHONPATH": str(pool.directory / "more")}
    found = report(app="fresh:app", preload=preload, env=env)
    assert found["dev"] is True
    assert str(pool.directory / "more") in found["path"]
    assert found["path"][0] == str(pool.directory)
    assert found["modules"] == []
    expected = subprocess.run(
        [sys.executable, "-c", "print(hash('x'))"],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert found["hash"] == int(expected.stdout)


@pytest.mark.capability
def test_a_server_runs_as_its_user_with_nothing_of_roots(report: Any, pool: RealPool) -> None:
    pool.open_to_all()
    found = report(user="nobody")
    account = pwd.getpwnam("nobody")
    uids, gids, groups = found["ids"]
    assert uids == [account.pw_uid] * 3
    assert gids == [account.pw_gid] * 3
    assert groups == os.getgrouplist("nobody", account.pw_gid)
    assert found["environment"]["HOME"] == account.pw_dir
    assert found["environment"]["USER"] == "nobody"


def test_a_group_can_be_given_and_no_line_of_the_app_runs_as_root(report: Any, pool: RealPool) -> None:
    pool.open_to_all()
    pool.write("secret", "root only").chmod(0o600)
    pool.write(
        "curious.py",
        REPORT
        + "try:\n    open('secret')\n    found['read'] = True\nexcept PermissionError:\n    found['read'] = False\n",
    )
    found = report(user="nobody:daemon", app="curious:app")
    assert found["ids"][1] == [1, 1, 1]
    assert found["read"] is False


def test_another_interpreter_needs_uvicorn_only_and_sees_of_poolctl_only_what_it_provides(
    report: Any, pool: RealPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    venv = tmp_path_factory.mktemp("venv")
    with_uvicorn_only(venv)
    pool.write(
        "alone.py",
        REPORT
        + """
def there(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True
found["there"] = [
    name for name in ("pydantic", "typer", "rich", "yaml", "starlette", "poolctl.config", "poolctl.gateway.routes")
    if there(name)
]
""",
    )
    found = report(app="alone:app", python=str(venv))
    assert found["prefix"] == str(venv)
    assert found["there"] == ["poolctl.gateway.routes"], "which is provided for applications"
    assert found["modules"] == []
    pool.ok("restart")


def test_the_callers_environment_is_taken_by_a_restart_that_asks_for_it(report: Any, pool: RealPool) -> None:
    assert "NEW" not in report(of_start={"OLD": "1"})["environment"]
    port = int(pool.items()["web"]["bind"].rpartition(":")[2])
    pool.ok("restart", env={"NEW": "1"})
    assert "NEW" not in get(port).json()["environment"]
    pool.ok("restart", "--env", env={"NEW": "1"})
    found = get(port).json()["environment"]
    assert found["NEW"] == "1"
    assert "OLD" not in found


@pytest.mark.parametrize("keys", [{}, {"user": "nobody"}], ids=["", "user"])
def test_an_application_that_is_preloaded_finds_the_same(
    report: Any, pool: RealPool, keys: dict[str, Any]
) -> None:
    if "user" in keys:
        pool.open_to_all()
    keys |= {"limits": {"open_files": 500}, "umask": "0027"}
    without = report(of_start={"FROM_THE_START": "yes"}, **keys)
    assert without["umask"] == 0o27
    pool.ok("stop")
    assert without["environment"].pop("POOLCTL_INDEX") == "0"  # one import is for several workers
    assert report(of_start={"FROM_THE_START": "yes"}, preload=True, **keys) == without


def test_each_worker_has_its_number_in_its_environment(pool: RealPool, free_port: Any) -> None:
    ports = {name: free_port() for name in ("web", "preloaded")}
    pool.write("hello.py", HELLO_APP.replace('b"hello from "', "os.environ['POOLCTL_INDEX'].encode()+b' '"))
    app = {"app": "hello:app", "workers": 2}
    program = ["sh", "-c", "touch queue-$POOLCTL_INDEX; exec sleep 600"]
    pool.write("hello.py", "import os\n" + (pool.directory / "hello.py").read_text())
    pool.write(
        "pool.toml",
        server("web", bind=f"127.0.0.1:{ports['web']}", **app)
        + server("preloaded", bind=f"127.0.0.1:{ports['preloaded']}", preload=True, **app)
        + server("queue", command=program, workers=2),
    )
    pool.ok("start")
    for port in ports.values():
        seen: set[str] = set()
        wait_until(lambda port=port, seen=seen: seen.add(get(port).text.split()[0]) or seen == {"0", "1"})
    wait_until(lambda: {path.name for path in pool.directory.glob("queue-*")} == {"queue-0", "queue-1"})
