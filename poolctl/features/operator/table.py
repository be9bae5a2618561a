"""[operator]: where the gateway sends reports of requests (`url`), and where the pool accepts such reports (`bind`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from poolctl.address import LOOPBACKS, AddressError, overlaps, parse
from poolctl.config.model.section import Table
from poolctl.config.model.server_tables import TLSOrFalse
from poolctl.config.values.normalise import absolute_address
from poolctl.config.values.plain import PORTS, BadValue, refuse_long_path
from poolctl.config.values.problems import Finding, Problem, Tree
from poolctl.config.values.value_types import (
    PLAIN_PATH_PATTERN,
    Bind,
    FileMode,
    FilePath,
    Positive,
    Proxies,
    Relative,
    Text,
)

_ALLOWED = '"http://HOST:PORT", "https://HOST:PORT", either with a path, or "unix:/PATH"'


def _operator_url(text: str) -> str:
    """The normalized URL of an operator. The message of BadValue omits the URL, which may contain a password."""
    if text.lower().startswith("unix:"):
        try:
            address = parse(text)
        except AddressError as problem:
            raise BadValue(problem.message, _ALLOWED) from None
        refuse_long_path(address)
        return address.key
    try:
        parts = urlsplit(text)
        valid = parts.scheme in PORTS and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        valid = None
    if not valid or not text.isprintable() or " " in text:
        raise BadValue("this is not the address of an operator", _ALLOWED)
    if "@" in parts.netloc:
        raise BadValue("the address has credentials: name the variable of a token, token_env", _ALLOWED)
    if parts.query or parts.fragment:
        raise BadValue("the address has more than a path", _ALLOWED)
    return text.rstrip("/")


# Relative paths of Unix sockets are resolved against the file's directory.
OperatorUrl = Annotated[str, AfterValidator(_operator_url), Relative(absolute_address)]
Endpoint = Annotated[str, Field(pattern=PLAIN_PATH_PATTERN)]


# Keys without effect unless `bind` is set, and unless `url` is set.
_BIND_KEYS = ("mode", "trusted")
_URL_KEYS = ("retry", "ca")


class OperatorTable(Table, frozen=True):
    """[operator]: where the gateway sends reports of requests (url), and where the pool accepts such reports (bind)."""

    table_name: ClassVar[str] = "operator"

    url: OperatorUrl | None = None
    """The URL of the operator that is told about requests."""
    endpoint: Endpoint = "/informer/incoming-request"
    """The path of the endpoint."""
    retry: Positive = Field(default="30s", validate_default=True)
    """Minimum time between two messages to the operator about the same service."""
    namespace: Text | None = None
    """The namespace that is sent to the operator; if set, bind accepts no other one. Left out: the pool's name."""
    token_env: Text | None = None
    """The environment variable that holds the token: the one for url, or the one of bind's clients."""
    ca: FilePath | None = None
    """The CA certificates that the operator's certificate is checked against. Left out: the system's."""
    bind: Bind | None = None
    """The address at which this pool is an operator for others."""
    mode: FileMode = "0600"
    """The mode of the file of a Unix socket, which decides who may use it."""
    tls: TLSOrFalse = False
    """The certificate of bind, also presented to the operator. With ca, clients with a certificate of these
    authorities may use bind.
    """
    trusted: Proxies = Field(default=(), validate_default=True)
    """Addresses or networks whose clients may use bind without token or certificate."""

    def findings(self) -> Iterator[Finding]:
        keys_set = self.model_fields_set
        if self.url is None and self.bind is None:
            fix = "add url, of an operator to inform, or bind, to be one"
            yield Finding((), "neither url nor bind is given", fix)
            return
        for other, keys in (("bind", _BIND_KEYS), ("url", _URL_KEYS)):
            for key in keys if getattr(self, other) is None else ():
                if key in keys_set:
                    yield Finding(
                        (key,), f"{key} is for {other}, which is missing", f"add {other}, or remove it"
                    )
        if self.bind is not None:
            yield from self._bind_findings(self.bind, keys_set)
        if self.bind is not None and self.url is not None and _reaches(self.url, self.bind):
            yield Finding(("url",), "this is the address of bind: the pool would inform itself", "remove one")

    def findings_against_other_tables(self, tables: Mapping[str, Tree]) -> Iterator[Finding]:
        if self.url is None:
            return
        if "gateway" not in tables:
            message = "without a gateway there are no requests to inform an operator of"
            yield Finding(("url",), message, "add [gateway], or take url out")
        clients = getattr(tables.get("registration"), "client", ())
        if self.token_env and self.token_env in [client.token_env for client in clients]:
            message = f"the token of {self.token_env} is sent to the operator, and opens [registration] of this pool"
            yield Finding(("token_env",), message, "give the operator a token of its own", self.token_env)

    def check(self, env: Mapping[str, str], names: Collection[str]) -> Iterator[Finding]:
        """Check the token, the CA file and the certificates of the table [operator]."""
        from poolctl.config.checks.certificate_checks import check_certificates
        from poolctl.config.files.read_file import read_text
        from poolctl.web.bearer_tokens import short_token_warnings

        if self.tls:
            yield from check_certificates(self.tls, env, datetime.now(UTC))
        if name := self.token_env:
            token = env.get(name, "").strip()
            if not token:
                message = f"the environment variable {name} is not set"
                yield Finding(("token_env",), message, f"export {name}=…")
            elif self.bind is not None:
                yield from short_token_warnings(
                    ("token_env",), token, name, f"export {name}=$(openssl rand -hex 32)"
                )
        if self.ca is not None:
            try:
                read_text(self.ca)
            except Problem as problem:
                yield Finding(("ca",), f"{self.ca}: {problem.message}", problem.hint, self.ca)

    def _bind_findings(self, bind: str, keys_set: set[str]) -> Iterator[Finding]:
        if "*" in self.trusted:
            message = 'trusted = ["*"] lets everyone who reaches it start servers'
            yield Finding(("trusted",), message, 'name networks, such as "10.0.0.0/8"', "*")
        if parse(bind).kind == "unix":
            if self.trusted:
                fix = "remove it: mode says who may use it"
                yield Finding(("trusted",), "clients of a Unix socket have no address", fix)
            return
        if self.token_env and self.url is not None:
            message = f"the token of {self.token_env} is sent to url, and opens bind: that operator could start servers"
            fix = "remove token_env and use tls = { cert = …, key = …, ca = … } for both, or give url to another pool"
            yield Finding(("token_env",), message, fix, self.token_env)
        if "mode" in keys_set:
            yield Finding(("mode",), f"{bind} is not a Unix socket and has no mode", "remove it")
        if not (self.token_env or self.trusted or (self.tls and self.tls.ca)):
            fix = (
                "add token_env, tls = { cert = …, key = …, ca = … } for clients with certificates, or "
                'trusted = ["10.0.0.0/8"]'
            )
            yield Finding(("bind",), f"{bind} lets everyone who reaches it start servers", fix, bind)


def _reaches(url: str, bind: str) -> bool:
    """Return whether `url` leads to the address `bind`. Only the texts are compared: no name is resolved."""
    if not url.startswith("unix:"):
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        url = f"{host}:{parts.port or PORTS[parts.scheme]}"
    try:
        target, bound = parse(url), parse(bind)
    except AddressError:
        return False
    local = target.host in ("localhost", *LOOPBACKS) or target.host.startswith("127.")
    return overlaps(target, bound) if local else target.key == bound.key
