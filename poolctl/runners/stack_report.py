"""Parses the stacks that a worker has written, and renders them as a report with short paths and bounded length.

The text is an application's: each line is checked, and unknown lines are omitted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

PYTHON, FAULTHANDLER = "python", "faulthandler"
_MAX_STACKS, _MAX_FRAMES = 100, 100
_MAX_LINE_LENGTH = 2000
_HEADER = re.compile(
    r"(?P<current>Current thread|Thread) 0x[0-9a-f]+(?: \[(?P<name>.*)\])? \(most recent call first\):"
    r"|Tasks (?P<count>\d{1,9}) \[(?P<names>.*)\] (?P<waits>[^\]]*) \(most recent call first\):"
)
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d{1,9}|\?\?\?) in (?P<function>.*)', re.DOTALL)
# The part of a path up to the module's name, for the standard library and installed packages.
_LIBRARIES = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+(?:/lib-dynload)?)/")
_PACKAGE_PARENT = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "")
# Calls in which a main thread waits for events: its loop does not hang.
_IDLE = (("selectors.py", "select"), ("asyncio/runners.py", "run"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A call: its function, file (relative where that is shorter) and line, 0 if unknown.

    `library` is set if the file belongs to the standard library or to an installed package.
    """

    function: str
    file: str
    line: int
    library: bool = False

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line or '?'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadStack:
    """A Python thread with its calls, the most recent first. `name` is empty if unknown."""

    name: str
    main: bool
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SameStackTasks:
    """A group of tasks of the event loop that wait at the same place, with some of their names."""

    count: int
    names: tuple[str, ...]
    waits: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelThread:
    """A thread as the kernel sees it; unreadable fields are empty (proc(5): wchan, syscall, stack)."""

    tid: int
    name: str
    state: str
    wchan: str
    syscall: str
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStacks:
    """The stacks of a worker.

    `name` is its server's name. `source` says who wrote the stacks: "python", "faulthandler" (without tasks and names),
    or "" if there are no stacks. `problem` says why stacks or tasks are missing, or is "". `place` is the application's
    call in which the main thread hangs, or "". `kernel` has the threads as seen by the kernel, unless Python answered.
    """

    name: str
    worker: str
    pid: int | None
    source: str = ""
    problem: str = ""
    place: str = ""
    threads: tuple[ThreadStack, ...] = ()
    tasks: tuple[SameStackTasks, ...] = ()
    kernel: tuple[KernelThread, ...] = ()

    def shortened(self, stacks: int, frames: int) -> WorkerStacks:
        """Return a copy with at most `stacks` threads and `stacks` groups of tasks, of at most `frames` calls each."""
        return replace(
            self,
            threads=tuple(replace(thread, frames=thread.frames[:frames]) for thread in self.threads[:stacks]),
            tasks=tuple(replace(task, frames=task.frames[:frames]) for task in self.tasks[:stacks]),
            kernel=tuple(replace(thread, stack=thread.stack[:frames]) for thread in self.kernel[:stacks]),
        )

    def lines(self) -> Iterator[str]:
        """The report as lines of text: threads first, and the most recent call of each first."""
        if self.problem:
            yield self.problem
        for thread in self.threads:
            yield f"{'main thread' if thread.main else f'thread {thread.name}'.rstrip()}:"
            yield from (f"  {frame}" for frame in thread.frames)
        for task in self.tasks:
            more = f" and {task.count - len(task.names)} more" if task.count > len(task.names) else ""
            word = "task" if task.count == 1 else f"{task.count} tasks"
            yield f"{word} {', '.join(task.names)}{more}, {task.waits}:"
            yield from (f"  {frame}" for frame in task.frames)
        for entry in self.kernel:
            facts = [f"state {entry.state}", entry.wchan and f"waits in {entry.wchan}"]
            facts.append(entry.syscall and f"system call {entry.syscall}")
            yield f"kernel, thread {entry.tid} {entry.name}: {', '.join(filter(None, facts))}"
            yield from (f"  {function}" for function in entry.stack)


def parse(
    written: bytes, source: str, directories: Iterable[str]
) -> tuple[list[ThreadStack], list[SameStackTasks]]:
    """The threads, the main thread first, and the tasks in a stack dump. `source`: its writer, PYTHON or FAULTHANDLER.

    File paths are relative to the first of the application's `directories` that contains the file.
    """
    # Imported late: it needs asyncio, which some commands do without.
    from .process_link import sanitize_and_truncate_text

    roots = [_PACKAGE_PARENT, *(os.path.join(directory, "") for directory in directories if directory)]
    blocks: list[tuple[re.Match[str], list[Frame]]] = []
    for line in written.decode(errors="replace").splitlines():
        if len(line) > _MAX_LINE_LENGTH:
            continue
        line = sanitize_and_truncate_text(line)
        if header := _HEADER.fullmatch(line):
            if len(blocks) == 2 * _MAX_STACKS:  # the maximum of threads, and of tasks
                break
            blocks.append((header, []))
        elif blocks and len(blocks[-1][1]) < _MAX_FRAMES and (frame := _FRAME.fullmatch(line)):
            blocks[-1][1].append(_frame(frame, roots))
    heads = [block for block in blocks if block[0]["current"]]
    # faulthandler begins with the newest thread, and marks the thread that got the signal.
    main = (
        heads[-1:] if source == FAULTHANDLER else [head for head in heads if head[0]["current"] != "Thread"]
    )
    heads.sort(key=lambda head: head not in main)
    threads = [
        ThreadStack(
            name=head["name"] or "",
            main=(head, frames) in main,
            frames=tuple(_without_poolctl_frames(frames)),
        )
        for head, frames in heads[:_MAX_STACKS]
    ]
    tasks = [
        SameStackTasks(
            count=int(head["count"]),
            names=tuple(head["names"].split(", ")),
            waits=head["waits"],
            frames=tuple(frames),
        )
        for head, frames in blocks
        if head["count"]
    ]
    return threads, tasks[:_MAX_STACKS]


def find_main_thread_hang(threads: Iterable[ThreadStack]) -> str:
    """The place where the main thread hangs; "" if it waits for events or its calls are unknown."""
    frames = next((thread.frames for thread in threads if thread.main), ())
    if not frames or (frames[0].file, frames[0].function.rpartition(".")[2]) in _IDLE:
        return ""
    return str(next((frame for frame in frames if not frame.library), frames[0]))


def _without_poolctl_frames(frames: list[Frame]) -> list[Frame]:
    """The frames without poolctl's calls that run the application; unchanged if every frame is poolctl's."""
    calls = [place for place, frame in enumerate(frames, 1) if not frame.file.startswith("poolctl/")]
    return frames[: calls[-1]] if calls else frames


def _frame(match: re.Match[str], roots: Iterable[str]) -> Frame:
    path = match["file"]
    installed = _LIBRARIES.match(path)
    root = next((root for root in roots if path.startswith(root)), "")
    return Frame(
        function=match["function"],
        file=path[installed.end() :] if installed else path.removeprefix(root),
        line=int(match["line"]) if match["line"].isdigit() else 0,
        library=installed is not None or path.startswith(("<frozen ", f"{_PACKAGE_PARENT}poolctl/")),
    )
