"""Identifiers with an expiry that only a holder of the pool's token can make: in cookies, and in links for one login.

A process with the token verifies them without asking the supervisor. Unlike the token, a link's code does no harm in
the history of a browser.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

CODE_SECONDS = 600


class SignedIds:
    """Signs and verifies identifiers for a purpose, with expiry in seconds since the epoch, as `ID.EXPIRES.MAC`.

    They become invalid when the token changes.
    """

    def __init__(self, token: str) -> None:
        self._secret = hmac.digest(token.encode(), b"poolctl dashboard session", hashlib.sha256)

    def write(self, purpose: str, id: str, expires: int) -> str:
        """The signed text."""
        return f"{id}.{expires}.{self.mac(purpose, id, expires)}"

    def read(self, purpose: str, text: str) -> tuple[str, int] | None:
        """The identifier and its expiry, even if expired; None if the signature is invalid."""
        id, _, rest = text.partition(".")
        expires, _, mac = rest.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            return None
        expected = self.mac(purpose, id, int(expires))
        # JSON can contain unpaired surrogates.
        if not hmac.compare_digest(mac.encode(errors="surrogatepass"), expected.encode()):
            return None
        return id, int(expires)

    def mac(self, purpose: str, id: str, expires: int) -> str:
        """The message authentication code of these values."""
        message = f"{purpose} {id} {expires}".encode(errors="surrogatepass")
        digest = hmac.digest(self._secret, message, hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def new_login_code(token: str, now: float) -> str:
    """The code of a link that logs one browser in, within ten minutes of `now` (seconds since the epoch)."""
    return SignedIds(token).write("login", secrets.token_urlsafe(12), int(now) + CODE_SECONDS)
