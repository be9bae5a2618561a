"""Completes the last word of a command line: `poolctl __complete WORD...`.

Each line of the answer is a word with the prefix typed so far, followed by a tab and a description if there is one.
`:files`, `:directories` and `:command` leave the word to the shell: a path, or a command after `--`. It must be
fast, and never fails or prints anything else, because it runs on every press of Tab.
"""

from __future__ import annotations

import os
import re
import sys

from poolctl.cli.command_line import (
    BACKEND_ACTIONS,
    BACKENDS,
    COMMON,
    DIRECTORIES,
    FILES,
    HELP_OPTION,
    LIST,
    POOLS,
    SERVERS,
    TAGS,
    TARGETS,
    VERSION_OPTION,
    Command,
    Option,
    by_spelling,
    command_named,
    names,
)
from poolctl.cli.pool_ref import PoolRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Offer = tuple[str, str]  # a word and its description
    Server = tuple[str, str, str, tuple[str, ...]]  # name, address, state, tags

ANSWER_SECONDS = 1.0
# Words that need quoting are not offered.
_word = re.compile(r"[A-Za-z0-9._@%+,:=/-]+")


def complete(words: Sequence[str]) -> int:
    """Print the completions of the last word; always returns 0."""
    try:
        found = [(word, meaning) for word, meaning in _offers(words) if _word.fullmatch(word)]
        sys.stdout.write("".join(f"{word}\t{meaning}".rstrip() + "\n" for word, meaning in found))
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt):
        return 0
    return 0


def _offers(words: Sequence[str]) -> Iterable[Offer]:
    *before, last = words or [""]
    own = before.index("--") if "--" in before else None
    line = _CommandLine(before[:own])
    if own is not None:
        return [(":command", "")] if line.command and line.command.takes_command else []
    if line.awaiting:
        return _values(line, line.awaiting, last)
    if last.startswith("-"):
        option, head, value = line.split(last)
        if option and value is not None:
            return [
                (word if word.startswith(":") else head + word, meaning)
                for word, meaning in _values(line, option, value)
            ]
        return [(word, _sentence(each.help)) for word, each in line.options.items() if word.startswith(last)]
    if not line.verb or (line.verb == "help" and not line.arguments):
        return _commands(last)
    argument = line.argument()
    return _values(line, argument, last) if argument else []


def _commands(begun: str) -> list[Offer]:
    """The commands with this prefix; only their modules are imported, for their descriptions."""
    found = [(verb, command_named(verb)) for verb in names() if verb.startswith(begun)]
    return [(verb, _sentence(command.help)) for verb, command in found if command]


def _sentence(help: str) -> str:
    return help.removesuffix(".")


class _CommandLine:
    """The parsed words before the last: the command, its options and arguments, and an option awaiting its value."""

    def __init__(self, words: Sequence[str]) -> None:
        self.verb = ""
        self.command: Command | None = None
        self.options = by_spelling((*COMMON, VERSION_OPTION, HELP_OPTION))
        self.values: dict[str, list[str]] = {}
        self.arguments = 0
        self.awaiting: Option | None = None
        for word in map(_unquoted, words):
            self._take(word)

    def _take(self, word: str) -> None:
        if self.awaiting:
            self.values.setdefault(self.awaiting.key, []).append(word)
            self.awaiting = None
        elif word.startswith("-"):
            option, _, value = self.split(word)
            if option and value is not None:
                self.values.setdefault(option.key, []).append(value)
            elif option and option.takes_value:
                self.awaiting = option
        elif self.verb:
            self.arguments += 1
        else:
            self.verb, self.command = word, command_named(word)
            if self.command:
                self.options = by_spelling((*self.command.options, HELP_OPTION))

    def split(self, word: str) -> tuple[Option | None, str, str | None]:
        """The option in a word, the text before its value, and the value; None if it has no option with a value."""
        name, equals, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2:
            name, equals, value = word[:2], "=" * (word[2] == "="), word[2:].removeprefix("=")
        elif not equals:
            return self.options.get(word), word, None
        option = self.options.get(name)
        return (option, name + equals, value) if option and option.takes_value else (None, word, None)

    def argument(self) -> Option | None:
        """The argument at the position of the last word."""
        declared = self.command.arguments if self.command else []
        if self.arguments < len(declared):
            return declared[self.arguments]
        return declared[-1] if declared and declared[-1].kind == LIST else None


def _unquoted(word: str) -> str:
    """The word as the command would receive it; bash and zsh pass it as typed."""
    if "'" not in word and '"' not in word and "\\" not in word:
        return word
    import shlex

    try:
        parts = shlex.split(word)
    except ValueError:
        return word
    return parts[0] if len(parts) == 1 else word


def _values(line: _CommandLine, option: Option, begun: str) -> list[Offer]:
    """The values of an option or argument with this prefix."""
    if option.completes in (FILES, DIRECTORIES):
        return [(f":{option.completes}", "")]
    offers: Iterable[Offer] = ((word, "") for word in option.words)
    if option.key == "output" and "name" in option.words and line.command:
        head = "".join(begun.rpartition(",")[:2])  # comma-separated fields
        forms = () if head else option.words
        offers = ((head + word, "") for word in dict.fromkeys((*forms, *line.command.fields)))
    elif option.completes:
        offers = _pools() if option.completes == POOLS else _of_pool(line, option.completes, begun)
    return [(word, meaning) for word, meaning in offers if word.startswith(begun)]


def _of_pool(line: _CommandLine, kind: str, begun: str) -> Iterable[Offer]:
    """The contents of the pool named by -c or --pool; `~` is still unexpanded."""
    from poolctl.cli.command_line import CommandRequest
    from poolctl.cli.pool_ref import find_pool

    files = [os.path.expanduser(path) for path in line.values.get("config", [])]
    named = line.values.get("pool", [None])[-1]
    pool = find_pool(CommandRequest("list", {"config": files, "pool": named}), missing_ok=True)
    if kind == BACKENDS:
        actions = () if line.arguments else BACKEND_ACTIONS
        return [(word, "") for word in (*actions, *_backends(pool))]
    servers = _servers(pool)
    if kind == TAGS:
        return [(tag, "") for tag in sorted({tag for *_, tags in servers for tag in tags})]
    offers = [(name, state) for name, _, state, _ in servers if kind in (SERVERS, TARGETS)]
    if kind == TARGETS and begun:
        offers += [(bind, name) for name, bind, _, _ in servers]
    return offers


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
    """The servers in the files, without validation."""
    from poolctl.config import read_documents

    for document in read_documents([*paths])[0]:
        tables = document.data if isinstance(document.data, list) else document.data.get("server", [])
        for each in [table for table in tables if isinstance(table, dict)]:
            bind = str(each.get("bind") or "")
            yield str(each.get("name") or ""), bind, "", tuple(map(str, each.get("tags") or ()))


def _pools() -> list[Offer]:
    from poolctl.control.pool_paths import candidates

    roots = [root for root in candidates(os.environ) if os.path.isdir(root)]
    found = {entry[1:] for root in roots for entry in os.listdir(root) if entry.startswith("@")}
    return [(name, "") for name in sorted(found)]
