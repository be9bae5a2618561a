"""The address of `[registration]`: its listener, its certificate, and its clients."""

from __future__ import annotations

from collections.abc import Mapping

from poolctl.address import parse
from poolctl.config import RegistrationTable, Tables
from poolctl.errors import ServerError
from poolctl.keeper import fd_store
from poolctl.monitor.event_queue import Events
from poolctl.runners.listener_opener import in_daemon_thread

from ..active_configuration import PoolEnvironment
from ..observers.held_address import HeldAddress
from ..operator.operator_address import context_of, marks_of_files
from .registration_endpoint import Client, RegistrationEndpoint, Services

# How often the files of the certificate are looked at: other programs renew them.
_RENEWAL_SECONDS = 30.0


class RegistrationAddress(HeldAddress[RegistrationEndpoint]):
    """Serves registrations as `[registration]` says."""

    def __init__(self, environment: PoolEnvironment, events: Events, services: Services) -> None:
        super().__init__(environment.keeper, events, fd_store.REGISTRATION_ADDRESS, "registration")
        self._environment = environment
        self._recorder = events
        self._services = services
        self._table: RegistrationTable | None = None
        self._read: object = None  # contents of the files of the certificate in use

    def follow(self, tables: Tables) -> None:
        """Serve as `[registration]` says from now on, or nowhere."""
        table = self._table = tables.registration if tables.gateway is not None else None
        self.again_seconds = _RENEWAL_SECONDS if table is not None and table.tls else None
        if table is None:
            self.serve_at(None)
            return
        address = parse(table.bind)
        self.serve_at(address.key, int(table.mode, 8) if address.kind == "unix" else None)

    def make_server(self) -> RegistrationEndpoint:
        """See HeldAddress."""
        self._read = None
        return RegistrationEndpoint(self._services, self._recorder)

    async def configure(self, server: RegistrationEndpoint) -> None:
        """See HeldAddress. An unusable token or certificate leaves the previous one in force."""
        table, env = self._table, self._environment.configuration.environment
        if table is None:
            return
        clients = clients_of(table, env)
        if table.tls:
            tls = table.tls
            mark = await in_daemon_thread(lambda: (tls, marks_of_files(tls)))
            if mark != self._read:
                server.tls = await in_daemon_thread(
                    lambda: context_of(tls, env, required=True, table="registration")
                )
                self._read = mark
        else:
            server.tls, self._read = None, None
        server.clients = clients


def clients_of(table: RegistrationTable, env: Mapping[str, str]) -> tuple[Client, ...]:
    """The clients with their tokens. Raises ServerError for a token that is not there."""
    found = []
    for each in table.client:
        token = env.get(each.token_env, "").strip()
        if not token:
            message = f"the environment variable {each.token_env} is not set"
            raise ServerError(message, hint=f"export {each.token_env}=… before poolctl start")
        found.append(Client(each.label, token, each.routes, each.allow))
    return tuple(found)
