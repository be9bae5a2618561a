"""Contract §2 and §4: memory and processor time are those of all processes of a server."""

from __future__ import annotations

import json
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deadline import wait_until
from tests.real_pool import RealPool

HOG = "x = bytearray(b'x') * (60 << 20); import time; time.sleep(600)"
BUSY = "while True: pass"


def write(pool: RealPool, **commands: list[str]) -> None:
    servers = (
        f'[[server]]\nname = "{name}"\ncommand = {json.dumps(command)}\nready_after = "10ms"\nstop_timeout = "1s"\n'
        for name, command in commands.items()
    )
    pool.write("pool.toml", "".join(servers))


def shell(line: str, *arguments: str) -> list[str]:
    return ["sh", "-c", f"{line}; true", *arguments]


def megabytes(pool: RealPool, name: str) -> float:
    """The memory of a server in MiB according to `list`."""
    shown = pool.ok("list", name, "-o", "name,memory").stdout.split()[-1]
    return float(shown.removesuffix("MiB")) if shown.endswith("MiB") else 0.0


@pytest.mark.slow
def test_memory_and_processor_time_of_what_a_shell_has_started_count(real_pool: RealPool) -> None:
    python = sys.executable
    write(
        real_pool,
        hog=shell(f'{python} -c "$0"', HOG),
        detached=shell(f'setsid {python} -c "$0"', HOG),
        busy=shell(f'{python} -c "$0"', BUSY),
    )
    real_pool.ok("start")

    def shown() -> bool:
        text = real_pool.ok("metrics").stdout
        found = {
            (each.name, each.labels.get("server")): each.value
            for family in text_string_to_metric_families(text)
            for each in family.samples
        }
        sizes = [found["poolctl_server_memory_bytes", name] for name in ("hog", "detached")]
        return min(sizes) > 60 << 20 and found["poolctl_worker_cpu_seconds_total", "busy"] > 0.1

    wait_until(shown)
    assert megabytes(real_pool, "hog") > 60
    cpu = real_pool.ok("list", "busy", "-o", "name,cpu").stdout.split()[-1]
    assert float(cpu.removesuffix("%")) > 1


def test_program_whose_child_has_outgrown_its_memory_limit_is_replaced(real_pool: RealPool) -> None:
    write(real_pool, shell=shell(f'{sys.executable} -c "$0"', HOG))
    real_pool.append('limits = { memory = "40MiB" }\n')
    real_pool.ok("start")
    (event,) = wait_until(
        lambda: [
            json.loads(line)
            for line in real_pool.run(
                "events", "--kind", "recovery", "-n", "1", "-o", "json"
            ).stdout.splitlines()
        ]
    )
    assert "limits.memory is 40MiB" in event["message"]


def test_memory_is_known_at_once_when_a_server_has_just_been_started(real_pool: RealPool) -> None:
    write(real_pool, one=["sleep", "600"], other=["sleep", "600"])
    for name in ("one", "other"):
        real_pool.ok("start", name)
        shown = real_pool.ok("list", name, "-o", "name,memory,cpu").stdout.splitlines()[-1].split()
        assert len(shown) == 3, shown
