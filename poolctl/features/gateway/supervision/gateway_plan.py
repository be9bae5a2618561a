"""Plans the listeners, certificates and settings of a gateway from the configuration, and opens its sockets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from poolctl.address import overlaps, parse
from poolctl.config import Tables, certificate_names, read_regular_truncated
from poolctl.control.pool_paths import GATEWAY_ACCESS_LOG
from poolctl.errors import ServerError
from poolctl.json_form import Table, from_json, to_json
from poolctl.keeper import fd_store
from poolctl.listeners.open_listener import (
    PRIVATE,
    Identity,
    SocketAccess,
    change_access,
    close_listener,
    refuse_new_connections,
    socket_file_identity,
)
from poolctl.routing.route import StreamRoute
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import Link, LinkLost
from poolctl.runners.socket_access import socket_access

from ..engines import find_external_engine
from ..process.settings import HTTP, UDP, GatewaySettings, ListenerSettings
from ..table import GatewayConfig, GatewayListener, StreamConfig


class Certificate(NamedTuple):
    """A certificate of a listener: its settings, the contents of its files when read, and a digest of both.

    `names` are its host names. The first certificate of a listener is also used for all other hosts.
    """

    bind: str
    names: tuple[str, ...]
    settings: Table
    contents: tuple[bytes, ...]
    digest: str


class GatewayPlan(NamedTuple):
    """The listeners, certificates and settings that a gateway should have.

    `listeners` is by key. `streams` maps the keys of stream listeners to their routes. `access` says who may connect to
    the listeners that are Unix sockets.
    """

    settings: GatewaySettings
    listeners: Mapping[str, ListenerSettings]
    streams: Mapping[str, StreamRoute]
    certificates: tuple[Certificate, ...]
    access: Mapping[str, SocketAccess] = MappingProxyType({})

    @property
    def certificate_names_by_listener(self) -> dict[str, list[tuple[str, ...]]]:
        """For each listener's key, the listener's certificates in order, each as a tuple of its host names."""
        found: dict[str, list[tuple[str, ...]]] = {}
        for each in self.certificates:
            found.setdefault(each.bind, []).append(each.names)
        return found

    def limited_to(self, open_listeners: Mapping[str, ListenerSettings]) -> GatewayPlan:
        """Return a copy of the plan that has only open listeners.

        If the plan moves a listener to an address that is not open yet, the copy has the listener at the old address,
        with the stream or the certificates that the plan has for the new address.
        """
        missing = {each.role: key for key, each in self.listeners.items() if key not in open_listeners}
        kept = {
            key: each
            for key, each in open_listeners.items()
            if key not in self.listeners and each.role in missing
        }
        streams = {key: self.streams[missing[each.role]] for key, each in kept.items() if each.alias}
        certificates = [
            certificate._replace(bind=key)
            for key, each in kept.items()
            for certificate in self.certificates
            if each.tls and certificate.bind == missing[each.role]
        ]
        return self._replace(
            listeners={
                **{key: each for key, each in self.listeners.items() if key in open_listeners},
                **kept,
            },
            streams={**self.streams, **streams},
            certificates=(*self.certificates, *certificates),
        )


def plan_of(
    tables: Tables,
    streams: Iterable[StreamRoute],
    directory: str,
    state_directory: str,
    env: Mapping[str, str],
    parts: dict[str, Table],
) -> GatewayPlan | None:
    """Return the plan of the pool's gateway, or None if the pool has no gateway.

    `parts` has, by package, the settings of the features' parts in the gateway's process. Reads certificates, so it
    blocks; raises ServerError if a certificate cannot be read.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return None
    listeners = {}
    with_address: list[GatewayListener | StreamConfig] = [*gateway.bind, *tables.all(StreamConfig)]
    access = {
        address.key: socket_access(table.mode, table.owner)
        for table in with_address
        if (address := parse(table.bind)).kind == "unix"
    }
    for each in gateway.bind:
        address = parse(each.bind)
        made = ListenerSettings(
            bind=address.key,
            protocol=HTTP,
            tls=bool(each.tls),
            dual=address.dual,
            accept_proxy=each.accept_proxy_protocol,
        )
        listeners[made.key] = made
    routes = {}
    dual = {address.key for each in tables.all(StreamConfig) if (address := parse(each.bind)).dual}
    for stream in streams:
        made = ListenerSettings(
            bind=stream.bind,
            protocol=stream.protocol,
            alias=stream.alias,
            dual=stream.bind in dual,
            accept_proxy=stream.accept_proxy,
        )
        listeners[made.key] = made
        routes[made.key] = stream
    return GatewayPlan(
        replace(settings_of(gateway, directory, state_directory), parts=parts),
        listeners,
        routes,
        tuple(_read_certificates(gateway, env)),
        access,
    )


def settings_of(gateway: Any, directory: str = "", state_directory: str = "") -> GatewaySettings:
    """Return the settings of the gateway's process from [gateway]; `parts`, the settings of features, is empty."""
    engine = find_external_engine(gateway.engine)
    return GatewaySettings(
        directory=directory,
        header_for_host=gateway.header_for_host,
        traffic_re_enable_seconds=gateway.traffic_re_enable,
        trusted_proxies=tuple(map(str, gateway.trusted_proxies)),
        drain_seconds=gateway.drain_timeout,
        head_seconds=gateway.head_timeout,
        keep_alive_seconds=gateway.keep_alive,
        max_head_bytes=gateway.max_head_size,
        max_connections=gateway.max_connections or 0,
        engine=gateway.engine,
        program=engine.program_path(gateway.program) if engine else "",
        threads=gateway.threads,
        http2=gateway.http2 is not False,
        access_log=os.path.join(state_directory, GATEWAY_ACCESS_LOG) if gateway.access_log else "",
        access_log_as_json=gateway.access_log == "json",
    )


def _read_certificates(gateway: Any, env: Mapping[str, str]) -> Iterable[Certificate]:
    for listener in gateway.bind:
        if isinstance(listener.tls, bool):
            continue
        for tls in listener.tls:
            contents = []
            for path in filter(None, (tls.cert, tls.key or tls.cert, tls.ca)):
                try:
                    contents.append(read_regular_truncated(path))
                except OSError as error:
                    message = f"cannot read {path}: {error.strerror or error}"
                    raise ServerError(message, hint="check `tls` of [gateway]") from error
            # Never None: OpenSSL would prompt on a terminal.
            password = env.get(tls.password_env, "") if tls.password_env else ""
            if password and find_external_engine(gateway.engine):
                plain = _decrypted(tls.key or tls.cert, contents[1], password)
                contents[:2], password = [_without_keys(contents[0]), plain], ""
            settings: Table = {
                "password": password,
                "client_auth": tls.client_auth,
                "min_version": tls.min_version,
                "ciphers": tls.ciphers,
            }
            digest = hashlib.sha256(repr((settings, contents)).encode()).hexdigest()
            names = tuple(certificate_names(contents[0].decode("ascii", "replace")))
            yield Certificate(parse(listener.bind).key, names, settings, tuple(contents), digest)


def _without_keys(pem: bytes) -> bytes:
    kept, is_key = [], False
    for line in pem.splitlines(keepends=True):
        is_key = is_key or (line.startswith(b"-----BEGIN ") and b"PRIVATE KEY-----" in line)
        if not is_key:
            kept.append(line)
        if line.startswith(b"-----END "):
            is_key = False
    return b"".join(kept)


def _decrypted(path: str, key: bytes, password: str) -> bytes:
    """The key of the file at `path`, as PEM without a password: a program in the background cannot ask for one."""
    command, env = ["openssl", "pkey", "-passin", "env:PASSWORD"], {**os.environ, "PASSWORD": password}
    try:
        return subprocess.run(command, input=key, env=env, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"cannot decrypt the key {path}: {error}"
        raise ServerError(
            message, hint="check `password_env` of `tls`; openssl has to be installed"
        ) from error


class GatewayListeners:
    """Opens and closes listeners. `settings` has the settings of the open ones by their keys (see ListenerSettings)."""

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self._opener = Opener()
        self.settings: dict[str, ListenerSettings] = {}
        self._open: dict[str, list[socket.socket]] = {}
        self._identities: dict[str, Identity | None] = {}

    def of(self, key: str) -> list[socket.socket]:
        """The sockets of this listener, or an empty list if it is not open."""
        return self._open.get(key, [])

    async def adopt(self) -> None:
        """Take over the sockets that the previous supervisor has left with the keeper, unless they are open here."""
        after = fd_store.GATEWAY_LISTENER
        while True:
            reply, _ = await self._keeper.call({"op": "list", "after": after})
            names = [name for name, _ in reply["entries"] if name.startswith(fd_store.GATEWAY_LISTENER)]
            for name in names:
                key = name.removeprefix(fd_store.GATEWAY_LISTENER)
                if key in self._open:
                    continue
                reply, fds = await self._keeper.call({"op": "get", "name": name})
                self.settings[key] = from_json(ListenerSettings, reply["meta"])
                self._open[key] = [socket.socket(fileno=fd) for fd in fds]
                self._identities[key] = socket_file_identity(self.settings[key].bind)
            if not names:
                return
            after = names[-1]

    async def open_missing(
        self,
        wanted: Mapping[str, ListenerSettings],
        access: Mapping[str, SocketAccess] = MappingProxyType({}),
    ) -> list[ServerError]:
        """Open the listeners in `wanted` that are not open yet; returns the errors of those that could not be opened.

        An outdated listener that occupies the address is closed first, and is reopened after an error. `access` says,
        by key, who may connect to Unix sockets, including those that are open.
        """
        problems: list[ServerError] = []
        for key, listener in wanted.items():
            if key in self._open and self.settings[key].dual == listener.dual:
                if self.settings[key] != listener:
                    self._store_listener_in_keeper(key, listener)
                try:
                    change_access(parse(listener.bind), self._open[key], access.get(key, PRIVATE))
                except ServerError as error:
                    problems.append(error)
                continue
            # A listener on a wider or narrower address would still hold the port.
            outdated = [
                each
                for each, other in self.settings.items()
                if (each not in wanted or each == key) and _is_in_the_way(other, listener)
            ]
            previous = [self.settings[each] for each in outdated]
            await self._close(outdated)
            try:
                await self._open_one(key, listener, access)
            except ServerError as error:
                problems.append(error)
                for each in previous:
                    with contextlib.suppress(ServerError):
                        await self._open_one(each.key, each, access)
        return problems

    async def _open_one(
        self, key: str, listener: ListenerSettings, access: Mapping[str, SocketAccess]
    ) -> None:
        address = parse(listener.bind)
        if listener.dual:
            address = parse(f":{address.port}")
        if listener.protocol == UDP:
            sockets = await self._opener.open_datagram_sockets(address)
        else:
            sockets = await self._opener.listen(address, access=access.get(key, PRIVATE))
        self._open[key] = sockets
        self._identities[key] = socket_file_identity(listener.bind)
        self._store_listener_in_keeper(key, listener)

    def _store_listener_in_keeper(self, key: str, listener: ListenerSettings) -> None:
        self.settings[key] = listener
        name = f"{fd_store.GATEWAY_LISTENER}{key}"
        self._keeper.send({"op": "put", "name": name, "meta": to_json(listener)}, self._open[key])

    async def close_others(self, wanted: Collection[str]) -> None:
        """Close all listeners that are not in `wanted`; connections to them are refused from now on."""
        await self._close([key for key in self._open if key not in wanted])

    async def _close(self, keys: Iterable[str]) -> None:
        for key in keys:
            del self.settings[key]
            sockets = self._open.pop(key)
            refuse_new_connections(sockets)  # the gateway's process has duplicates
            close_listener(sockets, self._identities.pop(key))
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": f"{fd_store.GATEWAY_LISTENER}{key}"})

    def mark(self, key: str) -> tuple[int, ...]:
        """The inodes of the listener's sockets, which distinguish them from earlier sockets with the same address."""
        return tuple(os.fstat(sock.fileno()).st_ino for sock in self.of(key))


def _is_in_the_way(other: ListenerSettings, listener: ListenerSettings) -> bool:
    """Whether `other` has to be closed before this listener can be opened."""
    return (other.protocol == UDP) == (listener.protocol == UDP) and overlaps(
        parse(other.bind), parse(listener.bind)
    )
