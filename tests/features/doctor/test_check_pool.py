"""What `doctor` checks of the pool: its file, its supervisor and its servers."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.bootstrap import installed_build
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.supervisor_requests import CRASH_LOOP
from poolctl.config import load
from poolctl.control.answers import ErrorEntry, PingResult
from poolctl.control.client import stop_and_start
from poolctl.control.protocol import PROTOCOL
from poolctl.feature import FEATURES, features
from poolctl.features.doctor import _check_pool
from poolctl.features.doctor._check import CheckContext, CheckResult
from tests.certificates import certificate
from tests.features.doctor.test_check_machine import examined, only
from tests.needs import needs
from tests.processes import freeze
from tests.real_pool import RealPool
from tests.stand_in import server

Found = dict[str, list[dict[str, str]]]


@pytest.mark.integration
@pytest.mark.parametrize("text", ["[[server]\n", '[[server]]\nname = "a"\nbinf = "x"\n'])
def test_a_broken_file_is_a_problem_and_the_rest_is_looked_at(real_pool: RealPool, text: str) -> None:
    real_pool.write("pool.toml", text)
    code, found = examined(real_pool)
    assert code == 1
    assert any(each["status"] == "problem" for each in found["configuration"])
    assert "kernel" in found


@pytest.mark.integration
def test_a_missing_file_is_a_problem(real_pool: RealPool) -> None:
    code, found = examined(real_pool, "-c", "nowhere.toml")
    assert code == 1
    assert "nowhere.toml" in only(found, "files", "problem")["message"]


@pytest.mark.integration
def test_servers_that_have_failed(real_pool: RealPool) -> None:
    real_pool.write_hello("good", "bad", extra='restart = "no"')
    real_pool.write("broken.py", "raise SystemExit(7)\n")
    text = (real_pool.directory / "pool.toml").read_text()
    head, _, rest = text.rpartition('"hello:app"')
    real_pool.write("pool.toml", f'{head}"broken:app"{rest}')
    assert real_pool.run("start").code == 1
    code, found = examined(real_pool)
    assert code == 1
    said = only(found, "servers", "problem")
    assert said["message"] == "bad has failed: exited with status 7 before it was ready"
    assert said["fix"] == "poolctl logs bad"


@pytest.mark.integration
def test_a_supervisor_that_is_silent(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    real_pool.ok("start")
    supervisor = real_pool.info()["supervisor_pid"]
    freeze(supervisor)
    try:
        code, found = examined(real_pool)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert code == 1
    only(found, "supervisor", "problem")


@pytest.mark.skipif("operator" not in FEATURES, reason="there is no operator")
@pytest.mark.usefixtures("installed_haproxy")
def test_certificates_of_tables_that_expire_soon_are_reported(tmp_path: Path) -> None:
    certificate(tmp_path, days=3)
    pair = 'cert = "localhost.pem", key = "localhost.key"'
    (tmp_path / "pool.toml").write_text(
        f'[gateway]\nbind = [{{ bind = ":8443", tls = [{{ {pair} }}] }}]\n'
        f'[operator]\nbind = ":9443"\ntls = {{ {pair} }}\ntrusted = ["127.0.0.1"]\n'
    )
    context = CheckContext(None, {})
    context.config = load(tmp_path / "pool.toml", {})
    assert (context.config.problems, context.config.check_external()) == ([], [])
    found = [(each.status, each.message) for each in _check_pool.certificates(context)]
    assert [status for status, _ in found] == ["warning", "warning"]
    for table, (_, message) in zip(("[gateway]", "[operator]"), found, strict=True):
        assert message.startswith(f"{table}: ")
        assert "the certificate expires on" in message


@needs("gateway")
def test_warnings_about_the_program_of_the_gateway_are_reported(tmp_path: Path) -> None:
    def found(gateway: str) -> list[tuple[str, str, str, str]]:
        (tmp_path / "pool.toml").write_text(
            f'[gateway]\n{gateway}[[route]]\nto = "http://127.0.0.1:9000"\nlimit.concurrency = 1\n'
        )
        context = CheckContext(None, {})
        context.config = load(tmp_path / "pool.toml", {})
        assert context.config.problems == []
        return told(_check_pool.gateway_program(context))

    said = "with several threads the limits of requests are approximate"
    assert found("threads = 2\n") == [("warning", "gateway", said, "write threads = 1 for exact ones")]
    assert found("") == []


def test_each_table_that_is_not_served_is_a_problem_with_its_fix() -> None:
    context = CheckContext(None, {})
    problems = (
        "[gateway]: its process has ended 3 times within 10m",
        "[gateway]: cannot read edge.pem: No such file or directory",
        "[gateway]: uvloop is not installed; /opt/poolctl/bin/python -m pip install uvloop",
        "[metrics]: port 9464 is in use",
        "[events]: 3 events could not be written to /full: No space left on device",
        "[operator]: tls.key: /key.pem: there is no such file",
        "[operator]: it has no token: the environment variable TOKEN is empty",
    )
    context.about = PingResult(
        name="shop", files=(), version="1", protocol=1, python="3.11", supervisor_pid=1, keeper_pid=2,
        not_served=problems,
    )  # fmt: skip
    _, gateway, certificate, library, metrics, events, key, token = _check_pool.supervisor(context)
    assert (gateway.check, gateway.message) == ("[gateway]", "its process has ended 3 times within 10m")
    assert gateway.fix == "poolctl logs --gateway"
    assert certificate.fix.startswith("check `tls` of [gateway]")
    assert library.message == "uvloop is not installed"
    assert library.fix == "/opt/poolctl/bin/python -m pip install uvloop"
    assert metrics.fix.startswith("free the address")
    assert (events.check, events.message.split()[0]) == ("[events]", "3")
    assert events.fix == "make it writable, or name another file as events.path, then run poolctl reload"
    assert key.fix == "check `tls` of [operator], then run poolctl reload"
    assert token.fix == "export the variable, then run poolctl reload --env; or name a token_file"


def test_problem_of_a_table_that_stops_nothing_is_a_warning() -> None:
    advice = [(table, fix) for feature in features() for table, fix in feature.warnings.items()]
    if not advice:
        pytest.skip("no feature has such a table")
    (table, fix), *_ = advice
    context = CheckContext(None, {})
    context.about = PingResult(
        name="shop", files=(), version="1", protocol=1, python="3.11", supervisor_pid=1, keeper_pid=2,
        not_served=(f"[{table}]: its API answered 401", "[metrics]: port 9464 is in use"),
    )  # fmt: skip
    _, warned, metrics = _check_pool.supervisor(context)
    assert (warned.status, warned.message, warned.fix) == ("warning", "its API answered 401", fix)
    assert metrics.status == "problem"


def test_gateway_that_serves_is_named_with_its_addresses() -> None:
    context = CheckContext(None, {})
    context.about = PingResult(
        name="shop", files=(), version="1", protocol=1, python="3.11", supervisor_pid=1, keeper_pid=2
    )  # fmt: skip
    context.gateway = {"state": "running", "problem": "", "addresses": ["http://127.0.0.1:8080"], "routes": 4}
    _, gateway = _check_pool.supervisor(context)
    assert (gateway.status, gateway.message) == ("ok", "running: http://127.0.0.1:8080; 4 routes")
    context.gateway["problem"] = "port 8080 is in use"
    assert len([*_check_pool.supervisor(context)]) == 1


def running(**changes: Any) -> CheckContext:
    """A context whose supervisor answers, with these differences."""
    context = CheckContext(None, {})
    python = ".".join(map(str, sys.version_info[:3]))
    members: dict[str, Any] = {
        "name": "shop", "files": ("/srv/pool.toml",), "version": poolctl.__version__, "protocol": PROTOCOL,
        "python": python, "supervisor_pid": 7, "keeper_pid": 8, "build": installed_build(), **changes,
    }  # fmt: skip
    context.about = PingResult(**members)
    return context


def told(results: Iterable[CheckResult]) -> list[tuple[str, str, str, str]]:
    return [(each.status, each.check, each.message, each.fix) for each in results]


def loaded(tmp_path: Path, text: str) -> CheckContext:
    file = tmp_path / "pool.toml"
    file.write_text(text)
    context = CheckContext(None, {})
    context.pool = PoolRef([str(file)], str(tmp_path / "run"))
    context.config = load(file, {})
    return context


SERVER = '[[server]]\nname = "{}"\nbind = "127.0.0.1:808{}"\ncommand = ["true"]\n'


@pytest.mark.parametrize(("count", "said"), [(1, "1 server"), (2, "2 servers"), (0, "0 servers")])
def test_valid_configuration_is_counted(tmp_path: Path, count: int, said: str) -> None:
    context = loaded(tmp_path, "".join(SERVER.format(at, at) for at in range(count)))
    assert told(_check_pool.configuration(context)) == [("ok", "configuration", said, "")]


def test_problems_of_the_configuration_have_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context = loaded(tmp_path, SERVER.format("a", 1))
    context.problems = [
        ErrorEntry(code=1, error="E", message="bad", name="a", file=f"{tmp_path}/pool.toml", line=3, column=2,
                   hint="mend it", key="bind"),
        ErrorEntry(code=1, error="E", message="bad", file=f"{tmp_path}/pool.toml", key="pool.name"),
        ErrorEntry(code=0, error="", message="there is no file"),
    ]  # fmt: skip
    context.changed = {"files": [f"{tmp_path}/pool.toml"], "problem": None}
    problems, (drift,) = (
        told(_check_pool.configuration(context))[:3],
        told(_check_pool.configuration(context))[3:],
    )
    assert problems == [
        ("problem", "configuration", "pool.toml:3:2: a: bad", "mend it"),
        ("problem", "configuration", "pool.name: bad", "poolctl validate"),
        ("problem", "configuration", "there is no file", "poolctl validate"),
    ]
    assert (drift[0], drift[3]) == ("warning", "correct the file")
    assert drift[2].startswith("pool.toml has changed since the pool read it")
    context.problems = []
    (_, drift) = told(_check_pool.configuration(context))
    assert drift[3] == "poolctl reload --dry-run shows the difference"


def test_without_a_pool_only_the_machine_is_checked() -> None:
    context = CheckContext(None, {})
    said = "no pool is named and none found here: only the machine was checked"
    assert told(_check_pool.configuration(context)) == [("ok", "configuration", said, "")]
    for check in (
        _check_pool.certificates,
        _check_pool.unsafe_root_interpreters,
        _check_pool.gateway_program,
        _check_pool.supervisor,
        _check_pool.servers,
    ):
        assert told(check(context)) == []


def test_certificates_without_a_warning_are_valid(tmp_path: Path) -> None:
    certificate(tmp_path, days=300)
    pair = 'tls = { cert = "localhost.pem", key = "localhost.key" }\n'
    context = loaded(
        tmp_path,
        SERVER.format("a", 1).replace('command = ["true"]', 'app = "a:b"') + pair + SERVER.format("b", 2),
    )
    assert context.config is not None
    context.config.check_external()
    assert told(_check_pool.certificates(context)) == [("ok", "certificates", "those of a are valid", "")]


@pytest.mark.parametrize(
    ("context", "first"),
    [
        (running(), ("ok", "supervisor", "runs as pid 7", "")),
        (running(calm=True),
         ("problem", "supervisor", CRASH_LOOP, "poolctl upgrade to a version in which it is fixed")),
    ],
)  # fmt: skip
def test_supervisor_that_answers_is_named(context: CheckContext, first: tuple[str, ...]) -> None:
    assert told(_check_pool.supervisor(context)) == [first]
    context.supervisor_problem = "it does not answer"
    fix = "poolctl start; see supervisor.log next to its socket"
    assert told(_check_pool.supervisor(context)) == [("problem", "supervisor", "it does not answer", fix)]


def test_supervisor_that_does_not_run_is_no_problem(tmp_path: Path) -> None:
    context = loaded(tmp_path, SERVER.format("a", 1))
    assert told(_check_pool.supervisor(context)) == [("ok", "supervisor", "none runs", "")]


@pytest.mark.parametrize(
    ("why", "fix"),
    [
        ("its token is empty", "export the variable, then run poolctl reload --env; or name a token_file"),
        ("its process has ended", "poolctl events; see metrics.log next to the supervisor's socket"),
        (
            "port 1 is in use",
            "free the address, and it is opened within seconds; or choose another one, then run poolctl reload",
        ),
        ("::1 is not an address of this machine", "correct [metrics], then run poolctl reload"),
        (
            "a.pem cannot be used, so that the certificate before it still is: its key belongs to another certificate",
            "name the key that the certificate was made for, then run poolctl reload",
        ),
        (
            "its certificate cannot be used: no start line",
            "check `tls` of [metrics], then run poolctl reload",
        ),
    ],
)
def test_fix_of_a_table_depends_on_its_problem(why: str, fix: str) -> None:
    _, found = told(_check_pool.supervisor(running(not_served=(f"[metrics]: {why}",))))
    assert found == ("problem", "[metrics]", why, fix)


def test_gateway_without_addresses_is_named_by_its_state() -> None:
    context = running()
    context.gateway = {"state": "starting", "problem": "", "addresses": [], "routes": 0}
    assert told(_check_pool.supervisor(context))[1:] == [("ok", "[gateway]", "starting", "")]


def test_servers_with_problems_are_reported_with_the_reason() -> None:
    context = running()
    context.items = (
        server("a", state="failed"), server("b", state="failed"), server("c", state="backoff", restarts=3),
        server("d", health="warn"), server("e", health="ko", state="starting"), server("f"),
    )  # fmt: skip
    context.failures = {
        "a": ErrorEntry(code=1, error="E", message="exited\nmore", hint="look there"),
        "b": ErrorEntry(code=1, error="E", message="killed"),
    }
    assert told(_check_pool.servers(context)) == [
        ("problem", "servers", "a has failed: exited", "look there"),
        ("problem", "servers", "b has failed: killed", "poolctl logs b"),
        ("problem", "servers", "c is in backoff: restarted 3 times", "poolctl logs c"),
        ("warning", "servers", "d is running but its health is warn", "poolctl show d, poolctl logs d"),
        ("warning", "servers", "e is starting but its health is ko", "poolctl show e, poolctl logs e"),
    ]


def test_servers_without_problems_are_counted() -> None:
    context = running()
    rest = {"state": "sleeping", "ready": False}
    context.items = (
        server("a"),
        server("b", **rest),
        server("c", **rest),
        server("d", state="stopped", ready=False),
    )
    assert told(_check_pool.servers(context)) == [("ok", "servers", "1 ready, 2 sleeping, 1 stopped", "")]


VERSION, PYTHON = poolctl.__version__, ".".join(map(str, sys.version_info[:3]))
UPGRADE = "poolctl upgrade: the servers keep serving"


@pytest.mark.parametrize(
    ("changes", "status", "message", "fix"),
    [
        ({}, "ok", f"{VERSION} on Python {PYTHON} ({sys.executable})", ""),
        ({"build": ""}, "ok", f"{VERSION} on Python {PYTHON} ({sys.executable})", ""),
        ({"version": "0.1"}, "warning", f"{VERSION} is installed, the supervisor runs 0.1", UPGRADE),
        ({"build": "x", "python": "3.1"}, "warning",
         f"another build of {VERSION} is installed than the supervisor runs", UPGRADE),
        ({"python": "3.1"}, "warning", f"the supervisor runs on Python 3.1, poolctl on {PYTHON}",
         stop_and_start(["/srv/pool.toml"])),
        ({"build": "", "protocol": PROTOCOL - 1}, "warning",
         f"another build of {VERSION} is installed than the supervisor runs", stop_and_start(["/srv/pool.toml"])),
    ],
)  # fmt: skip
def test_supervisor_of_another_version_or_build_or_python_is_a_warning(
    changes: dict[str, str], status: str, message: str, fix: str
) -> None:
    assert told(_check_pool.supervisor_version_match(running(**changes))) == [
        (status, "poolctl", message, fix)
    ]


def test_versions_without_a_supervisor_are_those_of_this_command() -> None:
    message = f"{VERSION} on Python {PYTHON} ({sys.executable})"
    assert told(_check_pool.supervisor_version_match(CheckContext(None, {}))) == [
        ("ok", "poolctl", message, "")
    ]


FASTER = "with uvloop and httptools: {python} -m pip install uvloop httptools"


@pytest.mark.parametrize(
    ("printed", "status", "message", "fix"),
    [
        ({"python": [3, 12, 1], "uvicorn": "0.53.0", "uvloop": "1", "httptools": "2"}, "ok",
         "{python}: Python 3.12.1, uvicorn 0.53.0, uvloop 1, httptools 2", ""),
        ({"python": [3, 11, 0], "uvicorn": "0.60", "uvloop": None, "httptools": None}, "ok",
         f"{{python}}: Python 3.11.0, uvicorn 0.60; faster {FASTER}", ""),
        ({"python": [3, 10, 9], "uvicorn": "0.60", "uvloop": None, "httptools": None}, "problem",
         "{python} (a and 1 more) is Python 3.10.9", "use Python 3.11 or newer"),
        ({"python": [3, 12, 1], "uvicorn": None, "uvloop": None, "httptools": None}, "problem",
         "{python} (a and 1 more) has no uvicorn", "install it there: {python} -m pip install uvicorn"),
        ("", "problem", "{python} (a and 1 more): printed nothing", "fix `python` of the servers, or $VIRTUAL_ENV"),
    ],
)  # fmt: skip
def test_interpreter_of_servers_is_asked_for_its_packages(
    tmp_path: Path, printed: Any, status: str, message: str, fix: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{printed and json.dumps(printed)}\nEND\n")
    python.chmod(0o755)
    app = f'app = "a:b"\npython = "{python}"'
    servers = [SERVER.format(name, at).replace('command = ["true"]', app) for at, name in enumerate("ab")]
    context = loaded(tmp_path, "".join([*servers, SERVER.format("c", 3)]))
    check = "interpreter"
    expected = (status, check, message.format(python=python), fix.format(python=python))
    assert told(_check_pool.packages(context)) == [expected]


def test_interpreter_that_cannot_run_says_why(tmp_path: Path) -> None:
    python = tmp_path / "python"
    app = f'app = "a:b"\npython = "{python}"'
    python.write_text("#!/bin/sh\necho first >&2; echo last >&2; exit 1\n")
    python.chmod(0o755)
    context = loaded(tmp_path, SERVER.format("a", 1).replace('command = ["true"]', app))
    for said in ("last", "Permission denied", "No such file or directory"):
        (found,) = _check_pool.packages(context)
        assert (found.status, found.message) == ("problem", f"{python} (a): {said}")
        if said == "last":
            python.chmod(0)
        else:
            python.unlink(missing_ok=True)
