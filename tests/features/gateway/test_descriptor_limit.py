"""Streams together: none takes the descriptors of the others, and all of them leave some to routes."""

from __future__ import annotations

import contextlib

from poolctl.features.gateway.process.descriptor_limit import DescriptorLimit

from .stream_stage import Run, StreamEdge, a_route, run, tcp, udp, until
from .test_tcp import backend as tcp_backend
from .test_tcp import client as tcp_client
from .test_udp import ask
from .test_udp import backend as udp_backend
from .test_udp import client as udp_client

__all__ = ["run"]


def an_edge(limit: int) -> StreamEdge:
    """One whose streams have the parts of this limit."""
    edge = StreamEdge()
    of_it = DescriptorLimit(limit)
    for name in ("of_streams", "of_sessions", "least_sessions"):
        setattr(edge.descriptors, name, getattr(of_it, name))
    return edge


def test_flood_on_one_udp_stream_leaves_the_others_their_sessions(run: Run) -> None:
    async def main() -> None:
        edge = an_edge(64)  # 16 sessions
        with udp_backend() as served:
            one, two = (a_route(served.port, protocol="udp", alias=alias) for alias in ("one", "two"))
            async with udp(one, edge) as (first, at_one), udp(two, edge) as (second, at_two):
                edge.use(one, two)
                with contextlib.ExitStack() as clients:
                    quiet = [clients.enter_context(udp_client(at_two)) for _ in range(4)]
                    for sock in quiet:
                        assert await ask(sock, b"x") == b"x"
                    for _ in range(40):
                        assert await ask(clients.enter_context(udp_client(at_one)), b"y") == b"y"
                    assert (len(first), len(second)) == (12, 4)
                    assert edge.stream_share.used == 16
        assert edge.stream_share.used == 0

    run(main())


def test_connections_of_all_tcp_streams_wait_for_room(run: Run) -> None:
    async def main() -> None:
        edge = an_edge(8)  # two connections
        async with tcp_backend() as port:
            one, two = (a_route(port, alias=alias) for alias in ("one", "two"))
            async with tcp(one, edge) as (first, at_one), tcp(two, edge) as (second, at_two):
                edge.use(one, two)
                async with tcp_client(at_one) as (_, a), tcp_client(at_one):
                    await until(lambda: len(first.open) == 2)
                    async with tcp_client(at_two) as (reader, waiting):
                        waiting.write(b"x")
                        await until(lambda: not second._accepting)
                        assert not second.open
                        a.write_eof()
                        assert await reader.readexactly(1) == b"x"
                        assert second.snapshot()["accepted"] == 1
        assert edge.stream_share.used == 0

    run(main())


def test_udp_keeps_some_sessions_when_tcp_has_all_that_is_for_streams(run: Run) -> None:
    async def main() -> None:
        edge = an_edge(32)  # 16 for streams, and 2 for UDP whatever TCP has
        async with tcp_backend() as port, contextlib.AsyncExitStack() as stack:
            with udp_backend() as served:
                data = a_route(port)
                names = a_route(served.port, protocol="udp", alias="names")
                stream, at = await stack.enter_async_context(tcp(data, edge))
                sessions, at_names = await stack.enter_async_context(udp(names, edge))
                edge.use(data, names)
                for _ in range(8):
                    await stack.enter_async_context(tcp_client(at))
                await until(lambda: len(stream.open) == 8)
                for _ in range(3):
                    assert await ask(stack.enter_context(udp_client(at_names)), b"x") == b"x"
                assert (len(sessions), sessions.snapshot()["evicted"]) == (2, 1)

    run(main())
