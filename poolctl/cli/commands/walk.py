"""`poolctl walk [TARGET…] -- CMD…`: runs CMD for each server; prints each line of output as it arrives."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from queue import Empty, Full, Queue
from types import FrameType
from typing import Annotated, TextIO

import typer

from poolctl.address import parse
from poolctl.cli.group import TakesProgram
from poolctl.cli.log_rendering import PrefixedLineFormatter
from poolctl.cli.options import Form, Selection, examples, with_options
from poolctl.cli.outcome import Failure, Outcome, UsageError, as_json, error
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import field_text
from poolctl.cli.supervisor_requests import selected
from poolctl.config import fill_placeholders
from poolctl.control.answers import ErrorEntry, Item
from poolctl.exit_codes import FAILED, NOT_EXECUTABLE, NOT_FOUND, NOTHING_MATCHED
from poolctl.file_access import why_execution_failed
from poolctl.json_form import from_json
from poolctl.keeper.left_children import end_processes, left_children, shell_status
from poolctl.keeper.reap import deliver
from poolctl.logs.log_line import LogLine
from poolctl.platform import process_variable, subreaper

LINE = ("name", "bind", "state")
# The grace period of children and their orphans before SIGKILL.
_PATIENCE_SECONDS = 5.0
# A signal that arrives just before the interpreter waits for a lock is noticed only when that wait ends.
POLL_SECONDS = 0.2

app = typer.Typer(add_completion=False)


# Shells: their script is the word after an option that ends in c.
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox")
_MAX_LINES_WAITING = 1000


@dataclass(frozen=True, kw_only=True)
class ServerRun(Item):
    """The result of the command for one server: exit code and output; of output that was streamed, the last lines."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class OutputLine:
    """A line that the command has written for a server, without its line break."""

    name: str
    text: str
    is_error: bool


class Terminated(BaseException):
    """Raised by a signal that ends the walk."""


@contextlib.contextmanager
def termination_as_exception(*numbers: int) -> Iterator[None]:
    """Context manager: the first of these signals raises `Terminated`, and ends this process only after the block.

    A second signal ends this process at once. Signals that the caller ignores (nohup) stay ignored.
    """
    caught = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in caught:
            signal.signal(other, signal.SIG_DFL)
        raise Terminated

    for number in caught:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        if received:
            signal.raise_signal(received[0])


class ParallelWalk:
    """Runs a command once for each server, `jobs` at once. `children` are the running subprocesses.

    With `keep` the output goes into the results, otherwise each line is passed on as it arrives.
    """

    def __init__(self, command: list[str], *, jobs: int, fail_fast: bool, keep: bool) -> None:
        self.command = command
        self.jobs = jobs
        self.fail_fast = fail_fast
        self.keep = keep
        self.events: Queue[OutputLine | ServerRun] = Queue(_MAX_LINES_WAITING)
        self.children: set[subprocess.Popen[bytes]] = set()
        self.ending = False
        # A child is either registered before the children are stopped, or not started: an interrupt while a thread
        # is being started leaves a thread that the thread pool does not know and does not wait for.
        self.start_lock = threading.Lock()

    def run_concurrently(self, items: Sequence[Item]) -> Generator[OutputLine | ServerRun, None, None]:
        """Run the command for each item, `jobs` at once; yield lines of output and completed runs.

        An interrupt or termination stops all children.
        """
        from concurrent.futures import Future, ThreadPoolExecutor

        pending = list(reversed(items))
        running = 0
        tasks: list[Future[None]] = []
        failed = False
        raising_termination = termination_as_exception(signal.SIGTERM, signal.SIGHUP)
        with raising_termination, subreaper(), ThreadPoolExecutor(self.jobs) as threads:
            try:
                while running or (pending and not (failed and self.fail_fast)):
                    while pending and running < self.jobs and not (failed and self.fail_fast):
                        tasks.append(threads.submit(self._run, pending.pop()))
                        running += 1
                    try:
                        event = self.events.get(timeout=POLL_SECONDS)
                    except Empty:
                        for task in tasks:
                            if task.done():
                                task.result()  # re-raise its exception
                        continue
                    if isinstance(event, ServerRun):
                        running -= 1
                        failed = failed or event.exit_code != 0
                    yield event
            finally:
                self._end_children()

    def _run(self, item: Item) -> None:
        argv = expand_placeholders(self.command, item)
        try:
            child = self._start_unless_ending(argv, environment(item))
        except (OSError, ValueError) as failure:
            code = NOT_EXECUTABLE if isinstance(failure, PermissionError) else NOT_FOUND
            reason = str(failure)
            if isinstance(failure, OSError):
                reason = why_execution_failed(argv[0], os.environ.get("PATH", os.defpath), failure)
            text = f"{argv[0]}: {reason}"
            if not self.keep:
                self._pass_on(OutputLine(item.name, text, is_error=True))
            self._pass_on(_run_result(item, code, stderr=f"{text}\n"))
            return
        if child is None:
            return
        # In a thread, because processes that the child leaves behind may keep its output open.
        ending = threading.Thread(target=self._end_left, args=(child.pid, item.name))
        ending.start()
        texts = [b"", b""]
        readers = [
            threading.Thread(target=self._read, args=(item.name, child, texts, is_error))
            for is_error in (False, True)
        ]
        for reader in readers:
            reader.start()
        for reader in (*readers, ending):
            reader.join()
        child.wait()
        self.children.discard(child)
        self._pass_on(_run_result(item, shell_status(child.returncode), *map(_decoded, texts)))

    def _read(self, name: str, child: subprocess.Popen[bytes], texts: list[bytes], is_error: bool) -> None:
        stream = child.stderr if is_error else child.stdout
        assert stream is not None
        with stream:
            for line in stream:
                texts[is_error] = texts[is_error] + line if self.keep else line
                if not self.keep:
                    self._pass_on(OutputLine(name, _decoded(line).removesuffix("\n"), is_error))

    def _pass_on(self, event: OutputLine | ServerRun) -> None:
        while not self.ending:
            with contextlib.suppress(Full):
                self.events.put(event, timeout=POLL_SECONDS)
                return

    def _end_left(self, pid: int, name: str) -> None:
        """Wait until the child has exited, and end the processes that it has left behind."""
        with contextlib.suppress(ChildProcessError):  # reaped meanwhile
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        def left() -> list[int]:
            # Several commands may run, each with the name of another server.
            pids = {child.pid for child in self.children.copy()}
            return [pid for pid in left_children(pids) if process_variable(pid, f"{PREFIX}NAME") == name]

        end_processes(left, signal.SIGTERM, _PATIENCE_SECONDS)

    def _start_unless_ending(
        self, argv: list[str], environ: dict[str, str]
    ) -> subprocess.Popen[bytes] | None:
        with self.start_lock:
            if self.ending:
                return None
            child = subprocess.Popen(
                argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            self.children.add(child)
            return child

    def _end_children(self) -> None:
        with self.start_lock:
            self.ending = True
        for child in list(self.children):
            deliver(child.send_signal, signal.SIGTERM)
        for child in list(self.children):
            try:
                child.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@app.command(
    cls=TakesProgram,
    epilog=examples(
        "poolctl walk -- curl -fsS '{expose}/health'",
        "poolctl walk --tag api -j 4 -- sh -c 'echo $POOLCTL_NAME $POOLCTL_PIDS'",
    ),
)
@with_options
def walk(
    ctx: typer.Context,
    place: Place,
    selection: Selection,
    output: Form = None,
    jobs: Annotated[
        int, typer.Option("-j", "--jobs", metavar="N", min=1, max=1000, help="Run this many at once.")
    ] = 1,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Start no more commands after the first failure.")
    ] = False,
) -> Outcome:
    """Run a command once for each server.

    In CMD {name}, {bind}, {host}, {port}, {expose}, {state}, {pid}, {pids} and {tags} are replaced; its environment has
    them as POOLCTL_NAME and so on, which is how the script of a shell gets them.
    """
    command = ctx.args
    _refuse_placeholders_in_script(command)
    items = _selected(place, selection, has_command=bool(command))
    if not command:
        lines = "".join("\t".join(field_text(item, field) for field in LINE) + "\n" for item in items)
        return Outcome(items, text=None if output else lines)
    walk = ParallelWalk(command, jobs=jobs, fail_fast=fail_fast, keep=bool(output))
    names = [] if place.quiet else [item.name for item in items]
    writers = [_line_writer(stream, names) for stream in (sys.stdout, sys.stderr)]
    done: list[ServerRun] = []
    with contextlib.closing(walk.run_concurrently(items)) as everything:
        for event in everything:
            if isinstance(event, ServerRun):
                done.append(event)
            else:
                writers[event.is_error](event)
    order = {item.name: at for at, item in enumerate(items)}
    done.sort(key=lambda run: order[run.name])
    errors = []
    for run in done:
        if run.exit_code:
            last = (run.stderr or run.stdout).rstrip("\n").rpartition("\n")[2]
            message = f"the command exited with {run.exit_code}" + (f": {last}" if last else "")
            entry = error(FAILED, message, name=run.name, bind=run.bind)
            errors.append(replace(entry, error="ErrorCommand"))
    return Outcome(done, errors=errors, exit_code=FAILED if errors else 0, text=None if output else "")


def _line_writer(stream: TextIO, names: list[str]) -> Callable[[OutputLine], None]:
    """A function that writes a line at once, after its server's name if there are `names`."""
    formatter = PrefixedLineFormatter(names, stream=stream)

    def write(line: OutputLine) -> None:
        stream.write(formatter.line(LogLine(line.text, name=line.name)) if names else f"{line.text}\n")
        stream.flush()

    return write


def _selected(place: Place, selection: Selection, *, has_command: bool) -> Sequence[Item]:
    try:
        return selected(place, selection, find_pool(place), command="walk").items
    except Failure as failure:
        outcome = failure.outcome
        many = len(selection.targets or ()) > 1
        if outcome.exit_code == NOTHING_MATCHED and many and not has_command:
            hint = outcome.errors[0].hint + "; the command goes after --: poolctl walk [SELECTOR] -- CMD…"
            outcome.errors[0] = from_json(ErrorEntry, {**as_json(outcome.errors[0]), "hint": hint})
        raise


def _refuse_placeholders_in_script(command: Sequence[str]) -> None:
    """Raise UsageError for a placeholder in a shell's script, where the value would be read as a part of the script."""
    names = [os.path.basename(word) for word in command]
    shell = next((index for index, name in enumerate(names) if name in _SHELLS), len(names))
    for option, script in pairwise(command[shell:]):
        if re.fullmatch(r"-[abd-zA-Z]*c[a-zA-Z]*", option):
            if match := re.search(rf"\{{({'|'.join(WORDS)})\}}", script):
                message = f"{match[0]} in the script of a shell would be read as a part of the script"
                hint = f'use "${PREFIX}{match[1].upper()}", which walk sets in its environment'
                raise UsageError(message, hint=hint)
            return


def _decoded(output: bytes) -> str:
    return output.decode("utf-8", "backslashreplace")


def _run_result(item: Item, exit_code: int, stdout: str = "", stderr: str = "") -> ServerRun:
    run = {"exit_code": exit_code, "stdout": stdout, "stderr": stderr}
    return from_json(ServerRun, {**as_json(item), **run})


PREFIX = "POOLCTL_"
WORDS = ("name", "bind", "host", "port", "expose", "state", "pid", "pids", "tags")


def placeholder_values(item: Item) -> dict[str, str]:
    """The values of all placeholders for one server; inapplicable values (the port of a Unix socket) are empty."""
    host, port = _host_and_port(item.bind)
    pids = item.pids
    values = {"host": host, "port": port, "pid": str(pids[0]) if pids else ""}
    return {word: values[word] if word in values else field_text(item, word) for word in WORDS}


def environment(item: Item) -> dict[str, str]:
    """The command's environment for this server, with a variable for each placeholder, such as POOLCTL_NAME."""
    return {
        **os.environ,
        **{PREFIX + word.upper(): value for word, value in placeholder_values(item).items()},
    }


def expand_placeholders(command: list[str], item: Item) -> list[str]:
    """The command with `{name}`, `{port}` … replaced; other braces stay, so JSON needs no escaping."""
    values = placeholder_values(item)
    return [fill_placeholders(word, values) for word in command]


def _host_and_port(bind: str) -> tuple[str, str]:
    try:
        address = parse(bind)
    except ValueError:
        return "", ""
    return address.host or "", "" if address.port is None else str(address.port)
