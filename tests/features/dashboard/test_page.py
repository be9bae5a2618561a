"""The dashboard of a pool: its settings, and its process, which ends, moves and comes back without harm."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.errors import ServerError
from poolctl.features.dashboard.page import load_settings, url_of
from poolctl.features.dashboard.table import Dashboard
from poolctl.supervisor.web_addresses import SiteSettings
from tests.certificates import certificate
from tests.http_get import Reply, get
from tests.ports import claim_port
from tests.processes import freeze
from tests.real_pool import RealPool


def test_certificate_that_cannot_be_used_is_named_with_its_key(tmp_path: Path) -> None:
    table = Dashboard(bind="127.0.0.1:8443", token_env="TOKEN", tls={"cert": "/nowhere/cert.pem"})
    pool = SimpleNamespace(environment={"TOKEN": "x" * 40}, name="shop")
    environment: Any = SimpleNamespace(configuration=pool, directory="/run", state_directory=str(tmp_path))
    with pytest.raises(ServerError) as caught:
        load_settings(table, environment)
    assert caught.value.message == "tls.cert: /nowhere/cert.pem: there is no such file"


def settings_with(tmp_path: Path, environment: dict[str, str] | None = None, **keys: Any) -> SiteSettings:
    pool = SimpleNamespace(environment=environment or {}, name="shop")
    given: Any = SimpleNamespace(configuration=pool, directory="/run/shop", state_directory=str(tmp_path))
    return load_settings(Dashboard(**{"bind": "127.0.0.1:8443"} | keys), given)


def test_settings_have_the_token_from_the_environment_or_the_file(tmp_path: Path) -> None:
    from_environment = settings_with(tmp_path, {"TOKEN": f" {'x' * 40}\n"}, token_env="TOKEN")
    assert from_environment.values["token"] == "x" * 40
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").write_text(f"{'y' * 40}\n")
    assert settings_with(tmp_path, token_file=str(tmp_path / "own")).values["token"] == "y" * 40
    assert (from_environment.tls, from_environment.values["secure"]) == (None, False)


def test_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first, again = settings_with(tmp_path), settings_with(tmp_path)
    (made,) = tmp_path.iterdir()
    assert first.values["token"] == again.values["token"] == made.read_text().strip()
    assert len(first.values["token"]) >= 32
    assert made.stat().st_mode & 0o777 == 0o600
    assert first == again
    assert settings_with(tmp_path, hosts=["a.example"]) != first


def test_missing_or_empty_token_is_an_error_with_its_fix(tmp_path: Path) -> None:
    for environment in ({}, {"TOKEN": " "}):
        with pytest.raises(
            ServerError, match="it has no token: the environment variable TOKEN is empty"
        ) as caught:
            settings_with(tmp_path, environment, token_env="TOKEN")
        assert caught.value.hint == "export TOKEN=… before poolctl start"
    (tmp_path / "garbage").write_bytes(b"\xff")
    for name in ("missing", "garbage"):
        with pytest.raises(ServerError, match="its token cannot be read") as caught:
            settings_with(tmp_path, token_file=str(tmp_path / name))
        assert caught.value.hint == f"write the token into {tmp_path / name}"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ServerError, match=r"it has no token: .*/empty is empty"):
        settings_with(tmp_path, token_file=str(tmp_path / "empty"))
    with pytest.raises(ServerError, match=r"its token cannot be written: .*No such file") as caught:
        settings_with(tmp_path / "missing")
    assert caught.value.hint == "name one: token_file"


def test_settings_have_the_certificate_with_its_password_from_the_environment(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    files = {"cert": str(cert), "key": str(key)}
    settings = settings_with(tmp_path, tls=files)
    assert settings.values["secure"]
    made = settings.tls
    assert made is not None
    assert {name: made[name] for name in ("cert", "key", "ca", "ciphers", "password")} == {
        **files, "ca": None, "ciphers": None, "password": "",
    }  # fmt: skip
    settings = settings_with(tmp_path, {"SECRET": "open"}, tls={**files, "password_env": "SECRET"})
    assert settings.tls is not None
    assert settings.tls["password"] == "open"


def test_hosts_are_the_configured_ones_and_the_address(tmp_path: Path) -> None:
    assert settings_with(tmp_path, hosts=["a.example"]).values["hosts"] == ["a.example", "127.0.0.1"]
    assert settings_with(tmp_path, bind="[::1]:8443").values["hosts"] == ["::1"]
    assert settings_with(tmp_path, bind="unix:/run/page", hosts=["a.example"]).values["hosts"] == [
        "a.example"
    ]


def test_url_is_where_a_browser_on_this_machine_finds_the_page() -> None:
    assert url_of(Dashboard(bind="127.0.0.1:80")) == "http://127.0.0.1:80/"
    assert (
        url_of(Dashboard(bind="0.0.0.0:8443", tls={"cert": "/c", "key": "/k"})) == "https://127.0.0.1:8443/"
    )
    assert url_of(Dashboard(bind="unix:/run/page")) == "unix:/run/page"


Until = Callable[..., Any]


def post(port: int, path: str, body: Any) -> Reply:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


class Page:
    """A pool with a dashboard."""

    def __init__(self, pool: RealPool, until: Until) -> None:
        self.pool = pool
        self.until = until
        self.port = claim_port()
        self.pool.write_hello("web")
        self._servers = (pool.directory / "pool.toml").read_text()

    def write(self, table: str | None) -> None:
        text = "" if table is None else f"[dashboard]\n{table}\n"
        (self.pool.directory / "pool.toml").write_text(text + self._servers)

    def start(self, table: str = "") -> None:
        self.write(f'bind = "127.0.0.1:{self.port}"\n{table}')
        self.pool.ok("start")

    def process(self) -> int | None:
        """The pid of the dashboard's process."""
        found = [pid for pid, line in self.pool.processes().items() if line.endswith("bootstrap.py web")]
        return found[0] if len(found) == 1 else None

    def logger(self) -> int:
        """The pid of the pool's logger, 0 without one."""
        return next((pid for pid, line in self.pool.processes().items() if "bootstrap.py logs" in line), 0)

    def answers(self, port: int | None = None) -> bool:
        try:
            return get(port or self.port, "/").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def token(self) -> str:
        return str(self.pool.ok("dashboard", "-o", "json").json["dashboard"]["token"])

    def servers(self, token: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        return get(self.port, "/poolctl/server?name=web", headers=headers)

    def status(self, token: str) -> int:
        """The status of its answer; 0 while its process is replaced, which may cut off a request."""
        try:
            return int(self.servers(token).status)
        except (OSError, http.client.HTTPException):
            return 0


@pytest.fixture
def page(real_pool: RealPool, until: Until) -> Page:
    return Page(real_pool, until)


@pytest.mark.integration
@pytest.mark.capability
def test_page_is_served_after_a_start_and_ends_with_the_pool(page: Page) -> None:
    page.start()
    token = page.token()
    assert page.answers()
    assert page.servers(token).json()["items"][0]["name"] == "web"
    assert page.servers("wrong").status == 401
    assert list(page.pool.items()) == ["web"]
    assert page.pool.ok("status", "-o", "json").json["summary"]["servers"] == 1
    page.pool.ok("stop")
    assert not page.answers()


@pytest.mark.integration
def test_dashboard_that_dies_is_restarted_and_refuses_no_connection(page: Page) -> None:
    page.start()
    token = page.token()
    first = page.process()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert page.servers(token).status == 200  # waits in the listener until there is a process again
    assert page.process() not in (None, first)
    assert page.pool.ok("status").code == 0


@pytest.mark.heavy
@pytest.mark.integration
@pytest.mark.slow  # they are asked every five seconds, and have ten to answer
def test_a_page_and_a_logger_that_hang_are_replaced(page: Page) -> None:
    page.start()
    token = page.token()
    first, logger = page.process(), page.logger()
    assert first is not None
    freeze(first)
    freeze(logger)
    page.until(lambda: page.process() not in (None, first), timeout_seconds=60)
    page.until(lambda: page.logger() not in (0, logger), timeout_seconds=60)
    assert page.servers(token).status == 200


@pytest.mark.heavy
@pytest.mark.integration
@pytest.mark.parametrize("whom", ["supervisor_pid", "keeper_pid"])
def test_page_stays_served_when_keeper_or_supervisor_is_killed(page: Page, whom: str) -> None:
    page.start()
    token = page.token()
    process, before = page.process(), page.pool.info()
    os.kill(before[whom], signal.SIGKILL)
    assert page.answers()
    page.until(lambda: page.pool.info()[whom] != before[whom])
    assert page.until(lambda: page.status(token) == 200)
    assert page.token() == token
    assert page.process() == process


@pytest.mark.heavy
@pytest.mark.integration
def test_dashboard_ends_with_keeper_and_supervisor_and_the_next_pool_serves_it_again(page: Page) -> None:
    page.start()
    token = page.token()
    process, before = page.process(), page.pool.info()
    freeze(before["keeper_pid"])
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    os.kill(before["keeper_pid"], signal.SIGKILL)
    assert page.until(lambda: not page.answers())
    page.pool.ok("start")
    assert page.until(lambda: page.status(token) == 200)
    assert page.process() not in (None, process)


@pytest.mark.integration
def test_reload_opens_moves_and_closes_the_dashboard(page: Page) -> None:
    page.write(None)
    page.pool.ok("start")
    assert page.pool.run("dashboard").code == 3
    page.write(f'bind = "127.0.0.1:{page.port}"')
    assert f"{page.port}" in page.pool.ok("reload").stdout + page.pool.ok("dashboard").stdout
    assert page.answers()
    other = claim_port()
    page.write(f'bind = "127.0.0.1:{other}"')
    page.pool.ok("reload")
    assert f":{other}/" in page.pool.ok("dashboard").stdout
    assert page.answers(other)
    page.until(lambda: not page.answers())
    page.write(None)
    page.pool.ok("reload")
    page.until(lambda: not page.answers(other))
    page.until(lambda: page.process() is None)


@pytest.mark.heavy
@pytest.mark.integration
def test_new_token_is_valid_after_a_reload(page: Page, until: Until) -> None:
    (page.pool.directory / "token").write_text("first-token\n")
    page.start('token_file = "token"')
    assert page.token() == "first-token"
    assert page.servers("first-token").status == 200
    (page.pool.directory / "other").write_text("second-token\n")
    page.write(f'bind = "127.0.0.1:{page.port}"\ntoken_file = "other"')
    page.pool.ok("reload")
    assert until(lambda: page.status("second-token") == 200)
    assert until(lambda: page.status("first-token") == 401)
    (page.pool.directory / "other").write_text("third-token\n")
    page.pool.ok("reload")
    assert until(lambda: page.status("third-token") == 200)


@pytest.mark.integration
def test_taken_dashboard_address_is_reported_and_the_pool_serves(page: Page) -> None:
    import socket

    with socket.create_server(("127.0.0.1", page.port)):
        page.start()
        done = page.pool.run("dashboard")
        assert done.code == 3
        assert str(page.port) in done.stderr
        assert page.pool.ok("status").code == 0
    assert page.until(page.answers)
    assert page.until(lambda: page.pool.run("dashboard").code == 0)


@pytest.mark.integration
def test_page_with_a_certificate_speaks_tls_only(page: Page) -> None:
    cert, key = certificate(page.pool.directory)
    page.start(f'tls = {{ cert = "{cert.name}", key = "{key.name}" }}')
    assert page.pool.ok("dashboard").stdout.startswith(f"https://127.0.0.1:{page.port}/#token=")
    reply = get(f"https://127.0.0.1:{page.port}", "/")
    assert reply.status == 200
    token = page.token()
    login = post(page.port, "/poolctl/login", {"token": token})
    assert "Secure" in login.headers["set-cookie"]
    assert not page.answers()


@pytest.mark.heavy
@pytest.mark.integration
def test_problem_of_a_dashboard_is_reported_before_anything_is_done(page: Page) -> None:
    page.write('bind = "0.0.0.0:9465"')
    assert "can be reached from other machines" in page.pool.run("validate").stdout
    page.write('bind = "0.0.0.0:9465"\ninsecure = true')
    assert page.pool.run("validate").code == 0
    page.write('bind = "127.0.0.1:9465"\ntoken_file = "nowhere"\ntls = { cert = "none.pem" }')
    done = page.pool.run("validate")
    assert done.code == 5
    assert "dashboard.token_file" in done.stdout
    assert "none.pem" in done.stdout
    page.write('bind = "127.0.0.1:9465"\ntoken_env = "NOT_SET_ANYWHERE"')
    assert "NOT_SET_ANYWHERE is not set" in page.pool.run("validate").stdout
