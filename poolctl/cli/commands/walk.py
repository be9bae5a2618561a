"""`poolctl walk [TARGET…] -- CMD…`: runs CMD for each server; prints outputs unmixed, and failures at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from poolctl.address import parse
from poolctl.cli.command_line import OUTPUT, SELECTION, Command, CommandRequest, Option, flag
from poolctl.cli.outcome import Failure, Outcome, UsageError, as_json, error
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, field_text, paint, printable
from poolctl.cli.supervisor_requests import selected
from poolctl.config import fill_placeholders
from poolctl.control.answers import ErrorEntry, Item
from poolctl.exit_codes import FAILED, INTERRUPTED, NOT_EXECUTABLE, NOT_FOUND, NOTHING_MATCHED
from poolctl.file_access import why_execution_failed
from poolctl.json_form import from_json
from poolctl.keeper.left_children import end_processes, left_children, shell_status
from poolctl.keeper.reap import deliver
from poolctl.platform import process_variable, subreaper

LINE = ("name", "bind", "state")
# The time that a child, or a process that it has left behind, has to exit before it is killed.
PATIENCE_SECONDS = 5.0
# A signal that arrives just before the interpreter waits for a lock is noticed only when that wait ends.
POLL_SECONDS = 0.2

COMMAND = Command(
    "Run a command once for each server: walk [TARGET…] -- CMD…",
    SELECTION,
    OUTPUT,
    Option("-j, --jobs", "N", "Run this many at once (default 1)."),
    flag("--fail-fast", "Start no more commands after the first failure."),
    section="Look",
    takes_command=True,
    notes=(
        "In CMD {name}, {bind}, {host}, {port}, {expose}, {state}, {pid}, {pids} and",
        "{tags} are replaced; its environment has them as POOLCTL_NAME and so on.",
    ),
    examples=(
        "poolctl walk -- curl -fsS '{expose}/health'",
        "poolctl walk --tag api -j 4 -- sh -c 'echo $POOLCTL_NAME $POOLCTL_PIDS'",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ServerRun(Item):
    """The result of the command for one server: exit code and output."""

    exit_code: int
    stdout: str
    stderr: str


class Terminated(BaseException):
    """Raised by a signal that ends the walk."""


@contextlib.contextmanager
def termination_as_exception(*numbers: int) -> Iterator[None]:
    """Context manager: the first of these signals raises `Terminated`, and ends this process only after the block.

    A second one ends this process at once. Signals that the caller ignores (nohup) stay ignored.
    """
    caught = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in caught:
            signal.signal(each, signal.SIG_DFL)
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
    """Runs a command once for each server, `jobs` at once. `children` are the running subprocesses."""

    def __init__(self, command: list[str], *, jobs: int, fail_fast: bool, keep: bool) -> None:
        self.command = command
        self.jobs = jobs
        self.fail_fast = fail_fast
        self.keep = keep  # the output goes into the document, not to the terminal
        self.children: set[subprocess.Popen[bytes]] = set()
        self.ending = False
        # A child is either registered before the children are stopped, or not started: an interrupt while a thread
        # is being started leaves a thread that the thread pool does not know and does not wait for.
        self.start_lock = threading.Lock()

    def run_concurrently(self, items: Sequence[Item]) -> Iterator[ServerRun]:
        """Run the command for each item, `jobs` at once, and yield each run when it has ended.

        If it is interrupted or terminated, all children are stopped.
        """
        from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

        waiting = list(reversed(items))
        running: dict[Future[ServerRun], None] = {}
        failed = False
        ending = termination_as_exception(signal.SIGTERM, signal.SIGHUP)
        with ending, subreaper(), ThreadPoolExecutor(self.jobs) as threads:
            try:
                while running or (waiting and not (failed and self.fail_fast)):
                    while waiting and len(running) < self.jobs and not (failed and self.fail_fast):
                        running[threads.submit(self._run, waiting.pop())] = None
                    done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                    for future in done:
                        del running[future]
                        failed = failed or future.result().exit_code != 0
                        yield future.result()
            finally:
                self._end_children()

    def _run(self, item: Item) -> ServerRun:
        argv = expand_placeholders(self.command, item)
        try:
            child = self._start_unless_ending(argv, environment(item))
        except (OSError, ValueError) as failure:
            code = NOT_EXECUTABLE if isinstance(failure, PermissionError) else NOT_FOUND
            reason = str(failure)
            if isinstance(failure, OSError):
                reason = why_execution_failed(argv[0], os.environ.get("PATH", os.defpath), failure)
            return _run_result(item, code, stderr=f"{argv[0]}: {reason}\n")
        if child is None:
            return _run_result(item, INTERRUPTED)
        # In a thread, because processes that the child leaves behind may keep its output open.
        ending = threading.Thread(target=self._end_left, args=(child.pid, item.name))
        ending.start()
        output, errors = child.communicate()
        ending.join()
        self.children.discard(child)
        texts = (each.decode("utf-8", "backslashreplace") for each in (output, errors or b""))
        return _run_result(item, shell_status(child.returncode), *texts)

    def _end_left(self, pid: int, name: str) -> None:
        """Wait until the child has exited, and end the processes that it has left behind."""
        with contextlib.suppress(ChildProcessError):  # reaped meanwhile
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        end_processes(lambda: self._left_by(name), signal.SIGTERM, PATIENCE_SECONDS)

    def _left_by(self, name: str) -> list[int]:
        # Several commands may run, each with the name of another server.
        known = {child.pid for child in self.children.copy()}
        return [pid for pid in left_children(known) if process_variable(pid, f"{PREFIX}NAME") == name]

    def _start_unless_ending(
        self, argv: list[str], environ: dict[str, str]
    ) -> subprocess.Popen[bytes] | None:
        with self.start_lock:
            if self.ending:
                return None
            child = subprocess.Popen(
                argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if self.keep else subprocess.STDOUT,
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
                child.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def perform(request: CommandRequest) -> Outcome:
    """Run CMD for the selected servers in the file's order; exit 1 if it fails for any server."""
    jobs = _parallelism(request)
    pool = find_pool(request)
    items = _selected(request, pool)
    command = request.get("command") or []
    as_text = not request.output
    if not command:
        lines = "".join("\t".join(field_text(item, field) for field in LINE) + "\n" for item in items)
        return Outcome(items, text=lines if as_text else None)
    walk = ParallelWalk(command, jobs=jobs, fail_fast=bool(request.get("fail_fast")), keep=not as_text)
    done: list[ServerRun] = []
    for run in walk.run_concurrently(items):
        done.append(run)
        if as_text:
            _print_server_output(run, without_heading=request.quiet)
    order = {item.name: at for at, item in enumerate(items)}
    done.sort(key=lambda run: order[run.name])
    errors = [_failure(run) for run in done if run.exit_code]
    return Outcome(
        done,
        errors=errors,
        exit_code=FAILED if errors else 0,
        text="" if as_text else None,
    )


def _selected(request: CommandRequest, pool: PoolRef) -> Sequence[Item]:
    try:
        return selected(request, pool).items
    except Failure as failure:
        outcome = failure.outcome
        many = len(request.get("targets") or ()) > 1
        if outcome.exit_code == NOTHING_MATCHED and many and not request.get("command"):
            hint = outcome.errors[0].hint + "; the command goes after --: poolctl walk [SELECTOR] -- CMD…"
            outcome.errors[0] = from_json(ErrorEntry, {**as_json(outcome.errors[0]), "hint": hint})
        raise


def _parallelism(request: CommandRequest) -> int:
    text = request.get("jobs") or "1"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 1000:
        raise UsageError(f"--jobs: {text!r} is not a number from 1 to 1000")
    return int(text)


def _print_server_output(run: ServerRun, *, without_heading: bool) -> None:
    if not without_heading:
        head = f"==> {printable(run.name)} <=="
        sys.stdout.write((paint(head, "1") if coloured(sys.stdout) else head) + "\n")
    body = run.stdout + run.stderr
    sys.stdout.write(body if not body or body.endswith("\n") else f"{body}\n")
    sys.stdout.flush()


def _failure(run: ServerRun) -> ErrorEntry:
    """The error for a run that failed."""
    last = (run.stderr or run.stdout).rstrip("\n").rpartition("\n")[2]
    message = f"the command exited with {run.exit_code}" + (f": {last}" if last else "")
    entry = error(FAILED, message, name=run.name, bind=run.bind)
    return replace(entry, error="ErrorCommand")


def _run_result(item: Item, exit_code: int, stdout: str = "", stderr: str = "") -> ServerRun:
    run = {"exit_code": exit_code, "stdout": stdout, "stderr": stderr}
    return from_json(ServerRun, {**as_json(item), **run})


PREFIX = "POOLCTL_"
WORDS = ("name", "bind", "host", "port", "expose", "state", "pid", "pids", "tags")


def placeholder_values(item: Item) -> dict[str, str]:
    """The values of all placeholders for one server; inapplicable values (the port of a Unix socket) are empty."""
    host, port = _host_and_port(item.bind)
    pids = item.pids
    known = {"host": host, "port": port, "pid": str(pids[0]) if pids else ""}
    return {word: known[word] if word in known else field_text(item, word) for word in WORDS}


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
