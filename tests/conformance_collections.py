"""Requests of public collections, read from checkouts of their repositories; nothing of them is part of this one.

POOLCTL_CONFORMANCE names a directory with checkouts of aws/http-desync-guardian (Apache-2.0), nodejs/llhttp (MIT),
MDA2AV/Http11Probe (MIT) and narfindustries/http-garden (GPL-3.0), or of some of them, each under its name after the
slash.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

DIRECTORY = os.environ.get("POOLCTL_CONFORMANCE", "")


# Verdicts of the collections that are stricter than RFC 9110 and 9112, or about a server.
LENIENT = {
    r"[Uu]nderscore|Transfer-Encoding with multiple (hyphens|delimiters)": "ordinary names to all parsers",
    r"HOST-EMPTY": "valid: RFC 9112 §3.2",
    r"explicit `close`|No restart when keep-alive is off": "only the first request is read",
    r"CHUNK|[Cc]hunk|extension": "the proxy writes the framing itself, without extensions",
}


class CollectedCase(NamedTuple):
    """`hostile`: by its collection's verdict such a request must be refused, or its connection closed."""

    name: str
    data: bytes
    hostile: bool

    @property
    def lenient(self) -> bool:
        """Whether its first request is served despite the verdict: see LENIENT."""
        return any(re.search(pattern, self.name) for pattern in LENIENT)


def collected() -> list[CollectedCase]:
    """The cases of all collections that are there."""
    found: list[CollectedCase] = []
    for name, read in COLLECTIONS.items():
        if DIRECTORY and (directory := Path(DIRECTORY) / name).is_dir():
            found += [case._replace(name=f"{name}: {case.name}") for case in read(directory)]
    return found


def http_desync_guardian(directory: Path) -> Iterator[CollectedCase]:
    """Heads with a verdict each: those that are ambiguous, or worse, are hostile."""
    for file in sorted((directory / "tests").glob("*.yaml")):
        for each in yaml.safe_load(file.read_text()) or ():
            fields = [f"{header['name']}: {header['value']}" for header in each["headers"] or ()]
            if not any(field.lower().startswith("host:") for field in fields):
                fields.insert(0, "Host: a")
            lines = [f"{each['method']} {each['uri']} {each['version']}", *fields, "", ""]
            hostile = each["expected"]["tier"] in ("Ambiguous", "Severe")
            yield CollectedCase(
                f"{file.stem}: {each['name']}", "\r\n".join(lines).encode("latin-1", "replace"), hostile
            )


_fixture = re.compile(
    r"^#+ ([^\n]+)\n(?:(?!#)[^\n]*\n)*?<!-- meta=(\{[^\n]*\}) -->\n"
    r"```http\n(.*?)^```\n(?:(?!#)[^\n]*\n)*?```log\n(.*?)^```",
    re.MULTILINE | re.DOTALL,
)
_escape = re.compile(r"\\(?:([rntf])|x([0-9a-fA-F]+)|([0-7]{1,3}))")
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "f": "\f"}


def llhttp(directory: Path) -> Iterator[CollectedCase]:
    """Its fixtures for strict parsing of requests: those that end with an error are hostile."""
    for file in sorted((directory / "test" / "request").glob("*.md")):
        for name, meta, text, log in _fixture.findall(file.read_text()):
            if '"type": "request"' not in meta or "pause" in meta:
                continue
            # As its own runner does it: an escaped line break is none, every other one is CRLF.
            text = text.removesuffix("\n").replace("\\\n", "").replace("\n", "\r\n")
            text = _escape.sub(
                lambda found: (
                    _ESCAPES.get(found[1] or "") or chr(int(found[2] or found[3], 16 if found[2] else 8))
                ),
                text,
            )
            if "${" in text:  # a value that its code computes
                continue
            errors = set(re.findall(r"error code=(\d+)", log)) - {"21", "22"}  # these two are pauses
            yield CollectedCase(f"{file.stem}: {name}", text.encode("latin-1", "replace"), bool(errors))


_test_case = re.compile(r'Id = "([^"]+)"(.*?)(?=Id = "|\Z)', re.DOTALL)
_literal = re.compile(r'\$?"((?:[^"\\]|\\.)*)"')
_sharp_escape = re.compile(r'\\(r|n|t|0|"|\\|x[0-9a-fA-F]{1,4}|u[0-9a-fA-F]{4})')
_SHARP_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", '"': '"', "\\": "\\"}


def http11probe(directory: Path) -> Iterator[CollectedCase]:
    """Its requests of one piece: those that only 400 answers are hostile."""
    for file in sorted((directory / "src/Http11Probe/TestCases/Suites").glob("*.cs")):
        for name, body in _test_case.findall(file.read_text()):
            call = re.search(
                r"MakeRequest\(\s*(\$?\"(?:[^\"\\]|\\.)*\"(?:\s*\+\s*\$?\"(?:[^\"\\]|\\.)*\")*)\s*\)", body
            )
            if call is None:
                continue
            text = "".join(_literal.findall(call[1])).replace("{ctx.HostHeader}", "a")
            if re.search(r"\{\w", text):  # a value that its code computes
                continue
            text = _sharp_escape.sub(
                lambda found: _SHARP_ESCAPES.get(found[1]) or chr(int(found[1][1:], 16)), text
            )
            hostile = "ExpectedStatus = StatusCodeRange.Exact(400)" in body
            yield CollectedCase(name, text.encode("latin-1", "replace"), hostile)


def http_garden(directory: Path) -> Iterator[CollectedCase]:
    """The requests by which it finds quirks of servers; they have no verdict."""
    for file in [directory / "tools" / "probe_quirks.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and b" HTTP/" in node.value:
                yield CollectedCase(f"{file.stem}:{node.lineno}", node.value, hostile=False)


COLLECTIONS = {
    "http-desync-guardian": http_desync_guardian,
    "llhttp": llhttp,
    "Http11Probe": http11probe,
    "http-garden": http_garden,
}
