"""Files of environment variables: `NAME=value` lines, as shells, compose and systemd write them."""

from __future__ import annotations

import re

from poolctl.config.files.read_file import read_text
from poolctl.config.model.problems import Problem
from poolctl.config.model.server_keys import ServerKeys
from poolctl.errors import ServerError

# All possessive: a file of one long line must not be tried in many ways.
_skipped = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_NAME = r"(?:export[ \t]++)?([^\s=#'\"]++)[ \t]*+=[ \t]*+"
_END = r"[ \t\r]*+(?:#[^\n]*+)?(?=\n|\Z)"
_name = re.compile(_NAME)
_pair = re.compile(
    rf"""{_NAME}(?:'([^']*+)'{_END}|"((?:[^"\\]++|\\.)*+)"{_END}|(?!['"])([^\n]*+))""", re.DOTALL
)
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
    here = _after_blanks(text, 0)
    while here < len(text):
        match = _pair.match(text, here)
        if match is None:
            begins = _name.match(text, here)
            message = "no NAME=value; a comment starts with #"
            if begins:
                message = f"the quote of {begins[1]} is not closed, or text follows it"
            raise EnvFileError(f"{path}:{text.count(chr(10), 0, here) + 1}: {message}")
        name, single, double, bare = match.groups()
        if double is not None:
            single = _escape.sub(lambda escape: _escapes.get(escape[1], escape[0]), double)
        found[name] = _comment.split(bare, 1)[0].rstrip() if single is None else single
        here = _after_blanks(text, match.end())
    return found


def _after_blanks(text: str, here: int) -> int:
    match = _skipped.match(text, here)
    return match.end() if match else here


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
