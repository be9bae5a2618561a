"""Detects that a pool's files have changed since they were read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from poolctl.errors import ServerError

from .read_file import (
    Stamp,
    files_of,
    lasting_stamp_of,
    pyproject_section,
    read_regular_truncated,
    stamp_of,
)


class Mark(NamedTuple):
    """The state of a file when it was read. If `stamp` is None, changes are detected only by the content's digest."""

    stamp: Stamp
    digest: str


Marks = dict[str, Mark]


def marks_of(paths: Iterable[str]) -> Marks:
    """Return {path: Mark}, the state of each file in `paths`. A directory stands for its files. Blocks on the disk."""
    return {path: _mark(path) for path in _expand_directories_to_files(paths)}


def changed_files(marks: Marks, paths: Iterable[str]) -> list[str]:
    """Return the files that have changed since `marks_of` returned `marks`, and files that are new or gone.

    A file's content is read and compared only if its inode, size or times have changed. If the content is the same, the
    file's entry in `marks` is updated. Blocks on the disk.
    """
    current = _expand_directories_to_files(paths)
    changed = [path for path in marks if path not in current]
    for path in current:
        previous = marks.get(path)
        if previous is not None and previous.stamp is not None and previous.stamp == stamp_of(path):
            continue
        mark = _mark(path)
        if previous is None or previous.digest != mark.digest:
            changed.append(path)
        else:
            marks[path] = mark
    return changed


def _expand_directories_to_files(paths: Iterable[str]) -> dict[str, None]:
    files: dict[str, None] = {}
    for path in paths:
        try:
            files.update(dict.fromkeys(files_of(path)))
        except ServerError:
            files[path] = None  # an empty directory: reported when it is read
    return files


def _mark(path: str) -> Mark:
    stamp = lasting_stamp_of(path)  # before reading the content, so that a change in between is detected
    try:
        content = read_regular_truncated(path)
    except (OSError, ValueError) as error:
        return Mark(stamp, f"unreadable: {type(error).__name__}")
    if os.path.basename(path) == "pyproject.toml":
        content = _section_of(content)
    return Mark(stamp, blake2b(content, digest_size=12).hexdigest())


def _section_of(content: bytes) -> bytes:
    """Reduce a pyproject.toml to the content of [tool.poolctl]: changes of other parts do not matter.

    A file that is not valid TOML is returned unchanged.
    """
    import tomllib

    try:
        return repr(pyproject_section(tomllib.loads(content.decode()))).encode()
    except ValueError:
        return content
