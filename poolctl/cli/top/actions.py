"""What a key does to the selected server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_AT_REST = ("stopped", "failed", "disabled")


class Action(NamedTuple):
    """A verb for one server. `question` is asked first where something stops by it."""

    verb: str
    name: str
    doing: str
    done: str
    question: str = ""
    workers: int | None = None

    def body(self) -> dict[str, Any]:
        """What the supervisor is sent."""
        options: dict[str, Any] = {"wait": True, "progress": False}
        if self.workers is not None:
            options["workers"] = self.workers
        return {"selector": {"targets": [self.name]}, "options": options}


def action_of(key: str, item: Mapping[str, Any]) -> Action | None:
    """What the key means for a server in this state; None for a key that means nothing."""
    name, state = str(item.get("name", "")), str(item.get("state", ""))
    if key == "r":
        return Action("restart", name, "restarting", "restarted")
    if key == "s" and state == "disabled":
        return Action("enable", name, "enabling", "enabled")
    if key == "s" and state in _AT_REST:
        return Action("start", name, "starting", "started")
    if key == "s":
        return Action("stop", name, "stopping", "stopped", f"Stop {name}?")
    if key == "d":
        if state == "draining":
            return Action("undrain", name, "taking back", "back in rotation")
        return Action("drain", name, "draining", "out of rotation", f"Take {name} out of rotation?")
    if key in ("+", "-"):
        return _scale(name, int(item.get("workers") or 0), 1 if key == "+" else -1)
    return None


def _scale(name: str, workers: int, step: int) -> Action | None:
    wanted = workers + step
    if wanted < 1:
        return None
    question = f"Only {wanted} worker{'s' if wanted > 1 else ''} for {name}?" if step < 0 else ""
    done = f"has {wanted} worker{'s' if wanted > 1 else ''}"
    return Action("scale", name, "scaling", done, question, wanted)
