"""The tool that draws mutants: which it makes of a module, and which tests are the module's own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants import ROOT, drawn, mutants_of, own_test
from tests.needs import needs


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("a = b < c", ["a = (b <= c)"]),
        ("a = b and c", ["a = (b or c)"]),
        ("a = not b", ["a = (b)"]),
        ("a = b + 1", ["a = (b - 1)", "a = b + 2"]),
        ("a = b if c else d", ["a = (d if c else b)"]),
        ("a = True", ["a = False"]),
        ("a.b = c", ["pass"]),
        ("f(a)", ["pass"]),
        ("def f(a: int | None = 2) -> int | str: return a", ["int | None = 3", "return None"]),
        ("def f(): return None", []),
        ("'text'", []),
        ("a = f'{b + 1}'", []),
        ("if TYPE_CHECKING: f()", []),
        ("TYPE_CHECKING = False", []),
    ],
)
def test_each_part_that_runs_is_changed(tmp_path: Path, line: str, changed: list[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"# a comment: ä\n{line}\n")
    texts = [mutant.text() for mutant in mutants_of(path)]
    assert len(texts) == len(changed)
    for text, expected in zip(texts, changed, strict=True):
        ast.parse(text)
        assert expected in text
        assert text.startswith("# a comment: ä\n")


def test_tests_of_a_module_are_named_after_it() -> None:
    package = ROOT / "poolctl"
    assert own_test(package / "core" / "decide.py") == ROOT / "tests/unit/core/test_decide.py"
    assert own_test(package / "core" / "nothing.py") is None


@needs("serve")
def test_tests_of_a_feature_are_named_after_its_private_modules() -> None:
    serve = ROOT / "poolctl" / "features" / "serve"
    assert own_test(serve / "_health.py") == ROOT / "tests/features/serve/test_health.py"
    assert own_test(serve / "nothing.py") is None


@pytest.mark.slow
def test_a_draw_is_repeated_by_its_seed_and_limited_to_a_path() -> None:
    first = drawn(["poolctl/core/decide.py"], 5, 7)
    assert first == drawn(["poolctl/core/decide.py"], 5, 7) != drawn(["poolctl/core/decide.py"], 5, 8)
    assert len({(mutant.path, mutant.line) for mutant in first}) == 5
    one = first[0]
    found = drawn([f"{one.path.relative_to(ROOT)}:{one.line}"], 0, 1)
    assert one in found
    assert {mutant.line for mutant in found} == {one.line}
