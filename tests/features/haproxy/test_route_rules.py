"""HAProxy admits and redirects clients and changes headers as the gateway itself does: by the same tests."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from poolctl.routing.route import Redirect, Route, Timeouts
from tests.features.gateway.passing_stage import Serve
from tests.features.gateway.proxy_stage import DEADLINE, Backend, Wire
from tests.features.gateway.test_route_admission import (
    IN_PIECES,
    ONLY_THAT,
    answering,
    asked,
    gateway,
    status_of,
    test_client_has_a_rate_of_its_own,
    test_client_has_so_many_requests_in_flight,
    test_clients_are_sent_where_the_route_redirects,
    test_others_are_not_believed_what_they_report,
    test_redirect_to_https_is_for_requests_without_it,
    test_route_is_for_the_clients_that_it_allows,
    test_trusted_proxy_reports_its_client_before_the_first_request,
)
from tests.features.gateway.test_route_headers import (
    test_backend_gets_the_headers_that_the_route_wants,
    test_response_has_the_headers_of_the_route_instead_of_the_backends,
    test_response_of_the_gateway_itself_has_the_headers_of_the_route,
)
from tests.features.haproxy.test_configuration import haproxy

__all__ = [
    "test_backend_gets_the_headers_that_the_route_wants",
    "test_client_has_a_rate_of_its_own",
    "test_client_has_so_many_requests_in_flight",
    "test_clients_are_sent_where_the_route_redirects",
    "test_others_are_not_believed_what_they_report",
    "test_redirect_to_https_is_for_requests_without_it",
    "test_response_has_the_headers_of_the_route_instead_of_the_backends",
    "test_response_of_the_gateway_itself_has_the_headers_of_the_route",
    "test_route_is_for_the_clients_that_it_allows",
    "test_trusted_proxy_reports_its_client_before_the_first_request",
]

pytestmark = pytest.mark.slow  # each starts an HAProxy


@pytest.fixture
def engine() -> Serve:
    return haproxy


def test_connection_goes_on_after_a_redirect_and_closes_after_a_refusal(tmp_path: Path) -> None:
    async def work() -> None:
        routes = [
            Route(alias="secure", host="a.test", redirect=Redirect(to="https")),
            Route(alias="closed", host="b.test", allow=("10.0.0.0/8",)),
            Route(alias="app", host="c.test"),
        ]
        async with gateway(haproxy, tmp_path, *routes) as port:
            wire = Wire(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), DEADLINE))
            with closing(wire):
                assert (await asked(wire)).status == 308
                assert (await asked(wire, host="c.test")).status == 200
                assert (await asked(wire, host="b.test")).status == 403

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_backend_is_connected_when_a_buffered_request_has_arrived(tmp_path: Path, version: str) -> None:
    async def work() -> None:
        connected = asyncio.Event()

        async def script(backend: Backend, wire: Wire) -> None:
            connected.set()
            await answering(backend, wire)

        route = Route(alias="a", buffer_requests=True, timeouts=Timeouts(idle=20.0))
        async with gateway(haproxy, tmp_path, route, script=script, head_seconds=0.2) as port:
            wire = Wire(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), DEADLINE))
            with closing(wire):
                await wire.send(
                    f"POST / HTTP/{version}\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nab".encode()
                )
                with pytest.raises(TimeoutError):  # longer than the head may take
                    await asyncio.wait_for(connected.wait(), 0.4)
                await wire.send(b"cd")
                head, _ = await wire.response()
                assert head.split()[1] == b"200"

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


@pytest.mark.parametrize("pieces", IN_PIECES)
def test_header_of_a_trusted_proxy_that_arrives_in_pieces_is_refused(
    tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    async def work() -> None:
        async with gateway(
            haproxy, tmp_path, ONLY_THAT, trusted_proxies=("127.0.0.1",), accept_proxy=True
        ) as port:
            assert await status_of(port, *pieces) == 0
            assert await status_of(port, b"".join(pieces)) == 200

    asyncio.run(asyncio.wait_for(work(), DEADLINE))
