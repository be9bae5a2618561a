"""Workers are made with their certificates, sockets and entries, as many at once as descriptors are free."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import ssl
from pathlib import Path
from typing import Any, cast

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
from tests.deadline import until
from tests.descriptors import open_descriptors
from tests.serving import turns
from tests.unit.runners.real_runner import kept, placed, served
from tests.virtual_loop import run_in_virtual_time

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


async def test_exits_between_new_workers_cause_no_count_while_there_is_room() -> None:
    descriptors = Descriptors(free=min(LIMIT, 1024))
    budget = DescriptorBudget(descriptors.count)
    for _ in range(SERVERS):
        await budget.acquire()
        budget.clear_exhausted()
    assert descriptors.counted <= 1 + SERVERS * 16 // min(LIMIT, 1024)


async def test_each_exit_causes_one_count_however_many_workers_wait_for_room() -> None:
    descriptors = Descriptors(free=0)
    budget = DescriptorBudget(descriptors.count)
    waiting = [asyncio.ensure_future(budget.acquire()) for _ in range(SERVERS)]
    await asyncio.sleep(0)
    for _ in range(3):
        budget.clear_exhausted()
        await turns(2)
    assert not any(each.done() for each in waiting)
    assert descriptors.counted <= 4
    descriptors.in_use = LIMIT - 100
    budget.clear_exhausted()
    await until(lambda: sum(each.done() for each in waiting) >= 6)
    for each in waiting:
        each.cancel()


async def test_as_many_workers_are_made_as_descriptors_are_free() -> None:
    descriptors = Descriptors(free=100)
    budget = DescriptorBudget(descriptors.count)
    for _ in range(6):
        await budget.acquire()
        descriptors.in_use += 16
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(budget.acquire(), 0.01)


@pytest.mark.loop(run=run_in_virtual_time)
async def test_worker_waits_ten_seconds_for_room_and_says_what_to_raise() -> None:
    descriptors, began = Descriptors(free=15), asyncio.get_running_loop().time()
    budget = DescriptorBudget(descriptors.count)
    with pytest.raises(ServerError, match=f"all {LIMIT} open files of the pool are in use") as caught:
        await budget.acquire()
    assert caught.value.hint == RAISE_OPEN_FILES
    assert asyncio.get_running_loop().time() == pytest.approx(began + 10)
    descriptors.in_use = LIMIT - 16
    budget.clear_exhausted()
    await budget.acquire()


class Keeper:
    """Holds the record, and counts how often it was stored."""

    def __init__(self, record: bytes = b"") -> None:
        self.record = record
        self.stored = 0

    def send(self, message: Any, fds: Any = ()) -> None:
        assert (message["op"], message["name"]) == ("put", "certificates")
        self.record = os.pread(fds[0], 1 << 20, 0)
        self.stored += 1

    async def call(self, message: Any) -> tuple[Any, list[int]]:
        assert (message["op"], message["name"]) == ("get", "certificates")
        return {}, [memory_file("record", self.record)] if self.record else []


class Certificates:
    """The fallback certificates that `keeper` holds, as workers of the server get them."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self.keeper = keeper or Keeper()
        self.kept = FallbackCertificates(cast(Any, self.keeper))

    def given(self, server: ServerConfig, generation: int = 1) -> LoadedCertificate:
        return self.kept.read_certificate_with_expiry_fallback(server, generation)


@pytest.fixture
def certificates() -> Certificates:
    return Certificates()


def secured(directory: Path, *, days: float, name: str = "web") -> ServerConfig:
    directory.mkdir(exist_ok=True)
    cert, key = certificate(directory, days=days)
    return ServerConfig(name=name, bind=":8080", app="a:b", tls=TLSConfig(cert=str(cert), key=str(key)))


def outcome(error: Exception | None = None, *, cancelled: bool = False) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if cancelled:
        future.cancel()
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
    return future


@pytest.mark.parametrize("version", [1, 2])
async def test_a_successor_has_the_last_valid_certificate_unless_its_record_is_of_a_later_version(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture, version: int
) -> None:
    valid = certificates.given(secured(tmp_path, days=30))
    await until(lambda: certificates.keeper.stored)
    record = json.loads(certificates.keeper.record)
    assert record["version"] == 1
    successor = Certificates(Keeper(json.dumps(record | {"version": version}).encode()))
    await successor.kept.load_saved(["web"])
    assert (successor.given(secured(tmp_path, days=-1)) == valid) == (version == 1)
    assert ("certificates cannot be read" in caplog.text) == (version == 2)


async def test_a_worker_gets_the_last_valid_certificate_while_the_files_hold_an_expired_one(
    certificates: Certificates, tmp_path: Path
) -> None:
    valid = certificates.given(secured(tmp_path, days=30))
    server = secured(tmp_path, days=-1)
    assert certificates.given(server, 2) == valid
    certificates.kept.force("web", 3)
    assert certificates.given(server, 2) == valid
    expired = certificates.given(server, 3)
    assert expired != valid
    assert (expired.ends or 0) < (valid.ends or 0)


async def test_an_expired_certificate_is_given_when_there_was_no_valid_one(
    certificates: Certificates, tmp_path: Path
) -> None:
    first = certificates.given(secured(tmp_path, days=-2))
    assert certificates.given(secured(tmp_path, days=-1), 2) != first


async def test_a_certificate_in_other_files_is_given_even_if_it_has_expired(
    certificates: Certificates, tmp_path: Path
) -> None:
    valid = certificates.given(secured(tmp_path, days=30))
    assert certificates.given(secured(tmp_path / "other", days=-1), 2) != valid


async def test_a_renewed_certificate_is_kept_once_a_worker_is_ready_with_it(
    certificates: Certificates, tmp_path: Path
) -> None:
    old = certificates.given(secured(tmp_path, days=30))
    server = secured(tmp_path, days=60)
    new = certificates.given(server, 2)
    assert new != old
    expired = secured(tmp_path, days=-1)
    certificates.kept.keep_if_ready(server, 2, new, outcome(WorkerFailed("it fails")))
    certificates.kept.keep_if_ready(server, 2, new, outcome(cancelled=True))
    assert certificates.given(expired, 3) == old
    certificates.kept.keep_if_ready(server, 2, new, outcome())
    assert certificates.given(expired, 3) == new


async def test_a_forced_certificate_is_forced_until_a_worker_of_that_generation_is_ready_or_it_is_renewed(
    certificates: Certificates, tmp_path: Path
) -> None:
    valid = certificates.given(secured(tmp_path, days=30))
    server = secured(tmp_path, days=-1)
    certificates.kept.force("web", 2)
    certificates.kept.keep_if_ready(server, 1, valid, outcome())
    expired = certificates.given(server, 2)
    assert expired != valid
    certificates.kept.keep_if_ready(server, 2, valid, outcome())
    assert certificates.given(server, 2) == valid
    certificates.kept.force("web", 2)
    assert certificates.kept.reload_certificate(server) == expired
    assert certificates.given(secured(tmp_path, days=30), 2) != expired


async def test_certificates_of_servers_that_start_together_are_stored_together(
    certificates: Certificates, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        certificates.given(secured(tmp_path / name, days=30, name=name))
    plain = ServerConfig(name="plain", bind=":1", app="a:b")
    assert certificates.given(plain) == LoadedCertificate((), [], None)
    await until(lambda: certificates.keeper.stored)
    assert json.loads(certificates.keeper.record)["certificates"].keys() == {"one", "two"}
    assert certificates.keeper.stored == 1
    # What is stored already is not stored again.
    certificates.kept.reload_certificate(secured(tmp_path / "one", days=60, name="one"))
    await until(lambda: certificates.keeper.stored == 2)


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
