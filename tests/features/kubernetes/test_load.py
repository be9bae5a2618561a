"""Rolling updates on a cluster under load: no request fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.load import Load, apps

from .test_live import POOL, Cluster
from .test_live import cluster as cluster
from .test_live import write as write

pytest.importorskip("lightkube")
pytestmark = [pytest.mark.heavy, pytest.mark.integration]

REQUESTS = 10_000
MODES: dict[str, dict[str, Any]] = {
    "keep_alive": {"connections": 8, "pause": 0.01},
    "new_connection": {"connections": 4, "pause": 0.01},
    "websocket": {"connections": 4},
    "sse": {"connections": 4},
}


@contextmanager
def under_load(target: str) -> Iterator[None]:
    """Requests of every kind to HOST:PORT during the block, and until there were many; none of them may fail."""
    wait_until(lambda: reaches(target))
    with ExitStack() as stack:
        loads = {
            mode: stack.enter_context(Load([target], mode, **options)) for mode, options in MODES.items()
        }
        yield
        wait_until(
            lambda: sum(loads[mode].look().complete for mode in ("keep_alive", "new_connection")) >= REQUESTS
        )
        reports = {mode: load.stop() for mode, load in loads.items()}
    print(reports)
    assert {mode: (report.failed, report.failures) for mode, report in reports.items()} == dict.fromkeys(
        MODES, (0, [])
    )
    # Sessions ended with their pods, in order, and went on elsewhere.
    assert all(reports[mode].complete > MODES[mode]["connections"] for mode in ("websocket", "sse"))


def test_no_request_fails_while_workers_are_replaced_and_their_number_changes(
    cluster: Cluster, write: Any, poolctl: Any
) -> None:
    """The cluster's nodes learn half a second late that a pod leaves; a pod serves on for five."""
    shutil.copy(apps.__file__, cluster.directory / "images" / "shop:1" / "loaded.py")
    web = server("web", bind="127.0.0.1:8002", app="loaded:app", workers=2, drain_timeout="10s")
    write(web, pool=POOL.replace("300ms", "5s"))
    assert poolctl("start").code == 0
    before = set(cluster.addresses("web"))
    with under_load(cluster.ask("service/web", {})):
        assert poolctl("restart").code == 0
        write(web + 'env = { WORD = "two" }\n', pool=POOL.replace("300ms", "5s"))
        assert poolctl("reload").code == 0
        assert poolctl("scale", "web", "3").code == 0
        assert poolctl("scale", "web", "1").code == 0
        wait_until(lambda: len(cluster.objects("pods")) == 1)
        assert not before & set(cluster.addresses("web"))


def reaches(target: str) -> bool:
    with Load([target], connections=1) as load:
        return not load.stop().failed
