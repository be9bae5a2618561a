"""What type checkers know of the public names: mypy reads this file, and so does pytest."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import assert_type

import pytest

from poolctl import Pool, PoolError, PoolStartError, ServerConfig, TLSConfig
from poolctl.errors import ServerError


def test_children_of_a_pool_error_are_server_errors() -> None:
    pool = Pool([ServerConfig(name="web", bind="127.0.0.1:8081", command=["true"])])
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    for child in assert_type(caught.value.exceptions, tuple[ServerError, ...]):
        assert assert_type(child.name, str) == "web"
        assert assert_type(child.hint, str)


def test_children_of_a_part_of_a_pool_error_are_server_errors() -> None:
    error = PoolError("both failed", [ServerError("one", name="a"), ServerError("two", name="b")])
    part = error.subgroup(lambda child: isinstance(child, ServerError) and child.name == "b")
    assert part is not None
    assert [child.message for child in part.exceptions] == ["two"]


def test_configuration_takes_every_form_of_a_key() -> None:
    config = ServerConfig(
        name="web", bind=":8081", app="a:b", env_file=["x"], stop_timeout="5s",
        drain_timeout=timedelta(seconds=3),
        tls=TLSConfig(cert="/nowhere/cert.pem", warn_before="7d"),
    )  # fmt: skip
    assert assert_type(config.stop_timeout, float) == 5
    assert assert_type(config.name, str) == "web"


PROGRAMS = Path(__file__).parent / "typed"
CHECKERS = {
    "mypy": ("mypy", "--strict", "--cache-dir", "{place}"),
    "pyright": ("basedpyright", "--pythonpath", sys.executable, "--project", "{place}/pyrightconfig.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_right_programs_are_accepted_and_wrong_ones_found(checker: str, tmp_path: Path) -> None:
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"typeCheckingMode": "strict", "include": ["{PROGRAMS}"], "reportUnusedExpression": false}}'
    )
    module, *options = (word.format(place=tmp_path) for word in CHECKERS[checker])
    paths = [str(PROGRAMS / name) for name in ("right.py", "wrong.py")] if checker == "mypy" else []
    checked = subprocess.run(
        [sys.executable, "-m", module, *options, *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = set(re.findall(r"(\w+\.py):(\d+):.*error", checked.stdout))
    lines = (PROGRAMS / "wrong.py").read_text().splitlines()
    expected = {("wrong.py", str(number)) for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert len(expected) > 10
    assert found == expected, checked.stdout + checked.stderr
