"""reload and the live changes with real processes: what is not touched keeps its PID, and nobody is refused."""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.http_get import asked_all_the_time, get
from tests.ports import claim_port
from tests.real_pool import WHO_APP, RealPool


def write(pool: RealPool, *servers: tuple[str, int, str], extra: str = "") -> None:
    """A pool.toml of (name, port, what it answers)."""
    pool.write("who.py", WHO_APP)
    tables = [
        f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{port}"\napp = "who:app"\nenv = {{ WHO = "{who}" }}\n'
        for name, port, who in servers
    ]
    pool.write("pool.toml", extra + "\n".join(tables))


def test_an_address_goes_to_a_server_of_another_name_and_is_never_refused(pool: RealPool) -> None:
    one, two = claim_port(), claim_port()
    write(pool, ("a", two, "a"), ("b", one, "b"))
    pool.ok("start")
    write(pool, ("a", two, "a"), ("c", one, "c"))
    with asked_all_the_time(one) as answers:
        pool.ok("reload")
    assert set(answers) <= {"b", "c"}
    assert (get(one).text, set(pool.items())) == ("c", {"a", "c"})


def test_automatic_ports_stay_with_their_servers(pool: RealPool) -> None:
    write(pool, ("a", 0, "a"), ("b", 0, "b"))
    pool.ok("start")
    before = pool.items()
    write(pool, ("new", 0, "n"), ("b", 0, "B"), ("a", 0, "a"))
    pool.ok("reload")
    after = pool.items()
    assert [after[name]["bind"] for name in "ab"] == [before[name]["bind"] for name in "ab"]
    assert after["a"]["pids"] == before["a"]["pids"]
    assert list(after) == ["new", "b", "a"]
    assert len({item["bind"] for item in after.values()}) == 3


@pytest.mark.heavy
def test_the_port_of_a_server_that_leaves_is_taken_over_where_no_other_is_left(pool: RealPool) -> None:
    port, other = claim_port(), claim_port()
    narrow = f'[pool]\nport_range = "{port}-{port}"\n'
    write(pool, ("old", 0, "o"), ("b", other, "b"), extra=narrow)
    pool.ok("start")
    write(pool, ("new", 0, "n"), ("b", other, "b"), extra=narrow)
    assert pool.run("reload", "--dry-run").code == 3
    with asked_all_the_time(port) as answers:
        pool.ok("reload")
        assert get(port).text == "n"
        wait_until(lambda: "n" in answers)
    assert set(answers) == {"o", "n"}
    write(pool, ("new", 0, "n"), ("b", other, "b"), ("more", 0, "m"), extra=narrow)
    done = pool.run("reload")
    assert (done.code, "no port is free" in done.stderr) == (5, True), str(done)
    assert {item["bind"] for item in pool.items().values()} == {f"127.0.0.1:{each}" for each in (port, other)}


def served_certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=60)


def write_with_certificate(pool: RealPool, days: int = 30) -> tuple[int, Path]:
    """The port of the only server, and the file with its certificate."""
    port = claim_port()
    cert, _ = certificate(pool.directory, days=days)
    write(pool, ("a", port, "a"))
    pool.append('[server.tls]\ncert = "localhost.pem"\nkey = "localhost.key"\n')
    return port, cert


@pytest.mark.capability
def test_a_renewed_certificate_is_served_by_the_same_process(
    pool: RealPool, until: Callable[..., Any]
) -> None:
    port, cert = write_with_certificate(pool)
    pool.ok("start")
    before = served_certificate(port), pool.items()["a"]["pids"]
    certificate(pool.directory)
    done = pool.ok("reload", "-o", "json").json
    assert [(each["change"], each["keys"]) for each in done["changes"]] == [("update", ["tls"])]
    until(lambda: served_certificate(port) == cert.read_text())
    assert served_certificate(port) != before[0]
    assert pool.items()["a"]["pids"] == before[1]
    # One that does not fit its key is no certificate: it is refused, and the other one is served.
    cert.write_text(before[0])
    assert pool.run("reload").code == 5
    assert served_certificate(port) != before[0]


def test_a_certificate_that_expires_soon_or_has_expired_is_reported(pool: RealPool) -> None:
    write_with_certificate(pool, days=3)
    told = "localhost.pem: the certificate expires on "
    assert told in pool.ok("start").stderr
    assert "a: its certificate expires on " in pool.ok("status").stderr
    assert "(in 2 days)" in pool.ok("status", "-o", "json").json["warnings"][0]
    (finding,) = [
        each for each in pool.ok("doctor", "-o", "json").json["items"] if each["check"] == "certificates"
    ]
    assert (finding["status"], told in finding["message"]) == ("warning", True)
    (line,) = re.findall(
        r"^poolctl_certificate_expiration_timestamp_seconds.* (\S+)$", pool.ok("metrics").stdout, re.M
    )
    assert 2 < (float(line) - time.time()) / 86400 < 3
    certificate(pool.directory, days=-1)
    assert "localhost.pem: the certificate expired on " in pool.ok("reload").stderr
    for command in ("restart", "status"):
        assert "a: its certificate expired on " in pool.ok(command).stderr
    certificate(pool.directory)
    assert pool.ok("restart").stderr == ""
    assert pool.ok("status").stderr == ""


@pytest.mark.heavy_variants
@pytest.mark.parametrize("broken", ["fifo", "directory", "text"])
def test_reload_reports_a_broken_certificate_also_after_a_restart_that_failed_because_of_it(
    pool: RealPool, broken: str
) -> None:
    port, cert = write_with_certificate(pool)
    pool.ok("start")
    before = served_certificate(port)
    cert.unlink()
    if broken == "fifo":
        os.mkfifo(cert)
    elif broken == "directory":
        cert.mkdir()
    else:
        cert.write_text("nothing")
    assert pool.run("restart").code == 1
    done = pool.run("reload")
    assert done.code == 5, str(done)
    assert f"server[0].tls.cert: {cert}: " in done.stderr
    assert served_certificate(port) == before


def test_a_restart_with_a_key_that_does_not_fit_keeps_the_old_process_and_says_so(pool: RealPool) -> None:
    _, cert = write_with_certificate(pool)
    pool.ok("start")
    before = pool.items()["a"]["pids"]
    (pool.directory / "other").mkdir()
    cert.with_suffix(".key").write_bytes(certificate(pool.directory / "other")[1].read_bytes())
    done = pool.run("restart")
    assert done.code == 1
    assert "its certificate cannot be used: " in done.stderr
    assert "poolctl/worker" not in done.stderr
    assert pool.items()["a"]["pids"] == before


def test_the_pools_name_follows_the_file(pool: RealPool) -> None:
    write(pool, ("a", claim_port(), "a"), extra='[pool]\nname = "one"\n')
    pool.ok("start")
    pool.replace("one", "two")
    pool.ok("reload")
    assert pool.ok("--pool", "two", "list", "-o", "name", cwd=Path("/")).stdout.strip() == "a"
    assert pool.run("--pool", "one", "list", cwd=Path("/")).code != 0
