"""The client of an operator, against a real HTTP server that fails in many ways."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolctl.features.operator.client import (
    DUE_NS,
    MAX_NAME_BYTES,
    NOT_REACHED,
    PREFIX,
    REACHED,
    RECORD_BYTES,
    REQUESTS_AT_ONCE,
    TIMEOUT_SECONDS,
    OperatorSettings,
    UnsentCounts,
)
from poolctl.json_form import to_json
from tests.certificates import certificate
from tests.descriptors import no_descriptor_left

from .operator_stage import GARBAGE, HALF, HANG, OK, REFUSE, RESET, Client, MovedLoop, Operator, move

Test = Callable[..., Coroutine[Any, Any, None]]


def run(work: Coroutine[Any, Any, None]) -> None:
    MovedLoop().run(work)


def test_first_request_is_reported_at_once_in_the_form_of_kubeelasti() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator) as client:
                client.client.count("users")
                await client.delivered(1)
            head = operator.heads[0]
            assert head.startswith(b"POST /informer/incoming-request HTTP/1.1\r\n")
            assert b"\r\ncontent-type: application/json\r\n" in head
            assert b"authorization" not in head
            assert operator.received == [{"count": 1, "svc": "users", "namespace": "shop"}]

    run(test())


def test_endpoint_path_and_token_are_sent() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, url=f"{operator.url}/base/", endpoint="/wake", token="s3cret") as client:
                client.client.count("users")
                await client.delivered(1)
            assert operator.heads[0].startswith(b"POST /base/wake HTTP/1.1\r\n")
            assert b"\r\nauthorization: Bearer s3cret\r\n" in operator.heads[0]
            assert "s3cret" not in repr(client.client._settings)

    run(test())


def test_operator_on_a_unix_socket_is_informed(tmp_path: Path) -> None:
    async def test() -> None:
        path = str(tmp_path / "operator.sock")
        async with Operator().serving(path) as operator:
            with Client(operator, url=f"unix:{path}") as client:
                client.client.count("users", 3)
                await client.delivered(3)
            assert operator.received[0]["count"] == 3

    run(test())


def test_requests_within_the_retry_duration_are_summed_in_the_next_report() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator) as client:
                client.client.count("users")
                await client.delivered(1)
                for _ in range(5):
                    client.client.count("users")
                client.client.count("mail")  # another service has a time of its own
                await client.delivered(2)
                await move(20)
                assert [each["svc"] for each in operator.received] == ["users", "mail"]
                await move(10)
                await client.delivered(7)
            assert operator.received[-1] == {"count": 5, "svc": "users", "namespace": "shop"}

    run(test())


def test_one_request_of_a_service_is_in_flight_however_many_arrive() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            operator.mode = HANG
            with Client(operator, retry_seconds=0.01) as client:
                client.client.count("users")
                await operator.until(lambda: len(operator.received) == 1)
                for _ in range(100):
                    client.client.count("users")
                await move(5)
                assert (len(operator.received), operator.most) == (1, 1)
                operator.mode = OK
                await move(TIMEOUT_SECONDS)  # the hanging one is given up
                await client.delivered(101)
            assert [each["count"] for each in operator.received] == [1, 101]

    run(test())


@pytest.mark.parametrize("mode", [REFUSE, RESET, GARBAGE, HALF, HANG])
def test_count_of_a_failed_report_is_sent_with_the_next_one(mode: str) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            operator.mode = mode
            with Client(operator) as client:
                client.client.count("users", 2)
                await operator.until(lambda: len(operator.received) == 1)
                if mode == HANG:
                    await move(TIMEOUT_SECONDS)
                await client.failed("users")
                client.client.count("users", 3)
                operator.mode = OK
                await move(15)  # not before the retry duration, at most half of it later
                assert len(operator.received) == 1
                await move(31)
                await client.delivered(5)
            assert [each["count"] for each in operator.received] == [2, 5]
            assert client.kinds == [NOT_REACHED, REACHED]
            assert "users" in client.reports[0][1]

    run(test())


def test_operator_that_refuses_connections_is_reported_once_for_all_services() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            pass  # its port is closed now
        with Client(operator) as client:
            for name in ("users", "mail", "files"):
                client.client.count(name)
            for name in ("users", "mail", "files"):
                await client.failed(name)
            assert client.kinds == [NOT_REACHED]
            assert client.client.unsent == 3

    run(test())


def test_requests_under_way_of_many_services_are_bounded() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            operator.mode = HANG
            with Client(operator) as client:
                for number in range(3 * REQUESTS_AT_ONCE):
                    client.client.count(f"service-{number}")
                await operator.until(lambda: len(operator.received) == REQUESTS_AT_ONCE)
                operator.mode = OK
                await move(TIMEOUT_SECONDS)
                await client.delivered(2 * REQUESTS_AT_ONCE)
                assert operator.most <= 2 * REQUESTS_AT_ONCE  # those that were given up among them
                await move(60)
                await client.delivered(3 * REQUESTS_AT_ONCE)

    run(test())


def test_pauses_after_failures_grow_with_jitter_up_to_a_bound() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            operator.mode = REFUSE
            with Client(operator) as client:
                made = client.client
                made.count("users")
                pauses = []
                for times in range(1, 8):
                    before = made._loop.time()
                    await client.failed("users", times)
                    pauses.append(made._due_time(made._services["users"]) - before)
                    await move(pauses[-1])
            for pause, least in zip(pauses, (30, 60, 120, 240, 300, 300, 300), strict=True):
                assert least - 1 <= pause <= least * 1.5 + 10  # the machine may be slow
            assert (
                len({round(pause / least, 3) for pause, least in zip(pauses[4:], (300,) * 3, strict=True)})
                == 3
            )

    run(test())


STEP = st.tuples(
    st.sampled_from(["users", "mail"]), st.integers(1, 5), st.sampled_from([OK, REFUSE, RESET, GARBAGE])
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=1, max_size=6), restarts=st.sets(st.integers(0, 5)))
def test_sum_of_delivered_counts_is_the_sum_of_counted_ones(
    tmp_path: Path, steps: list[tuple[str, int, str]], restarts: set[int]
) -> None:
    async def test() -> None:
        counted: dict[str, int] = {}
        async with Operator().serving() as operator:
            client = Client(operator, str(tmp_path))
            for number, (name, count, mode) in enumerate(steps):
                operator.mode = mode
                client.client.count(name, count)
                counted[name] = counted.get(name, 0) + count
                await client.idle()  # an answer that is lost by the leap would be one too many
                await move(500)
                if number in restarts:
                    # What is under way is completed, or has not been confirmed: then it may count twice.
                    await client.settle(lambda state: operator.now == 0)
                    await client.idle()
                    client.client.close()
                    client = Client(operator, str(tmp_path))
            operator.mode = OK
            for _ in range(3):
                await client.idle()
                await move(500)
            await client.settle(lambda state: not state["unsent"])
            client.client.close()
            assert operator.confirmed == counted
        assert os.listdir(tmp_path) == []

    run(test())


KILLED = """
import asyncio, os, signal, sys
from poolctl.gateway.operator import OperatorClient, OperatorSettings

async def main():
    client = OperatorClient(OperatorSettings(url="http://127.0.0.1:1"), sys.argv[1])
    for number in range(20):
        client.count(f"service-{number}", number + 1)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_counts_of_a_killed_process_are_sent_by_the_next_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert done.returncode == -signal.SIGKILL

    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path)) as client:
                await client.delivered(sum(range(1, 21)))
            assert operator.confirmed == {f"service-{number}": number + 1 for number in range(20)}
        assert os.listdir(tmp_path) == []

    run(test())


def test_successor_spares_services_that_its_predecessor_has_just_reported(tmp_path: Path) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path)) as before:
                before.client.count("users")
                await before.delivered(1)
                with Client(operator, str(tmp_path)) as after:
                    before.client.count("users", 2)
                    after.client.count("users", 4)
                    await move(20)
                    assert len(operator.received) == 1
                    before.client.close()
                    await move(10)
                    await after.delivered(6)
        assert os.listdir(tmp_path) == []

    run(test())


def test_other_settings_are_followed_from_the_next_report_on() -> None:
    async def test() -> None:
        async with Operator().serving() as first, Operator().serving() as second:
            first.mode = REFUSE
            with Client(first, retry_seconds=3000.0) as client:
                client.client.count("users")
                await client.failed("users")
                client.client.configure(OperatorSettings(url=second.url, retry_seconds=5.0))
                client.client.count("orders")
                await client.delivered(1)
                assert [each["svc"] for each in second.received] == ["orders"]
                await move(5)
                await client.delivered(2)
            assert second.received[1] == {"count": 1, "svc": "users", "namespace": ""}

    run(test())


@pytest.mark.parametrize("services", [7, 100])
def test_counts_of_a_full_page_and_of_one_that_has_grown_are_all_taken_over(
    tmp_path: Path, services: int
) -> None:
    counts = UnsentCounts(str(tmp_path))
    names = [f"service-{number}" for number in range(services)]
    for number, name in enumerate(names):
        slot = counts.allocate_slot(name)
        counts.words[slot] = number
    counts.close()
    after = UnsentCounts(str(tmp_path))
    (other,) = after.open_other_counts()
    assert other.lock_if_ended()
    expected = {f"service-{number}": number for number in range(1, services)}
    found: dict[str, int] = {}
    other.take_over(found.__setitem__)
    assert found == expected
    after.close()


def test_places_of_services_without_requests_are_used_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path), retry_seconds=0.001) as client:
                for number in range(200):
                    client.client.count(f"service-{number}")
                    if number % 4 == 3:
                        await client.delivered(number + 1)
                        await move(1)
                assert len(client.client._page.words) * 8 <= 512 * 32

    run(test())


def test_name_that_is_too_long_for_the_page_is_counted_in_memory(tmp_path: Path) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path)) as client:
                name = "x" * (MAX_NAME_BYTES + 1)
                client.client.count(name)
                await client.delivered(1)
            assert operator.received[0]["svc"] == name

    run(test())


def test_directory_that_cannot_be_written_leaves_counts_in_memory(tmp_path: Path) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path / "missing")) as client:
                client.client.count("users")
                await client.delivered(1)

    run(test())


def test_file_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}1.x").write_text("not counts")
    counts = UnsentCounts(str(tmp_path))
    assert counts.open_other_counts() == []
    counts.close()
    assert os.listdir(tmp_path) == [f"{PREFIX}1.x"]


def test_time_of_an_earlier_boot_does_not_silence_a_service(tmp_path: Path) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path)) as client:
                assert client.client._capped_due_time(1e9) <= client.client._loop.time() + 450

    run(test())


def test_settings_of_an_operator_without_more_than_its_url() -> None:
    assert to_json(OperatorSettings(url="http://127.0.0.1:1")) == {
        "url": "http://127.0.0.1:1", "endpoint": "/informer/incoming-request", "retry_seconds": 30.0, "namespace": "",
        "token": "", "ca": "", "cert": "", "key": "", "key_password": "",
    }  # fmt: skip


def test_request_to_the_operator_has_these_header_fields() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator) as client:
                client.client.count("users", 7)
                await client.delivered(7)
            host = operator.url.removeprefix("http://")
            body = b'{"count": 7, "svc": "users", "namespace": "shop"}'
            assert operator.heads[0].decode().split("\r\n") == [
                "POST /informer/incoming-request HTTP/1.1", f"host: {host}", "content-type: application/json",
                f"content-length: {len(body)}", "connection: close", "", "",
            ]  # fmt: skip

    run(test())


@pytest.mark.parametrize("url", ["ftp://operator:1", "http:operator", "operator:8013"])
def test_url_of_another_kind_is_reported_and_the_count_kept(url: str) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, url=url) as client:
                client.client.count("users", 2)
                await client.failed("users")
                why = "the operator's url is neither http://HOST:PORT, https://HOST:PORT nor unix:/PATH"
                message = f"{url} was not informed of requests for users: {why}; they are kept"
                assert client.reports == [(NOT_REACHED, message, "warning")]
                assert client.client.snapshot() == {
                    "delivered": 0, "unsent": {"users": 2}, "failing": {"users": why},
                }  # fmt: skip
                assert repr(client.client) == f"<OperatorClient {url}: 2 unsent>"
                assert repr(client.client._settings) == f"<OperatorSettings {url}>"

    run(test())


def test_operator_that_is_reached_again_is_reported_once_no_service_fails() -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            operator.mode = REFUSE
            with Client(operator) as client:
                for name in ("users", "mail"):
                    client.client.count(name)
                    await client.failed(name)
                operator.mode = OK
                await move(50)
                await client.delivered(2)
                url = operator.url
                assert [each[0] for each in client.reports] == [NOT_REACHED, REACHED]
                assert client.reports[1] == (REACHED, f"{url} is informed of all requests again", "info")
                assert client.reports[0][1].startswith(
                    f"{url} was not informed of requests for users: it answers "
                )
                assert client.client.snapshot() == {"delivered": 2, "unsent": {}, "failing": {}}

    run(test())


def test_new_place_has_no_count_and_a_free_one_is_used_first() -> None:
    counts = UnsentCounts("")
    assert repr(counts) == "<UnsentCounts: 0 services>"
    first, second = counts.allocate_slot("a"), counts.allocate_slot("b")
    assert (second - first) * 8 == RECORD_BYTES
    counts.words[first], counts.words[first + DUE_NS] = 3, 5
    counts.release(first)
    assert counts.words[first] == 0
    counts.words[first] = 4
    assert counts.allocate_slot("ä") == first
    assert (counts.words[first], counts.words[first + DUE_NS]) == (0, 0)
    assert counts.allocate_slot("d") == second + (second - first)
    assert (repr(counts), counts.open_other_counts()) == ("<UnsentCounts: 3 services>", [])
    counts.close()


@pytest.mark.parametrize("directory", [True, False])
def test_page_doubles_when_all_of_its_places_are_taken(tmp_path: Path, directory: bool) -> None:
    counts = UnsentCounts(str(tmp_path) if directory else "")
    sizes = []
    for number in range(16):
        slot = counts.allocate_slot(f"s{number}")
        counts.words[slot] = number + 1
        sizes.append(counts.words.nbytes // RECORD_BYTES)
    assert sizes == [8] * 7 + [16] * 8 + [32]
    words = RECORD_BYTES // 8
    assert [counts.words[at * words] for at in range(1, 17)] == [*range(1, 17)]
    counts.close()


def test_file_of_counts_is_the_users_alone_and_stays_only_with_counts(tmp_path: Path) -> None:
    counts = UnsentCounts(str(tmp_path))
    (name,) = os.listdir(tmp_path)
    assert re.fullmatch(rf"operator-counts\.{os.getpid()}\.[0-9a-f]{{8}}", name)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert repr(counts) == f"<UnsentCounts: 0 services, {tmp_path}/{name}>"
    counts.allocate_slot("users")
    counts.close()
    counts.close()
    assert os.listdir(tmp_path) == []
    counts = UnsentCounts(str(tmp_path))
    counts.words[counts.allocate_slot("x" * MAX_NAME_BYTES)] = 3
    counts.words[counts.allocate_slot("y" * (MAX_NAME_BYTES + 1))] = 4
    slot = counts.allocate_slot("mail")
    counts.words[slot + DUE_NS] = 9
    after = UnsentCounts(str(tmp_path))
    (other,) = after.open_other_counts()
    assert not other.lock_if_ended(), "its process still runs"
    assert other.due_ns() == {"x" * MAX_NAME_BYTES: 0, "mail": 9}
    other.close()
    counts.close()
    (other,) = after.open_other_counts()
    assert other.lock_if_ended()
    found: dict[str, int] = {}
    other.take_over(found.__setitem__)
    assert found == {"x" * MAX_NAME_BYTES: 3}
    after.close()
    assert os.listdir(tmp_path) == []


def test_count_of_a_time_in_another_file_is_not_reported_before_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            left = UnsentCounts(str(tmp_path))
            with Client(operator) as clock:
                due = clock.client._loop.time() + 40
            slot = left.allocate_slot("users")
            left.words[slot], left.words[slot + DUE_NS] = 3, int(due * 1e9)
            left.close()
            with Client(operator, str(tmp_path)) as client:
                await move(30)
                assert operator.received == []
                await move(15)
                await client.delivered(3)

    run(test())


def test_context_of_tls_is_made_again_when_a_file_has_changed(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    given = {"ca": str(cert), "cert": str(cert), "key": str(key)}

    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, url="https://localhost:1", **given) as client:
                settings = client.client._settings
                first = await client.client._tls_context(settings)
                assert (first.verify_mode, first.check_hostname) == (ssl.CERT_REQUIRED, True)
                assert await client.client._tls_context(settings) is first
                for path in (cert, key):
                    os.utime(path, (1, 1))
                    other = await client.client._tls_context(settings)
                    assert other is not first
                    assert await client.client._tls_context(settings) is other
                    first = other
                key.unlink()
                client.client.count("users")
                await client.failed("users")
                assert "No such file" in client.client.snapshot()["failing"]["users"]

    run(test())


def test_operator_with_a_certificate_is_reached_by_https(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cert)
    context.verify_mode = ssl.CERT_REQUIRED

    async def test() -> None:
        async with Operator().serving(ssl=context) as operator:
            url = f"https://localhost:{operator.port}"
            with Client(operator, url=url, ca=str(cert), cert=str(cert), key=str(key)) as client:
                client.client.count("users")
                await client.delivered(1)
            with Client(operator, url=url) as client:
                client.client.count("users")
                await client.failed("users")
                assert "CERTIFICATE_VERIFY_FAILED" in client.client.snapshot()["failing"]["users"]

    run(test())


def test_closed_client_sends_nothing_and_looks_for_no_other_process(tmp_path: Path) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            operator.mode = HANG
            other = UnsentCounts(str(tmp_path))
            other.words[other.allocate_slot("mail")] = 3
            with Client(operator, str(tmp_path)) as client:
                made = client.client
                made.count("users")
                await operator.until(lambda: len(operator.received) == 1)
                assert made._next_check is not None
                sending = made._services["users"].sending
                (another,) = made._others
                made.close()
                with pytest.raises(ValueError, match="released"):
                    another.due_ns()
                made.count("files")
                assert made._services["files"].sending is None
                assert made._next_check.cancelled()
                assert isinstance(sending, asyncio.Task)
                await asyncio.gather(sending, return_exceptions=True)
                assert sending.cancelled()
                await operator.until(lambda: True)
                operator.release.set()
                while operator.now:
                    await asyncio.sleep(0.001)
            other.close()

    run(test())


@pytest.mark.parametrize("at_once", [True, False])
def test_full_disk_leaves_counts_in_memory(
    tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if at_once:
        monkeypatch.setattr("os.posix_fallocate", fail)
    counts = UnsentCounts(str(tmp_path))
    monkeypatch.setattr("os.posix_fallocate", fail)
    slots = [counts.allocate_slot(f"s{number}") for number in range(7)]
    for number, slot in enumerate(slots):
        counts.words[slot] = number + 1
    fd = counts._fd
    slots.append(counts.allocate_slot("s7"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert [counts.words[slot] for slot in slots] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert (repr(counts), counts.open_other_counts()) == ("<UnsentCounts: 8 services>", [])
    counts.close()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(PREFIX)]
    (record,) = caplog.records
    assert record.getMessage().startswith("unsent counts for the operator are kept in memory only: ")


def test_files_that_are_no_counts_are_no_other_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = UnsentCounts(str(tmp_path))
    (tmp_path / f"{PREFIX}1.layout").write_bytes(bytes(RECORD_BYTES * 8))
    (tmp_path / f"{PREFIX}2.empty").touch()
    (tmp_path / "another").write_bytes(bytes(RECORD_BYTES * 8))
    (tmp_path / f"{PREFIX}3.link").symlink_to(counts._path)
    (tmp_path / f"{PREFIX}4.directory").mkdir()
    with no_descriptor_left():
        assert counts.open_other_counts() == []
    assert [each.getMessage() for each in caplog.records] == [f"{tmp_path}/{PREFIX}2.empty holds no counts"]
    (other,) = UnsentCounts(str(tmp_path)).open_other_counts()
    assert repr(other) == f"<OtherProcessCounts {counts._path}>"
    os.unlink(counts._path)
    other.take_over({}.__setitem__)
    counts._directory = str(tmp_path / "gone")
    assert counts.open_other_counts() == []
    counts.close()
