"""Takes over the workers of an earlier supervisor.

After its exit they are adopted, with their descriptors, from the keeper's store. Workers that continue after keeper and
supervisor have both died are orphans: they are stopped, or put into the store of a new keeper. A worker that belongs to
no configured server, or to a server with another address, is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from poolctl.address import AddressError, parse
from poolctl.config import ServerConfig
from poolctl.keeper import fd_store, pool_files, rendezvous, wire
from poolctl.keeper.reap import await_exit, await_group_end, kill_rest_of_group, signal_process
from poolctl.platform import close_promptly, copy_descriptor, peer_credentials, process_start, process_users
from poolctl.worker.tally import is_tally_page

from ..process_link import (
    Descriptor,
    HasDescriptor,
    KeeperLink,
    Link,
    Malformed,
    flag_of,
    number_of,
    sanitized_text_or_empty,
)
from ..runner_protocol import Placement, RunnerEventHandler
from ..worker_spec import hook_config, usable_user_id, user_ids, worker_digest
from .local_worker import AdoptedWorker, LocalWorker, NotifySocket, Tally
from .output_pipes import OutputPipes, entry_name
from .zygotes import Children

logger = logging.getLogger("poolctl.supervisor")

_REPORT_SECONDS = 0.2

# Adopts an entry: gets its name without the prefix, its value and its descriptors. Returns the new owners of the
# descriptors, to be recorded with the entry; an empty sequence if no entry is to be recorded.
Adopter = Callable[[str, wire.Message, list[int]], Sequence[HasDescriptor]]
_ANSWER_SECONDS = 2.0
_SILENCE = "nothing that can be read"
_LISTENER_FD = 3  # the number at which a program gets its listener (sd_listen_fds(3))


@dataclass(frozen=True, slots=True)
class AdoptionResult:
    """The processes and listeners taken over from an earlier supervisor.

    `hooks` has an item for each server whose hook is running: the name of the hook, and the placement of its process.
    `endpoints` maps the key of a server to the addresses of its open listeners.
    """

    workers: Sequence[AdoptedWorker] = ()
    hooks: Mapping[str, tuple[str, Placement]] = field(default_factory=dict)
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


async def take_over(keeper: KeeperLink, adopters: Mapping[str, Adopter]) -> list[str]:
    """Pass each entry of the keeper's store to the adopter for its kind; returns the names of all entries."""
    names: list[str] = []
    while True:
        reply, _ = await keeper.call({"op": "list", "after": names[-1] if names else ""})
        if not reply["entries"]:
            return names
        for name, meta in reply["entries"]:
            names.append(name)
            kind = next((kind for kind in adopters if name.startswith(kind)), None)
            if kind is not None:
                _, fds = await keeper.call({"op": "get", "name": name})
                if owners := adopters[kind](name.removeprefix(kind), meta, fds):
                    keeper.remember_entry(name, meta, owners)


async def systemd_sockets(keeper: Link) -> dict[str, list[int]]:
    """The sockets that systemd passed to the pool, by descriptor number ("3" is the first) and by name, if any."""
    reply, fds = await keeper.call({"op": "get", "name": fd_store.INHERITED})
    found = {str(number): [fd] for number, fd in enumerate(fds, 3)}
    for name, fd in zip(reply["meta"] or (), fds, strict=True):
        if name:
            found.setdefault(name, []).append(fd)
    return found


async def wait_briefly_for_reports(workers: Sequence[LocalWorker]) -> None:
    """Wait briefly until the workers have reported their state, which may be newer than the recorded state."""
    waiting = [
        worker.answered if worker.control is None else worker.reported
        for worker in workers
        if not (worker.exited.done() or (worker.control is None and worker.answered.done()))
    ]
    if waiting:
        await asyncio.wait(waiting, timeout=_REPORT_SECONDS)


@dataclass
class WorkerAdoption:
    """Adopts workers and running hooks, which it appends to `found` and `hooks`.

    `placed` maps ids of workers to their configurations. A worker whose id is not there gets its server's
    configuration.
    """

    keeper: KeeperLink
    children: Children
    events: Callable[[], RunnerEventHandler]
    servers: Mapping[str, ServerConfig]
    placed: Mapping[str, ServerConfig]
    found: list[LocalWorker] = field(default_factory=list)
    hooks: list[LocalWorker] = field(default_factory=list)

    def adopt_or_stop(
        self, follow: Callable[[LocalWorker], None], name: str, meta: wire.Message, fds: list[int]
    ) -> Sequence[HasDescriptor]:
        """Adopt a worker, and pass it to `follow`. If its server is unknown, stop the worker instead. Owns `fds`.

        Always returns [], so that the caller records nothing: this method itself records the entry of the worker.
        """
        if meta["server"] not in self.servers:
            self._end_unknown(name, meta, fds)
            return []
        server = self.placed.get(name, self.servers[meta["server"]])
        hook = str(meta.get("hook", ""))
        if hook:
            server = hook_config(server, hook)
        private = None
        key = str(meta.get("key", server.key))
        if server.is_proxied:
            with contextlib.suppress(AddressError):
                private = parse(key)
        elif key != server.key:
            # Its configuration was not saved. At least the address must be right, because it selects the shared pair.
            with contextlib.suppress(AddressError):
                server = server.at(parse(key))
        pid = int(meta["pid"])
        if meta["start"] is not None:
            # The keeper watches its own children already; this is for other processes.
            self.keeper.send({"op": "watch", "pid": pid, "start": meta["start"]})
        placement = Placement.of(
            server.name, int(meta["generation"]), int(meta["index"]), where=f"pid {pid}", pid=pid
        )
        if private is not None:
            placement = replace(placement, address=private.key)
        if hook:
            placement = replace(placement, id=name)
        output, protocol = str(meta["output"]), meta["protocol"]
        worker = LocalWorker(self.children, self.events, placement, server, output, protocol, private)
        worker.start, worker.place, worker.hook = meta["start"], meta["place"], hook
        sock = next((socket.socket(fileno=fd) for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode)), None)
        # Set before the worker's exit can be reported.
        worker.tally = next((Tally(fd) for fd in fds if not stat.S_ISSOCK(os.fstat(fd).st_mode)), None)
        owners: list[HasDescriptor] = [each for each in (sock, worker.tally) if each is not None]
        self.keeper.remember_entry(f"{fd_store.WORKER}{name}", meta, owners)
        worker.mark_adopted(reports=sock is not None and meta["notify"] is None)
        follow(worker)
        self._resume(worker, meta, sock)
        (self.hooks if hook else self.found).append(worker)
        return []

    def _resume(self, worker: LocalWorker, meta: wire.Message, sock: socket.socket | None) -> None:
        if meta["notify"] is not None and sock is not None:
            # If its user has been removed, only root's messages count.
            uid = usable_user_id(worker.server) or 0
            worker.listen_for_readiness(NotifySocket(sock, str(meta["notify"]), uid))
        elif sock is not None:
            worker.control_by(sock)
        worker.order_to_begin()
        if worker.control is not None:
            worker.control.send({"order": "report"})
        if meta["ready_at"] is not None and not worker.exited.done():
            worker.ready_at = float(meta["ready_at"])
            worker.mark_ready()

    def _end_unknown(self, name: str, meta: wire.Message, fds: list[int]) -> None:
        """Stop a worker whose server is unknown: its supervisor exited while it was adding this server to the pool."""
        logger.warning("pid %d belongs to no server of the pool: stopping it", meta["pid"])
        if meta["notify"] is None and fds:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as control:
                wire.send(control, {"order": "drain", "to": "none"})
        number = meta.get("stop_signal", signal.SIGTERM)
        self.keeper.send({"op": "signal", "pid": meta["pid"], "signal": number, "group": False})
        self.keeper.send({"op": "drop", "name": f"{fd_store.WORKER}{name}"})
        for fd in fds:
            wire.close_with_unread_descriptors(fd)


@dataclass
class LocalOrphan:
    """A worker whose keeper and supervisor have died.

    `uid` is the user of its process. `sock` is a connection to the worker; None if the worker runs a command, or is too
    busy to answer. The worker has sent its `listeners`, `pair` (the socket pair through which it gets connections) and
    `tally` (the memory page of its request counts). `said` is the worker's report: server, generation, state. The
    report may be forged, so callers check that `uid` is the server's user. If the report is malformed, `fault` is the
    reason, and `said` has only an empty server name.
    """

    pid: int
    uid: int
    start: int
    said: wire.Message
    sock: socket.socket | None = None
    listeners: list[int] = field(default_factory=list)
    pair: list[int] = field(default_factory=list)
    tally: list[int] = field(default_factory=list)
    fault: str = ""

    def send_order(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> bool:
        """Send the worker an order. Returns whether it was sent; False without a connection."""
        if self.sock is None:
            return False
        try:
            wire.send(self.sock, message, fds)
        except OSError:
            return False
        return True

    def ask_to_end(self) -> None:
        """Ask the worker to finish its requests and exit; a program with all processes of its group."""
        if not self.send_order({"order": "stop"}):
            number = int(self.said.get("stop_signal") or signal.SIGTERM)
            self._signal(number, group=bool(self.said.get("command")))
        else:
            self._signal(signal.SIGCONT)

    def await_end(self, timeout_seconds: float) -> bool:
        """Wait until the worker has exited, a program with its process group, or for `timeout_seconds`.

        Returns whether it has exited.
        """
        until = time.monotonic() + timeout_seconds
        if not await_exit(self.pid, self.start, timeout_seconds):
            return False
        if not self.said.get("command") or process_start(self.pid) not in (None, self.start):
            return True
        return await_group_end(self.pid, until - time.monotonic())

    def kill(self) -> None:
        """Kill the worker and its process group."""
        self._signal(signal.SIGKILL, group=True)
        kill_rest_of_group(self.pid, self.start)

    def _signal(self, number: int, *, group: bool = False) -> None:
        with contextlib.suppress(OSError):
            signal_process(self.pid, self.start, number, group=group)

    def close(self) -> None:
        """Close the descriptors; the worker continues to serve."""
        if self.sock is not None:
            wire.close_with_unread_descriptors(self.sock.detach())
        for fds in (self.listeners, self.pair, self.tally):
            while fds:
                close_promptly(fds.pop())


@dataclass
class OrphanedPipes:
    """The output pipes, by key, of a logger that outlived its pool, with the messages that describe the pipes."""

    streams: dict[str, tuple[wire.Message, int]] = field(default_factory=dict)
    loggers: list[socket.socket] = field(default_factory=list)
    spool: list[int] = field(default_factory=list)  # files of the first logger, see OutputSpool

    def detach_loggers(self, *, spool_stored: bool) -> None:
        """Tell each connected logger to stop reading the pipes, because another logger will read them.

        With `spool_stored` the other logger also gets the first logger's spool.
        """
        for sock in self.loggers:
            with contextlib.suppress(OSError):
                wire.send(sock, {"t": "taken", "spool": spool_stored and sock is self.loggers[0]}, wait=True)

    def close(self) -> None:
        """Close the connections to loggers, and the output pipes, in this process."""
        for sock in self.loggers:
            sock.close()
        for fd in [*self.spool, *(fd for _, fd in self.streams.values())]:
            os.close(fd)


def find_orphans_and_pipes(directory: str) -> tuple[list[LocalOrphan], OrphanedPipes]:
    """Return the orphans of this directory's pool, and the pipes of their output. Blocks.

    Programs, and workers whose event loop is blocked, do not answer: they are found only if a logger names them.
    """
    answers = rendezvous.connect_to_all(directory, pool_files.WORKER, _ANSWER_SECONDS)
    found = [orphan for sock, answer in answers if (orphan := _identify_or_close(sock, answer)) is not None]
    pipes = _receive_pipes_from_loggers(directory)
    return found + _orphans_without_socket(pipes, {orphan.pid for orphan in found}), pipes


def _identify_or_close(sock: socket.socket, answer: rendezvous.Answer | None) -> LocalOrphan | None:
    """The worker at the other end of the socket; None if it has exited or cannot belong to this pool."""
    message, fds = answer or ({}, [])
    # The credentials of the process that began to listen.
    pid, uid, _ = peer_credentials(sock)
    start = process_start(pid)
    # Root starts servers as other users; whether this is its server's user is checked once the server is known.
    if start is None or process_users(pid) != {uid} or os.geteuid() not in (0, uid):
        for fd in fds:
            close_promptly(fd)
        wire.close_with_unread_descriptors(sock.detach())
        return None
    try:
        if answer is None:
            raise Malformed(_SILENCE)
        said = _checked_statement(message, pid)
        return LocalOrphan(pid, uid, start, said, sock, *_split_descriptors(fds, said.pop("listeners")))
    except Malformed as error:
        for fd in fds:
            close_promptly(fd)
        return LocalOrphan(pid, uid, start, {"server": ""}, sock, fault=f"sent {error}")


def _checked_statement(message: wire.Message, pid: int) -> wire.Message:
    if message.get("event") != "orphan" or message.get("pid") != pid:
        raise Malformed("a message that is not its status")
    ready_at, protocol = message.get("ready_at"), sanitized_text_or_empty(message, "protocol")
    if ready_at is not None and (not isinstance(ready_at, float) or not 0 <= ready_at <= time.monotonic()):
        raise Malformed("an invalid time")
    if protocol.partition(" ")[0] not in ("plain", "tls"):
        raise Malformed("an unknown protocol")
    return {
        **{key: sanitized_text_or_empty(message, key) for key in ("server", "key", "output")},
        "generation": number_of(message, "generation", 1, 1_000_000_000),
        "index": number_of(message, "index", 0, 1_000_000_000),
        "listeners": number_of(message, "listeners", 0, 1_000_000_000),
        "likeness": number_of(message, "likeness", 0, 1 << 32),
        "leaving": flag_of(message, "leaving"),
        "deaf": flag_of(message, "deaf"),
        "ready_at": ready_at,
        "protocol": protocol,
    }


def _split_descriptors(fds: list[int], count: int) -> tuple[list[int], list[int], list[int]]:
    """Split `fds` into `count` listeners, the ends of a socket pair, and a page of request counts. Raises Malformed."""
    listeners, pair, tally = fds[:count], fds[count : count + 2], fds[count + 2 :]
    if (
        (len(listeners), len(pair), len(tally)) != (count, 2, 1)
        or not all(_is_socket(fd, socket.SOCK_STREAM, listens=True) for fd in listeners)
        or not all(_is_socket(fd, socket.SOCK_SEQPACKET, listens=False) for fd in pair)
        or not is_tally_page(tally[0])
    ):
        raise Malformed("descriptors that a worker does not have")
    return listeners, pair, tally


def _is_socket(fd: int, kind: int, *, listens: bool) -> bool:
    """Return whether `fd` is a listener of type `kind`; if not `listens`, a non-listening Unix socket of that type."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) if listens else (socket.AF_UNIX,)
            accepts = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return sock.family in families and sock.type == kind and bool(accepts) == listens
    except OSError:
        return False


def _receive_pipes_from_loggers(directory: str) -> OrphanedPipes:
    pipes = OrphanedPipes()
    for sock, answer in rendezvous.connect_to_all(directory, pool_files.LOGGER, _ANSWER_SECONDS):
        pipes.loggers.append(sock)
        sock.settimeout(_ANSWER_SECONDS)
        while answer is not None and answer[0].get("t") == "add" and len(answer[1]) == 1:
            pipes.streams[str(answer[0]["id"])] = answer[0], answer[1][0]
            answer = rendezvous.receive_or_none(sock)
        for fd in answer[1] if answer is not None else ():
            if sock is pipes.loggers[0]:
                pipes.spool.append(fd)
            else:
                os.close(fd)
    return pipes


def _orphans_without_socket(pipes: OrphanedPipes, known: set[int]) -> list[LocalOrphan]:
    found = []
    for key, (message, _) in pipes.streams.items():
        pid, start = int(message["pid"]), message.get("start")
        users = process_users(pid) or set()
        if start is not None and pid not in known and process_start(pid) == start and len(users) == 1:
            ready_at = start / os.sysconf("SC_CLK_TCK")
            said = {
                "server": message["name"], "command": message.get("command"), "output": key,
                "ready_at": None if message.get("hook") else ready_at, "leaving": False,
                "generation": message["generation"], "index": message["index"],
                "stop_signal": message.get("stop_signal"), "hook": message.get("hook"),
            }  # fmt: skip
            found.append(LocalOrphan(pid, users.pop(), start, said))
    return found


async def rescue_orphans_and_check_outdated(
    keeper: Link,
    output: OutputPipes,
    directory: str,
    servers: Mapping[str, ServerConfig],
    *,
    late: bool = False,
) -> dict[str, bool]:
    """Put orphans of these servers, workers whose keeper and supervisor have died, into the keeper's store.

    Returns, by server name, whether an orphan of that server has an outdated configuration; servers without orphans
    are left out. The keeper watches the stored orphans. The output pipes are stored too, unless `late` is set and no
    orphan was stored.
    """
    if not pool_files.find_listeners(directory, pool_files.WORKER, pool_files.LOGGER):
        return {}
    found, pipes = await asyncio.to_thread(find_orphans_and_pipes, directory)
    intake = _OrphanTriage(directory, keeper, output, servers, pipes)
    try:
        for orphan in found:
            await intake.store_or_stop(orphan)
        if intake.found or not late:
            for message, fd in pipes.streams.values():
                intake.store_in_keeper_once(entry_name(message), message, [fd])
            # A logger that already runs has its own.
            spool_stored = bool(pipes.spool) and not late
            if spool_stored:
                intake.store_in_keeper_once(fd_store.UNDERWAY, {}, pipes.spool)
            # The reply shows that the keeper has all entries: if this process dies now, another supervisor gets them.
            await keeper.call({"op": "list", "after": "\U0010ffff"})
            pipes.detach_loggers(spool_stored=spool_stored)
    finally:
        for orphan in found:
            orphan.close()
        pipes.close()
    return intake.found


@dataclass
class _OrphanTriage:
    """Stores orphans, workers whose pool has died, in the keeper. Sockets that several orphans have are stored once."""

    directory: str
    keeper: Link
    output: OutputPipes
    servers: Mapping[str, ServerConfig]
    pipes: OrphanedPipes
    found: dict[str, bool] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)  # entries of the store that have been handled
    outputs: set[str] = field(default_factory=set)

    async def store_or_stop(self, orphan: LocalOrphan) -> None:
        if orphan.fault:
            self._kill_faulty_if_server_user(orphan)
            return
        if orphan.said.get("hook"):
            # It has had no time limit since the pool died, and the next start of its server runs the hook again.
            logger.warning("pid %d runs a hook of a pool that has died: it is killed", orphan.pid)
            orphan.kill()
            return
        server = self.servers.get(str(orphan.said.get("server")))
        if server is None or not _may_belong_to(orphan, server):
            logger.warning("pid %d belongs to no server of the configuration: it is stopped", orphan.pid)
            orphan.ask_to_end()
            return
        if orphan.sock is None and not orphan.said["command"]:
            logger.warning("%s: pid %d still serves, but is busy: it is asked again", server.name, orphan.pid)
            return
        name = f"{fd_store.WORKER}{server.name}.{orphan.said['generation']}.{orphan.said['index']}"
        if await (self._take_program if orphan.sock is None else self._take_worker)(name, orphan, server):
            outdated = self.found.get(server.name, False)
            said, digest = orphan.said.get("likeness"), worker_digest(server)
            # A program reports no digest, and counts as equal to the configuration.
            self.found[server.name] = outdated or not (said is None or digest is None or said == digest)

    def _kill_faulty_if_server_user(self, orphan: LocalOrphan) -> None:
        """Kill an orphan that does not identify itself as a worker, if it runs as the user of one of the servers.

        An orphan that does not answer at all may be busy. It is left alone, and can be asked again later.
        """
        ours = orphan.uid in {usable_user_id(server) for server in self.servers.values()}
        killed = ours and _SILENCE not in orphan.fault
        logger.warning(
            "pid %d (uid %d), which still serves without its pool, %s%s",
            orphan.pid, orphan.uid, orphan.fault, ": it is killed" if killed else "",
        )  # fmt: skip
        if killed:
            orphan.kill()

    async def _take_worker(self, name: str, orphan: LocalOrphan, server: ServerConfig) -> bool:
        said = orphan.said
        control, theirs = wire.pair()
        with control, theirs, contextlib.ExitStack() as closing:
            fds, place = [theirs.fileno()], None
            if user_ids(server) is not None:
                bound, place = rendezvous.bind_new_socket(self.directory, pool_files.WORKER)
                fds.append(closing.enter_context(bound).fileno())
            if said["deaf"] or not self._claim_pipe(said["output"], server):
                said["output"] = self.output.new_key(server)
                read, write = os.pipe()
                closing.callback(os.close, write)
                os.set_blocking(read, False)
                order = self.output.registration_message(said["output"], server, orphan.pid)
                self.pipes.streams[said["output"]] = {**order, "start": orphan.start}, read
                fds.append(write)
            if name in self.done or not orphan.send_order({"order": "adopt"}, fds):
                orphan.send_order({"order": "drain"})
                if place is not None:
                    pool_files.unlink_quietly(place)
                return False
            self.store_in_keeper_once(
                f"{fd_store.LISTENER}{server.key}", {"server": server.name}, orphan.listeners
            )
            meta = {"server": server.name, "protocol": said["protocol"]}
            self.store_in_keeper_once(f"{fd_store.ADOPTION}{server.key}", meta, orphan.pair)
            await self._register_in_keeper(name, orphan, [control.fileno(), *orphan.tally], place)
        return True

    def _claim_pipe(self, output: str, server: ServerConfig) -> bool:
        """Claim this pipe for a worker; False if it is not a known pipe of the server, or is claimed already."""
        known = self.pipes.streams.get(output)
        if known is None or known[0].get("name") != server.name or output in self.outputs:
            return False
        self.outputs.add(output)
        return True

    async def _take_program(self, name: str, orphan: LocalOrphan, server: ServerConfig) -> bool:
        said = orphan.said
        said["protocol"] = None
        if server.job:
            # A job is ready once it has ended with success, not while it runs.
            said["ready_at"] = None
        elif server.listens and not server.binds_itself:
            try:
                with contextlib.closing(Descriptor(copy_descriptor(orphan.pid, _LISTENER_FD))) as listener:
                    fd = listener.fileno()
                    if not _is_socket(fd, socket.SOCK_STREAM, listens=True) or not _listens_at_address_of(
                        fd, server
                    ):
                        raise OSError(errno.EINVAL, "it is another socket now")
                    self.store_in_keeper_once(
                        f"{fd_store.LISTENER}{server.key}", {"server": server.name}, [fd]
                    )
            except OSError as error:
                logger.warning(
                    "%s: pid %d still serves, but its socket cannot be taken over (%s); stop it by hand",
                    server.name, orphan.pid, error.strerror,
                )  # fmt: skip
                return False
        await self._register_in_keeper(name, orphan, [])
        return True

    async def _register_in_keeper(
        self, name: str, orphan: LocalOrphan, fds: list[int], place: str | None = None
    ) -> None:
        kept = ("server", "generation", "index", "ready_at", "output", "protocol")
        meta = {key: orphan.said.get(key) for key in kept}
        meta |= {"pid": orphan.pid, "start": orphan.start, "notify": None, "place": place}
        self.store_in_keeper_once(name, meta, fds)
        await self.keeper.call({"op": "watch", "pid": orphan.pid, "start": orphan.start})

    def store_in_keeper_once(self, name: str, meta: wire.Message, fds: list[int]) -> None:
        """Put an entry into the keeper's store, unless `put` was called for an entry of this name before."""
        if name not in self.done:
            self.done.add(name)
            self.keeper.send({"op": "put", "name": name, "meta": meta}, fds)


def _may_belong_to(orphan: LocalOrphan, server: ServerConfig) -> bool:
    """Whether the orphan may belong to the server: its user, and the address of its listeners, must match."""
    return (
        orphan.uid == usable_user_id(server)
        and orphan.said.get("key", server.key) == server.key
        and all(_listens_at_address_of(fd, server) for fd in orphan.listeners)
    )


def _listens_at_address_of(fd: int, server: ServerConfig) -> bool:
    """Return whether the listener has the server's address; always True if systemd passes the server's sockets."""
    address = server.address
    with socket.socket(fileno=os.dup(fd)) as listener:
        name = listener.getsockname()
    if address.kind == "unix":
        return bool(name == address.path)
    return address.kind != "tcp" or (isinstance(name, tuple) and name[1] == address.port)
