"""What [proxmox] refers to outside its file: the token, and the file of the CA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from poolctl.config.files.read_file import read_text
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.proxmox_table import TOKEN_ALLOWED, ProxmoxTable, is_token
from poolctl.config.values.problems import Finding, Problem


def check_proxmox(proxmox: ProxmoxTable, tables: Tables, env: Mapping[str, str]) -> Iterator[Finding]:
    """Reasons why no machine could be linked; none of them keeps a route from being served. Blocks on the disk."""
    for finding in _findings(proxmox, tables, env):
        yield finding._replace(path=("proxmox", *finding.path))


def _findings(proxmox: ProxmoxTable, tables: Tables, env: Mapping[str, str]) -> Iterator[Finding]:
    if tables.gateway is None:
        yield Finding(
            (), "there is no route that could be linked", "add a [[route]] to a URL, or take this out"
        )
    if proxmox.token_env:
        name = proxmox.token_env
        if not env.get(name):
            message = f"the environment variable {name} is not set here"
            yield Finding(("token_env",), message, "set it where the pool is started", name)
        elif not is_token(env[name].strip()):
            yield _malformed("token_env", f"what {name} holds")
    if path := proxmox.token_file:
        try:
            text = read_text(path)
        except Problem as problem:
            yield Finding(("token_file",), f"{path}: {problem.message}", problem.hint, path)
        else:
            if not is_token(text.strip()):
                yield _malformed("token_file", f"what {path} holds")
    if isinstance(proxmox.verify, str) and not os.access(proxmox.verify, os.R_OK):
        what = "cannot be read" if os.path.exists(proxmox.verify) else "is not there"
        hint = "copy the CA of the cluster there, or fix verify"
        yield Finding(("verify",), f"{proxmox.verify} {what}", hint, proxmox.verify)


def _malformed(key: str, what: str) -> Finding:
    return Finding((key,), f"{what} is no API token", f"write it as {TOKEN_ALLOWED}")
