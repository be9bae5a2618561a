"""Frozen values, wherever their classes are used."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import sys
from poolctl.routing.route import Route
for name in [name for name in sys.modules if name.startswith("poolctl")]:
    del sys.modules[name]
print(Route.from_json({"alias": "a", "to": [{"server": "b"}]}).to[0].server)
"""


def test_value_is_read_where_its_module_is_no_longer_listed() -> None:
    """As in a worker, in which another poolctl may be imported."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b\n", "")
