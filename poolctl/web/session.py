"""Access to the page: by the token at login, and from then on by a session cookie.

Cookie and CSRF token are derived from the token by HMAC, so that they outlive this process, and end with the token.
Only logged-out sessions are stored (see ended).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import NamedTuple

from poolctl.clock import Clock

from .ended import Ended

LIFE_SECONDS = 12 * 3600
# A browser sends a cookie to every port of a host. The path keeps it from the applications on other ports.
COOKIE_PATH = "/poolctl"


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

    def __init__(self, token: str, key: str, clock: Clock, ended: Ended | None = None) -> None:
        self._token = token.encode()
        self._secret = hmac.digest(self._token, b"poolctl dashboard session", hashlib.sha256)
        self._clock = clock
        self._ended = ended or Ended("", clock)
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
