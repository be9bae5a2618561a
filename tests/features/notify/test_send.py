"""Notifications reach real receivers: parsed as they parse them, refused as they refuse them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest

from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.features.notify._problem_tracker import NEWS, RESOLVED, TEST, Message, NotificationContext
from poolctl.features.notify._send import NotificationSender, SendFailed, send_test
from poolctl.features.notify.table import Notify
from poolctl.monitor.journal import JournalEvent
from tests.certificates import certificate
from tests.features.notify.receivers import TOKEN, Receiver, receiver
from tests.threads import no_more_threads

MESSAGE = Message(
    "problem",
    "error",
    "shop: web: failed <é>",
    ("web: failed & gone",),
    0.0,
    (JournalEvent("", 1, "lifecycle", "running"),),
)
ENV = {"TOKEN": TOKEN, "HOOK": "http://127.0.0.1:1/"}


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as server:
        yield server


def send(
    directory: Path = Path("/"), env: dict[str, str] | None = None, message: Message = MESSAGE, **keys: Any
) -> SendFailed | None:
    """What came of one attempt; None when it arrived."""

    async def attempt() -> None:
        await NotificationSender(
            Notify(**keys), lambda: NotificationContext("shop", env or ENV, str(directory))
        ).send(message)

    try:
        asyncio.run(attempt())
    except SendFailed as problem:
        return problem
    return None


def test_each_kind_of_receiver_understands_its_message(there: Receiver) -> None:
    assert send(type="ntfy", url=there.url("/ntfy"), topic="pool", token_env="TOKEN") is None
    assert send(type="gotify", url=there.url("/gotify/"), token_env="TOKEN") is None
    assert send(type="slack", url=there.url("/slack/hook")) is None
    assert send(type="webhook", url=there.url("/hook?a=b"), token_env="TOKEN") is None
    ntfy, gotify, slack, webhook = there.taken
    sent = {"command", "ntfy", "gotify", "slack", "webhook"}
    assert sent == {*get_args(Notify.model_fields["type"].annotation)}, "send one of each kind above"
    assert (ntfy.kind, ntfy.title, ntfy.text) == ("ntfy", MESSAGE.title, MESSAGE.text)
    assert (ntfy.body["topic"], ntfy.body["priority"]) == ("pool", 5)
    assert ntfy.headers["authorization"] == f"Bearer {TOKEN}"
    assert (gotify.kind, gotify.title, gotify.body["priority"]) == ("gotify", MESSAGE.title, 8)
    assert (slack.title, slack.text) == ("*shop: web: failed &lt;é&gt;*", "web: failed &amp; gone")
    assert webhook.body == {
        "schema": 1, "pool": "shop", "host": socket.gethostname(), "status": "problem", "severity": "error",
        "title": MESSAGE.title, "text": MESSAGE.text, "time": "1970-01-01T00:00:00.000000Z",
        "events": [MESSAGE.events[0].to_json()],
    }  # fmt: skip


async def test_thread_that_the_machine_refuses_delays_the_message() -> None:
    sender = NotificationSender(
        Notify(type="webhook", url="https://127.0.0.1:1/"), lambda: NotificationContext("shop", ENV, "/")
    )
    with no_more_threads(), pytest.raises(SendFailed, match="can't start new thread") as failed:
        await sender.send(MESSAGE)
    assert failed.value.again


def test_user_in_the_address_is_sent_as_basic_authentication(there: Receiver) -> None:
    url = there.url("/hook?a=b").replace("://", "://me:a%20b@")
    assert send(type="webhook", url=url) is None
    assert there.taken[0].headers["authorization"] == "Basic bWU6YSBi"
    assert there.taken[0].headers["host"] == there.url().partition("//")[2]


def test_secrets_come_from_files_as_well_and_may_change_there(there: Receiver, tmp_path: Path) -> None:
    url, token = tmp_path / "url", tmp_path / "token"
    url.write_text(there.url("/gotify") + "\n")
    token.write_text("old\n")
    keys = {"type": "gotify", "url_file": str(url), "token_file": str(token)}
    refused = send(**keys)
    assert refused is not None
    assert (str(refused)[-12:], refused.again) == ("answered 401", False)
    token.write_text(f"{TOKEN}\n")
    assert send(**keys) is None


@pytest.mark.parametrize(
    ("status", "headers", "again", "after"),
    [
        (500, {}, True, 0), (503, {"Retry-After": "7"}, True, 7), (429, {"Retry-After": "soon"}, True, 0),
        (400, {}, False, 0), (403, {}, False, 0), (301, {"Location": "http://elsewhere/"}, False, 0),
    ],
)  # fmt: skip
def test_status_code_decides_whether_to_try_again(
    there: Receiver, status: int, headers: dict[str, str], again: bool, after: float
) -> None:
    there.refusals.append((status, headers))
    problem = send(type="slack", url=there.url("/slack/hook"))
    assert problem is not None
    assert (problem.again, problem.after_seconds) == (again, after)
    more = ", a redirect, which is not followed" if status == 301 else ""
    assert str(problem) == f"{there.url().partition('//')[2]} answered {status}{more}"


def test_other_answer_is_a_failed_delivery() -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def answer() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        problem = send(type="webhook", url=f"http://127.0.0.1:{odd.getsockname()[1]}/")
        thread.join()
    assert problem is not None
    assert str(problem) == "127.0.0.1: what it answers is not HTTP"
    assert (problem.again, problem.after_seconds) == (True, 0)


def test_error_is_reported_without_the_address_and_the_token(there: Receiver, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        gone = send(type="webhook", url=f"http://user:s3cret@127.0.0.1:{port}/s3cret?s3cret")
    mute = socket.create_server(("127.0.0.1", 0))
    late = send(type="webhook", url=f"http://127.0.0.1:{mute.getsockname()[1]}/s3cret", timeout=0.05)
    mute.close()
    unset = send(type="webhook", url_env="NOT_SET")
    missing = send(type="webhook", url_file=str(tmp_path / "none"))
    odd = send(type="webhook", url_env="ODD", env={"ODD": "s3cret"})
    messages = [str(each) for each in (gone, late, unset, missing, odd)]
    assert messages == [
        "127.0.0.1: Connection refused",
        "no answer within 0.05 s",
        "the environment variable NOT_SET is not set",
        "url_file: No such file or directory",
        "its url is not an http or https address",
    ]
    assert "s3cret" not in str(messages)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/hook", "http:///hook"])
def test_address_needs_http_and_a_host(url: str) -> None:
    problem = send(type="webhook", url_env="ODD", env={"ODD": url})
    assert str(problem) == "its url is not an http or https address"


def test_token_that_would_inject_a_header_is_not_sent(there: Receiver) -> None:
    problem = send(
        type="slack", url=there.url("/slack/hook"), token_env="TOKEN", env={"TOKEN": "s3cret\r\nX: y"}
    )
    assert problem is not None
    assert (str(problem), problem.again) == (
        "127.0.0.1: the header 'authorization' has a control character in its value",
        False,
    )
    assert there.requests == []


def test_receiver_that_hangs_up_has_not_taken_the_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def hang_up() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(65536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        problem = send(type="webhook", url=f"http://127.0.0.1:{odd.getsockname()[1]}/")
        thread.join()
    assert str(problem) == "127.0.0.1: the connection was closed before the response was complete"


def test_certificates_are_checked(tmp_path: Path) -> None:
    path, _ = certificate(tmp_path)
    with receiver(path) as there:
        problem = send(type="slack", url=there.url("/slack/hook"))
        assert "its certificate is not trusted" in str(problem)
        assert there.taken == []
        assert send(type="slack", url=there.url("/slack/hook"), ca=str(path)) is None
        wrong = there.url("/slack/hook").replace("localhost", "localhost.localdomain")
        assert send(type="slack", url=wrong, ca=str(path)) is not None
        absent = send(type="slack", url=there.url("/slack/hook"), ca=str(tmp_path / "absent.pem"))
        assert str(absent) == "ca: No such file or directory"
        assert len(there.taken) == 1


class Proxy(threading.Thread):
    """A forward proxy for one connection; `asked` is the first line that it was sent."""

    def __init__(self, port: int, status: int = 200) -> None:
        super().__init__(daemon=True)
        self.asked = b""
        self._port, self._status = port, status
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://user:secret@127.0.0.1:{self._listener.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        client, _ = self._listener.accept()
        with self._listener, client:
            head = b""
            while b"\r\n\r\n" not in head and (data := client.recv(4096)):
                head += data
            self.asked = head
            if self._status != 200:
                client.sendall(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % self._status)
                return
            with socket.create_connection(("localhost", self._port)) as there:
                if head.startswith(b"CONNECT "):
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    there.sendall(re.sub(rb"http://[^/]*", b"", head, count=1))
                back = threading.Thread(target=self._copy, args=(there, client), daemon=True)
                back.start()
                self._copy(client, there)
                back.join(10)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_proxy_of_the_environment_is_used_for_https_through_a_tunnel(tmp_path: Path) -> None:
    path, _ = certificate(tmp_path)
    with receiver(path) as there:
        url = there.url("/slack/hook")
        proxy = Proxy(urlsplit(url).port or 0)
        env = {"HTTPS_PROXY": proxy.address}
        assert send(type="slack", url=url, ca=str(path), env=env) is None
        assert proxy.asked.startswith(f"CONNECT {urlsplit(url).netloc} HTTP/1.1\r\n".encode())
        assert b"proxy-authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in proxy.asked
        assert len(there.taken) == 1
        problem = send(type="slack", url=url, ca=str(path), env={"HTTPS_PROXY": Proxy(0, 407).address})
        assert "answered 407" in str(problem)
        assert "secret" not in str(problem)
        assert send(type="slack", url=url, ca=str(path), env={**env, "NO_PROXY": "localhost"}) is None


def test_proxy_of_the_environment_gets_the_whole_address_for_http(there: Receiver) -> None:
    url = there.url("/slack/hook")
    proxy = Proxy(urlsplit(url).port or 0)
    assert send(type="slack", url=url, env={"http_proxy": proxy.address}) is None
    assert proxy.asked.startswith(f"POST {url} HTTP/1.1\r\n".encode())
    assert len(there.taken) == 1


def test_command_gets_the_message_as_input_arguments_and_environment(tmp_path: Path) -> None:
    script = "import json, os, sys; json.dump([json.load(sys.stdin), sys.argv[1:], dict(os.environ)], open('out', 'w'))"
    command = [sys.executable, "-c", script, "--title={title}", "{status}/{severity}/{pool}/{text}"]
    assert send(tmp_path, type="command", command=command) is None
    body, words, env = json.loads((tmp_path / "out").read_text())
    assert body["title"] == MESSAGE.title
    assert words == [f"--title={MESSAGE.title}", "problem/error/shop/web: failed & gone"]
    assert (env["POOLCTL_STATUS"], env["POOLCTL_TITLE"]) == ("problem", MESSAGE.title)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["false"], "false exited with status 1"),
        (
            ["sh", "-c", "echo first >&2; echo 'no such room' >&2; exit 3"],
            "sh exited with status 3: no such room",
        ),
        (["sh", "-c", "sleep 1 >&2 & kill -9 $$"], "sh was killed by signal 9"),
        (["no-such-program"], "no-such-program: No such file or directory"),
        (["sleep", "60"], "no answer within 0.2 s"),
        (["true"], "None"),
    ],
)
def test_failing_command_is_reported_and_hanging_one_is_killed(command: list[str], words: str) -> None:
    env = {"PATH": "/usr/bin:/bin"}
    assert (
        str(send(type="command", command=command, timeout=0.2 if "sleep" in command else 20, env=env))
        == words
    )


@pytest.mark.parametrize(
    ("status", "severity", "ntfy", "tag", "gotify", "colour"),
    [
        ("problem", "error", 5, "rotating_light", 8, "#d00000"),
        ("problem", "warning", 4, "warning", 5, "#e8a317"),
        (RESOLVED, "error", 5, "white_check_mark", 8, "#2eb886"),
        (NEWS, "warning", 4, "warning", 5, "#2eb886"),
        (TEST, "info", 3, "information_source", 2, "#2eb886"),
    ],
)
def test_severity_and_status_are_shown_as_each_receiver_does(
    there: Receiver, status: str, severity: str, ntfy: int, tag: str, gotify: int, colour: str
) -> None:
    message = MESSAGE._replace(status=status, severity=severity)
    assert send(type="ntfy", url=there.url("/ntfy"), topic="pool", token_env="TOKEN", message=message) is None
    assert send(type="gotify", url=there.url("/gotify"), token_env="TOKEN", message=message) is None
    assert send(type="slack", url=there.url("/slack/hook"), message=message) is None
    bodies = [each.body for each in there.taken]
    assert (bodies[0]["priority"], bodies[0]["tags"]) == (ntfy, [tag])
    assert bodies[1]["priority"] == gotify
    assert bodies[1]["extras"] == {"client::display": {"contentType": "text/plain"}}
    assert bodies[2]["attachments"][0]["color"] == colour
    assert bodies[2]["attachments"][0]["fallback"] == message.title


@pytest.mark.parametrize(
    ("names", "reached", "errors", "exit_code"),
    [
        ((), ["good", "bad"], ["bad: 127.0.0.1:"], 1),
        (("good",), ["good"], [], 0),
        (("bad", "good"), ["good", "bad"], ["bad: 127.0.0.1:"], 1),
        (("good", "else"), None, ["no receiver is named 'else'"], NOTHING_MATCHED),
    ],
)
def test_test_notification_goes_to_the_named_receivers(
    there: Receiver, names: tuple[str, ...], reached: list[str] | None, errors: list[str], exit_code: int
) -> None:
    receivers = [
        Notify(name="good", type="slack", url=there.url("/slack/hook")),
        Notify(name="bad", type="slack", url=there.url("/nowhere")),
    ]
    result = asyncio.run(send_test(receivers, names, NotificationContext("shop", ENV, "/")))
    found = None if result.receivers is None else [each.name for each in result.receivers]
    assert (found, result.exit_code) == (reached, exit_code)
    assert [each.message.startswith(begin) for each, begin in zip(result.errors, errors, strict=True)] == [
        True
    ] * len(errors)
    for each in result.receivers or ():
        assert each.ok is (each.name == "good")
        assert bool(each.message) is not each.ok
    assert [each.title for each in there.taken] == ["*shop: this is a test*"] * ("good" in (reached or ()))
    if reached is None:
        assert result.errors[0].hint == "receivers: good, bad"


def test_test_notification_without_receivers_is_an_error() -> None:
    result = asyncio.run(send_test([], (), NotificationContext("shop", ENV, "/")))
    assert (result.exit_code, result.errors[0].message) == (
        NOTHING_MATCHED,
        "no [[notify]] receivers are configured",
    )
    assert result.errors[0].hint == "add a [[notify]] table to the file"
