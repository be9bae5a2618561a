"""As many workers are made at once as there are free descriptors, which are seldom counted."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.config import TLSConfig
from poolctl.platform import memory_file
from poolctl.runners.local.forking import Certificates, DescriptorBudget, Given
from poolctl.runners.runner_protocol import WorkerFailed
from tests.certificates import certificate

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
        return {}, [memory_file("record", self.record)] if self.record else []


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


def secured(directory: Path, *, days: float) -> ServerConfig:
    cert, key = certificate(directory, days=days)
    return ServerConfig(name="web", bind=":8080", app="a:b", tls=TLSConfig(cert=str(cert), key=str(key)))


def with_certificates(work: Callable[[Certificates], None]) -> None:
    async def scenario() -> None:
        work(Certificates(Keeper()))  # type: ignore[arg-type]

    asyncio.run(scenario())


def outcome(error: Exception | None = None, *, cancelled: bool = False) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if cancelled:
        future.cancel()
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
    return future


def test_a_worker_gets_the_last_valid_certificate_while_the_files_hold_an_expired_one(tmp_path: Path) -> None:
    def work(certificates: Certificates) -> None:
        valid = certificates.for_worker(secured(tmp_path, days=30), 1)
        server = secured(tmp_path, days=-1)
        assert certificates.for_worker(server, 2) == valid
        certificates.force("web", 3)
        assert certificates.for_worker(server, 2) == valid
        expired = certificates.for_worker(server, 3)
        assert expired != valid
        assert expired.ends is not None
        assert valid.ends is not None
        assert expired.ends < valid.ends

    with_certificates(work)


def test_an_expired_certificate_is_given_when_there_was_no_valid_one(tmp_path: Path) -> None:
    def work(certificates: Certificates) -> None:
        first = certificates.for_worker(secured(tmp_path, days=-2), 1)
        assert certificates.for_worker(secured(tmp_path, days=-1), 2) != first

    with_certificates(work)


def test_a_certificate_in_other_files_is_given_even_if_it_has_expired(tmp_path: Path) -> None:
    def work(certificates: Certificates) -> None:
        valid = certificates.for_worker(secured(tmp_path, days=30), 1)
        (tmp_path / "other").mkdir()
        assert certificates.for_worker(secured(tmp_path / "other", days=-1), 2) != valid

    with_certificates(work)


def test_a_renewed_certificate_is_kept_once_a_worker_is_ready_with_it(tmp_path: Path) -> None:
    def work(certificates: Certificates) -> None:
        old = certificates.for_worker(secured(tmp_path, days=30), 1)
        server = secured(tmp_path, days=60)
        new = certificates.for_worker(server, 2)
        assert new != old
        expired = secured(tmp_path, days=-1)
        certificates.keep_if_ready(server, 2, new, outcome(WorkerFailed("it fails")))
        certificates.keep_if_ready(server, 2, new, outcome(cancelled=True))
        assert certificates.for_worker(expired, 3) == old
        certificates.keep_if_ready(server, 2, new, outcome())
        assert certificates.for_worker(expired, 3) == new

    with_certificates(work)


def test_a_forced_certificate_is_forced_until_a_worker_of_that_generation_is_ready_or_it_is_renewed(
    tmp_path: Path,
) -> None:
    def work(certificates: Certificates) -> None:
        valid = certificates.for_worker(secured(tmp_path, days=30), 1)
        server = secured(tmp_path, days=-1)
        certificates.force("web", 2)
        certificates.keep_if_ready(server, 1, valid, outcome())
        expired = certificates.for_worker(server, 2)
        assert expired != valid
        certificates.keep_if_ready(server, 2, valid, outcome())
        assert certificates.for_worker(server, 2) == valid
        certificates.force("web", 2)
        assert certificates.renewed(server) == expired
        assert certificates.for_worker(secured(tmp_path, days=30), 2) != expired

    with_certificates(work)
