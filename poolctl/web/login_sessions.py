"""Access to the page: by the token at login, whose attempts are limited, then by a session cookie.

Cookie and CSRF token are derived from the token by HMAC, so that they outlive this process, and end with the token.
Only logged-out sessions are stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
from collections import deque
from typing import NamedTuple

from poolctl.clock import Clock
from poolctl.platform import replace_file

LIFE_SECONDS = 12 * 3600
# A browser sends a cookie to every port of a host. The path keeps it from the applications on other ports.
COOKIE_PATH = "/poolctl"
MOST = 10
WINDOW_SECONDS = 60.0

logger = logging.getLogger("poolctl.web")


class Session(NamedTuple):
    """One browser that has logged in; it must send `csrf` with every change."""

    id: str
    expires: int
    csrf: str

    def has(self, csrf: str) -> bool:
        """Whether this is its CSRF token."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


class Sessions:
    """Opens and recognises sessions. `key` is the pool's: two dashboards of one host must not share a cookie."""

    def __init__(self, token: str, key: str, clock: Clock, ended: EndedSessions | None = None) -> None:
        self._token = token.encode()
        self._secret = hmac.digest(self._token, b"poolctl dashboard session", hashlib.sha256)
        self._clock = clock
        self._ended = ended or EndedSessions("", clock)
        self.cookie_name = f"poolctl_{key}"

    def knows(self, token: str) -> bool:
        """Whether this is the token. Takes the same time for every wrong one."""
        # JSON can contain half of a surrogate pair.
        return hmac.compare_digest(_digest(token.encode(errors="surrogatepass")), _digest(self._token))

    def open(self) -> tuple[Session, str]:
        """A new session, and the value of its cookie."""
        session = self._session(secrets.token_urlsafe(16), int(self._clock.time()) + LIFE_SECONDS)
        return session, f"{session.id}.{session.expires}.{self._mac('session', session.id, session.expires)}"

    def find(self, cookie: str) -> Session | None:
        """The session of this cookie, unless it has expired or was ended."""
        number, _, rest = cookie.partition(".")
        expires, _, mac = rest.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            return None
        if not hmac.compare_digest(mac.encode(), self._mac("session", number, int(expires)).encode()):
            return None
        if int(expires) <= self._clock.time() or number in self._ended:
            return None
        return self._session(number, int(expires))

    def end(self, session: Session) -> None:
        """Invalidate its cookie, also across restarts."""
        self._ended.add(session.id, session.expires)

    def _session(self, number: str, expires: int) -> Session:
        return Session(number, expires, self._mac("csrf", number, expires))

    def _mac(self, purpose: str, number: str, expires: int) -> str:
        return hmac.new(self._secret, f"{purpose} {number} {expires}".encode(), hashlib.sha256).hexdigest()


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


class EndedSessions:
    """Identifiers of sessions, each with the time at which it would have expired, in seconds since 1970.

    They are kept in the file at `path` ("" for none), which another process may change meanwhile.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._known: dict[str, int] = {}
        self._mark: tuple[int, int] | None = None

    def __contains__(self, session: str) -> bool:
        self._read()
        return session in self._known

    def add(self, session: str, expires: int) -> None:
        """Record that this session was logged out."""
        self._read()
        now = self._clock.time()
        self._known = {each: end for each, end in self._known.items() if end > now} | {session: expires}
        try:
            if self._path:
                replace_file(self._path, json.dumps(self._known).encode())
        except OSError as error:
            logger.error("a logout could not be stored, and may be undone by a restart: %s", error)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(self._path)
            mark = (status.st_ino, status.st_mtime_ns)
            if mark == self._mark:
                return
            self._mark = mark
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
            if isinstance(found, dict):
                self._known |= {str(each): end for each, end in found.items() if isinstance(end, int)}


class Attempts:
    """Counts wrong tokens of all clients together: behind a proxy they share one address."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong: deque[float] = deque(maxlen=MOST)

    def wait_seconds(self) -> float:
        """Seconds until the next attempt is allowed; 0 if it is allowed now."""
        if len(self._wrong) < MOST:
            return 0.0
        return max(0.0, self._wrong[0] + WINDOW_SECONDS - self._clock.monotonic())

    def failed(self) -> None:
        """Count a wrong token."""
        self._wrong.append(self._clock.monotonic())
