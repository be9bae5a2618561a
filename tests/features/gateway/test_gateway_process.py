"""The gateway's process as the supervisor sees it: what it has already is not sent again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from poolctl.features.gateway.process import gateway_server
from poolctl.keeper import connection_handover, wire
from tests.features.gateway.test_gateway_server import gateway, run

DEADLINE_SECONDS = 60.0


def test_withdrawal_of_a_pair_that_was_replaced_leaves_the_new_one_in_use(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            old, new = wire.pair(), wire.pair()
            stage.process.serve(stage.facts, old[0])
            stage.process.serve(stage.facts, new[0])
            await stage.process.withdraw("web", old[0])
            client = asyncio.ensure_future(stage.get())
            while not client.done():
                with contextlib.suppress(BlockingIOError):
                    taken = connection_handover.take(new[1])
                    assert taken is not None
                    with taken:
                        taken.recv(4096)
                await asyncio.sleep(0.001)
            assert await client == b" | "
            for end in (*old, *new):
                end.close()

    run(work())


def test_supervisor_is_asked_once_a_second_to_wake_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            for _ in range(100):
                stage.server.edge.wake("web")
            stage.server.edge.wake("other")
            await stage.settled()
            asked = [each["server"] for each in stage.reports if each["t"] == "wake"]
            assert asked == ["web", "other"]
            while stage.server._waking:
                await asyncio.sleep(0.001)
            stage.server.edge.wake("web")
            await stage.settled()
            assert [each["server"] for each in stage.reports if each["t"] == "wake"] == [*asked, "web"]

    monkeypatch.setattr(gateway_server, "_WAKE_SECONDS", 0.05)
    run(work())
