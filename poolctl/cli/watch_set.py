"""What a pool is made of: its configuration, what that refers to, and the code of its applications."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from poolctl.cli.outcome import Item

# Directories that hold no code of the application's own.
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
CODE = ".py"
Mark = tuple[int, int, int] | None


class Sources:
    """The files of a pool and of its servers (items of `show`), and how they looked when they were last asked.

    `before` are the sources that these take the place of: what has changed since those were asked still counts.
    """

    def __init__(self, files: Sequence[str], items: Sequence[Item], before: Sources | None = None) -> None:
        self.app_dirs: dict[str, list[str]] = {}
        referred: list[str] = []
        for item in items:
            config = item.get("config") or {}
            referred += _referred(config)
            if config.get("app_dir") and not config.get("command"):
                self.app_dirs.setdefault(os.path.realpath(str(config["app_dir"])), []).append(
                    str(item["name"])
                )
        self._named = list(dict.fromkeys([*files, *referred]))
        self._marks: dict[str, Mark] = self._looks()
        if before is not None:
            self._take_over(before)

    def _take_over(self, before: Sources) -> None:
        for path in [path for path in self._marks if path not in before._marks]:
            if os.path.dirname(path) in before._named:
                del self._marks[path]
        for path, mark in before._marks.items():
            if path in self._marks or os.path.dirname(path) in self._named:
                self._marks[path] = mark

    def directories(self) -> Iterator[str]:
        """Every directory in which a change may matter."""
        for path in self._named:
            for found in {path, os.path.realpath(path)}:
                if os.path.isdir(found):
                    yield found
                yield os.path.dirname(found)
        for app_dir in self.app_dirs:
            yield from code_directories(app_dir)

    def configuration_changed(self) -> bool:
        """Whether the configuration or what it refers to looks other than when this was last asked."""
        before, self._marks = self._marks, self._looks()
        return before != self._marks

    def changed_servers(self, paths: Iterable[str]) -> list[str]:
        """The servers whose code is among the paths, in the pool's order."""
        changed = {os.path.realpath(path) for path in paths if _is_code(path) or _holds_code(path)}
        return [
            name
            for app_dir, names in self.app_dirs.items()
            if any(path.startswith(app_dir.rstrip("/") + "/") for path in changed)
            for name in names
        ]

    def _looks(self) -> dict[str, Mark]:
        found: dict[str, Mark] = {}
        for path in self._named:
            inside = sorted(os.listdir(path)) if os.path.isdir(path) else ()
            for each in (path, *(os.path.join(path, name) for name in inside)):
                found[each] = _mark(each)
        return found


def _referred(config: dict[str, Any]) -> Iterator[str]:
    """The files of variables and the certificates of a server."""
    env_file = config.get("env_file")
    yield from [env_file] if isinstance(env_file, str) else env_file or ()
    tls = config.get("tls")
    if isinstance(tls, dict):
        yield from (tls[key] for key in ("cert", "key", "ca") if tls.get(key))


def _mark(path: str) -> Mark:
    try:
        status = os.stat(path)
    except OSError:
        return None
    # Of a directory its entries are looked at themselves.
    return (
        (status.st_ino, 0, 0) if os.path.isdir(path) else (status.st_ino, status.st_mtime_ns, status.st_size)
    )


def _is_code(path: str) -> bool:
    name = os.path.basename(path)
    return name.endswith(CODE) and not name.startswith(".")


def _holds_code(path: str) -> bool:
    """Whether this is a directory, so a new one, with code in it."""
    return (
        os.path.isdir(path)
        and _may_hold_code(path)
        and any(_is_code(name) for directory in code_directories(path) for name in os.listdir(directory))
    )


def code_directories(top: str) -> Iterator[str]:
    """The directory and those below it that may hold code: no hidden ones, no virtual environments."""
    for directory, names, _ in os.walk(top):
        names[:] = [name for name in names if _may_hold_code(os.path.join(directory, name))]
        yield directory


def _may_hold_code(directory: str) -> bool:
    name = os.path.basename(directory)
    hidden = name.startswith(".") or name in SKIPPED
    return not hidden and not os.path.exists(os.path.join(directory, "pyvenv.cfg"))
