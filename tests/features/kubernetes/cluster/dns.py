"""Answers for the names of Services, as the DNS server of a cluster does: `python -m … ADDRESS DIRECTORY PORT`."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from .api_server import ApiServer

_DOMAIN = (b"svc", b"cluster", b"local")
_ADDRESS, _INTERNET = 1, 1  # type and class of RFC 1035
_HEADER = struct.Struct("!6H")
_ANSWER, _NO_NAME = 0x8580, 0x8583  # flags
_PAUSE_SECONDS = 0.5


class Services:
    """The addresses of the Services by NAMESPACE and NAME, kept up to date; while the API is away, as last seen."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self.addresses: dict[tuple[str, str], str] = {}

    def follow(self) -> None:
        """List the Services again and again; never returns."""
        while True:
            with suppress(OSError, HTTPException):
                _, found = self._api.ask("GET", "/api/v1/services")
                self.addresses = {
                    (each["metadata"]["namespace"], each["metadata"]["name"]): each["spec"]["clusterIP"]
                    for each in found["items"]
                }
            time.sleep(_PAUSE_SECONDS)


def answer(query: bytes, services: Services) -> bytes:
    """The answer to a query with one question."""
    number, *_ = _HEADER.unpack_from(query)
    labels, place = [], _HEADER.size
    while length := query[place]:
        labels.append(query[place + 1 : place + 1 + length].lower())
        place += 1 + length
    kind, family = struct.unpack_from("!2H", query, place + 1)
    question = query[_HEADER.size : place + 5]
    address = None
    if len(labels) == 5 and tuple(labels[2:]) == _DOMAIN:
        address = services.addresses.get((labels[1].decode(), labels[0].decode()))
    if address is None:
        return _HEADER.pack(number, _NO_NAME, 1, 0, 0, 0) + question
    if (kind, family) != (_ADDRESS, _INTERNET):
        return _HEADER.pack(number, _ANSWER, 1, 0, 0, 0) + question
    record = struct.pack("!3HIH", 0xC000 + _HEADER.size, kind, family, 0, 4) + socket.inet_aton(address)
    return _HEADER.pack(number, _ANSWER, 1, 1, 0, 0) + question + record


def main() -> None:
    address, directory, port = sys.argv[1:]
    services = Services(ApiServer(int(port), Path(directory, "localhost.pem"), address=address))
    threading.Thread(target=services.follow, daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            query, client = server.recvfrom(512)
            with suppress(OSError):  # the client's node is gone
                server.sendto(answer(query, services), client)


if __name__ == "__main__":
    main()
