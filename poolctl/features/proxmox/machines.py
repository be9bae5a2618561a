"""The machines behind the routes of a pool: what the feature does in the supervisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poolctl.config import Tables
from poolctl.supervisor.feature_parts import PartSite
from poolctl.supervisor.machine_source import MachineGateway, MachineSource
from poolctl.supervisor.verbs.verb import Verb

from ._inventory import ProxmoxInventory
from .table import ProxmoxTable


class Machines:
    """Has the gateway's routes linked to machines, once there is a gateway. See FeaturePart."""

    verbs: Mapping[str, Verb] = {}

    def __init__(self, site: PartSite) -> None:
        self._environment = site.environment
        self._events = site.events
        self._table: ProxmoxTable | None = None
        self._inventory: ProxmoxInventory | None = None
        self._connect = site.machines

    def follow(self, tables: Tables) -> None:
        """See FeaturePart."""
        self._table = tables.get(ProxmoxTable)
        if self._inventory is None:
            self._connect(self._make_inventory)
        else:
            self._read(self._inventory)

    @property
    def problems(self) -> Sequence[str]:
        """None: the gateway reports why machines are not known."""
        return ()

    def flush(self) -> None:
        """See FeaturePart."""

    async def aclose(self) -> None:
        """See FeaturePart: the gateway closes the inventory."""

    def _make_inventory(self, gateway: MachineGateway) -> MachineSource:
        self._inventory = ProxmoxInventory(
            self._events,
            gateway.report_machines,
            activities=gateway.activities,
            state_directory=self._environment.state_directory,
        )
        self._read(self._inventory)
        return self._inventory

    def _read(self, inventory: ProxmoxInventory) -> None:
        inventory.follow(self._table, self._environment.configuration.environment)
