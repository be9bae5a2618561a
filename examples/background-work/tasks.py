"""A queue of tasks in a directory: a task is a file, and taking one is renaming it, which only one process can do."""

import json
import os
import time
from pathlib import Path

QUEUE, TAKEN, DONE = (Path("spool") / name for name in ("queue", "taken", "done"))
for directory in (QUEUE, TAKEN, DONE):
    directory.mkdir(parents=True, exist_ok=True)


def add(text: str) -> None:
    """Add a task; no process sees it before it is complete."""
    name = f"{time.time_ns()}.{os.getpid()}"
    partial = TAKEN / f"{name}.new"
    partial.write_text(text)
    partial.rename(QUEUE / name)


def take() -> Path | None:
    """Take the oldest task, so that no other process can take it."""
    for name in sorted(os.listdir(QUEUE)):
        try:
            return (QUEUE / name).rename(TAKEN / name)
        except FileNotFoundError:
            continue
    return None


def finish(task: Path) -> None:
    """Record that this process has done the task."""
    result = {"text": task.read_text(), "worker": os.getpid()}
    task.write_text(json.dumps(result))
    task.rename(DONE / task.name)


def done() -> list[dict[str, object]]:
    """The completed tasks, in the order they were added."""
    return [json.loads((DONE / name).read_text()) for name in sorted(os.listdir(DONE))]
