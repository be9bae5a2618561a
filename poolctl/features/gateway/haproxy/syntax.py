"""HAProxy's syntax: words, names, times and networks; and the alerts that it prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from poolctl.routing.networks import EVERY, UNIX

# The longest time that HAProxy supports; used for longer times and for no limit.
_NO_LIMIT, _NO_LIMIT_SECONDS = "24d", 24 * 86_400
# A line has at most 64 words.
VALUES_A_LINE = 20
_COMMENT_CHARACTERS = 200


def unique_name(text: str, taken: set[str]) -> str:
    """Return a name that HAProxy allows, resembles the text and is not in `taken`; adds it to `taken`."""
    base = name = re.sub(r"[^A-Za-z0-9_.:-]", "_", text)
    number = 1
    while name in taken:
        number += 1
        name = f"{base}:{number}"
    taken.add(name)
    return name


def quoted(text: str) -> str:
    """The text as one word of a configuration, quoted if necessary."""
    if re.fullmatch(r"[A-Za-z0-9_./:@=,+()-]+", text):
        return text
    return "'" + text.replace("'", r"'\''").replace("\n", r"'\n'") + "'"


def argument(text: str) -> str:
    """The text, without double quotes, as an argument of a fetch or converter, in a word that has to be quoted."""
    return text if re.fullmatch(r"[A-Za-z0-9_.-]+", text) else f'"{text}"'


def literal(text: str) -> str:
    """The text, escaped for places where HAProxy expands formats."""
    return text.replace("%", "%%")


def duration(seconds: float) -> str:
    """The time in HAProxy's syntax; 0 means no limit."""
    return f"{max(1, round(seconds * 1000))}ms" if 0 < seconds < _NO_LIMIT_SECONDS else _NO_LIMIT


def longest_duration(times: Iterable[float]) -> str:
    """The longest of several time limits in HAProxy's syntax; a limit of 0 means no limit."""
    durations = [*times]
    return duration(0.0 if 0.0 in durations else max(durations))


def comment(text: str) -> str:
    """A comment line: an explanation of the lines below it, or the configuration key that they implement."""
    shown = "".join(
        character if character.isprintable() and character.isascii() else "?" for character in text
    )
    return f"    # {shown[:_COMMENT_CHARACTERS]}"


def line_groups(values: Sequence[str]) -> Iterator[str]:
    """The values as words, separated by spaces, in groups that fit into a line."""
    for start in range(0, len(values), VALUES_A_LINE):
        yield " ".join(map(quoted, values[start : start + VALUES_A_LINE]))


def network_groups(networks: Sequence[str]) -> Iterator[str]:
    """The networks in `line_groups`, without UNIX."""
    networks = [network for network in networks if network != UNIX]
    if EVERY in networks:
        networks = ("0.0.0.0/0", "::/0")
    yield from line_groups(networks)


def matches(fetch: str, method: str, value: str) -> str:
    """A condition: what HAProxy fetches matches the value by this method."""
    return f"{{ {criterion(fetch, method, value)} }}"


def criterion(fetch: str, method: str, value: str) -> str:
    """The condition of `matches`, for an `acl` with a name."""
    return f"{fetch} -m {method} -- {quoted(value)}"


def alerts_in(output: str) -> list[str]:
    """The alerts in HAProxy's output, each as one line. HAProxy 3 continues alerts on lines without a level."""
    messages = re.split(r"^(?=\[[A-Z]+\])", output, flags=re.MULTILINE)
    return [
        " ".join(message.partition(" : ")[2].split())
        for message in messages
        if re.match(r"\[ALERT\] *\(\d+\)", message)
    ]
