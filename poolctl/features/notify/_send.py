"""Formats a message for each kind of receiver, and makes one attempt to send it: an HTTP request or a command.

Errors never contain an address or a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from poolctl import __version__
from poolctl.clock import Clock
from poolctl.http.forward_proxy import proxy_for
from poolctl.http.http_client import exchange
from poolctl.http.message_head import BadMessage, ResponseHead
from poolctl.json_form import Table
from poolctl.logs.log_line import stamp
from poolctl.platform import bounded_file, last_line
from poolctl.runners.process_link import environment_for_programs

from ._problem_tracker import NEWS, RESOLVED, TEST, Message, PoolFacts

if TYPE_CHECKING:
    from .table import Notify

_MAX_READ_BYTES = 64 * 1024
_MAX_OUTPUT_BYTES = 16 * 1024 * 1024
# https://docs.ntfy.sh/publish/#message-priority, https://docs.ntfy.sh/emojis/
_NTFY_PRIORITIES = {"error": 5, "warning": 4, "info": 3}
_NTFY_TAGS = {"error": "rotating_light", "warning": "warning", "info": "information_source"}
# Gotify's apps play a sound from priority 4 on, a loud one from 8 on.
_GOTIFY_PRIORITIES = {"error": 8, "warning": 5, "info": 2}
_COLOURS = {"error": "#d00000", "warning": "#e8a317", "info": "#2eb886"}


class Unsent(Exception):
    """The attempt failed. With `again` a retry may succeed, after that number of seconds at the earliest."""

    def __init__(self, message: str, *, again: bool = True, after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.again = again
        self.after_seconds = after_seconds


class Sender:
    """Sends to one receiver."""

    def __init__(self, notify: Notify, facts: PoolFacts) -> None:
        self._notify = notify
        self._facts = facts
        self._tls: ssl.SSLContext | None = None

    async def send(self, message: Message) -> None:
        """Send the message. Raises Unsent."""
        try:
            async with asyncio.timeout(self._notify.timeout):
                if self._notify.type == "command":
                    await self._run(message)
                else:
                    await self._post(message)
        except TimeoutError:
            raise Unsent(f"no answer within {self._notify.timeout:g} s") from None

    async def _post(self, message: Message) -> None:
        notify = self._notify
        url = notify.url or self._secret("url") or ""
        found = post(
            notify.type,
            message,
            pool=self._facts.name,
            host=socket.gethostname(),
            topic=notify.topic or "",
            token=self._secret("token"),
        )
        where = urlsplit(url)
        if where.scheme not in ("http", "https") or not where.hostname:
            raise Unsent("its url is not an http or https address", again=False)
        if where.username is not None and "authorization" not in found.headers:
            whole = f"{unquote(where.username)}:{unquote(where.password or '')}"
            found.headers["authorization"] = f"Basic {b64encode(whole.encode()).decode()}"
        tls = await self._context() if where.scheme == "https" else None
        target = f"{where.path.rstrip('/') if found.path else where.path}{found.path}" or "/"
        target += f"?{where.query}" if where.query else ""
        headers = {
            "host": where.netloc.rpartition("@")[2],
            "user-agent": f"poolctl/{__version__}",
            "content-length": str(len(found.body)),
            "connection": "close",
            **found.headers,
        }
        fields = [*headers.items()]
        try:
            address = where.hostname, where.port or (443 if tls else 80)
            proxy = proxy_for(where.scheme, *address, self._facts.environment)
            if proxy is not None and tls is None:
                target = f"http://{headers['host']}{target}"
                fields += proxy.fields
            async with exchange(
                address, "POST", target, fields, found.body, tls=tls, proxy=proxy
            ) as response:
                _check(headers["host"], response.head)
        except BadMessage:
            raise Unsent(f"{where.hostname}: what it answers is not HTTP") from None
        except OSError as error:
            raise Unsent(f"{where.hostname}: {_reason(error)}") from None
        except ValueError as error:  # after OSError: ssl.SSLCertVerificationError is both
            raise Unsent(f"{where.hostname}: {error}", again=False) from None

    async def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            try:
                # Reading the system's certificates takes too long for the event loop.
                self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._notify.ca)
            except OSError as error:
                raise Unsent(f"ca: {_reason(error)}") from None
        return self._tls

    def _secret(self, what: str) -> str:
        """The url or the token, from the environment or a file; "" when neither is configured."""
        name, path = getattr(self._notify, f"{what}_env"), getattr(self._notify, f"{what}_file")
        if name:
            if not self._facts.environment.get(name):
                raise Unsent(f"the environment variable {name} is not set", again=False)
            return self._facts.environment[name].strip()
        if not path:
            return ""
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(_MAX_READ_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unsent(f"{what}_file: {_reason(error)}") from None

    async def _run(self, message: Message) -> None:
        words = {
            "title": message.title,
            "text": message.text,
            "status": message.status,
            "severity": message.severity,
        }
        named = {self._notify.token_env, self._notify.url_env}
        secrets = {name: value for name, value in self._facts.environment.items() if name in named}
        env = (
            environment_for_programs(self._facts.environment)
            | secrets
            | {f"POOLCTL_{key.upper()}": value for key, value in words.items()}
        )
        argv = [_filled(each, {**words, "pool": self._facts.name}) for each in self._notify.command or ()]
        # Not a pipe: a process that the command leaves running could keep it open.
        output = bounded_file("poolctl-notify", _MAX_OUTPUT_BYTES)
        try:
            await self._wait_for(argv, env, message, output)
        finally:
            os.close(output)

    async def _wait_for(self, argv: list[str], env: Mapping[str, str], message: Message, output: int) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=output,
                cwd=self._facts.directory,
                env=env,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise Unsent(f"{argv[0]}: {_reason(error)}") from None
        try:
            body = json.dumps(document(message, self._facts.name, socket.gethostname()), default=str).encode()
            await process.communicate(body + b"\n")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            why = last_line(output)
            raise Unsent(f"{argv[0]} {_ended(process.returncode)}{f': {why}' if why else ''}")


def _check(host: str, head: ResponseHead) -> None:
    """Raise Unsent unless the response is a success."""
    if not 200 <= head.status < 300:
        after = head.get(b"retry-after")
        # A receiver that rejects the request or the token will not accept it later.
        again = head.status in (408, 425, 429) or head.status >= 500
        redirect = ", a redirect, which is not followed" if head.status < 400 else ""
        message = f"{host} answered {head.status}{redirect}"
        raise Unsent(message, again=again, after_seconds=float(after) if after.isdigit() else 0.0)


def _filled(text: str, words: Mapping[str, str]) -> str:
    for key, value in words.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        return os.strerror(error.errno)  # asyncio's message contains the address
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _ended(returncode: int) -> str:
    return f"exited with status {returncode}" if returncode > 0 else f"was killed by signal {-returncode}"


class Post(NamedTuple):
    """The request; the path is appended to the address's path."""

    path: str
    headers: dict[str, str]
    body: bytes


def post(kind: str, message: Message, *, pool: str, host: str, topic: str = "", token: str = "") -> Post:
    """The message in the format of this kind of receiver."""
    bearer = {"authorization": f"Bearer {token}"} if token else {}
    if kind == "ntfy":
        return _json("/", bearer, _ntfy(message, topic))
    if kind == "gotify":
        return _json("/message", {"x-gotify-key": token}, _gotify(message))
    if kind == "slack":
        return _json("", bearer, _slack(message))
    return _json("", bearer, document(message, pool, host))


def document(message: Message, pool: str, host: str) -> Table:
    """The body for a webhook, also the standard input of a command."""
    return {
        "schema": 1,
        "pool": pool,
        "host": host,
        "status": message.status,
        "severity": message.severity,
        "title": message.title,
        "text": message.text,
        "time": stamp(message.time),
        "events": [event.to_json() for event in message.events],
    }


def _json(path: str, headers: dict[str, str], body: Table) -> Post:
    return Post(path, {"content-type": "application/json", **headers}, json.dumps(body, default=str).encode())


def _ntfy(message: Message, topic: str) -> Table:
    tag = "white_check_mark" if message.status == RESOLVED else _NTFY_TAGS[message.severity]
    return {
        "topic": topic,
        "title": message.title,
        "message": message.text,
        "priority": _NTFY_PRIORITIES[message.severity],
        "tags": [tag],
    }


def _gotify(message: Message) -> Table:
    return {
        "title": message.title,
        "message": message.text,
        "priority": _GOTIFY_PRIORITIES[message.severity],
        "extras": {"client::display": {"contentType": "text/plain"}},
    }


def _slack(message: Message) -> Table:
    # https://api.slack.com/reference/surfaces/formatting#escaping
    colour = _COLOURS["info" if message.status in (RESOLVED, NEWS, TEST) else message.severity]
    return {
        "text": f"*{_escaped(message.title)}*",
        "attachments": [{"color": colour, "text": _escaped(message.text), "fallback": message.title}],
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class FixedFacts(NamedTuple):
    """A pool without a supervisor, for test notifications."""

    name: str
    environment: Mapping[str, str]
    directory: str

    def tags(self, server: str) -> Collection[str]:
        """No tags, because a test notification concerns no server."""
        return ()


async def send_test(receivers: Sequence[Notify], facts: PoolFacts) -> dict[str, str]:
    """Send a test notification to these receivers; the error of each by its name, "" for success."""
    title = f"{facts.name}: this is a test"
    message = Message(
        TEST, "info", title, ("If you can read this, problems will be reported here.",), Clock().time()
    )

    async def attempt(notify: Notify) -> str:
        try:
            await Sender(notify, facts).send(message)
        except Unsent as problem:
            return str(problem)
        return ""

    return dict(
        zip([each.label for each in receivers], await asyncio.gather(*map(attempt, receivers)), strict=True)
    )
