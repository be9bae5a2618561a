"""Files of environment variables: `NAME=value` lines, as shells, compose and systemd write them."""

from __future__ import annotations

import re

from poolctl.config.files.read_file import read_text
from poolctl.config.model.problems import Problem
from poolctl.config.model.server_keys import ServerKeys
from poolctl.errors import ServerError

# All possessive: a file of one long line must not be tried in many ways.
_skipped = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_name = re.compile(r"(?:export[ \t]++)?([^\s=#'\"]++)[ \t]*+=[ \t]*+")
_single = re.compile(r"'([^']*+)'[ \t\r]*+(?:#[^\n]*+)?(?=\n|\Z)")
_double = re.compile(r'"((?:[^"\\]++|\\.)*+)"[ \t\r]*+(?:#[^\n]*+)?(?=\n|\Z)', re.DOTALL)
_bare = re.compile(r"[^\n]*+")
_comment = re.compile(r"(?:^|[ \t])#")
_escape = re.compile(r"\\(.)", re.DOTALL)
_escapes = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$", "`": "`", "\n": ""}


class EnvFileError(ValueError):
    """A file of variables that cannot be read or understood; the message names file and line."""


def read_env_file(path: str, *, for_another_user: bool = False) -> dict[str, str]:
    """The variables of the file. Blocks on the disk. Raises EnvFileError. `for_another_user` as in `read_regular`.

    Blank lines and comments are skipped, `export` is allowed. In double quotes backslashes escape and a value
    may go over several lines; single quotes keep everything; without quotes a value ends at ` #`.
    """
    try:
        text = read_text(path, for_another_user=for_another_user)
    except Problem as problem:
        raise EnvFileError(f"{path}: {problem.message}") from problem
    found: dict[str, str] = {}
    here = _end(_skipped, text, 0)
    while here < len(text):
        match = _name.match(text, here)
        if match is None:
            raise _refused(path, text, here, "no NAME=value; a comment starts with #")
        value = _value(text, match.end())
        if value is None:
            raise _refused(path, text, here, f"the quote of {match[1]} is not closed, or text follows it")
        found[match[1]], here = value
        here = _end(_skipped, text, here)
    return found


def _value(text: str, here: int) -> tuple[str, int] | None:
    """The value and where it ends."""
    sign = text[here : here + 1]
    if sign == "'":
        match = _single.match(text, here)
        return (match[1], match.end()) if match else None
    if sign == '"':
        match = _double.match(text, here)
        if match is None:
            return None
        return _escape.sub(lambda e: _escapes.get(e[1], "\\" + e[1]), match[1]), match.end()
    end = _end(_bare, text, here)
    value = text[here:end]
    comment = _comment.search(value)
    return (value[: comment.start()] if comment else value).rstrip(), end


def _end(pattern: re.Pattern[str], text: str, here: int) -> int:
    match = pattern.match(text, here)
    return match.end() if match else here


def _refused(path: str, text: str, here: int, message: str) -> EnvFileError:
    return EnvFileError(f"{path}:{text.count(chr(10), 0, here) + 1}: {message}")


def variables_of(server: ServerKeys) -> dict[str, str]:
    """The variables of a server's env_file and env. Raises ServerError for a file that cannot be read."""
    found: dict[str, str] = {}
    for path in server.env_file:
        try:
            found.update(read_env_file(path, for_another_user=server.user is not None))
        except EnvFileError as error:
            hint = "fix the file, or remove it from env_file"
            raise ServerError(str(error), name=server.name, bind=server.bind, hint=hint) from error
    return found | server.env
