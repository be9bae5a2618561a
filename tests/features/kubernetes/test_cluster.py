"""The client of the API: what each failure of an API server, a kubeconfig and a command in a pod becomes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from poolctl.errors import ControlError
from poolctl.features.kubernetes import _cluster
from poolctl.features.kubernetes._cluster import Cluster, Execution, NotFound

pytest.importorskip("lightkube")

Ask = Callable[[Cluster], Awaitable[Any]]
Answer = Callable[[socket.socket, bytes], None]
POD = {"metadata": {"name": "web-1"}}
ENDED = b'{"status": "Success"}'


class Api:
    """An API server that answers each connection's requests as a test wants it to."""

    def __init__(self) -> None:
        self.answer: Answer = lambda connection, head: None
        self.heads: list[bytes] = []
        self.ended = threading.Event()  # a connection has ended
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            head = b""
            while piece := connection.recv(65536):
                head += piece
                if b"\r\n\r\n" in head:
                    self.heads.append(head)
                    self.answer(connection, head)
                    head = b""
        self.ended.set()

    def says(self, status: int, body: object) -> None:
        """Answer every request with this status and body."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "text/html" if text.startswith(b"<") else "application/json"
        fields = f"HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n"
        self.answer = lambda connection, head: connection.sendall(fields.encode() + text)

    def streams(self, *messages: bytes, protocol: str = "v4.channel.k8s.io", accept: str = "") -> None:
        """Answer with a WebSocket that sends these frames."""

        def answer(connection: socket.socket, head: bytes) -> None:
            if not head.startswith(b"GET "):
                return  # a frame of the client
            key = head.lower().partition(b"sec-websocket-key:")[2].partition(b"\r\n")[0]
            at = head.lower().index(key)
            key = head[at : at + len(key)].strip()
            digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            fields = (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept or base64.b64encode(digest).decode()}\r\n"
                f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
            )
            connection.sendall(fields.encode() + b"".join(messages))

        self.answer = answer

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._threads:
            each.join(60)


@pytest.fixture
def api() -> Iterator[Api]:
    found = Api()
    yield found
    found.close()


def kubeconfig(url: str, **user: Any) -> dict[str, Any]:
    return {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user or {"token": "secret"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
    }


@pytest.fixture
def ask(api: Api, tmp_path: Path) -> Callable[..., Any]:
    """`ask(lambda cluster: …)`: the result, of a cluster with this API."""

    def asked(question: Ask, **user: Any) -> Any:
        path = tmp_path / "kubeconfig"
        table = kubeconfig(api.url, **user)
        # Reading the certificates of all authorities takes longer than a test.
        table["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
        path.write_text(json.dumps(table))

        async def ask() -> Any:
            async with Cluster(None, None, {"KUBECONFIG": str(path)}) as cluster:
                return await question(cluster)

        return asyncio.run(ask())

    return asked


@pytest.fixture
def refused(ask: Any) -> Callable[..., ControlError]:
    """`refused(lambda cluster: …)`: the error."""

    def asked(question: Ask, **user: Any) -> ControlError:
        with pytest.raises(ControlError) as caught:
            ask(question, **user)
        return caught.value

    return asked


async def list_pods(cluster: Cluster) -> Any:
    return await cluster.list("Pod", {"a": "b"})


async def watch_pods(cluster: Cluster) -> Any:
    return [each async for each in cluster.watch("Pod", {"a": "b", "c": "d"}, "7")]


async def read_log(cluster: Cluster) -> Any:
    return [each async for each in cluster.log("web-1", lines=5, since_seconds=None, follow=True)]


async def run(cluster: Cluster, seconds: float | None = None) -> Execution:
    return await cluster.run("web-1", ["sh", "-c", "a b&c"], most_bytes=100_000, seconds=seconds)


QUESTIONS: dict[str, Ask] = {
    "list pods": list_pods,
    "watch pods": watch_pods,
    "get Pod web-1": lambda cluster: cluster.find("Pod", "web-1"),
    "apply Pod web-1": lambda cluster: cluster.apply({"kind": "Pod", "apiVersion": "v1", **POD}, force=False),
    "patch Pod web-1": lambda cluster: cluster.patch("Pod", "web-1", {"spec": {"a": None}}),
    "delete Pod web-1": lambda cluster: cluster.delete("Pod", "web-1"),
    "read the log of pod web-1": read_log,
    "run a command in pod web-1": run,
}
ABSENT_IS_FINE = ("get Pod web-1", "delete Pod web-1")
STATUSES = {400: 1, 401: 7, 403: 7, 404: 1, 409: 8, 422: 1, 429: 1, 500: 1, 503: 1}


@pytest.mark.parametrize("what", QUESTIONS)
@pytest.mark.parametrize(("status", "exit_code"), STATUSES.items())
def test_reason_of_the_api_server_is_the_error(
    what: str, status: int, exit_code: int, api: Api, ask: Any, refused: Any
) -> None:
    api.says(status, {"kind": "Status", "status": "Failure", "code": status, "message": "because\n  of this"})
    if status == 404 and what in ABSENT_IS_FINE:
        assert ask(QUESTIONS[what]) is None
        return
    error = refused(QUESTIONS[what])
    assert error.exit_code == exit_code
    if exit_code == 7:
        # A token may have to be read again after a 401, so that its reason is not read.
        said = what.startswith(("run", "read", "watch")) and status == 401
        assert error.message == (
            f"the cluster's API at {api.url} answered 401 to: {what}" if said else "because of this"
        )
    else:
        assert error.message == f"cannot {what}: because of this"
    assert isinstance(error, NotFound) is (status == 404)


@pytest.mark.parametrize(("length", "is_read"), [(64 * 1024, True), (64 * 1024 + 1, False)])
@pytest.mark.parametrize("what", ["watch pods", "read the log of pod web-1", "run a command in pod web-1"])
def test_reason_is_read_until_it_is_too_long(
    what: str, length: int, is_read: bool, api: Api, refused: Any
) -> None:
    pieces = b'{"message": "because"', b" " * (length - 21), b"}", b""
    fields = b"HTTP/1.1 403 Said\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    api.answer = lambda connection, head: connection.sendall(fields + chunks)
    said = f"the cluster's API at {api.url} answered 403 to: {what}"
    assert refused(QUESTIONS[what]).message == ("because" if is_read else said)


@pytest.mark.parametrize("what", QUESTIONS)
@pytest.mark.parametrize("status", STATUSES)
def test_answer_that_is_no_object_names_the_address(
    what: str, status: int, api: Api, ask: Any, refused: Any
) -> None:
    api.says(status, b"<html>it's a proxy")
    if status == 404 and what in ABSENT_IS_FINE:
        assert ask(QUESTIONS[what]) is None
        return
    error = refused(QUESTIONS[what])
    assert error.message == f"the cluster's API at {api.url} answered {status} to: {what}"
    assert error.exit_code == (7 if status in (401, 403) else 6)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"\xff", b"[" * 5000, b"{}", b'{"metadata": {"name": 5}}']
)
@pytest.mark.parametrize(
    "what", ["list pods", "get Pod web-1", "apply Pod web-1", "run a command in pod web-1"]
)
def test_answer_of_another_form_is_no_valid_one(what: str, body: bytes, api: Api, refused: Any) -> None:
    api.says(200, body)
    if (what, body) == ("list pods", b"{}"):
        return  # a list without items
    error = refused(QUESTIONS[what])
    assert error.exit_code == 6
    assert error.message.startswith(f"the cluster's API at {api.url} ")
    assert what in error.message


def test_conflict_says_how_to_take_fields_over(api: Api, refused: Any) -> None:
    api.says(409, {"code": 409, "message": 'conflict with "argocd"'})
    assert refused(QUESTIONS["apply Pod web-1"]).hint == "--force takes these fields over"


def test_missing_namespace_says_how_to_make_it(api: Api, refused: Any) -> None:
    api.says(404, {"code": 404, "message": 'namespaces "shop" not found'})
    assert refused(list_pods).hint == "kubectl create namespace shop"


@pytest.mark.parametrize(
    "what", ["list pods", "get Pod web-1", "apply Pod web-1", "run a command in pod web-1"]
)
@pytest.mark.parametrize("drips", [False, True])
def test_answer_that_does_not_come_is_bounded(
    what: str, drips: bool, api: Api, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cluster, "_REQUEST_SECONDS", 0.2)
    ended = threading.Event()

    def drip(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not ended.wait(0.05):
            connection.sendall(b"A: b\r\n")

    if drips:
        api.answer = drip
    error = refused(QUESTIONS[what])
    ended.set()
    assert error.exit_code == 6
    assert error.message.startswith(f"the cluster's API at {api.url} does not answer")
    assert "kubectl --context here get --raw /readyz" in error.hint


@pytest.mark.parametrize("what", QUESTIONS)
def test_api_server_that_is_away_is_named(what: str, api: Api, refused: Any) -> None:
    api.url = "http://127.0.0.1:1"
    error = refused(QUESTIONS[what])
    assert (error.exit_code, error.message.startswith("the cluster's API at http://127.0.0.1:1 does")) == (
        6,
        True,
    )


def test_answers_are_plain_objects(api: Api, ask: Any) -> None:
    api.says(200, {"metadata": {"resourceVersion": "7"}, "items": [POD]})
    assert ask(list_pods) == ([POD], "7")
    head = api.heads[-1].decode()
    assert head.startswith("GET /api/v1/namespaces/shop/pods?labelSelector=a%3Db ")
    assert "authorization: bearer secret" in head.lower()
    there = {"metadata": {"name": "web-1", "resourceVersion": "8"}}
    lines = b"".join(
        json.dumps({"type": kind, "object": there}).encode() + b"\n" for kind in ("ADDED", "DELETED")
    )
    api.says(200, lines)
    assert ask(watch_pods) == [("ADDED", there), ("DELETED", there)]
    line = api.heads[-1].decode().splitlines()[0]
    query = "watch=true&labelSelector=a%3Db%2Cc%3Dd&resourceVersion=7"
    assert line == f"GET /api/v1/namespaces/shop/pods?{query} HTTP/1.1"
    api.says(200, b"1 one\n2 two\n")
    assert ask(read_log) == ["1 one", "2 two"]
    line = api.heads[-1].decode().splitlines()[0]
    assert line.startswith(
        "GET /api/v1/namespaces/shop/pods/web-1/log?follow=true&tailLines=5&container=server&timestamps=true"
    )


def test_watch_whose_version_is_gone_ends_and_another_error_is_raised(
    api: Api, ask: Any, refused: Any
) -> None:
    api.says(200, {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
    assert ask(watch_pods) == []
    api.says(200, {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is away"}})
    assert refused(watch_pods).message == "cannot watch pods: etcd is away"
    for body in (b"[]", b"5", b'{"type": "ADDED"}', b'{"type": "ERROR", "object": 5}', b"{", b"[" * 5000):
        api.says(200, body)
        assert refused(watch_pods).message.startswith(f"the cluster's API at {api.url} gave no valid answer")


def context(name: str) -> dict[str, Any]:
    return {"name": "here", "context": {"cluster": "c", "user": name}}


@pytest.mark.parametrize(
    "change",
    [
        {"current-context": "there"},
        {"contexts": []},
        {"contexts": 5},
        {"contexts": [context("nobody")]},
        {"clusters": []},
        {"clusters": [{"name": "c", "cluster": {"server": "http://h", "certificate-authority": "/missing"}}]},
        {"users": [{"name": "u", "user": {"client-certificate": "/missing", "client-key": "/missing"}}]},
        b"\tnot: [yaml",
        b"[]",
        b"",
        None,
    ],
    ids=str,
)
def test_kubeconfig_with_a_problem_is_exit_6_with_the_fix(change: Any, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif change is not None:
        path.write_text(json.dumps(kubeconfig("https://127.0.0.1:1") | change))
    with pytest.raises(ControlError) as caught:
        Cluster(None, None, {"KUBECONFIG": str(path)})
    assert caught.value.exit_code == 6
    assert caught.value.message.startswith("no cluster can be reached by the kubeconfig: ")
    assert caught.value.hint.startswith("set KUBECONFIG")


@pytest.mark.slow
def test_context_that_is_named_is_used(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig("http://127.0.0.1:1")))
    environment = {"KUBECONFIG": str(path)}
    assert Cluster("here", None, environment).namespace == "shop"
    assert Cluster("here", "other", environment).namespace == "other"
    with pytest.raises(ControlError, match="no cluster can be reached"):
        Cluster("there", None, environment)


def test_credentials_that_no_program_gives_are_not_permitted(api: Api, refused: Any) -> None:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "false", "args": []}
    api.says(200, {"items": []})
    for what in ("list pods", "run a command in pod web-1"):
        error = refused(QUESTIONS[what], exec=plugin)
        assert (error.exit_code, "user of the context" in error.hint) == (7, True), error.message
    assert api.heads == []


# Commands in pods


def frame(data: bytes, opcode: int = 2, first: int = 0x80) -> bytes:
    """A frame of a server (RFC 6455 section 5.2)."""
    length = len(data)
    if length < 126:
        size = bytes([length])
    elif length < 65536:
        size = b"\x7e" + length.to_bytes(2, "big")
    else:
        size = b"\x7f" + length.to_bytes(8, "big")
    return bytes([first | opcode]) + size + data


def status(**more: Any) -> bytes:
    return b"\x03" + json.dumps({"status": "Failure", **more}).encode()


def exits(*codes: str) -> bytes:
    causes = [{"reason": "ExitCode", "message": code} for code in codes]
    return status(reason="NonZeroExitCode", details={"causes": causes})


def test_command_is_sent_and_its_output_and_exit_code_come_back(api: Api, ask: Any) -> None:
    there, out, err = frame(b"\x01"), frame(b"\x01one "), frame(b"\x02problem")
    halves = frame(b"\x01tw", first=0) + frame(b"o", opcode=0)
    api.streams(there, out, err, frame(b"", opcode=9), halves, frame(b"\x03" + ENDED))
    assert ask(run) == Execution(0, b"one two", b"problem")
    line = api.heads[0].decode().splitlines()[0]
    assert line.startswith(
        "GET /api/v1/namespaces/shop/pods/web-1/exec?container=server&command=sh&command=-c&"
    )
    assert "command=a+b%26c&stdin=true&stdout=true&stderr=true" in line or "a%20b%26c" in line
    assert b"authorization: bearer secret" in api.heads[0].lower()
    api.streams(frame(exits("7")))
    assert ask(run) == Execution(7, b"", b"")
    api.streams(frame(exits("-1")))
    assert ask(run).exit_code == 1, "a failure is never 0"


LYING = {
    "another key": {"accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
    "another protocol": {"protocol": "channel.k8s.io"},
    "no protocol": {"protocol": ""},
}


@pytest.mark.parametrize("lie", LYING)
def test_handshake_that_lies_is_refused(lie: str, api: Api, refused: Any) -> None:
    api.streams(frame(b"\x03" + ENDED), **LYING[lie])  # type: ignore[arg-type]
    error = refused(run)
    expected = f"the cluster's API at {api.url} does not speak v4.channel.k8s.io over a WebSocket, asked to: "
    assert (error.exit_code, error.message) == (6, f"{expected}run a command in pod web-1")


@pytest.mark.parametrize(
    "messages",
    [
        (b"HTTP/1.1 200 OK\r\n\r\n",),
        (b"\xff" * 4000,),
        (frame(b"\x03" + ENDED, opcode=1),),
        (frame(b""),),
        (frame(b"\x00in"),),
        (frame(b"\x04{}"),),
        (frame(b"\xffx"),),
        (frame(b"\x03not JSON"),),
        (frame(b"\x03" + b"[" * 60000),),
        (frame(b"\x03[]"),),
        (frame(b'\x03{"status": 5}'),),
        (frame(b"\x03null"),),
        (frame(exits()),),
        (frame(exits("1", "2")),),
        (frame(exits("one")),),
        (frame(status(reason="NonZeroExitCode", details=5)),),
        (frame(b"\x01x", first=0xC0),),  # compressed, which was not agreed on
        (frame(b"\x01" + b"x" * 2_000_000),),
        (frame(b"\x03\xe8bye", opcode=8),),
        (frame(b"\x03\xe8bye", opcode=8) + frame(b"", opcode=9) * 50,),
        (frame(b"x", opcode=10),),  # a pong that nothing has asked for
        (frame(b"\x01x")[:2],),
    ],
    ids=lambda messages: repr(messages[0][:24]),
)
def test_stream_that_breaks_the_protocol_is_no_valid_answer(
    messages: tuple[bytes, ...], api: Api, refused: Any
) -> None:
    api.streams(*messages)
    answer = api.answer

    def answer_and_end(connection: socket.socket, head: bytes) -> None:
        answer(connection, head)
        connection.shutdown(socket.SHUT_WR)

    api.answer = answer_and_end
    error = refused(run)
    assert error.exit_code in (1, 6), error.message
    assert "run a command in pod web-1" in error.message
    assert api.ended.wait(60)


@pytest.mark.parametrize("message", [b"\x00in", b"\x04{}", b"\xffx", b"\x03[]"])
def test_message_of_no_channel_ends_the_command_at_once(message: bytes, api: Api, refused: Any) -> None:
    api.streams(frame(message))
    error = refused(lambda cluster: run(cluster, 60))
    address = f"the cluster's API at {api.url}"
    assert error.message.startswith(f"{address} gave no valid answer to: run a command in pod web-1"), (
        error.message
    )
    assert error.exit_code == 6


def test_command_that_cannot_begin_says_why(api: Api, refused: Any) -> None:
    reason = 'exec: "python3": executable file not found in $PATH'
    api.streams(frame(status(reason="InternalError", code=500, message=reason)))
    error = refused(run)
    assert (error.exit_code, error.message) == (1, f"cannot run a command in pod web-1: {reason}")


def test_output_and_time_are_bounded(api: Api, refused: Any) -> None:
    api.streams(*[frame(b"\x01" + b"x" * 30_000), frame(b"\x02" + b"y" * 30_000)] * 2)
    error = refused(run)
    assert (error.exit_code, error.message) == (
        1,
        "cannot run a command in pod web-1: it prints more than 100000 bytes",
    )
    api.streams(frame(b"\x01"))
    error = refused(lambda cluster: run(cluster, 0.3))
    assert (error.exit_code, error.message) == (
        124,
        "cannot run a command in pod web-1: it has not ended within 0.3 s",
    )
    assert api.ended.wait(60), "the connection goes with the command"


def test_connection_that_is_lost_during_a_command_is_noticed(
    api: Api, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cluster, "_PING_SECONDS", 0.2)
    api.streams(frame(b"\x01"))  # and answers no ping
    error = refused(run)
    assert error.exit_code == 6
    assert error.message.startswith(
        f"the cluster's API at {api.url} ended the connection before the command had ended"
    )


def test_cancelled_command_ends_its_connection(api: Api, ask: Any) -> None:
    begun = threading.Event()
    api.streams(frame(b"\x01"))
    answer = api.answer

    def answer_and_report(connection: socket.socket, head: bytes) -> None:
        answer(connection, head)
        begun.set()

    api.answer = answer_and_report

    async def cancelled(cluster: Cluster) -> None:
        running = asyncio.ensure_future(run(cluster))
        await asyncio.to_thread(begun.wait, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await asyncio.to_thread(api.ended.wait, 60)

    ask(cancelled)
