"""The examples of docs/testing.md are tests that pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real_pool import HELLO_APP

pytest_plugins = ["pytester"]
PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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


@pytest.mark.timeout(190)  # another pytest, with pools in it
def test_examples_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name in ("users", "orders"):
        path = pytester.path / "shop" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HELLO_APP)
    (pytester.path / "httpx.py").write_text(HTTPX)
    (pytester.path / "pool.toml").write_text(POOL)
    text = "\n".join([REST, *EXAMPLES]).replace("async def", "@pytest.mark.anyio\nasync def")
    pytester.makepyfile(text)
    pytester.makeini("[pytest]\npythonpath = .\nfilterwarnings = error\n")
    pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=180).assert_outcomes(passed=5)
