"""The address of `[operator]`: its listener, its certificate, and who may use it."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

from poolctl.address import parse
from poolctl.config import OperatorTable, Tables
from poolctl.errors import ServerError
from poolctl.keeper import fd_store
from poolctl.monitor.event_queue import Events

from ..active_configuration import PoolEnvironment
from ..observers.held_address import HeldAddress
from .operator_endpoint import Access, OperatorEndpoint, Scaling


class OperatorAddress(HeldAddress[OperatorEndpoint]):
    """Serves the endpoint as `[operator]` says."""

    def __init__(self, environment: PoolEnvironment, events: Events, scaling: Scaling) -> None:
        super().__init__(environment.keeper, events, fd_store.OPERATOR, "operator")
        self._environment = environment
        self._recorder = events
        self._scaling = scaling
        self._table: OperatorTable | None = None

    def follow(self, tables: Tables) -> None:
        """Serve as `[operator]` says from now on, or nowhere."""
        table = tables.operator
        self._table = table
        if table is None or table.bind is None:
            self.serve_at(None)
            return
        address = parse(table.bind)
        self.serve_at(address.key, int(table.mode, 8) if address.kind == "unix" else None)

    def make_server(self) -> OperatorEndpoint:
        """See HeldAddress."""
        return OperatorEndpoint(self._scaling, self._recorder)

    async def configure(self, server: OperatorEndpoint) -> None:
        """See HeldAddress. An unusable token or certificate leaves the previous one in force."""
        table, env = self._table, self._environment.configuration.environment
        if table is None:
            return
        access = access_of(table, env)
        required = not (access.token or access.trusted)
        await self.use_certificate(server, table.tls, env, required=required)
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
