"""The matching process: reads one question per line from its standard input, a socket, and answers with one line.

`re` holds the interpreter's lock while it matches, which would block all threads of the asking process. A signal
interrupts a match that takes too long; because `re` checks for signals only rarely in a long text, a second signal
kills this process if the match still runs.
"""

from __future__ import annotations

import functools
import json
import signal
import socket

from poolctl.platform import name_process
from poolctl.selection.regular_expressions import FASTER, LIMIT_SECONDS, SLOW, BadExpression, compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_compiled = functools.lru_cache(maxsize=1024)(compiled)


class _TooSlow(BaseException):
    pass


def main() -> None:
    """Read regexes and texts from the socket, and send back which texts match, until the client closes the socket."""
    name_process("poolctl-match")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, _end)
    connection = socket.socket(fileno=0)
    try:
        with connection, connection.makefile("rb") as questions:
            for question in questions:
                connection.sendall(json.dumps(find_positions(*json.loads(question))).encode() + b"\n")
    except OSError:
        pass  # the client has closed the socket


def find_positions(expressions: list[str], texts: list[str]) -> list[Any]:
    """[positions, "", ""] with the positions of the texts in which any expression is found, or [[], problem, fix]."""
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, 2 * LIMIT_SECONDS)
            signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
            searches = [_compiled(expression).search for expression in expressions]
            return [[at for at, text in enumerate(texts) if any(search(text) for search in searches)], "", ""]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    except _TooSlow:
        return [[], SLOW, FASTER]
    except BadExpression as bad:
        return [[], str(bad), bad.hint]


def _end(number: int, frame: object) -> NoReturn:
    raise _TooSlow


if __name__ == "__main__":
    main()
