"""The three ways to ask a worker: over HTTP, by a connection, by a program."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from poolctl.config import Probe, ServerConfig
from poolctl.listeners.acceptance import accepted
from poolctl.listeners.sock_diag import is_accepted

from .answer import Answer
from .connection import Line, Question, Told, trusting
from .multiplexer import Ears
from .program import ProgramAsker
from .request import HttpQuestion, speaks_tls

# A new connection to the worker, for `http` or `echo`; plain, no TLS is spoken on it. Raises OSError.
Connect = Callable[[str, bool], Awaitable[socket.socket]]

# So many questions may lie unanswered at a worker; then the last one is waited for.
_MOST_UNANSWERED = 3


class Asker(Protocol):
    """Asks one question, again and again."""

    def ask(self, told: Told) -> None:
        """Ask; `told` gets "" or what is wrong, once."""
        ...

    def give_up(self) -> None:
        """Wait for this answer no longer: `told` is not called."""
        ...

    def queued(self) -> bool:
        """Whether the question is known to wait where the worker has not accepted it yet."""
        ...

    def close(self) -> None:
        """Ask nothing any more."""
        ...


class LineAsker:
    """Asks over a connection, kept where the worker keeps it."""

    def __init__(
        self, question: Question, connect: Callable[[], Awaitable[socket.socket]], ears: Ears, *, tls: bool
    ) -> None:
        self._ears = ears
        self._question = question
        self._connect = connect
        self._tls = tls
        self._line: Line | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._told: Told | None = None
        self._unanswered = 0
        self._owing = False  # the line has a question on it for which nobody waits any more

    def ask(self, told: Told) -> None:
        """See Asker."""
        self._told = told
        line = self._line
        if self._owing:
            return
        if line is None or line.closed:
            self._begin()
        else:
            again = line.answered > 0
            line.ask(self._question, lambda problem: self._answered(line, problem, again=again))

    def give_up(self) -> None:
        """See Asker. A worker that reads nothing is not sent one connection after the other."""
        self._told = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        elif self._line is not None and not self._owing:
            self._unanswered += 1
            if self._unanswered < _MOST_UNANSWERED:
                self._line.close()
                self._line = None
            else:
                self._owing = True

    def queued(self) -> bool:
        """See Asker."""
        return self._line is not None and not self._line.closed and self._line.is_accepted() is False

    def close(self) -> None:
        """See Asker."""
        self.give_up()
        if self._line is not None:
            self._line.close()
            self._line = None

    def _begin(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._go())

    async def _go(self) -> None:
        try:
            sock = await self._connect()
        except OSError as error:
            self._connecting = None
            self._tell(f"no connection: {error.strerror or error}")
            return
        self._connecting = None
        line = self._line = Line(sock, self._ears, trusting() if self._tls else None)
        line.ask(self._question, lambda problem: self._answered(line, problem, again=False))

    def _answered(self, line: Line, problem: str, *, again: bool) -> None:
        if line is not self._line:
            return  # the caller had given up before the answer was judged
        self._owing = False
        if line.answered:
            self._unanswered = 0
        if problem and again and line.closed and self._told is not None and not line.began:
            # It was closed when the question was on its way, which says nothing about the worker.
            self._begin()
            return
        self._tell(problem)

    def _tell(self, problem: str) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(problem)


class Echo:
    """The question whether what is sent comes back."""

    request = b"?"

    def begin(self) -> Answer:
        return _Returned()

    def judge(self, answer: Answer, told: Told) -> None:
        told("")


class _Returned(Answer):
    """One byte."""

    __slots__ = ()

    def feed(self, data: bytes) -> bool:
        self.kept = True
        return True


class ConnectionAsker:
    """Asks by a connection that the program has to accept, and which is ended at once.

    One that was not accepted in time is asked about again, so that a program which accepts nothing gets no more.
    """

    def __init__(self, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._sock: socket.socket | None = None

    def ask(self, told: Told) -> None:
        """See Asker."""
        self._task = asyncio.get_running_loop().create_task(self._go(told))

    def give_up(self) -> None:
        """See Asker."""
        if self._task is not None:
            self._task.cancel()

    def queued(self) -> bool:
        """See Asker."""
        return self._sock is not None and is_accepted(self._sock) is False

    def close(self) -> None:
        """See Asker."""
        self.give_up()
        if self._task is not None and not self._task.done():
            # Until its task has ended the loop watches the descriptor.
            self._task.add_done_callback(lambda _: self._end())
        else:
            self._end()

    async def _go(self, told: Told) -> None:
        try:
            if self._sock is None:
                self._sock = await self._connect()
            await accepted(self._sock)
        except OSError as error:
            self._end()
            told(f"no connection: {error.strerror or error}")
        else:
            self._end()
            told("")

    def _end(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def asker_of(
    probe: Probe, server: ServerConfig, connect: Connect, ears: Ears, values: dict[str, str]
) -> Asker:
    """The asker for a probe of one worker of the server; `values` are what a program finds in its environment."""
    if probe.exec is not None:
        return ProgramAsker(probe.exec, server, values)
    if probe.http is not None:
        tls = speaks_tls(server) and not _asks_for_certificates(server)
        return LineAsker(HttpQuestion(probe, server), lambda: connect("http", not tls), ears, tls=tls)
    if server.command:
        return ConnectionAsker(lambda: connect("echo", True))
    return LineAsker(Echo(), lambda: connect("echo", True), ears, tls=False)


def _asks_for_certificates(server: ServerConfig) -> bool:
    # We have none: the application is asked beside the TLS of such a server.
    return getattr(server.tls, "client_auth", "none") == "required" and not server.command
