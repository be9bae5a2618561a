"""[proxmox]: the API of Proxmox VE that knows the machines behind routes. Imported when a file has the table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from poolctl.config.model.section import Table, field, required

if TYPE_CHECKING:
    from poolctl.config.values.table_types import ApiUrl, Verify
    from poolctl.config.values.value_types import Duration, FilePath, Positive, Text, Truth, Words

KINDS = "poolctl.config.values.table_types"
TOKEN_ALLOWED = "USER@REALM!TOKENID=SECRET"
_TOKEN = re.compile(r"[^\s!=@]+@[^\s!=@]+![^\s!=@]+=[!-~]+", re.ASCII)


def is_token(text: str) -> bool:
    """Whether it has the form of an API token, which may stand in a header then."""
    return _TOKEN.fullmatch(text) is not None


class ProxmoxTable(Table):
    """[proxmox]: links routes to the nodes, containers and virtual machines of a Proxmox VE cluster."""

    table: ClassVar[str] = "proxmox"

    url: ApiUrl = required(description="The address of the API, with https.")
    token_env: Text | None = field(
        None, f"The environment variable that holds the API token, {TOKEN_ALLOWED}."
    )
    token_file: FilePath | None = field(None, "A file that holds the token.")
    verify: Verify = field(
        True, "true: the certificate is checked against the system's CAs; a path: against those of this file."
    )
    nodes: Words = field((), "The nodes whose machines are linked. Left out: all.")
    refresh: Positive = field(30.0, "How often the inventory is read.")
    timeout: Positive = field(5.0, "How long an answer of the API may take.")
    start: Truth = field(
        True, "Whether a request starts the stopped container or virtual machine of its route."
    )
    start_timeout: Positive = field(
        60.0, "How long the start may take, and how long requests wait for it; then they get 503."
    )
    idle: Duration = field(
        0.0, "After how long without a request a machine that a request has had started is stopped; 0: never."
    )
