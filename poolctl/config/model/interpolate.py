"""`${VAR}` and `${VAR:-default}` in the strings of a configuration; `$${` is a literal `${`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from poolctl.config.model.problems import Finding

ALLOWED = "${VAR}, ${VAR:-default}, or $${ for a literal ${"

_reference = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_inside = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)
_unusable = re.compile("[\0\ud800-\udfff]")


class Interpolated(str):
    """A string that came from the environment: it may be read as a number or a truth value."""

    __slots__ = ()


def referenced_variables(text: str) -> Iterator[str]:
    """The names of the variables that a file's text refers to without a default; comments are skipped."""
    for line in text.splitlines():
        for match in _reference.finditer("" if line.lstrip().startswith("#") else line):
            inside = _inside.fullmatch(match[1] or "")
            if inside is not None and inside[2] is None:
                yield inside[1]


def interpolate(
    value: Any, env: Mapping[str, str], findings: list[Finding], path: tuple[str | int, ...] = ()
) -> Any:
    """The value with its references replaced; a reference that cannot be is a finding.

    Defaults are taken where a variable is unset or empty, as in a shell. What a variable holds is not
    interpolated again. A value without references is returned itself.
    """
    if isinstance(value, str):
        return _text(value, env, findings, path)
    if isinstance(value, dict):
        return {key: interpolate(inner, env, findings, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner, env, findings, (*path, index)) for index, inner in enumerate(value)]
    return value


def _text(text: str, env: Mapping[str, str], findings: list[Finding], path: tuple[str | int, ...]) -> str:
    if _unusable.search(text):
        findings.append(Finding(path, "the text holds a NUL or half a surrogate pair", "take it out"))
        return _unusable.sub("?", text)
    if "${" not in text:
        return text

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return "${"
        inside = _inside.fullmatch(match[1])
        if not match[2] or inside is None or "${" in (inside[2] or ""):
            message = f"{match[0]!r} is no reference"
            findings.append(Finding(path, message, f"write {ALLOWED}", allowed=ALLOWED))
            return ""
        name, default = inside[1], inside[2]
        found = env.get(name)
        if found or (found is not None and default is None):
            return found
        if default is not None:
            return default
        message, hint = (
            f"the environment variable {name} is not set",
            f"set it, or give a default: ${{{name}:-…}}",
        )
        findings.append(Finding(path, message, hint, match[0]))
        return ""

    result = _reference.sub(replaced, text)
    if _unusable.search(result):
        findings.append(
            Finding(path, "the environment variable holds bytes that are no text", "set it to UTF-8")
        )
        result = _unusable.sub("?", result)
    return Interpolated(result) if result != text else text


def escaped(value: Any) -> Any:
    """The same value, its strings written so that interpolation gives them back as they are."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return {key: escaped(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [escaped(each) for each in value]
    return value
