"""The part of a feature that adds to the gateway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from poolctl.supervisor.feature_parts import FeaturePart

if TYPE_CHECKING:
    from poolctl.json_form import Table
    from poolctl.monitor.exposition import Family

    from .gateway_manager import GatewayManager


class GatewayPart(FeaturePart):
    """A feature's part that is connected with the gateway once the pool has one."""

    def connect(self, gateway: GatewayManager) -> None:
        """There is a gateway from now on; its first route table is not computed yet."""

    @property
    def not_served(self) -> Iterable[str]:
        """The tables that cannot be served now, each with the reason; reported with the gateway's problems."""
        return ()

    def gateway_metrics(self, reports: Table) -> Iterable[Family]:
        """Its metrics, shown with the gateway's; `reports` of parts in the gateway's process, by their packages."""
        return ()
