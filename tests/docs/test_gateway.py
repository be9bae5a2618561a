"""What the pages of the gateway say is what configuration and commands have, and their code runs against a pool."""

from __future__ import annotations

import http.client
import os
import re
import ssl
from contextlib import closing
from pathlib import Path

import pytest

from poolctl.config import json_schema, load
from poolctl.features.gateway.routes import routes_of
from poolctl.gateway import routes
from tests.certificates import certificate
from tests.docs.pages import ROOT
from tests.ports import claim_port
from tests.real_pool import RealPool

TEXT = (ROOT / "docs" / "gateway.md").read_text()
KEYS = (ROOT / "docs" / "gateway-keys.md").read_text()


def test_example_has_the_routes_that_it_shows(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", KEYS, re.DOTALL)
    path = tmp_path / "pool.toml"
    path.write_text(example)
    config = load(path, {})
    assert config.problems == []
    assert [each.alias for each in routes_of(config, config.tables)] == [
        "users", "files", "downloads", "10.0.0.5:5432",
    ]  # fmt: skip


@pytest.mark.parametrize("table", ["GatewayConfig", "RouteConfig", "StreamConfig"])
def test_every_key_is_named(table: str) -> None:
    prose = re.sub(r"```.*?```", "", KEYS, flags=re.DOTALL)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert json_schema()["$defs"][table]["properties"].keys() - named == set(), "docs/gateway-keys.md"


POOL = """
[pool]
name = "shop"
[gateway]
bind = "127.0.0.1:%d"
[[route]]
alias = "users"
host = "users.example.com"
to = "http://127.0.0.1:1"
"""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_registry_of_a_pool_prints_its_routes(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_pool.write("pool.toml", POOL % claim_port())
    real_pool.ok("start")
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", os.fspath(real_pool.runtime))
    found: dict[str, object] = {}
    (code,) = [each for each in blocks() if ".registry()" in each]
    exec(compile(code, "gateway.md", "exec"), found)
    generation = found["registry"].generation  # type: ignore[attr-defined]
    lines = ["users ['http://127.0.0.1:1']", f"1 1 {generation}", "{'file': 1}"]
    assert capsys.readouterr().out.splitlines() == lines


APP_POOL = """
[gateway]
bind = ["127.0.0.1:{plain}", {{ bind = "127.0.0.1:{tls}", tls = {{ cert = "edge.pem", key = "edge.key" }} }}]
[[route]]
alias = "plain"
to = "web"
path = "/plain"
[[route]]
alias = "limited"
to = "web"
path = "/limited"
limit = {{ concurrency = 5 }}
[[route]]
alias = "sticky"
to = "web"
path = "/sticky"
policy = "sticky"
[[route]]
alias = "retried"
to = "web"
path = "/retried"
retries = 2
[[route]]
alias = "changed"
to = "web"
path = "/changed"
strip_path = true
[[server]]
name = "web"
bind = "127.0.0.1:{web}"
app = "shop:app"
"""
WAYS = ("plain", "limited", "sticky", "retried", "changed")


def test_application_finds_the_route_of_requests_of_every_kind_of_route(real_pool: RealPool) -> None:
    (code,) = [each for each in blocks() if "try_get_route" in each]
    ports = {name: claim_port() for name in ("plain", "tls", "web")}
    real_pool.write("shop.py", code)
    certificate(real_pool.directory, "edge")
    real_pool.write("pool.toml", APP_POOL.format(**ports))
    real_pool.ok("start")
    insecure = ssl.create_default_context()
    insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
    plain = http.client.HTTPConnection("127.0.0.1", ports["plain"], timeout=60)
    secure = http.client.HTTPSConnection("127.0.0.1", ports["tls"], timeout=60, context=insecure)
    own = http.client.HTTPConnection("127.0.0.1", ports["web"], timeout=60)
    forged = {"X-Poolctl-Context": "0 limited", "X-Poolctl-Route": "limited"}

    def said(connection: http.client.HTTPConnection, path: str) -> str:
        connection.request("GET", path, headers=forged)
        return connection.getresponse().read().decode()

    with closing(plain), closing(secure), closing(own):
        for connection in (plain, secure):
            assert [said(connection, f"/{way}") for way in WAYS] == [f"{way} to web" for way in WAYS]
        assert said(own, "/limited") == "past the gateway"


def test_code_of_applications_uses_what_there_is() -> None:
    for code in blocks():
        compile(code, "gateway.md", "exec")
        for names in re.findall(r"from poolctl\.gateway\.routes import (.+)", code):
            assert not [name for name in names.split(", ") if not hasattr(routes, name)]
