"""[[notify]]: the receivers of notifications."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic.json_schema import SkipJsonSchema

from poolctl.config.model.section import Table
from poolctl.config.values.plain import BadValue, host_and_port, is_port
from poolctl.config.values.problems import Finding, Tree
from poolctl.config.values.value_types import (
    TOPIC_PATTERN,
    Accepts,
    ArgumentOrNone,
    Duration,
    FilePath,
    Name,
    Positive,
    Text,
    Truth,
    Words,
)

_KINDS = Literal["lifecycle", "health", "config", "audit", "recovery", "scale", "wake", "notify", "pool"]


def _url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    host, port = host_and_port(rest) or ("", "")
    is_web = scheme.lower() in ("http", "https") and separator and host and is_port(port)
    if not is_web or not text.isprintable():
        # The address itself may be a secret, so it is not repeated.
        raise BadValue("this is not an http or https URL", '"https://HOST/PATH"')
    return text


Url = Annotated[str, AfterValidator(_url)]
Topic = Annotated[str, Field(pattern=TOPIC_PATTERN)]
Kinds = Accepts[Annotated[tuple[_KINDS, ...], Field(strict=False)], Sequence[_KINDS]]


_SOURCES = ("url", "url_env", "url_file")


class Notify(Table, frozen=True):
    """[[notify]]: a receiver of notifications about problems and their end."""

    table_name: ClassVar[str] = "notify"
    listed: ClassVar[bool] = True

    name: Name | None = None
    """Its name in events and in `poolctl doctor --notify`. Left out: its type."""
    type: Literal["webhook", "ntfy", "gotify", "slack", "command"]
    """How notifications are sent."""
    url: Url | None = None
    """The receiver's URL; for ntfy and gotify the server's."""
    url_env: Text | None = None
    """The environment variable that holds the url."""
    url_file: FilePath | None = None
    """A file that holds the url."""
    token_env: Text | None = None
    """The environment variable that holds the token."""
    token_file: FilePath | None = None
    """A file that holds the token."""
    topic: Topic | None = None
    """The topic of ntfy."""
    command: ArgumentOrNone = Field(default=None, validate_default=True)
    """A program that reads the message from standard input."""
    events: Kinds = Field(default=("lifecycle", "health", "recovery", "pool"), validate_default=True)
    """The kinds of events that are sent."""
    servers: Words = Field(default=(), validate_default=True)
    """Names or wildcards of servers, or "tag:TAG". Left out: all."""
    min_severity: Literal["info", "warning", "error"] = "warning"
    """The lowest severity that is sent."""
    resolved: Truth = True
    """Also send the end of a problem."""
    output: Truth = False
    """Also send what a server printed last before it ended by itself."""
    delay: Duration = Field(default="1s", validate_default=True)
    """How long events are gathered before they are sent; a problem that ends in this time is not sent."""
    repeat: Duration = Field(default="4h", validate_default=True)
    """The time after which a lasting problem is sent again; 0 is never."""
    timeout: Positive = Field(default="10s", validate_default=True)
    """Maximum time of one attempt."""
    retry_for: Duration = Field(default="1h", validate_default=True)
    """How long failed attempts are repeated, with growing delays."""
    ca: FilePath | None = None
    """The CA certificates that the receiver's certificate is checked against. Left out: the system's."""

    written: SkipJsonSchema[str | None] = Field(default=None, exclude=True, repr=False, init=False)

    @property
    def label(self) -> str:
        """The receiver's name, or its type if it has no name."""
        return self.name or self.type

    def to_dict(self) -> dict[str, Tree]:
        """The table as plain values for a file; `${VAR}` in a url is not expanded, because its value is secret."""
        table = super().to_dict()
        return table | {"url": self.written} if self.written else table

    @classmethod
    def in_long_form(
        cls, table: Mapping[str, Tree], written: Mapping[str, Tree], directory: str
    ) -> dict[str, Tree]:
        result = super().in_long_form(table, written, directory)
        url = written.get("url")
        return result | {"written": url} if isinstance(url, str) and "${" in url else result

    def findings(self) -> Iterator[Finding]:
        sources = [key for key in _SOURCES if getattr(self, key) is not None]
        if self.type == "command":
            if self.command is None:
                yield Finding((), "a command is missing", 'add command = ["program", "argument"]')
            if sources:
                yield Finding(
                    (sources[0],), f"a command has no {sources[0]}", "remove it, or choose another type"
                )
            return
        if self.command is not None:
            message = f"{self.type} runs no command"
            yield Finding(("command",), message, 'remove it, or write type = "command"')
        if len(sources) != 1:
            what = "is missing" if not sources else f"is given {len(sources)} times"
            hint = "write one of url, url_env and url_file"
            yield Finding((sources[1],) if sources else (), f"the address {what}", hint)
        if self.token_env and self.token_file:
            yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
        if self.type == "gotify" and not (self.token_env or self.token_file):
            yield Finding((), "gotify asks for a token", "add token_env or token_file")
        if self.type == "ntfy" and not self.topic:
            yield Finding((), "ntfy sends to a topic", 'add topic = "…"')

    @property
    def has_startup_warnings(self) -> bool:
        return True

    def check(self, env: Mapping[str, str], names: Collection[str]) -> Iterator[Finding]:
        """Warn of variables missing from `env`, and of unreadable files."""
        for key in ("url_env", "token_env"):
            name = getattr(self, key)
            if name and not env.get(name):
                message = f"the environment variable {name} is not set here"
                hint = "set it where the pool is started; poolctl doctor --notify shows whether it is"
                yield Finding((key,), message, hint, name, is_warning=True)
        for key in ("url_file", "token_file", "ca"):
            path = getattr(self, key)
            if path and not os.access(path, os.R_OK):
                what = "cannot be read" if os.path.exists(path) else "is not there"
                yield Finding((key,), f"{path} {what}", f"create it, or fix {key}", path, is_warning=True)
