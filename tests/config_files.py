"""Configuration files of tests, and what loading them says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from poolctl import PoolConfig
from poolctl.errors import PoolValidateError

SERVER = '[[server]]\nname = "web"\nbind = "127.0.0.1:8080"\napp = "hello:app"\n'


def load_text(
    directory: Path, text: str | bytes, name: str = "pool.toml", env: Mapping[str, str] | None = None
) -> PoolConfig:
    """The configuration of one file of this text."""
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return PoolConfig.load(path, env if env is not None else {})


def told(
    directory: Path, text: str | bytes, name: str = "pool.toml", env: Mapping[str, str] | None = None
) -> str:
    """Every problem of one file of this text, a line each; also when it cannot be read."""
    try:
        return "\n".join(str(problem) for problem in load_text(directory, text, name, env).problems)
    except PoolValidateError as error:
        return "\n".join(str(problem) for problem in error.exceptions)


def assert_named_with_its_fix(directory: Path, line: str, named: str, fix: str) -> None:
    """Fail unless the problem of a server with this line names its value, its place and the fix."""
    text = told(directory, SERVER + line + "\n")
    assert named in text
    assert fix in text
    assert "pool.toml:5:" in text or "pool.toml:6:" in text
