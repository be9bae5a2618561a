"""The gateway in `list` and `status`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolctl.cli.status_lines import gateway_line
from poolctl.control.gateway_status import GatewayStats, GatewayStatus
from poolctl.json_form import to_json
from tests.stand_in import always, item

from .conftest import Command, Supervised

STATUS = GatewayStatus(
    state="running", pid=4711, addresses=("http://127.0.0.1:8080", "https://127.0.0.1:8443"), routes=12,
    uptime_seconds=75.0, restarts=0,
)  # fmt: skip
STATS = GatewayStats(
    requests_total=1200, passed_total=900, proxied_total=300, refused_total=0, errors_total=3, requests_per_second=4.25,
    errors_per_second=0.0, latency_p50_seconds=0.001, latency_p99_seconds=0.02, connections=7, memory_bytes=20_000_000,
    cpu_percent=1.5,
)  # fmt: skip
WHOLE = "[gateway] running, http://127.0.0.1:8080, https://127.0.0.1:8443, 12 routes, pid 4711, up 1m15s"


def test_line_has_what_is_known() -> None:
    assert gateway_line(to_json(STATUS)) == WHOLE
    assert (
        gateway_line(to_json(replace(STATUS, stats=STATS)))
        == f"{WHOLE}, 4.2 requests/s, 1200 requests, 3 errors"
    )
    refused = gateway_line(to_json(replace(STATUS, stats=replace(STATS, refused_total=7))))
    assert refused.endswith("3 errors, 7 refused")
    starting = replace(STATUS, state="starting", pid=None, addresses=(), routes=1, uptime_seconds=0.0)
    assert gateway_line(to_json(starting)) == "[gateway] starting, 1 route"
    assert "1 restart" in gateway_line(to_json(replace(STATUS, restarts=1)))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_line_is_broken_where_a_terminal_ends(width: int) -> None:
    lines = gateway_line(to_json(replace(STATUS, stats=STATS)), width).split("\n")
    assert max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == gateway_line(to_json(replace(STATUS, stats=STATS)))


def test_gateway_is_no_server_of_the_list(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), gateway=to_json(STATUS))):
        document = poolctl("list", "-o", "json").json
        assert [each["name"] for each in document["items"]] == ["users"]
        assert document["gateway"] == to_json(STATUS)
        for form in ("table", "wide", "name", "jsonl", "name,state"):
            assert "gateway" not in poolctl("list", "-o", form).out, "scripts read lines of servers"


def test_start_ends_with_the_addresses_that_clients_use(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), gateway=to_json(STATUS))):
        assert poolctl("start").out == (
            "1 server ready\nusers  http://127.0.0.1:8081\nthe gateway serves http://127.0.0.1:8080, https://127.0.0.1:8443\n"
        )
    with supervised(always(item("users"), gateway=to_json(replace(STATUS, state="failed")))):
        assert "gateway" not in poolctl("start").out


def test_status_has_the_gateway_below_the_servers(poolctl: Command, supervised: Supervised) -> None:
    gateway = to_json(replace(STATUS, stats=STATS))
    summary: dict[str, Any] = {"name": "shop", "servers": 1, "should_run": 1, "ready": 1}
    with supervised(always(item("users"), gateway=gateway, summary=summary)):
        assert poolctl("status").out.splitlines()[1].startswith(WHOLE)
        assert poolctl("status", "-o", "json").json["gateway"]["stats"]["errors_total"] == 3
