"""The words that shells offer: names and tags of the pool in the working directory.

`poolctl __complete servers|tags|pools [-c FILE]… [--pool NAME]` prints words, one a line. It is quick, it never
fails and never prints anything else, because it runs on every press of Tab.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise

from poolctl.cli.command_line import CommandRequest
from poolctl.config import read_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from poolctl.cli.pool_ref import PoolRef

    NameAndTags = tuple[str, tuple[str, ...]]

ANSWER_SECONDS = 1.0
# Words that would have to be quoted are left to the fingers.
_word = re.compile(r"[A-Za-z0-9._@%+,-]+")


def complete(args: Sequence[str]) -> int:
    """Print the words; 0 whatever happens."""
    try:
        kind, pool_words = args[0], list(args[1:])
        words = _pools() if kind == "pools" else _words(kind, _request(pool_words))
        sys.stdout.write("".join(f"{word}\n" for word in words if _word.fullmatch(word)))
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt):
        return 0
    return 0


def _request(words: list[str]) -> CommandRequest:
    """-c and --pool as they stand in the unfinished command line; `~` is still as it was typed."""
    pairs = list(pairwise(words))
    files = [os.path.expanduser(value) for option, value in pairs if option in ("-c", "--config")]
    pool = next((value for option, value in pairs if option == "--pool"), None)
    return CommandRequest("list", {"config": files, "pool": pool})


def _words(kind: str, request: CommandRequest) -> Iterable[str]:
    from poolctl.cli.pool_ref import find_pool

    servers = _servers(find_pool(request, missing_ok=True))
    if kind == "tags":
        return sorted({tag for _, tags in servers for tag in tags})
    return [name for name, _ in servers if name] if kind == "servers" else []


def _servers(pool: PoolRef) -> list[NameAndTags]:
    from poolctl.control.answers import Result
    from poolctl.control.client import Client
    from poolctl.errors import ControlError

    try:
        client = Client(pool.socket, silence_seconds=ANSWER_SECONDS)
        return [(item.name, item.tags) for item in client.ask(Result, "list", timeout=0.0).items]
    except ControlError:
        return [server for file in pool.files for server in _from(file)]


def _from(path: str) -> list[NameAndTags]:
    """The servers in a file or a directory, as they stand there: nothing is validated."""
    if os.path.isdir(path):
        endings = (".toml", ".yaml", ".yml", ".json")
        files = sorted(file for file in os.listdir(path) if file.endswith(endings))
        return [server for file in files for server in _from(os.path.join(path, file))]
    document = _parsed(path)
    if path.endswith("pyproject.toml"):
        document = document.get("tool", {}).get("poolctl", {})
    found = document if isinstance(document, list) else document.get("server", [])
    tables = [server for server in found if isinstance(server, dict)]
    return [(str(each.get("name") or ""), tuple(map(str, each.get("tags") or ()))) for each in tables]


def _parsed(path: str) -> Any:
    text = read_regular(path).removeprefix(b"\xef\xbb\xbf").decode()
    if path.endswith(".json"):
        import json

        return json.loads(text)
    if path.endswith((".yaml", ".yml")):
        import yaml

        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    import tomllib

    return tomllib.loads(text)


def _pools() -> list[str]:
    from poolctl.control.directory import candidates

    roots = [root for root in candidates(os.environ) if os.path.isdir(root)]
    return sorted({entry[1:] for root in roots for entry in os.listdir(root) if entry.startswith("@")})
