"""Which requests a gateway counts for its operator, and that none of them waits for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process.settings import GatewaySettings
from poolctl.features.operator import FEATURE
from poolctl.features.operator.client import OperatorSettings
from poolctl.json_form import Table, from_json, to_json
from poolctl.routing.route import Target
from tests.features.gateway.passing_stage import HEAD, Stage, app_route
from tests.features.gateway.proxy_stage import ok, play

from .operator_stage import HANG, Operator


def counting(tmp_path: Path, scene: Callable[[Stage, Operator], Coroutine[Any, Any, None]]) -> None:
    """Play it with an operator, which confirms nothing: what was counted stays where the test can see it."""

    async def with_operator(stage: Stage) -> None:
        async with Operator().serving() as operator:
            operator.mode = HANG
            stage.edge.configure(replace(stage.edge.settings, parts=parts(url=operator.url)))
            await scene(stage, operator)

    play(with_operator, Stage, directory=str(tmp_path))


def parts(**keys: str) -> dict[str, Table]:
    return {FEATURE.package: to_json(OperatorSettings(**keys))}


def counted(stage: Stage) -> dict[str, int]:
    (part,) = stage.edge.parts.values()
    found: dict[str, int] = part.snapshot()["unsent"]
    return found


def test_proxied_requests_are_counted_for_their_route_and_do_not_wait(tmp_path: Path) -> None:
    async def scene(stage: Stage, operator: Operator) -> None:
        await stage.route(ok, alias="users")
        wire = await stage.client()
        for number in range(1, 4):
            await wire.send(HEAD)
            head, _ = await wire.response()
            assert head.startswith(b"HTTP/1.1 200 ")
            assert counted(stage) == {"users": number}
        await operator.until(lambda: len(operator.received) == 1)
        assert operator.release.is_set() is False

    counting(tmp_path, scene)


def test_passed_connection_is_counted_once(tmp_path: Path) -> None:
    async def scene(stage: Stage, operator: Operator) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        await stage.connect(HEAD)
        taken = await pair.take()
        taken.close()
        assert counted(stage) == {"app": 1}

    counting(tmp_path, scene)


def test_request_without_an_available_backend_is_counted(tmp_path: Path) -> None:
    async def scene(stage: Stage, operator: Operator) -> None:
        stage.server("users")
        stage.route_to("users")
        stage.edge.hosts.disable("users")
        assert (await stage.read(await stage.connect(HEAD))).startswith(b"HTTP/1.1 503 ")
        assert counted(stage) == {"app": 1}

    counting(tmp_path, scene)


def test_refused_backend_is_counted(tmp_path: Path) -> None:
    async def scene(stage: Stage, operator: Operator) -> None:
        stage.routes(app_route(alias="mail", to=(Target(url="http://127.0.0.1:1"),)))
        wire = await stage.client()
        await wire.send(HEAD)
        assert (await wire.head()).startswith(b"HTTP/1.1 502 ")
        assert counted(stage) == {"mail": 1}

    counting(tmp_path, scene)


@pytest.mark.parametrize("path", ["/health", "/favicon.ico"])
def test_probes_and_icons_which_wake_no_server_are_not_counted(tmp_path: Path, path: str) -> None:
    async def scene(stage: Stage, operator: Operator) -> None:
        await stage.route(ok, alias="users", probe_responses=("/health",))
        wire = await stage.client()
        await wire.send(HEAD.replace(b"/v1", path.encode()))
        await wire.response()
        assert counted(stage) == {}

    counting(tmp_path, scene)


def test_operator_that_is_configured_no_more_is_informed_no_more(tmp_path: Path) -> None:
    async def scene(stage: Stage, operator: Operator) -> None:
        await stage.route(ok)
        stage.edge.configure(replace(stage.edge.settings, parts={}))
        assert stage.edge.parts == {}
        wire = await stage.client()
        await wire.send(HEAD)
        await wire.response()
        assert operator.received == []

    counting(tmp_path, scene)


def test_settings_with_an_operator_survive_json() -> None:
    settings = GatewaySettings(directory="/run", parts=parts(url="http://a:1", token="s3cret"))
    assert from_json(GatewaySettings, to_json(settings)) == settings
    assert from_json(GatewaySettings, {"directory": "/run"}).parts == {}
    assert "s3cret" not in repr(settings)
