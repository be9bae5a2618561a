"""[[notify]]: the receivers of notifications."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from poolctl.config.model.section import Table, field, hidden, required
from poolctl.config.values.problems import Finding, Tree

if TYPE_CHECKING:
    from poolctl.config.values.value_types import (
        Argument,
        Duration,
        FilePath,
        Name,
        Positive,
        Text,
        Truth,
        Words,
    )

    from ._value_types import Kinds, Topic, Url

KINDS = "poolctl.features.notify._value_types"
_SOURCES = ("url", "url_env", "url_file")


class Notify(Table):
    """[[notify]]: a receiver of notifications about problems and their end."""

    table_name: ClassVar[str] = "notify"
    listed: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("url_file", "token_file", "ca")

    name: Name | None = field(
        None, "Its name in events and in `poolctl doctor --notify`. Left out: its type."
    )
    type: Literal["webhook", "ntfy", "gotify", "slack", "command"] = required(
        description="How notifications are sent."
    )
    url: Url | None = field(None, "The receiver's URL; for ntfy and gotify the server's.")
    url_env: Text | None = field(None, "The environment variable that holds the url.")
    url_file: FilePath | None = field(None, "A file that holds the url.")
    token_env: Text | None = field(None, "The environment variable that holds the token.")
    token_file: FilePath | None = field(None, "A file that holds the token.")
    topic: Topic | None = field(None, "The topic of ntfy.")
    command: Argument | None = field(None, "A program that reads the message from standard input.")
    events: Kinds = field(("lifecycle", "health", "recovery", "pool"), "The kinds of events that are sent.")
    servers: Words = field((), 'Names or wildcards of servers, or "tag:TAG". Left out: all.')
    min_severity: Literal["info", "warning", "error"] = field("warning", "The lowest severity that is sent.")
    resolved: Truth = field(True, "Also send the end of a problem.")
    delay: Duration = field(
        1.0,
        "How long events are gathered before they are sent; a problem that ends in this time is not sent.",
    )
    repeat: Duration = field(4 * 3600.0, "The time after which a lasting problem is sent again; 0 is never.")
    timeout: Positive = field(10.0, "Maximum time of one attempt.")
    retry_for: Duration = field(3600.0, "How long failed attempts are repeated, with growing delays.")
    ca: FilePath | None = field(
        None,
        "The CA certificates that the receiver's certificate is checked against. Left out: the system's.",
    )

    written: str | None = hidden(None)

    @property
    def label(self) -> str:
        """The receiver's name, or its type if it has no name."""
        return self.name or self.type

    def to_dict(self) -> dict[str, Tree]:
        """The table as plain values for a file; `${VAR}` in a url is not expanded, because its value is secret."""
        found = super().to_dict()
        return found | {"url": self.written} if self.written else found

    @classmethod
    def with_absolute_paths(
        cls, table: Mapping[str, Tree], written: Mapping[str, Tree], base_dir: str
    ) -> dict[str, Tree]:
        found = super().with_absolute_paths(table, written, base_dir)
        url = written.get("url")
        return found | {"written": url} if isinstance(url, str) and "${" in url else found

    def findings(self) -> Iterator[Finding]:
        given = [key for key in _SOURCES if getattr(self, key) is not None]
        if self.type == "command":
            if self.command is None:
                yield Finding((), "a command is missing", 'add command = ["program", "argument"]')
            if given:
                yield Finding(
                    (given[0],), f"a command has no {given[0]}", "take it out, or choose another type"
                )
            return
        if self.command is not None:
            message = f"{self.type} runs no command"
            yield Finding(("command",), message, 'take it out, or write type = "command"')
        if len(given) != 1:
            what = "is missing" if not given else f"is given {len(given)} times"
            hint = "write one of url, url_env and url_file"
            yield Finding((given[1],) if given else (), f"the address {what}", hint)
        if self.token_env and self.token_file:
            yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
        if self.type == "gotify" and not (self.token_env or self.token_file):
            yield Finding((), "gotify asks for a token", "add token_env or token_file")
        if self.type == "ntfy" and not self.topic:
            yield Finding((), "ntfy sends to a topic", 'add topic = "…"')

    @property
    def has_startup_warnings(self) -> bool:
        return True

    def check(self, env: Mapping[str, str], names: Collection[str]) -> tuple[list[Finding], list[Finding]]:
        """Return no problems, but warnings about unreadable files and variables missing from `env`: ([], warnings)."""
        return [], [*self._missing_variables(env), *self._missing_files()]

    def _missing_variables(self, env: Mapping[str, str]) -> Iterator[Finding]:
        for key in ("url_env", "token_env"):
            name = getattr(self, key)
            if name and not env.get(name):
                message = f"the environment variable {name} is not set here"
                hint = "set it where the pool is started; poolctl doctor --notify shows whether it is"
                yield Finding((key,), message, hint, name)

    def _missing_files(self) -> Iterator[Finding]:
        for key in ("url_file", "token_file", "ca"):
            path = getattr(self, key)
            if path and not os.access(path, os.R_OK):
                what = "cannot be read" if os.path.exists(path) else "is not there"
                yield Finding((key,), f"{path} {what}", f"create it, or fix {key}", path)
