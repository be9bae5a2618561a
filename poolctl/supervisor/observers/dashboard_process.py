"""The process that serves the dashboard: spawned by the keeper, told what to serve, watched, ended."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from poolctl.address import parse
from poolctl.bootstrap import command
from poolctl.control.directory import SOCKET_NAME
from poolctl.errors import ServerError
from poolctl.keeper import wire
from poolctl.runners import withheld
from poolctl.runners.link import Link, LinkLost
from poolctl.runners.local.resources.process_watchdog import ProcessWatchdog, identity, kill

if TYPE_CHECKING:
    from poolctl.config import Dashboard


TOKEN_FILE = "dashboard.token"
ENDED_FILE = "dashboard.ended"
_TOKEN_BYTES = 32


class Told(NamedTuple):
    """`bind` is canonical; `mark` changes with whatever needs another process; `url` is where a browser finds it."""

    bind: str
    settings: dict[str, Any]
    mark: str
    url: str


def settings_of(
    table: Dashboard, *, directory: str, state_directory: str, name: str, env: Mapping[str, str]
) -> Told:
    """What a process of this pool's dashboard is told. Blocks on the disk; ServerError when there is no token."""
    address = parse(table.bind)
    settings: dict[str, Any] = {
        "socket_path": os.path.join(directory, SOCKET_NAME),
        "logs_directory": os.path.join(state_directory, "logs"),
        "key": os.path.basename(directory),
        "name": name,
        "token": _token(table, state_directory, env),
        "hosts": list(table.hosts) + ([] if address.kind == "unix" else [address.host.strip("[]")]),
        "tls": None,
        "ended_path": os.path.join(state_directory, ENDED_FILE),
    }
    if table.tls:
        tls = table.tls
        # Never None: OpenSSL would ask a terminal.
        password = env.get(tls.password_env, "") if tls.password_env else ""
        settings["tls"] = {**tls.model_dump(exclude={"password_env"}), "password": password}
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Told(address.key, settings, mark, url_of(table))


def url_of(table: Dashboard) -> str:
    """Where a browser on this machine finds the page; of a Unix socket its address, for a proxy."""
    address = parse(table.bind)
    if address.kind == "unix":
        return address.key
    return f"{'https' if table.tls else 'http'}://{address.nearby.key}/"


def _token(table: Dashboard, state_directory: str, env: Mapping[str, str]) -> str:
    if table.token_env:
        token = env.get(table.token_env, "").strip()
        hint = f"export {table.token_env}=… before poolctl start"
        where = f"the environment variable {table.token_env}"
    else:
        where = table.token_file or os.path.join(state_directory, TOKEN_FILE)
        hint = f"write the token into {where}"
        if not table.token_file:
            _make(where)
        try:
            with open(where, encoding="utf-8") as file:
                token = file.read(65536).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServerError(f"its token cannot be read: {error}", hint=hint) from None
    if not token:
        raise ServerError(f"it has no token: {where} is empty", hint=hint)
    return token


def _make(path: str) -> None:
    """A token of our own, once; whoever reads it may do what the page does."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
    except FileExistsError:
        return
    except OSError as error:
        raise ServerError(f"its token cannot be written: {error}", hint="name one: token_file") from None


_UP_SECONDS = 30.0
_ENDS_SECONDS = 10.0


class DashboardProcess:
    """The one at the other end of `sock`; `known` is its identity, `mark` what it was told.

    `on_end` is called when it has ended by itself.
    """

    def __init__(
        self,
        sock: socket.socket,
        known: dict[str, Any],
        mark: str,
        on_end: Callable[[DashboardProcess], None],
    ) -> None:
        self.mark = mark
        self.known = known
        self.up = asyncio.Event()
        self.began = asyncio.get_running_loop().time()
        self._on_end = on_end
        self._watched: ProcessWatchdog | None = None
        # Soon: the first message may find the link lost, before this object is ready to report that.
        self.link = Link(sock, self._heard, self._ends)
        self._watched = ProcessWatchdog(self.link, known, "the dashboard's process")

    @classmethod
    async def start(
        cls,
        keeper: Link,
        directory: str,
        told: Told,
        mark: str,
        sockets: Sequence[socket.socket],
        on_end: Callable[[DashboardProcess], None],
    ) -> DashboardProcess:
        """A new one that serves. Raises LinkLost, TimeoutError when it does not come up: then it is ended."""
        ours, theirs = wire.pair()
        argv = command(sys.executable, "web")
        output = os.path.join(directory, "dashboard.log")
        with theirs:
            reply, _ = await keeper.call(
                {
                    "op": "spawn",
                    "argv": argv,
                    "output": output,
                    "session": True,
                    "without": withheld.present(),
                },
                [theirs.fileno()],
            )
        process = cls(ours, identity(int(reply["pid"])), mark, on_end)
        begin = {"t": "begin", "bind": told.bind, "directory": directory, "settings": told.settings}
        process.link.send(begin, [sock.fileno() for sock in sockets])
        try:
            async with asyncio.timeout(_UP_SECONDS):
                await process.up.wait()
            if process.link.sock.fileno() < 0:
                raise LinkLost(f"its process ended at its start; see {output}")
        except BaseException:
            process.end()
            raise
        return process

    def end(self) -> None:
        """Have it end, whatever it does: one that hangs does not hear it, and would hold its listener for ever."""
        self._watch_no_more()
        self.link.send({"t": "end"})
        self.link.close()
        asyncio.get_running_loop().call_later(_ENDS_SECONDS, kill, self.known)

    def _heard(self, message: wire.Message, fds: list[int]) -> None:
        if self._watched is not None:
            self._watched.received(message)
        if message.get("t") == "up":
            self.up.set()

    def _watch_no_more(self) -> None:
        if self._watched is not None:
            self._watched.close()
            self._watched = None

    def _ends(self) -> None:
        asyncio.get_running_loop().call_soon(self._ended)

    def _ended(self) -> None:
        self._watch_no_more()
        self.up.set()
        self._on_end(self)
