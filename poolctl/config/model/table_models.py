"""The models of the tables besides the servers: metrics, dashboard, notifications, journal."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from poolctl.address import AddressError, parse
from poolctl.config.model.sections import Section, TLSConfig
from poolctl.config.model.value_types import (
    Argument,
    BadValue,
    Duration,
    FileCount,
    Name,
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
MetricsPath = Annotated[str, Field(pattern=r"^/[^\x00-\x20\x7f?#]*$")]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Kinds = Annotated[tuple[KINDS, ...], Field(strict=False)]


class Table(Section):
    """The base of these tables."""

    def to_dict(self) -> dict[str, Any]:
        """The table as a file could have it, defaults filled in, unset keys left out."""
        return self.model_dump(mode="json", exclude_none=True, warnings=False)


class MetricsTable(Table):
    """[metrics]: the endpoint for a Prometheus server."""

    bind: Bind = Field(default="127.0.0.1:9464", description="The address of the endpoint.")
    path: MetricsPath = Field(default="/metrics", description="The path of the metrics.")


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
        description="Names by which browsers may request the page, besides addresses and localhost.",
    )
    tls: TLSConfig | Literal[False] = Field(default=False, description="The certificate of the page.")
    insecure: Truth = Field(default=False, description="Whether other machines may reach it without tls.")


class Notify(Table):
    """[[notify]]: a receiver of notifications about problems and their end."""

    name: Name | None = Field(
        default=None, description="Names it in events and in `poolctl notify`; left out: its type."
    )
    type: Literal["webhook", "ntfy", "gotify", "slack", "command"] = Field(
        description="How notifications are sent."
    )
    url: Url | None = Field(
        default=None, description="The receiver's address; of ntfy and gotify the server."
    )
    url_env: Text | None = Field(default=None, description="The environment variable that holds the url.")
    url_file: Path | None = Field(default=None, description="A file that holds the url.")
    token_env: Text | None = Field(default=None, description="The environment variable that holds the token.")
    token_file: Path | None = Field(default=None, description="A file that holds the token.")
    topic: Topic | None = Field(default=None, description="The topic of ntfy.")
    command: Argument | None = Field(
        default=None, description="A program that reads the message from standard input."
    )
    events: Kinds = Field(
        default=("lifecycle", "health", "recovery", "pool"), description="The kinds of events that are sent."
    )
    servers: Words = Field(
        default=(), description='Names or wildcards of servers, "tag:T" for their tags; left out: all.'
    )
    min_severity: Literal["info", "warning", "error"] = Field(
        default="warning", description="The lowest severity that is sent."
    )
    resolved: Truth = Field(default=True, description="Whether the end of a problem is sent too.")
    delay: Duration = Field(
        default=1.0, description="How long events are gathered; a problem that ends meanwhile is not sent."
    )
    repeat: Duration = Field(
        default=4 * 3600.0, description="When a problem that lasts is sent again; 0 is never."
    )
    timeout: Positive = Field(default=10.0, description="How long one attempt may take.")
    retry_for: Duration = Field(
        default=3600.0, description="How long failed attempts are repeated, with backoff."
    )
    ca: Path | None = Field(
        default=None,
        description="The CA certificates that the receiver's is checked against; left out: the system's.",
    )

    written: str | None = Field(default=None, exclude=True, repr=False)

    @property
    def label(self) -> str:
        """The name by which people know it."""
        return self.name or self.type

    def to_dict(self) -> dict[str, Any]:
        """The table as a file could have it; a url with references as it was written, as their values are secret."""
        found = super().to_dict()
        return found | {"url": self.written} if self.written else found


class EventsTable(Table):
    """[events]: the journal."""

    path: Path | None = Field(
        default=None, description="The file. Left out: events.jsonl in the state directory."
    )
    max_size: Size = Field(default=10 * 1024 * 1024, description="The file is rotated when it is larger.")
    keep: FileCount = Field(default=5, description="Number of rotated files.")
    max_age: Positive | None = Field(
        default=None, description="The file is rotated when it is older. Left out: never."
    )


MODELS: dict[str, type[Table]] = {
    "metrics": MetricsTable,
    "dashboard": Dashboard,
    "notify": Notify,
    "events": EventsTable,
}
