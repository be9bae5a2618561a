"""The pool as an operator, if its configuration says so; its modules are imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolctl.config import Tables
from poolctl.monitor.event_queue import Events

from ..active_configuration import PoolEnvironment

if TYPE_CHECKING:
    from .operator_address import OperatorAddress
    from .operator_endpoint import Scaling

# Modules that a start imports only for a configuration with an operator.
MODULES = ("poolctl.supervisor.operator.operator_address",)


class PoolOperator:
    """Follows the configuration from `start` on."""

    def __init__(self, environment: PoolEnvironment, events: Events) -> None:
        self._environment = environment
        self._events = events
        self._address: OperatorAddress | None = None

    def start(self, scaling: Scaling) -> None:
        """Serve the endpoint as configured, now and after each reload."""
        self._scaling = scaling
        self._environment.configuration.follow(self._follow, every_reload=True)

    def _follow(self, tables: Tables) -> None:
        if self._address is None and tables.operator is not None and tables.operator.bind is not None:
            from .operator_address import OperatorAddress

            self._address = OperatorAddress(self._environment, self._events, self._scaling)
        if self._address is not None:
            self._address.follow(tables)

    @property
    def problems(self) -> list[str]:
        """Why its address cannot be served now, if that is so."""
        problem = self._address.problem if self._address is not None else ""
        return [f"[operator]: {problem}"] if problem else []

    async def attempted(self) -> None:
        """Return once it is known whether the address can be opened."""
        if self._address is not None:
            await self._address.attempted()

    async def aclose(self) -> None:
        """Stop serving."""
        if self._address is not None:
            await self._address.close()
