"""What the site of the documentation is generated from: examples of every key, and the man page."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from poolctl.config.rules.json_schema import json_schema
from tests.commands import names

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(ROOT.glob("docs/site/*.toml"))
# Variables by which processes of one pool tell each other something, or benchmarks measure.
INTERNAL = {
    "POOLCTL_ACCESS_LOG",
    "POOLCTL_LISTENERS",
    "POOLCTL_NO_ACCESS_LOG",
    "POOLCTL_UNCOUNTED",
}


def test_pages_load_nothing_from_elsewhere() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    plugins = re.search(r"^plugins:\n((?:  .*\n)*)", text, re.MULTILINE)
    assert plugins is not None
    names = re.findall(r"^  - (\w+)", plugins[1], re.MULTILINE)
    assert names == ["offline", "search", "mkdocstrings"]
    assert "polyfills: [iframe-worker.js]" in text, "offline adds a script of unpkg.com to each page"
    assert "font: false" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_keys_are_valid(path: Path) -> None:
    variables = re.findall(r'_env = "(\w+)"', path.read_text())
    environment = dict.fromkeys(variables, "USER@REALM!ID=a-secret-of-enough-length")
    assert [str(problem) for problem in PoolConfig.load(path, environment).problems] == []


def test_every_key_has_an_example() -> None:
    found: set[tuple[str, str]] = set()
    schema = json_schema()

    def visit(value: Any, definition: str) -> None:
        for table in value if isinstance(value, list) else [value]:
            if isinstance(table, dict):
                for key, inner in table.items():
                    declared = schema["$defs"][definition]["properties"].get(key)
                    if declared is not None:
                        found.add((definition, key))
                        for each in references(declared):
                            visit(inner, each)

    for path in EXAMPLES:
        for name, value in tomllib.loads(path.read_text()).items():
            (definition,) = references(schema["properties"][name])
            visit(value, definition)
    described = {
        (definition, key)
        for definition, table in schema["$defs"].items()
        for key, declared in table["properties"].items()
        if definition != "Defaults" and not declared.get("deprecated")
    }
    assert described - found == set(), "docs/site/every-key.toml lacks an example"


def references(declared: Any) -> Iterator[str]:
    """The definitions that the declaration of a key refers to."""
    if isinstance(declared, list):
        for each in declared:
            yield from references(each)
    elif isinstance(declared, dict):
        if "$ref" in declared:
            yield declared["$ref"].rpartition("/")[2]
        yield from references(list(declared.values()))


def test_every_variable_of_ours_is_on_its_page() -> None:
    text = "".join(path.read_text() for path in ROOT.glob("poolctl/**/*.py"))
    named = set(re.findall(r'"(POOLCTL_[A-Z]+(?:_[A-Z]+)*)"', text))
    page = set(re.findall(r"`(POOLCTL_[A-Z_]+)", (ROOT / "docs/environment.md").read_text()))
    assert named - INTERNAL <= page
    assert page <= named | {"POOLCTL_URL_NAME", "POOLCTL_URL_USERS_V", "POOLCTL_PORT_NAME", "POOLCTL_PIDS"}


def test_the_man_page_describes_every_command_and_can_be_formatted() -> None:
    page = runpy.run_path(str(ROOT / "docs/site/manual.py"))["manual"]()
    assert {*re.findall(r"^\.SS poolctl (\w+)", page, re.MULTILINE)} == {*names()}
    if page != (ROOT / "docs/poolctl.1").read_text():
        pytest.fail(
            "docs/poolctl.1 is not what docs/site/manual.py writes: run make completions", pytrace=False
        )
    assert page.isascii()
    try:
        done = subprocess.run(["groff", "-man", "-Tascii", "-ww"], input=page, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no groff")
    assert done.stderr == ""
    assert "POOLCTL(1)" in done.stdout


def test_links_lead_to_pages_and_headings() -> None:
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md")]
    headings = {path.resolve(): set(anchors(path.read_text())) for path in pages}
    broken = []
    for path in pages:
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", prose):
            if not target.startswith("reference/"):  # generated: `make docs` checks these
                found = (path.parent / target).resolve() if target else path.resolve()
                if not found.exists() or (anchor and anchor not in headings[found]):
                    broken.append(f"{path.relative_to(ROOT)}: {target}#{anchor}")
    assert broken == []


def anchors(text: str) -> Iterator[str]:
    """The anchors of the headings of a page, as MkDocs and GitHub make them."""
    for heading in re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower())
