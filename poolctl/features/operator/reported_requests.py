"""The part in the gateway's process, which informs an operator of requests."""

from __future__ import annotations

from poolctl.features.gateway.process.edge import Edge
from poolctl.json_form import Table, from_json
from poolctl.routing.route import Route

from .client import OperatorClient, OperatorSettings


class ReportedRequests:
    """Counts the requests for each route, and has the operator informed of them; see EdgePart."""

    def __init__(self, edge: Edge, settings: Table) -> None:
        def report(kind: str, message: str, severity: str) -> None:
            edge.event(kind, message=message, severity=severity)

        given = from_json(OperatorSettings, settings)
        self.client = OperatorClient(given, edge.settings.directory, report=report)

    def configure(self, settings: Table) -> None:
        """See EdgePart."""
        self.client.configure(from_json(OperatorSettings, settings))

    def arrived(self, route: Route) -> None:
        """See EdgePart."""
        self.client.count(route.alias)

    def snapshot(self) -> Table:
        """See EdgePart."""
        return self.client.snapshot()

    def drain(self) -> None:
        """See EdgePart."""
        self.client.stop_sending()

    def close(self) -> None:
        """See EdgePart."""
        self.client.close()
