"""Python's development mode, which reports what a process leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.real_pool import RealPool


@pytest.mark.capability
def test_no_process_of_the_pool_leaves_a_descriptor_open(
    real_pool: RealPool, until: Callable[..., Any]
) -> None:
    real_pool.env["PYTHONDEVMODE"] = "1"
    real_pool.write_hello("web")
    real_pool.ok("start")
    real_pool.ok("restart")
    real_pool.ok("reload")
    real_pool.ok("stop")
    until(lambda: not real_pool.processes())
    # The end of a pool removes those that are empty.
    logs = {path.name: path.read_text(errors="replace") for path in real_pool.runtime.glob("*/*.log")}
    assert [name for name, text in logs.items() if "ResourceWarning" in text] == []
