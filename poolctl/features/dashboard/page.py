"""The dashboard's part of the supervisor: its address, its settings, and the verb `dashboard`."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

from poolctl.address import parse
from poolctl.config import Tables
from poolctl.control.answers import failure
from poolctl.errors import PoolMonitorError, ServerError
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.json_form import Table
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.feature_parts import FeaturePart, PartContext
from poolctl.supervisor.verbs.verb import Call, Verb
from poolctl.supervisor.web_addresses import Order, SiteSettings, WebAddress, WebServer, tls_settings

from ._answers import DashboardLinkResult, DashboardLoginLink
from ._figure_rings import FigureHistory
from .table import Dashboard

TOKEN_FILE = "dashboard.token"
ENDED_FILE = "dashboard.ended"
_TOKEN_BYTES = 32
_HINT = "add [dashboard] to the pool's file, then poolctl reload"


class DashboardPart(FeaturePart):
    """Serves the dashboard's web page as configured, and collects the figures for the charts on the page.

    In calm mode, after repeated crashes of the supervisor, the page is neither opened nor closed.
    """

    address: DashboardAddress

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self._table: Dashboard | None = None
        self.address = DashboardAddress(context.web, context.environment)
        self._history = FigureHistory(context.core, context.samples, context.store)

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {"dashboard": self._link, "history": self._history.verb}

    def apply_tables(self, tables: Tables) -> None:
        self._table = tables.get(Dashboard)
        if self.context.core.calm:
            return
        # Collect figures before a page is opened, so that it can show the past at once.
        self._history.enable_or_clear(self._table is not None)
        self.address.serve_table(self._table)

    async def _link(self, call: Call) -> DashboardLinkResult:
        """The page's URL and login token, for clients of the control socket: they have full access to the pool."""
        if problem := await self.address.wait_until_served():
            return _failed(f"the dashboard: {problem}", "poolctl events")
        if self._table is None:
            return _failed("this pool has no dashboard", _HINT)
        loaded = await asyncio.to_thread(load_settings, self._table, self.context.environment)
        url = url_of(self._table)
        return DashboardLinkResult(dashboard=DashboardLoginLink(url=url, token=loaded.values["token"]))


def _failed(message: str, hint: str) -> DashboardLinkResult:
    return DashboardLinkResult(errors=(failure(PoolMonitorError, message, hint),), exit_code=NOT_AS_DESIRED)


class DashboardAddress(WebAddress[Dashboard]):
    """The page's address."""

    def __init__(self, web: WebServer, environment: SupervisorContext) -> None:
        super().__init__(web, "dashboard", lambda table: load_settings(table, environment))

    def sentence(self, problem: str) -> str:
        return problem

    def record_problem(self, sentence: str) -> None:
        self.events.record("pool", "dashboard failed", message=sentence)

    def on_attempted(self, order: Order, *, changed: bool) -> None:
        super().on_attempted(order, changed=changed)
        if changed and not order.problem and self.table is not None:
            url = url_of(self.table)
            self.events.record("pool", "dashboard started", message=f"the dashboard serves {url}", url=url)


def load_settings(table: Dashboard, context: SupervisorContext) -> SiteSettings:
    """The settings of this pool's page.

    Reads files, and creates the default token file. Raises ServerError without a token or for a bad certificate.
    """
    state_directory = context.state_directory
    env = context.configuration.environment
    address = parse(table.bind)
    values: Table = {
        "logs_directory": os.path.join(state_directory, "logs"),
        "key": os.path.basename(context.directory),
        "name": context.configuration.name,
        "token": _ensure_token(table, state_directory, env),
        "hosts": list(table.hosts) + ([] if address.kind == "unix" else [address.host.strip("[]")]),
        "secure": bool(table.tls),
        "ended_path": os.path.join(state_directory, ENDED_FILE),
    }
    if not table.tls:
        return SiteSettings(values)
    # Importing this loads OpenSSL, which most supervisors do not need.
    from poolctl.config.checks.certificate_checks import check_certificates

    for finding in check_certificates(table.tls, env, datetime.now(UTC)):
        if not finding.is_warning:
            raise ServerError(f"{'.'.join(map(str, finding.path))}: {finding.message}", hint=finding.hint)
    return SiteSettings(values, tls_settings(table.tls, env))


def url_of(table: Dashboard) -> str:
    """Return the dashboard's URL for a browser on this machine; for a Unix socket, return the socket's address."""
    address = parse(table.bind)
    if address.kind == "unix":
        return address.key
    return f"{'https' if table.tls else 'http'}://{address.connect_address.key}/"


def _ensure_token(table: Dashboard, state_directory: str, env: Mapping[str, str]) -> str:
    if table.token_env:
        token = env.get(table.token_env, "").strip()
        hint = f"export {table.token_env}=… before poolctl start"
        where = f"the environment variable {table.token_env}"
    else:
        where = table.token_file or os.path.join(state_directory, TOKEN_FILE)
        hint = f"write the token into {where}"
        if not table.token_file:
            _ensure_token_file(where)
        try:
            with open(where, encoding="utf-8") as file:
                token = file.read(65536).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServerError(f"its token cannot be read: {error}", hint=hint) from None
    if not token:
        raise ServerError(f"it has no token: {where} is empty", hint=hint)
    return token


def _ensure_token_file(path: str) -> None:
    """Create the file with a random token unless it exists. Whoever can read it has full access to the page."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
    except FileExistsError:
        return
    except OSError as error:
        raise ServerError(f"its token cannot be written: {error}", hint="name one: token_file") from None
