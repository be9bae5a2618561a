"""The supervisor's part: settings for the operator that is informed, and the pool as the operator of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from poolctl.config import Tables
from poolctl.features.gateway.supervision.gateway_manager import GatewayManager, GatewayPart
from poolctl.json_form import Table, to_json
from poolctl.monitor.exposition import Family
from poolctl.monitor.server_metrics import Row, families_of
from poolctl.supervisor.feature_parts import PartSite

from ._endpoint import OperatorAddress
from .client import OperatorSettings
from .table import OperatorTable

_PACKAGE = __package__ or ""


class PoolOperator(GatewayPart):
    """Serves the address, and gives the gateway's process the settings of the operator that it informs."""

    def __init__(self, site: PartSite) -> None:
        super().__init__(site)
        self._table: OperatorTable | None = None
        self._address: OperatorAddress | None = None

    def follow(self, tables: Tables) -> None:
        """See FeaturePart."""
        table = self._table = tables.get(OperatorTable)
        served = table if table is not None and table.bind is not None else None
        if self._address is None and served is not None:
            self._address = OperatorAddress(self.site.environment, self.site.events, self.site.core)
        if self._address is not None:
            self._address.follow(served)

    def connect(self, gateway: GatewayManager) -> None:
        """See GatewayPart."""
        gateway.process_parts[_PACKAGE] = self._settings

    def _settings(self) -> Table | None:
        if self._table is None:
            return None
        configuration = self.site.environment.configuration
        settings = settings_of(self._table, configuration.environment, configuration.name)
        return None if settings is None else to_json(settings)

    @property
    def problems(self) -> Iterable[str]:
        """See FeaturePart."""
        problem = self._address.problem if self._address is not None else ""
        return [f"[operator]: {problem}"] if problem else []

    async def attempted(self) -> None:
        """See FeaturePart."""
        if self._address is not None:
            await self._address.attempted()

    def gateway_metrics(self, reports: Table) -> Iterable[Family]:
        """See GatewayPart."""
        found = reports.get(_PACKAGE)
        return families_of(_METRICS, [(found, {})]) if found is not None else ()

    async def stop_serving(self) -> None:
        """See FeaturePart."""
        if self._address is not None:
            await self._address.close()


def settings_of(table: OperatorTable, env: Mapping[str, str], pool_name: str) -> OperatorSettings | None:
    """The settings of the client that informs an operator; None without a url."""
    if table.url is None:
        return None
    tls = table.tls or None
    return OperatorSettings(
        url=table.url,
        endpoint=table.endpoint,
        retry_seconds=table.retry,
        namespace=table.namespace or pool_name,
        token=env.get(table.token_env, "").strip() if table.token_env else "",
        ca=table.ca or "",
        cert=tls.cert if tls else "",
        key=(tls.key or "") if tls else "",
        key_password=env.get(tls.password_env, "") if tls and tls.password_env else "",
    )


_METRICS: Sequence[Row[Table]] = (
    ("poolctl_gateway_operator_requests", "counter", "Requests that the operator was informed of.",
     lambda each: each["delivered"]),
    ("poolctl_gateway_operator_unsent_requests", "gauge", "Requests that it has not confirmed yet.",
     lambda each: sum(each["unsent"].values())),
    ("poolctl_gateway_operator_failing_services", "gauge", "Services whose last report has failed.",
     lambda each: len(each["failing"])),
)  # fmt: skip
