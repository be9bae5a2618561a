"""Finds the configuration files of a command. Imports little, because every command uses it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE_NAMES = ("pool.toml", "pool.yaml", "pool.yml", "pool.json")
PYPROJECT = "pyproject.toml"
PYPROJECT_LIMIT_BYTES = 4 * 1024 * 1024

_SECTION = rb"(?m)^[ \t]*\[{1,2}[ \t]*tool[ \t]*\.[ \t]*(?:\"poolctl\"|'poolctl'|poolctl)[ \t]*[.\]]"


class ConfigNotFound(Exception):
    """No configuration file; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}")
        self.message = message
        self.hint = hint


def find_config(
    paths: Sequence[str] = (), env: Mapping[str, str] | None = None, cwd: str | None = None
) -> list[str]:
    """Absolute paths of the configuration files, symbolic links unresolved, in the order they override.

    `paths` (from -c) take precedence over $POOLCTL_CONFIG, and both over files in the working directory. Given paths
    need not exist, so that a running pool is found even if its file is gone. Raises ConfigNotFound.
    """
    cwd = os.getcwd() if cwd is None else cwd
    env = os.environ if env is None else env
    named = [os.fspath(path) for path in paths] or [path for path in [env.get("POOLCTL_CONFIG", "")] if path]
    if named:
        if "" in named:
            raise ConfigNotFound("the configuration file's name is empty", "give -c FILE a path")
        return [os.path.normpath(os.path.join(cwd, path)) for path in named]
    for path in candidate_files(cwd):
        if os.path.lexists(path) and (not path.endswith(PYPROJECT) or has_section(path)):
            return [path]
    hint = f"`poolctl init` writes a {FILE_NAMES[0]}; or name one with -c FILE or $POOLCTL_CONFIG"
    if near := _near_miss(cwd):
        wanted = f"pool{os.path.splitext(near)[1].lower()}"
        hint = f"there is {near}: `poolctl -c {near} …`, or rename it to {wanted}"
    raise ConfigNotFound(f"no configuration file in {cwd}", hint)


def _near_miss(cwd: str) -> str:
    """The file with the most similar name, such as poolctl.toml or Pool.yaml, or ""."""
    endings = tuple(name.removeprefix("pool") for name in FILE_NAMES)
    try:
        names = [name for name in sorted(os.listdir(cwd)) if name.lower().startswith("pool")]
    except OSError:
        return ""
    return min((name for name in names if name.lower().endswith(endings)), key=len, default="")


def candidate_files(cwd: str | None = None) -> list[str]:
    """The absolute paths that are tried in a directory, in order of precedence."""
    cwd = os.getcwd() if cwd is None else cwd
    return [os.path.normpath(os.path.join(cwd, name)) for name in (*FILE_NAMES, PYPROJECT)]


def has_section(path: str) -> bool:
    """Whether a pyproject.toml seems to hold [tool.poolctl]; a look at the text, not a parse."""
    try:
        # Never waits for the writer of a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    import re  # not for the many commands whose file is a pool.toml

    try:
        with open(descriptor, "rb", closefd=False) as file:
            return re.search(_SECTION, file.read(PYPROJECT_LIMIT_BYTES)) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)
