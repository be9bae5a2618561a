"""Listeners that cannot be opened: who has their addresses is found for all at once, beside the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from poolctl.address import parse
from poolctl.listeners.listen_errors import ListenError
from poolctl.runners.listener_opener import Opener
from tests.sandbox import run_in_namespace


def messages(opener: Opener, listeners: Iterable[socket.socket]) -> list[str]:
    """What is said of each, when all are opened at once."""

    async def open_all() -> list[BaseException | list[socket.socket]]:
        addresses = [parse("{}:{}".format(*each.getsockname())) for each in listeners]
        return await asyncio.gather(*map(opener.listen, addresses), return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(open_all(), 60))
    return [error.message for error in found if isinstance(error, ListenError)]


def test_each_of_many_listeners_that_fail_together_names_the_holder() -> None:
    it = Opener()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(30)]
        for _ in range(2):  # each in a loop of its own
            said = messages(it, listeners)
            assert len(said) == 30
            assert all(each.endswith(f"(pid {os.getpid()})") for each in said)


@pytest.mark.parametrize("search", ["hangs", "fails"])
def test_listen_fails_without_the_holder_if_the_search_hangs_or_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, search: str
) -> None:
    file = tmp_path / "file"  # in place of one of this process's in /proc
    if search == "hangs":
        os.mkfifo(file)
    else:
        file.write_text("not a number")

    def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            assert messages(Opener(), [listener]) == [f"port {port} is in use"]

    replaced = f"/proc/{os.getpid()}/{'comm' if search == 'hangs' else 'stat'}"
    run_in_namespace(f"mount --bind {file} {replaced}", work)
    assert ("cannot find the process that holds an address" in caplog.text) is (search == "fails")
    if search == "hangs":
        os.close(os.open(file, os.O_WRONLY))  # which ends the search
