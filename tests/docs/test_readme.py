"""The commands of README and reference are run, and their tables are compared with what is there."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from poolctl.config.rules.json_schema import json_schema
from tests.certificates import certificate
from tests.docs.pages import README, ROOT, some
from tests.real_pool import RealPool


def table(page: str, section: str) -> dict[str, str]:
    """Second column by first of the section's first table, without the marks of code."""
    text = (ROOT / "docs" / f"{page}.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(" `"): row[1].strip() for row in rows[1:]}


@pytest.mark.timeout(300)  # many commands, which take seconds each on a busy machine
def test_the_first_pool_of_the_readme_runs_as_it_is_pasted(reader: Any) -> None:
    output = reader("\n".join(some("README", "A first pool", "sh")))
    assert '{"shop":"open"}' in output
    assert "waiting for orders" in output
    (program,) = some("README", "As a library", "python")
    reader(program, sys.executable, "-W", "error::ResourceWarning", "-")


def test_the_readme_is_short_and_each_page_of_the_documentation_can_be_reached_from_it() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 250
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", text))
    for _ in range(2):
        linked |= {
            name
            for each in linked
            for name in re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs" / each).read_text())
        }
    assert {path.name for path in ROOT.glob("docs/*.md")} <= linked


def test_the_configuration_example_is_valid(real_pool: RealPool) -> None:
    real_pool.write_hello()
    (example,) = some("configuration", "Configuration", "toml")
    real_pool.write("pool.toml", example)
    assert real_pool.ok("validate").stdout.strip() == "2 servers, ok (applications not imported: --import)"


def test_the_example_of_programs_without_a_port_is_valid(tmp_path: Path) -> None:
    (example,) = some("programs", "Programs without a port", "toml")
    (tmp_path / "pool.toml").write_text(example)
    config = PoolConfig.load(tmp_path / "pool.toml", {})
    assert ([server.bind for server in config], config.problems) == (
        ["process:queue", "process:scheduler"],
        [],
    )


# How many servers the files of a page have together.
FILES = {
    "events": "1 server",
    "gateway": "3 servers",
    "health": "1 server",
    "logs": "1 server",
    "recovery": "1 server",
}


@pytest.mark.parametrize("page", FILES)
def test_files_of_a_page_are_valid_together(real_pool: RealPool, page: str) -> None:
    certificate(real_pool.directory, "internal-ca")
    examples = re.findall(r"```toml\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    real_pool.write("pool.toml", "\n".join(examples))
    # Pages say "python", which is there in an environment that is active.
    real_pool.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{real_pool.env['PATH']}"
    assert real_pool.ok("validate").stdout.startswith(f"{FILES[page]}, ok")


@pytest.mark.slow
@pytest.mark.timeout(300)  # many commands, which take seconds each on a busy machine
def test_examples_of_live_changes_and_python_run_one_after_the_other_in_one_directory(
    reader: Any, real_pool: RealPool
) -> None:
    real_pool.write_hello("users", "orders")
    (changes,) = some("commands", "Changing a running pool", "sh")
    output = reader(changes)
    assert "~ orders: env.LOG" in output
    assert output.count("1 restarted") == 2
    text = (real_pool.directory / "pool.toml").read_text()
    assert "workers = 2" in text
    assert "docs" not in text
    reader("poolctl start")
    for text in some("commands", "Changing a running pool", "python") + some("python", "Python", "python"):
        reader(text, sys.executable, "-W", "error::ResourceWarning", "-")


def test_every_key_is_in_the_table() -> None:
    named = {
        key
        for cell in table("configuration", "Keys of a server").values()
        for key in re.findall(r"`(\w+)`", cell)
    }
    keys = json_schema()["$defs"]["Server"]["properties"].keys() - {"listen"}
    assert keys ^ named == set(), "the tables of docs/configuration.md"


def test_every_command_is_in_the_table(real_pool: RealPool) -> None:
    documented = {name.split()[0] for names in table("commands", "Commands") for name in names.split("`, `")}
    helped = real_pool.ok("help", "--all").stdout
    listed = {m[1] for m in re.finditer(r"^[^\w-]*([a-z]+)  ", helped, re.MULTILINE)}
    assert documented ^ listed == set(), "the table of docs/commands.md"


def test_every_exit_code_is_in_the_table() -> None:
    from poolctl import exit_codes

    known = {v for k, v in vars(exit_codes).items() if k.isupper() and isinstance(v, int)}
    assert {int(code) for code in table("commands", "Exit codes")} == known, "docs/commands.md"


def test_the_json_example_has_the_shape_of_the_real_one(real_pool: RealPool) -> None:
    (example,) = (json.loads(text) for text in some("json", "", "json"))
    real_pool.write_hello("users")
    real = real_pool.ok("list", "-o", "json").json
    assert real.keys() >= example.keys()
    assert real["items"][0].keys() >= example["items"][0].keys()
