"""The codes in the links that `poolctl dashboard` prints: each logs one browser in, within ten minutes.

A code is signed by the pool's token, so that whoever has the token can make one, and the page can verify it without
asking the supervisor. Unlike the token it does no harm in the history of a browser.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import NamedTuple

CODE_SECONDS = 600


class LoginCode(NamedTuple):
    """A valid code: its identifier, by which its use is recorded, and its expiry in seconds since the epoch."""

    id: str
    expires: int


def new_login_code(token: str, now: float) -> str:
    """A code made at this time, in seconds since the epoch."""
    number, expires = secrets.token_urlsafe(12), int(now) + CODE_SECONDS
    return f"{number}.{expires}.{_signature(token, number, expires)}"


def parse_login_code(text: str, token: str) -> LoginCode | None:
    """The code if it was made with this token, also if it has expired; otherwise None."""
    number, _, rest = text.partition(".")
    expires, _, signature = rest.partition(".")
    if not (text.isascii() and expires.isdigit() and len(expires) < 16):
        return None
    if not hmac.compare_digest(signature, _signature(token, number, int(expires))):
        return None
    return LoginCode(number, int(expires))


def _signature(token: str, number: str, expires: int) -> str:
    digest = hmac.digest(token.encode(), f"dashboard login {number} {expires}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
