"""The keys in a server's table `scale` that make the number of workers depend on its load."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pydantic import Field

from poolctl.config.model import server_tables
from poolctl.config.model.section import Section
from poolctl.config.values.problems import Finding, Tree
from poolctl.config.values.value_types import Duration, Positive, PositiveOrNone, Threshold

_KEYS = ("triggers", "window", "cooldown")


class Triggers(Section, frozen=True):
    """Targets: workers are added when any figure is above its target, and removed when all are below theirs."""

    in_flight: Threshold | None = None
    """Requests in progress per worker."""
    queue: Threshold | None = None
    """Connections waiting to be accepted, per worker."""
    requests_per_second: Threshold | None = None
    """Requests a second per worker."""
    p50: PositiveOrNone = Field(default=None, validate_default=True)
    """The median response time."""
    p99: PositiveOrNone = Field(default=None, validate_default=True)
    """The response time that 99 % of the requests do not exceed."""
    cpu: Threshold | None = None
    """Processor cores used per worker, such as 0.8."""

    @property
    def targets(self) -> dict[str, float]:
        """The targets that were configured, by the name of their trigger."""
        return {trigger: target for trigger, target in self if target is not None}


NO_TRIGGERS = Triggers()


class Cooldown(Section, frozen=True):
    """The pauses between two changes of the number of workers."""

    up: Duration = Field(default="5s", validate_default=True)
    """Minimum time between two increases."""
    down: Duration = Field(default="1m", validate_default=True)
    """How long every trigger must stay below its target before a decrease."""


class Scale(server_tables.Scale, frozen=True):
    """Bounds on the number of workers, and the triggers that change it."""

    triggers: Triggers = NO_TRIGGERS
    """Targets that change the number of workers between min and max."""
    window: Positive = Field(default="10s", validate_default=True)
    """The time over which the figures of the triggers are averaged."""
    cooldown: Cooldown = Cooldown()
    """The pauses between two changes of the number of workers by triggers."""

    def to_dict(self) -> dict[str, Tree]:
        """The table as written in a file. For a server without triggers, the keys about triggers are left out."""
        unused = () if self.is_automatic else _KEYS
        return {key: value for key, value in super().to_dict().items() if key not in unused}

    @property
    def is_automatic(self) -> bool:
        """Whether triggers change the number of workers."""
        return self.triggers is not NO_TRIGGERS and bool(self.triggers.targets)

    def findings_in_server(self, *, is_command: bool, may_overlap: bool) -> Iterator[Finding]:
        """Find contradictions between triggers and other keys of the server."""
        if not self.is_automatic:
            return
        if is_command:
            message = "a command counts no requests, and its number of workers stays as it is"
            yield Finding(("triggers",), message, "take triggers out, and write workers = N")
        if self.max <= max(self.min, 1):
            always = f"{max(self.min, 1)} worker{'s' * (self.min > 1)}"
            message = f"triggers start more than {always}, and scale.max is {self.max}"
            yield Finding(("triggers",), message, f"write max = {2 * self.max}, or take triggers out")
        if not may_overlap:
            message = "overlap = false allows one worker, and triggers start more"
            yield Finding(("triggers",), message, "take triggers out, or overlap = false if it may run twice")

    @classmethod
    def not_inherited(cls, server: Mapping[str, Tree], table: Mapping[str, Tree]) -> Collection[str]:
        """The trigger keys if the server has a fixed number of workers, otherwise ()."""
        scale = table.get("scale", {})
        if not isinstance(scale, dict) or "triggers" in scale:
            return ()
        is_fixed = "min" in scale and scale["min"] == scale.get("max")
        without_port = "command" in server and "bind" not in server
        is_fixed |= "command" in table or without_port or table.get("overlap") is False
        return _KEYS if is_fixed else ()
