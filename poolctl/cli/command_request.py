"""A command line, understood: the command's name and the values of its options. Both lanes come to this."""

from __future__ import annotations

from poolctl.cli.outcome import UsageError
from poolctl.values import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from poolctl.selection.selector import Selector

FORMATS = ("table", "wide", "json", "jsonl", "name")
# The stable keys of an item, in the order in which `-o wide` shows what it shows of them.
FIELDS = (
    "name",
    "bind",
    "expose",
    "state",
    "ready",
    "health",
    "pids",
    "workers",
    "uptime_seconds",
    "restarts",
    "tags",
)
STATES = (
    "disabled",
    "stopped",
    "sleeping",
    "starting",
    "running",
    "draining",
    "stopping",
    "backoff",
    "failed",
)
HEALTH = ("unknown", "ok", "warn", "ko")
GOALS = ("ready", "stopped", "healthy", "running", *(s for s in STATES if s not in ("stopped", "running")))


class CommandRequest:
    """One command with its options, by the names that the options have in Python."""

    __slots__ = ("values", "verb")

    def __init__(self, verb: str, values: Table) -> None:
        self.verb = verb
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CommandRequest) and (self.verb, self.values) == (other.verb, other.values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        given = " ".join(f"{key}={value!r}" for key, value in self.values.items() if value)
        return f"<Request {self.verb} {given}>".replace(" >", ">")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of an option, or the default where the command does not have it."""
        return self.values.get(key, default)

    @property
    def quiet(self) -> bool:
        """Whether nothing but results and errors is wanted."""
        return bool(self.values.get("quiet"))

    @property
    def verbose(self) -> bool:
        """Whether more is wanted."""
        return bool(self.values.get("verbose"))

    @property
    def output(self) -> str:
        """The form of the output; "" when it was not said. UsageError for one that does not exist."""
        output = self.values.get("output")
        field = self.values.get("field")
        if field is not None:
            if output is not None:
                raise UsageError(
                    "--field and -o cannot be combined", hint=f"-o {field} prints that field too"
                )
            return one_of("--field", field, FIELDS)
        forms = (*FORMATS, "toml") if self.verb == "config" else FORMATS
        if output is None or output in forms:
            return output or ""
        return ",".join(
            one_of("-o", word.strip(), (*dict.fromkeys((*forms, *FIELDS)),), FIELDS)
            for word in output.split(",")
        )

    def selector(self) -> Selector:
        """The selection. SelectorError for a bad regular expression, an unknown state or health."""
        from poolctl.selection.selector import Selector

        get = self.values.get
        return Selector(
            get("targets") or (),
            name=get("name") or (),
            bind=get("bind") or (),
            expose=get("expose") or (),
            tag=get("tag") or (),
            state=get("state") or (),
            health=get("health") or (),
            invert=bool(get("invert")),
            allow_empty=bool(get("allow_empty")),
        )

    def seconds(self, key: str) -> float | None:
        """A duration in seconds, None if it was not given. UsageError for what is none."""
        text = self.values.get(key)
        if text is None:
            return None
        from poolctl.units import parse_duration

        try:
            return parse_duration(text)
        except ValueError as error:
            raise UsageError(f"--{key.replace('_', '-')}: {error}") from None

    def options(self) -> Mapping[str, Any]:
        """The options of the supervisor's request, besides the selection."""
        options: Table = {"timeout": self.seconds("timeout")}
        if "no_wait" in self.values:
            options["wait"] = not self.values["no_wait"]
        if "no_deps" in self.values:
            options["deps"] = not self.values["no_deps"]
        for flag in ("all", "force", "reveal"):
            if self.values.get(flag):
                options[flag] = True
        if self.values.get("goal") is not None:
            options["for"] = one_of("--for", self.values["goal"], GOALS)
        if self.values.get("env"):
            import os

            options["env"] = dict(os.environ)
        return options


def saves(request: CommandRequest) -> bool:
    """Whether a live change is to be written, too. UsageError for a dry run of nothing."""
    if request.get("dry_run") and not request.get("save"):
        raise UsageError("--dry-run shows what --save would write", hint="add --save")
    return bool(request.get("save"))


def one_of(option: str, word: str, accepted: tuple[str, ...], final: tuple[str, ...] | None = None) -> str:
    """The word, if it is in `final` (default: in `accepted`); UsageError with near names otherwise."""
    final = final or accepted
    if word in final:
        return word
    import difflib

    near = difflib.get_close_matches(word, accepted, n=1)
    hint = f"did you mean {near[0]!r}?" if near and near[0] != word else f"one of: {', '.join(accepted)}"
    raise UsageError(f"{option}: {word!r} is not understood", hint=hint)
