"""The operator feature in the supervisor: scales services for which requests are reported at `bind`.

It also has the gateway report its own requests to `url`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from poolctl.address import parse
from poolctl.clock import ReportLimit
from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.errors import ServerError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.features.gateway.supervision.gateway_manager import GatewayManager, GatewayPart
from poolctl.json_form import Table, to_json
from poolctl.monitor.metrics import Family, Row, families_of
from poolctl.supervisor.feature_parts import PartContext
from poolctl.supervisor.verbs.verb import Call, Verb
from poolctl.supervisor.web_addresses import SiteSettings, WebAddress, tls_settings

from .client import OperatorSettings
from .table import OperatorTable

_PACKAGE = __package__ or ""


class PoolOperator(GatewayPart):
    """A supervisor part that receives reports of request counts at `bind`, and has the gateway report to `url`."""

    def __init__(self, site: PartContext) -> None:
        super().__init__(site)
        self._table: OperatorTable | None = None
        self._address = WebAddress(site.web, "operator", self._site_settings)
        self._reports = ReportLimit()  # by service

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {"report_requests": self._wake_service}

    def apply_tables(self, tables: Tables) -> None:
        """Serve the address that [operator] configures, and apply its settings."""
        self._table = tables.get(OperatorTable)
        self._address.serve_table(self._table)

    def connect(self, gateway: GatewayManager) -> None:
        gateway.process_parts[_PACKAGE] = self._reporter_settings

    def _site_settings(self, table: OperatorTable) -> SiteSettings:
        return site_settings(table, self.site.environment.configuration.environment)

    async def _wake_service(self, call: Call) -> Result:
        """Wake the service that a client reports on, or ask for more workers."""
        service, requests = str(call.options["service"]), int(call.options["requests"])
        try:
            workers = self.site.core.wake_and_count_planned_workers(service, requests)
        except KeyError:
            return Result(exit_code=NOTHING_MATCHED)
        self._record_report_event(service, requests, str(call.options["namespace"]), workers)
        return Result()

    def _record_report_event(self, service: str, requests: int, namespace: str, workers: int) -> None:
        """Record the requests, in one event a minute for each service, however often clients report."""
        count = self._reports.count_to_report(self.site.core.clock.monotonic(), requests, service)
        if not count:
            return
        message = f"{count} requests wait elsewhere" if count != 1 else "1 request waits elsewhere"
        if not workers:
            message += "; the server is not to run, and stays as it is"
        self.site.events.record(
            "scale",
            "requests reported",
            server=service,
            message=message,
            cause="an operator's client",
            requests=count,
            workers=workers,
            namespace=namespace[:200],
        )

    def _reporter_settings(self) -> Table | None:
        if self._table is None:
            return None
        configuration = self.site.environment.configuration
        settings = settings_of(self._table, configuration.environment, configuration.name)
        return None if settings is None else to_json(settings)

    @property
    def problems(self) -> Iterable[str]:
        return self._address.warnings

    async def wait_for_opening_attempt(self) -> None:
        """Wait until the endpoint's address is open, or could not be opened; returns at once if none is configured."""
        await self._address.wait_for_opening_attempt()

    def gateway_metrics(self, reports: Table) -> Iterable[Family]:
        found = reports.get(_PACKAGE)
        return families_of(_METRICS, [(found, {})]) if found is not None else ()

    async def stop_serving(self) -> None:
        await self._address.close()


def site_settings(table: OperatorTable, env: Mapping[str, str]) -> SiteSettings:
    """The settings of the endpoint, with the rules for who may report requests. Raises ServerError without a token."""
    token = env.get(table.token_env, "").strip() if table.token_env else ""
    if table.token_env and not token:
        raise ServerError(
            f"the environment variable {table.token_env} is not set",
            hint=f"export {table.token_env}=… before poolctl start",
        )
    values: Table = {
        "endpoint": table.endpoint,
        "namespace": table.namespace,
        "open_to_all": parse(table.bind or "").kind == "unix",
        "token": token,
        "trusted": [*map(str, table.trusted)],
    }
    is_optional = bool(token or table.trusted)
    return SiteSettings(values, tls_settings(table.tls, env, is_optional=is_optional) if table.tls else None)


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
