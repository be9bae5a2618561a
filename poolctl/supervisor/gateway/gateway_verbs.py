"""The verbs of a pool with a gateway: its routes and its hosts, and what is done with hosts."""

from __future__ import annotations

from poolctl.control.answers import failure
from poolctl.control.gateway_answers import HostsResult
from poolctl.core.core import Core
from poolctl.errors import PoolMonitorError, PoolParamError
from poolctl.exit_codes import NOT_AS_DESIRED, NOTHING_MATCHED
from poolctl.frozen_value import Table
from poolctl.routing.host_report import HostReport
from poolctl.runners.process_link import LinkLost

from ..verbs.verb import Call
from ..verbs.verbs import Verbs
from .gateway_manager import GatewayManager


class GatewayVerbs:
    """Answers with what the gateway's process reports, and what workers count."""

    def __init__(self, gateway: GatewayManager, core: Core) -> None:
        self._gateway = gateway
        self._core = core

    def add_to(self, verbs: Verbs) -> None:
        """Answer these verbs."""
        verbs.add("hosts", self.hosts)
        verbs.add("host", self.host)

    async def hosts(self, call: Call) -> HostsResult:
        """Every host with its state."""
        report = await self._report()
        if report is None:
            return self._away()
        return HostsResult(items=tuple(map(HostReport.from_json, report["hosts"])))

    async def host(self, call: Call) -> HostsResult:
        """Disable, enable or drain hosts; nothing is changed if one of them is unknown."""
        process = await self._gateway.serving()
        if process is None:
            return self._away()
        try:
            answer = await process.order_hosts({key: call.options.get(key) for key in ("op", "hosts", "for")})
        except (LinkLost, TimeoutError):
            return self._away()
        if problems := answer.get("problems"):
            errors = tuple(failure(PoolParamError, each["message"], each["hint"]) for each in problems)
            return HostsResult(errors=errors, exit_code=NOTHING_MATCHED)
        result = await self.hosts(call)
        return result.but(items=tuple(each for each in result.items if each.host in answer["hosts"]))

    async def _report(self) -> Table | None:
        process = await self._gateway.serving()
        try:
            return None if process is None else await process.report()
        except (LinkLost, TimeoutError):
            return None

    def _away(self) -> HostsResult:
        why = self._gateway.problem or "its process is starting"
        problem = failure(PoolMonitorError, f"the gateway does not answer: {why}", "poolctl events")
        return HostsResult(errors=(problem,), exit_code=NOT_AS_DESIRED)
