"""The process that matches: each line on its standard input, a socket, is a question; each is answered by a line.

`re` cannot be interrupted from within and holds the interpreter's lock. The kernel's timer ends this process when a
question takes too long, also when whoever asked has died meanwhile.
"""

from __future__ import annotations

import functools
import json
import signal
import socket
import warnings

from poolctl.expressions import BadExpression, compiled
from poolctl.matching.limits import LIMIT_SECONDS
from poolctl.platform import name_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_compiled = functools.lru_cache(maxsize=1024)(compiled)


def main() -> None:
    """Answer until the other end is closed."""
    name_process("poolctl-match")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # of `[[`, which may mean something else in a later version
    connection = socket.socket(fileno=0)
    try:
        with connection.makefile("rb") as questions:
            for question in questions:
                signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
                answer = json.dumps(found(*json.loads(question))).encode() + b"\n"
                signal.setitimer(signal.ITIMER_PROF, 0.0)
                connection.sendall(answer)
    except OSError:
        pass  # nobody asks any more


def found(expressions: list[str], texts: list[str]) -> list[Any]:
    """The positions of the texts in which an expression is found, and what is wrong with one: message, hint."""
    try:
        searches = [_compiled(expression).search for expression in expressions]
    except BadExpression as bad:
        return [[], str(bad), bad.hint]
    return [[at for at, text in enumerate(texts) if any(search(text) for search in searches)], "", ""]


if __name__ == "__main__":
    main()
