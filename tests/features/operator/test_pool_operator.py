"""The metrics of a gateway that informs an operator."""

from __future__ import annotations

from typing import Any

from poolctl.features.operator import FEATURE
from poolctl.features.operator.pool_operator import PoolOperator
from poolctl.monitor.exposition import render


def test_reports_to_an_operator_have_figures_where_there_is_one() -> None:
    site: Any = None
    part = PoolOperator(site)
    report = {"delivered": 7, "unsent": {"users": 2, "mail": 1}, "failing": {"mail": "it answers 404"}}
    text = render(part.gateway_metrics({FEATURE.package: report}))
    for line in ("requests_total 7", "unsent_requests 3", "failing_services 1"):
        assert f"poolctl_gateway_operator_{line}\n" in text
    assert [*part.gateway_metrics({})] == []
