"""Client of the process that matches regular expressions; replaces the process when it does not answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from poolctl import bootstrap
from poolctl.selection.regular_expressions import FASTER, SLOW

# The process limits its own CPU time. One that does not run at all is killed after this time.
_STUCK_SECONDS = 10.0
# Idle time after which the process is stopped.
_IDLE_SECONDS = 60.0
_CHUNK_BYTES = 65536
# An interpreter that was built as a shared library is found with it.
_ENVIRONMENT = ("LD_LIBRARY_PATH",)


class Answer(NamedTuple):
    """The positions of the texts that match; `problem` is the reason for having none, `hint` the fix."""

    found: frozenset[int]
    problem: str = ""
    hint: str = ""


OnAnswer = Callable[[Answer], None]

_NOTHING: frozenset[int] = frozenset()
TOO_SLOW = Answer(_NOTHING, SLOW, FASTER)


class Matcher:
    """Belongs to the running loop. The process is started by the first question; questions are answered in order."""

    def __init__(self, *, stuck_seconds: float = _STUCK_SECONDS, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._stuck_seconds = stuck_seconds
        self._idle_seconds = idle_seconds
        self._period_seconds = min(stuck_seconds, idle_seconds)
        self._questions: deque[tuple[bytes, OnAnswer]] = deque()
        self._socket = -1
        self._pid = 0
        self._unsent = bytearray()
        self._sending = False  # soon, with the other questions of this turn of the loop
        self._received = b""
        self._active_at = 0.0
        self._watched = False  # not a timer's handle: it would keep the loop alive
        self._finalizer: weakref.finalize[[int, subprocess.Popen[bytes], int], Matcher] | None = None

    @property
    def pid(self) -> int:
        """The pid of the process; 0 while there is none."""
        return self._pid

    def ask(self, expressions: Sequence[str], texts: Sequence[str], on_answer: OnAnswer) -> None:
        """Call `on_answer` once, later, with the texts in which one of the expressions is found."""
        question = json.dumps([list(expressions), list(texts)]).encode() + b"\n"
        if not self._questions:
            self._active_at = asyncio.get_running_loop().time()
        self._questions.append((question, on_answer))
        if self._socket < 0:
            self._start()
        else:
            self._send(question)

    async def answer(self, expressions: Sequence[str], texts: Sequence[str]) -> Answer:
        """The texts in which one of the expressions is found."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.ask(expressions, texts, lambda answer: None if future.done() else future.set_result(answer))
        return await future

    def close(self) -> None:
        """Stop the process; pending questions are not answered."""
        self._questions.clear()
        self._end()

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._socket, process = _spawn()
        except OSError as error:
            loop.call_soon(self._give_up, f"cannot start the regex process: {error.strerror or error}")
            return
        self._pid = process.pid
        self._finalizer = weakref.finalize(self, _finish, self._socket, process, os.getpid())
        loop.add_reader(self._socket, self._readable)
        self._active_at = loop.time()
        if not self._watched:
            self._watched = True
            loop.call_later(self._period_seconds, self._look)
        self._send(b"".join(question for question, _ in self._questions))

    def _give_up(self, problem: str) -> None:
        questions, self._questions = self._questions, deque()
        for _, on_answer in questions:
            on_answer(Answer(_NOTHING, problem))

    def _send(self, data: bytes) -> None:
        """Send it, with the other questions of this turn of the loop."""
        self._unsent += data
        if not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._writable)

    def _writable(self) -> None:
        self._sending = False
        if self._socket < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._socket)
        try:
            del self._unsent[: os.write(self._socket, self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return  # it has exited, which reading detects
        if self._unsent:
            self._sending = True
            loop.add_writer(self._socket, self._writable)

    def _readable(self) -> None:
        try:
            data = os.read(self._socket, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        self._active_at = asyncio.get_running_loop().time()
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines if self._questions else ():
            found, problem, hint = json.loads(line)
            _, on_answer = self._questions.popleft()
            on_answer(TOO_SLOW if problem == SLOW else Answer(frozenset(found), problem, hint))

    def _lost(self, *, stuck: bool = False) -> None:
        """It exited or hung at the first question; the other questions are sent again."""
        slow = self._end() == -signal.SIGVTALRM or stuck
        if not self._questions:
            return
        _, on_answer = self._questions.popleft()
        if self._questions:
            self._start()
        on_answer(TOO_SLOW if slow else Answer(_NOTHING, "the process that matches regexes has exited"))

    def _look(self) -> None:
        quiet = asyncio.get_running_loop().time() - self._active_at
        if self._questions and quiet >= self._stuck_seconds:
            self._lost(stuck=True)
        elif not self._questions and quiet >= self._idle_seconds:
            self._end()
        self._watched = self._socket >= 0
        if self._watched:
            asyncio.get_running_loop().call_later(self._period_seconds, self._look)

    def _end(self) -> int:
        """End the process, if there is one; returns its exit status."""
        if self._socket < 0 or self._finalizer is None:
            return 0
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        status = self._finalizer()
        self._socket, self._pid, self._received, self._finalizer = -1, 0, b"", None
        self._unsent.clear()
        self._sending = False
        return int(status or 0)


def _spawn() -> tuple[int, subprocess.Popen[bytes]]:
    """A socket to a new process, and the process."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            process = subprocess.Popen(
                bootstrap.command(sys.executable, "selection", isolated=True),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                # The variables of this process may hold secrets, and are none of its business.
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                process_group=0,  # Ctrl-C of a terminal must not reach it
            )
        except BaseException:
            ours.close()
            raise
    return ours.detach(), process


def _finish(fd: int, process: subprocess.Popen[bytes], owner: int) -> int:
    """End the process; returns its exit status. In a forked child it belongs to the parent and is left alone."""
    if os.getpid() != owner:
        process.returncode = 0  # nothing to warn of
        return 0
    os.close(fd)
    process.kill()
    return process.wait()


_matchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Matcher] = weakref.WeakKeyDictionary()


def matcher() -> Matcher:
    """The running loop's matcher."""
    loop = asyncio.get_running_loop()
    found = _matchers.get(loop)
    if found is None:
        found = _matchers[loop] = Matcher()
    return found


def close_matcher() -> None:
    """Close the running loop's matcher, if it has one."""
    found = _matchers.pop(asyncio.get_running_loop(), None)
    if found is not None:
        found.close()
