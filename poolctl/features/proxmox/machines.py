"""The machines behind the routes of a pool: what the feature does in the supervisor."""

from __future__ import annotations

from collections.abc import Iterable

from poolctl.config import Tables
from poolctl.features.gateway.supervision.gateway_manager import GatewayManager, GatewayPart
from poolctl.supervisor.feature_parts import PartSite

from ._inventory import ProxmoxInventory
from .table import ProxmoxTable


class Machines(GatewayPart):
    """Has the gateway's routes linked to machines, once there is a gateway."""

    def __init__(self, site: PartSite) -> None:
        super().__init__(site)
        self._table: ProxmoxTable | None = None
        self._inventory: ProxmoxInventory | None = None

    def follow(self, tables: Tables) -> None:
        """See FeaturePart."""
        self._table = tables.get(ProxmoxTable)
        if self._inventory is not None:
            self._read(self._inventory)

    def connect(self, gateway: GatewayManager) -> None:
        """See GatewayPart."""
        self._inventory = ProxmoxInventory(
            self.site.events,
            gateway.report_machines,
            activities=gateway.activities,
            state_directory=self.site.environment.state_directory,
        )
        self._read(self._inventory)
        gateway.find_machines(self._inventory)

    @property
    def not_served(self) -> Iterable[str]:
        """See GatewayPart."""
        problem = "" if self._inventory is None else self._inventory.problem
        return [f"[proxmox]: {problem}"] if problem else []

    async def stop_serving(self) -> None:
        """See FeaturePart."""
        if self._inventory is not None:
            self._inventory.close()

    def _read(self, inventory: ProxmoxInventory) -> None:
        inventory.follow(self._table, self.site.environment.configuration.environment)
