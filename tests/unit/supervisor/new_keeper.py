"""A program in the place of a new keeper: `new_keeper.py RECORD ENDING… DIRECTORY PLAN`.

Each start adds a line to RECORD, what it has got, and takes the next ENDING: "dies" before its first message, "ends"
after the last one, "stops" itself and is "adopted" once it is continued; or the event with which it answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from poolctl.keeper import wire
from poolctl.platform import close_all


class NewKeepers:
    """The keepers of a test, one for each ending, which are started by `command`."""

    def __init__(self, record: Path, *endings: str) -> None:
        self.command = [sys.executable, __file__, str(record), *endings]
        self._record = record
        record.touch()

    def started(self) -> list[dict[str, Any]]:
        """What each of them has got: `directory`, `plan`, and `messages` with the numbers of their descriptors."""
        return [json.loads(line) for line in self._record.read_text().splitlines()]


def main() -> None:
    record, *endings, directory, plan = sys.argv[1:]
    began, link, messages = time.monotonic(), wire.socket_from_fd(3), []
    with open(record, "a+") as file:
        file.seek(0)
        ending = endings[len(file.readlines())]
        if ending != "dies":
            wire.send(link, {"event": "hello", "pid": os.getpid()})
            if ending == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            while not messages or messages[-1]["op"] != "whole":
                message, fds = wire.receive(link, wait=True) or sys.exit("the supervisor has ended")
                messages.append({**message, "descriptors": len(fds)})
                close_all(fds)
            if ending == "stops":
                wire.send(link, {"event": "ping"})
                pong, _ = wire.receive(link, wait=True) or sys.exit("the supervisor has ended")
                messages.append(pong)
        got = {"began": began, "directory": directory, "plan": json.loads(plan), "messages": messages}
        file.write(f"{json.dumps(got)}\n")
    if ending not in ("dies", "ends"):
        wire.send(link, {"event": "adopted" if ending == "stops" else ending})


if __name__ == "__main__":
    main()
