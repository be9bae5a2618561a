"""Orders of the supervisor to the process of a gateway: each is in force, and another supervisor sends all again."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path

from poolctl import __version__
from poolctl.features.gateway.process.settings import (
    ListenerSettings,
)
from poolctl.keeper import pool_files
from poolctl.routing.route import Route, Target
from tests.features.gateway.test_gateway_server import Stage, gateway, orphans, patient, run

__all__ = ["patient"]

DEADLINE_SECONDS = 60.0


def test_another_supervisor_sends_everything_again_and_what_it_leaves_out_is_forgotten(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            other = socket.create_server(("127.0.0.1", 0))
            more = ListenerSettings(bind=f"127.0.0.1:{other.getsockname()[1]}")
            stage.process.listen(more, None, (2,), [other])
            await stage.settled()
            # Both supervisors have a duplicate of the link, as the keeper has.
            link = stage.process.link.sock.dup()
            stage.process.link.close()
            stage.supervise(link)
            stage.process.begin_resync()
            await stage.begin()
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            other.setblocking(True)
            other.settimeout(DEADLINE_SECONDS)
            with socket.create_connection(other.getsockname()), other.accept()[0]:
                pass  # the gateway does not accept there any more
            other.close()

    run(work())


def test_hosts_are_disabled_by_order_and_their_states_are_reported_and_restored(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            answer = await stage.process.change_host_states({"op": "disable", "hosts": ["web"], "for": 0})
            assert answer["hosts"] == ["web"]
            assert (await stage.get()).startswith(b"HTTP/1.1 503 ")
            (states,) = [each["states"] for each in stage.reports if each["t"] == "hosts"]
            assert [each["kind"] for each in stage.reports if each["t"] == "event"] == ["host disabled"]
            await stage.process.change_host_states({"op": "enable", "hosts": ["web"], "for": None})
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            reported = len(stage.reports)
            stage.process.restore_hosts(states)
            await stage.settled()
            assert (await stage.get()).startswith(b"HTTP/1.1 503 ")
            assert len(stage.reports) == reported, "a restored state is no new event"

    run(work())


def test_unknown_host_changes_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            answer = await stage.process.change_host_states(
                {"op": "disable", "hosts": ["web", "wbe"], "for": 0}
            )
            (problem,) = answer["problems"]
            assert "did you mean web?" in problem["hint"]
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"

    run(work())


def test_draining_gateway_accepts_nothing_finishes_its_requests_and_ends_without_its_link(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
            while not (await stage.process.fetch_report())["connections"]:
                pass
            stage.process.drain(DEADLINE_SECONDS)
            while not stage.server.edge.draining:
                await asyncio.sleep(0.001)
            with socket.create_connection(("127.0.0.1", stage.port)):
                writer.write(b"ab")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                await stage.over
                stage.listener.setblocking(True)
                stage.listener.settimeout(DEADLINE_SECONDS)
                stage.listener.accept()[0].close()  # left to the next process
            writer.close()

    run(work())


def test_gateway_that_does_not_serve_yet_ends_with_the_last_process_of_its_pool(tmp_path: Path) -> None:
    async def work() -> None:
        stage = Stage(tmp_path)
        stage.supervise(stage.first)
        stage.process.configure(stage.settings)
        stage.process.link.close()
        await stage.over
        assert pool_files.find_listeners(str(tmp_path), pool_files.GATEWAY) == []
        for each in (stage.listener, *stage.own):
            each.close()

    run(work())


def test_gateway_serves_on_without_keeper_and_supervisor_until_the_next_one_adopts_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            elsewhere = Route(alias="elsewhere", host="b", to=(Target(url="http://127.0.0.1:1"),))
            stage.publish(2, Route(alias="web", to=(Target(server="web"),)), elsewhere)
            await stage.process.change_host_states({"op": "drain", "hosts": ["http://127.0.0.1:1"]})
            reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
            marks = []
            for _ in range(2):
                stage.process.link.close()
                (asking,) = await orphans(tmp_path)
                asking.close()  # a command that only asks
                writer.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
                assert (await reader.readexactly(40)).endswith(b"ok")
                assert await stage.get() == b"HTTP/1.1 200 OK | ok"
                (orphan,) = await orphans(tmp_path)
                assert orphan.pid == os.getpid()
                marks.append(orphan.mark)
                ((settings, (listener,)),) = orphan.listeners
                assert settings == stage.binding
                assert inode(listener) == inode(stage.listener.fileno())
                assert list(map(inode, orphan.pair)) == [inode(end.fileno()) for end in stage.own]
                stage.supervise(orphan.sock.dup())
                orphan.close()
                stage.process.begin_resync()
                stage.settings = replace(stage.settings, program="program")
                await stage.begin()
                assert pool_files.find_listeners(str(tmp_path), pool_files.GATEWAY) == []
            writer.close()
            assert marks == [__version__, f"{__version__} program"]
            reported = [each["states"]["hosts"] for each in stage.reports if each["t"] == "hosts"][:2]
            assert [host["state"] for hosts in reported for host in hosts] == ["draining"] * 2, (
                "when it was ordered, and to the supervisor whose keeper does not know it"
            )

    run(work())


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_order_of_another_version_is_ignored_and_its_descriptors_are_closed(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            read, write = os.pipe()
            stage.process.link.send({"t": "of tomorrow"}, [write])
            os.close(write)
            await stage.settled()
            assert os.read(read, 1) == b""
            os.close(read)

    run(work())


def test_disabled_host_is_enabled_when_its_time_is_over_and_unknown_ones_change_nothing(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            unknown = await stage.process.change_host_states(
                {"op": "disable", "hosts": ["web", "x"], "for": 0}
            )
            assert (unknown["hosts"], len(unknown["problems"])) == (["web"], 1)
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            await stage.process.change_host_states({"op": "disable", "hosts": ["web"], "for": 0.01})
            async with asyncio.timeout(DEADLINE_SECONDS):
                while [each["kind"] for each in stage.reports if each["t"] == "event"][-1:] != [
                    "host active"
                ]:
                    await asyncio.sleep(0.001)
            assert await stage.get() == b"HTTP/1.1 200 OK | ok"
            await stage.process.change_host_states({"op": "drain", "hosts": ["web"], "for": None})
            kinds = [each["kind"] for each in stage.reports if each["t"] == "event"]
            assert kinds == ["host disabled", "host active", "host draining"]

    run(work())
