"""Listeners that cannot be opened: who has their addresses is found for all at once, beside the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from poolctl.address import parse
from poolctl.listeners.listen_errors import Holder, ListenError, Place, Search
from poolctl.runners import listener_opener
from poolctl.runners.listener_opener import Opener


def messages(opener: Opener, listeners: Iterable[socket.socket]) -> list[str]:
    """What is said of each, when all are opened at once."""

    async def open_all() -> list[BaseException | list[socket.socket]]:
        addresses = [parse("{}:{}".format(*each.getsockname())) for each in listeners]
        return await asyncio.gather(*map(opener.listen, addresses), return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(open_all(), 10))
    return [error.message for error in found if isinstance(error, ListenError)]


def test_listeners_that_fail_together_share_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []
    find = Search.find

    def counted(search: Search, places: list[Place]) -> dict[Place, list[Holder]]:
        assert threading.current_thread() is not threading.main_thread()
        searches.append(len(places))
        return find(search, places)

    monkeypatch.setattr(Search, "find", counted)
    it = Opener()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(30)]
        for _ in range(2):  # each in a loop of its own
            said = messages(it, listeners)
            assert len(said) == 30
            assert all(each.endswith(f"(pid {os.getpid()})") for each in said)
    assert searches == [30, 30]


def test_listen_fails_without_waiting_for_a_search_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    over, searched = threading.Event(), []

    def search_until_over(search: Search, places: Any) -> None:
        searched.append(over.wait(30))

    monkeypatch.setattr(listener_opener, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(Search, "find", search_until_over)
    it = Opener()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert messages(it, [listener]) == [f"port {port} is in use"]
        assert searched == []
        over.set()
        monkeypatch.setattr(Search, "find", lambda search, places: {}[places])
        monkeypatch.setattr(listener_opener, "_PATIENCE_SECONDS", 5)
        assert messages(it, [listener]) == [f"port {port} is in use"]
