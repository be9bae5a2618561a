"""An unexpected exception ends one attempt of repeated work: it is logged, and the next attempt is made."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from contextlib import closing
from typing import Any

import pytest

from poolctl.features.gateway.haproxy.host_names import HostNames
from poolctl.features.gateway.repeated_work import RepeatedWork
from tests.deadline import until
from tests.ports import claim_port
from tests.virtual_loop import VirtualLoop

FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


def test_first_of_several_exceptions_in_a_row_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    work = RepeatedWork("the counters")
    for is_failing in (True, True, False, True):
        with work.attempt():
            if is_failing:
                raise ArithmeticError("not expected")
    assert [each.getMessage() for each in caplog.records] == [
        "the counters: not expected, and tried again"
    ] * 2
    assert all(each.levelno == logging.ERROR and each.exc_info for each in caplog.records)


def test_expected_ends_of_work_pass() -> None:
    with pytest.raises(asyncio.CancelledError), RepeatedWork("the counters").attempt():
        raise asyncio.CancelledError


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_host_with_two_families_is_reached_where_it_listens_later(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    resolve = socket.getaddrinfo

    def answer(name: str, *hints: Any, **more: Any) -> Any:
        if name != "both.example":
            return resolve(name, *hints, **more)
        return [(0, 0, 0, "", (address, 0)) for address in ("::1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", answer)

    async def scene(port: int) -> None:
        names = HostNames(lambda: None)
        await names.follow({"both.example": port})
        await until(lambda: names.addresses == {"both.example": "::1"}, math.inf)
        with socket.create_server((family, port), family=FAMILIES[family]):
            await until(lambda: names.addresses == {"both.example": family}, math.inf)
        names.close()

    with closing(VirtualLoop()) as loop:
        loop.run_until_complete(scene(claim_port()))
