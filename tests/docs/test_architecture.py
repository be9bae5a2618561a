"""What the pages for developers name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_floors import FLOORS

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
INTERNALS = (ROOT / "docs" / "internals.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = {"architecture": ARCHITECTURE, "internals": INTERNALS, "contributing": CONTRIBUTING}


@pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
def test_paths_are_there(text: str) -> None:
    paths = set(re.findall(r"`((?:poolctl|tests|benchmarks|docs|\.ci)/[\w./-]+)`", text))
    assert paths
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_names_are_in_the_modules_that_are_given_for_them() -> None:
    named = re.findall(r"`([\w.]+)`\s+(?:of|in)\s+`(poolctl/[\w/]+\.py)`", "".join(PAGES.values()))
    assert named
    missing = [
        f"{path} has no {name}"
        for name, path in named
        if not re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / path).read_text())
    ]
    assert missing == []


@pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
def test_make_targets_are_there(text: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {word for line in re.findall(r"\bmake ([a-z ]+?)(?: +#|`|\n)", text) for word in line.split()}
    assert not [name for name in sorted(named) if not re.search(rf"^{name}:", makefile, re.MULTILINE)]


def test_floors_are_those_that_are_checked() -> None:
    rows = re.findall(r"^\| (\d) \| (.+?) \|", ARCHITECTURE, re.MULTILINE)
    found = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}
    # The last two are the package itself.
    assert found == {name: floor for name, floor in FLOORS.items() if name not in ("__main__", "__init__")}


def test_glossary_names_nothing_twice() -> None:
    words = re.findall(r"^\| ([a-z ]+) \|", ARCHITECTURE.partition("## Glossary")[2], re.MULTILINE)[1:]
    assert words
    assert len(words) == len(set(words))


def section(heading: str) -> str:
    return INTERNALS.partition(f"\n{heading}\n")[2].partition("\n#")[0]


def test_every_package_that_is_run_as_a_process_is_in_the_table_with_its_owner() -> None:
    package = ROOT / "poolctl"
    run = {".".join(path.parent.relative_to(package).parts) for path in package.rglob("__main__.py")} - {""}
    table = (
        section("## Processes").partition("| process | package | kept running by |")[2].partition("\n\n")[0]
    )
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    assert {name for _, packages, _ in rows for name in re.findall(r"`([\w.]+)`", packages)} == run
    assert all("`" in owner for *_, owner in rows[:-1])


# How a module takes part in a protocol: it receives packets, or follows the messages of a link.
_RECEIVES = re.compile(
    r"wire\.receive\(|rendezvous\.(?:accept|connect|receive)|SupervisorLink\.inherited"
    r"|^class .*\b(?:LinkHandler|HelperOwner|HelperChild|HelperProcess|SupervisedProcess)\b",
    re.MULTILINE,
)


def test_every_module_that_receives_messages_is_in_the_table_of_protocols() -> None:
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "poolctl").rglob("*.py")
        if _RECEIVES.search(path.read_text())
    }
    named = set(re.findall(r"`(poolctl/[\w/]+\.py)`", section("### Protocols")))
    assert sorted(modules - named) == [], "the table of protocols in docs/internals.md"


def test_every_module_that_serves_http_is_named_with_the_protocols() -> None:
    serves = re.compile(r"\bHttpServer\(|^class \w+\((?:Endpoint)?Site\)|uvicorn\.Server\)", re.MULTILINE)
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "poolctl").rglob("*.py")
        if serves.search(path.read_text()) and "worker" not in path.parts
    }
    named = set(re.findall(r"`(poolctl/[\w/]+\.py)`", section("### Protocols")))
    # The base class of sites that answer at one path.
    assert sorted(modules - named - {"poolctl/web/site.py"}) == [], "Protocols in docs/internals.md"


ADDED = """
import sys, types
import poolctl.cli.app
from poolctl.cli.main import main
command, line, *arguments = sys.argv[1:]
exec(line, vars(poolctl.cli.app))
module = sys.modules["poolctl.cli.commands.greet"] = types.ModuleType("poolctl.cli.commands.greet")
exec(command, vars(module))
sys.exit(main(arguments))
"""


def test_command_and_feature_of_the_guide_work_as_they_are_shown() -> None:
    command, line, _, feature = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)

    def poolctl(*arguments: str) -> str:
        words = [sys.executable, "-c", ADDED, command, line, *arguments]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout

    assert poolctl("greet", "users", "--with", "welcome") == "welcome users\n"
    assert "  greet       Greet servers.\n" in poolctl("help", "--all")
    assert feature == (ROOT / "poolctl" / "features" / "doctor" / "__init__.py").read_text()
