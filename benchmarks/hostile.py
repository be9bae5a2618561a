"""The time that malicious files keep `validate` busy."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from .project import command
from .report import Row

INVALID = 5
MIB = 1024 * 1024


def run(options: Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="poolbench-") as directory:
        for what, (name, content) in _files().items():
            path = Path(directory, name)
            path.write_bytes(content)
            yield Row(
                f"validate of {what}", "s", [_refusal_seconds(path) for _ in range(options.repeat)], most=1
            )


def _files() -> dict[str, tuple[str, bytes]]:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    entry = {"name": "x", "bind": "127.0.0.1:1", "nonsense": "y" * 200}
    return {
        "100,000 nested TOML arrays": ("deep.toml", b"a = " + b"[" * 100_000),
        "100,000 nested JSON arrays": ("deep.json", b"[" * 100_000),
        "100,000 nested YAML lists": ("deep.yaml", b"[" * 100_000),
        "a YAML alias bomb": ("bomb.yaml", f"a0: &a0 lol\n{levels}".encode()),
        "64 MiB of TOML": ("huge.toml", b'x = "' + b"y" * 64 * MIB + b'"\n'),
        "1,000 faulty servers": ("faulty.json", json.dumps({"server": [entry] * 1000}).encode()),
        "NUL bytes": ("nul.toml", b'[pool]\nname = "a\0b"\n' + b"\0" * MIB),
        "UTF-16": ("wide.toml", '[pool]\nname = "x"\n'.encode("utf-16")),
    }


def _refusal_seconds(path: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [*command(), "-c", str(path), "validate"], capture_output=True, text=True, timeout=60
    )
    took = time.perf_counter() - started
    if done.returncode != INVALID or "Traceback" in done.stderr:
        raise RuntimeError(f"{path.name}: exit {done.returncode}: {done.stderr[-500:]}")
    return took
