"""`python -m tests.chaos.endless --restarts 10000`: restarts in a row under load, without growth of the pool.

Descriptors, threads, memory and files are checked between restarts: none may grow after the first tenth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from poolctl.control.client import Client
from tests.load import Load, Report
from tests.processes import children

from . import leaks
from .leaks import MIB, Holdings
from .stage import Fault, Stage

LOOKS = 10
# Maximum growth of private memory over nine tenths of the run: the size of caches and arenas varies within it.
MAX_GROWTH_BYTES = 2 * MIB
IMPORTED_SECONDS = 2.0


@dataclass(frozen=True)
class Look:
    """The resources in use after a number of restarts."""

    restarts: int
    holdings: dict[str, Holdings]
    files: int
    seconds: float

    def __str__(self) -> str:
        words = ", ".join(
            f"{role} {sum(holds.kinds.values())} descriptors {holds.private_bytes / MIB:.2f} MiB"
            for role, holds in self.holdings.items()
        )
        return f"{self.restarts:6} restarts in {self.seconds:5.0f} s: {words}, {self.files} files"


def run(restarts: int, say: Callable[[str], None] = print) -> Report:
    """Perform the restarts; returns the clients' results. Raises Fault if a resource grows or a request is lost."""
    stage = Stage()
    try:
        stage.ok("start", "plain")
        _wait_for_later_imports(stage)
        (socket_path,) = stage.runtime.glob("[!@]*/control.sock")
        client = Client(str(socket_path))
        looks: list[Look] = []
        began = time.monotonic()
        with Load([stage.address("plain")], "keep_alive", connections=2, pause=0.01) as load:
            for number in range(1, restarts + 1):
                _restart(client)
                if number % max(1, restarts // LOOKS) == 0:
                    looks.append(_look(stage, number, time.monotonic() - began))
                    say(str(looks[-1]))
            report = load.stop()
        if report.failed:
            raise Fault(f"requests were lost: {report}")
        _compare(stage, looks[0])
        stage.ok("stop")
        leaks.nothing_left(stage)
        return report
    finally:
        stage.close()


def _wait_for_later_imports(stage: Stage) -> None:
    """The supervisor imports what a start does not need a second after it; then its memory no longer grows."""
    deadline = time.monotonic() + leaks.QUIET_SECONDS
    size, since = 0, time.monotonic()
    while time.monotonic() < since + IMPORTED_SECONDS:
        if time.monotonic() > deadline:
            raise Fault("the supervisor grows without a restart")
        time.sleep(0.1)
        now = leaks.take(stage)["supervisor"].private_bytes
        if now > size + MIB // 10:
            size, since = now, time.monotonic()


def _restart(client: Client) -> None:
    done = client.call("restart", {"selector": {"targets": ["plain"]}, "options": {}})
    if done["errors"]:
        raise Fault(str(done["errors"]))


def _look(stage: Stage, restarts: int, seconds: float) -> Look:
    """Taken after the previous worker has exited."""
    deadline = time.monotonic() + leaks.QUIET_SECONDS
    while len(workers := _workers(stage)) > 1:
        if time.monotonic() > deadline:
            raise Fault(f"more than one worker is left: {workers}")
        time.sleep(0.02)
    files = sum(1 for path in stage.runtime.rglob("*") if not path.is_dir())
    return Look(restarts, leaks.take(stage), files, seconds)


def _workers(stage: Stage) -> list[int]:
    """Forked children of the keeper, without a zygote's child that waits to become the next worker."""
    roles = stage.roles()
    return sorted(set(roles["forked"]).intersection(children(roles["keeper"][0])))


def _compare(stage: Stage, first: Look) -> None:
    deadline = time.monotonic() + leaks.QUIET_SECONDS
    while True:
        last = _look(stage, 0, 0.0)
        found = leaks.differences(last.holdings, first.holdings, most_growth_bytes=MAX_GROWTH_BYTES)
        if last.files > first.files:
            found.append(f"{last.files} files, not {first.files}")
        if not found:
            return
        if time.monotonic() > deadline:
            raise Fault("; ".join(found))
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.endless", description=__doc__)
    parser.add_argument("--restarts", type=int, default=10_000, help="how many (10000)")
    options = parser.parse_args()
    try:
        report = run(options.restarts, lambda text: print(text, flush=True))
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    print(f"nothing has grown, nothing was lost: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
