"""As many workers are made at once as there are free descriptors, which are seldom counted."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import resource
from collections.abc import Callable
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.config import TLSConfig
from poolctl.platform import sealed_file
from poolctl.runners.local.forking import Certificates, DescriptorBudget, Given

LIMIT, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
SERVERS = 500


class Descriptors:
    """Descriptors in use of the limit, and how often they were counted."""

    def __init__(self, free: int) -> None:
        self.in_use = LIMIT - free
        self.counted = 0

    def count(self) -> int:
        self.counted += 1
        return self.in_use


def _run(descriptors: Descriptors, work: Callable[[DescriptorBudget], object]) -> None:
    async def scenario() -> None:
        await work(DescriptorBudget(descriptors.count))  # type: ignore[misc]

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_exits_between_new_workers_cause_no_count_while_there_is_room() -> None:
    descriptors = Descriptors(free=min(LIMIT, 1024))

    async def restart(budget: DescriptorBudget) -> None:
        for _ in range(SERVERS):
            await budget.enter()
            budget.ended()

    _run(descriptors, restart)
    assert descriptors.counted <= 1 + SERVERS * 16 // min(LIMIT, 1024)


def test_each_exit_causes_one_count_however_many_workers_wait_for_room() -> None:
    descriptors = Descriptors(free=0)

    async def restart(budget: DescriptorBudget) -> None:
        waiting = [asyncio.ensure_future(budget.enter()) for _ in range(SERVERS)]
        await asyncio.sleep(0)
        for _ in range(3):
            budget.ended()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        assert descriptors.counted <= 4
        descriptors.in_use = LIMIT - 100
        budget.ended()
        while sum(each.done() for each in waiting) < 6:
            await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    _run(descriptors, restart)


NEVER = 4e9  # in seconds since the epoch: later than any test
FILES = ("/tmp/cert.pem", "/tmp/key.pem", None, None)
CONTENTS = [b"certificate", b"key \xff\x00"]


class Keeper:
    """Holds the record."""

    def __init__(self, record: bytes = b"") -> None:
        self.record = record

    def send(self, message: Any, fds: Any = ()) -> None:
        assert (message["op"], message["name"]) == ("put", "certificates")
        self.record = os.pread(fds[0], 1 << 20, 0)

    async def call(self, message: Any) -> tuple[Any, list[int]]:
        assert (message["op"], message["name"]) == ("get", "certificates")
        return {}, [sealed_file("record", self.record)] if self.record else []


def recalled(record: bytes) -> dict[str, Given]:
    async def scenario() -> dict[str, Given]:
        certificates = Certificates(Keeper(record))  # type: ignore[arg-type]
        await certificates.recall(["web"])
        return certificates._given

    return asyncio.run(scenario())


def test_record_for_a_successor_is_json_with_a_version(tmp_path: Any) -> None:
    for name, content in (("cert", CONTENTS[0]), ("key", CONTENTS[1])):
        (tmp_path / name).write_bytes(content)
    cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
    server = ServerConfig(name="web", bind=":8080", app="a:b", tls=TLSConfig(cert=cert, key=key))

    async def scenario() -> bytes:
        keeper = Keeper()
        Certificates(keeper).for_worker(server, 1)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            while not keeper.record:
                await asyncio.sleep(0.01)
        return keeper.record

    record = asyncio.run(scenario())
    assert json.loads(record)["version"] == 1
    assert recalled(record) == {"web": Given((cert, key, None, None), CONTENTS, None)}


def test_record_of_a_supervisor_without_versions_is_read() -> None:
    record = pickle.dumps({"web": (FILES, CONTENTS, NEVER), "gone": (FILES, CONTENTS, None)})
    assert recalled(record) == {"web": Given(FILES, CONTENTS, NEVER)}


def test_record_of_a_later_version_leaves_the_files_to_be_read(caplog: pytest.LogCaptureFixture) -> None:
    assert recalled(b'{"version": 2, "certificates": []}') == {}
    assert "certificates cannot be read" in caplog.text
