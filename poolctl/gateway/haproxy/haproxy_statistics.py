"""The figures of HAProxy (`show stat`) as figures of routes, hosts and streams."""

from __future__ import annotations

import csv
from collections.abc import Iterable

from ...json_form import Table
from ...worker import tally
from ..backends import Backends
from ..counts import Counts, Traffic
from .haproxy_configuration import NO_ROUTE
from .haproxy_parts import HaproxyBackend

_STATUSES = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx")


class HaproxyStatistics:
    """Adds the counts of its processes to `counts`, so that no count falls when a process begins at 0."""

    def __init__(self, counts: Counts) -> None:
        self.connections = 0
        self.streams: dict[str, Table] = {}
        self._counts = counts
        self._seen: dict[tuple[str, str, str], int] = {}

    def begin(self) -> None:
        """Another process counts from now on."""
        self._seen.clear()

    def add(self, text: str, sections: Iterable[HaproxyBackend], backends: Backends) -> None:
        """Add the increase since the last call."""
        known = {each.name: each for each in sections}
        in_flight: dict[str, int] = {}
        down: dict[str, set[str]] = {name: set() for name in known}
        answered: dict[str, set[str]] = {name: set() for name in known}
        self.connections = 0
        for row in csv.DictReader(text.lstrip("# ").splitlines()):
            proxy, server = row["pxname"], row["svname"]
            section = known.get(proxy)
            if server == "FRONTEND":
                self.connections += int(row["scur"] or 0)
            if section is not None and section.is_stream:
                self._add_to_stream(section.alias, row)
            elif section is not None and server == "BACKEND":
                self._add_to(self._counts.route(section.alias), row)
            elif proxy == NO_ROUTE and server == "BACKEND":
                self._counts.refused("404", times=self._more(row, "stot"))
            if section is not None:
                key = next((each.key for each in section.servers if each.name == server), None)
                if key is not None:
                    in_flight[key] = in_flight.get(key, 0) + int(row["scur"] or 0)
                    self._add_to(self._counts.backend(key), row)
                    if row["status"].startswith("DOWN"):
                        down[proxy].add(key)
                    if row["check_status"].endswith("OK") or any(int(row[each] or 0) for each in _STATUSES):
                        answered[proxy].add(key)
        backends.set_in_flight(in_flight)
        for name, section in known.items():
            found = down[name], answered[name]
            backends.follow_haproxy(section.alias, *found, is_stream=section.is_stream)

    def _add_to(self, traffic: Traffic, row: Table) -> None:
        traffic.slots[tally.STARTED] += self._more(row, "stot")
        for kind, name in enumerate(_STATUSES, 1):
            traffic.slots[tally.STATUS + kind] += self._more(row, name)
        traffic.bytes_in += self._more(row, "bin")
        traffic.bytes_out += self._more(row, "bout")

    def _add_to_stream(self, alias: str, row: Table) -> None:
        stream = self.streams.setdefault(
            alias,
            {"accepted": 0, "open": 0, "failed": 0, "refused": 0, "passed": 0, "bytes_in": 0, "bytes_out": 0},
        )
        if row["svname"] == "FRONTEND":
            stream["open"] = int(row["scur"] or 0)
            stream["accepted"] += self._more(row, "stot")
            stream["bytes_in"] += self._more(row, "bin")
            stream["bytes_out"] += self._more(row, "bout")
        elif row["svname"] == "BACKEND":
            stream["failed"] += self._more(row, "econ")

    def _more(self, row: Table, column: str) -> int:
        """The increase of the count."""
        place, value = (row["pxname"], row["svname"], column), int(row.get(column) or 0)
        before = self._seen.get(place, 0)
        self._seen[place] = value
        return value - before if value >= before else value  # a server of this name was added again
