"""Requests of public collections: two are tables in `tests/collections/`, three are fetched in a pinned version.

| collection | licence | version | |
|---|---|---|---|
| nodejs/llhttp, fixtures | MIT | 9.3.0 | table |
| nodejs/http-parser, test program | MIT | 2.9.4 | table |
| aws/http-desync-guardian | Apache-2.0 | 7dd6f37 (2020-12-31) | fetched |
| MDA2AV/Http11Probe | MIT | 95bc6a9 (2026-02-17) | fetched |
| narfindustries/http-garden | GPL-3.0 | ffb9164 (2025-12-09) | fetched |

`make conformance` fetches those that are not there yet, by git from github.com, into the directory that
POOLCTL_CONFORMANCE names, one folder each, and runs the tests marked `conformance` with them. What cannot be reached is
skipped, with the reason; files that are not those of the pinned version are an error.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

FETCH_SECONDS = 120.0
TABLES = Path(__file__).parent / "collections"


class Unreachable(Exception):
    """A collection cannot be fetched from here."""


class CollectedCase(NamedTuple):
    """The bytes of a request, or of several."""

    name: str
    data: bytes


class TabledCollections(NamedTuple):
    """Those that are tables in `tests/collections/`."""

    names: tuple[str, ...]

    def cases(self) -> list[CollectedCase]:
        """Their cases; requests stand there as Latin-1."""
        return [
            CollectedCase(f"{name}: {row['name']}", row["data"].encode("latin-1"))
            for name in self.names
            for row in json.loads((TABLES / f"{name}.json").read_text())
        ]


class Collection(NamedTuple):
    """`source` is a git repository, of which `version` is a commit.

    `files` are patterns of those that are read, and `digest` their SHA-256, see `digest_of`.
    """

    name: str
    source: str
    version: str
    files: tuple[str, ...]
    digest: str
    read: Callable[[Path], Iterator[CollectedCase]]

    def cases(self) -> list[CollectedCase]:
        """Its cases, fetched if need be; skips the test where they cannot be had."""
        directory = os.environ.get("POOLCTL_CONFORMANCE")
        if not directory:
            pytest.skip("POOLCTL_CONFORMANCE names no directory for the collections: `make conformance` does")
        try:
            place = self.fetched(Path(directory))
        except Unreachable as error:
            pytest.skip(f"{self.name} cannot be fetched: {error}")
        return [case._replace(name=f"{self.name}: {case.name}") for case in self.read(place)]

    def fetched(self, directory: Path) -> Path:
        """Where its files are. Raises Unreachable, and ValueError for files of another version."""
        place = directory / self.name
        if not place.exists():
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory) as made:
                from_git(self, Path(made))
                self._check(Path(made))
                Path(made).rename(place)
                Path(made).mkdir()  # the end of the block removes it
        self._check(place)
        return place

    def _check(self, place: Path) -> None:
        if (found := digest_of(place, self.files)) != self.digest:
            raise ValueError(
                f"{place}: the files are not those of {self.version}: {found}, not {self.digest}"
            )


def digest_of(place: Path, files: tuple[str, ...]) -> str:
    """The SHA-256 of the names and contents of these files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in files for path in place.glob(pattern)):
        content = path.read_bytes()
        digest.update(b"%b %d\n" % (path.relative_to(place).as_posix().encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()


def from_git(collection: Collection, place: Path) -> None:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        for words in (
            ("init", "-q"),
            ("fetch", "-q", "--depth=1", "--no-tags", collection.source, collection.version),
            ("-c", "core.autocrlf=false", "checkout", "-q", "FETCH_HEAD"),
        ):
            subprocess.run(
                ["git", "-C", place, *words], env=environment, check=True, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=FETCH_SECONDS,
            )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise Unreachable(str(error)) from None
    except subprocess.CalledProcessError as error:
        raise Unreachable(error.stderr.strip().partition("\n")[0]) from None


def http_desync_guardian(directory: Path) -> Iterator[CollectedCase]:
    """Its heads."""
    for file in sorted((directory / "tests").glob("*.yaml")):
        for each in yaml.safe_load(file.read_text()) or ():
            fields = [f"{header['name']}: {header['value']}" for header in each["headers"] or ()]
            if not any(field.lower().startswith("host:") for field in fields):
                fields.insert(0, "Host: a")
            lines = [f"{each['method']} {each['uri']} {each['version']}", *fields, "", ""]
            yield CollectedCase(
                f"{file.stem}: {each['name']}", "\r\n".join(lines).encode("latin-1", "replace")
            )


_test_case = re.compile(r'Id = "([^"]+)"(.*?)(?=Id = "|\Z)', re.DOTALL)
_literal = re.compile(r'\$?"((?:[^"\\]|\\.)*)"')
_sharp_escape = re.compile(r'\\(r|n|t|0|"|\\|x[0-9a-fA-F]{1,4}|u[0-9a-fA-F]{4})')
_SHARP_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", '"': '"', "\\": "\\"}


def http11probe(directory: Path) -> Iterator[CollectedCase]:
    """Its requests of one piece."""
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
            yield CollectedCase(name, text.encode("latin-1", "replace"))


def http_garden(directory: Path) -> Iterator[CollectedCase]:
    """The requests by which it finds quirks of servers."""
    for file in [directory / "tools" / "probe_quirks.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and b" HTTP/" in node.value:
                yield CollectedCase(f"{file.stem}:{node.lineno}", node.value)


GITHUB = "https://github.com/"
FETCHED = [
    Collection(
        "http-desync-guardian", GITHUB + "aws/http-desync-guardian", "7dd6f37171f0a8428d259f2631aee5e7b01a1d64",
        ("tests/*.yaml",),
        "cc6329396c48e30fd5811f1f9c0c3ae352f4cf89334e7349b580fa5548c7a2c8", http_desync_guardian,
    ),
    Collection(
        "Http11Probe", GITHUB + "MDA2AV/Http11Probe", "95bc6a991b2ad2bddd61d58c92c36d543d895ffa",
        ("src/Http11Probe/TestCases/Suites/*.cs",),
        "3566c4844fe03588cc54e46ad0511cba09acaaaf73344917e816e5b1ed7f1f42", http11probe,
    ),
    Collection(
        "http-garden", GITHUB + "narfindustries/http-garden", "ffb9164c6603f6201c1dc70afb08fd229e2778bc",
        ("tools/probe_quirks.py",),
        "e398a25320456540d08f6bc93b8d66ed7fa65178fb741e540dbbe2a1c2a59fc2", http_garden,
    ),
]  # fmt: skip
# A parameter for tests of each collection; `make conformance` runs the tests of the fetched ones.
COLLECTIONS = [
    pytest.param(TabledCollections(("llhttp", "http-parser")), id="tables"),
    *(
        pytest.param(each, id=each.name, marks=(pytest.mark.conformance, pytest.mark.heavy, pytest.mark.slow))
        for each in FETCHED
    ),
]
