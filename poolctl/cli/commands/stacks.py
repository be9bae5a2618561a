"""`poolctl stacks`: prints the current stacks of the workers' threads and tasks."""

from __future__ import annotations

import os
import sys

from poolctl.cli.command_line import OUTPUT, SELECTION, Command, CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, paint, printable
from poolctl.cli.supervisor_requests import ask_for, selected
from poolctl.control.client import NoSupervisor
from poolctl.control.pool_paths import SERVE_SOCKET_PREFIX, SERVE_SOCKET_SUFFIX, check_private
from poolctl.control.server_answers import StacksResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.runners.stack_report import WorkerStacks

COMMAND = Command(
    "Show what the threads and tasks of workers do now.",
    SELECTION,
    OUTPUT,
    section="Look",
    fields=("name", "worker", "pid", "source", "problem", "place"),
    notes=(
        "The workers go on; one whose event loop hangs answers as well. Without a supervisor",
        "the processes of `poolctl serve` answer.",
    ),
    examples=("poolctl stacks users          where it hangs, the innermost call first",),
)
_ANSWER_SECONDS = 5.0
_MOST_BYTES = 512 * 1024


def perform(request: CommandRequest) -> Outcome:
    """The answer of the supervisor, or of each process of `serve`. Raises NoSupervisor if there is neither."""
    pool = find_pool(request)
    try:
        result = ask_for(StacksResult, request, pool)
    except NoSupervisor:
        if not (served := _served(pool)):
            raise
        if not request.selector().selects_all:
            names = {each.name for each in selected(request, pool).items}
            served = [each for each in served if each.name in names]
        result = StacksResult(items=tuple(served))
    outcome = Outcome.of(result)
    if request.output in ("", "table", "wide") and not outcome.errors:
        colours = coloured(sys.stdout)
        outcome.text = "\n".join(_text(each, colours) for each in result.items)
    elif request.output == "name":
        outcome.text = "".join(f"{printable(each.worker)}\n" for each in result.items)
    return outcome


def _text(stacks: WorkerStacks, colours: bool) -> str:
    pid = "" if stacks.pid is None else f" (pid {stacks.pid})"
    head = f"{printable(stacks.worker)}{pid}"
    lines = [paint(head, "1") if colours else head, *(f"  {printable(line)}" for line in stacks.lines())]
    return "\n".join(lines) + "\n"


def _served(pool: PoolRef) -> list[WorkerStacks]:
    """The stacks of each process of `poolctl serve` for this pool. Raises ControlError (7)."""
    try:
        names = sorted(os.listdir(pool.directory))
    except OSError:
        return []
    paths = [
        f"{pool.directory}/{name}"
        for name in names
        if name.startswith(SERVE_SOCKET_PREFIX) and name.endswith(SERVE_SOCKET_SUFFIX)
    ]
    if paths:
        check_private(pool.directory)
    return [found for path in paths if (found := _stacks_of(path)) is not None]


def _stacks_of(path: str) -> WorkerStacks | None:
    """The stacks of the process that has this socket; None if it has ended."""
    import json
    from dataclasses import replace

    from poolctl.runners.stack_report import PYTHON, WorkerStacks, parse, place_of

    name = os.path.basename(path)
    pid = name[len(SERVE_SOCKET_PREFIX) : -len(SERVE_SOCKET_SUFFIX)]
    unknown = WorkerStacks(name="", worker=f"serve {pid}", pid=int(pid) if pid.isdecimal() else None)
    try:
        line, _, text = _read(path).partition(b"\n")
        head = json.loads(line)
        directories, own_thread = [str(each) for each in head["directories"]], head["thread"]
        unknown = replace(unknown, name=str(head["name"]), worker=str(head["name"]), pid=int(head["pid"]))
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except TimeoutError:
        return replace(unknown, problem=f"it does not answer within {_ANSWER_SECONDS:g} s")
    except (OSError, ValueError, LookupError, TypeError) as error:
        return replace(unknown, problem=f"it gives no valid answer: {error or type(error).__name__}")
    threads, tasks = parse(text, PYTHON, directories)
    threads = [each for each in threads if each.name != own_thread]
    return replace(
        unknown,
        source=PYTHON if threads else "",
        place=place_of(threads),
        threads=tuple(threads),
        tasks=tuple(tasks),
    )


def _read(path: str) -> bytes:
    """Everything that the process sends. Raises OSError, TimeoutError, and ValueError for more than _MOST_BYTES."""
    from socket import AF_UNIX, socket
    from time import monotonic

    end, found = monotonic() + _ANSWER_SECONDS, b""
    with socket(AF_UNIX) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(path)
        while (left := end - monotonic()) > 0:
            connection.settimeout(left)
            if not (piece := connection.recv(65536)):
                return found
            found += piece
            if len(found) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES} bytes")
    raise TimeoutError
