"""The text of a configuration file, or the problem that keeps it from being read."""

from __future__ import annotations

import os

from poolctl.config.files.regular_file import LARGEST_BYTES, SUFFIXES, NotRegular, read_regular
from poolctl.config.model.problems import Place, Problem

# A file of UTF-16 or UTF-32 is worth its own words; the longer marks first.
OTHER_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def kind_of(path: str) -> str:
    """`toml`, `yaml` or `json`, by the end of the name. Raises Problem."""
    kind = SUFFIXES.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise _problem(path, "not a configuration file by its name", "end it in .toml, .yaml, .yml or .json")
    return kind


def files_of(path: str) -> list[str]:
    """The path itself, or the configuration files in that directory by name. Raises Problem."""
    if not os.path.isdir(path):
        return [path]
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise _problem(path, f"cannot be listed: {error.strerror}", "fix its permissions") from error
    found = [
        os.path.join(path, name)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
    ]
    if not found:
        raise _problem(path, "no configuration file in this directory", "put a pool.toml there")
    return found


def read_text(path: str, *, for_another_user: bool = False) -> str:
    """The whole file as text, without its byte order mark. Never blocks on what is no file. Raises Problem.

    `for_another_user` as in `read_regular`.
    """
    try:
        content = read_regular(path, LARGEST_BYTES + 1, for_another_user=for_another_user)
    except NotRegular as special:
        raise _problem(path, str(special), "name a regular file") from special
    except BlockingIOError as error:
        raise _problem(
            path, "nothing can be read from it: it is not a regular file", "name a file"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing_file(path) from error
    except PermissionError as error:
        raise _problem(path, "not permitted to read it", f"chmod u+r {path}, or run as its owner") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _problem(path, f"cannot be read: {why}", "check the path and the disk") from error
    if len(content) > LARGEST_BYTES:
        fix = "split it: a directory of files is one configuration"
        raise _problem(path, f"larger than {LARGEST_BYTES // 1024 // 1024} MiB", fix)
    return _decoded(path, content)


def missing_file(path: str) -> Problem:
    """The problem of a file that was named and does not exist."""
    return _problem(path, "there is no such file", "check the path, or write one with `poolctl init`")


def _decoded(path: str, content: bytes) -> str:
    for mark, encoding in OTHER_ENCODINGS:
        if content.startswith(mark):
            raise _problem(path, f"the file is {encoding}, not UTF-8", "save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        place = Place(path, before.count("\n") + 1, len(before) - before.rfind("\n"))
        message = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise Problem(message, place=place, hint="save the file as UTF-8") from error
    nul = text.find("\0")
    if nul >= 0:
        place = Place(path, text.count("\n", 0, nul) + 1, nul - text.rfind("\n", 0, nul))
        raise Problem("a NUL byte", place=place, hint="take it out; is this a text file?")
    return text


def _problem(path: str, message: str, hint: str) -> Problem:
    return Problem(message, place=Place(path), hint=hint)
