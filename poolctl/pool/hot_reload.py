"""Hot reload: applies another list of servers to a pool of this process, and restarts only the servers that differ."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping

from poolctl.config import Configuration, ServerConfig, TLSConfig, conflicts, problem_of
from poolctl.core.configuration_diff import Change, Kind, Running, changed
from poolctl.core.server_files import digests
from poolctl.errors import PoolRestartError, PoolStopError, ServerError
from poolctl.states import State

from .live_servers import Handle, living
from .loop_thread import LOCK
from .pool_members import Members
from .server import Server
from .server_lists import with_ports
from .start_stop import order_stop, start


class HotReload:
    """One reload of a pool. New servers are started if the pool `runs`.

    A server whose new configuration is invalid stays as it is; no server is removed while a problem names no server.
    """

    def __init__(self, pool: Members, configuration: Configuration, *, runs: bool) -> None:
        """Blocks on the disk: certificates and env files may have changed."""
        self._pool = pool
        self._configuration = configuration
        self._runs = runs
        self._errors: list[ServerError] = []
        self._to_start: list[Server] = []
        self._live: set[Server] = set()  # of these the running workers take the change over
        self._certificates: list[Server] = []
        self._beside: list[Handle] = []
        self._stops: set[concurrent.futures.Future[None]] = set()
        tls = configuration._tls
        self._files = {server.name: digests(_with_tls(server, tls)) for server in configuration}

    async def run(self) -> None:
        """Return when each server is as configured. Raises PoolRestartError with every failure."""
        with LOCK:
            self._change_members()
        try:
            await start(self._to_start, None, self._pool, PoolRestartError, self._live, self._beside)
        except PoolRestartError as error:
            self._errors += error.exceptions
        for server in self._certificates:
            handle = living(server)
            if handle is not None and handle.host is not None and handle.entry is not None:
                try:
                    await handle.host.core.renew_tls(handle.entry)
                except ServerError as problem:
                    self._errors.append(problem)
        for future in self._stops:
            try:
                await asyncio.shield(asyncio.wrap_future(future))
            except PoolStopError as error:
                self._errors += error.exceptions
        if self._errors:
            count = len(self._errors)
            raise PoolRestartError(f"{count} change{'s' * (count > 1)} failed", self._errors)

    def _change_members(self) -> None:
        configuration = self._configuration
        by_name: dict[str, list[Server]] = {}
        for server in self._pool.values():
            by_name.setdefault(server.name, []).append(server)
        in_use = {name: servers[0].config for name, servers in by_name.items()}
        written, self._errors = with_ports(configuration, in_use)
        written, kept = self._possible(written)
        before, after = self._pool._shared.tls, configuration._tls
        self._pool._shared.tls = after
        members: list[Server] = []
        for config in written:
            there = by_name.get(config.name, [])
            if not there:
                members.append(Server(config))
                if self._runs and not config.disabled:
                    self._to_start.append(members[-1])
                continue
            server = next((each for each in there if each.bind == config.bind), there[0])
            members.append(server)
            there.remove(server)
            running = Running(_with_tls(_in_force(server), before), files=_files(server))
            changes = changed(running, _with_tls(config, after), self._files[config.name])
            self._change(server, config, changes[0] if changes else None)
        gone = self._pool._arrange([*members, *kept])
        self._stops |= {future for each in gone if (handle := living(each)) for future in handle.stops}

    def _possible(self, written: list[ServerConfig]) -> tuple[list[ServerConfig], list[Server]]:
        """The new configurations that fit together and with the unchanged servers; and the unchanged servers."""
        while True:
            names = {server.name for server in written}
            invalid = {problem.name for problem in self._errors}
            kept = [
                server
                for server in self._pool.values()
                if server.name not in names and (server.name in invalid or "" in invalid)
            ]
            addresses = [(each.name, each.config.address) for each in kept]
            addresses += [(each.name, each.address) for each in written]
            found = {index - len(kept): finding for index, _, finding in conflicts(addresses)}
            found = {index: finding for index, finding in found.items() if index >= 0}
            if not found:
                return written, kept
            for index, finding in found.items():
                server = written[index]
                self._errors.append(problem_of(finding, name=server.name, bind=server.bind))
            written = [server for index, server in enumerate(written) if index not in found]

    def _change(self, server: Server, config: ServerConfig, change: Change | None) -> None:
        handle = living(server)
        entry = handle.entry if handle is not None else None
        is_wanted = entry is not None and (entry.wanted or entry.on_schedule)
        if change is None:
            server._put(_in_force(server))
            if handle is not None and is_wanted:
                self._beside.append(handle)
            return
        server._put(config)
        if config.disabled:
            if handle is not None and is_wanted and (future := order_stop([handle])) is not None:
                self._stops.add(future)
        elif is_wanted:
            self._to_start.append(server)
            if change.kind is Kind.UPDATE or config.every is not None:
                self._live.add(server)
            if change.kind is Kind.UPDATE and any(key.partition(".")[0] == "tls" for key in change.keys):
                self._certificates.append(server)
        elif "disabled" in change.keys:
            if self._runs:
                self._to_start.append(server)
        elif change.kind is Kind.RESTART and server.state is State.FAILED:
            self._to_start.append(server)


def _in_force(server: Server) -> ServerConfig:
    """The configuration with which the server runs; its own if it does not run."""
    handle = living(server)
    if handle is None or handle.entry is None:
        return server.config
    return handle.observed.config or server.config


def _files(server: Server) -> Mapping[str, str]:
    """Digests of the files that its workers have read."""
    handle = living(server)
    return handle.entry.observed.files if handle is not None and handle.entry is not None else {}


def _with_tls(config: ServerConfig, default: TLSConfig | None) -> ServerConfig:
    return config.but(tls=default) if config.tls is True and default is not None else config
