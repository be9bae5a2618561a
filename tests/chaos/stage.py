"""The pool under test: its servers, its files, its processes by role."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.certificates import certificate
from tests.processes import children, command_line, is_alive
from tests.real_pool import Done, RealPool

from .program import SERVERS

ROOT = Path(__file__).parents[2]
SETTLED_SECONDS = 90.0  # a supervisor that dies often is restarted with delays of up to 30 s
PARTS = {"keeper": "keeper", "supervisor": "supervisor", "logs": "logger", "worker zygote": "zygote"}
APP_ZYGOTE = "poolctl-app"  # its name in ps
SHOWN_SECONDS = 0.5
DISK_BYTES = 8 * 1024 * 1024
_FORKED_WITHOUT_EXEC = 0x40  # PF_FORKNOEXEC of proc(5)'s flags


class Fault(Exception):
    """An invariant was violated."""


class Stage:
    """A real pool in its own directory, on a small disk of its own where mounting is allowed."""

    def __init__(self) -> None:
        self.room = Path(tempfile.mkdtemp(prefix="pcc-", dir="/tmp"))
        self.runtime, self.directory = self.room / "r", self.room / "d"
        self.runtime.mkdir(mode=0o700)
        self.directory.mkdir()
        self.has_disk = self._mount()
        self.pool = RealPool(self.directory, self.runtime)
        self.pool.warm = False  # processes are known by the program that they execute
        # A tracer has its own files and memory.
        self.pool.env = {name: value for name, value in self.pool.env.items() if not name.startswith("COV")}
        self.pool.write_hello(*(name for name in (*SERVERS, "moving", "hostile", "extra") if name != "unix"))
        self.ports = self.pool.ports
        certificate(self.directory)
        self.environments = dict.fromkeys(SERVERS, 0)
        self.tags = dict.fromkeys(SERVERS, 0)
        self.workers = dict.fromkeys((*SERVERS, "moving", "hostile"), 1) | {"several": 2}
        self.has_extra = False
        self.write()

    def address(self, name: str) -> str:
        """The address of the server for clients."""
        return f"unix:{self.directory}/u.sock" if name == "unix" else f"127.0.0.1:{self.ports[name]}"

    def write(self, *, broken: bool = False) -> None:
        """The pool's file in its current form."""
        text = f"""
            [defaults]
            app = "tests.load.apps:app"
            app_dir = "{ROOT}"
            drain_timeout = "1s"
            restart = {{ limit = 100000, window = "1s", backoff = {{ initial = "10ms", max = "50ms" }} }}
            """
        for name in (*SERVERS, "moving", "hostile", *(["extra"] if self.has_extra else [])):
            text += f"""
            [[server]]
            name = "{name}"
            bind = "{"unix:u.sock" if name == "unix" else self.address(name)}"
            tags = ["t{self.tags.get(name, 0)}"]
            env = {{ TURN = "{self.environments.get(name, 0)}" }}
            """
            text += {
                "several": 'workers = 2\n            http = { loop = "asyncio", implementation = "h11" }\n',
                "unix": "preload = true\n",
                "sleepy": "scale = { min = 0, idle = 0.15 }\n",
                "tls": 'tls = { cert = "localhost.pem", key = "localhost.key" }\n',
                "hostile": 'app = "tests.chaos.hostile:app"\n            stop_timeout = "1s"\n',
                "noisy": 'app = "tests.chaos.noisy:app"\n            log = { max_size = "64KiB", keep = 2 }\n',
            }.get(name, "")
        self.pool.write("pool.toml", text + ("\n            bind = broken" if broken else ""))

    def run(self, *args: str) -> Done:
        """Run a command; a traceback is a fault with any exit code."""
        done = self.pool.run(*args)
        if "Traceback" in done.stderr:
            raise Fault(str(done))
        return done

    def ok(self, *args: str) -> Done:
        done = self.run(*args)
        if done.code:
            raise Fault(str(done))
        return done

    def settled(
        self, *, stopped: tuple[str, ...] = (), asleep: tuple[str, ...] = ()
    ) -> dict[str, dict[str, Any]]:
        """The servers by name, once all expected ones are ready and no change is in progress.

        `asleep`: servers that must have no process without requests.
        """
        deadline = time.monotonic() + SETTLED_SECONDS
        while True:
            done = self.run("list", "-o", "json")
            items = {item["name"]: item for item in done.json["items"]} if done.code == 0 else {}
            left = [
                name for name in self.expected(stopped) if not self._as_wanted(name, items, stopped, asleep)
            ]
            if items and not left:
                return items
            if time.monotonic() > deadline:
                raise Fault(f"not settled within {SETTLED_SECONDS:g} s: {left or done}\n{self.words()}")
            time.sleep(0.02)

    def expected(self, stopped: tuple[str, ...]) -> set[str]:
        return set(self.workers) | ({"extra"} if self.has_extra else set())

    def _as_wanted(
        self, name: str, items: dict[str, Any], stopped: tuple[str, ...], asleep: tuple[str, ...]
    ) -> bool:
        item = items.get(name)
        if item is None:
            return False
        if name in stopped:
            return item["state"] in ("stopped", "disabled") and not item["pids"]
        if name in asleep:
            return item["state"] == "sleeping" and not item["pids"]
        if name == "sleepy" and item["state"] == "sleeping":
            return True
        return (
            item["ready"]
            and len(item["pids"]) == self.workers.get(name, 1)
            and all(map(is_alive, item["pids"]))
        )

    def roles(self) -> dict[str, list[int]]:
        """The pids of the pool's own programs, and of forked processes (workers and pre-forked ones).

        An app zygote is in both.
        """
        found: dict[str, list[int]] = {
            "keeper": [],
            "supervisor": [],
            "logger": [],
            "zygote": [],
            "app zygote": [],
            "forked": [],
        }
        for pid in self.pool.processes():
            try:
                line = command_line(pid)
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name == APP_ZYGOTE:
                found["app zygote"].append(pid)
            for part, role in PARTS.items():
                if f"bootstrap.py {part}" in line:
                    found["forked" if flags & _FORKED_WITHOUT_EXEC else role].append(pid)
        return found

    def own(self) -> list[int]:
        """The pids of keeper and supervisor."""
        roles = self.roles()
        return roles["keeper"] + roles["supervisor"]

    def has_taken_over(self) -> bool:
        """Whether the running supervisor has been connected for long enough to know everything its keeper holds."""
        path = next(self.runtime.glob("[!@]*/info.json"))
        info = json.loads(path.read_text())
        shown_for = time.time() - path.stat().st_mtime
        return [info["keeper_pid"], info["supervisor_pid"]] == self.own() and shown_for > SHOWN_SECONDS

    def zombies(self) -> list[int]:
        """Zombie children of the keeper."""
        return [pid for keeper in self.roles()["keeper"] for pid in children(keeper) if not is_alive(pid)]

    def words(self) -> str:
        """The log of the pool's own processes."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.runtime.glob("*/*.log"))
            if path.stat().st_size and not path.parent.is_symlink()
        )

    def close(self) -> dict[int, str]:
        """Stop the pool and remove everything; returns the processes that had to be killed."""
        left = self.pool.end()
        if self.has_disk:
            subprocess.run(["umount", "-l", str(self.runtime)], check=False)
        shutil.rmtree(self.room, ignore_errors=True)
        return left

    def _mount(self) -> bool:
        if os.geteuid():
            return False
        options = f"size={DISK_BYTES},mode=700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "poolctl-chaos", str(self.runtime)], capture_output=True
        )
        return done.returncode == 0
