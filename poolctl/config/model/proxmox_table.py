"""[proxmox]: the API of Proxmox VE that knows the machines behind routes. Imported when a file has the table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema

from poolctl.config.model.normalise import absolute
from poolctl.config.model.problems import Finding, Tree, shown
from poolctl.config.model.server_sections import Table
from poolctl.config.model.validation_errors import validated
from poolctl.config.model.value_types import (
    BadValue,
    FilePath,
    Positive,
    Text,
    Truth,
    Word,
    field,
    truth_from_environment,
)

URL_ALLOWED = '"https://HOST:8006"'
VERIFY_ALLOWED = 'true, or the file of the CA that has signed the certificate ("pve-root-ca.pem")'
TOKEN_ALLOWED = "USER@REALM!TOKENID=SECRET"
_TOKEN = re.compile(r"[^\s!=@]+@[^\s!=@]+![^\s!=@]+=[!-~]+", re.ASCII)
# The file that a Proxmox VE cluster has for its own CA.
CA_FILE = "/etc/pve/pve-root-ca.pem"


def is_token(text: str) -> bool:
    """Whether it has the form of an API token, which may stand in a header then."""
    return _TOKEN.fullmatch(text) is not None


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    if "@" in text:
        # A user name or a password, which is not repeated.
        raise BadValue(
            "the address holds a user", f"{URL_ALLOWED}; the token stands in token_env or token_file"
        )
    if not host or port == 0 or not text.isprintable() or parts.scheme not in ("http", "https"):
        raise BadValue(f"{text[:60]!r} is no address of a web service", URL_ALLOWED)
    if parts.scheme == "http":
        raise BadValue(f"{text[:60]!r} would send the token in the clear", URL_ALLOWED)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadValue(f"{text[:60]!r} has more than a host and a port", URL_ALLOWED)
    return text.rstrip("/")


def _verify(value: Tree) -> Tree:
    value = truth_from_environment(value)
    if value is False:
        message = "without verification anyone between here and there can take the token"
        raise BadValue(message, f"{VERIFY_ALLOWED}; a cluster has it as {CA_FILE}")
    if value is not True and (not isinstance(value, str) or not value):
        raise BadValue(f"{shown(value)} is not allowed here", VERIFY_ALLOWED)
    return value


class ProxmoxTable(Table):
    """[proxmox]: links routes to the nodes, containers and virtual machines of a Proxmox VE cluster."""

    table: ClassVar[str] = "proxmox"

    url: Annotated[str, AfterValidator(_url)] = Field(description="The address of the API, with https.")
    token_env: Text | None = field(
        None, f"The environment variable that holds the API token, {TOKEN_ALLOWED}."
    )
    token_file: FilePath | None = field(None, "A file that holds the token.")
    verify: Annotated[
        bool | str,
        BeforeValidator(_verify),
        WithJsonSchema({"anyOf": [{"const": True}, {"type": "string", "format": "path"}]}),
    ] = field(
        True, "true: the certificate is checked against the system's CAs; a path: against those of this file."
    )
    nodes: Annotated[tuple[Word, ...], Strict(False)] = field(
        (), "The nodes whose machines are linked. Left out: all."
    )
    refresh: Positive = field(30.0, "How often the inventory is read.")
    timeout: Positive = field(5.0, "How long an answer of the API may take.")
    start: Truth = field(
        True, "Whether a request starts the stopped container or virtual machine of its route."
    )
    start_timeout: Positive = field(
        60.0, "How long the start may take, and how long requests wait for it; then they get 503."
    )


def with_absolute_files(table: dict[str, Tree], base_dir: str) -> dict[str, Tree]:
    """The table with its paths made absolute, from the directory of its file."""
    return {
        key: absolute(value, base_dir)
        if key == "token_file" or (key == "verify" and isinstance(value, str) and not _is_truth(value))
        else value
        for key, value in table.items()
    }


def _is_truth(value: str) -> bool:
    return isinstance(truth_from_environment(value), bool)


def proxmox_table(raw: Mapping[str, Tree], findings: list[Finding]) -> ProxmoxTable | None:
    """The table, None if there are problems of it, which are added to the findings."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    own: list[Finding] = []
    table = validated(ProxmoxTable, given, own)
    # An address that is not accepted may still hold a secret.
    own = [each._replace(found="") if each.path[:1] == ("url",) else each for each in own]
    if table is not None:
        own += _token_findings(table)
    findings += [each._replace(path=("proxmox", *each.path)) for each in own]
    return None if own else table


def _token_findings(table: ProxmoxTable) -> Iterator[Finding]:
    if table.token_env and table.token_file:
        yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
    elif not (table.token_env or table.token_file):
        hint = f"add token_env or token_file; the token has the form {TOKEN_ALLOWED}"
        yield Finding((), "the API token is missing", hint)
