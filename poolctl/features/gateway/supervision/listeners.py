"""Plans the listeners, certificates and settings of a gateway from the configuration, and opens its sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from poolctl.address import overlaps, parse
from poolctl.config import Tables, TLSConfig, certificate_names, openssl_reason, read_regular_truncated
from poolctl.errors import ServerError
from poolctl.json_form import Table, from_json, to_json
from poolctl.keeper import fd_store
from poolctl.listeners.open_listener import (
    PRIVATE,
    Identity,
    SocketAccess,
    change_access,
    socket_file_identity,
)
from poolctl.platform import memory_file
from poolctl.routing.route import StreamRoute
from poolctl.runners.listener_opener import Opener, in_daemon_thread
from poolctl.runners.process_link import Link, LinkLost, stored_entries
from poolctl.runners.socket_access import socket_access

from ..haproxy.setup import Certificate
from ..settings import HTTP, GatewaySettings, ListenerSettings, settings_of
from ..table import GatewayConfig, GatewayListener, StreamConfig

_OPENSSL_SECONDS = 10.0


def certificates_to_json(certificates: Iterable[Certificate]) -> list[Table]:
    """The certificates for the next supervisor. Contains keys."""
    return [
        {
            "tls": certificate.tls.to_dict(),
            "names": certificate.names,
            "contents": [content.decode("latin-1") for content in certificate.contents],
        }
        for certificate in certificates
    ]


def certificates_from_json(rows: Iterable[Table]) -> list[Certificate]:
    """The certificates that an earlier supervisor has used, which `plan_of` takes as `known`."""
    return [
        Certificate(
            TLSConfig(**row["tls"]),
            tuple(row["names"]),
            [each.encode("latin-1") for each in row["contents"]],
        )
        for row in rows
    ]


class GatewayPlan(NamedTuple):
    """The listeners, certificates and settings that a gateway should have.

    `listeners` is by key, and so are the routes of stream listeners and the certificates; the first certificate of a
    listener is also used for all hosts that none names.
    """

    settings: GatewaySettings
    listeners: Mapping[str, ListenerSettings]
    streams: Mapping[str, StreamRoute] = MappingProxyType({})
    certificates: Mapping[str, Sequence[Certificate]] = MappingProxyType({})

    @property
    def all_certificates(self) -> list[Certificate]:
        """The certificates of all listeners."""
        return [each for found in self.certificates.values() for each in found]

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
        certificates = {
            key: self.certificates.get(missing[each.role], ()) for key, each in kept.items() if each.tls
        }
        return self._replace(
            listeners={
                **{key: each for key, each in self.listeners.items() if key in open_listeners},
                **kept,
            },
            streams={**self.streams, **streams},
            certificates={**self.certificates, **certificates},
        )


def plan_of(
    tables: Tables,
    streams: Iterable[StreamRoute],
    env: Mapping[str, str],
    known: Collection[Certificate] = (),
) -> GatewayPlan | None:
    """Return the plan of the pool's gateway, or None if the pool has no gateway.

    A certificate whose files cannot be used is taken from those that are `known`. Blocks, as it reads certificates;
    raises ServerError if one that is not known cannot be read.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return None
    listeners = {}
    of_streams = {parse(table.bind).bind: table for table in tables.all(StreamConfig)}
    for each in gateway.bind:
        made = ListenerSettings(
            bind=parse(each.bind).bind,
            protocol=HTTP,
            tls=bool(each.tls),
            accept_proxy=each.accept_proxy_protocol,
            **_socket_file(each),
        )
        listeners[made.bind] = made
    routes = {}
    for stream in streams:
        made = ListenerSettings(
            bind=stream.bind,
            protocol=stream.protocol,
            alias=stream.alias,
            accept_proxy=stream.accept_proxy,
            **_socket_file(of_streams.get(stream.bind)),
        )
        listeners[made.bind] = made
        routes[made.bind] = stream
    certificates = {
        parse(each.bind).bind: [_certificate_in_use(tls, env, known) for tls in each.tls]
        for each in gateway.bind
        if not isinstance(each.tls, bool)
    }
    return GatewayPlan(settings_of(gateway), listeners, routes, certificates)


def _socket_file(table: GatewayListener | StreamConfig | None) -> dict[str, Any]:
    """The mode and the owner of the table's address if that is a Unix socket."""
    if table is None or parse(table.bind).kind != "unix":
        return {}
    return {"mode": table.mode, "owner": table.owner}


def _certificate_in_use(
    tls: TLSConfig, env: Mapping[str, str], known: Collection[Certificate]
) -> Certificate:
    """The certificate in these files; if it cannot be used, the known one. Raises ServerError if there is none."""
    used = next((each for each in known if each.tls == tls), None)
    try:
        found = _read_certificate(tls, env)
        if used is not None and used.contents != found.contents:
            _check_certificate(found)
        return found
    except ServerError as error:
        if used is None:
            raise
        return used._replace(problem=error)


def _read_certificate(tls: TLSConfig, env: Mapping[str, str]) -> Certificate:
    contents = []
    for path in filter(None, (tls.cert, tls.key or tls.cert, tls.ca)):
        try:
            contents.append(read_regular_truncated(path))
        except OSError as error:
            message = f"cannot read {path}: {error.strerror or error}"
            raise ServerError(message, hint="check `tls` of [gateway]") from error
    if b"ENCRYPTED" in contents[1]:
        contents[1] = _without_password(contents[1], tls.key or tls.cert, env.get(tls.password_env or "", ""))
        contents[0] = _without_keys(contents[0])
    return Certificate(tls, tuple(certificate_names(contents[0].decode("ascii", "replace"))), contents)


def _check_certificate(found: Certificate) -> None:
    """Raise ServerError if HAProxy could not use the certificate: then it would not start again, or not change."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert, key, *authorities = found.contents
    bundle = memory_file("poolctl-certificate", cert + b"\n" + key)
    try:
        context.load_cert_chain(f"/proc/self/fd/{bundle}")
        for authority in authorities:
            context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        why = openssl_reason(error)
        message = f"{found.tls.cert} cannot be used, so that the certificate before it still is: {why}"
        raise ServerError(message, hint="check `tls` of [gateway]") from error
    finally:
        os.close(bundle)


def _without_keys(pem: bytes) -> bytes:
    kept, is_key = [], False
    for line in pem.splitlines(keepends=True):
        is_key = is_key or (line.startswith(b"-----BEGIN ") and b"PRIVATE KEY-----" in line)
        if not is_key:
            kept.append(line)
        if line.startswith(b"-----END "):
            is_key = False
    return b"".join(kept)


def _without_password(key: bytes, path: str, password: str) -> bytes:
    """The private key in this PEM text, decrypted: HAProxy would ask the terminal for the password.

    Raises ServerError.
    """
    try:
        done = subprocess.run(
            ["openssl", "pkey", "-passin", "env:PASSWORD"],
            input=key,
            env={**os.environ, "PASSWORD": password},
            capture_output=True,
            timeout=_OPENSSL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"cannot read {path}: {error}", hint="check `tls` of [gateway]") from error
    if done.returncode:
        raise ServerError(
            f"cannot read {path}: the password does not open the key", hint="check `tls` of [gateway]"
        )
    return done.stdout


class GatewayListeners:
    """Opens and closes listeners. `settings` has the settings of the open ones by their keys (see ListenerSettings)."""

    def __init__(self, keeper: Link, opener: Opener) -> None:
        self._keeper = keeper
        self._opener = opener
        self.settings: dict[str, ListenerSettings] = {}
        self._open: dict[str, list[socket.socket]] = {}
        self._identities: dict[str, Identity | None] = {}

    def of(self, key: str) -> list[socket.socket]:
        """The sockets of this listener, or an empty list if it is not open."""
        return self._open.get(key, [])

    async def adopt(self) -> None:
        """Take over the sockets that the previous supervisor has left with the keeper, unless they are open here."""
        async for name, _ in stored_entries(self._keeper, fd_store.GATEWAY_LISTENER):
            key = name.removeprefix(fd_store.GATEWAY_LISTENER)
            if key not in self._open:
                reply, fds = await self._keeper.call({"op": "get", "name": name})
                self.settings[key] = from_json(ListenerSettings, reply["meta"])
                self._open[key] = [socket.socket(fileno=fd) for fd in fds]
                self._identities[key] = socket_file_identity(self.settings[key].bind)

    async def open_missing(self, wanted: Mapping[str, ListenerSettings]) -> list[ServerError]:
        """Open the listeners in `wanted` that are not open yet; returns the errors of those that could not be opened.

        A port that is not open yet refuses connections until HAProxy listens. An outdated listener at an overlapping
        address stays open, and serves, until HAProxy is replaced. Unix sockets that are open get their mode and owner.
        """
        problems: list[ServerError] = []
        for key, listener in wanted.items():
            is_open = key in self._open
            if is_open and self.settings[key] != listener:
                self._store_listener_in_keeper(key, listener)
            try:
                allowed = await _access_of(listener)
                if is_open:
                    change_access(parse(listener.bind), self._open[key], allowed)
            except ServerError as error:
                problems.append(error)
                continue
            if is_open:
                continue
            address = parse(listener.bind)
            outdated = [
                sock
                for other, sockets in self._open.items()
                if other not in wanted and overlaps(parse(other), address)
                for sock in sockets
            ]
            try:
                self._open[key] = await self._opener.listen(address, access=allowed, beside=outdated)
            except ServerError as error:
                problems.append(error)
                continue
            self._identities[key] = socket_file_identity(listener.bind)
            self._store_listener_in_keeper(key, listener)
        return problems

    def _store_listener_in_keeper(self, key: str, listener: ListenerSettings) -> None:
        self.settings[key] = listener
        entry = f"{fd_store.GATEWAY_LISTENER}{key}"
        self._keeper.send({"op": "put", "name": entry, "meta": to_json(listener)}, self._open[key])

    async def close_others(self, wanted: Collection[str]) -> None:
        """Close all listeners that are not in `wanted`. HAProxy has closed its own, or is about to."""
        for key in self._open.keys() - {*wanted}:
            del self.settings[key]
            sockets = self._open.pop(key)
            self._opener.close(parse(key).key, sockets, self._identities.pop(key))
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": f"{fd_store.GATEWAY_LISTENER}{key}"})


async def _access_of(listener: ListenerSettings) -> SocketAccess:
    if not listener.mode:
        return PRIVATE
    return await in_daemon_thread(lambda: socket_access(listener.mode, listener.owner))
