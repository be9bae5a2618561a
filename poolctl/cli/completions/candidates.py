"""The words that a shell asks for: names, tags, backends and pools.

`poolctl __complete targets|servers|tags|pools|backends [-c FILE]… [--pool NAME]` prints words, one a line. It is quick,
it never fails and never prints anything else, because it runs on every press of Tab. Targets are the names of servers,
and their addresses once a word has been begun (`--word WORD`); with `--describe` a tab and the state, or the name,
follow.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise

from poolctl.cli.command import BACKEND_ACTIONS
from poolctl.cli.pool_ref import PoolRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Server = tuple[str, str, str, tuple[str, ...]]  # name, address, state, tags

ANSWER_SECONDS = 1.0
# Words that would have to be quoted are left to the fingers.
_word = re.compile(r"[A-Za-z0-9._@%+,:/-]+")


def complete(args: Sequence[str]) -> int:
    """Print the words; 0 whatever happens."""
    try:
        kind, *words = args
        found = _pools() if kind == "pools" else _words(kind, words)
        sys.stdout.write("".join(f"{line}\n" for line in found if _word.fullmatch(line.partition("\t")[0])))
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt):
        return 0
    return 0


def _words(kind: str, words: list[str]) -> Iterable[str]:
    """Names or tags of the pool that -c and --pool name in the unfinished command line; `~` is as it was typed."""
    from poolctl.cli.command_line import CommandRequest
    from poolctl.cli.pool_ref import find_pool

    describe = "--describe" in words
    pairs = list(pairwise(word for word in words if word != "--describe"))
    files = [os.path.expanduser(value) for option, value in pairs if option in ("-c", "--config")]
    pool = next((value for option, value in pairs if option == "--pool"), None)
    found = find_pool(CommandRequest("list", {"config": files, "pool": pool}), missing_ok=True)
    if kind in ("backends", "hosts"):  # the second from a script of an earlier version
        return [*BACKEND_ACTIONS, *_backends(found)]
    servers = _servers(found)
    if kind == "tags":
        return sorted({tag for *_, tags in servers for tag in tags})
    if kind == "targets":
        begun = any(option == "--word" and value for option, value in pairs)
        lines = [(name, state) for name, _, state, _ in servers]
        lines += [(bind, name) for name, bind, _, _ in servers if begun]
        return [f"{word}\t{about}" if describe and about else word for word, about in lines if word]
    return [name for name, *_ in servers if name] if kind == "servers" else []


def _backends(pool: PoolRef) -> list[str]:
    from poolctl.control.client import Client
    from poolctl.control.gateway_answers import HostsResult
    from poolctl.errors import ControlError

    try:
        client = Client(pool.socket, silence_seconds=ANSWER_SECONDS)
        return [item.host for item in client.ask(HostsResult, "hosts", timeout=0.0).items]
    except ControlError:
        return []


def _servers(pool: PoolRef) -> list[Server]:
    from poolctl.control.answers import Result
    from poolctl.control.client import Client
    from poolctl.errors import ControlError

    try:
        client = Client(pool.socket, silence_seconds=ANSWER_SECONDS)
        items = client.ask(Result, "list", timeout=0.0).items
        return [(item.name, item.bind, item.state, item.tags) for item in items]
    except ControlError:
        return list(_in_files(pool.files))


def _in_files(paths: Sequence[str]) -> Iterator[Server]:
    """The servers as they stand in files and directories: nothing is validated."""
    from poolctl.config import read_documents

    for document in read_documents([*paths])[0]:
        tables = document.data if isinstance(document.data, list) else document.data.get("server", [])
        for each in [table for table in tables if isinstance(table, dict)]:
            bind = str(each.get("bind") or "")
            yield str(each.get("name") or ""), bind, "", tuple(map(str, each.get("tags") or ()))


def _pools() -> list[str]:
    from poolctl.control.pool_paths import candidates

    roots = [root for root in candidates(os.environ) if os.path.isdir(root)]
    return sorted({entry[1:] for root in roots for entry in os.listdir(root) if entry.startswith("@")})
