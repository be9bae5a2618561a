"""The gateway's part of the supervisor: orders for hosts, and imports after a start, before files may be replaced."""

from __future__ import annotations

import subprocess
import sys

import pytest

from poolctl.features.gateway.supervision.pool_gateway import host_order
from poolctl.json_form import Table
from poolctl.selection.selector import SelectorError

LOOK = """
import sys
import poolctl.supervisor.supervisor
import poolctl.runners.local.local_runner
routes = {"poolctl.routing.match", "poolctl.features.gateway.table"}
assert not routes & set(sys.modules)
for name in poolctl.supervisor.supervisor.late_modules():
    __import__(name)
assert not {"pydantic", "pydantic_core"} & set(sys.modules)
# Files of the package may be replaced from now on.
assert routes <= set(sys.modules)
there = set(sys.modules)
from poolctl.features.gateway.supervision import computed_routes, gateway_adoption, gateway_metrics, gateway_process
late = set(sys.modules) - there
assert not late, late
"""


def test_supervisor_imports_the_parts_of_the_gateway_after_its_start() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
