"""`poolctl export systemd`: units that systemd itself finds nothing wrong with."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from tests.other_user import AS_OTHER_USER
from tests.real_pool import RealPool


def parsed(text: str) -> RawConfigParser:
    parser = RawConfigParser(strict=True, delimiters="=", comment_prefixes="#", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser


def verify(*units: Path, of_user: bool = False, runtime: Path) -> None:
    """What systemd says to them, where there is one."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return
    argv = [program, "--user" if of_user else "--system", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60,
        env={"XDG_RUNTIME_DIR": str(runtime), "HOME": str(runtime), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    said = [
        line for line in done.stderr.splitlines() if "poolctl" in line and "Special user nobody" not in line
    ]
    assert not said


@pytest.mark.parametrize("of_user", [False, True])
def test_the_unit_of_a_pool_passes_the_verification_of_systemd(real_pool: RealPool, of_user: bool) -> None:
    real_pool.write_hello("web", extra='drain_timeout = "40s"\nstop_timeout = "5s"')
    done = real_pool.ok("export", "systemd", "--directory", "units", *(["--user"] if of_user else []))
    (path,) = (real_pool.directory / "units").iterdir()
    assert str(path.relative_to(real_pool.directory)) in done.stdout
    assert path.name in done.stdout.partition("enable --now")[2]
    verify(path, of_user=of_user, runtime=real_pool.runtime)
    unit = parsed(path.read_text())
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert service["OOMPolicy"] == "continue"
    assert service["Restart"] == "on-failure"
    assert service["WorkingDirectory"] == str(real_pool.directory)
    assert int(service["TimeoutStopSec"]) > 45
    assert service["Environment"] == f"POOLCTL_RUNTIME_DIR={real_pool.runtime}"
    assert ("ProtectHostname" in service) is not of_user
    assert unit["Install"]["WantedBy"] == ("default.target" if of_user else "multi-user.target")


def test_exported_unit_starts_the_pool_whatever_characters_its_path_has(real_pool: RealPool) -> None:
    odd = real_pool.directory / "a b%n $x"
    odd.mkdir()
    real_pool.write_hello("web")
    shutil.copy(real_pool.directory / "hello.py", odd)
    shutil.copy(real_pool.directory / "pool.toml", odd)
    printed = real_pool.ok("export", "systemd", cwd=odd).stdout
    name, _, text = printed.partition("\n")
    path = real_pool.directory / name.removeprefix("# ")
    path.write_text(text)
    verify(path, runtime=real_pool.runtime)
    assert f'"{real_pool.directory}/a b%%n $$x/pool.toml"' in parsed(text)["Service"]["ExecStart"]
    assert parsed(text)["Service"]["WorkingDirectory"] == f"{real_pool.directory}/a b%%n $x"


def test_a_server_on_a_socket_of_systemd_gets_a_socket_unit(real_pool: RealPool) -> None:
    real_pool.write("hello.py", "async def app(scope, receive, send): ...\n")
    server = '[[server]]\nname = "{}"\nbind = "fd:{}"\napp = "hello:app"\n'
    expose = 'expose = "http://localhost:8081"\n'
    real_pool.write("pool.toml", server.format("users", "web") + expose + server.format("orders", "api"))
    refused = real_pool.run("export", "systemd")
    assert refused.code == 1
    assert "--listen api=" in refused.stderr
    real_pool.ok("export", "systemd", "--directory", "units", "--listen", "api=/run/api.sock")
    units = {path.name.partition("-")[2]: path for path in (real_pool.directory / "units").iterdir()}
    verify(*units.values(), runtime=real_pool.runtime)
    sockets = {
        name.removesuffix(".socket").rpartition("-")[2]: parsed(path.read_text())["Socket"]
        for name, path in units.items()
        if name.endswith(".socket")
    }
    assert {name: each["ListenStream"] for name, each in sockets.items()} == {
        "web": "127.0.0.1:8081", "api": "/run/api.sock",
    }  # fmt: skip
    assert sockets["web"]["FileDescriptorName"] == "web"
    (service,) = [path for path in units.values() if path.suffix == ".service"]
    assert sockets["web"]["Service"] == service.name
    assert len(parsed(service.read_text())["Service"]["Sockets"].split()) == 2


def test_variables_that_a_service_does_not_have_are_named(real_pool: RealPool) -> None:
    real_pool.write_hello("web", extra='env = { A = "${SECRET}", B = "${OTHER:-b}" }')
    done = real_pool.ok("export", "systemd", env={"SECRET": "hush"})
    assert "SECRET" in done.stderr
    assert "OTHER" not in done.stderr
    assert "EnvironmentFile=-/etc/poolctl/" in done.stdout
    assert "hush" not in done.stdout


def test_file_of_another_process_is_left_alone(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    real_pool.ok("export", "systemd", "--directory", "units")
    real_pool.ok("export", "systemd", "--directory", "units")
    (path,) = (real_pool.directory / "units").iterdir()
    path.write_text("# mine\n")
    assert real_pool.run("export", "systemd", "--directory", "units").code == 8
    assert path.read_text() == "# mine\n"


def test_another_system_is_refused_with_what_there_is(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    done = real_pool.run("export", "nomad")
    assert done.code == 2
    assert "systemd" in done.stderr


def test_units_of_another_user_are_installed_by_root(real_pool: RealPool) -> None:
    real_pool.open_to_all()
    real_pool.write_hello("web")
    argv = [*AS_OTHER_USER.split(), "-u", "POOLCTL_RUNTIME_DIR", *real_pool.command(), "export", "systemd"]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=real_pool.directory,
        env=real_pool.env | {"HOME": "/"},
    )
    assert done.returncode == 0, done.stderr
    service = parsed(done.stdout.partition("\n")[2])["Service"]
    assert (service["User"], service["RuntimeDirectory"]) == ("54321", "poolctl-54321")
    (name,) = re.findall(r"^# (\S+\.service)$", done.stdout, re.MULTILINE)
    assert done.stderr.endswith(
        f" export systemd --directory units && sudo cp units/{name} /etc/systemd/system && "
        f"sudo systemctl daemon-reload && sudo systemctl enable --now {name}\n"
    )
