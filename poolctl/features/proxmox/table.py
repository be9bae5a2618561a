"""The table [proxmox]: access to the Proxmox VE API, with which the machines behind routes are found and started."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from poolctl.config.files.read_file import read_text
from poolctl.config.model.section import Table
from poolctl.config.values.normalise import absolute
from poolctl.config.values.plain import BadValue, truth_if_interpolated
from poolctl.config.values.problems import Finding, Problem, Tree, shown
from poolctl.config.values.value_types import Duration, FilePath, Positive, Relative, Text, Truth, Words

_API_ALLOWED = '"https://HOST:8006"'
_VERIFY_ALLOWED = 'true, or the file of the CA that has signed the certificate ("pve-root-ca.pem")'
# The file of the CA of a Proxmox VE cluster, on its nodes.
_CA_FILE = "/etc/pve/pve-root-ca.pem"


def _api_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    if "@" in text:
        # The message omits the address, which contains a user name or a password.
        raise BadValue(
            "the address holds a user", f"{_API_ALLOWED}; the token stands in token_env or token_file"
        )
    if not host or port == 0 or not text.isprintable() or parts.scheme not in ("http", "https"):
        raise BadValue(f"{text[:60]!r} is not the address of a web service", _API_ALLOWED)
    if parts.scheme == "http":
        raise BadValue(f"{text[:60]!r} would send the token in the clear", _API_ALLOWED)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadValue(f"{text[:60]!r} has more than a host and a port", _API_ALLOWED)
    return text.rstrip("/")


def _validated_verify(value: Tree) -> Tree:
    value = truth_if_interpolated(value)
    if value is False:
        message = "without verification anyone between here and there can take the token"
        raise BadValue(message, f"{_VERIFY_ALLOWED}; a cluster has it as {_CA_FILE}")
    if value is not True and (not isinstance(value, str) or not value):
        raise BadValue(f"{shown(value)} is not allowed here", _VERIFY_ALLOWED)
    return value


def _absolute_unless_bool(value: Tree, directory: str) -> Tree:
    return value if isinstance(truth_if_interpolated(value), bool) else absolute(value, directory)


ApiUrl = Annotated[str, AfterValidator(_api_url)]
Verify = Annotated[
    bool | str,
    BeforeValidator(_validated_verify),
    Relative(_absolute_unless_bool),
    WithJsonSchema({"anyOf": [{"const": True}, {"type": "string", "format": "path"}]}),
]


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

    def check(self, env: Mapping[str, str], names: Collection[str]) -> Iterator[Finding]:
        """Warn of what prevents every route from being linked to a machine, such as a missing token."""
        if "gateway" not in names:
            hint = "add a [[route]] to a URL, or remove this"
            yield Finding((), "there is no route that could be linked", hint, is_warning=True)
        if name := self.token_env:
            if not env.get(name):
                message = f"the environment variable {name} is not set here"
                fix = "set it where the pool is started"
                yield Finding(("token_env",), message, fix, name, is_warning=True)
            elif not is_token(env[name].strip()):
                yield _malformed("token_env", f"what {name} holds")
        if path := self.token_file:
            try:
                text = read_text(path)
            except Problem as problem:
                message = f"{path}: {problem.message}"
                yield Finding(("token_file",), message, problem.hint, path, is_warning=True)
            else:
                if not is_token(text.strip()):
                    yield _malformed("token_file", f"what {path} holds")
        if isinstance(self.verify, str) and not os.access(self.verify, os.R_OK):
            what = "cannot be read" if os.path.exists(self.verify) else "is not there"
            hint = "copy the CA of the cluster there, or fix verify"
            yield Finding(("verify",), f"{self.verify} {what}", hint, self.verify, is_warning=True)


def _malformed(key: str, what: str) -> Finding:
    message = f"{what} is not an API token"
    return Finding((key,), message, f"write it as {_TOKEN_ALLOWED}", is_warning=True)
