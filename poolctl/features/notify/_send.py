"""Formats a message for each kind of receiver, and makes one attempt to send it: an HTTP request or a command.

Errors never contain an address or a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit

from poolctl import __version__
from poolctl.clock import Clock
from poolctl.config import fill_placeholders
from poolctl.control.answers import Result, failure
from poolctl.errors import PoolMonitorError
from poolctl.exit_codes import DONE, FAILED, NOTHING_MATCHED
from poolctl.http.http_client import StreamedResponse, exchange, proxy_for
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table
from poolctl.logs.log_line import stamp
from poolctl.runners.output_tail import OutputTail
from poolctl.runners.withheld_variables import environment_for_programs

from ._problem_tracker import NEWS, RESOLVED, TEST, Message, NotificationContext

if TYPE_CHECKING:
    from .table import Notify

logger = logging.getLogger("poolctl.supervisor")

_MAX_READ_BYTES = 64 * 1024
# https://docs.ntfy.sh/publish/#message-priority, https://docs.ntfy.sh/emojis/
_NTFY_PRIORITIES = {"error": 5, "warning": 4, "info": 3}
_NTFY_TAGS = {"error": "rotating_light", "warning": "warning", "info": "information_source"}
# Gotify's apps play a sound from priority 4 on, a loud one from 8 on.
_GOTIFY_PRIORITIES = {"error": 8, "warning": 5, "info": 2}
_COLOURS = {"error": "#d00000", "warning": "#e8a317", "info": "#2eb886"}


class SendFailed(Exception):
    """An attempt to send has failed. If `again` is true, it may be repeated, but only after `after_seconds`."""

    def __init__(self, message: str, *, again: bool = True, after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.again = again
        self.after_seconds = after_seconds


class NotificationSender:
    """Sends messages to one receiver of notifications, such as a webhook or a command."""

    def __init__(self, notify: Notify, facts: Callable[[], NotificationContext]) -> None:
        self._notify = notify
        self._facts = facts
        self._tls: ssl.SSLContext | None = None

    async def send(self, message: Message) -> None:
        """Send the message. Raises SendFailed."""
        try:
            async with asyncio.timeout(self._notify.timeout):
                if self._notify.type == "command":
                    await self._run_notify_command(message)
                else:
                    await self._post(message)
        except TimeoutError:
            raise SendFailed(f"no answer within {self._notify.timeout:g} s") from None
        except SendFailed:
            raise
        except Exception as error:
            # For example if no thread can be started. The waiting messages must still be sent.
            logger.exception("%s: not expected", self._notify.label)
            raise SendFailed(_reason(error)) from error

    async def _post(self, message: Message) -> None:
        notify = self._notify
        url = notify.url or self._secret("url") or ""
        path, extra_headers, document_ = _request_parts(
            notify.type, message, self._facts().name, notify.topic or "", self._secret("token")
        )
        body = json.dumps(document_, default=str).encode()
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SendFailed("its url is not an http or https address", again=False)
        if parts.username is not None and "authorization" not in extra_headers:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            extra_headers["authorization"] = f"Basic {b64encode(credentials.encode()).decode()}"
        tls = await self._tls_context() if parts.scheme == "https" else None
        target = f"{parts.path.rstrip('/') if path else parts.path}{path}" or "/"
        target += f"?{parts.query}" if parts.query else ""
        headers = {
            "host": parts.netloc.rpartition("@")[2],
            "user-agent": f"poolctl/{__version__}",
            "content-length": str(len(body)),
            "connection": "close",
            **extra_headers,
        }
        fields = [*headers.items()]
        try:
            address = parts.hostname, parts.port or (443 if tls else 80)
            proxy = proxy_for(parts.scheme, *address, self._facts().environment)
            if proxy is not None and tls is None:
                target = f"http://{headers['host']}{target}"
                fields += proxy.fields
            async with exchange(address, "POST", target, fields, body, tls=tls, proxy=proxy) as response:
                _check_status(headers["host"], response)
        except BadMessage:
            raise SendFailed(f"{parts.hostname}: what it answers is not HTTP") from None
        except OSError as error:
            raise SendFailed(f"{parts.hostname}: {_reason(error)}") from None
        except ValueError as error:  # after OSError: ssl.SSLCertVerificationError is both
            raise SendFailed(f"{parts.hostname}: {error}", again=False) from None

    async def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            try:
                # Reading the system's certificates takes too long for the event loop.
                self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._notify.ca)
            except OSError as error:
                raise SendFailed(f"ca: {_reason(error)}") from None
        return self._tls

    def _secret(self, key: str) -> str:
        """Read the url or the token (`key`) from its variable or file; "" without both. Raises SendFailed."""
        name, path = getattr(self._notify, f"{key}_env"), getattr(self._notify, f"{key}_file")
        if name:
            if not self._facts().environment.get(name):
                raise SendFailed(f"the environment variable {name} is not set", again=False)
            return self._facts().environment[name].strip()
        if not path:
            return ""
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(_MAX_READ_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SendFailed(f"{key}_file: {_reason(error)}") from None

    async def _run_notify_command(self, message: Message) -> None:
        texts = {
            "title": message.title,
            "text": message.text,
            "status": message.status,
            "severity": message.severity,
        }
        variable_names = {self._notify.token_env, self._notify.url_env}
        secrets = {name: value for name, value in self._facts().environment.items() if name in variable_names}
        env = (
            environment_for_programs(self._facts().environment)
            | secrets
            | {f"POOLCTL_{key.upper()}": value for key, value in texts.items()}
        )
        values = {**texts, "pool": self._facts().name}
        argv = [fill_placeholders(word, values) for word in self._notify.command or ()]
        body = json.dumps(document(message, self._facts().name), default=str).encode()
        output = OutputTail()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=output.writer,
                cwd=self._facts().directory,
                env=env,
                start_new_session=True,
            )
            try:
                await process.communicate(body + b"\n")
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            if process.returncode:
                last_line = output.last_line()
                code = process.returncode
                ending = f"exited with status {code}" if code > 0 else f"was killed by signal {-code}"
                raise SendFailed(f"{argv[0]} {ending}{f': {last_line}' if last_line else ''}")
        except (OSError, ValueError) as error:
            raise SendFailed(f"{argv[0]}: {_reason(error)}") from None
        finally:
            output.close()


def _check_status(host: str, response: StreamedResponse) -> None:
    """Raise SendFailed unless the response is a success."""
    status = response.status
    if not 200 <= status < 300:
        retry_after = dict(response.head.headers).get(b"retry-after", b"")
        # A receiver that rejects the request or the token will not accept it later.
        retryable = status in (408, 425, 429) or status >= 500
        redirect = ", a redirect, which is not followed" if status < 400 else ""
        message = f"{host} answered {status}{redirect}"
        raise SendFailed(
            message, again=retryable, after_seconds=float(retry_after) if retry_after.isdigit() else 0.0
        )


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        return os.strerror(error.errno)  # asyncio's message contains the address
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def document(message: Message, pool: str) -> Table:
    """The message as JSON: the body for a webhook, and the standard input of a command."""
    return {
        "schema": 1,
        "pool": pool,
        "host": socket.gethostname(),
        "status": message.status,
        "severity": message.severity,
        "title": message.title,
        "text": message.text,
        "time": stamp(message.time),
        "events": [event.to_json() for event in message.events],
    }


def _request_parts(
    kind: str, message: Message, pool: str, topic: str, token: str
) -> tuple[str, dict[str, str], Table]:
    """The path suffix, headers and JSON body of the request to a receiver of this `kind`."""
    headers = {"content-type": "application/json"}
    if token:
        headers |= {"x-gotify-key": token} if kind == "gotify" else {"authorization": f"Bearer {token}"}
    if kind == "ntfy":
        tag = "white_check_mark" if message.status == RESOLVED else _NTFY_TAGS[message.severity]
        priority = _NTFY_PRIORITIES[message.severity]
        body = {"message": message.text, "priority": priority, "tags": [tag], "title": message.title}
        return "/", headers, {"topic": topic, **body}
    if kind == "gotify":
        priority = _GOTIFY_PRIORITIES[message.severity]
        display = {"client::display": {"contentType": "text/plain"}}
        return "/message", headers, {
            "title": message.title, "message": message.text, "priority": priority, "extras": display,
        }  # fmt: skip
    if kind == "slack":
        # https://api.slack.com/reference/surfaces/formatting#escaping
        colour = _COLOURS["info" if message.status in (RESOLVED, NEWS, TEST) else message.severity]
        text = {"color": colour, "text": _escaped(message.text), "fallback": message.title}
        return "", headers, {"text": f"*{_escaped(message.title)}*", "attachments": [text]}
    return "", headers, document(message, pool)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverTestResult:
    """The outcome of a test notification to one receiver; `message` is the reason of a failure."""

    name: str
    ok: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyResult(Result):
    """The supervisor's answer to the verb `notify`: the outcome of a test notification to each receiver."""

    PRINTED: ClassVar[tuple[str, ...]] = ("receivers",)

    receivers: tuple[ReceiverTestResult, ...] | None = None


async def send_test(
    receivers: Sequence[Notify], names: Sequence[str], facts: NotificationContext
) -> NotifyResult:
    """Send a test notification to the receivers with these names, or to all; the result has an outcome for each."""
    labels = [receiver.label for receiver in receivers]
    if not labels or not set(names) <= {*labels}:
        unknown = next((name for name in names if name not in labels), "")
        message_text = (
            f"no receiver is named {unknown!r}" if unknown else "no [[notify]] receivers are configured"
        )
        hint = f"receivers: {', '.join(labels)}" if labels else "add a [[notify]] table to the file"
        return NotifyResult(
            errors=(failure(PoolMonitorError, message_text, hint),), exit_code=NOTHING_MATCHED
        )
    title = f"{facts.name}: this is a test"
    text = "If you can read this, problems will be reported here."
    message = Message(TEST, "info", title, (text,), Clock().time())

    async def attempt(notify: Notify) -> ReceiverTestResult:
        problem = ""
        try:
            await NotificationSender(notify, lambda: facts).send(message)
        except SendFailed as failed:
            problem = str(failed)
        return ReceiverTestResult(name=notify.label, ok=not problem, message=problem)

    selected = [receiver for receiver in receivers if not names or receiver.label in names]
    results = await asyncio.gather(*map(attempt, selected))
    failed = [result for result in results if not result.ok]
    errors = tuple(failure(PoolMonitorError, f"{result.name}: {result.message}") for result in failed)
    return NotifyResult(errors=errors, exit_code=FAILED if errors else DONE, receivers=tuple(results))
