"""Words for pydantic's errors: what was found, what is allowed, and a fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from poolctl.config.values.plain import NAME_PATTERN, PROBES
from poolctl.config.values.problems import (
    Finding,
    KeyPath,
    nearest,
    shortened_printable,
    shown,
    unknown_key,
)
from poolctl.config.values.value_types import (
    COOKIE_PATTERN,
    HEADER_PATTERN,
    HEADER_VALUE_PATTERN,
    HOST_HEADER_PATTERN,
    METHOD_PATTERN,
    PATH_PATTERN,
    PLAIN_PATH_PATTERN,
    STATUS_PATTERN,
    TLS_NAME_PATTERN,
    TOPIC_PATTERN,
    UMASK_PATTERN,
    WORD_PATTERN,
)

# Keyed by pydantic's names of errors, up to the first underscore; for names with several meanings, the whole name.
EXPECTED = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "too": "a value that is not empty",
    "string_too_short": "a value that is not empty",
}
FIX_BY_TYPE = {
    "a string": 'put it in quotes: "…"',
    "a list": 'put it in brackets: ["…"]',
    "true or false": "write true or false, without quotes",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}
PATTERNS = {
    NAME_PATTERN: "letters, digits, dots, underscores and hyphens, at most 200 of them",
    WORD_PATTERN: "a word without blanks and commas",
    PATH_PATTERN: 'a path such as "/ready"',
    PLAIN_PATH_PATTERN: 'a path without a query, such as "/metrics"',
    METHOD_PATTERN: 'a method such as "GET"',
    HEADER_PATTERN: 'the name of a header, such as "X-Beta"',
    HEADER_VALUE_PATTERN: "text without line breaks and other control characters",
    HOST_HEADER_PATTERN: 'a host such as "example.com"',
    COOKIE_PATTERN: 'the name of a cookie, such as "backend"',
    TLS_NAME_PATTERN: 'a host name such as "example.com"',
    TOPIC_PATTERN: "letters, digits, underscores and hyphens, at most 64 of them",
    UMASK_PATTERN: 'octal digits: "0022"',
    STATUS_PATTERN: 'statuses and ranges of them, such as "200-399" or "200,204"',
}
# How some tables may be written.
EXAMPLES = {
    "timeouts": 'a table such as { connect = "5s", idle = "60s" }',
    "limit": "a table such as { concurrency = 100 }",
    "backend_limit": "a table such as { concurrency = 100 }",
    "breaker": "a table such as { failures = 5 }",
    "headers": 'a table such as { "X-Beta" = "1" }',
    "add_headers": 'a table such as { "X-Beta" = "1" }',
    "set_headers": 'a table such as { "X-Beta" = "1" }',
    "response_headers": 'a table such as { "Strict-Transport-Security" = "max-age=31536000" }',
}


def findings_of(
    error: ValidationError, keys_at: Callable[[KeyPath], tuple[str, ...]], table: str
) -> list[Finding]:
    """Convert each of pydantic's errors to a finding, in the order of the keys in the file.

    `keys_at` returns the known keys of the table at a path, for suggestions. `table` is the name of the validated table
    in files, such as "gateway"; for a server's table it is "".
    """
    return [_finding(details, keys_at, table) for details in error.errors(include_url=False)]


def _finding(details: Any, keys_at: Callable[[KeyPath], tuple[str, ...]], table: str) -> Finding:
    kind: str = details["type"]
    # Without the tags of a union's alternatives.
    path: KeyPath = tuple(part for part in details["loc"] if str(part)[:1] != "<" or str(part)[-1:] != ">")
    context = details.get("ctx", {})
    value = details.get("input")
    if kind == "extra_forbidden":
        return unknown_key(path, keys_at(path[:-1]), table)
    if kind == "missing":
        return Finding(path, f"{path[-1]!r} is missing", f"add {path[-1]} = …")
    if kind == "value_error":
        cause = context["error"]
        allowed = getattr(cause, "allowed", "")
        hint = f"allowed is {allowed}" if allowed and allowed not in str(cause) else ""
        hint = getattr(cause, "hint", "") or hint
        return Finding(path, str(cause), hint, shown(value), allowed)
    written, allowed = shown(value), _allowed(kind, context, details["msg"])
    if allowed == "a table":
        allowed = EXAMPLES.get(str(path[-1]) if path else "", allowed)
    message, hint = f"{written} is not allowed here", f"allowed is {allowed}"
    if not allowed:
        message, hint = f"{written}: {details['msg'][:1].lower()}{details['msg'][1:]}", ""
    if kind == "literal_error" and isinstance(value, str):
        near = nearest(value, tuple(re.findall(r"'([^']*)'", context["expected"])))
        hint = f'did you mean "{near}"? {hint}' if near else hint
    if allowed == "a table" and path[-2:-1] == ("health",) and path[-1] in PROBES and isinstance(value, str):
        hint = f'write {path[-1]} = {{ http = "{shortened_printable(value)}" }}'
    if allowed in FIX_BY_TYPE and isinstance(value, (str, int, float)):
        hint = f"expected {allowed}: {FIX_BY_TYPE[allowed]}"
    return Finding(path, message, hint, written, allowed)


def _allowed(error_type: str, context: dict[str, Any], message: str) -> str:
    if error_type == "not_allowed":
        return message
    if error_type == "literal_error":
        return str(context["expected"]).replace("'", '"')
    if error_type in BOUNDS:
        key, words = BOUNDS[error_type]
        return f"{words} {context[key]}"
    if error_type == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"what matches {context['pattern']}")
    return EXPECTED.get(error_type) or EXPECTED.get(error_type.partition("_")[0], "")
