"""The documents' commands are many, and are forked from one that is there; a reader's shell starts them itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.programs import program
from tests.real_pool import RealPool


@pytest.fixture
def reader(real_pool: RealPool, free_port: Any) -> Any:
    """A reader's shell in an empty directory: `reader(script)`; free ports take the place of the README's."""
    ports: dict[str, str] = {}

    def with_free_ports(text: str) -> str:
        return re.sub(r"(?<=:)[89]0\d\d\b", lambda m: ports.setdefault(m[0], str(free_port())), text)

    def run(text: str, *argv: str) -> str:
        if "curl" in text:
            program("curl")
        env = real_pool.env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            argv or ["bash", "-euo", "pipefail"], input=with_free_ports(text),
            cwd=real_pool.directory, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n--- {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
