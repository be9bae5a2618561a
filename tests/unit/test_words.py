"""Plain words: no metaphors in names, and no riddles in prose, in the parts of the tree that have been gone through.

A tripwire, not the goal: it finds the words that have been replaced, so that they do not come back.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).parents[2]
# Directories and files that are clean; add another one when it is.
CLEAN = [
    "poolctl/cli", "poolctl/keeper", "poolctl/worker", "poolctl/runners", "poolctl/logs", "poolctl/listeners",
    "poolctl/selection", "poolctl/acceptor", "poolctl/web", "poolctl/pool", "poolctl/core", "poolctl/config",
    "poolctl/monitor", "poolctl/control", "poolctl/http", "poolctl/probes", "poolctl/address", "poolctl/supervisor",
    "poolctl/features",
    "completions", "README.md", "docs", "tests/unit/cli", "tests/unit/web", "tests/unit/listeners", "tests/unit/logs",
    "tests/unit/monitor", "tests/unit/probes", "tests/unit/http", "tests/unit/selection", "tests/browser",
    "tests/unit/supervisor", "tests/unit/core", "tests/unit/control",
    *(f"poolctl/{each.name}" for each in sorted((ROOT / "poolctl").glob("*.py"))),
]  # fmt: skip

# In identifiers and file names: say what it is.
METAPHORS = {
    "births", "berth", "doors", "doorbell", "ears", "knock", "farewell", "heirs", "likeness", "scene", "thrift",
    "chronicle", "charge", "remains", "looking", "telling", "later", "premises", "despair", "stranger", "wellness",
    "ailing", "ails", "mend", "mends", "told", "untold", "nobody", "nobodys", "whoever", "anew",
}  # fmt: skip
# In docstrings, comments, messages and documents, with the plain word.
PHRASES = {
    r"(?<!`)\bmend(s|ed|ing)?\b": "fix",
    r"\btold\b": "reported, notified",
    r"(?<!user )(?<![\"'`=/])\bnobody\b(?![\"'`:])": "no process, no client, no one by name",  # a Unix user as well
    r"\bwhoever\b": "the user, any client",
    r"\banew\b": "again",
    r"\bail(s|ed|ing)?\b": "is unhealthy, hangs",
    r"\ball the same\b": "still",
    r"\bbeside it\b": "next to it",
    r"\balive in name only\b": "hung",
    r"(?:^|[.:;] )(What|Who) (is|are|was|has|comes|stands|can|must)\b(?![^.]*\?)": "a noun as the subject",
}

# Most files hold none of these anywhere: only the others are parsed, which takes seconds for all of them.
_A_PHRASE = re.compile("|".join(PHRASES).replace("(?:^|[.:;] )", ""))

# From Python 3.12 on, an f-string is several tokens.
_PART_OF_F_STRING = getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)

Said = tuple[str, int, str]  # file, line, text


def files() -> Iterator[Path]:
    for name in CLEAN:
        path = ROOT / name
        found = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        yield from (each for each in found if each.suffix not in (".pyc", ".png"))


def names_in(text: str) -> Iterator[tuple[int, str]]:
    """Every identifier that the module itself introduces, with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def words_of(name: str) -> set[str]:
    """`_GoneAway_soon` is gone, away, soon."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def prose_in(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and messages of a module; every line of another file. Each with its line."""
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
        elif token.type in (tokenize.STRING, _PART_OF_F_STRING) and " " in token.string:
            yield from enumerate(token.string.strip("rbfRBF\"'").splitlines(), token.start[0])


def metaphors(path: Path, text: str) -> list[Said]:
    where = str(path)
    found = [(where, 0, word) for word in words_of(path.stem) & METAPHORS]
    lowered = text.lower()
    if path.suffix == ".py" and any(word in lowered for word in METAPHORS):
        found += [(where, line, name) for line, name in names_in(text) if words_of(name) & METAPHORS]
    return found


def riddles(path: Path, text: str) -> list[Said]:
    if not _A_PHRASE.search(text):
        return []
    return [
        (str(path), line, f"{said.strip()} ({plain})")
        for line, said in prose_in(path, text)
        for pattern, plain in PHRASES.items()
        if re.search(pattern, said)
    ]


def test_names_are_plain() -> None:
    assert [each for path in files() for each in metaphors(path.relative_to(ROOT), path.read_text())] == []


def test_names_of_tests_are_plain() -> None:
    names = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    unclear = {
        "nobody",
        "nobodys",
        "whoever",
        "told",
        "anew",
        "mend",
        "everybody",
        "anybody",
        "somebody",
        "ails",
    }
    assert [name for name in names if unclear & set(name.replace("_user_nobody", "").split("_"))] == []


def test_sentences_are_plain() -> None:
    assert [each for path in files() for each in riddles(path.relative_to(ROOT), path.read_text())] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("farewell.py", ""), ("a.py", "class DoorbellKeeper: ..."), ("a.py", "def f(told): ..."),
     ("a.py", "looking_at = 1"), ("a.py", "self.heirs = []")],
)  # fmt: skip
def test_a_metaphor_is_found(name: str, text: str) -> None:
    assert len(metaphors(Path(name), text)) == 1


@pytest.mark.parametrize("name", ["a = mendable", "import doors", "class Doorway: ...", "x.told()"])
def test_a_name_that_only_contains_one_or_is_not_ours_is_none(name: str) -> None:
    assert metaphors(Path("a.py"), name) == []


@pytest.mark.parametrize(
    "text",
    ['x = f"nothing is told {x}"', "# Nobody waits.".lower(), '"""What is left is killed."""', "# a file, and the mend",
     "x = 1  # done. What is asked is answered"],
)  # fmt: skip
def test_a_riddle_is_found(text: str) -> None:
    assert len(riddles(Path("a.py"), text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "# as the user nobody",
        'x = "mend"',
        "x = told",
        "# setpriv --reuid=nobody",
        '"""What is it? A test."""',
    ],
)
def test_a_unix_user_a_key_and_a_question_are_none(text: str) -> None:
    assert riddles(Path("a.py"), text) == []
