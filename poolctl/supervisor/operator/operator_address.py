"""The address of `[operator]`: its listener, its certificate, and who may use it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from ipaddress import ip_network

from poolctl.address import parse
from poolctl.config import OperatorTable, Tables, TLSConfig
from poolctl.errors import ServerError
from poolctl.keeper import fd_store
from poolctl.monitor.event_queue import Events
from poolctl.runners.listener_opener import in_daemon_thread

from ..active_configuration import PoolEnvironment
from ..observers.held_address import HeldAddress
from .operator_endpoint import Access, OperatorEndpoint, Scaling

# How often the files of the certificate are looked at: other programs renew them.
_RENEWAL_SECONDS = 30.0
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class OperatorAddress(HeldAddress[OperatorEndpoint]):
    """Serves the endpoint as `[operator]` says."""

    def __init__(self, environment: PoolEnvironment, events: Events, scaling: Scaling) -> None:
        super().__init__(environment.keeper, events, fd_store.OPERATOR, "operator")
        self._environment = environment
        self._recorder = events
        self._scaling = scaling
        self._table: OperatorTable | None = None
        self._read: object = None  # contents of the files of the certificate in use

    def follow(self, tables: Tables) -> None:
        """Serve as `[operator]` says from now on, or nowhere."""
        table = tables.operator
        self._table = table
        self.again_seconds = _RENEWAL_SECONDS if table is not None and table.bind and table.tls else None
        if table is None or table.bind is None:
            self.serve_at(None)
            return
        address = parse(table.bind)
        self.serve_at(address.key, int(table.mode, 8) if address.kind == "unix" else None)

    def make_server(self) -> OperatorEndpoint:
        """See HeldAddress."""
        self._read = None
        return OperatorEndpoint(self._scaling, self._recorder)

    async def configure(self, server: OperatorEndpoint) -> None:
        """See HeldAddress. An unusable token or certificate leaves the previous one in force."""
        table, env = self._table, self._environment.configuration.environment
        if table is None:
            return
        access = access_of(table, env)
        if table.tls:
            tls, mark = table.tls, None
            required = not (access.token or access.trusted)
            mark = await in_daemon_thread(lambda: (tls, required, marks_of_files(tls)))
            if mark != self._read:
                server.tls = await in_daemon_thread(lambda: context_of(tls, env, required=required))
                self._read = mark
        else:
            server.tls, self._read = None, None
        server.endpoint, server.access, server.namespace = table.endpoint, access, table.namespace


def access_of(table: OperatorTable, env: Mapping[str, str]) -> Access:
    """The clients that may use the address. Raises ServerError for a missing token."""
    token = env.get(table.token_env, "").strip() if table.token_env else ""
    if table.token_env and not token:
        raise ServerError(
            f"the environment variable {table.token_env} is not set",
            hint=f"export {table.token_env}=… before poolctl start",
        )
    return Access(
        open_to_all=parse(table.bind or "").kind == "unix",
        token=token,
        trusted=tuple(ip_network(each, strict=False) for each in table.trusted),
    )


def context_of(
    tls: TLSConfig, env: Mapping[str, str], *, required: bool, table: str = "operator"
) -> ssl.SSLContext:
    """The TLS of the address. With `ca` clients present certificates: all of them if that is `required`.

    Blocks on the disk. Raises ServerError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    # Without a password OpenSSL would ask for one on the terminal.
    password = env.get(tls.password_env, "") if tls.password_env else ""
    try:
        if tls.ciphers:
            context.set_ciphers(tls.ciphers)
        context.load_cert_chain(tls.cert, tls.key, password)
        if tls.ca:
            context.load_verify_locations(tls.ca)
            needed = required or tls.client_auth == "required"
            context.verify_mode = ssl.CERT_REQUIRED if needed else ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:
        raise ServerError(
            f"its certificate cannot be used: {error}", hint=f"check tls of [{table}]"
        ) from None
    return context


def marks_of_files(tls: TLSConfig) -> list[tuple[int, int]]:
    """Differs when one of the files has changed. Blocks on the disk."""
    found = []
    for path in filter(None, (tls.cert, tls.key, tls.ca)):
        try:
            status = os.stat(path)
        except OSError:
            found.append((0, 0))
        else:
            found.append((status.st_mtime_ns, status.st_ino))
    return found
