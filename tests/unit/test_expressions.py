"""Every regular expression of the package takes time in proportion to the text, whatever the text is."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import poolctl
from tests.growth import grows_too_fast, texts_against

pytestmark = [pytest.mark.unmeasured, pytest.mark.slow]

PACKAGE = Path(poolctl.__file__).parent
METHODS = {"match", "search", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
FLAGS_AT = {"compile": 1, "sub": 4, "subn": 4, "split": 3}

# Functions that put an expression together, each with one that may come of it.
ASSEMBLED: dict[str, str | bytes] = {
    "poolctl.cli.reload_on_change._expression": r"/srv/[^/]*/a[^/](?:/.*)?",
    "poolctl.config.files.parsers._repeated_table_error": r"(?m)^[ \t]*\[\[[ \t]*server[ \t]*\]\]",
    "poolctl.config.files.read_file.foreign_format": r"docker-compose.*\.ya?ml",
    "poolctl.features.import_foreign._compose._replace_container_port": r"(?<![\w.])80(?![\w.])|(?<=:)80(?![\w.])",
    "poolctl.features.import_foreign._compose._with_hosts": r"(^|//|@|[\s,;='(\[])(db)(:\d{2,5})?(?=$|[/?\s,;])",
    "poolctl.features.import_foreign._compose._apply_check": r"(?<![\w.-])80(?![\w.])",
    "poolctl.features.import_foreign._known_servers.apply_known_server_of_script": r"(?<![\w.])80(?![\w.])",
    "poolctl.selection.selector._match_target": fnmatch.translate("web-*-[0-9]*.*"),
}
# Expressions that are slower: each with the reason why this harms nobody.
SLOWER = {
    "poolctl.config.files.read_file._REFERENCE": "for texts that end with }, in which it is not",
    "poolctl.config.rules.conflicts._reference": "of the pool's file",
    "poolctl.features.import_foreign._supervisord._expression": "of a file that its owner imports",
    "poolctl.features.import_foreign._supervisord._pair": "of a file that its owner imports",
}


class Use(NamedTuple):
    """A use of an expression. `name` is the name of the expression, or of the function that has it without a name.

    `source` is its Python text, and `methods` are the methods with which it is used.
    """

    module: str
    name: str
    source: str
    flags: str
    methods: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.module}.{self.name}"


@cache
def uses_of(path: Path) -> list[Use]:
    return list(find_uses(path))


def find_uses(path: Path) -> Iterator[Use]:
    text = path.read_text()
    tree = ast.parse(text)
    module = ".".join(("poolctl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=function)) if (
                function in METHODS or function == "compile"
            ):
                parent = parents[node]
                methods = methods_of_compiled(parent, text) if function == "compile" else (function,)
                flags = [each.value for each in node.keywords if each.arg == "flags"]
                flags += node.args[FLAGS_AT.get(function, 2) :][:1]
                name = name_of(node.args[0], parent, parents)
                yield Use(
                    module, name, ast.unparse(node.args[0]), ast.unparse(flags[0]) if flags else "0", methods
                )


def name_of(expression: ast.AST, parent: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    if isinstance(expression, ast.Name) and expression.id.isupper():
        return expression.id
    while parent in parents:
        match parent:
            case ast.Assign(targets=[ast.Name(id=name)]) if isinstance(
                parents[parent], (ast.Module, ast.ClassDef)
            ):
                return name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                return name
        parent = parents[parent]
    return ""


def methods_of_compiled(parent: ast.AST, text: str) -> tuple[str, ...]:
    """The methods with which a compiled expression is used; `match` if that is not to be seen."""
    if isinstance(parent, ast.Attribute):
        return (parent.attr,)
    if isinstance(parent, ast.Assign):
        name = ast.unparse(parent.targets[0])
        where = text if name.startswith("_") else whole_package()
        found = {method for method in METHODS if f"{name}.{method}(" in where}
        return tuple(sorted(found)) or ("match",)
    return ("match",)


@cache
def whole_package() -> str:
    return "".join(path.read_text() for path in PACKAGE.rglob("*.py"))


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"\bre\.\w+\(", path.read_text())]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_time_of_an_expression_is_proportional_to_the_text(path: Path) -> None:
    for use in uses_of(path):
        if use.key not in SLOWER:
            for method in use.methods:
                assert (found := slow_text(compiled(use), method)) is None, f"{use} takes long for {found!r}"


def compiled(use: Use) -> re.Pattern[Any]:
    names = {**vars(importlib.import_module(use.module)), "re": re}
    try:
        return re.compile(eval(use.source, names), eval(use.flags, names))
    except NameError:
        if use.key in ASSEMBLED:
            return re.compile(ASSEMBLED[use.key])
        pytest.fail(f"{use.key} puts an expression together: add it with an example to ASSEMBLED")


def slow_text(pattern: re.Pattern[Any], method: str) -> object:
    """The beginning of a text for which the expression takes too long; None without one."""
    call = getattr(pattern, method)

    def work(text: Any) -> object:
        if method in ("sub", "subn"):
            return call(text[:0], text)
        return [*call(text)] if method == "finditer" else call(text)

    for text_of in texts_against(pattern):
        if grows_too_fast(work, text_of):
            return text_of(80)
    return None


def test_list_of_assembled_and_of_slower_expressions_has_none_that_is_gone() -> None:
    keys = {use.key for path in FILES for use in uses_of(path)}
    modules = {use.module for path in FILES for use in uses_of(path)}
    listed = {key for key in (*ASSEMBLED, *SLOWER) if key.rpartition(".")[0] in modules}
    assert listed <= keys


def test_expression_that_is_slow_is_found() -> None:
    assert slow_text(re.compile(r'File "(<frozen |.*/(site-packages)/)'), "search") is not None
