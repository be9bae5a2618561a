"""What libyaml could not read, as the author of the file would put it, with what to write instead."""

from __future__ import annotations

from typing import Any

from poolctl.config.files.parse_error import ParseError

_INDENT = "check that what belongs together is indented alike, and that every quote is closed"


def yaml_slip(text: str, error: Any) -> ParseError:
    """A yaml.MarkedYAMLError in plain words, with its mend."""
    mark, start = error.problem_mark or error.context_mark, error.context_mark
    context, problem = error.context or "", error.problem or ""
    said = " ".join(part for part in (context, problem) if part) or "no YAML"
    if "flow sequence" in context:
        return _at(start, "the list that begins here is not closed, or lacks a comma", "put a ] at its end")
    if "flow mapping" in context:
        return _at(start, "the table that begins here is not closed, or lacks a comma", "put a } at its end")
    if "escape character" in problem or "hexdecimal" in problem:
        return _at(
            mark, "a backslash that means nothing in a string", "write \\\\ for one, or take single quotes"
        )
    if "quoted scalar" in context:
        return _at(start, "the string is not closed", "put a quote at its end")
    if "mapping values are not allowed" in problem:
        return _at(mark, "a second ':' in one line", f"put the text in quotes, or {_INDENT}")
    if "cannot start any token" in problem:
        character = _character(text, mark)
        if character == "\t":
            return _at(mark, "a tab where YAML wants blanks", "indent with blanks")
        return _at(mark, f"a text cannot begin with {character!r}", 'put it in quotes: "…"')
    if context.startswith("while parsing a block"):
        return _at(mark, said, _INDENT)
    return _at(mark, said, "")


def _at(mark: Any, message: str, hint: str) -> ParseError:
    return (
        ParseError(message, mark.line + 1, mark.column + 1, hint) if mark else ParseError(message, hint=hint)
    )


def _character(text: str, mark: Any) -> str:
    lines = text.split("\n")
    return lines[mark.line][mark.column : mark.column + 1] if mark.line < len(lines) else ""
