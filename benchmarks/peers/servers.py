"""Servers of one application on one port with two processes, and proxies in front of one, on the same machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from benchmarks import answers
from benchmarks.answers import free_ports
from benchmarks.proxies import http_configuration
from tests.certificates import certificate
from tests.load import Load

from .control_group import ControlGroup
from .install import program
from .manager_figures import Figures
from .managers import APP

WORKERS = 2
LOAD_SECONDS = 5.0
AFTER_RELOAD_SECONDS = 3.0
_SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"


class WebServer(ABC):
    """Serves the application at `port`; its commands run in a control group."""

    name: str

    def __init__(self, directory: Path, group: ControlGroup) -> None:
        self.directory = directory
        self.group = group
        self.port, self.backend = free_ports(2)
        (directory / "app.py").write_text(APP)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("POOLCTL_")}

    @abstractmethod
    def start(self) -> None:
        """Start it; it may not answer yet."""

    def reload(self) -> bool:
        """Replace its processes as its documentation says; False if it cannot."""
        return False

    def spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        with open(self.directory / "log", "ab") as log:
            return self.group.popen(argv, cwd=self.directory, env=self.env, stdout=log, stderr=log)


class Signalled(WebServer):
    """Reloads at SIGHUP."""

    arguments: Sequence[str]

    def start(self) -> None:
        words = [word.format(port=self.port, workers=WORKERS) for word in self.arguments]
        self.process = self.spawn(program("python"), "-m", *words)

    def reload(self) -> bool:
        self.process.send_signal(signal.SIGHUP)
        return True


class Uvicorn(Signalled):
    name = "uvicorn"
    arguments = ("uvicorn", "app:app", "--port", "{port}", "--workers", "{workers}", "--no-access-log")


class Gunicorn(Signalled):
    name = "gunicorn"
    arguments = (
        *("gunicorn", "app:app", "--bind", "127.0.0.1:{port}", "--workers", "{workers}"),
        *("--worker-class", "uvicorn_worker.UvicornWorker"),
    )


class Granian(Signalled):
    name = "granian"
    arguments = (
        *("granian", "app:app", "--interface", "asgi", "--port", "{port}", "--workers", "{workers}"),
        "--no-access-log",
    )


class Poolctl(WebServer):
    name = "poolctl"
    bind = ""
    tables = ""

    def start(self) -> None:
        self.env["POOLCTL_RUNTIME_DIR"] = str(self.directory / "run")
        port = self.port if not self.tables else self.backend
        (self.directory / "pool.toml").write_text(
            f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "app:app"\nworkers = {WORKERS}\n'
            "http = { access_log = false }\n" + self.tables.format(port=self.port)
        )
        self.group.run([program("poolctl"), "start"], cwd=self.directory, env=self.env)

    def reload(self) -> bool:
        self.group.run([program("poolctl"), "restart"], cwd=self.directory, env=self.env)
        return True


class PoolctlGateway(Poolctl):
    name = "poolctl, gateway"
    tables = '[gateway]\nbind = "127.0.0.1:{port}"\n[[route]]\nto = "web"\n'


class Proxy(Uvicorn):
    """One process in front of uvicorn."""

    package: str

    def start(self) -> None:
        public, self.port = self.port, self.backend
        super().start()
        answers.wait_for_all([self.port])
        self.port = public
        pem, key = certificate(self.directory)
        both = self.directory / "both.pem"
        both.write_bytes(pem.read_bytes() + key.read_bytes())
        (tls,) = free_ports(1)
        path = self.directory / f"{self.package}.conf"
        path.write_text(
            http_configuration(
                self.package, self.directory, plain=public, tls=tls, backend=self.backend, certificate=both
            )
        )
        found = shutil.which(self.package, path=_SYSTEM_PATH)
        if found is None:
            raise FileNotFoundError(f"{self.package} is not installed")
        options = ["-p", str(self.directory), "-c"] if self.package == "nginx" else ["-db", "-f"]
        self.spawn(found, *options, str(path))

    def reload(self) -> bool:
        return False


class Nginx(Proxy):
    name = "nginx, proxied"
    package = "nginx"


class HAProxy(Proxy):
    name = "HAProxy, proxied"
    package = "haproxy"


SERVERS: tuple[type[WebServer], ...] = (
    *(Uvicorn, Gunicorn, Granian, Poolctl, PoolctlGateway, Nginx, HAProxy),
)


def server_figures(kind: type[WebServer]) -> Figures:
    """Times are seconds, memory is bytes; processor time is of the server, or of the proxy and the server behind it."""
    found: Figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="poolpeers-", dir="/tmp") as directory,
        ControlGroup("server") as group,
    ):
        Path(directory).chmod(0o755)  # a proxy may drop root
        server = kind(Path(directory), group)
        started = time.perf_counter()
        server.start()
        answers.wait_for_all([server.port])
        found["start seconds"] = time.perf_counter() - started
        time.sleep(1.0)
        found["memory bytes"] = group.memory_bytes()
        for mode, connections in (("keep_alive", 16), ("new_connection", 4)):
            used = group.processor_seconds()
            load = Load([server.port], mode=mode, connections=connections, echo=False)
            load.start()
            time.sleep(LOAD_SECONDS)
            report = load.stop()
            if report.failed:
                raise RuntimeError(f"{kind.name}: {report}")
            found[f"{mode} requests per second"] = report.per_second
            found[f"{mode} processor microseconds"] = (
                1e6 * (group.processor_seconds() - used) / report.complete
            )
        for mode in ("keep_alive", "new_connection"):
            load = Load([server.port], mode=mode, connections=8, pause=0.002, echo=False)
            load.start()
            if server.reload():
                time.sleep(AFTER_RELOAD_SECONDS)
                report = load.stop()
                found[f"reload, {mode}: requests"] = report.sent
                found[f"reload, {mode}: failed"] = report.failed
            else:
                load.stop()
    return found
