"""Questions over real sockets: answers, lateness, connections that end, and workers that read nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.config import Probe
from poolctl.probes.multiplexer import Ears
from poolctl.probes.probe import Check
from poolctl.probes.prober import Asker, asker_of
from poolctl.probes.request import HttpQuestion, statuses
from poolctl.probes.schedule import Schedule

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Asked:
    """The worker's side: every connection that is made to it, and an asker of the kind that is wanted."""

    def __init__(self, **probe: Any) -> None:
        keys = {"readiness": probe or {"http": "/health"}}
        self.server = ServerConfig(name="web", bind="127.0.0.1:8080", app="a:b", health=keys)
        self.ends: list[socket.socket] = []
        self.refuses = False
        readiness = self.server.health.readiness
        assert readiness is not None
        self.asker: Asker = asker_of(readiness, self.server, self._connect, Ears(), {"WHO": "web"})
        self.told: list[str] = []
        _asked.append(self)

    async def _connect(self, kind: str, plain: bool) -> socket.socket:
        if self.refuses:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.ends.append(theirs)
        return ours

    async def question(self) -> bytes:
        """What is asked next, on the newest connection."""
        count = len(self.told)
        self.asker.ask(self.told.append)
        while not self.ends and len(self.told) == count:
            await asyncio.sleep(0)
        return await self.heard()

    async def heard(self) -> bytes:
        async with asyncio.timeout(2):
            while True:
                with contextlib.suppress(BlockingIOError):
                    return self.ends[-1].recv(10_000)
                await asyncio.sleep(0)

    async def verdict(self) -> str:
        async with asyncio.timeout(2):
            while not self.told:
                await asyncio.sleep(0)
        return self.told.pop()

    async def answer(self, data: bytes) -> str:
        self.ends[-1].send(data)
        return await self.verdict()


_asked: list[Asked] = []


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def watched() -> None:
        try:
            await asyncio.wait_for(work(), 10)
        finally:
            for asked in _asked:
                asked.asker.close()
                for sock in asked.ends:
                    sock.close()
            _asked.clear()

    asyncio.run(watched())


def test_a_question_is_a_request_as_a_client_makes_it() -> None:
    async def scenario() -> None:
        asked = Asked(http="/a b?x=1".replace(" ", "%20"), headers={"host": "example.org", "X-Probe": "1"})
        lines = (await asked.question()).decode().split("\r\n")
        assert lines[0] == "GET /a%20b?x=1 HTTP/1.1"
        assert {"Host: example.org", "X-Probe: 1", "User-Agent: poolctl"} <= set(lines)
        assert await asked.answer(OK) == ""
        plain = Asked()
        assert b"\r\nHost: 127.0.0.1:8080\r\n" in await plain.question()

    run(scenario)


@pytest.mark.parametrize(
    ("probe", "answer", "problem"),
    [
        ({"status": "404,500-599"}, b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n", ""),
        ({"status": "404"}, OK, "GET /health: status 200"),
        ({"body": "^h.l+o$"}, OK, ""),
        ({"body": "bye"}, OK, "GET /health: status 200, and a body without 'bye'"),
        ({"body": "ell"}, OK, ""),
        ({"body": "^bye"}, OK, "GET /health: status 200, and a body without '^bye'"),
        ({"method": "HEAD"}, b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n", ""),
        ({}, b"nonsense\r\n\r\n", "the answer is no HTTP/1.1"),
        ({}, b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", ""),
    ],
)
def test_an_answer_is_judged_by_status_and_body(probe: dict[str, Any], answer: bytes, problem: str) -> None:
    async def scenario() -> None:
        asked = Asked(http="/health", **probe)
        await asked.question()
        assert await asked.answer(answer) == problem

    run(scenario)


def test_a_connection_is_kept_and_made_anew_when_it_has_ended() -> None:
    async def scenario() -> None:
        asked = Asked()
        for _ in range(3):
            await asked.question()
            assert await asked.answer(OK) == ""
        assert len(asked.ends) == 1
        asked.ends[-1].close()
        await asyncio.sleep(0.01)
        asked.asker.ask(asked.told.append)
        while len(asked.ends) < 2:
            await asyncio.sleep(0)
        await asked.heard()
        assert await asked.answer(OK) == ""

    run(scenario)


def test_a_question_that_meets_the_end_of_a_kept_connection_is_asked_again() -> None:
    async def scenario() -> None:
        asked = Asked()
        await asked.question()
        await asked.answer(OK)
        asked.asker.ask(asked.told.append)
        asked.ends[-1].close()  # with the question on its way
        while len(asked.ends) < 2:
            await asyncio.sleep(0)
        await asked.heard()
        assert await asked.answer(OK) == ""

    run(scenario)


def test_a_new_connection_that_ends_without_an_answer_is_a_failure() -> None:
    async def scenario() -> None:
        asked = Asked()
        await asked.question()
        asked.ends[-1].close()
        assert await asked.verdict() == "it closed the connection"
        asked.refuses = True
        asked.asker.ask(asked.told.append)
        assert await asked.verdict() == "no connection: Connection refused"

    run(scenario)


def test_who_reads_nothing_is_not_sent_one_connection_after_the_other_and_may_answer_late() -> None:
    async def scenario() -> None:
        asked = Asked()
        for _ in range(6):
            asked.asker.ask(asked.told.append)
            await asyncio.sleep(0.01)
            asked.asker.give_up()
        assert len(asked.ends) == 3
        assert asked.told == []
        asked.asker.ask(asked.told.append)
        asked.ends[-1].send(OK)  # to the question of a while ago
        assert await asked.verdict() == ""
        asked.ends[-1].recv(10_000)
        await asked.question()
        assert await asked.answer(OK) == ""
        assert len(asked.ends) == 3

    run(scenario)


def test_an_answer_after_giving_up_is_told_nobody() -> None:
    async def scenario() -> None:
        asked = Asked()
        await asked.question()
        asked.asker.give_up()
        with contextlib.suppress(OSError):
            asked.ends[-1].send(OK)
        await asyncio.sleep(0.01)
        assert asked.told == []
        asked.asker.close()
        await asyncio.sleep(0.01)
        assert asked.ends[-1].recv(10) == b""

    run(scenario)


def test_a_connection_is_probed_by_what_comes_back() -> None:
    async def scenario() -> None:
        asked = Asked(tcp=True)
        assert await asked.question() == b"?"
        assert await asked.answer(b"?") == ""

    run(scenario)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(5)
        yield sock


def asker_of_command(listener: socket.socket, **readiness: Any) -> Asker:
    """An asker of a program that was given this listener."""

    async def connect(kind: str, plain: bool) -> socket.socket:
        ours = socket.create_connection(listener.getsockname())
        ours.setblocking(False)
        return ours

    server = ServerConfig(
        name="web", bind="127.0.0.1:8080", command=["prog"], health={"readiness": readiness}
    )
    assert server.health.readiness is not None
    return asker_of(server.health.readiness, server, connect, Ears(), {})


def test_a_program_is_probed_by_whether_it_accepts_and_is_not_sent_one_connection_after_the_other(
    listener: socket.socket,
) -> None:
    async def scenario() -> None:
        told: list[str] = []
        asker = asker_of_command(listener, tcp=True)
        for _ in range(3):
            asker.ask(told.append)
            await asyncio.sleep(0.02)
            asker.give_up()
        assert told == []
        with listener.accept()[0] as theirs:
            assert theirs.recv(1) == b"", "ended, so that it can go on at once"
            asker.ask(told.append)
            async with asyncio.timeout(5):
                while not told:
                    await asyncio.sleep(0)
        assert told == [""]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        asker.ask(told.append)
        await asyncio.sleep(0.02)
        asker.close()
        await asyncio.sleep(0.02)

    run(scenario)


def test_a_program_is_asked_over_a_new_connection_each_time(listener: socket.socket) -> None:
    async def scenario() -> None:
        asker = asker_of_command(listener, http="/")
        asker.ask(lambda problem: None)
        with (await asyncio.to_thread(listener.accept))[0] as theirs:
            assert b"\r\nConnection: close\r\n" in await asyncio.to_thread(theirs.recv, 1000)
        asker.close()

    run(scenario)


def test_many_answers_that_come_while_nobody_listens_are_all_heard() -> None:
    async def scenario() -> None:
        ears = Ears()
        heard: list[int] = []
        pairs = [socket.socketpair() for _ in range(20)]
        for place, (ours, theirs) in enumerate(pairs):

            def readable(place: int = place, sock: socket.socket = ours) -> None:
                heard.append(place)
                ears.remove(sock.fileno())

            ears.add(ours.fileno(), readable)
            theirs.send(b"x")
        ears.wait()
        await asyncio.sleep(0)
        assert heard == []
        async with asyncio.timeout(2):
            while len(heard) < len(pairs):
                await asyncio.sleep(0.001)
        assert sorted(heard) == list(range(len(pairs)))
        for pair in pairs:
            for sock in pair:
                sock.close()

    run(scenario)


def test_statuses_are_ranges_and_single_ones() -> None:
    assert statuses("200-202,404") == {200, 201, 202, 404}


def test_a_program_sees_the_server_and_its_last_words_are_told() -> None:
    async def scenario() -> None:
        for script, problem in (
            ('test "$WHO" = web', ""),
            ("echo one; echo two >&2; exit 3", "sh: exited with status 3: two"),
            ("kill -9 $$", "sh: killed by SIGKILL"),
            ("yes | head -c 50000000 2>/dev/null; exit 3", "sh: exited with status 3: y"),
        ):
            asked = Asked(exec=["sh", "-c", script])
            asked.asker.ask(asked.told.append)
            assert await asked.verdict() == problem
        missing = Asked(exec=["/no/such/program"])
        missing.asker.ask(missing.told.append)
        assert await missing.verdict() == "/no/such/program: No such file or directory"

    run(scenario)


def test_what_a_question_asks_does_not_depend_on_the_worker() -> None:
    server = ServerConfig(
        name="web", bind="127.0.0.1:1", app="a:b", expose="https://shop.example:8443/x", health="/ü"
    )
    assert server.health.readiness is not None
    request = HttpQuestion(server.health.readiness, server).request
    assert request.startswith(b"GET /%C3%BC HTTP/1.1\r\nHost: shop.example:8443\r\n")


def test_while_it_becomes_ready_the_time_in_the_accept_queue_does_not_count(listener: socket.socket) -> None:
    async def scenario() -> None:
        probe = Probe(http="/", timeout=0.1)
        check = Check(
            "readiness", probe, asker_of_command(listener, http="/"), Schedule(), lambda check: None
        )
        passing = asyncio.ensure_future(check.passes())
        await asyncio.sleep(0.5)
        assert (passing.done(), check.message) == (False, "its connection is waiting to be accepted")
        with listener.accept()[0] as theirs:
            theirs.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await asyncio.wait_for(passing, 5)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        check.end()

    run(scenario)


def test_one_that_has_accepted_a_question_and_does_not_answer_is_late(listener: socket.socket) -> None:
    async def scenario() -> None:
        probe = Probe(http="/", timeout=0.1)
        check = Check(
            "readiness", probe, asker_of_command(listener, http="/"), Schedule(), lambda check: None
        )
        passing = asyncio.ensure_future(check.passes())
        with (await asyncio.to_thread(listener.accept))[0]:
            async with asyncio.timeout(5):
                while check.message != "no answer within 100ms":
                    await asyncio.sleep(0.01)
        passing.cancel()
        check.end()
        await asyncio.sleep(0)

    run(scenario)
