"""The environment for the command of `run -- CMD…`, with the pool and the servers' addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from poolctl.address import AddressError, parse
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef
from poolctl.config import address_parts
from poolctl.control.answers import ErrorEntry, Item
from poolctl.exit_codes import INVALID_CONFIGURATION

_PARTS = ("url", "port")


def command_environment(
    pool: PoolRef, items: Sequence[Item], base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """`base` with POOLCTL_CONFIG, and POOLCTL_URL_NAME and POOLCTL_PORT_NAME for each server that has them.

    Failure (5), with the place, if two names map to the same variable.
    """
    there = [item for item in items if item.state != "disabled" and item.expose]
    if taken := _same_variable(there):
        raise Failure(_refused(pool, *taken))
    found = {"POOLCTL_CONFIG": pool.files[0]} if pool.files else {}
    for item in there:
        try:
            parts = address_parts(item.expose, parse(item.address or item.bind))
        except AddressError:
            parts = {"url": item.expose}
        if item.address and item.expose == item.bind:  # an inherited socket has no other address
            parts["url"] = f"http://{item.address}"
        found |= {
            f"POOLCTL_{part.upper()}_{word(item.name)}": parts[part] for part in _PARTS if part in parts
        }
    return {**base, **found}


def word(name: str) -> str:
    """The name of a server as a part of a variable name: `users-v1` becomes `USERS_V1`."""
    return re.sub("[^A-Z0-9]", "_", name.upper())


def _same_variable(items: Iterable[Item]) -> tuple[Item, Item] | None:
    known: dict[str, Item] = {}
    for item in items:
        first = known.setdefault(word(item.name), item)
        if first is not item:
            return first, item
    return None


def _refused(pool: PoolRef, first: Item, second: Item) -> Outcome:
    from poolctl.cli.offline import load
    from poolctl.config import Finding

    variable = f"POOLCTL_URL_{word(first.name)}"
    message = f"{variable} of the command would be the address of {first.name!r} and of {second.name!r}"
    finding = Finding(("name",), message, "rename one of them", second.name)
    config = load(pool)
    problems = config.located((server, finding) for server in config if server.name == second.name)
    if not problems:  # a server added live
        return Outcome.failed(INVALID_CONFIGURATION, message, finding.hint)
    return Outcome(errors=[ErrorEntry.of(each) for each in problems], exit_code=INVALID_CONFIGURATION)
