"""The models of the tables beside the servers: who may look at the pool, who is told, and what is written down."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from poolctl.address import AddressError, parse
from poolctl.config.model.sections import Section, TLSConfig
from poolctl.config.model.values import (
    NAME_PATTERN,
    Argument,
    BadValue,
    Duration,
    Integer,
    Path,
    Positive,
    Size,
    Text,
    Truth,
    Words,
)

KINDS = Literal["lifecycle", "health", "config", "audit", "recovery", "scale", "wake", "notify", "pool"]


def _bind(text: str) -> str:
    try:
        address = parse(text)
    except AddressError as problem:
        raise BadValue(problem.message, "an address") from None
    if address.kind not in ("tcp", "unix") or address.auto:
        raise BadValue(f"{text[:60]!r} is no fixed address", 'such as "127.0.0.1:9464" or "unix:/run/a.sock"')
    return text


def _url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    host = rest.partition("/")[0]
    if scheme.lower() not in ("http", "https") or not separator or not host or not text.isprintable():
        # The address itself may be the secret, and is not repeated.
        raise BadValue("this is no address of a web service", '"https://HOST/PATH"')
    return text


Bind = Annotated[str, AfterValidator(_bind)]
Url = Annotated[str, AfterValidator(_url)]


class Table(Section):
    """What they have in common."""

    def to_dict(self) -> dict[str, Any]:
        """The table as a file could have it, defaults filled in, what is not set left out."""
        return self.model_dump(mode="json", exclude_none=True, warnings=False)


class Metrics(Table):
    """[metrics]: what a Prometheus server reads."""

    bind: Bind = Field(default="127.0.0.1:9464", description="The address on which metrics are answered.")
    path: Annotated[str, Field(pattern=r"^/[^\x00-\x20\x7f?#]*$")] = Field(
        default="/metrics", description="The path below which they are found."
    )


class Dashboard(Table):
    """[dashboard]: the web page of the pool."""

    bind: Bind = Field(default="127.0.0.1:9465", description="The address of the page.")
    token_file: Path | None = Field(
        default=None,
        description="A file that holds the token; left out: dashboard.token in the state directory.",
    )
    token_env: Text | None = Field(default=None, description="The environment variable that holds the token.")
    hosts: Words = Field(
        default=(),
        description="Names by which browsers may ask for the page, besides addresses and localhost.",
    )
    tls: TLSConfig | Literal[False] = Field(default=False, description="The certificate of the page.")
    insecure: Truth = Field(
        default=False, description="Whether others than this machine may reach it without tls."
    )


class Notify(Table):
    """[[notify]]: somebody who is told of problems, and of their end."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        default=None, description="Names it in events and in `poolctl notify`; left out: its type."
    )
    type: Literal["webhook", "ntfy", "gotify", "slack", "command"] = Field(description="How they are told.")
    url: Url | None = Field(default=None, description="Where it is sent to; of ntfy and gotify the server.")
    url_env: Text | None = Field(default=None, description="The environment variable that holds the url.")
    url_file: Path | None = Field(default=None, description="A file that holds the url.")
    token_env: Text | None = Field(default=None, description="The environment variable that holds the token.")
    token_file: Path | None = Field(default=None, description="A file that holds the token.")
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = Field(
        default=None, description="The topic of ntfy."
    )
    command: Argument | None = Field(
        default=None, description="A program that reads the message from its standard input."
    )
    events: Annotated[tuple[KINDS, ...], Field(strict=False)] = Field(
        default=("lifecycle", "health", "recovery", "pool"), description="The kinds of events that are told."
    )
    servers: Words = Field(
        default=(), description='Names or wildcards of servers, "tag:T" for their tags; left out: all.'
    )
    min_severity: Literal["info", "warning", "error"] = Field(
        default="warning", description="What is less severe is not told."
    )
    resolved: Truth = Field(default=True, description="Whether the end of a problem is told as well.")
    delay: Duration = Field(
        default=1.0, description="How long events are gathered; a problem that ends meanwhile is not told."
    )
    repeat: Duration = Field(
        default=4 * 3600.0, description="After what time a problem that lasts is told again; 0 is never."
    )
    timeout: Positive = Field(default=10.0, description="How long one attempt may take.")
    retry_for: Duration = Field(
        default=3600.0, description="How long it is attempted again, less and less often."
    )
    ca: Path | None = Field(
        default=None,
        description="The certificates that the receiver's is checked against; left out: the system's.",
    )

    written: str | None = Field(default=None, exclude=True, repr=False)

    @property
    def label(self) -> str:
        """The name by which people know it."""
        return self.name or self.type

    def to_dict(self) -> dict[str, Any]:
        """The table as a file could have it; a url with references as it was written, for what they hold is secret."""
        found = super().to_dict()
        return found | {"url": self.written} if self.written else found


class EventsTable(Table):
    """[events]: the journal."""

    path: Path | None = Field(
        default=None, description="The file. Left out: events.jsonl in the state directory."
    )
    max_size: Size = Field(default=10 * 1024 * 1024, description="The file is put aside when it is larger.")
    keep: Annotated[Integer, Field(ge=0, le=10_000)] = Field(
        default=5, description="Old files beside the current one."
    )
    max_age: Positive | None = Field(
        default=None, description="The file is put aside when it is older. Left out: never."
    )


MODELS: dict[str, type[Table]] = {
    "metrics": Metrics,
    "dashboard": Dashboard,
    "notify": Notify,
    "events": EventsTable,
}
