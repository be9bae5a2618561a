"""The page's actions on servers, each by its name: never on the pool as a whole, which would end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poolctl.errors import ControlError

from .hub import Hub

ACTIONS = ("start", "stop", "restart", "drain", "undrain")
_WAITS = ("start", "stop", "restart")
_LONGEST_SECONDS = 300.0

Document = dict[str, Any]


class Actions:
    """Has the supervisor perform confirmed actions, in the name of the dashboard."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def perform(self, wish: Mapping[str, Any], address: str) -> tuple[int, Document]:
        """HTTP status and answer of {"action": …, "servers": […]}; `address` is the client's."""
        action, servers = wish.get("action"), wish.get("servers")
        if action not in ACTIONS:
            return 400, {"error": f"an action is one of {', '.join(ACTIONS)}"}
        if not isinstance(servers, list) or not servers or not all(map(_is_name, servers)):
            return 400, {"error": "servers is a list of names"}
        options: Document = {"progress": False}
        if action in _WAITS:
            options |= {"timeout": _LONGEST_SECONDS, "wait": True}
        by = {"command": f"dashboard {action}", "address": address}
        try:
            result = await self._hub.ask(action, servers, options, by, timeout_seconds=_LONGEST_SECONDS + 10)
        except (ControlError, TimeoutError) as error:
            return 503, {"error": str(error) or "the supervisor does not answer"}
        keys = ("items", "errors", "warnings", "exit_code")
        return 200, {key: result.get(key) for key in keys}


def _is_name(text: Any) -> bool:
    """Whether it is a valid server name: an address or a wildcard is not."""
    return (
        isinstance(text, str)
        and text != ""
        and all(char.isascii() and (char.isalnum() or char in "._-") for char in text)
    )
