"""Checks that features can be taken out: `python -m tests.without_features [NAME...] [-- PYTEST ARGUMENTS]`.

For each feature the tree is copied, the feature and those that import it are deleted with their tests and their lines
in lists, and mypy and the tests of the rest run in the copy: the floors, the quick unit tests, the contract and the
other features. The copy has an environment of its own, so that the installed command is the copy's too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

from poolctl.feature import FEATURES

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", ".hypothesis", ".coverage*", "__pycache__", "dist"
)
LIST = re.compile(r"^FEATURES: .*? = \(.*?\)$", re.MULTILINE | re.DOTALL)
# Files with lines that name features' modules or tests: entry points, public names elsewhere, lists of tests.
WITH_LINES = (".ci/as-user", "pyproject.toml", "poolctl/__init__.py", "poolctl/gateway/operator.py")
TESTS = (
    "-m",
    "capability or not (slow or heavy or integration)",
    "tests/unit",
    "tests/contract",
    "tests/features",
    "--deselect=tests/unit/test_floors.py::test_every_face_has_a_feature_that_imports_it",
)


def main() -> int:
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names = arguments[:end] or list(FEATURES)
    tests = arguments[end + 1 :] or list(TESTS)
    if unknown := set(names) - set(FEATURES):
        print(
            f"no feature is named {', '.join(sorted(unknown))}; there are: {', '.join(FEATURES)}",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="poolctl-features-") as directory:
        os.chmod(directory, 0o755)  # some tests run as another user
        failed = [name for name in names if not works_without(name, Path(directory), tests)]
    print(
        f"the rest does not work without: {', '.join(failed)}"
        if failed
        else "the rest works without each of them"
    )
    return bool(failed)


def works_without(name: str, directory: Path, tests: list[str]) -> bool:
    """Whether mypy and the tests pass in a copy of the tree without this feature."""
    began = time.monotonic()
    tree = directory / "poolctl"  # always the same path, for mypy's cache
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT, tree, ignore=NOT_COPIED, symlinks=True)
    gone = with_importers(name)
    print(f"without {', '.join(gone)}:", flush=True)
    for each in gone:
        take_out(each, tree)
    python = make_environment(tree, gone)
    mypy = ["-m", "mypy", "--cache-dir", str(directory / "mypy-cache")]
    at_once = ["-m", "pytest", "-q", "-n", str(os.cpu_count() or 2), "--dist", "worksteal", *tests]
    # What a missing feature breaks fails again; a deadline that a busy machine missed does not.
    failed_again = ["-m", "pytest", "-q", "--last-failed", "--last-failed-no-failures", "none", *tests]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"

    def passes(check: list[str]) -> bool:
        return subprocess.run([python, *check], cwd=tree, env=environment).returncode == 0

    passed = [passes(mypy), passes(at_once) or passes(failed_again)]
    print(
        f"without {name}: {'ok' if all(passed) else 'FAILED'} ({time.monotonic() - began:.0f} s)", flush=True
    )
    return all(passed)


def with_importers(name: str) -> list[str]:
    """The feature, and those that import it or one of these, in their order."""
    gone = {name}
    for each in FEATURES[FEATURES.index(name) :]:
        for folder in (ROOT / "poolctl" / "features" / each, ROOT / "tests" / "features" / each):
            text = "".join(path.read_text() for path in sorted(folder.rglob("*.py")))
            if gone & set(re.findall(r"\bfeatures\.(\w+)", text)):
                gone.add(each)
    return [each for each in FEATURES if each in gone]


def take_out(name: str, tree: Path) -> None:
    """Delete a feature, its tests, and its lines in lists."""
    shutil.rmtree(tree / "poolctl" / "features" / name)
    shutil.rmtree(tree / "tests" / "features" / name)
    listed = tree / "poolctl" / "feature.py"
    listed.write_text(LIST.sub(lambda found: re.sub(rf'"{name}",?\s*', "", found[0]), listed.read_text()))
    for path in (tree / each for each in WITH_LINES):
        path.write_text(without_lines(path.read_text(), [name]))


def without_lines(text: str, names: list[str]) -> str:
    """The text without its lines that name modules or tests of these features."""
    named = [each for name in names for each in (f"features.{name}", f"tests/features/{name}/")]
    return "".join(line for line in text.splitlines(keepends=True) if not any(each in line for each in named))


def make_environment(tree: Path, gone: list[str]) -> Path:
    """The interpreter of a new environment: everything that is installed in this one, with the poolctl of the tree."""
    venv.create(tree / ".venv", with_pip=False)
    here, scripts = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("scripts"))
    (packages,) = (tree / ".venv").glob("lib/python*/site-packages")
    for path in here.iterdir():
        if path.suffix != ".pth" and not path.name.startswith("poolctl"):
            (packages / path.name).symlink_to(path)
    (packages / "poolctl.pth").write_text(f"{tree}\n")
    (metadata,) = here.glob("poolctl-*.dist-info")
    shutil.copytree(metadata, packages / metadata.name)
    points = packages / metadata.name / "entry_points.txt"
    points.write_text(without_lines(points.read_text(), gone))
    python, command = tree / ".venv" / "bin" / "python", tree / ".venv" / "bin" / "poolctl"
    _, _, script = (scripts / "poolctl").read_text().partition("\n")
    command.write_text(f"#!{python}\n{script}")
    command.chmod(0o755)
    look = "import poolctl, sys; print(poolctl.__file__)"
    found = subprocess.run(
        [python, "-I", "-c", look], cwd="/", capture_output=True, text=True, check=True
    ).stdout
    assert found.startswith(f"{tree}/"), found
    return python


if __name__ == "__main__":
    sys.exit(main())
