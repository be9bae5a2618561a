"""The table [proxmox]: access to the Proxmox VE API, with which the machines behind routes are found and started."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from pydantic import Field

from poolctl.config.files.read_file import read_text
from poolctl.config.model.section import Table
from poolctl.config.values.problems import Finding, Problem
from poolctl.config.values.value_types import Duration, FilePath, Positive, Text, Truth, Words

from ._value_types import ApiUrl, Verify

_TOKEN_ALLOWED = "USER@REALM!TOKENID=SECRET"
_TOKEN = re.compile(r"[^\s!=@]+@[^\s!=@]+![^\s!=@]+=[!-~]+", re.ASCII)


def is_token(text: str) -> bool:
    """Whether the text has the form of an API token, and so is safe in a header."""
    return _TOKEN.fullmatch(text) is not None


class ProxmoxTable(Table, frozen=True):
    """[proxmox]: links routes to the nodes, containers and virtual machines of a Proxmox VE cluster."""

    table: ClassVar[str] = "proxmox"
    table_name: ClassVar[str] = "proxmox"

    url: ApiUrl
    """The URL of the API, with https."""
    token_env: Text | None = Field(
        default=None, description=f"The environment variable that holds the API token, {_TOKEN_ALLOWED}."
    )
    token_file: FilePath | None = None
    """A file that holds the token."""
    verify: Verify = True
    """true checks the certificate against the system's CAs, a path against the CAs of that file."""
    nodes: Words = Field(default=(), validate_default=True)
    """The nodes whose machines are linked. Left out: all."""
    refresh: Positive = Field(default="30s", validate_default=True)
    """The time between two readings of the inventory."""
    timeout: Positive = Field(default="5s", validate_default=True)
    """Maximum time until the API answers."""
    start: Truth = True
    """Start the stopped container or virtual machine of a route at its first request."""
    start_timeout: Positive = Field(default="1m", validate_default=True)
    """Maximum time of the start; requests that wait longer get 503."""
    idle: Duration = Field(default="0s", validate_default=True)
    """How long a machine that a request has started stays up without further requests; 0: for ever."""

    def findings(self) -> Iterator[Finding]:
        if self.token_env and self.token_file:
            yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
        elif not (self.token_env or self.token_file):
            hint = f"add token_env or token_file; the token has the form {_TOKEN_ALLOWED}"
            yield Finding((), "the API token is missing", hint)

    def check(self, env: Mapping[str, str], names: Collection[str]) -> tuple[list[Finding], list[Finding]]:
        """Return ([], warnings): each warning says why no route can be linked to a machine, such as a missing token."""
        return [], [*_no_route_findings(names), *self._token_findings(env), *self._ca_findings()]

    def _token_findings(self, env: Mapping[str, str]) -> Iterator[Finding]:
        if name := self.token_env:
            if not env.get(name):
                message = f"the environment variable {name} is not set here"
                yield Finding(("token_env",), message, "set it where the pool is started", name)
            elif not is_token(env[name].strip()):
                yield _malformed("token_env", f"what {name} holds")
        if path := self.token_file:
            try:
                text = read_text(path)
            except Problem as problem:
                yield Finding(("token_file",), f"{path}: {problem.message}", problem.hint, path)
            else:
                if not is_token(text.strip()):
                    yield _malformed("token_file", f"what {path} holds")

    def _ca_findings(self) -> Iterator[Finding]:
        if isinstance(self.verify, str) and not os.access(self.verify, os.R_OK):
            what = "cannot be read" if os.path.exists(self.verify) else "is not there"
            hint = "copy the CA of the cluster there, or fix verify"
            yield Finding(("verify",), f"{self.verify} {what}", hint, self.verify)


def _no_route_findings(table_names: Collection[str]) -> Iterator[Finding]:
    if "gateway" not in table_names:
        hint = "add a [[route]] to a URL, or remove this"
        yield Finding((), "there is no route that could be linked", hint)


def _malformed(key: str, what: str) -> Finding:
    return Finding((key,), f"{what} is not an API token", f"write it as {_TOKEN_ALLOWED}")
