"""The sockets that systemd passed to whoever started the pool, and that its keeper holds."""

from __future__ import annotations

from poolctl.keeper import store_keys
from poolctl.runners.link import Link


async def inherited(keeper: Link) -> dict[str, list[int]]:
    """Their descriptors by number and by name."""
    reply, fds = await keeper.call({"op": "get", "name": store_keys.INHERITED})
    found = {str(number): [fd] for number, fd in enumerate(fds, 3)}
    for name, fd in zip(reply["meta"] or (), fds, strict=True):
        if name:
            found.setdefault(name, []).append(fd)
    return found
