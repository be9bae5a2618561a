"""Tools that keep many programs running, each configured for N uvicorn servers as its documentation says."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from benchmarks import answers

from .control_group import ControlGroup
from .install import program

APP = """
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    body = str(os.getpid()).encode() if scope["path"] == "/pid" else b""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
"""


class Manager(ABC):
    """N servers of one application, in a directory; commands run in a control group."""

    name: str
    status: Sequence[str] = ()
    restart: Sequence[str] = ()

    def __init__(self, directory: Path, ports: Sequence[int], group: ControlGroup) -> None:
        self.directory = directory
        self.ports = ports
        self.group = group
        (directory / "app.py").write_text(APP)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("POOLCTL_")}
        self.write()

    @abstractmethod
    def write(self) -> None:
        """Write its configuration."""

    @abstractmethod
    def start(self) -> None:
        """Start the servers; some may not answer yet."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the servers and the manager; some processes may not have ended yet."""

    @abstractmethod
    def manager_pids(self) -> list[int]:
        """The processes that look after the servers; the first one is what decides."""

    def run(self, *argv: str) -> float:
        return self.group.run(argv, cwd=self.directory, env=self.env)

    def uvicorn(self, port: int) -> list[str]:
        return [program("python"), "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]

    def pids_with(self, *words: str) -> list[int]:
        """Processes of the group whose command line contains all words."""
        found = []
        for pid in self.group.pids:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in line for word in words):
                found.append(pid)
        return found


class Poolctl(Manager):
    name = "poolctl"
    status = (program("poolctl"), "list")
    restart = (program("poolctl"), "restart")

    def write(self) -> None:
        self.env["POOLCTL_RUNTIME_DIR"] = str(self.directory / "run")
        tables = [
            f'[[server]]\nname = "s{port}"\nbind = "127.0.0.1:{port}"\napp = "app:app"\n'
            for port in self.ports
        ]
        (self.directory / "pool.toml").write_text("\n".join(tables))

    def start(self) -> None:
        self.run(program("poolctl"), "start")

    def stop(self) -> None:
        self.run(program("poolctl"), "stop")

    def manager_pids(self) -> list[int]:
        (path,) = (self.directory / "run").glob("[!@]*/info.json")
        info = json.loads(path.read_text())
        return [info["supervisor_pid"], info["keeper_pid"]]


class Supervisord(Manager):
    name = "supervisord"
    status = (program("supervisorctl"), "-c", "supervisord.conf", "status")
    restart = (program("supervisorctl"), "-c", "supervisord.conf", "restart", "all")

    def write(self) -> None:
        programs = [
            f"[program:s{port}]\ncommand={' '.join(self.uvicorn(port))}\nautorestart=true\n"
            for port in self.ports
        ]
        (self.directory / "supervisord.conf").write_text(
            "[supervisord]\npidfile=%(here)s/supervisord.pid\nlogfile=%(here)s/supervisord.log\n"
            "[unix_http_server]\nfile=%(here)s/supervisor.sock\n"
            "[supervisorctl]\nserverurl=unix://%(here)s/supervisor.sock\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            + "\n".join(programs)
        )

    def start(self) -> None:
        self.run(program("supervisord"), "-c", "supervisord.conf")

    def stop(self) -> None:
        self.run(program("supervisorctl"), "-c", "supervisord.conf", "shutdown")

    def manager_pids(self) -> list[int]:
        return self.pids_with("supervisord -c")


class Circus(Manager):
    """With sockets of its own, which circus hands to the servers: they stay open over a restart."""

    name = "circus"

    def write(self) -> None:
        control, published, stats = answers.free_ports(3)
        self.endpoint = f"tcp://127.0.0.1:{control}"
        parts = [
            f"[circus]\nstatsd = false\nendpoint = {self.endpoint}",
            f"pubsub_endpoint = tcp://127.0.0.1:{published}\nstats_endpoint = tcp://127.0.0.1:{stats}\n",
        ]
        for port in self.ports:
            python, *words = self.uvicorn(port)
            words[words.index("--port") : words.index("--port") + 2] = ["--fd", f"$(circus.sockets.s{port})"]
            parts.append(f"[socket:s{port}]\nhost = 127.0.0.1\nport = {port}\n")
            parts.append(
                f"[watcher:s{port}]\ncmd = {python}\nargs = {' '.join(words)}\nuse_sockets = true\ncopy_env = true\n"
            )
        (self.directory / "circus.ini").write_text("\n".join(parts))
        self.control = (program("circusctl"), "--endpoint", self.endpoint, "--timeout", "120")
        self.status = (*self.control, "status")
        self.restart = (*self.control, "restart", "--waiting")

    def start(self) -> None:
        self.run(program("circusd"), "--daemon", "--pidfile", "circus.pid", "circus.ini")

    def stop(self) -> None:
        self.run(*self.control, "quit", "--waiting")

    def manager_pids(self) -> list[int]:
        return self.pids_with("circusd")


class Honcho(Manager):
    """For development: it has no commands for what runs, and restarts nothing."""

    name = "honcho"

    def write(self) -> None:
        lines = [f"s{port}: {' '.join(self.uvicorn(port))}" for port in self.ports]
        (self.directory / "Procfile").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        with open(self.directory / "honcho.log", "ab") as log:
            argv = [program("honcho"), "start"]
            self.process = self.group.popen(argv, cwd=self.directory, env=self.env, stdout=log, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def manager_pids(self) -> list[int]:
        return [self.process.pid]


class PM2(Manager):
    name = "pm2"
    status = (program("pm2"), "list")
    restart = (program("pm2"), "restart", "all")

    def write(self) -> None:
        self.env["PM2_HOME"] = str(self.directory / "pm2")
        apps = [
            {
                "name": f"s{port}",
                "script": program("python"),
                "args": self.uvicorn(port)[1:],
                "interpreter": "none",
                "cwd": str(self.directory),
            }
            for port in self.ports
        ]
        (self.directory / "ecosystem.config.json").write_text(json.dumps({"apps": apps}))

    def start(self) -> None:
        self.run(program("pm2"), "start", "ecosystem.config.json")

    def stop(self) -> None:
        self.run(program("pm2"), "kill")

    def manager_pids(self) -> list[int]:
        return self.pids_with("God Daemon") or self.pids_with("PM2 v")


MANAGERS: tuple[type[Manager], ...] = (Poolctl, Supervisord, Circus, PM2, Honcho)
