"""Validates messages from a process that runs an application's code: their size, rate and values are limited."""

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
    """A message is invalid; the text continues the phrase "it sent"."""


def text(message: Message, key: str) -> str:
    """The text under the key, "" if missing, shortened and without characters that control a terminal."""
    value = message.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _malformed_value(message, key)
    return printable(value)


def printable(value: str) -> str:
    """The beginning of a text, with only printable characters and line breaks."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for each in value[:_MOST_CHARACTERS]
    )


def flag(message: Message, key: str) -> bool:
    """The boolean under the key, False if missing."""
    value = message.get(key, False)
    if not isinstance(value, bool):
        raise _malformed_value(message, key)
    return value


def number(message: Message, key: str, least: int, most: int) -> int:
    """The integer under the key, which must lie between these limits."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _malformed_value(message, key)
    return value


def _malformed_value(message: Message, key: str) -> Malformed:
    return Malformed(f"a message with an invalid {key!r}: {printable(repr(message.get(key)))[:80]}")


def allowance() -> RateLimit:
    """The rate limit for unrequested messages: bursts are allowed, but few messages over time."""
    return RateLimit(BURST, _PER_SECOND)


def reply_number(message: Message) -> int | None:
    """The number of the call to which the message claims to reply, or None."""
    number = message.get("id")
    return number if type(number) is int else None
