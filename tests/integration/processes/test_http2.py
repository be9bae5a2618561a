"""A server that speaks HTTP/2 is restarted under real clients, and none of their requests is lost."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.real_pool import RealPool

pytest.importorskip("zttp")
if importlib.util.find_spec("uvicorn.protocols.http.zttp_h2_impl") is None:
    pytest.skip("this uvicorn has no HTTP/2", allow_module_level=True)

HTTP = 'http = { implementation = "zttp", http2 = true }'
RESTARTS = 2


def _curl_speaks_it() -> bool:
    curl = shutil.which("curl")
    return curl is not None and b"HTTP2" in subprocess.run([curl, "-V"], capture_output=True).stdout


@pytest.fixture
def urls(pool: RealPool) -> list[str]:
    """A server in the clear, and one with TLS."""
    certificate(pool.directory)
    ports = pool.write_hello("plain", "tls", extra=HTTP)
    path = pool.directory / "pool.toml"
    head, name, rest = path.read_text().partition('name = "tls"\n')
    path.write_text(head + name + 'tls = { cert = "localhost.pem", key = "localhost.key" }\n' + rest)
    pool.ok("start")
    return [f"http://127.0.0.1:{ports['plain']}/", f"https://127.0.0.1:{ports['tls']}/"]


@pytest.mark.skipif(not _curl_speaks_it(), reason="there is no curl with HTTP/2")
def test_curl_is_answered_over_restarts(pool: RealPool, urls: list[str], tmp_path: Path) -> None:
    over = threading.Event()
    failed: list[str] = []
    counts = [0, 0]

    def ask(place: int, *options: str) -> None:
        argv = ["curl", "-sSf", "-m", "60", "-o", str(tmp_path / "body"), "-w", "%{http_version}", *options]
        while not over.wait(0.01):
            done = subprocess.run([*argv, urls[place]], capture_output=True, text=True)
            counts[place] += 1
            if done.stdout != "2":
                failed.append(f"{done.stdout} {done.stderr}")

    threads = [
        threading.Thread(target=ask, args=(0, "--http2-prior-knowledge")),
        threading.Thread(target=ask, args=(1, "-k", "--http2")),
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(RESTARTS):
            pool.ok("restart")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert min(counts) > 0


@pytest.mark.skipif(shutil.which("h2load") is None, reason="there is no h2load")
def test_every_request_that_h2load_has_sent_is_answered_over_a_restart(
    pool: RealPool, urls: list[str]
) -> None:
    # It opens no other connection after a GOAWAY, and counts what it has not sent by then as failed, some of it as
    # started. What was sent is what the server has counted.
    for name, url in zip(("plain", "tls"), urls, strict=True):
        argv = ["h2load", "-n", "1000000", "-c", "4", "-m", "10", url]
        load = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        try:
            wait_until(lambda name=name: counted(pool, "requests_total", name) > 0)
            pool.ok("restart")
            said, _ = load.communicate(timeout=60)
        finally:
            load.kill()
            load.wait()
        found = re.search(r"(\d+) succeeded", said)
        assert found is not None, said
        succeeded = int(found[1])
        assert succeeded > 0, said
        # A worker writes its counts a moment after its clients have their responses.
        wait_until(lambda name=name, all_=succeeded: counted(pool, "requests_total", name) == all_, what=said)
        assert counted(pool, "responses_total", name, code="2xx") == succeeded, said


def counted(pool: RealPool, metric: str, name: str, code: str = "") -> int:
    labels = f'server="{name}"' + (f',code="{code}"' if code else "")
    (line,) = [
        line
        for line in pool.ok("metrics").stdout.splitlines()
        if line.startswith(f"poolctl_{metric}{{{labels}}}")
    ]
    return int(line.split()[1])
