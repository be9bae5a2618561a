"""The operator feature in the supervisor: scales services for which requests are reported at `bind`.

It also reports the gateway's own requests to `url`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence

from poolctl.address import parse
from poolctl.clock import ReportLimit
from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.errors import ServerError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.features.gateway.haproxy.process import HaproxyProcess
from poolctl.features.gateway.supervision.gateway import GatewayManager, GatewayPart
from poolctl.json_form import Table
from poolctl.monitor.metrics import Family, Row, families_of
from poolctl.platform import process_start, read_json_object, replace_file
from poolctl.supervisor.feature_parts import PartContext
from poolctl.supervisor.verbs.verb import Call, Verb
from poolctl.supervisor.web_addresses import SiteSettings, WebAddress, tls_settings

from .client import OperatorClient, OperatorSettings
from .table import OperatorTable

_COUNTED_FILE = "operator-counted.json"


class CountedRequests:
    """The number of requests already counted for each HAProxy process, by route.

    They are stored in `directory`, so that a later supervisor of the same HAProxy does not count requests twice.
    """

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, _COUNTED_FILE)
        self._counted: dict[str, dict[str, int]] = read_json_object(self._path)  # by process

    def add(
        self, process: HaproxyProcess, requests: Mapping[str, int], client: OperatorClient | None
    ) -> None:
        """Pass new requests of the process to the client. Without a client they are not counted."""
        name = "{pid} {start}".format(**process.identity)
        if name not in self._counted:
            self._counted = {key: counted for key, counted in self._counted.items() if _is_alive(key)}
        counted = self._counted.get(name, {})
        if counted == requests:
            return
        self._counted[name] = dict(requests)
        if client is not None:
            for alias, count in requests.items():
                if count > counted.get(alias, 0):
                    client.count(alias, count - counted.get(alias, 0))
            # In this order: a supervisor that is killed in between counts requests twice rather than lose them.
            client.save()
            replace_file(self._path, json.dumps(self._counted).encode())


def _is_alive(process: str) -> bool:
    pid, start = process.split()
    return str(process_start(int(pid))) == start


class PoolOperator(GatewayPart):
    """The supervisor's part for [operator]: receives request counts at `bind`, and reports the gateway's to `url`."""

    address: WebAddress[OperatorTable]

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self._table: OperatorTable | None = None
        environment = context.environment
        self.address = WebAddress(
            context.web, "operator", lambda table: site_settings(table, environment.configuration.environment)
        )
        self._reports = ReportLimit()  # by service
        self._gateway: GatewayManager | None = None
        self._client: OperatorClient | None = None
        self._counted = CountedRequests(environment.directory)

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {"report_requests": self._wake_service}

    def apply_tables(self, tables: Tables) -> None:
        """Serve the address that [operator] configures, and apply its settings."""
        self._table = tables.get(OperatorTable)
        self.address.serve_table(self._table)
        self._configure_client()

    def connect(self, gateway: GatewayManager) -> None:
        self._gateway = gateway
        gateway.figures.counted = self._count
        self._configure_client()

    async def _wake_service(self, call: Call) -> Result:
        """Wake the service that a client reports on, or ask for more workers."""
        service, requests = str(call.options["service"]), int(call.options["requests"])
        try:
            workers = self.context.core.wake_for_requests(service, requests)
        except KeyError:
            return Result(exit_code=NOTHING_MATCHED)
        self._record_report_event(service, requests, str(call.options["namespace"]), workers)
        return Result()

    def _record_report_event(self, service: str, requests: int, namespace: str, workers: int) -> None:
        """Record the requests, in one event a minute for each service, however often clients report."""
        count = self._reports.count_to_report(self.context.core.clock.monotonic(), requests, service)
        if not count:
            return
        message = f"{count} requests wait elsewhere" if count != 1 else "1 request waits elsewhere"
        if not workers:
            message += "; the server is not to run, and stays as it is"
        self.context.events.record(
            "scale",
            "requests reported",
            server=service,
            message=message,
            cause="an operator's client",
            requests=count,
            workers=workers,
            namespace=namespace[:200],
        )

    def _configure_client(self) -> None:
        configuration = self.context.environment.configuration
        settings = None
        if self._table is not None and self._gateway is not None:
            settings = settings_of(self._table, configuration.environment, configuration.name)
        if settings is None:
            self._close_client()
        elif self._client is not None:
            self._client.configure(settings)
        else:
            self._client = OperatorClient(settings, self.context.environment.directory, report=self._report)

    def _report(self, kind: str, message: str, severity: str) -> None:
        self.context.events.record("pool", kind, message=message, severity=severity)

    def _count(self, process: HaproxyProcess, requests: Mapping[str, int]) -> None:
        self._counted.add(process, requests, self._client)

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def gateway_metrics(self) -> Iterable[Family]:
        return families_of(_METRICS, [(self._client.snapshot(), {})]) if self._client is not None else ()

    async def stop_serving(self) -> None:
        self._close_client()
        await super().stop_serving()


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
     lambda status: status["delivered"]),
    ("poolctl_gateway_operator_unsent_requests", "gauge", "Requests that the operator has not confirmed yet.",
     lambda status: sum(status["unsent"].values())),
    ("poolctl_gateway_operator_failing_services", "gauge", "Services whose last report has failed.",
     lambda status: len(status["failing"])),
)  # fmt: skip
