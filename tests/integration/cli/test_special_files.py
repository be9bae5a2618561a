"""-c with a path that exists and is no file of a pool: exit 5 with the reason, never a traceback and never a hang."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.real_pool import RealPool

COMMANDS = ("validate", "list", "start", "run", "config", "add -f {} --save")


def _socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(os.path.relpath(path))


def _directory_of(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "pool.toml").symlink_to(target)

    return make


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "kernel messages": (lambda path: path.symlink_to("/proc/kmsg"), ""),  # what it says depends on the kernel
    "memory": (lambda path: path.symlink_to("/proc/self/mem"), "cannot be read"),
    "fifo": (os.mkfifo, "this is a FIFO, not a file"),
    "null": (lambda path: path.symlink_to("/dev/null"), "this is a device, not a file"),
    "zero": (lambda path: path.symlink_to("/dev/zero"), "this is a device, not a file"),
    "socket": (_socket, "cannot be read"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "empty directory": (Path.mkdir, "no configuration file in this directory"),
    "directory of a device": (_directory_of("/dev/zero"), "this is a device, not a file"),
    "directory of a lost file": (_directory_of("/nowhere/at/all"), "there is no such file"),
    "directory of the kernel": (lambda path: path.symlink_to("/proc"), "no configuration file in this directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_path_that_is_no_pool_file_is_5_with_the_reason(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(real_pool.directory)
    make, reason = KINDS[kind]
    make(real_pool.directory / "x.toml")
    # All of them read it in the same way.
    for command in COMMANDS if kind == "fifo" else COMMANDS[2:3]:
        done = real_pool.run(*["-c", "x.toml"], *command.format("x.toml").split())
        assert done.code == 5, done
        assert reason in done.stderr + done.stdout
        assert "internal error" not in done.stderr
    env = {"_POOLCTL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    line = {"_TYPER_COMPLETE_ARGS": "poolctl -c x.toml stop "}
    done = real_pool.run(env=env | line)
    assert (done.code, done.stdout.strip(), done.stderr) == (0, "", "")
    assert real_pool.processes() == {}
