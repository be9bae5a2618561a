"""Digests and expiry of the files that servers name."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from poolctl import ServerConfig
from poolctl.core.server_files import certificate_ends
from tests.certificates import certificate


def server(cert: Path, key: Path) -> ServerConfig:
    tls = {"cert": str(cert), "key": str(key)}
    return ServerConfig(name="a", bind="127.0.0.1:8081", app="a:app", tls=tls)


def test_the_end_of_a_certificate_is_that_in_its_file(tmp_path: Path) -> None:
    ends = certificate_ends(server(*certificate(tmp_path, days=30)))
    assert ends is not None
    assert timedelta(days=29) < datetime.fromtimestamp(ends, UTC) - datetime.now(UTC) < timedelta(days=31)


def test_fifo_in_place_of_a_certificate_blocks_no_process(tmp_path: Path) -> None:
    config = server(*certificate(tmp_path))
    assert config.tls
    assert config.tls is not True
    os.unlink(config.tls.cert)
    os.mkfifo(config.tls.cert)
    found: list[float | None] = []
    thread = threading.Thread(target=lambda: found.append(certificate_ends(config)), daemon=True)
    thread.start()
    thread.join(60)
    assert found == [None]
