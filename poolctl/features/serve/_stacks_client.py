"""Asks the processes of `poolctl serve` for their stacks: each has a socket in its pool's directory."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from socket import AF_UNIX, socket
from time import monotonic

from poolctl.control.pool_paths import check_private
from poolctl.runners.stack_report import PYTHON, WorkerStacks, find_main_thread_hang, parse

_PREFIX, _SUFFIX = "serve-", ".sock"
_ANSWER_SECONDS = 5.0
_MAX_BYTES = 512 * 1024


def socket_path(directory: str, pid: int) -> str:
    """The path of the process's socket."""
    return f"{directory}/{_PREFIX}{pid}{_SUFFIX}"


def stacks_in(directory: str) -> list[WorkerStacks]:
    """The stacks of each process with a socket in this directory. Raises ControlError (7) if it is not private."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    paths = [f"{directory}/{name}" for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
    if paths:
        check_private(directory)
    return [stacks for path in paths if (stacks := _ask(path)) is not None]


def _ask(path: str) -> WorkerStacks | None:
    """The stacks of the process with this socket; None if it has exited."""
    name = os.path.basename(path)
    pid = name[len(_PREFIX) : -len(_SUFFIX)]
    stacks = WorkerStacks(name="", worker=f"serve {pid}", pid=int(pid) if pid.isdecimal() else None)
    try:
        line, _, text = _receive_answer(path).partition(b"\n")
        head = json.loads(line)
        directories, own_thread = [str(directory) for directory in head["directories"]], head["thread"]
        stacks = replace(stacks, name=str(head["name"]), worker=str(head["name"]), pid=int(head["pid"]))
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except TimeoutError:
        return replace(stacks, problem=f"it does not answer within {_ANSWER_SECONDS:g} s")
    except (OSError, ValueError, LookupError, TypeError) as error:
        return replace(stacks, problem=f"it gives no valid answer: {error or type(error).__name__}")
    threads, tasks = parse(text, PYTHON, directories)
    threads = [thread for thread in threads if thread.name != own_thread]
    return replace(
        stacks,
        source=PYTHON if threads else "",
        place=find_main_thread_hang(threads),
        threads=tuple(threads),
        tasks=tuple(tasks),
    )


def _receive_answer(path: str) -> bytes:
    """The whole answer of the process. Raises OSError, such as TimeoutError; ValueError if it exceeds _MAX_BYTES."""
    deadline, answer = monotonic() + _ANSWER_SECONDS, b""
    with socket(AF_UNIX) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(path)
        while (remaining := deadline - monotonic()) > 0:
            connection.settimeout(remaining)
            if not (chunk := connection.recv(65536)):
                return answer
            answer += chunk
            if len(answer) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES} bytes")
    raise TimeoutError
