"""What no start needs, imported after it."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from poolctl.supervisor import deferred_imports, health
from poolctl.supervisor.deferred_imports import DeferredImports
from poolctl.supervisor.observers import observers
from poolctl.supervisor.verbs import verbs


def test_steps_are_taken_in_order_with_other_work_between_them() -> None:
    async def scenario() -> list[str]:
        seen: list[str] = []
        steps = DeferredImports()
        steps.add([], lambda: seen.append("first"))
        steps.add(["poolctl.states"], lambda: seen.append("second"))
        steps.start()
        assert seen == []

        def between() -> None:
            seen.append("between")
            if "second" not in seen:
                loop.call_later(deferred_imports._BETWEEN_SECONDS / 4, between)

        loop = asyncio.get_running_loop()
        loop.call_later(deferred_imports._AFTER_START_SECONDS, between)
        async with asyncio.timeout(10):
            while "second" not in seen:
                await asyncio.sleep(0.01)
        return seen

    seen = asyncio.run(scenario())
    assert [each for each in seen if each != "between"] == ["first", "second"]
    assert "between" in seen[seen.index("first") : seen.index("second")]


def test_a_start_imports_none_of_it_and_afterwards_all_of_it_is_there() -> None:
    changing = ["verbs.diff", "verbs.overrides", "verbs.reload", "verbs.upgrade"]
    assert set(changing) <= set(verbs.modules())
    names = [*health.MODULES, *observers.METRICS_MODULES, *changing, "takeover.replace_keeper"]
    whole = [name if name.startswith("poolctl.") else f"poolctl.supervisor.{name}" for name in names]
    look = f"""
import sys
import poolctl.supervisor.__main__, poolctl.supervisor.supervisor
names = {whole!r}
early = [name for name in names if name in sys.modules]
assert not early, early
for name in names:
    __import__(name)
there = set(sys.modules)
from poolctl.supervisor.verbs import overrides, reload, upgrade
from poolctl.supervisor.takeover import replace_keeper
from poolctl.supervisor.health import recovery, memory_limit, heartbeat
from poolctl.supervisor.observers import metrics, metrics_server
late = set(sys.modules) - there
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
