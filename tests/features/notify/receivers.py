"""A real web server that takes notifications as ntfy, gotify, Slack and a webhook do, and refuses what they refuse."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

TOKEN = "t0ken"


class Taken(NamedTuple):
    """One notification that was understood."""

    kind: str
    title: str
    text: str
    body: dict[str, Any]
    headers: dict[str, str]


class Receiver(ThreadingHTTPServer):
    """`taken` is what has arrived; the answers of `refusals` (status, headers) are given first, one a request."""

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[Taken] = []
        self.asked = 0
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    def url(self, path: str = "") -> str:
        host = "localhost" if self.scheme == "https" else "127.0.0.1"
        return f"{self.scheme}://{host}:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, such as one that does not trust us, is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.asked += 1
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.server.refusals:
            status, headers = self.server.refusals.pop(0)
        else:
            status, headers = self._take(body), {}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def _take(self, raw: bytes) -> int:
        if self.headers["content-type"] != "application/json":
            return 415
        body = json.loads(raw)
        head = {key.lower(): value for key, value in self.headers.items()}
        if self.path == "/gotify/message":
            # https://gotify.net/api-docs: token, message, title, a whole number as priority
            if head.get("x-gotify-key") != TOKEN:
                return 401
            ok = isinstance(body["priority"], int) and 0 <= body["priority"] <= 10
            found = Taken("gotify", body["title"], body["message"], body, head)
        elif self.path == "/slack/hook":
            # https://api.slack.com/messaging/webhooks: text; attachments with colour, text and fallback
            ok = all(isinstance(each["text"], str) and each["color"] for each in body["attachments"])
            ok = ok and not ({"text", "attachments"} ^ body.keys())
            found = Taken("slack", body["text"], body["attachments"][0]["text"], body, head)
        elif self.path == "/ntfy/":
            # https://docs.ntfy.sh/publish/#publish-as-json: to the root, topic, priority 1 to 5, a list of tags
            ok = bool(body["topic"]) and body["priority"] in range(1, 6) and isinstance(body["tags"], list)
            found = Taken("ntfy", body["title"], body["message"], body, head)
        elif self.path == "/hook?a=b":
            ok = body["schema"] == 1 and isinstance(body["events"], list)
            found = Taken("webhook", body["title"], body["text"], body, head)
        else:
            return 404
        if not ok:
            return 400
        self.server.taken.append(found)
        return 200

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def receiver(certificate: Path | None = None) -> Iterator[Receiver]:
    """A receiver that listens until the end of the block."""
    server = Receiver(certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
