"""The machines behind the routes of a pool: what the feature does in the supervisor."""

from __future__ import annotations

from poolctl.config import Tables
from poolctl.supervisor.feature_parts import FeaturePart, PartSite
from poolctl.supervisor.machine_source import MachineGateway, MachineSource

from ._inventory import ProxmoxInventory
from .table import ProxmoxTable


class Machines(FeaturePart):
    """Has the gateway's routes linked to machines, once there is a gateway.

    The gateway reports why machines are not known, and closes the inventory.
    """

    def __init__(self, site: PartSite) -> None:
        super().__init__(site)
        self._table: ProxmoxTable | None = None
        self._inventory: ProxmoxInventory | None = None

    def follow(self, tables: Tables) -> None:
        """See FeaturePart."""
        self._table = tables.get(ProxmoxTable)
        if self._inventory is None:
            self.site.machines(self._make_inventory)
        else:
            self._read(self._inventory)

    def _make_inventory(self, gateway: MachineGateway) -> MachineSource:
        self._inventory = ProxmoxInventory(
            self.site.events,
            gateway.report_machines,
            activities=gateway.activities,
            state_directory=self.site.environment.state_directory,
        )
        self._read(self._inventory)
        return self._inventory

    def _read(self, inventory: ProxmoxInventory) -> None:
        inventory.follow(self._table, self.site.environment.configuration.environment)
