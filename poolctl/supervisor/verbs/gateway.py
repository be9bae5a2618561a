"""The gateway's verbs: routes, hosts. There is no gateway in this version, so both tables are empty."""

from __future__ import annotations

from poolctl.control.messages import Document, result
from poolctl.control.server import Progress
from poolctl.pool.select import Selector


async def nothing(selector: Selector, options: Document, progress: Progress) -> Document:
    """No route and no host."""
    return result([])
