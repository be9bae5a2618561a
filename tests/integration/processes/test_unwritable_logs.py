"""Files that the pool is to append to and cannot: reported before anything is lost, and nothing depends on them."""

from __future__ import annotations

from tests.http_get import get
from tests.real_pool import RealPool


def test_logs_and_a_journal_that_cannot_be_written_are_reported_before_anything_is_lost(
    real_pool: RealPool,
) -> None:
    real_pool.write("plain.txt", "")
    ports = real_pool.write_hello("web", extra='log = { path = "plain.txt/web.log" }')
    text = (real_pool.directory / "pool.toml").read_text()
    real_pool.write("pool.toml", f'{text}[events]\npath = "plain.txt/events.jsonl"\n')
    for command, code in (("validate", 5), ("start", 0), ("doctor", 1)):
        done = real_pool.run(command)
        assert done.code == code, str(done)
        for key in ("web.log", "events.jsonl"):
            why = f"plain.txt/{key} cannot be written: {real_pool.directory}/plain.txt is not a directory"
            assert why in done.stdout + done.stderr, str(done)
    assert get(ports["web"]).status == 200
    assert real_pool.run("events").code == 0
    real_pool.ok("stop")
