"""Each block of "How do I …?" and of the essential keys: files are valid, commands run in a pool that runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from tests.certificates import certificate
from tests.docs.pages import ROOT
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool

PAGES = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("how-do-i", "essentials"))
ANSWERS = {
    answer.partition("\n")[0]: re.findall(r"^```(\w+)\n(.*?)^```", answer, re.MULTILINE | re.DOTALL)
    for answer in re.split("^##+ ", PAGES, flags=re.MULTILINE)[1:]
}
BLOCKS = [(title, *block) for title, found in ANSWERS.items() for block in found]
FILES = [pytest.param(text, id=title) for title, language, text in BLOCKS if language == "toml"]
COMMANDS = [text for _, language, text in BLOCKS if language == "sh"]


def test_forty_questions_are_answered() -> None:
    assert len(re.findall("^### ", PAGES, re.MULTILINE)) >= 40
    assert len(FILES) + len(COMMANDS) == PAGES.count("```") // 2


@pytest.mark.parametrize("text", FILES)
def test_each_file_of_an_answer_is_valid(tmp_path: Path, text: str, installed_haproxy: None) -> None:
    for path, name in zip(
        certificate(tmp_path, "shop.example.com"), ("fullchain.pem", "privkey.pem"), strict=True
    ):
        path.rename(tmp_path / name)
    there = re.findall('^name = "(.+)"', text, re.MULTILINE)
    for number, name in enumerate({"web", *re.findall('to = "(.+)"', text)} - {*there}):
        text += f'\n[[server]]\nname = "{name}"\nbind = "127.0.0.1:{9000 + number}"\napp = "a:b"\n'
    (tmp_path / "pool.toml").write_text(text)
    assert [str(each) for each in PoolConfig.load(tmp_path / "pool.toml", {}).problems] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_command_of_an_answer_works_as_it_is_pasted(reader: Any, real_pool: RealPool) -> None:
    real_pool.write("shop.py", HELLO_APP)
    server = f'[[server]]\nname = "web"\nbind = "127.0.0.1:{claim_port()}"\napp = "shop:app"\n'
    real_pool.write("pool.toml", server)
    real_pool.write("staging.toml", '[[server]]\nname = "web"\nworkers = 2\n')
    real_pool.ok("start")
    said = ""
    for text in COMMANDS:
        if "poolctl run" in text:  # a pool of its own
            real_pool.ok("stop")
        said += reader(text)
    for words in ("1 server, ok", "ExecStart=", "http://127.0.0.1:", 'app = "shop:app"', "pid "):
        assert words in said, said
