"""The how-to guides: their files are valid, their commands run, and what cannot be run here is counted."""

from __future__ import annotations

import json
import os
import re
import ssl
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from tests.certificates import certificate
from tests.docs.pages import PAGES, ROOT, block_with, blocks
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool

GUIDES = ("containers", "deploying", "development", "production", "tls", "wsgi")
# Blocks that are not executed: a workflow needs GitHub or GitLab. Commands in a sentence that need a certificate
# authority (certbot) are not blocks, and are these. Compose and docker need a daemon; their image's
# recipe is followed in tests/integration/test_examples.py.
NOT_EXECUTED = 4
ELSEWHERE = (
    "docker build -t shop .",
    "certbot certonly",
    "certbot renew",
)
APP = HELLO_APP
NAMES_ITS_ENVIRONMENT = "import os, sys\n" + APP.replace(
    'b"hello from " + str(scope["server"][1]).encode()', "os.path.realpath(sys.prefix).encode()"
)


def guide(name: str, language: str) -> list[str]:
    return [each.text for each in blocks(ROOT / f"docs/{name}.md") if each.language == language]


@pytest.mark.parametrize("name", GUIDES)
def test_each_file_of_a_guide_is_valid(tmp_path: Path, name: str) -> None:
    for text in guide(name, "toml"):
        whole = (
            text if "[[server]]" in text else f'{text}\n[[server]]\nname = "web"\nbind = ":1"\napp = "a:b"\n'
        )
        (tmp_path / "pool.toml").write_text(whole.replace("\n   ", "\n"))
        problems = [str(each) for each in PoolConfig.load(tmp_path / "pool.toml", {}).problems]
        assert [each for each in problems if "needs root" not in each] == []


def test_challenges_of_certbot_arrive_and_other_requests_are_sent_to_https(real_pool: RealPool) -> None:
    text = re.sub("/etc/letsencrypt/live/[^/]*", str(real_pool.directory), guide("tls", "toml")[0])
    cert, key = certificate(real_pool.directory, "shop.example.com")
    cert.rename(real_pool.directory / "fullchain.pem")
    key.rename(real_pool.directory / "privkey.pem")
    real_pool.write("pool.toml", text)

    def answer(url: str) -> str:
        return (
            real_pool.ok("routes", "explain", url).stdout.partition("\n")[0].partition(" takes the route ")[2]
        )

    host = "shop.example.com"
    assert "challenges" not in real_pool.ok("validate").stderr
    assert answer(f"http://{host}/.well-known/acme-challenge/x") == "challenges, which leads to acme"
    assert answer(f"http://{host}/cart") == "to-https, which redirects to https (308)"
    assert answer(f"https://{host}/cart") == "web, which leads to web"


def test_server_with_tls_of_its_own_serves_a_renewed_certificate_after_the_hook(
    reader: Any, real_pool: RealPool
) -> None:
    (hook,) = {hook for page in PAGES for hook in re.findall(r'--deploy-hook "([^"]+)"', page.read_text())}
    (name,) = re.findall("--pool (\\w+)", hook)
    port = claim_port()
    cert, key = certificate(real_pool.directory)
    tls = f'tls = {{ cert = "{cert}", key = "{key}" }}'
    real_pool.write("shop.py", APP)
    server = f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "shop:app"\n{tls}\n'
    real_pool.write("pool.toml", f'[pool]\nname = "{name}"\n{server}')
    real_pool.ok("start")
    assert ssl.get_server_certificate(("127.0.0.1", port)) == cert.read_text()
    certificate(real_pool.directory)
    reader(f"cd /\n{hook}")
    assert ssl.get_server_certificate(("127.0.0.1", port)) == cert.read_text()


def test_what_is_not_executed_is_counted() -> None:
    left = [text for name in GUIDES for language in ("yaml", "json") for text in guide(name, language)]
    text = "".join((ROOT / f"docs/{name}.md").read_text() for name in GUIDES)
    assert len(left) + len([each for each in ELSEWHERE if each in text]) == NOT_EXECUTED


@pytest.fixture
def project(real_pool: RealPool) -> RealPool:
    """A pool with the files that the guides speak of."""
    real_pool.write("shop.py", APP)
    real_pool.write("migrate.py", "print('migrated')\n")
    real_pool.write("test_shop.py", "def test_nothing():\n    pass\n")
    real_pool.write("development.toml", '[[server]]\nname = "web"\ntags = ["development"]\n')
    (text,) = guide("deploying", "toml")
    real_pool.write("pool.toml", text.replace("127.0.0.1:8000", f"127.0.0.1:{claim_port()}"))
    return real_pool


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_deploying_works_as_it_is_pasted(reader: Any, project: RealPool) -> None:
    (project.directory / ".venv").symlink_to(sys.prefix)
    (project.directory / "current").symlink_to(".venv")
    # In place of what pip would download.
    project.write("packages.pth", sysconfig.get_path("purelib") + "\n")
    project.write("requirements.txt", "")
    install = ".venv-next/bin/pip install -r requirements.txt\n"
    commands = "\n".join(guide("deploying", "sh"))
    assert install in commands
    project.write("shop.py", NAMES_ITS_ENVIRONMENT)
    project.append('python = "current"\n')
    project.ok("start")
    port = int(project.items()["web"]["bind"].rpartition(":")[2])
    assert get(port).text == os.path.realpath(sys.prefix)
    commands = commands.replace(install, f"{install}cp packages.pth .venv-next/lib/python3*/site-packages\n")
    assert "web" in reader(commands)
    assert get(port).text == os.path.realpath(project.directory / ".venv-next")
    reader("ln -sfn .venv current\npoolctl restart web")
    assert get(port).text == os.path.realpath(sys.prefix)

    assert (before := project.items()["web"]["pids"])
    project.write("shop.py", APP.replace("200", "500"))
    broken = project.run("restart", "web")
    assert (broken.code, project.items()["web"]["pids"]) == (1, before), "nothing has to be undone"
    assert "GET /: status 500" in broken.stderr
    project.write("shop.py", APP)
    project.write("migrate.py", "raise SystemExit('no such column')\n")
    with pytest.raises(AssertionError, match="migrate"):
        reader(block_with("poolctl restart migrate"))
    assert project.items()["web"]["pids"] == before, "a failed migration keeps the old processes in place"
    project.ok("stop")


def test_development_works_as_it_is_pasted(reader: Any, project: RealPool) -> None:
    assert "2 servers, ok" in reader("\n".join(guide("development", "sh")))


@pytest.mark.slow
def test_the_dashboard_for_grafana_asks_for_metrics_that_there_are(real_pool: RealPool) -> None:
    dashboard = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
    assert {"title", "uid", "schemaVersion", "templating", "panels"} <= dashboard.keys()
    real_pool.write_hello("users")
    real_pool.ok("start")
    there = set(re.findall(r"^(poolctl_\w+)", real_pool.ok("metrics").stdout, re.MULTILINE))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"poolctl_\w+", target["expr"])
    }
    assert asked
    assert asked - there == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_flask_and_django_work_as_they_are_pasted(reader: Any, real_pool: RealPool) -> None:
    (app,) = guide("wsgi", "python")
    files, commands = guide("wsgi", "toml"), guide("wsgi", "sh")
    flask, django = (
        f"cat >pool.toml <<'END'\n{file}END\n{block}" for file, block in zip(files, commands, strict=True)
    )
    path = real_pool.write("shop.py", app)
    output = reader(flask)
    assert "hello from /" in output
    assert f'"bytes":{path.stat().st_size}' in output
    reader(django)
    assert (real_pool.directory / "office/db.sqlite3").stat().st_size, "it was migrated"
    # "the same project as an ASGI application"
    reader(django.replace("office.wsgi:", "office.asgi:").replace("django-admin startproject office\n", ""))
