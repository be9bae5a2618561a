"""Loading and validating large files compared to only parsing them, in one process."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from poolctl import PoolConfig

from .report import Row

SERVERS = 10_000


def run(options: Namespace) -> Iterator[Row]:
    servers = 200 if options.quick else SERVERS
    with tempfile.TemporaryDirectory(prefix="poolbench-") as directory:
        for kind, (write, parse) in FORMATS.items():
            path = Path(directory, f"pool.{kind}")
            path.write_text(write(_entries(servers)))
            ours: list[float] = []
            bare: list[float] = []
            for _ in range(options.repeat):
                bare.append(_seconds(lambda p=path, f=parse: f(p)))
                ours.append(_seconds(lambda p=path: _load(p, servers)))
            yield Row(
                f"validate {servers} servers, {kind}", "s", ours, "bare parse", bare,
                most_ratio=None if kind == "json" else 4,
            )  # fmt: skip
        path = Path(directory, "wrong.toml")
        path.write_text(_toml(_entries(servers)).replace('app = "', 'ap = "'))
        right = Path(directory, "pool.toml")
        yield Row(
            f"validate {servers} servers, each of them wrong", "s",
            [_seconds(lambda: PoolConfig.load(path).problems) for _ in range(options.repeat)],
            "all right", [_seconds(lambda: _load(right, servers)) for _ in range(options.repeat)], most_ratio=2,
        )  # fmt: skip


def _entries(count: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"server-{number}",
            "bind": f"127.0.{number // 250}.{number % 250 + 1}:8080",
            "app": "shop.users:app",
            "tags": ["api", f"shard-{number % 16}"],
            "env": {"SHARD": str(number % 16)},
        }
        for number in range(count)
    ]


def _toml(entries: list[dict[str, Any]]) -> str:
    return "\n".join(
        "[[server]]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items() if key != "env")
        + f"env = {{ SHARD = {json.dumps(entry['env']['SHARD'])} }}\n"
        for entry in entries
    )


def _parse_yaml(path: Path) -> Any:
    return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


FORMATS: dict[str, tuple[Callable[[list[dict[str, Any]]], str], Callable[[Path], Any]]] = {
    "toml": (_toml, lambda path: tomllib.loads(path.read_text())),
    "yaml": (lambda entries: yaml.safe_dump({"server": entries}), _parse_yaml),
    "json": (lambda entries: json.dumps({"server": entries}), lambda path: json.loads(path.read_bytes())),
}


def _load(path: Path, servers: int) -> None:
    config = PoolConfig.load(path)
    if config.problems or len(config) != servers:
        raise RuntimeError(f"{path.name}: {len(config)} servers, {len(config.problems)} problems")


def _seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
