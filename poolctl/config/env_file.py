"""Files of environment variables: `NAME=value` lines, as shells, compose and systemd write them."""

from __future__ import annotations

import re

from poolctl.config.problems import Problem
from poolctl.config.source import read_text

_line = re.compile(r"(?:export\s+)?([^\s=#'\"]+)\s*=\s*(.*)", re.DOTALL)
_escapes = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$", "`": "`"}


class EnvFileError(ValueError):
    """A file of variables that cannot be read or understood; the message names file and line."""


def read_env_file(path: str) -> dict[str, str]:
    """The variables of the file. Blocks on the disk. Raises EnvFileError.

    Blank lines and comments are skipped, `export` is allowed. In double quotes backslashes escape and a value
    may go over several lines; single quotes keep everything; without quotes a value ends at ` #`.
    """
    try:
        text = read_text(path)
    except Problem as problem:
        raise EnvFileError(f"{path}: {problem.message}") from problem
    found: dict[str, str] = {}
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _line.fullmatch(line)
        if match is None:
            raise EnvFileError(f"{path}:{number}: no NAME=value; a comment starts with #")
        name, value = match[1], match[2].strip()
        if value[:1] in ("'", '"'):
            quoted = _quoted(value, lines)
            if quoted is None:
                raise EnvFileError(f"{path}:{number}: the quote of {name} is not closed, or text follows it")
            found[name] = quoted
        else:
            found[name] = re.split(r"\s+#", value, maxsplit=1)[0] if not value.startswith("#") else ""
    return found


def _quoted(value: str, lines: object) -> str | None:
    sign = value[0]
    pattern = re.compile(
        r"'([^']*)'\s*(?:#.*)?" if sign == "'" else r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?', re.DOTALL
    )
    match = pattern.fullmatch(value)
    while match is None:
        if _closes(value, sign):
            return None
        following = next(lines, None)  # type: ignore[call-overload]
        if following is None:
            return None
        value += "\n" + following[1]
        match = pattern.fullmatch(value)
    if sign == "'":
        return match[1]
    return re.sub(
        r"\\(.)", lambda escape: _escapes.get(escape[1], "\\" + escape[1]), match[1], flags=re.DOTALL
    )


def _closes(value: str, sign: str) -> bool:
    """Whether the quote is closed somewhere before the end."""
    body = re.sub(r"\\.", "", value[1:], flags=re.DOTALL) if sign == '"' else value[1:]
    return sign in body
