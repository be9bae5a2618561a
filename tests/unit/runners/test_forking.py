"""Workers are made with their certificates, sockets and entries, as many at once as descriptors are free."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from poolctl import ServerConfig
from poolctl.config import RAISE_OPEN_FILES, TLSConfig
from poolctl.errors import ServerError
from poolctl.platform import memory_file, process_start
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.local.forking import DescriptorBudget, FallbackCertificates, LoadedCertificate
from poolctl.runners.runner_protocol import WorkerFailed
from tests.certificates import certificate
from tests.descriptors import open_descriptors
from tests.unit.runners.real_runner import kept, placed, served
from tests.virtual_loop import VirtualLoop

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
            await budget.acquire()
            budget.clear_exhausted()

    _run(descriptors, restart)
    assert descriptors.counted <= 1 + SERVERS * 16 // min(LIMIT, 1024)


def test_each_exit_causes_one_count_however_many_workers_wait_for_room() -> None:
    descriptors = Descriptors(free=0)

    async def restart(budget: DescriptorBudget) -> None:
        waiting = [asyncio.ensure_future(budget.acquire()) for _ in range(SERVERS)]
        await asyncio.sleep(0)
        for _ in range(3):
            budget.clear_exhausted()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        assert descriptors.counted <= 4
        descriptors.in_use = LIMIT - 100
        budget.clear_exhausted()
        while sum(each.done() for each in waiting) < 6:
            await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    _run(descriptors, restart)


def test_as_many_workers_are_made_as_descriptors_are_free() -> None:
    descriptors = Descriptors(free=100)

    async def start(budget: DescriptorBudget) -> None:
        for _ in range(6):
            await budget.acquire()
            descriptors.in_use += 16
        waiting = asyncio.ensure_future(budget.acquire())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    _run(descriptors, start)


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


def recalled(record: bytes) -> dict[str, LoadedCertificate]:
    async def scenario() -> dict[str, LoadedCertificate]:
        certificates = FallbackCertificates(Keeper(record))  # type: ignore[arg-type]
        await certificates.load_saved(["web"])
        return certificates._kept

    return asyncio.run(scenario())


def test_record_for_a_successor_is_json_with_a_version(tmp_path: Any) -> None:
    for name, content in (("cert", CONTENTS[0]), ("key", CONTENTS[1])):
        (tmp_path / name).write_bytes(content)
    cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
    server = ServerConfig(name="web", bind=":8080", app="a:b", tls=TLSConfig(cert=cert, key=key))

    async def scenario() -> bytes:
        keeper = Keeper()
        FallbackCertificates(keeper).read_certificate_with_expiry_fallback(server, 1)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            while not keeper.record:
                await asyncio.sleep(0.01)
        return keeper.record

    record = asyncio.run(scenario())
    assert json.loads(record)["version"] == 1
    assert recalled(record) == {"web": LoadedCertificate((cert, key, None, None), CONTENTS, None)}


def test_record_of_a_later_version_leaves_the_files_to_be_read(caplog: pytest.LogCaptureFixture) -> None:
    assert recalled(b'{"version": 2, "certificates": []}') == {}
    assert "certificates cannot be read" in caplog.text


def secured(directory: Path, *, days: float) -> ServerConfig:
    cert, key = certificate(directory, days=days)
    return ServerConfig(name="web", bind=":8080", app="a:b", tls=TLSConfig(cert=str(cert), key=str(key)))


def with_certificates(work: Callable[[FallbackCertificates], None]) -> None:
    async def scenario() -> None:
        work(FallbackCertificates(Keeper()))  # type: ignore[arg-type]

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
    def work(certificates: FallbackCertificates) -> None:
        valid = certificates.read_certificate_with_expiry_fallback(secured(tmp_path, days=30), 1)
        server = secured(tmp_path, days=-1)
        assert certificates.read_certificate_with_expiry_fallback(server, 2) == valid
        certificates.force("web", 3)
        assert certificates.read_certificate_with_expiry_fallback(server, 2) == valid
        expired = certificates.read_certificate_with_expiry_fallback(server, 3)
        assert expired != valid
        assert expired.ends is not None
        assert valid.ends is not None
        assert expired.ends < valid.ends

    with_certificates(work)


def test_an_expired_certificate_is_given_when_there_was_no_valid_one(tmp_path: Path) -> None:
    def work(certificates: FallbackCertificates) -> None:
        first = certificates.read_certificate_with_expiry_fallback(secured(tmp_path, days=-2), 1)
        assert certificates.read_certificate_with_expiry_fallback(secured(tmp_path, days=-1), 2) != first

    with_certificates(work)


def test_a_certificate_in_other_files_is_given_even_if_it_has_expired(tmp_path: Path) -> None:
    def work(certificates: FallbackCertificates) -> None:
        valid = certificates.read_certificate_with_expiry_fallback(secured(tmp_path, days=30), 1)
        (tmp_path / "other").mkdir()
        assert (
            certificates.read_certificate_with_expiry_fallback(secured(tmp_path / "other", days=-1), 2)
            != valid
        )

    with_certificates(work)


def test_a_renewed_certificate_is_kept_once_a_worker_is_ready_with_it(tmp_path: Path) -> None:
    def work(certificates: FallbackCertificates) -> None:
        old = certificates.read_certificate_with_expiry_fallback(secured(tmp_path, days=30), 1)
        server = secured(tmp_path, days=60)
        new = certificates.read_certificate_with_expiry_fallback(server, 2)
        assert new != old
        expired = secured(tmp_path, days=-1)
        certificates.keep_if_ready(server, 2, new, outcome(WorkerFailed("it fails")))
        certificates.keep_if_ready(server, 2, new, outcome(cancelled=True))
        assert certificates.read_certificate_with_expiry_fallback(expired, 3) == old
        certificates.keep_if_ready(server, 2, new, outcome())
        assert certificates.read_certificate_with_expiry_fallback(expired, 3) == new

    with_certificates(work)


def test_a_forced_certificate_is_forced_until_a_worker_of_that_generation_is_ready_or_it_is_renewed(
    tmp_path: Path,
) -> None:
    def work(certificates: FallbackCertificates) -> None:
        valid = certificates.read_certificate_with_expiry_fallback(secured(tmp_path, days=30), 1)
        server = secured(tmp_path, days=-1)
        certificates.force("web", 2)
        certificates.keep_if_ready(server, 1, valid, outcome())
        expired = certificates.read_certificate_with_expiry_fallback(server, 2)
        assert expired != valid
        certificates.keep_if_ready(server, 2, valid, outcome())
        assert certificates.read_certificate_with_expiry_fallback(server, 2) == valid
        certificates.force("web", 2)
        assert certificates.reload_certificate(server) == expired
        assert certificates.read_certificate_with_expiry_fallback(secured(tmp_path, days=30), 2) != expired

    with_certificates(work)


def test_worker_waits_ten_seconds_for_room_and_says_what_to_raise() -> None:
    descriptors = Descriptors(free=15)

    async def work() -> None:
        budget = DescriptorBudget(descriptors.count)
        with pytest.raises(ServerError, match=f"all {LIMIT} open files of the pool are in use") as caught:
            await budget.acquire()
        assert caught.value.hint == RAISE_OPEN_FILES
        assert asyncio.get_running_loop().time() == pytest.approx(began + 10)
        descriptors.in_use = LIMIT - 16
        budget.clear_exhausted()
        await budget.acquire()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        began = runner.get_loop().time()
        runner.run(work())


async def test_certificates_of_servers_that_start_together_are_stored_together(tmp_path: Path) -> None:
    keeper = Keeper()
    stored: list[bytes] = []
    send = keeper.send

    def counted(message: Any, fds: Any = ()) -> None:
        send(message, fds)
        stored.append(keeper.record)

    keeper.send = counted  # type: ignore[method-assign]
    certificates = FallbackCertificates(keeper)  # type: ignore[arg-type]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        server = secured(tmp_path / name, days=30)
        certificates.read_certificate_with_expiry_fallback(
            ServerConfig(name=name, bind=":1", app="a:b", tls=server.tls), 1
        )
    plain = ServerConfig(name="plain", bind=":1", app="a:b")
    assert certificates.read_certificate_with_expiry_fallback(plain, 1) == LoadedCertificate((), [], None)
    async with asyncio.timeout(60):
        while not stored:
            await asyncio.sleep(0.01)
    (record,) = stored
    assert json.loads(record)["certificates"].keys() == {"one", "two"}
    # What is stored already is not stored again.
    certificates.reload_certificate(
        ServerConfig(name="one", bind=":1", app="a:b", tls=secured(tmp_path / "one", days=60).tls)
    )
    async with asyncio.timeout(60):
        while len(stored) < 2:
            await asyncio.sleep(0.01)


def serial(server: ServerConfig) -> int:
    """The serial number of the certificate with which the server answers."""
    with socket.create_connection((server.address.host, server.address.port), timeout=60) as plain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) as sock:
            found = sock.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


@pytest.mark.slow
async def test_worker_that_cannot_be_forked_leaves_nothing(runner: ProcessRunner, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, days=30)
    server = served(tls=TLSConfig(cert=str(cert), key=str(key)))
    await runner.open(server)
    await runner.check_startable(server)
    entries, descriptors = (await kept(runner)).keys(), open_descriptors()
    key.unlink()
    with pytest.raises(ServerError):
        await runner.place(server, 1, 0)
    assert (await kept(runner)).keys() == entries
    assert open_descriptors() == descriptors


@pytest.mark.slow
async def test_entry_of_a_worker_has_what_another_supervisor_needs(runner: ProcessRunner) -> None:
    server = served()
    placement = await placed(runner, server, 4, 2)
    meta = (await kept(runner))["worker:web.4.2"]
    assert (meta["server"], meta["key"], meta["generation"], meta["index"]) == ("web", server.key, 4, 2)
    assert (meta["pid"], meta["start"]) == (placement.pid, process_start(placement.pid or 0))
    assert (meta["protocol"], meta["notify"]) == ("plain", None)
    assert "hook" not in meta
    hook = await runner.begin_hook(
        served(hooks={"before_start": ["sleep", "600"]}, name="other"), "before_start"
    )
    assert (await kept(runner))[f"worker:{hook.id}"]["hook"] == "before_start"
    assert hook.where == f"pid {hook.pid}"
    await runner.stop(hook, 0)
