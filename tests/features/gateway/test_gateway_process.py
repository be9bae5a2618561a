"""The gateway's process as the supervisor sees it: what it has already is not sent again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process import gateway_server
from poolctl.features.gateway.process.settings import (
    GatewaySettings,
    ListenerSettings,
    MachineState,
    ProbeState,
    ServerFacts,
)
from poolctl.features.gateway.supervision import gateway_process
from poolctl.features.gateway.supervision.gateway_process import GatewayProcess, GatewayZygote, pair_number
from poolctl.json_form import to_json
from poolctl.keeper import connection_handover, wire
from poolctl.platform import memory_file
from poolctl.runners.process_link import LinkLost, identity
from tests.features.gateway.test_gateway_server import gateway, patient, run

__all__ = ["patient"]

DEADLINE_SECONDS = 60.0


def test_withdrawal_of_a_pair_that_was_replaced_leaves_the_new_one_in_use(tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            old, new = wire.pair(), wire.pair()
            stage.process.report_server(stage.facts, old[0])
            stage.process.report_server(stage.facts, new[0])
            await stage.process.withdraw_passing_socket("web", old[0])
            client = asyncio.ensure_future(stage.get())
            while not client.done():
                with contextlib.suppress(BlockingIOError):
                    taken = connection_handover.receive_connection(new[1])
                    assert taken is not None
                    with taken:
                        taken.recv(4096)
                await asyncio.sleep(0.001)
            assert await client == b" | "
            for end in (*old, *new):
                end.close()

    run(work())


def test_supervisor_is_asked_once_a_second_to_wake_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with gateway(tmp_path) as stage:
            for _ in range(100):
                stage.server.edge.wake("web")
            stage.server.edge.wake("other")
            await stage.settled()
            asked = [each["server"] for each in stage.reports if each["t"] == "wake"]
            assert asked == ["web", "other"]
            while stage.server._waking:
                await asyncio.sleep(0.001)
            stage.server.edge.wake("web")
            await stage.settled()
            assert [each["server"] for each in stage.reports if each["t"] == "wake"] == [*asked, "web"]

    monkeypatch.setattr(gateway_server, "_WAKE_SECONDS", 0.05)
    run(work())


class Peer:
    """The supervisor's side, and the end of the link that the process would have."""

    def __init__(self) -> None:
        ours, self._theirs = wire.pair()
        self.process = GatewayProcess(ours, {"pid": 1, "start": 1}, "1")

    def sent(self) -> list[wire.Message]:
        """The messages sent since the last time, apart from questions whether it lives."""
        found: list[wire.Message] = []
        with contextlib.suppress(BlockingIOError):
            while (received := wire.receive(self._theirs)) is not None:
                found.append(received[0])
                for fd in received[1]:
                    os.close(fd)
        return [each for each in found if each["t"] != "ping"]

    def kinds(self) -> list[str]:
        return [str(each["t"]) for each in self.sent()]

    def say(self, **message: object) -> None:
        wire.send(self._theirs, dict(message))

    def close(self) -> None:
        self.process.link.close()
        self._theirs.close()


def with_peer(scene: Callable[[Peer], Coroutine[Any, Any, None]]) -> None:
    async def work() -> None:
        peer = Peer()
        try:
            await scene(peer)
        finally:
            peer.close()

    run(work())


def test_what_has_not_changed_is_not_sent_again() -> None:
    async def scene(peer: Peer) -> None:
        process, settings = peer.process, GatewaySettings(directory="/")
        for _ in range(2):
            process.configure(settings)
            process.restore_hosts({})
            process.report_server(ServerFacts(name="web"), None)
        assert peer.kinds() == ["settings", "server"], "no host has a state"
        process.configure(replace(settings, head_seconds=1.0))
        process.report_server(ServerFacts(name="web", ready=True), None)
        process.restore_hosts({"web": {"state": "disabled"}})
        process.restore_hosts({"web": {"state": "disabled"}})
        process.restore_hosts({})
        messages = peer.sent()
        assert [each["t"] for each in messages] == ["settings", "server", "hosts", "hosts"]
        assert [each["states"] for each in messages[2:]] == [{"web": {"state": "disabled"}}, {}]

    with_peer(scene)


def test_everything_is_sent_again_after_a_resync() -> None:
    async def scene(peer: Peer) -> None:
        peer.process.report_server(ServerFacts(name="web"), None)
        peer.process.begin_resync()
        peer.process.report_server(ServerFacts(name="web"), None)
        peer.process.begin_serving()
        assert peer.kinds() == ["server", "resync", "server", "begin"]

    with_peer(scene)


def test_server_and_listener_that_were_not_sent_are_not_withdrawn() -> None:
    async def scene(peer: Peer) -> None:
        process = peer.process
        process.forget_server("web")
        process.close_listener("tcp :80")
        assert peer.sent() == []
        process.report_server(ServerFacts(name="web"), None)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            settings = ListenerSettings(bind=":80")
            process.listen(settings, None, (1,), [listener])
        assert (process.servers, process.listeners) == ({"web"}, {settings.key})
        process.forget_server("web")
        process.close_listener(settings.key)
        _, _, forget, unlisten = peer.sent()
        assert (forget, unlisten) == (
            {"t": "forget", "server": "web"},
            {"t": "unlisten", "key": settings.key},
        )
        assert (process.servers, process.listeners) == (set(), set())

    with_peer(scene)


def test_pair_and_table_are_sent_again_if_they_are_others() -> None:
    async def scene(peer: Peer) -> None:
        process, facts = peer.process, ServerFacts(name="web")
        one, other = wire.pair(), wire.pair()
        for give in (one[0], one[0], other[0], None):
            process.report_server(facts, give)
        pairs = [each["pair"] for each in peer.sent()]
        assert pairs == [pair_number(one[0]), pair_number(other[0]), 0]
        for _ in range(2):
            process.set_return_socket_pair(*one)
            process.publish(1, one[0], workers_may_keep=False)
        process.publish(2, one[0])
        assert [each.get("keeps") for each in peer.sent()] == [None, False, True]
        for end in (*one, *other):
            end.close()

    with_peer(scene)


def test_states_that_are_gone_are_forgotten_by_the_process() -> None:
    async def scene(peer: Peer) -> None:
        process, url = peer.process, "http://10.0.0.1:80"
        failing = ProbeState(host=url, why="status 500")
        for _ in range(2):
            process.report_probes({url: failing})
            process.report_machines({url: MachineState(host=url, state="stopped")})
        process.report_probes({})
        process.report_machines({})
        process.report_probes({})
        states = [(each["t"], each["state"]) for each in peer.sent()]
        assert [kind for kind, _ in states] == ["probed", "machine", "probed", "machine"]
        assert states[2] == ("probed", to_json(ProbeState(host=url)))
        assert states[3] == ("machine", to_json(MachineState(host=url)))

    with_peer(scene)


def test_certificates_of_a_listener_are_those_of_the_last_list() -> None:
    async def scene(peer: Peer) -> None:
        process = peer.process
        for _ in range(2):
            for names in (["a.test"], ["b.test"]):
                process.use_certificate(":443", names, {}, "digest", [])
            process.keep_certificates({":443": [["a.test"], ["b.test"]]})
        assert peer.kinds() == ["certificate", "certificate", "certified"]
        process.keep_certificates({":443": [["a.test"]]})
        process.use_certificate(":443", ["a.test"], {}, "digest", [])
        process.use_certificate(":443", ["b.test"], {}, "digest", [])
        messages = peer.sent()
        assert [each["names"] for each in messages] == [[["a.test"]], ["b.test"]]

    with_peer(scene)


def test_events_and_requests_of_the_process_are_reported_and_nothing_else() -> None:
    async def scene(peer: Peer) -> None:
        reports: list[wire.Message] = []
        peer.process.on_report = reports.append
        for kind in ("event", "hosts", "loads", "wake", "up", "other"):
            peer.say(t=kind)
        await peer.process.up.wait()
        while len(reports) < 4:
            await asyncio.sleep(0)
        assert [each["t"] for each in reports] == ["event", "hosts", "loads", "wake"]

    with_peer(scene)


def test_silent_process_holds_up_a_stop_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_WITHDRAW_SECONDS", "_UNUSED_SECONDS"):
        monkeypatch.setattr(gateway_process, name, 0.001)

    async def scene(peer: Peer) -> None:
        give, take = wire.pair()
        peer.process.report_server(ServerFacts(name="web"), give)
        await peer.process.withdraw_passing_socket("web", give)
        await peer.process.wait_briefly_until_unused("web")
        assert peer.kinds() == ["server", "withdraw", "performed"]
        assert peer.process.servers == set()
        give.close()
        take.close()

    with_peer(scene)


def test_loads_and_drain_are_sent_each_time() -> None:
    async def scene(peer: Peer) -> None:
        peer.process.report_connections({"web": 2})
        peer.process.report_connections({"web": 2})
        assert [each["connections"] for each in peer.sent()] == [{"web": 2}] * 2

    with_peer(scene)


def test_zygote_is_for_one_mark_and_the_variables_that_are_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_process, "withheld_variables", lambda: ["A_TOKEN", "B"])
    assert GatewayZygote.mark_for("1.0") == "1.0 A_TOKEN B"


def test_drain_is_the_last_order_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolctl.features.gateway.supervision.sidecar.kill", lambda known: None)

    async def scene(peer: Peer) -> None:
        peer.process.drain(30.0)
        assert peer.sent() == [{"t": "drain", "seconds": 30.0}]
        assert peer.process.link.sock.fileno() < 0

    with_peer(scene)


async def asked(peer: Peer) -> wire.Message:
    """The question that the process was sent."""
    while not (found := peer.sent()):
        await asyncio.sleep(0)
    return found[0]


def test_answers_of_the_process_are_returned_and_their_descriptors_closed() -> None:
    async def scene(peer: Peer) -> None:
        process = peer.process
        before = os.listdir("/proc/self/fd")
        report = asyncio.ensure_future(process.fetch_report())
        question = await asked(peer)
        assert question == {"t": "report", "id": question["id"]}
        fd = memory_file("report", b'{"hosts": []}')
        wire.send(peer._theirs, {"t": "report", "id": question["id"]}, [fd])
        os.close(fd)
        assert await report == {"hosts": []}
        assert not {*os.listdir("/proc/self/fd")} - {*before}
        for order, message in (
            (process.fetch_request_totals(), {"t": "figures"}),
            (
                process.change_host_states({"op": "enable", "hosts": ["a"]}),
                {"t": "host", "op": "enable", "hosts": ["a"]},
            ),
        ):
            answer = asyncio.ensure_future(order)
            question = await asked(peer)
            assert question == {**message, "id": question["id"]}
            peer.say(t="answer", id=question["id"], value=7)
            assert (await answer)["value"] == 7
        reopened = asyncio.ensure_future(process.reopen_log())
        question = await asked(peer)
        assert question == {"t": "reopen", "id": question["id"]}
        assert not reopened.done()
        peer.say(t="reopened", id=question["id"])
        await reopened

    with_peer(scene)


def test_question_that_is_not_answered_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_REPORT_SECONDS", "_FIGURES_SECONDS"):
        monkeypatch.setattr(gateway_process, name, 0.001)

    async def scene(peer: Peer) -> None:
        process = peer.process
        for question in (
            process.fetch_report(),
            process.fetch_request_totals(),
            process.reopen_log(),
            process.change_host_states({}),
        ):
            with pytest.raises(TimeoutError):
                await question

    with_peer(scene)


def test_finish_waits_for_the_end_of_the_process_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_process, "_CLOSES_SECONDS", 0.01)
    ended: list[str] = []

    async def scene(peer: Peer) -> None:
        peer.process.end = lambda: ended.append("end")  # type: ignore[method-assign]
        began = asyncio.get_running_loop().time()
        await peer.process.finish(0.02)
        assert asyncio.get_running_loop().time() - began > 0.029
        assert (ended, peer.sent()) == (["end"], [{"t": "drain", "seconds": 0.02, "last": True}])
        finishing = asyncio.ensure_future(peer.process.finish(DEADLINE_SECONDS))
        await asyncio.sleep(0)
        assert not finishing.done()
        peer._theirs.close()
        await finishing
        assert ended == ["end"] * 2

    with_peer(scene)


def test_zygote_forks_a_gateway_and_leaves_no_descriptor_when_it_cannot() -> None:
    async def work() -> None:
        ours, theirs = wire.pair()
        zygote = GatewayZygote(ours, {"pid": 1, "start": 1}, "mark")
        try:
            assert not zygote.is_up
            forking = asyncio.ensure_future(zygote.fork("new"))
            message: Any = {"t": "ping"}
            while message["t"] != "fork":
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    message, fds = wire.receive(theirs) or ({"t": ""}, [])
            assert len(fds) == 1
            wire.send(theirs, {"t": "forked", "id": message["id"], "pid": os.getpid()})
            made = await forking
            assert (made.mark, made.known) == ("new", identity(os.getpid()))
            made.link.close()
            os.close(fds[0])
            wire.send(theirs, {"t": "up"})
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not zygote.is_up:
                    await asyncio.sleep(0)
            wire.send(theirs, {"t": "event"})
            theirs.close()
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(LinkLost):
                await zygote.fork("new")
            assert len(os.listdir("/proc/self/fd")) <= before
            assert zygote.is_up
        finally:
            zygote.link.close()

    run(work())
