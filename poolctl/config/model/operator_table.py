"""[operator]: an operator that is informed of incoming requests, and the pool as the operator of others.

Few pools have one: this module is imported when a file has the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from poolctl.address import LOOPBACKS, AddressError, overlaps, parse
from poolctl.config.model.problems import Finding, Tree, shown
from poolctl.config.model.server_sections import Table, TLSConfig
from poolctl.config.model.validation_errors import validated
from poolctl.config.model.value_types import (
    BadValue,
    Bind,
    FilePath,
    Positive,
    Proxies,
    Text,
    field,
    refuse_long_path,
)

URL_ALLOWED = '"http://HOST:PORT", "https://HOST:PORT", either with a path, or "unix:/PATH"'
MODE_ALLOWED = 'a mode of files, such as "0660"'
_PORTS = {"http": 80, "https": 443}
# Keys that have no meaning without the other one.
_OF_BIND = ("mode", "trusted")
_OF_URL = ("retry", "ca")


def _url(text: str) -> str:
    """An operator's address. Errors do not repeat it, as it may hold a password."""
    if text.lower().startswith("unix:"):
        try:
            address = parse(text)
        except AddressError as problem:
            raise BadValue(problem.message, URL_ALLOWED) from None
        refuse_long_path(address)
        return address.key
    try:
        parts = urlsplit(text)
        found = parts.scheme in _PORTS and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        found = None
    if not found or not text.isprintable() or " " in text:
        raise BadValue("this is no address of an operator", URL_ALLOWED)
    if "@" in parts.netloc:
        raise BadValue("the address has credentials: name the variable of a token, token_env", URL_ALLOWED)
    if parts.query or parts.fragment:
        raise BadValue("the address has more than a path", URL_ALLOWED)
    return text.rstrip("/")


def _mode(value: Tree) -> Tree:
    text = f"{value:o}" if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(r"(0o?)?[0-7]{3}", text):
        raise BadValue(f"{shown(value)} is not allowed here", MODE_ALLOWED)
    return f"0{text[-3:]}"


Mode = Annotated[str, BeforeValidator(_mode), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$"})]
OperatorUrl = Annotated[str, AfterValidator(_url)]
Endpoint = Annotated[str, Field(pattern=r"^/[^\x00-\x20\x7f?#]*$")]


class OperatorTable(Table):
    """[operator]: who is informed of the gateway's requests (url), and where others inform this pool (bind)."""

    url: OperatorUrl | None = field(None, "The operator that is informed of requests: its address.")
    endpoint: Endpoint = field("/informer/incoming-request", "The path of the endpoint.")
    retry: Positive = field(30.0, "For each service the operator is informed at most once in this time.")
    namespace: Text | None = field(
        None,
        "The namespace that the operator is informed with; left out: the pool's name. bind serves no other one then.",
    )
    token_env: Text | None = field(None, "The environment variable that holds the token, of both directions.")
    ca: FilePath | None = field(
        None, "The CA certificates that the operator's is checked against; left out: the system's."
    )
    bind: Bind | None = field(None, "The address at which this pool is an operator.")
    mode: Mode = field("0600", "Who may use a Unix socket of bind: the mode of its file.")
    tls: TLSConfig | Literal[False] = field(
        False,
        "The certificate of bind, and the one that is shown to an operator. With ca, clients with a certificate of "
        "these authorities may use bind.",
    )
    trusted: Proxies = field(
        (), "Addresses or networks whose clients may use bind without token or certificate."
    )

    def findings(self) -> Iterator[Finding]:
        """The problems between its keys; paths begin within the table."""
        given = self.model_fields_set
        if self.url is None and self.bind is None:
            fix = "add url, of an operator to inform, or bind, to be one"
            yield Finding((), "neither url nor bind is given", fix)
            return
        for other, keys in (("bind", _OF_BIND), ("url", _OF_URL)):
            for key in keys if getattr(self, other) is None else ():
                if key in given:
                    yield Finding(
                        (key,), f"{key} is for {other}, which is missing", f"add {other}, or take it out"
                    )
        if self.bind is not None:
            yield from self._of_bind(self.bind, given)
        if self.bind is not None and self.url is not None and _reaches(self.url, self.bind):
            yield Finding(
                ("url",), "this is the address of bind: the pool would inform itself", "take one out"
            )

    def _of_bind(self, bind: str, given: set[str]) -> Iterator[Finding]:
        if "*" in self.trusted:
            message = 'trusted = ["*"] lets everyone who reaches it start servers'
            yield Finding(("trusted",), message, 'name networks, such as "10.0.0.0/8"', "*")
        if parse(bind).kind == "unix":
            if self.trusted:
                fix = "take it out: mode says who may use it"
                yield Finding(("trusted",), "clients of a Unix socket have no address", fix)
            return
        if "mode" in given:
            yield Finding(("mode",), f"{bind} is no Unix socket: it has no mode", "take it out")
        if not (self.token_env or self.trusted or (self.tls and self.tls.ca)):
            fix = (
                "add token_env, tls = { cert = …, key = …, ca = … } for clients with certificates, or "
                'trusted = ["10.0.0.0/8"]'
            )
            yield Finding(("bind",), f"{bind} lets everyone who reaches it start servers", fix, bind)


def _reaches(url: str, bind: str) -> bool:
    """Whether the URL leads to the address itself, as far as the text of both says."""
    if not url.startswith("unix:"):
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        url = f"{host}:{parts.port or _PORTS[parts.scheme]}"
    try:
        target, own = parse(url), parse(bind)
    except AddressError:
        return False
    local = target.host in ("localhost", *LOOPBACKS) or target.host.startswith("127.")
    return overlaps(target, own) if local else target.key == own.key


def operator_table(
    raw: Mapping[str, Tree], findings: list[Finding], *, has_gateway: bool
) -> OperatorTable | None:
    """The table, None if there are problems of it, which are added to the findings."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    own: list[Finding] = []
    table = validated(OperatorTable, given, own)
    # An address that is not accepted may still hold a secret.
    own = [each._replace(found="") if each.path[:1] == ("url",) else each for each in own]
    if table is not None:
        own += table.findings()
        if table.url and not has_gateway:
            message = "without a gateway there are no requests to inform an operator of"
            own.append(Finding(("url",), message, "add [gateway], or take url out"))
    findings += [each._replace(path=("operator", *each.path)) for each in own]
    return None if own else table
