"""The requests that the keeper answers: `put get note drop list spawn signal watch heard`; none needs a decision."""

from __future__ import annotations

import os

from .reap import Reaper
from .spawn import spawn
from .store import Store
from .wire import Message

# The keeper itself handles these.
_OF_THE_KEEPER = ("end", "last", "terminate", "terminating", "whole", "adopted", "ping", "pong", "renew")


def answer(message: Message, fds: list[int], store: Store, reaper: Reaper) -> tuple[Message, list[int]]:
    """Perform one request; the reply and the descriptors that go with it, which stay the store's.

    The request's own descriptors are closed, unless they are put into the store. A failure is reported in the reply.
    """
    reply: Message = {"id": message.get("id")}
    kept = False
    try:
        if message["op"] == "put":
            store.put(message["name"], message.get("meta"), fds)
            kept = True
            return reply, []
        return reply, _perform(message, fds, reply, store, reaper)
    except Exception as error:
        # Any exception: if the keeper failed, everything else would end.
        reply["error"] = str(error) or repr(error)
        reply["errno"] = getattr(error, "errno", None)
        return reply, []
    finally:
        if not kept:
            for fd in fds:
                os.close(fd)


def _perform(message: Message, fds: list[int], reply: Message, store: Store, reaper: Reaper) -> list[int]:
    operation = message["op"]
    if operation == "get":
        reply["meta"], found = store.get(message["name"]) or (None, [])
        return found
    if operation == "drop":
        store.drop(message["name"])
    elif operation == "note":
        store.note(message["name"], message.get("meta"))
    elif operation == "list":
        reply["entries"] = store.page(message.get("after", ""))
    elif operation == "spawn":
        reply["pid"] = spawn(
            message["argv"],
            message.get("env"),
            fds,
            message["output"],
            session=message["session"],
            without=message.get("without", ()),
        )
    elif operation == "signal":
        reply["sent"] = reaper.signal(
            message["pid"], message["signal"], group=message.get("group", False), start=message.get("start")
        )
    elif operation == "heard":
        reaper.acknowledge(message["sequence"])
    elif operation == "watch":
        reply["report"] = reaper.watch(message["pid"], message["start"])
    elif operation not in _OF_THE_KEEPER:
        raise ValueError(f"unknown operation {operation!r}")
    return []
