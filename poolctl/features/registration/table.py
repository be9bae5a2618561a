"""[registration]: the address at which services on other machines or in containers register as backends."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, ClassVar

from pydantic import Field, Strict

from poolctl.address import parse
from poolctl.config.model.section import Section, Table
from poolctl.config.model.server_tables import TLSOrFalse
from poolctl.config.values.problems import Finding, Tree, shortened_printable
from poolctl.config.values.value_types import Accepts, Bind, FileMode, Name, Proxies, Text, Words


class RegistrationClient(Section, frozen=True):
    """A client of [registration]: its token, and which services it may register."""

    name: Name | None = None
    """Its name in events. Left out: the name of its variable."""
    token_env: Text
    """The environment variable that holds its token."""
    routes: Words
    """The aliases of the routes whose backends it may register."""
    allow: Proxies = Field(default=(), validate_default=True)
    """Networks that its requests must come from and its services must be in. Left out: any network, and this machine's
    loopback addresses for clients on this machine.
    """

    @property
    def label(self) -> str:
        """The client's name for display."""
        return self.name or self.token_env


class RegistrationTable(Table, frozen=True):
    """[registration]: services in containers and on other machines register here, with a token."""

    table: ClassVar[str] = "registration"
    table_name: ClassVar[str] = "registration"

    bind: Bind
    """The address."""
    mode: FileMode = "0600"
    """The mode of the file of a Unix socket, which decides who may use it."""
    tls: TLSOrFalse = False
    """The certificate of bind. With ca, clients have to present a certificate of these authorities as well."""
    client: Accepts[Annotated[tuple[RegistrationClient, ...], Strict(False)], Sequence[RegistrationClient]]
    """The clients that may register services."""

    def findings(self) -> Iterator[Finding]:
        address = parse(self.bind)
        if not (self.tls or address.is_local):
            message = f"{self.bind} can be reached from other machines, and without tls they send tokens in the clear"
            yield Finding(
                ("bind",), message, "add tls = { cert = …, key = … }, or bind 127.0.0.1 or a Unix socket"
            )
        if "mode" in self.model_fields_set and address.kind != "unix":
            yield Finding(("mode",), f"{self.bind} is not a Unix socket and has no mode", "remove it")
        if not self.client:
            fix = 'add [[registration.client]] with token_env = "…" and routes = ["…"]'
            yield Finding(("client",), "no client may register", fix)
        labels: dict[str, int] = {}
        variables: dict[str, int] = {}
        for index, client in enumerate(self.client):
            if variables.setdefault(client.token_env, index) != index:
                message = f"the token of {client.token_env} is another client's too"
                yield Finding(("client", index, "token_env"), message, "give each client a token of its own")
            elif labels.setdefault(client.label, index) != index:
                path = ("client", index, "name" if client.name else "token_env")
                yield Finding(path, f"the name {client.label!r} is taken", 'add name = "…"')
            if not client.routes:
                yield Finding(
                    ("client", index, "routes"),
                    "it may register nothing",
                    "name a route with register = true",
                )

    def findings_against_other_tables(self, tables: Mapping[str, Tree]) -> Iterator[Finding]:
        if "gateway" not in tables:
            message = "without a gateway there are no routes to register for"
            yield Finding((), message, "add a [[route]] with register = true, or remove the table")
            return
        accepting = {route.label for route in tables.get("route") or () if route.register}
        for index, client in enumerate(self.client):
            for at, alias in enumerate(client.routes):
                if alias not in accepting:
                    message = f"no route {shortened_printable(alias)!r} of the files accepts services"
                    fix = f'add [[route]] with alias = "{shortened_printable(alias)}" and register = true'
                    yield Finding(("client", index, "routes", at), message, fix, alias)

    def check(self, env: Mapping[str, str], names: Collection[str]) -> Iterator[Finding]:
        """Check the certificate and the clients' tokens of [registration]."""
        from poolctl.config.checks.certificate_checks import check_certificates
        from poolctl.web.bearer_tokens import short_token_warnings

        if self.tls:
            yield from check_certificates(self.tls, env, datetime.now(UTC))
        tokens: dict[str, str] = {}
        for index, client in enumerate(self.client):
            path = ("client", index, "token_env")
            token, name = env.get(client.token_env, "").strip(), client.token_env
            if not token:
                message = f"the environment variable {name} is not set"
                yield Finding(path, message, f"export {name}=…")
            elif tokens.setdefault(token, name) != name:
                message = f"the token in {name} is that of {tokens[token]} too"
                yield Finding(path, message, "give each client a token of its own")
            else:
                yield from short_token_warnings(path, token, name, f"export {name}=$(openssl rand -hex 32)")
