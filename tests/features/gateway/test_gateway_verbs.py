"""Orders for hosts, as a client of the control socket may write them."""

from __future__ import annotations

import pytest

from poolctl.features.gateway.supervision.pool_gateway import host_order
from poolctl.json_form import Table
from poolctl.selection.selector import SelectorError


def test_order_names_an_operation_hosts_and_a_time() -> None:
    for seconds in (None, 0, 1.5):
        order = {"op": "disable", "hosts": ["users", "http://10.0.0.7:9000"], "for": seconds}
        assert host_order({**order, "timeout": None}) == order
    assert host_order({"op": "enable", "hosts": ["users"]})["for"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": "stop"},
        {"op": None},
        {"hosts": None},
        {"hosts": [1]},
        {"for": -1},
        {"for": "1s"},
        {"for": float("nan")},
    ],
)
def test_other_orders_are_usage_errors(wrong: Table) -> None:
    with pytest.raises(SelectorError):
        host_order({"op": "disable", "hosts": ["users"], "for": None, **wrong})
