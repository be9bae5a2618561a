"""Plans the listeners, certificates and settings of a gateway from the configuration, and opens its sockets."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import ssl
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

from poolctl.address import overlaps, parse
from poolctl.config import Tables, TLSConfig, certificate_names, openssl_reason, read_regular_truncated
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import ServerError
from poolctl.json_form import Table, from_json, to_json
from poolctl.keeper import fd_store
from poolctl.listeners.open_listener import (
    PRIVATE,
    Identity,
    change_access,
    socket_file_identity,
)
from poolctl.monitor.event_queue import EventBus
from poolctl.platform import memory_file
from poolctl.routing.route import StreamRoute
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import Link, LinkLost, stored_entries
from poolctl.runners.socket_access import socket_access
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.takeover.state_store import StateStore

from ..haproxy.process import GATEWAY
from ..haproxy.setup import Certificate
from ..program import program_problem
from ..settings import GatewaySettings, ListenerSettings, settings_of
from ..table import GatewayConfig, GatewayListener, StreamConfig

_OPENSSL_SECONDS = 10.0
# Intervals for retrying addresses that could not be opened, and for rereading certificates.
_RETRY_SECONDS, _RENEWAL_SECONDS = 5.0, 30.0

logger = logging.getLogger("poolctl.supervisor")


class GatewayPlan(NamedTuple):
    """The listeners, streams and certificates that a gateway should have, by the listener's key, and its settings.

    The first certificate of a listener is also used for hosts without one.
    """

    settings: GatewaySettings
    listeners: Mapping[str, ListenerSettings]
    streams: Mapping[str, StreamRoute] = MappingProxyType({})
    certificates: Mapping[str, Sequence[Certificate]] = MappingProxyType({})

    def limited_to(self, open_listeners: Mapping[str, ListenerSettings]) -> GatewayPlan:
        """A copy of the plan with only open listeners.

        If the plan moves a listener to an address that is not open yet, the copy has the listener at the old address,
        with the stream or the certificates that the plan has for the new address.
        """
        listeners = {key: listener for key, listener in self.listeners.items() if key in open_listeners}
        streams, certificates = {**self.streams}, {**self.certificates}
        unopened = {listener.role: key for key, listener in self.listeners.items() if key not in listeners}
        for key, listener in open_listeners.items():
            if key not in self.listeners and (new_key := unopened.get(listener.role)) is not None:
                listeners[key] = listener
                if listener.alias:
                    streams[key] = self.streams[new_key]
                if listener.tls:
                    certificates[key] = self.certificates.get(new_key, ())
        return self._replace(listeners=listeners, streams=streams, certificates=certificates)


def plan_of(
    tables: Tables,
    streams: Iterable[StreamRoute],
    env: Mapping[str, str],
    used: Collection[Certificate] = (),
) -> GatewayPlan | None:
    """The plan of the pool's gateway; None for a pool without one. Blocks: reads certificates.

    A certificate whose files cannot be used is taken from `used`, or else ServerError is raised.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return None
    listeners = [
        ListenerSettings(
            bind=parse(table.bind).bind,
            tls=bool(table.tls),
            accept_proxy=table.accept_proxy_protocol,
            **_socket_file(table),
        )
        for table in gateway.bind
    ]
    by_bind = {stream.bind: stream for stream in streams}
    stream_tables = {parse(table.bind).bind: table for table in tables.all(StreamConfig)}
    listeners += [
        ListenerSettings(
            bind=bind,
            protocol=stream.protocol,
            alias=stream.alias,
            accept_proxy=stream.accept_proxy,
            **_socket_file(stream_tables.get(bind)),
        )
        for bind, stream in by_bind.items()
    ]
    certificates = {
        parse(table.bind).bind: [_certificate_in_use(tls, env, used) for tls in table.tls]
        for table in gateway.bind
        if not isinstance(table.tls, bool)
    }
    by_key = {listener.bind: listener for listener in listeners}
    return GatewayPlan(settings_of(gateway), by_key, by_bind, certificates)


def _socket_file(table: GatewayListener | StreamConfig | None) -> dict[str, Any]:
    """The mode and owner of the table's address if it is a Unix socket."""
    if table is None or parse(table.bind).kind != "unix":
        return {}
    return {"mode": table.mode, "owner": table.owner}


def _certificate_in_use(tls: TLSConfig, env: Mapping[str, str], used: Collection[Certificate]) -> Certificate:
    """Read the certificate; if it cannot be used, return the one in `used`. Raises ServerError if there is none."""
    previous = next((certificate for certificate in used if certificate.tls == tls), None)
    try:
        certificate = _read_certificate(tls, env)
        if previous is not None and previous.contents != certificate.contents:
            _check_certificate(certificate)
        return certificate
    except ServerError as error:
        if previous is None:
            raise
        return previous._replace(problem=error)


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


def _check_certificate(certificate: Certificate) -> None:
    """Raise ServerError if HAProxy could not start with the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert, key, *authorities = certificate.contents
    bundle = memory_file("poolctl-certificate", cert + b"\n" + key)
    try:
        context.load_cert_chain(f"/proc/self/fd/{bundle}")
        for authority in authorities:
            context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        why = openssl_reason(error)
        message = f"{certificate.tls.cert} cannot be used, so that the certificate before it still is: {why}"
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
    """The private key in this PEM text, decrypted, as HAProxy would ask for the password. Raises ServerError."""
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


class OpenListener(NamedTuple):
    """An open listener. `identity` is that of the file of a Unix socket."""

    settings: ListenerSettings
    sockets: list[socket.socket]
    identity: Identity | None


class GatewayListeners:
    """Opens and closes listeners, by key: the address in canonical form."""

    def __init__(self, keeper: Link, opener: Opener) -> None:
        self._keeper = keeper
        self._opener = opener
        self._open: dict[str, OpenListener] = {}

    @property
    def settings(self) -> dict[str, ListenerSettings]:
        """The settings of the open listeners, by key."""
        return {key: listener.settings for key, listener in self._open.items()}

    def of(self, key: str) -> list[socket.socket]:
        """The sockets of this listener, or an empty list if it is not open."""
        return self._open[key].sockets if key in self._open else []

    async def adopt(self) -> None:
        """Take over the previous supervisor's sockets from the keeper, unless they are open here."""
        async for name, _ in stored_entries(self._keeper, fd_store.GATEWAY_LISTENER):
            key = name.removeprefix(fd_store.GATEWAY_LISTENER)
            if key not in self._open:
                reply, fds = await self._keeper.call({"op": "get", "name": name})
                settings, sockets = (
                    from_json(ListenerSettings, reply["meta"]),
                    [socket.socket(fileno=fd) for fd in fds],
                )
                self._open[key] = OpenListener(settings, sockets, socket_file_identity(settings.bind))

    async def open_missing(self, wanted: Mapping[str, ListenerSettings]) -> list[ServerError]:
        """Open the listeners in `wanted` that are not open yet; returns the errors of failed attempts.

        A new port refuses connections until HAProxy listens. An outdated listener at an overlapping address stays open,
        and serves, until HAProxy is replaced. Open Unix sockets get their mode and owner.
        """
        problems: list[ServerError] = []
        for key, settings in wanted.items():
            address, listener = parse(settings.bind), self._open.get(key)
            if listener is not None and listener.settings != settings:
                self._put(key, listener._replace(settings=settings))
            try:
                allowed = PRIVATE
                if settings.mode:
                    allowed = await in_daemon_thread(partial(socket_access, settings.mode, settings.owner))
                if listener is not None:
                    change_access(address, listener.sockets, allowed)
                    continue
                outdated = [
                    sock
                    for other, beside in self._open.items()
                    if other not in wanted and overlaps(parse(other), address)
                    for sock in beside.sockets
                ]
                sockets = await self._opener.listen(address, access=allowed, beside=outdated)
            except ServerError as error:
                problems.append(error)
                continue
            self._put(key, OpenListener(settings, sockets, socket_file_identity(settings.bind)))
        return problems

    def _put(self, key: str, listener: OpenListener) -> None:
        self._open[key] = listener
        entry = {"op": "put", "name": f"{fd_store.GATEWAY_LISTENER}{key}", "meta": to_json(listener.settings)}
        self._keeper.send(entry, listener.sockets)

    async def close_others(self, wanted: Collection[str]) -> None:
        """Close all listeners that are not in `wanted`. HAProxy has closed its descriptors, or is about to."""
        for key in self._open.keys() - {*wanted}:
            listener = self._open.pop(key)
            self._opener.close(parse(key).key, listener.sockets, listener.identity)
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": f"{fd_store.GATEWAY_LISTENER}{key}"})


class GatewayPlanner:
    """Makes the gateway's plan, opens its listeners, and reads its certificates.

    The `plan` in force has only open listeners; None before the first, and for a pool without a gateway. `failures` are
    the reasons why a part of the tables is not in force.
    """

    def __init__(self, environment: SupervisorContext, store: StateStore, events: EventBus) -> None:
        self.plan: GatewayPlan | None = None
        self.failures: tuple[ServerError, ...] = ()
        self.listeners = GatewayListeners(environment.keeper, environment.opener)
        self._environment = environment
        self._store = store
        self._events = events
        self._certificates: list[Certificate] = []  # in use
        self._reported_failure = ""  # by the last event
        self._reported_addresses: tuple[str, ...] = ()  # by the last event

    @property
    def recheck_seconds(self) -> float:
        """The time after which addresses have to be tried again, or certificates read again; infinity for never."""
        if self.failures:
            return _RETRY_SECONDS
        return _RENEWAL_SECONDS if self.plan is not None and self.plan.certificates else math.inf

    async def adopt(self, *, is_serving: bool) -> None:
        """Take over what an earlier supervisor has left; `is_serving`: with a HAProxy that serves. Raises LinkLost."""
        await self.listeners.adopt()
        if is_serving:
            self._reported_addresses = tuple(self.listeners.settings)
        rows = json.loads(await self._store.read(fd_store.GATEWAY_CERTIFICATES) or b"[]")
        self._certificates = [*map(_certificate_of, rows)]

    async def apply(self, tables: Tables, streams: Sequence[StreamRoute], *, is_serving: bool) -> None:
        """Make the plan, and open its listeners. Raises ServerError if that fails and no plan is in force."""
        env, used = self._environment.configuration.environment, self._certificates
        failures: list[ServerError] = []
        try:
            plan = await in_daemon_thread(lambda: plan_of(tables, streams, env, used))
        except ServerError as error:
            if self.plan is None:
                raise
            plan, failures = self.plan, [error]
        self._use_certificates([] if plan is None else [*chain.from_iterable(plan.certificates.values())])
        if plan is None:
            self.plan, self.failures, self._reported_addresses = None, (), ()
            return
        if not is_serving:
            # Before listeners are opened, so that clients are refused instead of waiting.
            program = plan.settings.program
            if (problem := await in_daemon_thread(lambda: program_problem(program))) is not None:
                await self.listeners.close_others(())
                raise ServerError("; ".join(problem))
        failures += await self.listeners.open_missing(plan.listeners)
        failures += filter(None, (certificate.problem for certificate in self._certificates))
        self.plan, self.failures = plan.limited_to(self.listeners.settings), tuple(failures)
        failure = "; ".join(error.message for error in failures)
        if failure and failure != self._reported_failure:
            logger.error("%s: %s", GATEWAY.label, failure)
            self._events.record("pool", f"{GATEWAY.name} failed", message=failure)
        self._reported_failure = failure

    def report_addresses(self) -> None:
        """Report the addresses where a new HAProxy serves, if they have changed."""
        addresses = () if self.plan is None else tuple(self.plan.listeners)
        if addresses and addresses != self._reported_addresses:
            kind = "gateway moved" if self._reported_addresses else "gateway started"
            self._events.record("pool", kind, message=f"the gateway serves {', '.join(addresses)}")
        self._reported_addresses = addresses

    async def close_outdated(self) -> None:
        """Close the listeners that are not in the plan. HAProxy has closed its descriptors, or is about to."""
        await self.listeners.close_others(() if self.plan is None else self.plan.listeners)

    def _use_certificates(self, certificates: list[Certificate]) -> None:
        """Use these certificates, and store them, with their keys, for the next supervisor."""
        rows = [*map(_row_of, certificates)]
        if rows != [*map(_row_of, self._certificates)]:
            self._store.store_for_successor(fd_store.GATEWAY_CERTIFICATES, json.dumps(rows).encode())
        self._certificates = certificates


def _row_of(certificate: Certificate) -> Table:
    contents = [content.decode("latin-1") for content in certificate.contents]
    return {"tls": certificate.tls.to_dict(), "names": certificate.names, "contents": contents}


def _certificate_of(row: Table) -> Certificate:
    contents = [content.encode("latin-1") for content in row["contents"]]
    return Certificate(TLSConfig(**row["tls"]), tuple(row["names"]), contents)
