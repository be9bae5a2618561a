"""A client that speaks HTTP/2 by the h2 library, over TLS to a proxy in this process."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    InformationalResponseReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)

from poolctl.gateway.tls.listener_certificates import ListenerCertificates
from tests.certificates import certificate
from tests.unit.gateway.proxy_stage import DEADLINE, Stage, Wire

Fields = list[tuple[bytes, bytes]]


class Response:
    """What has been received of one response."""

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.interim: list[dict[bytes, bytes]] = []
        self.trailers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.done = False
        self.reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.fields.get(b":status", b"0"))


class Client:
    """One connection, which checks what it receives, and nothing that it sends.

    With `acknowledge` false the windows of its streams are not opened again.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.h2 = H2Connection(
            H2Configuration(
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.acknowledge = True
        self.responses: dict[int, Response] = {}
        self.terminated: ConnectionTerminated | None = None
        self.closed = False

    async def open(self) -> Client:
        self.h2.initiate_connection()
        await self.flush()
        return self

    async def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            await self.wire.send(data)

    async def request(
        self, *fields: tuple[bytes, bytes], method: bytes = b"GET", path: bytes = b"/", end: bool = True
    ) -> int:
        """Open a stream; its number."""
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", path)]
        return await self.fields([*head, *fields], end=end)

    async def fields(self, fields: Fields, *, end: bool = True) -> int:
        number = self.h2.get_next_available_stream_id()
        self.responses[number] = Response()
        self.h2.send_headers(number, fields, end_stream=end)
        await self.flush()
        return number

    async def data(self, number: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(number, data, end_stream=end)
        await self.flush()

    async def receive(self) -> bool:
        """Take what the gateway sends next; whether there was something."""
        try:
            data = await self.wire.some()
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self.closed = True
            return False
        for event in self.h2.receive_data(data):
            self._take(event)
        await self.flush()
        return True

    def _take(self, event: Any) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated = event
            return
        response = self.responses.get(getattr(event, "stream_id", None) or 0)
        if response is None:
            return
        if isinstance(event, ResponseReceived):
            response.fields = dict(event.headers)
        elif isinstance(event, InformationalResponseReceived):
            response.interim.append(dict(event.headers))
        elif isinstance(event, TrailersReceived):
            response.trailers = dict(event.headers)
        elif isinstance(event, DataReceived):
            response.body += event.data
            if self.acknowledge:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamReset):
            response.reset = response.reset if response.done else int(event.error_code)
        if getattr(event, "stream_ended", None) is not None:
            response.done = True

    async def response(self, number: int) -> Response:
        """The whole response of a stream, or what came of it before it was reset."""
        found = self.responses[number]
        while not found.done and found.reset is None and await self.receive():
            pass
        return found

    async def get(self, *fields: tuple[bytes, bytes], **head: Any) -> Response:
        return await self.response(await self.request(*fields, **head))

    async def until_closed(self) -> int | None:
        """The code of the connection's GOAWAY, after its end."""
        while await self.receive():
            pass
        return None if self.terminated is None else int(self.terminated.error_code or 0)


class Http2Stage(Stage):
    """A proxy with a certificate for a.example."""

    certificates: ListenerCertificates | None = None

    def __init__(self, directory: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.directory = directory

    async def connect(self, name: str | None = "a.example") -> Client:
        if self.certificates is None:
            self.certificates = ListenerCertificates()
            self.put("a.example")
        context = self.certificates.context(":443")
        assert context is not None
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's authorities take 40 ms to load
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        trust.set_alpn_protocols(["h2", "http/1.1"])
        wire = await self.client(context=context, ssl=trust, server_hostname=name or "127.0.0.1")
        assert wire.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        return await asyncio.wait_for(Client(wire).open(), DEADLINE)

    def put(self, *names: str) -> None:
        """Present a certificate for these names."""
        self.certificates = self.certificates or ListenerCertificates()
        cert, key = certificate(self.directory, names[0])
        self.certificates.put(":443", names, {}, [cert.read_bytes(), key.read_bytes()])
