"""An application imports the routes' module in its worker, whatever its interpreter has of poolctl."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import poolctl

PACKAGE = Path(poolctl.__file__).parent
# As a zygote does before its first fork; then the application's imports, without poolctl's own directory.
FORGOTTEN = f"""
import sys
import poolctl.worker.zygote
from poolctl.json_form import from_json
from poolctl.routing.route import Route as used
poolctl.worker.preload.prepare_for_forks()
sys.path[:] = [path for path in sys.path if path != {str(PACKAGE.parent)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


def run(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORGOTTEN + code],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_application_without_poolctl_finds_the_workers_own_classes(tmp_path: Path) -> None:
    code = """
before = set(sys.modules)
from poolctl.gateway.routes import Route, try_get_route, with_route, __all__ as exported
import poolctl.gateway.routes as routes
assert Route is used
assert all(hasattr(routes, name) for name in exported)
route = Route(alias="users", to=(routes.Target(server="users"),))
assert next(iter(routes.RouteTable(routes.write_table([route], 1)))) == route
assert try_get_route(with_route({"type": "http"}, route)) == route
try:
    import poolctl.core
except ImportError:
    print("nothing else")
"""
    assert run(code, tmp_path) == "nothing else\n"


def test_worker_reads_routes_and_imports_nothing_before_the_application_asks(tmp_path: Path) -> None:
    code = """
from_json(used, {"alias": "users", "to": [{"server": "users"}], "limit": {"burst": 5}})
print([name for name in sys.modules if name.startswith("poolctl")])
"""
    assert run(code, tmp_path) == "[]\n"


@pytest.mark.parametrize("lacks", [False, True])
def test_poolctl_of_the_application_comes_first(tmp_path: Path, lacks: bool) -> None:
    own = tmp_path / "poolctl"
    (own / "gateway").mkdir(parents=True)
    (own / "__init__.py").write_text("own = True\n")
    (own / "gateway" / "__init__.py").write_text("")
    if not lacks:
        (own / "gateway" / "routes.py").write_text("own = True\n")
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
import poolctl.gateway.routes
print(poolctl.own, hasattr(poolctl.gateway.routes, "own"), hasattr(poolctl.gateway.routes, "Registry"))
"""
    assert run(code, tmp_path) == f"True {not lacks} {lacks}\n"
