"""Secrets: variables that are not passed to servers, and values that are masked in output."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


MASK = "********"

_MIN_HIDDEN_LENGTH = 6

# Words of secret names, compared with the name in lower case without separators.
_WORDS = ("password", "passwd", "secret", "token", "credential", "apikey", "privatekey", "authorization")
# Suffixes of keys that hold the location of a secret.
_REFERENCES = ("_env", "_file")
# In these tables, users choose the keys.
_USER_KEYED_TABLES = ("env", "labels", "headers")
_SEPARATORS = r"[-_.\s]"
_URL = r"(://[^\s/:@'\"]*:)[^\s/'\"]+(?=@)"
_REFERENCE = r"\$\{[^{}]*\}"
_PAIR = r"""(["']?)(?<![\w.-])([\w.-]++)(\1\s*[:=]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'\[{,}\]][^,}\]\n]*)"""
_FLAG = r"(--?[\w.-]+)=."
# An option and its value as elements of a list, which may be lines of a diff.
_ARGUMENT = r"""(["']--?[\w.-]+["']\s*,[\s+-]*)("(?!-)(?:[^"\\]|\\.)*"|'(?!-)[^']*')"""
_QUOTED = r"'[^']*'|\"[^\"]*\""


def is_secret(name: str) -> bool:
    """Whether a key, variable, header or option of this name probably has a secret value."""
    plain = re.sub(_SEPARATORS, "", name).lower()
    return any(word in plain for word in _WORDS)


def is_secret_key(path: Sequence[str | int]) -> bool:
    """Whether a configuration key has a secret value; `token_env` and `token_file` only name where one is."""
    names = [part for part in path if isinstance(part, str)]
    if not names or not is_secret(names[-1]):
        return False
    return any(part in _USER_KEYED_TABLES for part in names[:-1]) or not names[-1].endswith(_REFERENCES)


def masked(value: Any, path: tuple[str | int, ...] = (), *, hidden: Collection[str] = ()) -> Any:
    """The value of the key `path`, for display: secrets, and `hidden` texts inside strings, are replaced by MASK."""
    if isinstance(value, dict):
        return {key: masked(inner, (*path, key), hidden=hidden) for key, inner in value.items()}
    if value is None or isinstance(value, bool):
        return value
    if is_secret_key(path):
        return MASK
    if isinstance(value, (list, tuple)):
        return masked_arguments([masked(inner, (*path, at), hidden=hidden) for at, inner in enumerate(value)])
    return masked_text(value, hidden) if isinstance(value, str) else value


def values_to_mask(variables: Iterable[str], env: Mapping[str, str]) -> list[str]:
    """Return the variables' values that are to be masked, the longest first. Values too short to mask are left out."""
    values = {env.get(name, "") for name in variables}
    return sorted((value for value in values if len(value) >= _MIN_HIDDEN_LENGTH), key=len, reverse=True)


def masked_text(text: str, hidden: Collection[str] = ()) -> str:
    """The text with passwords in URLs and all `hidden` values replaced by MASK."""
    for value in hidden:
        text = text.replace(value, MASK)
    return re.sub(_URL, rf"\1{MASK}", text) if "://" in text and "@" in text else text


def masked_arguments(arguments: Sequence[Any]) -> list[Any]:
    """A program's arguments with MASK for the values of options such as `--password VALUE` and `--token=VALUE`."""
    result: list[Any] = []
    secret = False
    for argument in arguments:
        if isinstance(argument, str):
            option = re.match(_FLAG, argument)
            if option and is_secret(option[1]):
                argument = f"{option[1]}={MASK}"
            elif secret and not argument.startswith("-"):
                argument = MASK
            secret = argument.startswith("-") and "=" not in argument and is_secret(argument)
        result.append(argument)
    return result


def masked_file_text(text: str) -> str:
    """Lines of a configuration file with secrets replaced by MASK; references to variables stay."""

    def pair(match: re.Match[str]) -> str:
        quote, key, between, value = match.groups()
        plain = not is_secret(key) or key.endswith(_REFERENCES) or is_reference(value)
        return match[0] if plain else f"{quote}{key}{between}{MASK}"

    def argument(match: re.Match[str]) -> str:
        option, value = match.groups()
        return match[0] if not is_secret(option) or is_reference(value) else f'{option}"{MASK}"'

    def is_reference(value: str) -> bool:
        return not re.sub(_REFERENCE, "", value).strip("'\" ")

    return masked_text(re.sub(_ARGUMENT, argument, re.sub(_PAIR, pair, text)))


def masked_quotes(text: str, line: str) -> str:
    """The error message `text` for display; its quotations are masked if `line`, the faulty line, may hold a secret."""
    return re.sub(_QUOTED, f"'{MASK}'", masked_text(text)) if is_secret(line) else masked_text(text)
