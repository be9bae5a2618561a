"""Errors of pydantic as findings: the value that was found, the values that are allowed, and a fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from poolctl.config.values.plain import NAME_PATTERN
from poolctl.config.values.problems import Finding, Path, printable, shown
from poolctl.config.values.suggestions import nearest, unknown_key
from poolctl.config.values.value_types import (
    COOKIE_PATTERN,
    HEADER_PATTERN,
    HOST_HEADER_PATTERN,
    METHOD_PATTERN,
    PATH_PATTERN,
    STATUS_PATTERN,
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
    METHOD_PATTERN: 'a method such as "GET"',
    HEADER_PATTERN: 'the name of a header, such as "X-Beta"',
    HOST_HEADER_PATTERN: 'a host such as "example.com"',
    COOKIE_PATTERN: 'the name of a cookie, such as "backend"',
    UMASK_PATTERN: 'octal digits: "0022"',
    STATUS_PATTERN: 'statuses and ranges of them, such as "200-399" or "200,204"',
}
# Tables with a short form.
SHORT_FORMS = {
    "restart": '"no", "on-failure", "always", or a table',
    "recovery": '"restart", "replace", "disable", "notify", "none", or a table',
    "health": 'a path such as "/ready", or a table',
    "redirect": '"https", a URL, or a table such as { to = "https://example.com", status = 301 }',
    "timeouts": 'a table such as { connect = "5s", idle = "60s" }',
    "limit": "a table such as { concurrency = 100 }",
    "backend_limit": "a table such as { concurrency = 100 }",
    "breaker": "a table such as { failures = 5 }",
    "headers": 'a table such as { "X-Beta" = "1" }',
    "add_headers": 'a table such as { "X-Beta" = "1" }',
    "set_headers": 'a table such as { "X-Beta" = "1" }',
    "response_headers": 'a table such as { "Strict-Transport-Security" = "max-age=31536000" }',
}
PROBES = ("startup", "readiness", "liveness")


def findings_of(
    error: ValidationError, keys_at: Callable[[Path], tuple[str, ...]], table: str
) -> list[Finding]:
    """Every error as a finding, in the order of the file's keys.

    `keys_at` knows the keys of the table at a path; `table` is its name, "" for a server's.
    """
    return [_finding(details, keys_at, table) for details in error.errors(include_url=False)]


def _finding(details: Any, keys_at: Callable[[Path], tuple[str, ...]], table: str) -> Finding:
    kind: str = details["type"]
    path: Path = tuple(details["loc"])
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
        return Finding(path, str(cause), hint, shown(value), allowed)
    found, allowed = shown(value), _allowed(kind, context)
    if allowed == "a table":
        allowed = SHORT_FORMS.get(str(path[-1]) if path else "", allowed)
    message, hint = f"{found} is not allowed here", f"allowed is {allowed}"
    if not allowed:
        message, hint = f"{found}: {details['msg'][:1].lower()}{details['msg'][1:]}", ""
    if kind == "literal_error" and isinstance(value, str):
        near = nearest(value, tuple(re.findall(r"'([^']*)'", context["expected"])))
        hint = f'did you mean "{near}"? {hint}' if near else hint
    if allowed == "a table" and path[-2:-1] == ("health",) and path[-1] in PROBES and isinstance(value, str):
        hint = f'write {path[-1]} = {{ http = "{printable(value)}" }}'
    if allowed in FIX_BY_TYPE and isinstance(value, (str, int, float)):
        hint = f"expected {allowed}: {FIX_BY_TYPE[allowed]}"
    return Finding(path, message, hint, found, allowed)


def _allowed(kind: str, context: dict[str, Any]) -> str:
    if kind == "literal_error":
        return str(context["expected"]).replace("'", '"')
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"{words} {context[key]}"
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"what matches {context['pattern']}")
    return EXPECTED.get(kind) or EXPECTED.get(kind.partition("_")[0], "")
