"""The dashboard's part of the supervisor: its listening sockets, its process, and the verb `dashboard`.

The keeper process also holds the sockets and the connection to the dashboard's process, for the next supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from poolctl.address import parse
from poolctl.bootstrap import command
from poolctl.config import Tables
from poolctl.control.answers import failure
from poolctl.control.pool_paths import SOCKET_NAME
from poolctl.errors import PoolMonitorError, ServerError
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.json_form import Table
from poolctl.listeners.open_listener import close_listener, refuse_new_connections, socket_file_identity
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.helper_process import HelperKind, HelperOwner, HelperProcess
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import LinkLost
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.feature_parts import FeaturePart, PartContext
from poolctl.supervisor.verbs.verb import Call, Verb

from ._answers import DashboardLinkResult, DashboardLoginLink
from ._figure_rings import FigureHistory
from .table import Dashboard

TOKEN_FILE = "dashboard.token"
ENDED_FILE = "dashboard.ended"
_TOKEN_BYTES = 32
# The listener in the keeper's store.
_LISTENER = "dashboard"
_HINT = "add [dashboard] to the pool's file, then poolctl reload"


class DashboardPart(FeaturePart):
    """Serves the dashboard's web page as configured, and collects the figures for the charts on the page.

    In calm mode, after repeated crashes of the supervisor, the page's process is neither started nor stopped.
    """

    def __init__(self, site: PartContext) -> None:
        super().__init__(site)
        self._table: Dashboard | None = None
        self._page: DashboardPage | None = None
        self._history = FigureHistory(site.core, site.samples, site.store)

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {"dashboard": self._link, "history": self._history.verb}

    def apply_tables(self, tables: Tables) -> None:
        self._table = tables.get(Dashboard)
        if self.site.core.calm:
            return
        # Collected before a page is opened, so that it shows the past at once.
        self._history.enable_or_clear(self._table is not None)
        if self._page is None and self._table is not None:
            self._page = DashboardPage(self.site.environment, self.site.events)
        if self._page is not None:
            self._page.configure(self._table)

    async def wait_for_opening_attempt(self) -> None:
        if self._page is not None:
            await self._page.wait_for_opening_attempt()

    @property
    def problems(self) -> Sequence[str]:
        return [f"[dashboard]: {self._page.problem}"] if self._page is not None and self._page.problem else []

    async def aclose(self) -> None:
        if self._page is not None:
            await self._page.aclose()

    async def _link(self, call: Call) -> DashboardLinkResult:
        """The page's URL and login token, for clients of the control socket: they have full access to the pool."""
        if self._table is None:
            return _failed("this pool has no dashboard", _HINT)
        if self._page is None:
            found = await asyncio.to_thread(load_settings, self._table, self.site.environment)
        elif (served := await self._page.wait_until_served()) is None:
            return _failed(f"the dashboard: {self._page.problem}", "poolctl events")
        else:
            found = served
        return DashboardLinkResult(dashboard=DashboardLoginLink(url=found.url, token=found.values["token"]))


def _failed(message: str, hint: str) -> DashboardLinkResult:
    return DashboardLinkResult(errors=(failure(PoolMonitorError, message, hint),), exit_code=NOT_AS_DESIRED)


DASHBOARD = HelperKind(
    name="dashboard",
    label="the dashboard",
    argv=(*command(sys.executable, "features.dashboard"),),
    entry="dashboard link",
    output="dashboard.log",
)


class DashboardPage(HelperOwner):
    """Runs the dashboard's listener and process as configured; `problem` says why it is not served, else ""."""

    def __init__(self, environment: SupervisorContext, events: EventBus) -> None:
        self.table: Dashboard | None = None
        self._helper = environment.helpers.add(DASHBOARD, self)
        self._events = events
        self._environment = environment
        self._opener = Opener()
        self._settings: PageSettings | None = None
        self._sockets: list[socket.socket] = []
        self._bind = ""
        self._adopted = False

    @property
    def problem(self) -> str:
        """Why the dashboard is not served, or ""."""
        return self._helper.problem

    def configure(self, table: Dashboard | None) -> None:
        """Serve the dashboard in the background as `table` specifies; stop serving the dashboard if `table` is None."""
        self.table = table
        self._helper.reconcile()

    async def wait_for_opening_attempt(self) -> None:
        """Wait until the address is open or has failed to open; `problem` has the reason of a failure."""
        await self._helper.wait_for_attempt()

    async def wait_until_served(self) -> PageSettings | None:
        """Wait until the dashboard is served; return its URL and settings, or None if it is not configured or fails."""
        with contextlib.suppress(LinkLost):
            await self._helper.wait_until_up()
        if self.problem or self.table is None:
            return None
        return await asyncio.to_thread(load_settings, self.table, self._environment)

    async def aclose(self) -> None:
        """End the process; from now on connections are refused."""
        await self._helper.aclose()
        await self._close_listener()

    async def settings(self) -> str | None:
        if not self._adopted:
            await self._adopt_listener()
        if self.table is None:
            await self._close_listener()
            return None
        settings = self._settings = await asyncio.to_thread(load_settings, self.table, self._environment)
        if self._bind != settings.bind:
            await self._close_listener()
            await self._open_listener_held_by_keeper(settings.bind)
        return settings.mark

    def begin(self, process: HelperProcess) -> None:
        assert self._settings is not None
        directory = self._environment.directory
        begin = {"t": "begin", "directory": directory, "settings": self._settings.values}
        process.link.send(begin, self._sockets)

    def use(self, process: HelperProcess, *, is_new: bool) -> None:
        if is_new and self._settings is not None:
            url = self._settings.url
            self._events.record("pool", "dashboard started", message=f"the dashboard serves {url}", url=url)

    def on_event(self, event: str, message: str, **detail: Any) -> None:
        self._events.record("pool", event, message=message, **detail)

    async def _adopt_listener(self) -> None:
        """Take over, from the keeper, the dashboard's sockets that the previous supervisor left."""
        reply, fds = await self._environment.keeper.call({"op": "get", "name": _LISTENER})
        self._adopted = True
        if fds:
            self._bind = str(reply["meta"]["bind"])
            self._sockets = [socket.socket(fileno=fd) for fd in fds]

    async def _open_listener_held_by_keeper(self, bind: str) -> None:
        self._sockets = await self._opener.listen(parse(bind))
        self._bind = bind
        fds = [sock.fileno() for sock in self._sockets]
        self._environment.keeper.send({"op": "put", "name": _LISTENER, "meta": {"bind": bind}}, fds)

    async def _close_listener(self) -> None:
        self._helper.end_process()
        if self._sockets:
            refuse_new_connections(self._sockets)  # the process that is about to end has them too
            close_listener(self._sockets, socket_file_identity(self._bind))
            self._sockets, self._bind = [], ""
            with contextlib.suppress(LinkLost):
                await self._environment.keeper.call({"op": "drop", "name": _LISTENER})


class PageSettings(NamedTuple):
    """The settings of the dashboard's process.

    `bind` is the address in canonical form, `url` the page's URL for a browser. `mark` is a digest of all settings:
    the process is replaced when the digest changes.
    """

    bind: str
    values: Table
    mark: str
    url: str


def load_settings(table: Dashboard, context: SupervisorContext) -> PageSettings:
    """The settings of the process that serves this pool's dashboard.

    Reads files, and creates the default token file. Raises ServerError without a token or for a bad certificate.
    """
    directory, state_directory = context.directory, context.state_directory
    env = context.configuration.environment
    address = parse(table.bind)
    values: Table = {
        "socket_path": os.path.join(directory, SOCKET_NAME),
        "logs_directory": os.path.join(state_directory, "logs"),
        "key": os.path.basename(directory),
        "name": context.configuration.name,
        "token": _ensure_token(table, state_directory, env),
        "hosts": list(table.hosts) + ([] if address.kind == "unix" else [address.host.strip("[]")]),
        "tls": None,
        "ended_path": os.path.join(state_directory, ENDED_FILE),
    }
    if table.tls:
        # Importing this loads OpenSSL, which most supervisors do not need.
        from poolctl.config.checks.certificate_checks import check_certificates

        tls = table.tls
        problems, _ = check_certificates(tls, env, datetime.now(UTC))
        for finding in problems:
            raise ServerError(f"{'.'.join(map(str, finding.path))}: {finding.message}", hint=finding.hint)
        # Never None: OpenSSL would ask a terminal.
        password = env.get(tls.password_env, "") if tls.password_env else ""
        values["tls"] = {"key": None, "ca": None, "ciphers": None, **tls.to_dict(), "password": password}
    mark = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return PageSettings(address.key, values, mark, url_of(table))


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
