"""Commands leave no objects behind in the supervisor, not even for the garbage collector to find."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.client import Client
from poolctl.supervisor.feature_parts import modules
from tests.ports import claim_port
from tests.real_pool import RealPool

# On SIGUSR2: how many objects of each class of ours there are. Nothing is collected but what nothing refers to.
HOOK = """
import os, sys

def count(*_):
    import gc, collections, json
    found = collections.Counter(
        f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects()
        # Of modules that are imported some time after the start: their classes, and keys of their tables. Notes of
        # processes are sorted out once there are some hundred.
        if not isinstance(each, type) and type(each).__qualname__ not in ("Key", "ProcessNote")
    )
    counts = {name: n for name, n in found.items() if name.startswith(("poolctl.", "_asyncio."))}
    with open(COUNTS + ".new", "w") as file:
        json.dump({"counts": counts, "modules": [*sys.modules]}, file)
    os.replace(COUNTS + ".new", COUNTS)

if "supervisor" in sys.orig_argv:
    import gc, signal
    signal.signal(signal.SIGUSR2, count)
    gc.enable = lambda: None
"""
LATE_MODULES = {*modules()}
# Of a worker that ended a moment ago, and what is under way.
LEEWAY = 8


@pytest.mark.heavy
@pytest.mark.slow
def test_restarts_reloads_and_live_changes_leave_no_objects(pool: RealPool, until: Any) -> None:
    counts, port = pool.directory / "counts", claim_port()
    hook = pool.write("hook/sitecustomize.py", f"COUNTS = {str(counts)!r}\n{HOOK}")
    pool.env["PYTHONPATH"] = str(hook.parent)
    pool.write_hello("web", "other", extra='recovery = { heartbeat = "500ms" }')
    file = pool.directory / "pool.toml"
    text = file.read_text()
    pool.ok("start")
    (path,) = pool.runtime.glob("[!@]*/control.sock")
    client = Client(str(path))
    supervisor = pool.info()["supervisor_pid"]

    def all_commands(times: int) -> None:
        for number in range(times):
            file.write_text(f'{text}env = {{ TURN = "{number}" }}\n')
            server = {"name": "x", "bind": f"127.0.0.1:{port}", "app": "hello:app"}
            for verb, selected, options in (
                ("restart", "web", {}),
                ("reload", "", {}),
                ("scale", "web", {"workers": 2 + (times - number) % 2}),
                ("add", "", {"server": server, "base_dir": str(pool.directory)}),
                ("remove", "x", {}),
                ("list", "", {}),
            ):
                selector = {"targets": [selected] if selected else []}
                result = client.call(verb, {"selector": selector, "options": options})
                assert not result["errors"], result

    def held() -> dict[str, Any]:
        counts.unlink(missing_ok=True)
        os.kill(supervisor, signal.SIGUSR2)
        until(counts.exists)
        return dict(json.loads(Path(counts).read_text()))

    def objects() -> dict[str, int]:
        return dict(held()["counts"])

    # The supervisor imports these one at a time after its start; their objects belong to no command.
    until(lambda: set(held()["modules"]) >= LATE_MODULES)
    all_commands(3)
    before = objects()

    def more() -> list[str]:
        return [
            f"{name}: {count}, not {before.get(name, 0)}"
            for name, count in objects().items()
            if count > before.get(name, 0) + LEEWAY
        ]

    all_commands(12)
    with contextlib.suppress(AssertionError):
        until(lambda: not more())
    assert more() == []
