"""Whether a file that the pool appends to, a log or the journal, can be opened or made there."""

from __future__ import annotations

import errno
import os

from poolctl.config.model.problems import Finding
from poolctl.safe_open import Refused, check_appendable


def unwritable(key: tuple[str | int, ...], path: str) -> list[Finding]:
    """The problem of a file that this user cannot append to; an empty list for a good one. Changes nothing."""
    try:
        check_appendable(path)
    except Refused as refused:
        reason, _, fix = str(refused.strerror).partition("; ")
        return [Finding(key, f"{path} cannot be written: {reason}", fix or "name another file", path)]
    except IsADirectoryError:
        return [Finding(key, f"{path} is a directory", "name a file in it", path)]
    except OSError as error:
        reason, fix = error.strerror or str(error), "name another file"
        if error.errno == errno.EACCES:
            fix = f"let the pool's user (uid {os.geteuid()}) write there, or name another file"
        elif error.errno == errno.ENOTDIR:
            reason = f"{_no_directory(path)} is no directory"
        return [Finding(key, f"{path} cannot be written: {reason}", fix, path)]
    return []


def _no_directory(path: str) -> str:
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    return above
