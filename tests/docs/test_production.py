"""What docs/production.md names is there, and its unit is installed, started, reloaded and restarted as it says."""

from __future__ import annotations

import configparser
import os
import pwd
import re
import shlex
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import block_with
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool
from tests.service_manager import service_manager

STAND_INS = "export PATH=$PWD/bin:$PATH\n"


@pytest.fixture
def said_to_systemd(real_pool: RealPool) -> Path:
    """What `systemctl` and `loginctl` of `STAND_INS` were called with, a line each."""
    said = real_pool.directory / "said"
    for name in ("systemctl", "loginctl"):
        stand_in = real_pool.write(f"bin/{name}", f'#!/bin/sh\necho {name} "$@" >>{said}\n')
        stand_in.chmod(0o755)
    return said


def values(unit: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(unit)
    return parsed


@pytest.mark.timeout(300)  # many commands, which take seconds each on a busy machine
def test_unit_is_installed_reloaded_and_restarted_as_the_page_says(
    reader: Any, real_pool: RealPool, said_to_systemd: Path
) -> None:
    web, given = claim_port(), socket.create_server(("127.0.0.1", 0))
    of_socket_unit = f"127.0.0.1:{given.getsockname()[1]}"
    server = f'[[server]]\nname = "web"\nbind = "127.0.0.1:{web}"\napp = "shop:app"\nhealth = "/"\n'
    handed = f'[[server]]\nname = "handed"\nbind = "fd:front"\nexpose = "http://{of_socket_unit}"\napp = "shop:app"\n'
    real_pool.write("shop.py", HELLO_APP)
    real_pool.write("pool.toml", f'[pool]\nname = "shop"\n{handed}{server}')
    installed = real_pool.directory / "system"
    block = block_with("poolctl export systemd --directory /etc/systemd/system\n")
    block = block.replace("/etc/systemd/system", str(installed)).replace("poolctl-NAME", "poolctl-shop")
    reader(STAND_INS + block)
    said = said_to_systemd.read_text().splitlines()
    assert said == ["systemctl daemon-reload", "systemctl enable --now poolctl-shop.service"]

    unit = values(installed / "poolctl-shop.service")["Service"]
    (sockets,) = installed.glob("*.socket")
    listens = values(sockets)["Socket"]
    assert (unit["Sockets"], listens["ListenStream"]) == (sockets.name, of_socket_unit)
    kept = [unit[key] for key in ("Type", "NotifyAccess", "FileDescriptorStoreMax")]
    assert kept == ["notify", "main", "4096"], "what the stand-in for the service manager does"
    argv, cwd = shlex.split(unit["ExecStart"]), Path(unit["WorkingDirectory"])
    with service_manager(argv, cwd, real_pool.env, real_pool.runtime) as manager:
        manager.sockets = [(listens["FileDescriptorName"], given)]
        manager.start()
        assert get(web).status == get(given.getsockname()[1]).status == 200
        real_pool.write("shop.py", HELLO_APP.replace("hello from", "reloaded"))
        real_pool.append('env = { LOG = "info" }\n')
        subprocess.run(shlex.split(unit["ExecReload"]), cwd="/", env=real_pool.env, check=True, timeout=60)
        assert get(web).text.startswith("reloaded")
        # "further connections wait in the backlog for the next run"
        assert manager.stop() == 0
        with ThreadPoolExecutor() as clients:
            answers = [clients.submit(get, port) for port in (web, given.getsockname()[1])]
            assert not wait(answers, timeout=0.2).done
            manager.start()
            assert [each.result().status for each in answers] == [200, 200]


@pytest.mark.parametrize(
    ("options", "place", "commands"),
    [
        (
            "",
            "/etc/systemd/system",
            ["systemctl daemon-reload", "systemctl enable --now poolctl-shop.service"],
        ),
        (
            "--user",
            "~/.config/systemd/user",
            [
                "systemctl --user daemon-reload",
                "systemctl --user enable --now poolctl-shop.service",
                "loginctl enable-linger",
            ],
        ),
    ],
)
def test_printed_commands_install_the_unit(
    reader: Any, real_pool: RealPool, said_to_systemd: Path, options: str, place: str, commands: list[str]
) -> None:
    if not options and os.geteuid() != 0:
        pytest.skip("only root's commands are without sudo")
    real_pool.write_hello()
    real_pool.append('[pool]\nname = "shop"\n')
    _, found, install = real_pool.ok("export", "systemd", *options.split()).stderr.partition("to install: ")
    assert (found, place in install) == ("to install: ", True)
    directory = real_pool.directory / "units"
    reader(STAND_INS + install.replace("/etc/systemd/system", str(directory)))
    if options:
        directory = Path(real_pool.env["HOME"], ".config/systemd/user")
    assert values(directory / "poolctl-shop.service")["Service"]["Type"] == "notify"
    assert said_to_systemd.read_text().splitlines() == commands


TELLS_WHAT_IT_READS = """
import os


async def app(scope, receive, send):
    if scope["type"] == "http":
        said = f"{os.getuid()} {os.environ['KEY']}"
        for other in ("shop", "blog"):
            try:
                said += " " + open(f"../{other}/secret").read()
            except PermissionError:
                said += " -"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said.encode()})
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as other users")
def test_applications_of_several_users_do_not_read_each_others_secrets(real_pool: RealPool) -> None:
    real_pool.open_to_all()
    text = block_with('python = "/srv/shop/.venv"').replace('"/srv/', f'"{real_pool.directory}/')
    text = re.sub(r'python = ".*"', f'python = "{real_pool.python}"', text)
    ports, uids = {}, {}
    for name, user, port in (("shop", "nobody", 8000), ("blog", "daemon", 8001)):
        ports[name], uids[name] = claim_port(), pwd.getpwnam(user).pw_uid
        text = text.replace(f":{port}", f":{ports[name]}")
        text = text.replace(f'user = "{name}"', f'user = "{user}"\ncwd = "{name}"\nenv_file = "{name}/.env"')
        real_pool.write(f"{name}/{name}.py", TELLS_WHAT_IT_READS)
        for file in (".env", "secret"):
            path = real_pool.write(f"{name}/{file}", f"KEY={name}")
            path.chmod(0o600)
            os.chown(path, uids[name], -1)
    real_pool.write("pool.toml", text)
    real_pool.ok("start")
    assert get(ports["shop"]).text == f"{uids['shop']} shop KEY=shop -"
    assert get(ports["blog"]).text == f"{uids['blog']} blog - KEY=blog"
