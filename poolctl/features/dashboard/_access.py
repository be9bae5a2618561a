"""Controls access to the dashboard's web page: a rate-limited login with the pool's token, then a session cookie.

A guard checks every request before it is handled, and adds the security headers to every response. Cookie and CSRF
token are derived from the pool's token by HMAC: they stay valid after a restart, until the token changes. Only
logged-out sessions and used login codes are stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import secrets
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poolctl.clock import LOOK_SECONDS, Clock
from poolctl.platform import replace_file

from ._signed_ids import SignedIds

SESSION_SECONDS = 12 * 3600
# Browsers send a cookie to every port of a host; this path keeps it from applications on other ports.
COOKIE_PATH = "/poolctl"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE_METHODS = ("GET", "HEAD")

logger = logging.getLogger("poolctl.dashboard")


class Session(NamedTuple):
    """One browser that has logged in; it must send `csrf` with every change."""

    id: str
    expires: int
    csrf: str

    def has_csrf(self, csrf: str) -> bool:
        """Whether this is the session's CSRF token."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


class UsedCode(Exception):
    """A login code that was used before, or has expired."""


class Sessions:
    """Creates and verifies sessions. The cookie's name contains `key`, because all ports of a host share cookies."""

    def __init__(self, token: str, key: str, clock: Clock, ended_path: str) -> None:
        self._ids = SignedIds(token)
        self._clock = clock
        self._ended = EndedSessions(ended_path, clock)
        self._next_end = asyncio.Event()  # replaced each time a session ends
        self.cookie_name = f"poolctl_{key}"

    def open(self) -> tuple[Session, str]:
        """A new session, and the value of its cookie."""
        session = self._session(secrets.token_urlsafe(16), int(self._clock.time()) + SESSION_SECONDS)
        return session, self._ids.write("session", session.id, session.expires)

    def redeem(self, text: str) -> tuple[Session, str] | None:
        """A new session, and its cookie, if `text` is a login code; else None. Raises UsedCode."""
        code = self._ids.read("login", text)
        if code is None:
            return None
        id, expires = code
        if id in self._ended or expires <= self._clock.time():
            raise UsedCode
        self._ended.add(id, expires)
        return self.open()

    def find(self, cookie: str) -> Session | None:
        """The session of this cookie; None if the cookie is invalid, or the session has expired or was ended."""
        if (signed := self._ids.read("session", cookie)) is None:
            return None
        session = self._session(*signed)
        return session if self._remaining_seconds(session) > 0 else None

    def end(self, session: Session) -> None:
        """Invalidate the session's cookie, also across restarts."""
        self._ended.add(session.id, session.expires)
        self._next_end.set()
        self._next_end = asyncio.Event()

    async def wait_until_over(self, session: Session) -> None:
        """Return once the session has expired or was ended; at most LOOK_SECONDS later if the clock was set."""
        while (remaining := self._remaining_seconds(session)) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(remaining, LOOK_SECONDS)):
                    await self._next_end.wait()

    def _remaining_seconds(self, session: Session) -> float:
        return 0.0 if session.id in self._ended else session.expires - self._clock.time()

    def _session(self, id: str, expires: int) -> Session:
        return Session(id, expires, self._ids.mac("csrf", id, expires))


class EndedSessions:
    """Logged-out sessions and used login codes that have not expired yet; stored in `path`.

    The file has their identifiers and expiry in seconds since the epoch. Another process may change it at any time.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._known: dict[str, int] = {}

    def __contains__(self, session: str) -> bool:
        self._read()
        return session in self._known

    def add(self, session: str, expires: int) -> None:
        self._read()
        now = self._clock.time()
        self._known = {id_: end for id_, end in self._known.items() if end > now} | {session: expires}
        try:
            replace_file(self._path, json.dumps(self._known).encode())
        except OSError as error:
            logger.error("a logout could not be stored, and may be undone by a restart: %s", error)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            with open(self._path, encoding="utf-8") as file:
                sessions = json.load(file)
            if isinstance(sessions, dict):
                self._known |= {str(key): end for key, end in sessions.items() if isinstance(end, int)}


class HostAndOriginGuard:
    """Refuses requests with an unknown `Host` header, and state-changing requests from pages of other sites.

    The `Host` check prevents DNS rebinding, in which an attacker's DNS name resolves to this machine. IP addresses and
    `localhost` are always accepted, other names only if they are in `hosts`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        app = self._app if refusal is None else refusal
        await app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_allowed_host(hosts[0]):
            message = "unknown host name; add it to `hosts` in the file's [dashboard]\n"
            return PlainTextResponse(message, status_code=421)
        if scope["method"] not in _SAFE_METHODS and not _is_same_origin(headers, hosts[0]):
            return PlainTextResponse("the request comes from another site's page\n", status_code=403)
        return None

    def _is_allowed_host(self, host: str) -> bool:
        name = _host_name(host)
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_same_origin(headers: Headers, host: str) -> bool:
    """Return False if the header Sec-Fetch-Site or Origin, which only browsers send, names another site than `host`."""
    site = headers.get("sec-fetch-site", "same-origin")
    origin = headers.get("origin")
    try:
        return site in ("same-origin", "none") and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:  # such as http://[::1
        return False


def _host_name(host: str) -> str:
    """The host without its port, in lower case; "" for an invalid one."""
    try:
        split = urlsplit(f"//{host}")
        return (split.hostname or "") if split.netloc == host and not split.username else ""
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending
