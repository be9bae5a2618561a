"""Draws random mutants and runs each with the tests of its package: `python -m tests.mutants [PATH…] [OPTIONS]`.

A mutant is the code with one expression or statement changed. It survives if the tests of its package or feature still
pass: either they miss a behaviour, or the changed code has no effect and can go. The exit status is 1 if more survive
than `--most` allows. Strings and annotations are not changed, nor what runs only for type checkers.

PATH limits the draw to files and folders of the package, or to one line: `poolctl/core/decide.py:120`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.without_features import NOT_COPIED, ROOT, make_environment

TIMEOUT_SECONDS = 900.0
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module with one node changed: the text from `begin` to `end` is replaced by `new`."""

    path: Path
    line: int
    begin: int
    end: int
    new: str

    def text(self) -> str:
        source = self.path.read_bytes()
        return (source[: self.begin] + self.new.encode() + source[self.end :]).decode()

    def difference(self) -> str:
        old, new = self.path.read_text().splitlines(), self.text().splitlines()
        changed = [
            line
            for line in difflib.unified_diff(old, new, n=0, lineterm="")
            if line[:3] not in ("---", "+++")
        ]
        return "\n".join(f"    {line}" for line in changed[1:])


def tests_of(path: Path) -> list[Path]:
    """The tests of a module's package or feature: the file with its name first, then small files before large ones."""
    parts = path.relative_to(ROOT / "poolctl").parts
    name = f"test_{path.stem.strip('_')}.py"
    if len(parts) == 1:
        return list((ROOT / "tests/unit").glob(name))
    folder = Path("tests/features", parts[1]) if parts[0] == "features" else Path("tests/unit", parts[0])
    files = (ROOT / folder).rglob("test_*.py")
    return sorted(files, key=lambda file: (file.name != name, file.stat().st_size))


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Each mutant of a module."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    for node in mutable_nodes(tree):
        for new in changes(node):
            yield Mutant(
                path,
                node.lineno,
                starts[node.lineno - 1] + node.col_offset,
                starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0),
                new,
            )


def mutable_nodes(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """The nodes below `node` that run: neither annotations nor docstrings, imports and parts of f-strings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(
                child, (ast.JoinedStr, ast.Import, ast.ImportFrom)
            ):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Assign) and ast.unparse(child).startswith("TYPE_CHECKING = "):
                continue
            if isinstance(child, (ast.expr, ast.stmt)):
                yield child
            yield from mutable_nodes(child)


def changes(node: ast.expr | ast.stmt) -> Iterator[str]:
    """The texts that a node may be replaced by."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            new.ops = [COMPARISONS[type(operator)]()]
            yield f"({ast.unparse(new)})"
        case ast.BoolOp(op=ast.And()):
            new.op = ast.Or()
            yield f"({ast.unparse(new)})"
        case ast.BoolOp(op=ast.Or()):
            new.op = ast.And()
            yield f"({ast.unparse(new)})"
        case ast.UnaryOp(op=ast.Not()):
            yield f"({ast.unparse(new.operand)})"
        case ast.BinOp() if type(new.op) in OPERATORS:
            new.op = OPERATORS[type(new.op)]()
            yield f"({ast.unparse(new)})"
        case ast.IfExp():
            new.body, new.orelse = new.orelse, new.body
            yield f"({ast.unparse(new)})"
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=(int() | float()) as value):
            yield repr(value + 1)
        case (
            ast.Expr(value=ast.Call() | ast.Await())
            | ast.AugAssign()
            | ast.Delete()
            | ast.Continue()
            | ast.Raise()
        ):
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield "return None"


class Trees:
    """Copies of the tree, one for each mutant that is tested at a time, each with its own environment."""

    def __init__(self, directory: Path, number: int) -> None:
        self._free: SimpleQueue[tuple[Path, Path]] = SimpleQueue()
        for index in range(number):
            tree = directory / str(index) / "poolctl"
            shutil.copytree(ROOT, tree, ignore=NOT_COPIED, symlinks=True)
            self._free.put((tree, make_environment(tree, [])))

    def passes(self, tests: list[Path], mutant: Mutant | None) -> bool:
        """Whether the tests of these files pass, with a mutant or with the code as it is."""
        tree, python = self._free.get()
        place = tree / mutant.path.relative_to(ROOT) if mutant else None
        try:
            if mutant and place:
                place.write_text(mutant.text())
            command = [
                python,
                "-B",
                "-m",
                "pytest",
                "-qx",
                "-p",
                "no:cacheprovider",
                "-m",
                "not heavy",
                *(test.relative_to(ROOT) for test in tests),
            ]
            return (
                subprocess.run(
                    command,
                    cwd=tree,
                    timeout=TIMEOUT_SECONDS,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                ).returncode
                == 0
            )
        except subprocess.TimeoutExpired:
            return False
        finally:
            if mutant and place:
                shutil.copyfile(mutant.path, place)
            self._free.put((tree, python))


def drawn(paths: list[str], count: int, seed: int) -> list[Mutant]:
    """Mutants of modules with tests of their own: a random line first, so that long expressions weigh no more."""
    by_line: dict[tuple[Path, int], list[Mutant]] = {}
    for each in paths:
        name, _, line = each.partition(":")
        place = ROOT / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if tests_of(path):
                for mutant in mutants_of(path):
                    if not line or mutant.line == int(line):
                        by_line.setdefault((path, mutant.line), []).append(mutant)
    chosen = random.Random(seed)
    if count == 0 or count >= len(by_line):
        return [each for mutants in by_line.values() for each in mutants]
    return [chosen.choice(by_line[line]) for line in chosen.sample(sorted(by_line), count)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("paths", nargs="*", default=["poolctl"], metavar="PATH", help="of the package")
    parser.add_argument("--count", type=int, default=28, help="how many; 0 for each mutant of the paths")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--most", type=int, default=2, help="how many may survive")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    arguments = parser.parse_args()
    mutants = drawn(arguments.paths, arguments.count, arguments.seed)
    survived = 0
    with (
        tempfile.TemporaryDirectory(prefix="poolctl-mutants-") as directory,
        ThreadPoolExecutor(arguments.jobs) as threads,
    ):
        os.chmod(directory, 0o755)  # some tests run as another user
        trees = Trees(Path(directory), arguments.jobs)
        packages = {frozenset(tests_of(mutant.path)): mutant.path.parent for mutant in mutants}
        unchanged = threads.map(lambda tests: trees.passes(sorted(tests), None), packages)
        for package, passed in zip(packages.values(), unchanged, strict=True):
            if not passed:
                print(f"the tests of {package.relative_to(ROOT)} fail without a mutant, too")
                return 2
        results = threads.map(lambda mutant: trees.passes(tests_of(mutant.path), mutant), mutants)
        for mutant, lives in zip(mutants, results, strict=True):
            survived += lives
            verdict = "survived" if lives else "killed"
            print(f"{verdict:8}  {mutant.path.relative_to(ROOT)}:{mutant.line}", flush=True)
            if lives:
                print(mutant.difference(), flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} killed, seed {arguments.seed}")
    return survived > arguments.most


if __name__ == "__main__":
    sys.exit(main())
