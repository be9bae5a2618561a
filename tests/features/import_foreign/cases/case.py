"""A foreign file, and what `poolctl import` makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

COMMAND = "--"  # instead of a file: the text is a command line


class Case(NamedTuple):
    """The text of `file`, or a command line, with the servers in the resulting pool.toml and all of its comments.

    `files` are beside the file, and those in `given` are named on the command line after it. DIRECTORY stands for
    their directory. `name` "" in `servers` is that of any single server. Comments have the line before them; of
    another file they have its name as well. `error` is the whole message if nothing is imported, `warning` a part of
    what is printed beside the result, and `env` sets variables.
    """

    file: str
    text: str
    servers: Mapping[str, Mapping[str, Any]] = {}
    comments: Sequence[str] = ()
    files: Mapping[str, str] = {}
    given: Sequence[str] = ()
    env: Mapping[str, str] = {}
    error: str = ""
    warning: str = ""
    code: int = 5  # of an error
