"""docs/json.md names every member of what the commands print, and no other one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.docs.pages import ROOT
from tests.environments import need_gateway
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool, pool_in

PAGE = (ROOT / "docs/json.md").read_text()
# Members that are left out of most documents.
SELDOM = {
    "A server": {"ended", "flapping", "last_line", "last_run", "next_run_at", "on_demand"},
    "A server in detail": {"stacks"},
    "A line of a log": {"pid"},
}


def documented(title: str) -> set[str]:
    """The members in the table of that section."""
    section = PAGE.split(f"\n## {title}\n")[1].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Mapping[str, Any]]]:
    """An object of each kind, by the title of its section."""
    need_gateway()
    with pool_in(tmp_path_factory.mktemp("pool")) as real_pool:
        yield documents_of(real_pool)


def documents_of(real_pool: RealPool) -> Mapping[str, Mapping[str, Any]]:
    real_pool.write("hello.py", HELLO_APP)
    port = claim_port()
    real_pool.write(
        "pool.toml",
        f"""
        [gateway]
        bind = "127.0.0.1:{port}"
        [[route]]
        to = "web"
        [[server]]
        name = "web"
        bind = "127.0.0.1:{claim_port()}"
        app = "hello:app"
        health = "/"
        [[server]]
        name = "nightly"
        command = ["true"]
        job = true
        every = "0 3 1 1 *"
        """,
    )
    real_pool.ok("start")
    get(f"http://127.0.0.1:{port}/")
    real_pool.ok("scale", "web", "2")

    def asked(*args: str) -> Any:
        return real_pool.run(*args, "-o", "json").json

    failed = asked("show", "missing")
    listed, shown, top = asked("list"), asked("show", "web"), asked("top", "--once")
    server = listed["items"][1]
    return {
        "The document": {key: value for key, value in failed.items() if key != "gateway"},
        "An error": failed["errors"][0],
        "A server": server,
        "A server in detail": {k: v for k, v in shown["items"][0].items() if k not in server},
        "A worker": shown["items"][0]["worker_list"][0],
        "The figures of a server": top["items"][0]["stats"],
        "The gateway": top["gateway"],
        "A route": asked("routes")["items"][0],
        "A backend": asked("backends")["items"][0],
        "Health": asked("health")["items"][0],
        "A pool": asked("pools")["items"][0],
        "A change": asked("reload", "--dry-run")["changes"][0],
        "A line of a log": lines(real_pool.ok("logs", "web", "-n", "1", "-o", "json").stdout)[0],
    }


def test_every_member_is_documented_and_no_other_one(documents: Mapping[str, Mapping[str, Any]]) -> None:
    assert re.findall(r"^## (.*)", PAGE, re.MULTILINE) == list(documents)
    for title, found in documents.items():
        seldom = SELDOM.get(title, set())
        assert documented(title) - seldom == set(found) - seldom, title
        assert seldom <= documented(title)


def test_values_that_are_words_are_documented(documents: Mapping[str, Mapping[str, Any]]) -> None:
    words = {
        "A server": ("state", "health"),
        "A route": ("way", "provider", "state"),
        "A backend": ("state", "breaker"),
    }
    for title, members in words.items():
        section = PAGE.split(f"\n## {title}\n")[1].partition("\n## ")[0]
        for member in members:
            (text,) = re.findall(rf"^\| `{member}` \| (.*)", section, re.MULTILINE)
            assert f"`{documents[title][member]}`" in text or "same words" in text, (title, member)
