"""Messages from a process that runs an application's code: bounded in size and rate, each value checked before use."""

from __future__ import annotations

from poolctl.clock import RateLimit
from poolctl.keeper.wire import Message

# Valid messages are a few words; the longest carries the error of an import.
MOST_BYTES = 16 * 1024
MOST_UNREAD = 512
_MOST_CHARACTERS = 4000
BURST = 100
_PER_SECOND = 10.0


class Malformed(Exception):
    """An invalid message; its text is the object of "it sent"."""


def text(message: Message, key: str) -> str:
    """The text under the key, "" for none: shortened, and without characters that a terminal obeys."""
    value = message.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(message, key)
    return printable(value)


def printable(value: str) -> str:
    """The beginning of a text, without characters that are neither printable nor line breaks."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for each in value[:_MOST_CHARACTERS]
    )


def flag(message: Message, key: str) -> bool:
    """The boolean under the key, False for none."""
    value = message.get(key, False)
    if not isinstance(value, bool):
        raise _wrong(message, key)
    return value


def number(message: Message, key: str, least: int, most: int) -> int:
    """The whole number under the key, between these two."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(message, key)
    return value


def _wrong(message: Message, key: str) -> Malformed:
    return Malformed(f"a message with an invalid {key!r}: {printable(repr(message.get(key)))[:80]}")


def allowance() -> RateLimit:
    """How many messages may come unasked: many at once, few over time."""
    return RateLimit(BURST, _PER_SECOND)


def reply_number(message: Message) -> int | None:
    """The number of the call that the message may be the reply to, or None."""
    number = message.get("id")
    return number if type(number) is int else None
