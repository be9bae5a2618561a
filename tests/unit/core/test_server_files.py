"""Digests and expiry of the files that servers name."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from poolctl import ServerConfig
from poolctl.core.server_entry import Entry
from poolctl.core.server_files import certificate_ends, day, digest_of, digests, expired_message
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


def test_digest_changes_with_content_order_and_absence(tmp_path: Path) -> None:
    one, two, missing = (tmp_path / name for name in ("one", "two", "missing"))
    one.write_text("1")
    two.write_text("2")
    found = [digest_of(map(str, paths)) for paths in ([one], [two], [one, two], [two, one], [missing], [])]
    assert len({*found}) == len(found)
    assert digest_of([str(one)]) == found[0]
    assert len(found[0]) == 24


def test_digests_are_of_the_files_that_the_server_names(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    env, ca = tmp_path / ".env", tmp_path / "ca"
    for path in (env, ca):
        path.write_text("A=1")

    def found(**keys: Any) -> dict[str, str]:
        return digests(ServerConfig(name="a", bind="127.0.0.1:8081", app="a:app", **keys))

    assert found(env_file=[]) == {}
    tls = {"cert": str(cert), "key": str(key)}
    assert found(env_file=[str(env)], tls=tls) == {
        "env_file": digest_of([str(env)]), "tls": digest_of([str(cert), str(key)]),
    }  # fmt: skip
    assert found(env_file=[], tls={**tls, "ca": str(ca)})["tls"] == digest_of([str(cert), str(key), str(ca)])


def test_message_about_an_expired_certificate_names_its_file_and_its_day(tmp_path: Path) -> None:
    config = server(*certificate(tmp_path))
    assert config.tls
    assert config.tls is not True
    assert expired_message(Entry(config), 86400.0, passed_over=True).startswith(
        f"{config.tls.cert}: the certificate expired on 1970-01-02;"
    )
    assert day(86399) == "1970-01-01"


def test_server_without_a_certificate_has_no_expiry(tmp_path: Path) -> None:
    plain = ServerConfig(name="a", bind="127.0.0.1:8081", app="a:app")
    assert certificate_ends(plain) is None
    broken = server(*certificate(tmp_path))
    assert broken.tls
    assert broken.tls is not True
    os.unlink(broken.tls.cert)
    assert certificate_ends(broken) is None
