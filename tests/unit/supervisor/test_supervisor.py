"""What no start needs, imported after it."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from poolctl.supervisor import supervisor
from poolctl.supervisor.supervisor import import_slowly, late_modules


def test_modules_are_imported_with_other_work_between_them_and_one_that_is_missing_is_passed_over() -> None:
    async def scenario() -> None:
        names = ["poolctl.nowhere", "poolctl.states", "poolctl.units"]
        work = asyncio.ensure_future(import_slowly(names))
        turns = 0
        async with asyncio.timeout(60):
            while not work.done():
                await asyncio.sleep(supervisor._BETWEEN_IMPORTS_SECONDS / 4)
                turns += 1
        assert turns >= len(names)
        await work

    asyncio.run(scenario())


def test_start_imports_none_of_them_and_afterwards_all_of_them_are_there() -> None:
    upgrade = "poolctl.supervisor.verbs.upgrade"
    assert upgrade in late_modules()
    names = [each for each in late_modules() if ".verbs." not in each or each == upgrade]
    look = f"""
import sys
import poolctl.supervisor.__main__
poolctl.supervisor.__main__.leave_out_plugins()
import poolctl.supervisor.supervisor
assert "importlib.metadata" not in sys.modules, "the search for pydantic's plugins"
import poolctl.runners.local.local_runner
from poolctl.address import parse
from poolctl.listeners.open_listener import targets
assert [each.host for each in targets(parse("127.0.0.1:8080"))] == ["127.0.0.1"]
for name in ("tempfile", "encodings.idna"):
    assert name not in sys.modules, name
names = {names!r}
early = [name for name in names if name in sys.modules]
assert not early, early
for name in names:
    __import__(name)
there = set(sys.modules)
from poolctl.supervisor.verbs import reload, upgrade
from poolctl.supervisor import health
from poolctl.supervisor.observers import metrics_server
late = set(sys.modules) - there
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
