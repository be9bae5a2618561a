"""The interface of a client's connection for an exchange."""

from __future__ import annotations

from typing import Protocol

from poolctl.http.chunked_body import Buffer

from .response_head import Response


class ClientSide(Protocol):
    """The client's connection, as an exchange uses it. Each exchange ends with `finish`, `refuse` or `cut_off`.

    `takes_chunks`: bodies of unknown length come to it as chunks, else as plain data.
    """

    takes_chunks: bool

    @property
    def http_version(self) -> str:
        """The version of HTTP that the client speaks, as logs name it: 1.0 or 1.1."""

    def interim(self, response: Response) -> None:
        """An interim response (1xx)."""

    def respond(self, response: Response) -> None:
        """The head of the response, and the first bytes of its body."""

    def send_data(self, data: Buffer) -> None:
        """Send more of the body."""

    def finish(self, trailers: bytes) -> None:
        """The response is complete."""

    def refuse(self, status: int, retry_after_seconds: float = 0, fields: bytes = b"") -> None:
        """Respond with this status and these further header lines, because no backend responds."""

    def cut_off(self) -> None:
        """The response cannot be completed: the client must not take it for complete."""

    def switch(self, response: Response, data: bytes) -> None:
        """Switch protocols (101), beginning with these bytes; more follow by `send_data`.

        Bytes from the client go to `send_body`, its end to `client_eof`.
        """

    def send_eof(self) -> None:
        """The backend closed its side of the tunnel."""

    def take_body(self, take: bool) -> None:
        """Whether more of the request's body can be taken now."""
