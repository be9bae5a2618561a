"""Workers are made with their certificates, sockets and entries, as many at once as descriptors are free."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from poolctl import ServerConfig
from poolctl.config import RAISE_OPEN_FILES, TLSConfig
from poolctl.errors import ServerError
from poolctl.platform import process_start
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.local.forking import DescriptorBudget
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
