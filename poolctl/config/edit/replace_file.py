"""Replacing the text of a file: whole or not at all, and never over changes that another process has made meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile

from poolctl.config.files.read_file import read_text
from poolctl.config.model.problems import Problem

MARK = b"\xef\xbb\xbf"


class FileChanged(Exception):
    """The file has changed since it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} has been changed by another process meanwhile")
        self.path = path


def replace(path: str, before: str, after: str) -> None:
    """Make `after` the text of the file whose text was `before`; mode, owner and byte order mark stay.

    A symbolic link stays one: its target is replaced. Blocks until the disk has it. Raises FileChanged, and
    OSError where the system refuses.
    """
    target = os.path.realpath(path)
    held = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Two replacements take turns; the second one then finds the file changed. Not every file system has locks.
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        status = os.fstat(held)
        mark = MARK if os.pread(held, len(MARK), 0) == MARK else b""
        directory, name = os.path.split(target)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".new", dir=directory)
        try:
            with open(descriptor, "wb") as file:
                _take_over(descriptor, status, target)
                file.write(mark + after.encode())
                file.flush()
                os.fsync(descriptor)
            if not _same(target, held, before):
                raise FileChanged(path)
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _keep_name(directory)
    finally:
        os.close(held)


def _take_over(descriptor: int, status: os.stat_result, target: str) -> None:
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    # Access lists and labels, where the file system has them and allows it; only Linux has these functions.
    with contextlib.suppress(OSError, AttributeError):
        for attribute in os.listxattr(target):
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, attribute, os.getxattr(target, attribute))


def _same(target: str, held: int, before: str) -> bool:
    """Whether the file of that name is still the one that is held, with the text that was read."""
    try:
        return os.path.samestat(os.stat(target), os.fstat(held)) and read_text(target) == before
    except (OSError, Problem):
        return False


def _keep_name(directory: str) -> None:
    """The new name, too, survives a loss of power."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
