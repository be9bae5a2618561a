"""Floods against a real gateway: bounded memory and time, and others are served.

`slowhttptest` (Debian: slowhttptest) is a real attacker; without it the test is skipped. Other clients send what makes
much work for few bytes.
"""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.load import Load
from tests.ports import claim_port
from tests.programs import program

from .conftest import GatewayPool

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.timeout(400), pytest.mark.integration]

APP = """
from tests.load import apps

LARGE = bytes(1024 * 1024)

async def app(scope, receive, send):
    if scope["type"] != "http" or scope["path"] != "/large":
        await apps.app(scope, receive, send)
        return
    await apps.whole_body(receive)
    headers = [(b"content-length", b"%d" % len(LARGE))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": LARGE})
"""
FILE = """
[gateway]
bind = ["127.0.0.1:{plain}", {{ bind = "127.0.0.1:{tls}", tls = {{ cert = "localhost.pem", key = "localhost.key" }} }}]
head_timeout = "3s"
[defaults]
app = "flooded:app"
env = {{ PYTHONPATH = "{root}" }}
[[server]]
name = "web"
bind = "127.0.0.1:{own}"
[[route]]
to = "web"
[[route]]
alias = "proxied"
path = "/large"
to = "web"
mode = "proxy"
timeouts = {{ total = "5s" }}
[[route]]
alias = "small"
path = "/small"
to = "web"
mode = "proxy"
"""
CONNECTIONS = 500
MIB = 1024 * 1024
# What a connection of a flood may take. In TLS uvloop holds a read of a quarter of a megabyte twice, as it came and
# encrypted, when the client does not take it.
MOST_BYTES = {"http": 64 * 1024, "https": 640 * 1024}
QUIET_SECONDS = 60.0
ESTABLISHED_OR_CLOSE_WAIT = ("01", "08")
SLOW = {
    "slow heads": ("-H", "-i", "1"),
    "slow bodies": ("-B", "-i", "1", "-s", "100000"),
    "slow reading": ("-X", "-w", "1", "-y", "512", "-n", "1", "-z", "32"),
    "ranges": ("-R", "-a", "1", "-b", "1000"),
}


class Flooded:
    """A pool whose gateway is attacked: by a proxied route with responses of a megabyte, over TLS as well."""

    def __init__(self, gateway: GatewayPool) -> None:
        self.gateway = gateway
        self.ports = {"http": gateway.port, "https": claim_port()}
        certificate(gateway.pool.directory)
        gateway.pool.write("flooded.py", APP)
        root = Path(__file__).parents[3]
        text = FILE.format(plain=self.ports["http"], tls=self.ports["https"], own=claim_port(), root=root)
        gateway.pool.write("pool.toml", text)
        gateway.pool.ok("start")
        self.pid = gateway.until(gateway.process)

    def url(self, scheme: str, path: str) -> str:
        return f"{scheme}://127.0.0.1:{self.ports[scheme]}{path}"

    @contextlib.contextmanager
    def endured(self, most_bytes: int) -> Iterator[None]:
        """Around a flood: other clients lose nothing, memory is bounded, and afterwards nothing of it is left."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak of memory counts from here
        start = self._peak_bytes()
        with (
            Load([self.ports["http"]], "new_connection", connections=2, pause=0.01) as plain,
            Load([self.ports["https"]], "new_connection", connections=2, tls=True, pause=0.01) as secure,
        ):
            yield
            for load in (plain, secure):
                done = load.look().complete
                self.gateway.until(lambda load=load, done=done: load.look().complete > done)
        for load in (plain, secure):
            assert load.report.complete, load.report
            assert not load.report.failed, load.report
        grown = self._peak_bytes() - start
        assert grown < most_bytes, f"{grown / MIB:.1f} MiB more"
        self.gateway.until(lambda: not self._connections(), timeout_seconds=QUIET_SECONDS)
        assert self.gateway.process() == self.pid

    def _connections(self) -> int:
        """Open connections of clients, from proc(5); not those of which only the client's end is left."""
        ports = {f"{port:04X}" for port in self.ports.values()}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[1].rpartition(":")[2] in ports and row[3] in ESTABLISHED_OR_CLOSE_WAIT for row in rows)

    def _peak_bytes(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture
def flooded(gateway: GatewayPool) -> Flooded:
    return Flooded(gateway)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_slow_clients_are_ended_in_bounded_time_and_memory(flooded: Flooded, scheme: str) -> None:
    tool = program("slowhttptest")
    for name, options in SLOW.items():
        with flooded.endured(CONNECTIONS * MOST_BYTES[scheme]):
            done = subprocess.run(
                [tool, *options, "-c", str(CONNECTIONS), "-r", "250", "-l", "15", "-p", "20",
                 "-u", flooded.url(scheme, "/large")],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
        assert re.search(r"service available:\s+YES", said), (name, said[-2000:])


# A client sends this until its connection ends, and opens the next one.
COSTLY = {
    "tiny chunks": (
        "b'POST /large HTTP/1.1\\r\\nHost: a\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n'",
        "b'1\\r\\na\\r\\n' * 10_000",
    ),
    "requests without a route": ("b''", "b'CONNECT a HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' * 1_000"),
}
CLIENT = """
import contextlib, socket, sys, threading, time
first, more = {first}, {more}

def answers(sock):
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass

def attack():
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", {port})) as sock:
            threading.Thread(target=answers, args=(sock,), daemon=True).start()
            sock.sendall(first)
            while True:
                sock.sendall(more)

for _ in range(4):
    threading.Thread(target=attack, daemon=True).start()
sys.stdin.read()
"""
MOST_SLOWDOWN = 5.0
REQUESTS = 200


def p99_seconds(port: int) -> float:
    """The 99th percentile of the time of a small proxied request, one after the other."""
    request, found = b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n", []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        for _ in range(REQUESTS):
            begun = time.perf_counter()
            sock.sendall(request)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            found.append(time.perf_counter() - begun)
    return statistics.quantiles(found, n=100)[98]


@pytest.mark.parametrize("attack", COSTLY)
def test_four_clients_that_make_much_work_leave_others_their_turns(flooded: Flooded, attack: str) -> None:
    port = flooded.ports["http"]
    first, more = COSTLY[attack]
    p99_seconds(port)
    quiet = p99_seconds(port)
    program = CLIENT.format(first=first, more=more, port=port)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as clients:
        try:
            p99_seconds(port)
            busy = p99_seconds(port)
            print(f"{attack}: p99 {quiet * 1e3:.2f} ms alone, {busy * 1e3:.2f} ms beside four such clients")
            assert clients.poll() is None
        finally:
            clients.kill()
    assert busy <= MOST_SLOWDOWN * quiet
    assert flooded.gateway.process() == flooded.pid
