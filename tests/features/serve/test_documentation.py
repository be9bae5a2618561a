"""What docs/containers.md says about `serve` is done as it is pasted."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.real_pool import RealPool

pytestmark = pytest.mark.integration

TEXT = (Path(__file__).parents[3] / "docs" / "containers.md").read_text()


def test_command_serves_a_pools_server_to_other_machines(
    real_pool: RealPool, until: Any, free_port: Any
) -> None:
    (line,) = (line for line in TEXT.splitlines() if line.startswith("poolctl serve "))
    port, health = free_port(), free_port()
    words = shlex.split(line.replace(":8000", f":{port}").replace(":9000", f":{health}"))[1:]
    bound = real_pool.write_hello("web", "other")["web"]
    process = real_pool.spawn(*words)

    def is_ready() -> bool:
        try:
            return get(health, "/health").status == 200
        except ConnectionRefusedError:
            return False

    until(is_ready)
    assert get(port).text == f"hello from {port}"
    with pytest.raises(ConnectionRefusedError):
        get(bound)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_line_of_a_failed_import_is_quoted(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    path = real_pool.directory / "pool.toml"
    path.write_text(path.read_text().replace("hello:app", "shop:app"))
    last = real_pool.run("serve", "web").stderr.splitlines()[-1]
    quoted = TEXT.split("`poolctl: web: ")[1].split("…`")[0]
    assert last.startswith(f"poolctl: web: {quoted}")
