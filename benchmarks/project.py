"""A pool of N small servers in its own directory, and runs of the installed command in it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import answers, processes

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"hello\\n"})
"""


def command() -> list[str]:
    """The installed command: the script next to this interpreter, or the module."""
    script = Path(sys.executable).with_name("poolctl")
    return [str(script)] if script.exists() else [sys.executable, "-m", "poolctl"]


class Project:
    """`with Project(n) as project`: on exit all its processes are killed, by pid."""

    def __init__(self, servers: int, *, disabled: int = 0, app: str = APP, defaults: str = "") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="poolbench-", dir="/tmp"))
        self.ports = answers.free_ports(servers)
        self.env = {
            k: v for k, v in os.environ.items() if not k.startswith(("POOLCTL_", "VIRTUAL_ENV", "PYTHONPATH"))
        }
        self.env["POOLCTL_RUNTIME_DIR"] = str(self.directory / "run")
        self.command = command()
        (self.directory / "app.py").write_text(app)
        entries = [
            f'[[server]]\nname = "s{n}"\nbind = "127.0.0.1:{port}"\n' for n, port in enumerate(self.ports)
        ]
        entries += [
            f'[[server]]\nname = "d{n}"\nbind = "unix:d{n}.sock"\ndisabled = true\n' for n in range(disabled)
        ]
        head = f'[defaults]\napp = "app:app"\n{defaults}\n\n'
        (self.directory / "pool.toml").write_text(head + "\n".join(entries))

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.processes():
                self.run("stop", check=False)
        finally:
            processes.end(self.processes())
            shutil.rmtree(self.directory, ignore_errors=True)

    def run(self, *arguments: str, check: bool = True) -> str:
        """The output of the command. Raises RuntimeError with the output if it fails."""
        done = subprocess.run(
            [*self.command, *arguments], cwd=self.directory, env=self.env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(
                f"poolctl {' '.join(arguments)}: exit {done.returncode}: {done.stderr[-2000:]}"
            )
        return done.stdout

    def seconds(self, *arguments: str) -> float:
        """The duration of the command."""
        started = time.perf_counter()
        self.run(*arguments)
        return time.perf_counter() - started

    def start_seconds(self) -> tuple[float, float]:
        """The time until `start` returned, and until every server had answered a request.

        Servers are polled from the beginning, as in the bare loop.
        """
        with ThreadPoolExecutor(1) as beside:
            started = time.perf_counter()
            command = beside.submit(self.seconds, "start")
            answers.wait_for_all(self.ports)
            answered = time.perf_counter() - started
            return command.result(), answered

    def processes(self) -> dict[int, list[str]]:
        """The arguments of all processes of this pool, by pid."""
        return processes.marked_with(str(self.directory))

    def process(self, name: str) -> int:
        """The pid of one of the pool's own processes, such as `gateway` or `forwarder`."""
        listed = json.loads(self.run("status", "-o", "json"))["summary"]["processes"]
        pids: dict[str, int] = {each["name"]: each["pid"] for each in listed}
        return pids[name]

    def roles(self) -> dict[str, list[int]]:
        """The pids of the pool's processes: keeper, supervisor, zygote, logger, worker."""
        listed: dict[str, Any] = json.loads(self.run("list", "-o", "json"))
        found: dict[str, list[int]] = {"worker": [pid for item in listed["items"] for pid in item["pids"]]}
        for pid, arguments in self.processes().items():
            if pid not in found["worker"]:
                found.setdefault(_role(arguments), []).append(pid)
        return found


def _role(arguments: list[str]) -> str:
    """The part in `python bootstrap.py PART …`, by which all of them are started."""
    parts = [later for earlier, later in itertools.pairwise(arguments) if "bootstrap" in earlier]
    part = parts[0] if parts else "other"
    return {"worker": "zygote", "logs": "logger"}.get(part, part)
