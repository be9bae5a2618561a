"""Workers as processes of this machine: listeners and forks by way of the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping

from poolctl.config.model import ServerConfig
from poolctl.errors import ServerError
from poolctl.keeper import wire
from poolctl.listeners.inherit import Inherited
from poolctl.listeners.open import close_listener, describe, open_listener
from poolctl.listeners.ports import is_free
from poolctl.listeners.unix import identity
from poolctl.logs.read import tail
from poolctl.platform import sealed_file

from .commands import Notify, argument_vector, first_connection
from .link import Link, LinkLost
from .output import Output
from .protocol import Endpoints, Exit, Placement, WorkerFailed
from .spec import Spec, tls_contents, worker_spec
from .workers import LocalWorker
from .zygotes import Zygotes

_IMPORTS_PER_CPU = 2
_KILL_SECONDS = 5.0
_LAST_OUTPUT_SECONDS = 1.0


class LocalRunner:
    """The process runner. `keeper` is connected to a keeper, whose exit reports go to `exit_reported`."""

    def __init__(
        self,
        keeper: Link,
        directory: str,
        logs_directory: str,
        *,
        inherited: Inherited | None = None,
        open_files: tuple[int, int] = (1024, 4096),
        on_dropped: Callable[[str, int], None] = lambda name, count: None,
    ) -> None:
        self.keeper = keeper
        self.zygotes = Zygotes(keeper, directory)
        self.output = Output(keeper, directory, logs_directory, on_dropped)
        self.open_files = open_files
        # What workers see instead of the pool's own environment, by server name (`restart --env`).
        self.environments: dict[str, Mapping[str, str]] = {}
        self._inherited = inherited or {}
        self._listeners: dict[str, list[socket.socket]] = {}
        self._identities: dict[str, tuple[int, int] | None] = {}
        self._workers: dict[str, LocalWorker] = {}
        self._by_pid: dict[int, LocalWorker] = {}
        # An exit may be reported before the reply to its spawn.
        self._early: dict[int, Exit] = {}
        self._importing = asyncio.Semaphore(_IMPORTS_PER_CPU * (os.cpu_count() or 1))

    # Listeners.

    async def open(self, server: ServerConfig) -> Endpoints:
        """See Runner. A command that binds by itself has no listener; its port must be free."""
        key = server.key
        if server.job or (server.command and server.binds_itself):
            if not server.job and key not in self._listeners and server.address.kind == "tcp":
                await self._check_free(server)
            return Endpoints(key, ())
        if key not in self._listeners:
            try:
                sockets = await asyncio.to_thread(open_listener, server.address, inherited=self._inherited)
            except ServerError as error:
                raise ServerError(str(error), name=server.name, bind=server.bind, hint=error.hint) from error
            self._listeners[key] = sockets
            if server.address.kind == "unix":
                self._identities[key] = identity(server.address.path)
            meta = {"server": server.name, "key": key}
            self.keeper.send(
                {"op": "put", "name": f"listener:{key}", "meta": meta}, [sock.fileno() for sock in sockets]
            )
        return Endpoints(key, tuple(self.endpoints(key)))

    async def close(self, key: str) -> None:
        """See Runner."""
        sockets = self._listeners.pop(key, [])
        if not sockets:
            return
        for sock in sockets:
            # Other processes may hold the listener a little longer: this refuses connections from now on.
            if self.is_ours(key):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)
        close_listener(sockets, self._identities.pop(key, None))
        with contextlib.suppress(LinkLost):
            await self.keeper.call({"op": "drop", "name": f"listener:{key}"})

    def is_ours(self, key: str) -> bool:
        """Whether the pool opened the listener itself (systemd's go back to systemd as they were)."""
        return not key.startswith("fd:")

    def endpoints(self, key: str) -> list[str]:
        """See Runner."""
        return [describe(sock) for sock in self._listeners.get(key, ())]

    async def _check_free(self, server: ServerConfig) -> None:
        if not is_free(server.address, server.address.port or 0):
            sockets = await asyncio.to_thread(open_listener, server.address)
            close_listener(sockets)

    # Workers.

    async def place(self, server: ServerConfig, generation: int, index: int) -> Placement:
        """See Runner. Raises ServerError or WorkerFailed when no process can be made."""
        sockets = [] if server.job or server.binds_itself else self._listeners[server.key]
        await self._importing.acquire()
        try:
            worker = await self._fork(server, generation, index, sockets)
        except BaseException:
            self._importing.release()
            raise
        for future in (worker.answered, worker.exited):
            future.add_done_callback(self._release_once(worker))
        return worker.placement

    def _release_once(self, worker: LocalWorker) -> Callable[[object], None]:
        def release(_: object) -> None:
            if not worker.imported:
                worker.imported = True
                self._importing.release()

        return release

    async def _fork(
        self, server: ServerConfig, generation: int, index: int, sockets: list[socket.socket]
    ) -> LocalWorker:
        contents = tls_contents(server)
        spec = worker_spec(
            server,
            interpreter=server.python or sys.executable,
            listeners=len(sockets),
            open_files=self.open_files,
            env_base=self.environments.get(server.name),
        )
        spec["tls_files"] = len(contents)
        name = f"{server.name}.{generation}.{index}"
        notify = self._prepare_command(server, spec) if server.command else None
        control, theirs = wire.pair()
        fds = [sealed_file("poolctl-spec", json.dumps(spec).encode()), theirs.fileno()]
        fds.append(self.output.attach(name, server))
        fds += [sock.fileno() for sock in sockets]
        fds += [sealed_file("poolctl-tls", content) for content in contents]
        interpreter = sys.executable if server.command else spec["python"]
        try:
            pid = await self.zygotes.fork(interpreter, fds)
        except BaseException:
            control.close()
            if notify is not None:
                notify.close()
            raise
        finally:
            os.close(fds[0])
            os.close(fds[2])
            for fd in fds[3 + len(sockets) :]:
                os.close(fd)
            keep_theirs = theirs.detach()
        placement = Placement(name, server.name, generation, index, f"pid {pid}", pid)
        return self._enrol(placement, server, control, keep_theirs, notify)

    def _prepare_command(self, server: ServerConfig, spec: Spec) -> Notify | None:
        spec["argv"] = argument_vector(server)
        if not server.notify:
            return None
        notify = Notify()
        spec["env"]["NOTIFY_SOCKET"] = notify.path
        return notify

    def _enrol(
        self,
        placement: Placement,
        server: ServerConfig,
        control: socket.socket,
        theirs: int,
        notify: Notify | None,
    ) -> LocalWorker:
        worker = LocalWorker(placement, server)
        if server.command:
            control.close()
        else:
            meta = {"server": server.name, "generation": placement.generation, "pid": placement.pid}
            self.keeper.send(
                {"op": "put", "name": f"worker:{placement.id}", "meta": meta}, [control.fileno(), theirs]
            )
            worker.control = Link(control, worker.heard)
        os.close(theirs)
        if notify is not None:
            notify.start(worker.answer)
            worker.exited.add_done_callback(lambda _: notify.close())
        self._workers[placement.id] = worker
        assert placement.pid is not None
        self._by_pid[placement.pid] = worker
        early = self._early.pop(placement.pid, None)
        if early is not None:
            self._ended(worker, early)
        return worker

    async def ready(self, placement: Placement) -> None:
        """See Runner. A job is ready when it has ended with 0."""
        worker = self._workers[placement.id]
        server = worker.server
        if server.job:
            exit_ = await asyncio.shield(worker.exited)
            if not exit_.ok:
                raise WorkerFailed(exit_.message, hint=f"poolctl logs {server.name}", exit=exit_)
        elif server.command and not server.notify:
            sockets = self._listeners.get(server.key, [])
            look = asyncio.ensure_future(first_connection(server, sockets))
            try:
                await asyncio.wait({look, worker.answered}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                look.cancel()
            worker.answer()
        await asyncio.shield(worker.answered)

    async def drain(self, placement: Placement) -> None:
        """See Runner."""
        worker = self._workers.get(placement.id)
        if worker is None:
            return
        if worker.control is None:
            await self._signal(placement, signal.SIGTERM)
        else:
            worker.control.send({"order": "drain"})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(worker.server.drain_timeout):
                await asyncio.shield(worker.exited)

    async def stop(self, placement: Placement, timeout_seconds: float) -> Exit:
        """See Runner."""
        worker = self._workers.get(placement.id)
        if worker is None:
            return Exit(message="has ended before")
        if worker.control is None:
            await self._signal(placement, signal.SIGTERM)
        else:
            worker.control.send({"order": "stop"})
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(worker.exited)
        except TimeoutError:
            await self._signal(placement, signal.SIGKILL, group=True)
            async with asyncio.timeout(_KILL_SECONDS):
                return await asyncio.shield(worker.exited)

    async def watch(self, placement: Placement) -> Exit:
        """See Runner. What the worker printed is in its file by then, unless a process it left behind prints on."""
        worker = self._workers.get(placement.id)
        if worker is None:
            return Exit(message="has ended before")
        exit_ = await asyncio.shield(worker.exited)
        await self.output.finished(placement.id, _LAST_OUTPUT_SECONDS)
        self._workers.pop(placement.id, None)
        return exit_

    def logs(self, name: str, lines: int) -> list[str]:
        """See Runner."""
        return [line.text for line in tail(os.path.join(self.output.logs_directory, f"{name}.log"), lines)]

    async def aclose(self) -> None:
        """See Runner."""
        await asyncio.gather(*(self.stop(worker.placement, 0) for worker in list(self._workers.values())))
        for key in list(self._listeners):
            await self.close(key)
        self.zygotes.close()
        self.output.close()

    def exit_reported(self, report: wire.Message) -> None:
        """The keeper reaped a child."""
        number = report.get("signal")
        exit_ = Exit.from_signal(number) if number is not None else Exit.from_status(int(report["status"]))
        worker = self._by_pid.pop(report["pid"], None)
        if worker is None:
            self._early[report["pid"]] = exit_
        else:
            self._ended(worker, exit_)
        self.keeper.send({"op": "heard", "sequence": report["sequence"]})

    def _ended(self, worker: LocalWorker, exit_: Exit) -> None:
        worker.ended(exit_)
        self.keeper.send({"op": "drop", "name": f"worker:{worker.placement.id}"})

    async def _signal(self, placement: Placement, number: int, *, group: bool = False) -> None:
        # The keeper sends it: only the parent knows that the pid is still this worker's.
        with contextlib.suppress(LinkLost):
            await self.keeper.call({"op": "signal", "pid": placement.pid, "signal": number, "group": group})
