"""The client of an operator, against a real HTTP server that fails in many ways."""

from __future__ import annotations

import json
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
    FILE,
    NOT_REACHED,
    REACHED,
    REQUESTS_AT_ONCE,
    TIMEOUT_SECONDS,
    OperatorSettings,
)
from poolctl.json_form import to_json
from tests.certificates import certificate

from .operator_stage import GARBAGE, HALF, HANG, OK, REFUSE, RESET, Client, MovedLoop, Operator, move

Test = Callable[..., Coroutine[Any, Any, None]]


def run(work: Coroutine[Any, Any, None]) -> None:
    MovedLoop().run(work)


@pytest.mark.loop(run=run)
async def test_first_request_is_reported_at_once_in_the_form_of_kubeelasti() -> None:
    async with Operator().serving() as operator:
        with Client(operator) as client:
            client.client.count("users")
            await client.delivered(1)
        head = operator.heads[0]
        assert head.startswith(b"POST /informer/incoming-request HTTP/1.1\r\n")
        assert b"\r\ncontent-type: application/json\r\n" in head
        assert b"authorization" not in head
        assert operator.received == [{"count": 1, "svc": "users", "namespace": "shop"}]


@pytest.mark.loop(run=run)
async def test_endpoint_path_and_token_are_sent() -> None:
    async with Operator().serving() as operator:
        with Client(operator, url=f"{operator.url}/base/", endpoint="/wake", token="s3cret") as client:
            client.client.count("users")
            await client.delivered(1)
        assert operator.heads[0].startswith(b"POST /base/wake HTTP/1.1\r\n")
        assert b"\r\nauthorization: Bearer s3cret\r\n" in operator.heads[0]
        assert repr(OperatorSettings(url="http://x", token="s3cret")) == "<OperatorSettings http://x>"


@pytest.mark.loop(run=run)
async def test_operator_on_a_unix_socket_is_informed(tmp_path: Path) -> None:
    path = str(tmp_path / "operator.sock")
    async with Operator().serving(path) as operator:
        with Client(operator, url=f"unix:{path}") as client:
            client.client.count("users", 3)
            await client.delivered(3)
        assert operator.received[0]["count"] == 3


@pytest.mark.loop(run=run)
async def test_requests_within_the_retry_duration_are_summed_in_the_next_report() -> None:
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


@pytest.mark.loop(run=run)
async def test_one_request_of_a_service_is_in_flight_however_many_arrive() -> None:
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


@pytest.mark.parametrize("mode", [REFUSE, RESET, GARBAGE, HALF, HANG])
@pytest.mark.loop(run=run)
async def test_count_of_a_failed_report_is_sent_with_the_next_one(mode: str) -> None:
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


@pytest.mark.loop(run=run)
async def test_operator_that_refuses_connections_is_reported_once_for_all_services() -> None:
    async with Operator().serving() as operator:
        pass  # its port is closed now
    with Client(operator) as client:
        for name in ("users", "mail", "files"):
            client.client.count(name)
        for name in ("users", "mail", "files"):
            await client.failed(name)
        assert client.kinds == [NOT_REACHED]
        assert client.client.unsent == 3


@pytest.mark.loop(run=run)
async def test_requests_under_way_of_many_services_are_bounded() -> None:
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


@pytest.mark.loop(run=run)
async def test_pauses_after_failures_grow_with_jitter_up_to_a_bound() -> None:
    async with Operator().serving() as operator:
        operator.mode = REFUSE
        with Client(operator) as client:
            client.client.count("users")
            for number, pause in enumerate((30, 60, 120, 240, 300, 300, 300), 1):
                await client.failed("users")
                await move(pause)
                await client.idle()
                assert len(operator.received) == number, "the pause is longer by a random part"
                await move(pause / 2)
                await operator.until(lambda: len(operator.received) > number)  # noqa: B023


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

    run(test())


KILLED = """
import asyncio, os, signal, sys
from poolctl.gateway.operator import OperatorClient, OperatorSettings

async def main():
    client = OperatorClient(OperatorSettings(url="http://127.0.0.1:1"), sys.argv[1])
    for number in range(20):
        client.count(f"service-{number}", number + 1)
    await asyncio.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_counts_of_a_killed_process_are_sent_by_the_next_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert done.returncode == -signal.SIGKILL

    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path)) as client:
                await move(50)  # the killed one has tried
                await client.delivered(sum(range(1, 21)))
            assert operator.confirmed == {f"service-{number}": number + 1 for number in range(20)}

    run(test())


@pytest.mark.loop(run=run)
async def test_successor_waits_for_a_service_that_its_predecessor_has_just_reported(tmp_path: Path) -> None:
    async with Operator().serving() as operator:
        with Client(operator, str(tmp_path)) as before:
            before.client.count("users")
            await before.delivered(1)
            before.client.count("users", 2)
            await move(1)  # the count is stored
        with Client(operator, str(tmp_path)) as after:
            after.client.count("users", 4)
            await move(20)
            assert len(operator.received) == 1
            await move(10)
            await after.delivered(6)


@pytest.mark.loop(run=run)
async def test_other_settings_are_followed_from_the_next_report_on() -> None:
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


def test_directory_that_cannot_be_written_leaves_counts_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path / "missing")) as client:
                for number in (1, 2):
                    client.client.count("users")
                    await client.delivered(number)
                    await move(31)

    run(test())
    (record,) = caplog.records
    assert record.getMessage().startswith("unsent counts for the operator are kept in memory only: ")


def test_counts_are_stored_within_a_second_and_replace_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text("not counts")

    async def test() -> None:
        async with Operator().serving() as operator:
            operator.mode = HANG
            with Client(operator, str(tmp_path)) as client:
                for number in (1, 2):
                    client.client.count("users")
                    await move(1.1)
                    await client.settle(lambda _: f'"users": [{number}, ' in file.read_text())  # noqa: B023

    run(test())
    assert file.stat().st_mode & 0o777 == 0o600


def test_time_of_an_earlier_boot_does_not_silence_a_service(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"users": [3, 1e9]}))

    async def test() -> None:
        async with Operator().serving() as operator:
            with Client(operator, str(tmp_path)) as client:
                await move(440)
                await client.idle()
                assert operator.received == []
                await move(11)
                await client.delivered(3)

    run(test())


def test_settings_of_an_operator_without_more_than_its_url() -> None:
    assert to_json(OperatorSettings(url="http://127.0.0.1:1")) == {
        "url": "http://127.0.0.1:1", "endpoint": "/informer/incoming-request", "retry_seconds": 30.0, "namespace": "",
        "token": "", "ca": "", "cert": "", "key": "", "key_password": "",
    }  # fmt: skip


@pytest.mark.loop(run=run)
async def test_request_to_the_operator_has_these_header_fields() -> None:
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


@pytest.mark.parametrize("url", ["ftp://operator:1", "http:operator", "operator:8013"])
@pytest.mark.loop(run=run)
async def test_url_of_another_kind_is_reported_and_the_count_kept(url: str) -> None:
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


@pytest.mark.loop(run=run)
async def test_operator_that_is_reached_again_is_reported_once_no_service_fails() -> None:
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


def test_operator_with_a_certificate_is_reached_by_https_with_the_latest_files(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cert)
    context.verify_mode = ssl.CERT_REQUIRED

    async def test() -> None:
        async with Operator().serving(ssl=context) as operator:
            url = f"https://localhost:{operator.port}"
            files = {"ca": str(cert), "cert": str(cert), "key": str(key)}
            with Client(operator, url=url, **files) as client:
                for service in ("users", "mail"):
                    client.client.count(service)
                await client.delivered(2)
                certificate(tmp_path)  # another one, which the operator does not know
                client.client.count("other")
                await client.failed("other")
                assert "CERTIFICATE_VERIFY_FAILED" in client.client.snapshot()["failing"]["other"]
                key.unlink()
                client.client.count("files")
                await client.failed("files")
                assert "No such file" in client.client.snapshot()["failing"]["files"]
            with Client(operator, url=url) as client:
                client.client.count("users")
                await client.failed("users")
                assert "CERTIFICATE_VERIFY_FAILED" in client.client.snapshot()["failing"]["users"]

    run(test())


@pytest.mark.loop(run=run)
async def test_closed_client_sends_nothing() -> None:
    async with Operator().serving() as operator:
        operator.mode = HANG
        with Client(operator) as client:
            client.client.count("users")
            await operator.until(lambda: len(operator.received) == 1)
        client.client.count("files")
        operator.release.set()
        await client.idle()
        await move(500)
        await client.idle()
        assert client.client.snapshot()["unsent"] == {"users": 1, "files": 1}
        assert len(operator.received) == 1
