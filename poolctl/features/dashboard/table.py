"""[dashboard]: the web page of the pool."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from shlex import quote
from typing import ClassVar

from pydantic import Field

from poolctl.address import parse
from poolctl.config.files.read_file import read_text
from poolctl.config.model.section import Table
from poolctl.config.model.server_tables import TLSOrFalse
from poolctl.config.values.problems import Finding, Problem, Tree
from poolctl.config.values.value_types import Bind, FilePath, Text, Truth, Words
from poolctl.installation import install_command


class Dashboard(Table, frozen=True):
    """[dashboard]: the web page of the pool."""

    table_name: ClassVar[str] = "dashboard"

    bind: Bind = "127.0.0.1:9465"
    """The address of the page."""
    token_file: FilePath | None = None
    """A file that holds the token. Left out: dashboard.token in the state directory."""
    token_env: Text | None = None
    """The environment variable that holds the token."""
    hosts: Words = Field(default=(), validate_default=True)
    """Host names under which browsers may open the page, besides addresses and localhost."""
    tls: TLSOrFalse = False
    """The certificate of the page."""
    insecure: Truth = False
    """Let other machines reach the page without tls."""

    def findings(self) -> Iterator[Finding]:
        if self.token_env and self.token_file:
            yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
        if not (self.tls or self.insecure or parse(self.bind).is_local):
            others = f"{self.bind} can be reached from other machines"
            message = f"{others}, and without tls they send the token in the clear"
            yield Finding(
                ("bind",), message, "add tls = { cert = …, key = … }, or bind 127.0.0.1 behind a proxy"
            )
        if find_spec("starlette") is None:
            fix = install_command(sys.executable, "starlette")
            yield Finding((), "starlette is not installed, which serves the page", fix)

    def findings_against_other_tables(self, tables: Mapping[str, Tree]) -> Iterator[Finding]:
        operator = tables.get("operator")
        if operator is not None and operator.url and self.token_env and operator.token_env == self.token_env:
            message = f"the token of {self.token_env} is also sent to the operator of [operator]"
            yield Finding(("token_env",), message, "give the dashboard a token of its own", self.token_env)

    def check(self, env: Mapping[str, str], names: Collection[str]) -> Iterator[Finding]:
        """Report a missing or unreadable token, and problems with the certificate. Blocks on the disk."""
        yield from self._check_token(env)
        if self.tls:
            from poolctl.config.checks.certificate_checks import check_certificates

            yield from check_certificates(self.tls, env, datetime.now(UTC))

    def _check_token(self, env: Mapping[str, str]) -> list[Finding]:
        from poolctl.web.bearer_tokens import short_token_warnings

        if name := self.token_env:
            path, token = ("token_env",), env.get(name, "").strip()
            if not token:
                return [Finding(path, f"the environment variable {name} is not set", f"export {name}=…")]
            return short_token_warnings(path, token, name, f"export {name}=$(openssl rand -hex 32)")
        if name := self.token_file:
            path = ("token_file",)
            try:
                token = read_text(name).strip()
            except Problem as problem:
                return [Finding(path, f"{name}: {problem.message}", problem.hint)]
            if not token:
                return [Finding(path, f"{name}: there is no token in it", "write one into it")]
            return short_token_warnings(path, token, name, f"openssl rand -hex 32 > {quote(name)}")
        return []
