"""What `doctor` checks of the pool: its file, its supervisor and its servers."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import poolctl
from poolctl.config import load
from poolctl.control.answers import PingResult
from poolctl.feature import FEATURES, Feature
from poolctl.features.doctor import _check_pool
from poolctl.features.doctor._check import CheckContext
from tests.certificates import certificate
from tests.features.doctor.test_check_machine import examined, only
from tests.real_pool import RealPool

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
def test_interpreters_that_cannot_serve(real_pool: RealPool) -> None:
    bare = real_pool.directory / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True, timeout=60)
    broken = real_pool.write("broken", "#!/bin/sh\necho it is broken >&2; exit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    for python, said in (("bare", "has no uvicorn"), ("broken", "it is broken")):
        real_pool.write_hello("web", extra=f'python = "{python}"')
        code, found = examined(real_pool)
        assert code == 1
        assert said in only(found, "interpreter", "problem")["message"]


@pytest.mark.integration
def test_a_supervisor_of_another_version(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    shutil.copytree(Path(poolctl.__file__).parent, real_pool.directory / "old" / "poolctl")
    init = real_pool.directory / "old" / "poolctl" / "__init__.py"
    text = init.read_text()
    assert text.count(poolctl.__version__) == 1
    init.write_text(text.replace(poolctl.__version__, "0.0.1"))
    old = subprocess.run(
        [sys.executable, "-m", "poolctl", "start"], cwd=real_pool.directory, timeout=60,
        env=real_pool.env | {"PYTHONPATH": str(init.parents[1])},
    )  # fmt: skip
    assert old.returncode == 0
    _, found = examined(real_pool)
    assert only(found, "poolctl", "warning")["fix"].startswith("poolctl upgrade")


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
    os.kill(supervisor, signal.SIGSTOP)
    try:
        code, found = examined(real_pool)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert code == 1
    only(found, "supervisor", "problem")


@pytest.mark.skipif("operator" not in FEATURES, reason="there is no operator")
def test_certificates_of_tables_that_expire_soon_are_reported(tmp_path: Path) -> None:
    certificate(tmp_path, days=3)
    pair = 'cert = "localhost.pem", key = "localhost.key"'
    (tmp_path / "pool.toml").write_text(
        f'[gateway]\nbind = [{{ bind = ":8443", tls = [{{ {pair} }}] }}]\n'
        f'[operator]\nbind = ":9443"\ntls = {{ {pair} }}\ntrusted = ["127.0.0.1"]\n'
    )
    context = CheckContext(None, {})
    context.config = load(tmp_path / "pool.toml", {})
    assert (context.config.problems, context.config.outside()) == ([], [])
    found = [(each.status, each.message) for each in _check_pool.certificates(context)]
    assert [status for status, _ in found] == ["warning", "warning"]
    for table, (_, message) in zip(("[gateway]", "[operator]"), found, strict=True):
        assert message.startswith(f"{table}: ")
        assert "the certificate expires on" in message


def test_each_table_that_is_not_served_is_a_problem_with_its_fix() -> None:
    context = CheckContext(None, {})
    problems = (
        "[gateway]: its process has ended 3 times within 10m",
        "[gateway]: cannot read edge.pem: No such file or directory",
        "[gateway]: uvloop is not installed; pip install 'poolctl[gateway]'",
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
    assert "gateway.log" in gateway.fix
    assert certificate.fix.startswith("check `tls` of [gateway]")
    assert (library.message, library.fix) == ("uvloop is not installed", "pip install 'poolctl[gateway]'")
    assert metrics.fix.startswith("free the address")
    assert (events.check, events.message.split()[0]) == ("[events]", "3")
    assert events.fix == "make it writable, or name another file as events.path, then run poolctl reload"
    assert key.fix == "check `tls` of [operator], then run poolctl reload"
    assert token.fix == "export the variable, then run poolctl reload --env; or name a token_file"


def test_problem_of_a_table_that_stops_nothing_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = Feature(package="features.inventory", warnings={"inventory": "check the token"})
    monkeypatch.setattr(_check_pool, "features", lambda: (feature,))
    context = CheckContext(None, {})
    context.about = PingResult(
        name="shop", files=(), version="1", protocol=1, python="3.11", supervisor_pid=1, keeper_pid=2,
        not_served=("[inventory]: its API answered 401", "[metrics]: port 9464 is in use"),
    )  # fmt: skip
    _, inventory, metrics = _check_pool.supervisor(context)
    assert (inventory.status, inventory.message, inventory.fix) == (
        "warning",
        "its API answered 401",
        "check the token",
    )
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
