"""The recipes of docs/testing.md work as they are pasted. That of Celery is in tests/applications."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from poolctl import PoolConfig
from tests.configuration import server
from tests.docs.pages import ROOT, some
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import HELLO_APP, RealPool

pytest_plugins = ["pytester"]
HTTPX = """
import urllib.request

class Reply:
    status_code = 200

def get(url):
    with urllib.request.urlopen(url, timeout=30):
        return Reply
"""
POOL = '[[server]]\nname = "users"\nbind = ":8081"\napp = "shop.users:app"\n'
REST = """
import httpx
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

def test_session(shop):
    assert httpx.get(shop.url("users", "/me")).status_code == 200
"""
HELLO_TEST = """
import os
import urllib.request

def test_hello():
    assert urllib.request.urlopen(os.environ["POOLCTL_URL_WEB"], timeout=30).read().startswith(b"hello")
"""


@pytest.mark.timeout(300)  # another pytest, with pools in it
def test_examples_of_fixtures_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name in ("users", "orders"):
        path = pytester.path / "shop" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HELLO_APP)
    (pytester.path / "httpx.py").write_text(HTTPX)
    (pytester.path / "pool.toml").write_text(POOL)
    text = "\n".join([REST, *some("testing", "Fixtures for pytest", "python")])
    pytester.makepyfile(text.replace("async def", "@pytest.mark.anyio\nasync def"))
    pytester.makeini("[pytest]\npythonpath = .\nfilterwarnings = error\n")
    pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=290).assert_outcomes(passed=5)


def write_files(pool: RealPool, section: str, *languages: str) -> None:
    """Write the files of a recipe, whose first lines name them."""
    for language in languages:
        for text in some("testing", section, language):
            pool.write(text.partition("\n")[0].removeprefix("# "), text)


def commands(section: str) -> str:
    return "\n".join(some("testing", section, "sh"))


@pytest.fixture
def shop(real_pool: RealPool) -> RealPool:
    real_pool.write("shop.py", HELLO_APP)
    real_pool.write("pool.toml", server("web", bind="127.0.0.1:auto", app="shop:app", python=sys.prefix))
    return real_pool


@pytest.mark.slow
def test_command_runs_with_the_servers(reader: Any, shop: RealPool) -> None:
    shop.write("test_shop.py", HELLO_TEST)
    assert "1 passed" in reader(commands("One command"))


@pytest.mark.slow
def test_one_pool_serves_all_workers_of_xdist(reader: Any, shop: RealPool) -> None:
    write_files(shop, "Workers of pytest-xdist", "python")
    assert "2 passed" in reader(commands("Workers of pytest-xdist"))


@pytest.mark.slow
def test_coverage_measures_workers(reader: Any, shop: RealPool) -> None:
    shop.write("test_shop.py", HELLO_TEST)
    write_files(shop, "Coverage of workers", "ini")
    report = reader(commands("Coverage of workers"))
    (line,) = (line.split() for line in report.splitlines() if line.startswith("shop.py"))
    statements, missed = int(line[1]), int(line[2])
    assert statements > 0
    assert missed < statements / 2, "the handler ran in a worker"


@pytest.mark.slow
def test_debugger_stops_in_a_worker(shop: RealPool) -> None:
    port = claim_port()
    shop.write("shop.py", f"breakpoint()\n{HELLO_APP}")
    shop.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="shop:app", python=sys.prefix))
    *_, command = some("testing", "A debugger in a worker", "sh")[0].splitlines()
    words = command.split()[1:]
    done = subprocess.run(
        [*shop.command(), *words], cwd=shop.directory, env=shop.env, input="p 6 * 7\nq\n",
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert "(Pdb) 42" in done.stdout, done.stderr


@pytest.mark.slow
def test_program_runs_its_servers(reader: Any, shop: RealPool) -> None:
    write_files(shop, "A program that needs servers", "python")
    assert reader("python3 check.py") == "200\n"
    assert reader("python3 deploy.py").startswith("http://127.0.0.1:")
    shop.ok("stop")


@pytest.mark.slow
def test_browser_reads_from_a_pool(reader: Any, shop: RealPool) -> None:
    pytest.importorskip("playwright")
    (text,) = some("testing", "A browser", "python")
    launch = f"launch(executable_path={program('chromium')!r}, args=['--no-sandbox'])"
    assert "launch()" in text
    shop.write("test_browser.py", text.replace("launch()", launch))
    assert "1 passed" in reader("python3 -m pytest -q test_browser.py")


def steps() -> Iterator[dict[str, Any]]:
    (text,) = some("testing", "On GitHub", "yaml")
    for step in yaml.safe_load(text)["jobs"]["test"]["steps"]:
        if "run" in step and not step["run"].startswith("pip "):
            yield step


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fails", [False, True])
def test_workflow_of_github_runs(real_pool: RealPool, fails: bool) -> None:
    real_pool.write("shop.py", HELLO_APP)
    real_pool.write("broken.py", "import no_such_module\n")
    names = ["web", "users", "orders", "cart", "search", "mail"]
    modules = {name: "broken" if fails and name == "mail" else "shop" for name in names}
    real_pool.write(
        "pool.toml",
        "\n".join(
            server(name, bind="127.0.0.1:auto", app=f"{module}:app", python=sys.prefix)
            for name, module in modules.items()
        ),
    )
    test = HELLO_TEST if fails else "def test_nothing():\n    pass\n"
    real_pool.write("test_shop.py", test)
    path = f"{sys.prefix}/bin:/usr/bin:/bin"
    env = real_pool.env | {
        "GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(real_pool.directory), "PATH": path,
    }  # fmt: skip
    said, failed = "", 0
    for step in steps():
        if failed and step.get("if") != "always()":
            continue
        if fails and "--import" in step["run"]:
            continue  # its problem is another one
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step["run"]], cwd=real_pool.directory, env=env,
            capture_output=True, text=True,
        )  # fmt: skip
        said += done.stdout + done.stderr
        failed = failed or done.returncode
    assert failed == (1 if fails else 0), said
    assert "no_such_module" in said if fails else "passed" in said
    assert json.loads((real_pool.directory / "events.jsonl").read_text().splitlines()[0])["kind"]
    logs = (real_pool.directory / "logs.txt").read_text()
    assert bool(re.search(r"^mail +\| ModuleNotFoundError", logs, re.MULTILINE)) is fails
    if not fails:
        assert len(json.loads((real_pool.directory / "servers.json").read_text())["items"]) == 6


def test_hook_waits_for_a_container(reader: Any, shop: RealPool) -> None:
    write_files(shop, "On GitHub", "toml", "python")
    port = str(claim_port())
    shop.replace("5432", port)
    wait = f"import socket, time; time.sleep(1); s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", wait]) as container:
        try:
            assert "1 server ready" in reader("poolctl start 2>&1")
        finally:
            container.kill()
    shop.ok("stop")


def test_workflow_of_gitlab_is_a_file_of_it() -> None:
    (text,) = some("testing", "On GitLab", "yaml")
    assert yaml.safe_load(text)["test"]["script"][1] in "\n".join(step["run"] for step in steps())


def test_names_of_a_filter_and_the_check_are_commands(reader: Any, shop: RealPool) -> None:
    shop.ok("start")
    assert "ok" in reader(commands("Restart what a filter finds") + commands("Check the file only"))
    assert PoolConfig.load(shop.directory / "pool.toml", {}).problems == []
    assert (ROOT / "docs/testing.md").read_text().count("```sh") == 6
