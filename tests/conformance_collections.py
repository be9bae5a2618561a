"""Requests of public collections. Each is fetched in a pinned version; nothing of them is part of this repository.

| collection | licence | version | its verdict on a request |
|---|---|---|---|
| aws/http-desync-guardian | Apache-2.0 | 7dd6f37 (2020-12-31) | compliant, acceptable, ambiguous or severe |
| nodejs/llhttp, fixtures | MIT | 9.4.2 | accepted or an error |
| MDA2AV/Http11Probe | MIT | 95bc6a9 (2026-02-17) | the status of the response |
| narfindustries/http-garden | GPL-3.0 | ffb9164 (2025-12-09) | none |
| http-parser, Debian's source package | MIT | 2.9.4 | accepted or an error |

`make conformance` fetches those that are not there yet, by git from github.com and from deb.debian.org, into the
directory that POOLCTL_CONFORMANCE names, one folder each, and runs the tests marked `conformance` with them. What
cannot be reached is skipped, with the reason; files that are not those of the pinned version are an error.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import yaml

FETCH_SECONDS = 120.0
Test = TypeVar("Test", bound=Callable[..., None])

# Verdicts of the collections that are stricter than RFC 9110 and 9112, or about a server.
LENIENT = {
    r"[Uu]nderscore|Transfer-Encoding with multiple (hyphens|delimiters)": "ordinary names to all parsers",
    r"HOST-EMPTY": "valid: RFC 9112 §3.2",
    r"explicit `close`|No restart when keep-alive is off": "only the first request is read",
    r"CHUNK|[Cc]hunk|extension": "the proxy writes the framing itself, without extensions",
}


class Unreachable(Exception):
    """A collection cannot be fetched from here."""


class CollectedCase(NamedTuple):
    """`hostile`: by its collection's verdict such a request must be refused, or its connection closed."""

    name: str
    data: bytes
    hostile: bool

    @property
    def lenient(self) -> bool:
        """Whether its first request is served despite the verdict: see LENIENT."""
        return any(re.search(pattern, self.name) for pattern in LENIENT)


class Collection(NamedTuple):
    """`source` is a git repository, of which `version` is a commit, or a tar file with this SHA-256.

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
                fetch = from_tar if ".tar" in self.source else from_git
                fetch(self, Path(made))
                self._check(Path(made))
                Path(made).rename(place)
                Path(made).mkdir()  # for the end of the block
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


def from_tar(collection: Collection, place: Path) -> None:
    try:
        with urllib.request.urlopen(collection.source, timeout=FETCH_SECONDS) as response:
            data = response.read()
    except OSError as error:
        raise Unreachable(f"{collection.source}: {error}") from None
    if (found := hashlib.sha256(data).hexdigest()) != collection.version:
        raise ValueError(f"{collection.source} has the SHA-256 {found}, not {collection.version}")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers():
            name = member.name.partition("/")[2]
            if name in collection.files and (content := archive.extractfile(member)) is not None:
                (place / name).write_bytes(content.read())


def of_collections(test: Test) -> Test:
    """Marks a test that needs collections: `make conformance` runs it."""
    for mark in (pytest.mark.conformance, pytest.mark.heavy, pytest.mark.slow):
        test = mark(test)
    return test


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


_raw = re.compile(
    r'\.name= ("[^\n]*")\n +,\.type= HTTP_REQUEST\n +,\.raw= ((?:"(?:[^"\\]|\\.)*"\s*|/\*.*?\*/\s*)+)'
)
_simple = re.compile(r'test_simple\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+),\s*(\w+)\)')
_c_literal = re.compile(r'"((?:[^"\\]|\\.)*)"')
_c_escape = re.compile(r'\\(?:([rnt"\\])|([0-7]{1,3})|x([0-9a-fA-F]{2}))')


def http_parser(directory: Path) -> Iterator[CollectedCase]:
    """The requests of its test program: those that it must refuse are hostile."""

    def data(literals: str) -> bytes:
        text = "".join(_c_literal.findall(literals))
        text = _c_escape.sub(
            lambda found: (
                _SHARP_ESCAPES.get(found[1]) or chr(int(found[2] or found[3], 8 if found[2] else 16))
            ),
            text,
        )
        return text.encode("latin-1", "replace")

    text = (directory / "test.c").read_text("latin-1")
    for name, literals in _raw.findall(text):
        yield CollectedCase(name.strip('"'), data(literals), hostile=False)
    for number, (literals, error) in enumerate(_simple.findall(text)):
        yield CollectedCase(f"simple {number}", data(literals), hostile=error not in ("HPE_OK", "0"))


GITHUB = "https://github.com/"
COLLECTIONS = [
    Collection(
        "http-desync-guardian", GITHUB + "aws/http-desync-guardian", "7dd6f37171f0a8428d259f2631aee5e7b01a1d64",
        ("tests/*.yaml",),
        "cc6329396c48e30fd5811f1f9c0c3ae352f4cf89334e7349b580fa5548c7a2c8", http_desync_guardian,
    ),
    Collection(
        "llhttp", GITHUB + "nodejs/llhttp", "01e105a30fd06e248bc8ac73c4adb34a63d4114a",
        ("test/request/*.md",),
        "c3a61fb983fd637d41ec484e375e68a6b54ad289875549db27b981262d09180e", llhttp,
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
    Collection(
        "http-parser", "https://deb.debian.org/debian/pool/main/h/http-parser/http-parser_2.9.4.orig.tar.gz",
        "467b9e30fd0979ee301065e70f637d525c28193449e1b13fbcb1b1fab3ad224f", ("test.c",),
        "cdc4bba06b18db22a48eb8a0747fc5c0a7f0f4ee5fcf127d75c804c123d697e8", http_parser,
    ),
]  # fmt: skip
