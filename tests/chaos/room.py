"""What the storms that are not made of steps share: a pool in a directory of its own, and a seed for the order."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.processes import process_name
from tests.real_pool import Done, RealPool

from .stage import Fault

SETTLED_SECONDS = 120.0

# The names in ps of the kinds of process. HAProxy and the workers are known from `list`.
KINDS = {
    "keeper": "poolctl-keeper", "supervisor": "poolctl-superv.", "logger": "poolctl-logger",
    "web": "poolctl-web", "accept": "poolctl-accept", "zygote": "poolctl-zygote", "worker": "",
    "forwarder": "poolctl-forward", "gateway": "",
}  # fmt: skip


class Room:
    """A pool, and the chances of what is done to it."""

    def __init__(self, seed: int, say: Callable[[str], None]) -> None:
        self.chance = random.Random(seed)
        self.say = say
        self.room = Path(tempfile.mkdtemp(prefix="pcr-", dir="/tmp"))
        self.directory, self.runtime = self.room / "d", self.room / "r"
        self.directory.mkdir()
        self.runtime.mkdir(mode=0o700)
        self.pool = RealPool(self.directory, self.runtime)
        self.pool.warm = False  # each version executes its own commands

    def close(self) -> None:
        """End the pool, and remove its files."""
        self.pool.end()
        shutil.rmtree(self.room, ignore_errors=True)

    def pids_of(self, kind: str) -> list[int]:
        return [pid for pid in self.pool.processes() if process_name(pid) == KINDS[kind]]

    def ok(self, *words: str, timeout_seconds: float = SETTLED_SECONDS) -> Done:
        """Run a command that must succeed."""
        done = self.pool.run(*words, timeout_seconds=timeout_seconds)
        if done.code or "Traceback" in done.stderr:
            raise Fault(str(done))
        return done


def options_of(name: str, description: str | None, **more: dict[str, object]) -> argparse.Namespace:
    """The options of a storm's command, which are `--seed` and more; says the seed."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.chaos.{name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the order (a random one)")
    for option, how in more.items():
        parser.add_argument(f"--{option.replace('_', '-')}", **how)  # type: ignore[arg-type]
    options = parser.parse_args()
    print(f"seed {options.seed}")
    return options
