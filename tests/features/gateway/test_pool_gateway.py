"""The gateway's part of the supervisor: its modules are imported after a start, before files may be replaced."""

from __future__ import annotations

import subprocess
import sys

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
