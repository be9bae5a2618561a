"""Client of the process that matches regular expressions; replaces the process when it does not answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from poolctl import bootstrap
from poolctl.child_process import ChildEnded, ChildOnDemand, HelperProcess
from poolctl.selection.regular_expressions import FASTER, SLOW

# The process limits its own CPU time. One that does not run at all is killed after this time.
_STUCK_SECONDS = 10.0
# Idle time after which the process is stopped.
_IDLE_SECONDS = 60.0
_MOST_ANSWER_BYTES = 1 << 26
# Needed to find the library of an interpreter that was built as a shared one.
_ENVIRONMENT = ("LD_LIBRARY_PATH",)


class Answer(NamedTuple):
    """The positions of the texts that match. If they are unknown, `problem` is the reason and `hint` the fix."""

    found: frozenset[int]
    problem: str = ""
    hint: str = ""


_NOTHING: frozenset[int] = frozenset()
TOO_SLOW = Answer(_NOTHING, SLOW, FASTER)
_EXITED = Answer(_NOTHING, "the process that matches regexes has exited")


class Matcher:
    """A client of the process that matches regular expressions; the first question starts this process.

    Questions are answered in order. A matcher must be created and used on the same running event loop.
    """

    def __init__(self, *, stuck_seconds: float = _STUCK_SECONDS, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._stuck_seconds = stuck_seconds
        self.child = ChildOnDemand(_start, idle_seconds)
        self._asked: set[asyncio.Task[None]] = set()

    def ask(
        self, expressions: Sequence[str], texts: Sequence[str], on_answer: Callable[[Answer], None]
    ) -> None:
        """Ask which texts match any expression. The Answer is passed to `on_answer` later, unless `close` is called."""

        async def ask() -> None:
            on_answer(await self.find_matches(expressions, texts))

        task = asyncio.ensure_future(ask())
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def find_matches(self, expressions: Sequence[str], texts: Sequence[str]) -> Answer:
        """Return the indexes of the texts in which any expression is found; if matching fails, return the problem."""
        question = json.dumps([[*expressions], [*texts]]).encode() + b"\n"

        async def exchange(process: HelperProcess) -> bytes:
            async with asyncio.timeout(self._stuck_seconds):
                await process.send(question)
                return await process.read_line_truncated(_MOST_ANSWER_BYTES)

        try:
            found, problem, hint = json.loads(await self.child.ask(exchange))
        except TimeoutError:
            return TOO_SLOW
        except ChildEnded as ended:
            return TOO_SLOW if ended.status == -signal.SIGVTALRM else _EXITED
        except OSError as error:
            return Answer(_NOTHING, f"cannot start the regex process: {error.strerror or error}")
        return TOO_SLOW if problem == SLOW else Answer(frozenset(found), problem, hint)

    def close(self) -> None:
        """Stop the process; pending questions get no answer."""
        for task in self._asked:
            task.cancel()
        self.child.close()


def _start() -> HelperProcess:
    # The variables of this process may hold secrets, which the matcher must not see.
    env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return HelperProcess(bootstrap.command(sys.executable, "selection", isolated=True), env)


_matchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Matcher] = weakref.WeakKeyDictionary()


def matcher() -> Matcher:
    """The running loop's matcher, created by the first call."""
    loop = asyncio.get_running_loop()
    found = _matchers.get(loop)
    if found is None:
        found = _matchers[loop] = Matcher()
    return found


def close_matcher() -> None:
    """Close the running loop's matcher, if it has one; to be called before the loop ends."""
    found = _matchers.pop(asyncio.get_running_loop(), None)
    if found is not None:
        found.close()
