"""A gRPC server at PORT, or at the port given as its argument; with CERTIFICATE and KEY, files, it has TLS.

`/echo/METHOD` repeats each message; the trailers have the number of messages. `/echo/fail` fails with a status.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


def _unary(request: bytes, context: Any) -> bytes:
    context.set_trailing_metadata((("x-messages", "1"),))
    return request


def _fail(request: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")


def _download(request: bytes, context: Any) -> Iterator[bytes]:
    context.set_trailing_metadata((("x-messages", "3"),))
    yield from (request, request, request)


def _upload(requests: Iterator[bytes], context: Any) -> bytes:
    found = [*requests]
    context.set_trailing_metadata((("x-messages", str(len(found))),))
    return b"".join(found)


def _both(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for number, each in enumerate(requests, 1):
        context.set_trailing_metadata((("x-messages", str(number)),))
        yield each


HANDLERS = {
    "unary": grpc.unary_unary_rpc_method_handler(_unary),
    "fail": grpc.unary_unary_rpc_method_handler(_fail),
    "download": grpc.unary_stream_rpc_method_handler(_download),
    "upload": grpc.stream_unary_rpc_method_handler(_upload),
    "both": grpc.stream_stream_rpc_method_handler(_both),
}


def main() -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", HANDLERS),))
    address = f"127.0.0.1:{sys.argv[1] if sys.argv[1:] else os.environ['PORT']}"
    if "CERTIFICATE" in os.environ:
        cert, key = (open(os.environ[name], "rb").read() for name in ("CERTIFICATE", "KEY"))  # noqa: SIM115
        server.add_secure_port(address, grpc.ssl_server_credentials([(key, cert)]))
    else:
        server.add_insecure_port(address)
    server.start()
    over.wait()
    server.stop(5).wait()


if __name__ == "__main__":
    main()
