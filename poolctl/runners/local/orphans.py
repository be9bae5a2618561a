"""Adopting the orphans of a pool whose keeper and supervisor both died: the new keeper gets what it would have held.

`survivors` finds them. What belongs to none of the configured servers, or to one with another address, is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, rendezvous, wire
from poolctl.platform import copy_descriptor
from poolctl.worker.control_socket import spec_digest

from ..link import Descriptor, Link
from ..spec import user_id, user_ids, worker_spec
from ..survivors import SILENCE, Pipes, Survivor, are_there, find, is_socket
from .output import Output

logger = logging.getLogger("poolctl.supervisor")

_LISTENER_FD = 3  # of a program (sd_listen_fds(3))


async def take_in(
    keeper: Link, output: Output, directory: str, servers: Mapping[str, ServerConfig], *, late: bool = False
) -> dict[str, bool]:
    """Put the orphans of these servers into the keeper's store; it watches them from then on.

    Returns the servers of which something was found, by their names: whether it differs from their configuration.
    `late`: the pipes of the output are taken only if there is a worker, because otherwise no successor adopts them.
    """
    if not are_there(directory):
        return {}
    found, pipes = await asyncio.to_thread(find, directory)
    intake = _Intake(directory, keeper, output, servers, pipes)
    try:
        for survivor in found:
            await intake.take(survivor)
        if intake.found or not late:
            intake.take_pipes()
            # The answer says that everything has arrived: if we die now, another supervisor finds it at the keeper.
            await keeper.call({"op": "list", "after": "\U0010ffff"})
            pipes.take()
    finally:
        for survivor in found:
            survivor.close()
        pipes.close()
    return intake.found


class _Intake:
    """Puts orphans into the keeper's store, each listener and each adoption pair once."""

    def __init__(
        self, directory: str, keeper: Link, output: Output, servers: Mapping[str, ServerConfig], pipes: Pipes
    ) -> None:
        self._output = output
        self.found: dict[str, bool] = {}
        self._keeper = keeper
        self._servers = servers
        self._pipes = pipes
        self._put: set[str] = set()
        self._outputs: set[str] = set()
        self._directory = directory

    async def take(self, survivor: Survivor) -> None:
        if survivor.fault:
            self._take_faulty(survivor)
            return
        server = self._servers.get(str(survivor.said.get("server")))
        if server is None or not _is_its(survivor, server):
            logger.warning("pid %d belongs to no server of the configuration: it is stopped", survivor.pid)
            survivor.ask_to_end()
            return
        if survivor.sock is None and not survivor.said["command"]:
            logger.warning(
                "%s: pid %d still serves, but is busy: it is asked again", server.name, survivor.pid
            )
            return
        if survivor.sock is None:
            taken = await self._take_program(survivor, server)
        else:
            taken = await self._take_worker(survivor, server)
        if taken:
            outdated = self.found.get(server.name, False)
            self.found[server.name] = outdated or not _is_as_configured(survivor, server)

    def _take_faulty(self, survivor: Survivor) -> None:
        """Kill a process of one of the servers' users that does not identify itself as a worker.

        A silent one may be busy, and is asked again.
        """
        ours = survivor.uid in {_uid(server) for server in self._servers.values()}
        killed = ours and SILENCE not in survivor.fault
        logger.warning(
            "pid %d (uid %d), which still serves without its pool, %s%s",
            survivor.pid, survivor.uid, survivor.fault, ": it is killed" if killed else "",
        )  # fmt: skip
        if killed:
            survivor.kill()

    async def _take_worker(self, survivor: Survivor, server: ServerConfig) -> bool:
        said = survivor.said
        name = f"{fd_store.WORKER}{server.name}.{said['generation']}.{said['index']}"
        control, theirs = wire.pair()
        with control, theirs, contextlib.ExitStack() as closing:
            fds, place = [theirs.fileno()], None
            if user_ids(server) is not None:
                bound, place = rendezvous.bind(self._directory, rendezvous.WORKER)
                fds.append(closing.enter_context(bound).fileno())
            if said["deaf"] or not self._is_its_pipe(said["output"], server):
                said["output"] = self._output.new_key(server)
                fds.append(self._new_pipe(said["output"], server, survivor))
                closing.callback(os.close, fds[-1])
            if name in self._put or not survivor.order({"order": "adopt"}, fds):
                survivor.order({"order": "drain"})
                if place is not None:
                    rendezvous.forget(place)
                return False
            self._put_once(f"{fd_store.LISTENER}{server.key}", {"server": server.name}, survivor.listeners)
            meta = {"server": server.name, "protocol": said["protocol"]}
            self._put_once(f"{fd_store.ADOPTION}{server.key}", meta, survivor.pair)
            await self._put_worker(name, survivor, [control.fileno(), *survivor.tally], place)
        return True

    def _is_its_pipe(self, output: str, server: ServerConfig) -> bool:
        """Whether the logger knows this pipe as the server's, and no other worker writes to it."""
        known = self._pipes.streams.get(output)
        if known is None or known[0].get("name") != server.name or output in self._outputs:
            return False
        self._outputs.add(output)
        return True

    async def _take_program(self, survivor: Survivor, server: ServerConfig) -> bool:
        index = sum(name.startswith(f"{fd_store.WORKER}{server.name}.") for name in self._put)
        survivor.said.update(generation=1, index=index, protocol=None)
        if server.job:
            # A job is ready once it has ended with success, not while it runs.
            survivor.said["ready_at"] = None
        if not server.job and not server.binds_itself:
            try:
                with contextlib.closing(Descriptor(copy_descriptor(survivor.pid, _LISTENER_FD))) as listener:
                    fd = listener.fileno()
                    if not is_socket(fd, socket.SOCK_STREAM, listens=True) or not _is_at(fd, server):
                        raise OSError(errno.EINVAL, "it is another socket now")
                    self._put_once(f"{fd_store.LISTENER}{server.key}", {"server": server.name}, [fd])
            except OSError as error:
                logger.warning(
                    "%s: pid %d still serves, but its socket cannot be taken over (%s); stop it by hand",
                    server.name, survivor.pid, error.strerror,
                )  # fmt: skip
                return False
        await self._put_worker(f"{fd_store.WORKER}{server.name}.1.{index}", survivor, [])
        return True

    async def _put_worker(
        self, name: str, survivor: Survivor, fds: list[int], place: str | None = None
    ) -> None:
        said = survivor.said
        meta = {
            key: said.get(key) for key in ("server", "generation", "index", "ready_at", "output", "protocol")
        }
        meta |= {"pid": survivor.pid, "start": survivor.start, "notify": None, "place": place}
        self._put_once(name, meta, fds)
        await self._keeper.call({"op": "watch", "pid": survivor.pid, "start": survivor.start})

    def _put_once(self, name: str, meta: Any, fds: list[int]) -> None:
        if name not in self._put:
            self._put.add(name)
            self._keeper.send({"op": "put", "name": name, "meta": meta}, fds)

    def _new_pipe(self, key: str, server: ServerConfig, survivor: Survivor) -> int:
        """The write end of another pipe, for an orphan whose logger was killed too."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        order = self._output.order(key, server, survivor.pid)
        self._pipes.streams[key] = {**order, "start": survivor.start}, read
        return write

    def take_pipes(self) -> None:
        for key, (message, fd) in self._pipes.streams.items():
            self._put_once(f"{fd_store.OUTPUT}{key}", message, [fd])


def _is_as_configured(survivor: Survivor, server: ServerConfig) -> bool:
    """Whether a worker started now would be like it; assumed where that cannot be known."""
    said = survivor.said.get("likeness")
    if said is None:
        return True
    try:
        spec = worker_spec(server, interpreter="", listeners=0, tls_files=0, open_files=(0, 0))
    except ServerError:
        return True
    return bool(said == spec_digest(spec))


def _is_its(survivor: Survivor, server: ServerConfig) -> bool:
    """Whether this process may serve for the server: its user and its address are the server's."""
    return (
        survivor.uid == _uid(server)
        and survivor.said.get("key", server.key) == server.key
        and all(_is_at(fd, server) for fd in survivor.listeners)
    )


def _uid(server: ServerConfig) -> int | None:
    """The user that its processes run as; None when there is no such user."""
    try:
        return user_id(server)
    except ServerError:
        return None


def _is_at(fd: int, server: ServerConfig) -> bool:
    """Whether the listener has the address of the server; a socket that systemd has passed may have any."""
    address = server.address
    with socket.socket(fileno=os.dup(fd)) as listener:
        name = listener.getsockname()
    if address.kind == "unix":
        return bool(name == address.path)
    return address.kind != "tcp" or (isinstance(name, tuple) and name[1] == address.port)
