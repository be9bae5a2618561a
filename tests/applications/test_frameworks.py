"""Applications of real frameworks, and servers of other people: served, restarted under load, asleep, edited."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.applications.frameworks import FRAMEWORKS, PROGRAMS, WITHOUT_THE_SOCKET, Project
from tests.deadline import wait_until
from tests.http_get import get
from tests.load import Load
from tests.real_pool import RealPool

Serve = Callable[..., int]


@pytest.mark.parametrize("project", [*FRAMEWORKS, *PROGRAMS], ids=str)
@pytest.mark.parametrize("mode", ["keep_alive", "new_connection"])
def test_restarts_under_load_lose_nothing(
    real_pool: RealPool, serve: Serve, project: Project, mode: str
) -> None:
    if project.name in WITHOUT_THE_SOCKET:
        pytest.skip("it opens its port itself")
    port = serve(project)
    load = Load([port], mode=mode, connections=4, pause=0.002, path=project.path, echo=False)
    load.start()
    for _ in range(3):
        real_pool.ok("restart", "--timeout", "60s")
    report = load.stop()
    assert report.complete > 0
    assert report.failed == 0, report


@pytest.mark.parametrize("project", FRAMEWORKS, ids=str)
def test_sleeping_server_is_woken_by_a_request(real_pool: RealPool, serve: Serve, project: Project) -> None:
    port = serve(project, scale={"min": 0, "max": 1, "idle": "1s"})
    for _ in range(2):
        assert get(port, project.path).status == 200
        real_pool.ok("wait", "--for", "sleeping", "--timeout", "60s")
        assert real_pool.items()["web"]["pids"] == []


@pytest.mark.parametrize("project", [each for each in FRAMEWORKS if each.preload], ids=str)
def test_workers_of_one_import_serve_and_are_restarted(
    real_pool: RealPool, serve: Serve, project: Project
) -> None:
    port = serve(project, preload=True, workers=3)
    before = real_pool.items()["web"]["pids"]
    assert len(before) == 3
    real_pool.ok("restart", "--timeout", "60s")
    assert get(port, project.path).text == f"{project.name} 1"
    assert not {*before} & {*real_pool.items()["web"]["pids"]}


@pytest.mark.parametrize("project", [each for each in (*FRAMEWORKS, *PROGRAMS) if each.edited], ids=str)
def test_reload_that_watches_serves_what_was_edited(
    real_pool: RealPool, serve: Serve, project: Project
) -> None:
    port = serve(project, watch={"include": ["www/**"]})
    assert get(port, project.path).text == f"{project.name} 1"
    real_pool.spawn("reload", "--watch")
    path = real_pool.directory / project.edited

    def is_edited() -> bool:
        # Written again until it is seen: the command looks from some moment on.
        path.write_text(path.read_text().replace('VERSION = "1"', 'VERSION = "2"'))
        with contextlib.suppress(OSError):  # one that opens its port itself refuses connections for a moment
            return get(port, project.path).text == f"{project.name} 2"
        return False

    wait_until(is_edited)
