"""The same servers in three kinds of pool: in this process, in processes of a Python pool, and under the daemon."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from poolctl import Pool, PoolError, Server, ServerConfig
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import RealPool

Failures = dict[str, str]  # messages by server

APPS = '''
"""Applications that do as the files beside this module say, and write down what happens to them."""
import asyncio, uuid
from pathlib import Path

HERE = Path(__file__).parent

def note(line):
    with open(HERE / "history", "a") as file:
        file.write(line + "\\n")

def make(name):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            note(f"{name} starts")
            while (HERE / f"{name}.hangs").exists():
                await asyncio.sleep(0.01)
            if (HERE / f"{name}.fails").exists():
                await send({"type": "lifespan.startup.failed", "message": "no database"})
                return
            scope["state"]["instance"] = uuid.uuid4().hex
            note(f"{name} has started")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            note(f"{name} has stopped")
            await send({"type": "lifespan.shutdown.complete"})
            return
        ill = scope["path"] == "/healthz" and (HERE / f"{name}.ill").exists()
        await send({"type": "http.response.start", "status": 503 if ill else 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["state"]["instance"].encode()})
    return app

db, web = make("db"), make("web")
'''


class AnyPool(Protocol):
    """The interface of every kind of pool for tests. Methods that act return failures by server."""

    runs_programs: bool  # whether it runs servers with `command`, and jobs

    def start(self) -> Failures: ...
    def stop(self, name: str = "") -> Failures: ...
    def restart(self, name: str) -> Failures: ...
    def item(self, name: str) -> Mapping[str, Any]:
        """The server's state, health, ready and pids."""
        ...

    def end(self) -> None: ...


class Site:
    """A directory with the applications, and default values for the servers' tables."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Modules are imported once per process and shared by all its tests.
        self.module = f"apps_{uuid.uuid4().hex}"
        (directory / f"{self.module}.py").write_text(APPS)
        self.ports: dict[str, int] = {}

    def server(self, name: str, **keys: Any) -> dict[str, Any]:
        """A server's table with a free port, which `bind` may name, and the application of this name, or `app`."""
        table: dict[str, Any] = {
            "name": name,
            "app_dir": str(self.directory),
            "cwd": str(self.directory),
            **keys,
        }
        if "command" not in keys:
            table |= {"app": f"{self.module}:{keys.get('app', name)}"}
        else:
            del table["app_dir"]
        if not keys.get("job"):
            self.ports[name] = claim_port()
            table["bind"] = keys.get("bind", "127.0.0.1:{port}").format(port=self.ports[name])
        return {"restart": "no", **table}

    def instance(self, name: str) -> str:
        """The instance of the server that answers, different after a restart. Raises OSError if none answers."""
        reply = get(self.ports[name])
        assert reply.status == 200
        return reply.text

    def let(self, name: str, what: str, *, be: bool = True) -> None:
        """Set whether the application of this name hangs or fails in its startup, or is unhealthy."""
        path = self.directory / f"{name}.{what}"
        path.touch() if be else path.unlink()

    @property
    def history(self) -> list[str]:
        """The applications' records, in order."""
        path = self.directory / "history"
        return path.read_text().splitlines() if path.exists() else []


class PythonPool:
    """A `Pool` with the runner for this process, or for separate processes."""

    def __init__(self, tables: list[dict[str, Any]], runner: ProcessRunner | None) -> None:
        self._runner = runner
        self._pool = Pool(
            [ServerConfig(**_for_this_process(table, runner)) for table in tables], runner=runner
        )
        self.runs_programs = runner is not None

    def _server(self, name: str) -> Server:
        return next(server for server in self._pool.values() if server.name == name)

    def start(self) -> Failures:
        return failures_of(lambda: self._pool.start_sync(timeout=50))

    def stop(self, name: str = "") -> Failures:
        target = self._server(name) if name else self._pool
        return failures_of(lambda: target.stop_sync(timeout=50))

    def restart(self, name: str) -> Failures:
        return failures_of(lambda: self._server(name).restart_sync(timeout=50))

    def item(self, name: str) -> Mapping[str, Any]:
        server = self._server(name)
        return {
            "state": server.state.value,
            "health": server.health.value,
            "ready": server.ready,
            "pids": server.pids,
        }

    def end(self) -> None:
        self._pool.stop_sync(timeout=50)
        self._pool.join_sync()
        if self._runner is not None:
            loop_thread.run_sync(self._runner.aclose())


class DaemonPool:
    """The servers under a supervisor, used by the installed command."""

    runs_programs = True

    def __init__(self, tables: list[dict[str, Any]], real: RealPool) -> None:
        self._real = real
        real.write("pool.json", json.dumps({"server": tables}))

    def start(self) -> Failures:
        return self._act("start")

    def stop(self, name: str = "") -> Failures:
        return self._act("stop", *([name] if name else []))

    def restart(self, name: str) -> Failures:
        return self._act("restart", name)

    def item(self, name: str) -> Mapping[str, Any]:
        return self._real.items()[name]

    def end(self) -> None:
        pass  # the fixture that created `real` ends it

    def _act(self, *args: str) -> Failures:
        done = self._real.run(*args, "-o", "json")
        failures = {each["name"]: each["message"] for each in done.json["errors"]}
        assert done.code == (1 if failures else 0), done
        return failures


def failures_of(act: Callable[[], None]) -> Failures:
    """The messages, by server, of the error that the call raises."""
    try:
        act()
    except PoolError as error:
        return {each.name: each.message for each in error.exceptions}
    return {}


def in_background(act: Callable[[], Failures]) -> Callable[[], Failures]:
    """Start the call; returns a function that waits for its end and returns its failures."""
    found: list[Failures] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()

    def ended() -> Failures:
        thread.join(60)
        assert not thread.is_alive(), "the call has not returned"
        return found[0]

    return ended


def _for_this_process(table: dict[str, Any], runner: ProcessRunner | None) -> dict[str, Any]:
    return table if runner is not None else {key: value for key, value in table.items() if key != "cwd"}
